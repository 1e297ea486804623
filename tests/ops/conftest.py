"""Recorded cases of random numbers, small enough to be kept with the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from frozen_cases import read


@pytest.fixture(scope="session")
def pot_cases():
    """What POT's released code computes: "file/array" -> array; see ``regression/README.md``."""
    return read(Path(__file__).parent / "regression" / "pot.npz")
