"""Recorded cases of random numbers, small enough to be kept with the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from frozen_cases import read
from tag2mask.ops.compiled import trouble
from tag2mask.ops.crf import ENGINES


@pytest.fixture(scope="session")
def pot_cases():
    """What POT's released code computes: "file/array" -> array; see ``regression/README.md``."""
    return read(Path(__file__).parent / "regression" / "pot.npz")


@pytest.fixture(params=ENGINES)
def crf_engine(request, monkeypatch):
    """The dense CRF by each of its engines in turn."""
    if request.param == "loops" and trouble():
        pytest.skip(str(trouble()))
    monkeypatch.setenv("TAG2MASK_CRF", request.param)
    return request.param
