"""A classifier as small as they come, with norms that have seen pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from tag2mask.models.backbone import Layout
from tag2mask.models.classifier import Classifier, save_classifier

LAYOUT = Layout(blocks=(1, 1, 1, 1), width=4, strides=(1, 2, 2, 1))


def tiny_classifier(names: tuple[str, ...], seed: int) -> Classifier:
    """One of these classes."""
    torch.manual_seed(seed)
    model = Classifier(names, LAYOUT)
    for _ in range(5):  # norms that fit the features, so that maps are neither empty nor huge
        model(torch.randn(8, 3, 48, 64))
    return model


def write_classifier(folder: Path, names: tuple[str, ...], seed: int) -> str:
    """Writes one of these classes, and gives its folder as an option takes it."""
    save_classifier(tiny_classifier(names, seed), folder, "")
    return str(folder)
