"""Draws the pictures of the docs: ``python docs/figures.py`` both, ``python docs/figures.py world`` the second.

It needs the development tools: ``pip install -e ".[dev]"``.

docs/storybook.png          scene, initial CAM, refined map, mask, exact mask
docs/storybook-world.jpg    what Storybook is made of: eight instances of every class, eight scenes of every split
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageDraw

from tag2mask.data import read_voc
from tag2mask.data.image import read_image
from tag2mask.methods.clip_es import ClipES
from tag2mask.models.weights import load_clip
from tag2mask.ops.masks import pseudo_mask, upsample
from tag2mask.storybook import CLASSES, SPLITS, draw_scene, kind_of, render, scene_seed
from tag2mask.storybook.canvas import Canvas
from tag2mask.storybook.figures import FIGURES
from tag2mask.types import Item

try:
    import matplotlib
except ImportError:
    raise SystemExit('matplotlib is missing; it comes with the development tools: pip install -e ".[dev]"') from None

SCENES = 12
SHOWN = (1, 2, 3, 5)


INSTANCES, SIDE, MARGIN = 8, 76, 84  # figures a class; their tiles and the captions beside them, in pixels


def world() -> None:
    """Two columns of ten classes, then a row of scenes for each split."""
    half = MARGIN + INSTANCES * SIDE
    width = half * 2
    scene_width = (width - MARGIN) // INSTANCES
    scene_height = scene_width * 3 // 4
    sheet = Image.new("RGB", (width, 10 * SIDE + len(SPLITS) * scene_height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, name in enumerate(CLASSES):
        left, top = index // 10 * half, index % 10 * SIDE
        pen.text((left + 4, top + SIDE // 2 - 6), name, "black")
        for seed in range(INSTANCES):
            sheet.paste(Image.fromarray(_alone(name, seed)), (left + MARGIN + seed * SIDE, top))
    for row, split in enumerate(SPLITS):
        top = 10 * SIDE + row * scene_height
        pen.text((4, top + scene_height // 2 - 6), split, "black")
        for index in range(INSTANCES):
            scene = draw_scene(scene_seed(split, 0, index), (192, 256), CLASSES, kind_of(split))
            tile = Image.fromarray(scene.image).resize((scene_width, scene_height), Image.Resampling.BOX)
            sheet.paste(tile, (MARGIN + index * scene_width, top))
    sheet.save(Path(__file__).parent / "storybook-world.jpg", quality=82)


def _alone(name: str, seed: int) -> np.ndarray:
    """One instance on a plain ground: (SIDE, SIDE, 3) uint8, scaled to fill its tile."""
    flies = name == "aeroplane" or (name == "bird" and seed % 2)
    pose = "fly" if name == "bird" and flies else ""
    trial = Canvas(np.zeros((400, 400, 3), np.uint8))
    FIGURES[name](trial.pen(1, 200, 200, 80), np.random.default_rng(seed), pose)
    rows, columns = np.nonzero(trial.mask())
    grown = 0.9 * SIDE / max(np.ptp(rows), np.ptp(columns))
    x = SIDE / 2 + (200 - (columns.min() + columns.max()) / 2) * grown
    y = SIDE / 2 + (200 - (rows.min() + rows.max()) / 2) * grown
    canvas = Canvas(np.full((SIDE, SIDE, 3), (222, 228, 220), np.uint8))
    FIGURES[name](canvas.pen(1, x, y, 80 * grown), np.random.default_rng(seed), pose)
    return canvas.image()


def main() -> None:
    world()
    if sys.argv[1:] != ["world"]:
        method()


def method() -> None:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    titles = ("image, known by its tags", "initial CAM", "+ CAA", "+ dense CRF: mask", "exact mask")
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read_voc(render(folder, SCENES, split="val"), split="val", classes="voc12")
        method = ClipES(data.classes, clip=load_clip("storybook-clip", device="cpu"))
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
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    main()
