"""A small run with its data set: photographs, truth, and artefacts written by the run folder itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from listed import Listed
from tag2mask.data.png import encode_confidence, encode_mask
from tag2mask.ops.masks import class_probabilities, to_labels
from tag2mask.run.folder import Run
from tag2mask.types import IGNORE, ClassSet, MaskRule, Power, Sample, Scores

CLASSES = ClassSet(
    "toys", ("background", "cat", "dog", "hat"), ((0, 0, 0), (200, 30, 30), (30, 160, 30), (30, 60, 220))
)
SIZES = [(48, 64), (64, 48), (40, 40), (48, 64), (33, 70)]
TAGS = [(1,), (1, 2), (3,), (), (2, 3)]


@dataclass
class Toys(Listed):
    """A data set in memory, with images on disk."""

    root: Path
    samples: list[Sample]
    classes: ClassSet = CLASSES


def truth_of(index: int) -> NDArray[np.uint8]:
    """One rectangle a tag, with an ignored rim below the first."""
    height, width = SIZES[index]
    truth = np.zeros((height, width), np.uint8)
    for place, tag in enumerate(TAGS[index]):
        left = 5 + place * width // 2
        truth[8 : height - 10, left : left + width // 3] = tag
        truth[height - 10 : height - 8, left : left + width // 3] = IGNORE
    return truth


def scores_of(index: int) -> Scores:
    """The truth seen through a coarse grid with noise, another noise for the initial maps; the first is worst."""
    generator = torch.Generator().manual_seed(index)
    height, width = SIZES[index]
    h, w = height // 8, width // 8
    tags = torch.tensor(TAGS[index], dtype=torch.int64)
    truth = torch.from_numpy(truth_of(index))
    masks = torch.stack([(truth == tag).float() for tag in tags]) if len(tags) else torch.zeros(0, height, width)
    small = torch.nn.functional.interpolate(masks[None], size=(h, w), mode="area")[0] if len(tags) else masks
    noise = torch.rand(2, len(tags), h, w, generator=generator)
    maps, initial = (
        (small.reshape(len(tags), h, w) * (1 - share) + share * each)
        for share, each in zip((0.8 if index == 0 else 0.3, 0.7), noise, strict=True)
    )
    return Scores(tags, maps.half().float(), (height, width), initial=initial.half().float())


def toys(root: Path, truth: bool = True, prefix: str = "toy/") -> Toys:
    """The data set; its photographs are noise and lie under ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    samples = []
    for index, (height, width) in enumerate(SIZES):
        path = root / f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(path)
        samples.append(Sample(f"{prefix}{index}", path, TAGS[index], partial(truth_of, index) if truth else None))
    return Toys(root, samples)


def small_run(
    path: Path,
    data: Toys,
    rule: MaskRule | None = None,
    *,
    leave_out: tuple[int, ...] = (),
    keep_scores: bool = True,
) -> Run:
    """Label ``data`` with the scores above; images in ``leave_out`` fail."""
    rule = rule or MaskRule(background=Power(1.0))
    settings = {
        "method": "toy",
        "classes": {"id": data.classes.id, "names": data.classes.names, "palette": data.classes.palette},
        "mask_rule": rule,
        "keep_scores": keep_scores,
    }
    with Run.create(path, settings) as run:
        for index, sample in enumerate(data):
            if index in leave_out:
                run.record(sample.id, "failed", {"read": 0.01}, error="cannot be decoded: <b>truncated</b>")
                continue
            scores = scores_of(index)
            probs = class_probabilities(scores, rule) if len(scores.tags) else torch.ones(1, *scores.size)
            mask = to_labels(probs, scores.tags)
            confidence = probs.amax(0)
            if rule.mu is not None:
                mask[confidence < rule.mu] = IGNORE
            run.write(
                sample.id,
                mask=encode_mask(mask.numpy(), data.classes.palette),
                confidence=encode_confidence(confidence.numpy()),
                scores=scores if keep_scores else None,
            )
            run.record(sample.id, "ok", {"read": 0.01, "scores": 0.2, "crf": 0.1, "write": 0.02})
    return Run.open(path)
