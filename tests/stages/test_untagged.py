"""Untagged classes that win, from the command to the masks, the figures and the next run; settings of earlier names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from methods.toys import CLASSES, TinyData, TrainingFree, make_data, pooled, size_of
from stages.networks import TINY
from tag2mask.cli import app
from tag2mask.config import parse_config
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.methods.fitting.affinity import PriorMaps
from tag2mask.ops.masks import best_others, full_maps, pseudo_mask
from tag2mask.run.folder import Run
from tag2mask.run.renamed import as_before, as_today
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.label import label
from tag2mask.stages.predict import predict
from tag2mask.types import IGNORE, Constant, Item, MaskRule, Own, Scores, UserError


class SeesAll(TrainingFree):
    """The red, green or blue of each cell, and which of the untagged ones is strongest."""

    scores_others = True

    def scores(self, items):
        return [replace(each, others=best_others(pooled(item.image), item.tags)) for each, item in
                zip(super().scores(items), items, strict=True)]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images", 6)


def quiet(data, out, kind=SeesAll, **more):
    return label(data, kind(data.classes, kind.Options()), out, progress=False, **more)
