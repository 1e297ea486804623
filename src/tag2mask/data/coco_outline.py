"""The outline of an object in a COCO file: polygons or run lengths, read in every form that has one meaning.

COCO writes polygons as [[x, y, x, y, ...], ...] and run lengths as {"size": [height, width], "counts": ...}. Read as
well are one polygon without the outer list, points as pairs [x, y], a list of run lengths, and numbers as texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from tag2mask.data.image import MAX_PIXELS

__all__ = ["Outline", "draw", "has_outline", "read_outline", "run_lengths", "whole"]


@dataclass(frozen=True, slots=True)
class Outline:
    """The shapes of one annotation, packed.

    polygons: each the bytes of its float64 coordinates x, y, x, ... runs: (height, width, compressed counts).
    """

    polygons: tuple[bytes, ...] = ()
    runs: tuple[tuple[int, int, bytes], ...] = ()


def has_outline(segmentation: Any) -> bool:
    """Whether there is anything to draw, in whatever form; fewer than three different points enclose nothing."""
    first = segmentation[0] if isinstance(segmentation, list) and segmentation else None
    if isinstance(first, list) and len(first) > 8:  # nearly all, so this is quick
        return True
    try:
        return any(_is_shape(part) for part in _parts(segmentation))
    except ValueError:  # of an odd form: said when it is drawn
        return True


def read_outline(segmentation: Any) -> Outline | None:
    """An annotation's outline, None where there is none.

    Raises:
        ValueError: a form that has no meaning, or several.
    """
    polygons, runs = [], []
    for part in _parts(segmentation):
        if not _is_shape(part):
            continue
        if isinstance(part, Mapping):
            runs.append(_runs(part))
        else:
            polygons.append(_coordinates(part).tobytes())
    return Outline(tuple(polygons), tuple(runs)) if polygons or runs else None


def draw(outline: Outline, size: tuple[int, int]) -> dict[str, Any]:
    """The outline as COCO's compressed run lengths; what reaches over the edge of the image is cut off.

    Args:
        outline: what is drawn.
        size: (H, W) of the image.

    Raises:
        ValueError: it does not fit the image.
    """
    height, width = size
    layers = []
    for rows, columns, counts in outline.runs:
        if (rows, columns) != size:
            raise ValueError(
                f"its run lengths are of {columns} x {rows} (width x height), the image is {width} x {height}"
            )
        total = int(run_lengths(counts).sum())
        if total != height * width:
            raise ValueError(
                f"its run lengths are of {total} pixels, the image has {width} x {height} = {height * width}: "
                "they are cut or damaged"
            )
        layers.append({"size": list(size), "counts": counts})
    if outline.polygons:
        polygons = [np.frombuffer(polygon).reshape(-1, 2) for polygon in outline.polygons]  # (K, 2) each
        _check(np.concatenate(polygons), size)
        layers += rle.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
        _check_area(polygons, layers)
    return rle.merge(layers)


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """The run lengths that compressed counts stand for, (N,), of background and object in turn.

    pycocotools draws, but trusts what it is given: it reads past the end of counts that are cut, and leaves pixels
    as they were in memory where the lengths do not add up. So they are looked at before.

    Raises:
        ValueError: they are no compressed run lengths.
    """
    signs = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48  # six bits each
    ends = np.flatnonzero((signs & 32) == 0)  # the sixth bit says that the number goes on
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    odd = not len(signs) or signs.min() < 0 or signs.max() > 63 or not len(ends) or ends[-1] != len(signs) - 1
    if odd or lengths.max() > 6:  # 30 bits are more than any image has pixels
        raise ValueError(f"its counts {_short(counts.decode('latin-1'))} are no compressed run lengths")
    place = np.arange(len(signs)) - np.repeat(starts, lengths)
    values = np.add.reduceat((signs & 31) << (5 * place), starts)
    values -= np.where(signs[ends] & 16, 1 << (5 * lengths), 0)  # the fifth bit of the last is the sign
    # From the fourth on, each is the difference to the one before the last.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError("its counts hold run lengths below 0: they are damaged")
    return values


def whole(value: Any) -> int:
    """A whole number that is written as 7, 7.0 or "7".

    Raises:
        ValueError: it is none.
    """
    number = float(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number // 1:
        raise ValueError(f"{_short(value)} is no whole number")
    return int(number)


def _parts(segmentation: Any) -> list[Any]:
    """The polygons, flat, and the run lengths of an annotation."""
    if segmentation is None or (isinstance(segmentation, (list, Mapping)) and not segmentation):
        return []
    if isinstance(segmentation, Mapping):
        return [segmentation]
    if not isinstance(segmentation, list):
        raise ValueError(f"its segmentation is {_short(segmentation)}, expected polygons or run lengths")
    if _is_number(segmentation[0]) or _is_point(segmentation[0]):
        return [_flat(segmentation)]
    return [part if isinstance(part, Mapping) else _flat(part) for part in segmentation]


def _flat(part: Any) -> Sequence[Any]:
    """A polygon as x, y, x, ..."""
    if not isinstance(part, list):
        raise ValueError(f"its segmentation holds {_short(part)}, expected a list of coordinates")
    if part and isinstance(part[0], list):
        if not all(_is_point(point) for point in part):
            raise ValueError(f"its segmentation holds {_short(part)}, expected points [x, y]")
        return [number for point in part for number in point]
    return part


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(number) for number in value)


def _is_shape(part: Any) -> bool:
    if isinstance(part, Mapping) or len(part) > 8 or len(part) % 2:  # what is odd is said when it is drawn
        return True
    # Two points are a box to some, but x, y, width, height to others; and a box is no outline.
    points = _coordinates(part).reshape(-1, 2).tolist()
    return len({(x, y) for x, y in points}) >= 3


def _coordinates(part: Sequence[Any]) -> NDArray[np.float64]:
    if len(part) % 2:
        raise ValueError(f"a polygon has {len(part)} coordinates, expected as many x as y")
    try:
        points = np.array(part, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the coordinates {_short(part)} are no numbers ({error})") from error
    if points.ndim != 1:
        raise ValueError(f"the coordinates {_short(part)} are no numbers")
    return points


def _runs(part: Mapping[str, Any]) -> tuple[int, int, bytes]:
    missing = [key for key in ("size", "counts") if part.get(key) is None]
    if missing:
        raise ValueError(f"its run lengths have no {' and no '.join(missing)}, expected size and counts")
    size, counts = part["size"], part["counts"]
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError(f"the size of its run lengths is {_short(size)}, expected [height, width]")
    height, width = (whole(side) for side in size)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"the size of its run lengths is {_short(size)}, expected 1 to {MAX_PIXELS} pixels")
    if isinstance(counts, str):
        return height, width, counts.encode("ascii", "replace")
    if not isinstance(counts, list):
        raise ValueError(f"its counts are {_short(counts)}, expected a list or text")
    lengths = [whole(count) for count in counts]
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(
            f"its run lengths add up to {sum(lengths)} pixels, but their size is {width} x {height} = "
            f"{height * width}: they are cut or damaged"
        )
    return height, width, rle.frPyObjects({"size": [height, width], "counts": lengths}, height, width)["counts"]


def _check(points: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Whether coordinates (K, 2) can be those of an image; pycocotools takes memory for all that they span."""
    height, width = size
    sides = np.array([width, height])
    if not np.isfinite(points).all():
        raise ValueError("its outline has coordinates that are no numbers (NaN or infinite)")
    low, high = points.min(0), points.max(0)
    span = f"its outline goes from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g})"
    if (low < -sides).any() or (high > 2 * sides).any():
        raise ValueError(
            f"{span}, far outside of the image, {width} x {height}: are the coordinates of a picture of another size?"
        )
    if (high < -1).any() or (low > sides + 1).any():
        raise ValueError(f"{span}, all of it outside of the image, {width} x {height}")
    if (low >= 0).all() and (high <= 1).all() and max(size) > 1:
        raise ValueError(
            f"{span}, but the image is {width} x {height}: the coordinates seem to be shares of its sides; "
            "expected are pixels"
        )


def _check_area(polygons: Sequence[NDArray[np.float64]], layers: Sequence[dict[str, Any]]) -> None:
    """Points on a line that is long enough to be seen were meant to enclose something."""
    if any(rle.area(layer) for layer in layers):
        return
    points = np.concatenate(polygons)
    if (np.ptp(points, axis=0) < 2).any():
        return
    for polygon in polygons:
        x, y = polygon.T
        if abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) > 1e-6 * len(x):
            return
    raise ValueError("all points of its outline lie on a line, which encloses nothing")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
