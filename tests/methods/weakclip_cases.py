"""Small WeakCLIPs and folders of seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from methods.cases import FITS, random_clip
from methods.toys import CLASSES
from tag2mask.methods import make_method
from tag2mask.methods.weakclip import WeakCLIP
from tag2mask.types import TextSet

KNOWN = replace(CLASSES, texts={"weakclip": TextSet(("red", "cat", "dog"), ("{}",), ("photo",))})


def weakclip(classes=KNOWN, **options) -> WeakCLIP:
    small = FITS["weakclip"]
    if "checkpoint" in options:  # which learns nothing and brings its sizes
        small = {name: small[name] for name in ("heads", "view", "window", "stride", "scales", "flip")}
    return make_method("weakclip", classes, clip=random_clip(), **{**small, **options})


def seed_folder(data, folder, count=None, value=None) -> Path:
    """Label maps of the first ``count`` images: each one's first tag in its upper half."""
    for sample in list(data)[:count]:
        with Image.open(sample.image) as image:
            mask = np.zeros(image.size[::-1], np.uint8)
        mask[: len(mask) // 2] = sample.tags[0] if value is None else value
        path = folder / f"{sample.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return folder
