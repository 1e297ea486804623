"""Draws docs/storybook.png: scene, initial CAM, refined map, mask, exact mask. ``python docs/figures.py``."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
import torch
from PIL import Image

from tag2mask.data import read_voc
from tag2mask.data.image import read_image
from tag2mask.methods.clip_es import ClipES
from tag2mask.models.weights import load_clip
from tag2mask.ops.masks import pseudo_mask, upsample
from tag2mask.storybook import render
from tag2mask.types import Item

SCENES = 12
SHOWN = (1, 2, 3, 5)


def main() -> None:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    titles = ("image, known by its tags", "initial CAM", "+ CAA", "+ dense CRF: mask", "exact mask")
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read_voc(render(folder, SCENES, split="val"), split="val", classes="storybook16")
        method = ClipES(data.classes, load_clip("storybook-clip", device="cpu"))
        palette = np.array(data.classes.palette, np.uint8)
        figure, axes = plt.subplots(len(SHOWN), 5, figsize=(10, 1.62 * len(SHOWN)), layout="constrained")
        for row, index in zip(axes, SHOWN, strict=True):
            sample = data[index]
            pixels = read_image(sample.image)
            image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
            item = Item(sample.id, image, torch.tensor(sample.tags))
            (scores,) = method.scores([item])
            mask, _ = pseudo_mask(scores, image, replace(method.mask_rule, mu=None))
            maps = [upsample(m, scores.size).amax(0).numpy() for m in (scores.initial, scores.maps)]
            pictures = [pixels, *maps, palette[mask.numpy()], palette[sample.truth()]]
            for axis, picture in zip(row, pictures, strict=True):
                axis.imshow(picture, cmap="magma", vmin=0, vmax=1 if picture.ndim == 2 else None)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
            row[0].set_ylabel(
                "\n".join(data.classes.names[t] for t in sample.tags), rotation=0, ha="right", va="center"
            )
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title, fontsize=10)
        path = Path(__file__).parent / "storybook.png"
        figure.savefig(path, dpi=110, metadata={"Software": None})
    with Image.open(path) as picture:  # 128 colours show the same at a third of the bytes
        picture.convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main()
