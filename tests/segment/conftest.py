"""What the tests of several parts of the segmentation room start from."""

from __future__ import annotations

import pytest

from stages.small_run import Toys, small_run, toys
from tag2mask.run.folder import Run


@pytest.fixture
def data(tmp_path) -> Toys:
    return toys(tmp_path / "data")


@pytest.fixture
def run(tmp_path, data) -> Run:
    return small_run(tmp_path / "run", data)
