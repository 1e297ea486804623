"""The images that a report shows at full length: their pictures, within so many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tag2mask.data.image import BadImage, image_size, read_image
from tag2mask.data.png import read_mask
from tag2mask.run.folder import Run
from tag2mask.stages import report_parts as parts
from tag2mask.stages.report_survey import confidence_of
from tag2mask.types import BACKGROUND, IGNORE, ClassSet, Dataset, Sample, Scores, UserError

ROOM = 1_950_000
"""Bytes of the pictures of 24 images, together at most: a third more in the page, where they are text."""

USUAL = 24
_PHOTO, _LAYER, _OTHER = 0.6, 0.12, 0.07
"""Shares of an image's bytes: the photograph, the mask on it, and each of the four others that there may be."""

_STRIP_BYTES = 14_000


@dataclass(frozen=True)
class Picture:
    """One picture with its name. over: it is transparent, to be laid on the photograph."""

    name: str
    uri: str
    over: bool = False


@dataclass(frozen=True)
class Card:
    """One image of the report. Figures are fractions; miou is None without truth, confidence NaN of a corrected mask.

    legend: (class name, CSS colour). classes: the mask values of the same. size: (H, W) of the pictures' shape.
    """

    id: str
    confidence: float
    miou: float | None
    legend: tuple[tuple[str, str], ...]
    classes: tuple[int, ...]
    size: tuple[int, int]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Chosen:
    """Which images are shown, by id, in their order. miou: of those, where there is truth."""

    ids: Sequence[str]
    confidence: Mapping[str, float]
    miou: Mapping[str, float] = field(default_factory=dict)


def cards(run: Run, chosen: Chosen, data: Dataset | None, classes: ClassSet, most: int) -> list[Card]:
    """Cards with all pictures: photograph, maps, mask, confidence, truth, as far as they are there.

    most: the bytes of one card's pictures, at most.
    """
    samples = _samples(chosen, data)
    return [_card(run, id, samples.get(id), chosen, classes, most) for id in chosen.ids]


def strip(run: Run, chosen: Chosen, data: Dataset | None, classes: ClassSet) -> list[Card]:
    """Cards with one small picture, the mask on the photograph."""
    samples = _samples(chosen, data)
    found = []
    for id in chosen.ids:
        mask = read_mask(run.mask_path(id))
        uri = parts.data_uri(parts.jpeg_within(overlay_thumbnail(samples.get(id), mask, classes), _STRIP_BYTES))
        found.append(_made(chosen, id, mask, set(np.unique(mask).tolist()), classes, [Picture("mask", uri)]))
    return found


def room_for_each(cards: int, asked: int) -> int:
    """Bytes of one card's pictures: what is there for ``USUAL`` images, shared, and more where more were asked for.

    cards: how many there are; twice as many as were asked for, where the worst and the least sure are not the same.
    """
    return int(ROOM * max(asked, USUAL) / USUAL / max(cards, asked, USUAL))


def overlay_thumbnail(
    sample: Sample | None, mask: parts.Pixels, classes: ClassSet, longest: int = parts.LONGEST_SIDE
) -> parts.Pixels:
    """(h, w, 3): the mask on its photograph, on grey where that is gone."""
    small = parts.label_thumbnail(mask, longest)
    photo = _photo(sample, mask.shape, longest)
    ground = np.full((*small.shape, 3), 110, np.uint8) if photo is None else photo
    return parts.mask_overlay(ground, small, classes)


def _samples(chosen: Chosen, data: Dataset | None) -> dict[str, Sample]:
    wanted = set(chosen.ids)
    return {sample.id: sample for sample in data or () if sample.id in wanted}


def _card(run: Run, id: str, sample: Sample | None, chosen: Chosen, classes: ClassSet, most: int) -> Card:
    """The pictures of one image; what cannot be read is left out."""
    mask = read_mask(run.mask_path(id))
    small = parts.label_thumbnail(mask)
    photo = _photo(sample, mask.shape, parts.LARGEST_SIDE)
    height, width = small.shape
    ground = np.full((height, width, 3), 110, np.uint8) if photo is None else parts.resized(photo, (height, width))
    present = set(np.unique(mask).tolist())
    others: list[tuple[str, parts.Pixels]] = []
    scores = _scores(run, id)
    if scores is not None:
        present |= set(scores.tags.tolist())
        if scores.initial is not None:
            others.append(("initial CAM", _map(ground, scores.initial, scores, classes)))
        name = "map" if scores.initial is None else "refined map"
        others.append((name, _map(ground, scores.maps, scores, classes)))
    maps = len(others)
    if (confidence := confidence_of(run, id)) is not None:
        others.append(("confidence", parts.confidence_thumbnail(confidence)))
    if sample is not None and sample.truth is not None:
        truth = sample.truth()
        present |= set(np.unique(truth).tolist())
        others.append(("ground truth", parts.mask_overlay(ground, parts.label_thumbnail(truth), classes)))
    small_ones = [
        Picture(name, parts.data_uri(parts.jpeg_within(pixels, int(most * _OTHER)))) for name, pixels in others
    ]
    layer = parts.layer_within(parts.label_thumbnail(mask, parts.LARGEST_SIDE), classes, int(most * _LAYER))
    first = [] if photo is None else [Picture("photograph", _uri(photo, int(most * _PHOTO)))]
    pictures = [*first, *small_ones[:maps], Picture("mask", parts.data_uri(layer), over=True), *small_ones[maps:]]
    return _made(chosen, id, mask, present, classes, pictures)


def _uri(pixels: parts.Pixels, most: int) -> str:
    return parts.data_uri(parts.jpeg_within(pixels, most))


def _made(
    chosen: Chosen, id: str, mask: parts.Pixels, present: set[int], classes: ClassSet, pictures: list[Picture]
) -> Card:
    shown = tuple(value for value in sorted(present - {BACKGROUND, IGNORE}) if value < len(classes))
    legend = tuple((classes.names[value], parts.css(classes.palette[value])) for value in shown)
    height, width = mask.shape
    return Card(id, chosen.confidence[id], chosen.miou.get(id), legend, shown, (height, width), tuple(pictures))


def _photo(sample: Sample | None, shape: tuple[int, ...], longest: int) -> parts.Pixels | None:
    """The photograph, its longest side at most ``longest``; None if it is gone, or not the one that was labelled."""
    if sample is None:
        return None
    try:
        if image_size(sample.image) != tuple(shape):
            return None
        photo = read_image(sample.image, longest)
    except BadImage:
        return None
    height, width = shape
    return parts.resized(photo, parts.thumbnail_size(height, width, longest))


def _scores(run: Run, id: str) -> Scores | None:
    try:
        return run.scores(id)
    except UserError:
        return None


def _map(ground: parts.Pixels, maps: torch.Tensor, scores: Scores, classes: ClassSet) -> parts.Pixels:
    if scores.frame is not None and scores.frame != scores.size and len(scores.tags):
        # the grid spans more than the image: cut the rest, to the nearest cell
        rows = round(maps.shape[1] * scores.size[0] / scores.frame[0])
        columns = round(maps.shape[2] * scores.size[1] / scores.frame[1])
        maps = maps[:, : max(1, rows), : max(1, columns)]
    return parts.map_overlay(ground, maps, scores.tags, classes)
