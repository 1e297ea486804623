"""Runs of the toy methods, without a bar."""

from __future__ import annotations

from methods.toys import CLASSES, TrainingFree
from tag2mask.stages.label import label


def toy(kind=TrainingFree, classes=CLASSES, **options):
    """A toy method."""
    return kind(classes, kind.Options(**options))


def quiet(data, out, method=None, **more):
    """Label by a method, or by a toy that needs no training."""
    return label(data, method or toy(classes=data.classes), out, progress=False, **more)
