"""The notebook runs from top to bottom, in one process and offline, and holds nothing of a machine."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-masks.ipynb"


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@pytest.mark.filterwarnings("ignore:.*knows no photographs", "ignore:.*starts from random weights")
def test_it_runs_from_top_to_bottom(cells, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise AssertionError("the notebook opens a connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", offline)
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert os.listdir(tmp_path) == ["first-masks"]
    assert {"run", "network", "predicted"} <= set(os.listdir(tmp_path / "first-masks"))


def test_it_holds_no_outputs_and_no_paths_of_a_machine(cells):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)
    assert len({cell["id"] for cell in cells}) == len(cells)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not [word for word in ("/home/", "/work", "/tmp", "C:\\") if word in text]
