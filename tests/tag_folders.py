"""Small folders of images with a tag file, for the tests."""

from __future__ import annotations

import pytest
from PIL import Image

from tag2mask.classes import plain_classes
from tag2mask.data import read_folder
from tag2mask.types import UserError

WANTED = {"a": ("owl", "pine"), "b": ("fox", "owl")}
CLASSES = plain_classes(["fox", "owl", "pine"], "wood")


def folder(root, text=None, name="tags.csv", images=("a.jpg", "b.jpg"), encoding="utf-8"):
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(root / image)
    if text is not None:
        (root / name).write_bytes(text.encode(encoding))
    return root


def named(dataset):
    return {s.id: None if s.tags is None else tuple(dataset.classes.names[t] for t in s.tags) for s in dataset}


def refusal(root, **how):
    with pytest.raises(UserError) as caught:
        read_folder(root, **how)
    return str(caught.value)
