"""What the tests of several stages start from; a module may have its own of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from methods.toys import CLASSES
from stages.networks import SIZES, photographs, tiny_network
from stages.small_run import small_run, toys
from stages.small_training import HOW, RECIPE, watch
from tag2mask.stages.train import train
from tag2mask.types import MaskRule


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    data = toys(folder / "data")
    return data, small_run(folder / "run", data)


@pytest.fixture
def own(tmp_path):
    """Data and run that a test may spoil."""
    data = toys(tmp_path / "data")
    return data, small_run(tmp_path / "run", data)


@pytest.fixture(scope="module")
def unbroken(made, tmp_path_factory):
    data, run = made
    out = tmp_path_factory.mktemp("net") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        result = train(run, out, RECIPE, data=data, **HOW)
    return out, seen, result


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return tiny_network(tmp_path_factory.mktemp("net"), CLASSES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos"), SIZES)


@pytest.fixture
def data(tmp_path):
    """Five images with tags and truth."""
    return toys(tmp_path / "data")


@pytest.fixture
def run(tmp_path, data):
    """Their masks, unsure pixels left out."""
    return small_run(tmp_path / "run", data, MaskRule(mu=0.7))
