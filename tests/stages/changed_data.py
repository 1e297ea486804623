"""Data that changes under a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from run_folders import artefacts
from tag2mask.types import ClassSet, TextSet


def touched(before, folder):
    """The ids whose artefacts differ, or are there on one side alone."""
    after = artefacts(folder)
    paths = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    return {path.partition("/")[2].rpartition(".")[0] for path in paths}


def repaint(path, seed=9):
    """Another picture of the same size under the same name."""
    with Image.open(path) as image:
        width, height = image.size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def retag(data, position, tags):
    samples = [replace(each, tags=tags) if n == position else each for n, each in enumerate(data)]
    return replace(data, samples=samples)


def classes(*names, background=("sky",)):
    colours = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    texts = {"toy": TextSet(names, background=background)}
    return ClassSet("mine", ("background", *names), tuple(colours[: len(names) + 1]), texts)


def untagged(data):
    return retag(data, 0, None), "without tags now"
