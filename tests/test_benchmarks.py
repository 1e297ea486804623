"""The commands that make the tables and pictures of the docs still run, on a few scenes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)


def python(*arguments, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_page_that_is_made_again_keeps_what_a_person_wrote(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from page import write_page

    path = tmp_path / "new" / "page.md"
    write_page(path, "# One\n\n")
    assert path.read_text() == "# One\n"
    path.write_text("# One\n\n## Notes\n\nby hand\n")
    for _ in range(2):
        write_page(path, "# Two\n")
    assert path.read_text() == "# Two\n\n## Notes\n\nby hand\n"


def test_ablations(tmp_path):
    python("benchmarks/ablations.py", "clip-es", "-n", 2, "--out", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    for title in ("Table 2", "Table 6", "Table 8", "Table S1", "Table S2", "Figure S2", "Figure 3"):
        assert f"## {title}" in page
    assert "not run, no embedded weights" in page
    assert (tmp_path / "page.svg").exists()


def test_refine(tmp_path):
    python("benchmarks/refine.py", "-n", 2, "--steps", 2, "--seeds", "classifier CAM", "--out", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "storybook-resnet" in page
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    for row in (
        "classifier CAM",
        "+ CRF",
        "+ PSA",
        "+ IRN",
        "+ IRN + CRF",
        "over random weights",
        "floor: everything",
    ):
        assert any(row in each for each in rows), row


def test_clims(tmp_path):
    few = ["-n", 4, "--steps", 1, "--finetune", 1, "--batch", 2]
    python("benchmarks/clims.py", *few, "--out", tmp_path / "clims.md")
    page = (tmp_path / "clims.md").read_text(encoding="utf-8")
    for row in (
        "classifier CAM (the start)",
        "CLIMS, paper",
        "CLIMS, paper, CLIP first fine-tuned on the tags",
        "floor: everything foreground",
        "L_OTM + L_BTM + L_CBS",
    ):
        assert f"| {row} |" in page


def test_mctformer_keeps_its_rows_and_names_those_not_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from mctformer import FOREGROUND, Bench, page

    bench, made = Bench(tmp_path, scenes=2, test=2, steps=1, psa=1), []
    names = [name for name, _ in bench.rows()]
    assert names[0] == FOREGROUND
    assert len({bench.kept(name) for name in names}) == len(names) >= 10
    for _ in range(2):
        bench.cell(names[0], lambda: made.append(1) or [1.0, 2.0, "0.30", "", ""])
    assert made == [1]
    table = page(bench, "--work WORK")
    assert f"| {FOREGROUND} | 1.0 | 2.0 | 0.30 |  |  |" in table
    assert table.count("| not run |") == len(names) - 1
    assert "not DeiT-S" in table


def test_pot(tmp_path):
    """Rows that are there are not made again, and those that are not say so."""
    few = ["-n", 2, "--steps", 1, "--scales", 1, "--threads", 1, "--work", tmp_path / "work"]
    for what in ("oracle", "pictures"):
        python("benchmarks/pot.py", what, *few, "--out", tmp_path / "pot.md")
    kept = sorted((tmp_path / "work").glob("n2-*/*.json"))
    before = [path.stat().st_mtime_ns for path in kept if path.stem != "oracle"]
    assert "time is over" in python("benchmarks/pot.py", "rows", *few, "--minutes", 0, "--out", tmp_path / "pot.md")
    page = (tmp_path / "pot.md").read_text(encoding="utf-8")
    assert page.count("| not run |") > 10
    for row in ("CLIP-ES with CAA", "POT, paper (K = 3)"):
        assert f"| {row} | not run |" not in page
    for row in (
        "floor: POT over random weights",
        "exact masks on this grid: mIoU",
        "POT, exact pixels for sure ones: mIoU",
    ):
        assert f"| {row} |" in page
    assert "![six scenes](pot.jpg)" in page
    assert (tmp_path / "pot.jpg").stat().st_size < 300_000
    assert before == [path.stat().st_mtime_ns for path in kept if path.stem != "oracle"]


def test_precision():
    assert "of mask pixels are equal" in python("benchmarks/clip_es.py", "precision", "-n", 3)


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_every_benchmark_explains_itself(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
    assert "usage" in capsys.readouterr().out


def test_weakclip(tmp_path):
    """Without time for any cell the page says so of all; cells that are there are not made again."""
    command = ["benchmarks/weakclip.py", "--scenes", 4, "--steps", 1, "--work", tmp_path / "work"]
    python(*command, "--minutes", 0, "--out", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    for title in ("Cost", "Seeds", "Eq. 14", "Table 4", "Table 8", "Table 5"):
        assert title in page
    assert page.count("not run") > 20
    cells = tmp_path / "work" / "4-1" / "cells"
    cells.mkdir()
    (cells / "main-clip-es.json").write_text('{"miou": 12.34, "ignored": 0.0, "fit_seconds": 5}')
    python(*command, "--minutes", 0, "--out", tmp_path / "page.md")
    assert "| WeakCLIP on clip-es's seeds | 12.3 | 0.0 | 5 |" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_many_images(tmp_path):
    page = python("benchmarks/many_images.py", 20, "--work", tmp_path)
    for command in ("report", "report --no-gallery", "eval"):
        assert f"| 20 | `{command}` |" in page
    assert len([*(tmp_path / "20/run/report-images/thumbs").rglob("*.jpg")]) == 20
    assert json.loads((tmp_path / "20/run/metrics.json").read_text())["images"] == 20


def test_contacts(tmp_path):
    from tag2mask.lab.self_distil import make_learner
    from tag2mask.lab.self_distil_recipe import SelfDistil
    from tag2mask.models.save import save_dino

    tower = make_learner(SelfDistil(width=16, layers=1, heads=1, side=16, seed=3)).tower
    save_dino(tmp_path / "dino", tower)
    printed = python("benchmarks/contacts.py", "-n", 5, "--dino", tmp_path / "dino")
    rows = {cells[1].strip(): cells[2:4] for line in printed.splitlines() if len(cells := line.split("|")) == 5}
    for row in (
        "the maps",
        "storybook-clip's patches",
        "colours of 8x8",
        "floor: prototypes",
        str(tmp_path / "dino"),
    ):
        near, everywhere = next(value for name, value in rows.items() if row in name)
        assert 0 <= float(near) <= 100, row
        assert 0 <= float(everywhere) <= 100, row
    assert "1 of 5 scenes of val, seed 1" in printed


def test_overlap(tmp_path):
    """The two measurements may be made in two calls; what is there is not made again."""
    from tag2mask.storybook import render

    pictures = render(tmp_path / "scenes", 2, split="val") / "JPEGImages"
    command = ["benchmarks/overlap.py", pictures, "-n", 2, "--alone", 1, "--clip", "storybook-clip"]
    printed = python(*command, "--work", tmp_path / "work", "--only", "alone")
    parts = json.loads(printed)
    assert set(parts) == {"decode", "maps", "masks", "write"}
    assert min(parts.values()) > 0
    for _ in range(2):
        page = python(*command, "--work", tmp_path / "work")
        assert f"| maps | {parts['maps']:.3f} |" in page
        (file,) = (tmp_path / "work").glob("label-float32-*.json")
        whole = json.loads(file.read_text())
        assert whole["photographs"] == 2
        assert f"| the command, from the shell to its end | {whole['clock'] / 2:.3f} | {whole['clock']:.1f} |" in page
