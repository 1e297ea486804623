"""What the tests of several methods start from; a module may have its own of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from methods.toys import CLASSES, TinyData, TrainingFree, make_data
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tiny_classifiers import write_classifier
from tiny_clips import write_clip


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """The folder of a tiny CLIP with random weights."""
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder) -> CLIP:
    return load_clip(clip_folder, cache=None)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A tiny DINO with random weights, whose patches are of another size than the CLIP's."""
    from transformers import Dinov2Config, Dinov2Model

    from tag2mask.models.dino import load_dino
    from tiny_clips import shake

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28, "patch_size": 7}
    folder = tmp_path_factory.mktemp("dino")
    shake(Dinov2Model(Dinov2Config(**sizes))).save_pretrained(folder)
    return load_dino(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A classifier of two of the toys' classes and of one more; its norms have seen pictures."""
    return write_classifier(tmp_path_factory.mktemp("classifier"), ("blue", "emu", "red"), seed=1)


@pytest.fixture
def data(tmp_path) -> TinyData:
    """Seven images with a truth that raises when it is read."""
    return make_data(tmp_path / "images", count=7)


@pytest.fixture
def earlier(data, tmp_path) -> Run:
    """A run of the training-free toy on these images."""
    label(data, TrainingFree(CLASSES, TrainingFree.Options()), tmp_path / "earlier", progress=False)
    return Run.open(tmp_path / "earlier")
