"""A canvas that paints colours and labels in one stroke.

The picture has four bytes a pixel: red, green, blue and a label, which stands for a mask value, a detail
value and a figure number. Every stroke sets all four, so mask, detail and figures are exactly what is seen,
occlusion included: paint of value 0 over an object takes its pixels out of the mask. Strokes are drawn at
twice the size and averaged down (antialiasing); the labels are sampled, never averaged.

Polygons are filled here and in whole numbers, not by a drawing library: those compare edges in floating
point, where the same corners give other pixels on another processor or after an update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUPERSAMPLING = 2
"""Sub-pixels per pixel and direction."""

PART = 255
"""The detail value of the part that gives a figure away: its face, its wheels."""

DETAILS = 64
"""Detail values below this one may be given to the ground; label i < DETAILS stands for (0, i, no figure)."""

_FINE = 16
"""Corners are rounded to this fraction of a sub-pixel."""

_ROUND, _SMALL_ROUND = (
    [(math.cos(2 * math.pi * i / n), math.sin(2 * math.pi * i / n)) for i in range(n)] for n in (24, 10)
)

Color = tuple[int, int, int]
Point = tuple[float, float]


class Label(NamedTuple):
    """What a painted pixel is: its mask value, its detail value, and the figure it belongs to (0: none)."""

    value: int
    detail: int
    figure: int


class Pen:
    """Draws in a figure's own coordinates: x to the right, y down, 1 = ``scale`` pixels.

    Angles are degrees, clockwise as seen. Everything this pen draws carries its one label.
    """

    def __init__(self, canvas: Canvas, label: Label, matrix: tuple[float, float, float, float, float, float]):
        self.canvas = canvas
        self.label = label
        self._ink = canvas.label(label) << 24
        self._matrix = matrix
        self.scale = math.hypot(matrix[0], matrix[3]) / (SUPERSAMPLING * _FINE)

    def at(self, x: float, y: float, scale: float = 1.0, angle: float = 0.0, flip: bool = False) -> Pen:
        """A pen of the same label whose origin, size and direction are given in this pen's coordinates."""
        xx, xy, x0, yx, yy, y0 = self._matrix
        cos, sin = math.cos(math.radians(angle)) * scale, math.sin(math.radians(angle)) * scale
        mirror = -1.0 if flip else 1.0
        a, b, c, d = cos * mirror, -sin, sin * mirror, cos
        turned = (xx * a + xy * c, xx * b + xy * d, xx * x + xy * y + x0)
        return Pen(self.canvas, self.label, (*turned, yx * a + yy * c, yx * b + yy * d, yx * x + yy * y + y0))

    def part(self) -> Pen:
        """The same pen for the part that gives the figure away: its face, its wheels."""
        return Pen(self.canvas, self.label._replace(detail=PART), self._matrix)

    def thing(self, detail: int) -> Pen:
        """The same pen for something that is no class and belongs to no figure."""
        return Pen(self.canvas, Label(0, detail, 0), self._matrix)

    def pixel(self, x: float, y: float) -> Point:
        """Where a point of this pen's coordinates lies in the picture, in pixels."""
        xx, xy, x0, yx, yy, y0 = self._matrix
        fine = SUPERSAMPLING * _FINE
        return (xx * x + xy * y + x0) / fine, (yx * x + yy * y + y0) / fine

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """Fill the polygon with these corners."""
        xx, xy, x0, yx, yy, y0 = self._matrix
        corners = [(round(xx * x + xy * y + x0), round(yx * x + yy * y + y0)) for x, y in points]
        red, green, blue = color
        self.canvas.fill(corners, red | green << 8 | blue << 16 | self._ink)

    def rectangle(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        """Fill a rectangle whose sides follow the figure's axes."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color, radius: float) -> None:
        """Fill a rectangle with cut corners."""
        r = min(radius, (right - left) / 2, (bottom - top) / 2)
        s = r * 0.3
        upper = [(left, top + r), (left + s, top + s), (left + r, top), (right - r, top), (right - s, top + s)]
        lower = [(right, bottom - r), (right - s, bottom - s), (right - r, bottom), (left + r, bottom)]
        self.polygon([*upper, (right, top + r), *lower, (left + s, bottom - s), (left, bottom - r)], color)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, *, angle: float = 0.0) -> None:
        """Fill an ellipse around (x, y), turned by ``angle``."""
        # Eyes and lamps are a few sub-pixels wide: 24 corners there would only cost time.
        circle = _ROUND if max(rx, ry) * self.scale > 3 else _SMALL_ROUND
        if not angle:
            self.polygon([(x + rx * c, y + ry * s) for c, s in circle], color)
            return
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        a, b, c, d = rx * cos, -ry * sin, rx * sin, ry * cos
        self.polygon([(x + a * u + b * v, y + c * u + d * v) for u, v in circle], color)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, stop: float, color: Color) -> None:
        """Fill the part of an ellipse between the chord and the arc from ``start`` to ``stop`` degrees."""
        angles = [math.radians(start + (stop - start) * i / 12) for i in range(13)]
        self.polygon([(x + rx * math.cos(t), y + ry * math.sin(t)) for t in angles], color)

    def blob(self, points: Sequence[Point], color: Color) -> None:
        """Fill the smooth closed curve through these points (a Catmull-Rom spline)."""
        count = len(points)
        curve: list[Point] = []
        for i in range(count):
            (ax, ay), (bx, by) = points[i - 1], points[i]
            (cx, cy), (dx, dy) = points[(i + 1) % count], points[(i + 2) % count]
            curve.append((bx, by))
            for t in (0.33, 0.67):
                u, v = t * t, t * t * t
                wa, wb, wc, wd = -t + 2 * u - v, 2 - 5 * u + 3 * v, t + 4 * u - 3 * v, v - u
                curve.append(
                    ((wa * ax + wb * bx + wc * cx + wd * dx) / 2, (wa * ay + wb * by + wc * cy + wd * dy) / 2)
                )
        self.polygon(curve, color)

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Draw straight strokes of this width from point to point, with flat ends."""
        for (xa, ya), (xb, yb) in pairwise(points):
            length = math.hypot(xb - xa, yb - ya) + 1e-9
            nx, ny = -(yb - ya) / length * width / 2, (xb - xa) / length * width / 2
            self.polygon([(xa + nx, ya + ny), (xb + nx, yb + ny), (xb - nx, yb - ny), (xa - nx, ya - ny)], color)

    def limb(self, points: Sequence[Point], widths: Sequence[float], color: Color) -> None:
        """Draw a bent stroke with one width a point and round joints, the last one included."""
        for ((xa, ya), wa), ((xb, yb), wb) in pairwise(zip(points, widths, strict=True)):
            length = math.hypot(xb - xa, yb - ya) + 1e-9
            nx, ny = -(yb - ya) / length / 2, (xb - xa) / length / 2
            start, stop = ((xa + nx * wa, ya + ny * wa), (xa - nx * wa, ya - ny * wa)), (xb, yb)
            self.polygon(
                [start[0], (stop[0] + nx * wb, stop[1] + ny * wb), (stop[0] - nx * wb, stop[1] - ny * wb), start[1]],
                color,
            )
            self.ellipse(xb, yb, wb / 2, wb / 2, color)

    def ring(self, x: float, y: float, radius: float, width: float, color: Color) -> None:
        """Draw a circle's line; what lies inside it stays."""
        outer, inner = radius + width / 2, radius - width / 2
        circle = [(x + outer * c, y + outer * s) for c, s in (*_ROUND, _ROUND[0])]
        self.polygon([*circle, *((x + inner * c, y + inner * s) for c, s in (_ROUND[0], *_ROUND[::-1]))], color)


class Canvas:
    """A picture being painted, over a ground that belongs to no class.

    ground: (H, W, 3) uint8. detail: (H, W) uint8, the detail value of each ground pixel, under ``DETAILS``.
    """

    def __init__(self, ground: NDArray[np.uint8], detail: NDArray[np.uint8] | None = None):
        bytes_ = np.empty((*ground.shape[:2], 4), np.uint8)
        for channel in range(3):  # five times as quick as all at a time
            bytes_[..., channel] = ground[..., channel]
        bytes_[..., 3] = 0 if detail is None else detail
        # Repeating pixels and averaging them later gives the ground back unchanged, grain and all.
        pixels = bytes_.view("<u4")[..., 0]  # (H, W)
        self._pixels = np.repeat(np.repeat(pixels, SUPERSAMPLING, 1), SUPERSAMPLING, 0)  # (2 H, 2 W)
        self._rows = list(self._pixels)
        self.width = pixels.shape[1]
        self._labels = {Label(0, detail, 0): detail for detail in range(DETAILS)}
        self._figures = 0

    def pen(
        self,
        value: int,
        x: float = 0.0,
        y: float = 0.0,
        scale: float = 1.0,
        angle: float = 0.0,
        flip: bool = False,
        detail: int = 0,
    ) -> Pen:
        """A pen whose origin lies at pixel (x, y). Value 0 paints background, any other one a new figure."""
        if value:
            self._figures += 1
        label = Label(value, detail, self._figures if value else 0)
        fine = float(SUPERSAMPLING * _FINE)
        return Pen(self, label, (fine, 0.0, 0.0, 0.0, fine, 0.0)).at(x, y, scale, angle, flip)

    def label(self, label: Label) -> int:
        """The byte that stands for this label.

        Raises:
            ValueError: more labels than a byte can tell apart.
        """
        byte = self._labels.setdefault(label, len(self._labels))
        if byte > 255:
            raise ValueError("a picture can hold no more than 255 labels: draw fewer figures")
        return byte

    def fill(self, corners: Sequence[tuple[int, int]], ink: int) -> None:
        """Fill the sub-pixels whose middle lies inside the polygon (even-odd rule).

        corners: (x, y) in sixteenths of a sub-pixel. A middle on a left or upper edge counts as inside.
        """
        height, width = self._pixels.shape
        half = _FINE // 2  # row j has its middle at _FINE * j + half
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        first = max(0, -((half - min(ys)) // _FINE))
        last = min(height, -((half - max(ys)) // _FINE))
        left, right = -((half - min(xs)) // _FINE), -((half - max(xs)) // _FINE)
        if last <= first or right <= 0 or left >= width or right <= left:
            return
        if len(corners) == 4 and xs[0] == xs[3] and xs[1] == xs[2] and ys[0] == ys[1] and ys[2] == ys[3]:
            self._pixels[first:last, max(0, left) : right] = ink
            return
        # Every row is crossed as often downwards as upwards. Nearly all shapes are crossed once each way.
        down: list[tuple[int, list[int]]] = []
        up: list[tuple[int, list[int]]] = []
        crossed = 0
        for (xa, ya), (xb, yb) in pairwise((*corners, corners[0])):
            chain = down
            if ya > yb:
                xa, ya, xb, yb = xb, yb, xa, ya
                chain = up
            start, stop = -((half - ya) // _FINE), -((half - yb) // _FINE)
            if start < first:  # by hand: this is the innermost loop, and max() a call
                start = first
            count = (stop if stop < last else last) - start
            if count <= 0:
                continue
            # The first column whose middle is right of the edge, in every row: a line in whole numbers.
            rise, run = yb - ya, xb - xa
            divisor = _FINE * rise
            at = (xa - half) * rise + (_FINE * start + half - ya) * run + divisor - 1
            step = _FINE * run
            columns = [v // divisor for v in range(at, at + step * count, step)] if step else [at // divisor] * count
            chain.append((start - first, columns))
            crossed += count
        if crossed == 2 * (last - first):
            self._fill_spans(first, last, _joined(down, last - first), _joined(up, last - first), ink)
            return
        crossings: list[list[int]] = [[] for _ in range(first, last)]
        for start, columns in (*down, *up):
            for row, column in enumerate(columns, start):
                crossings[row].append(column)
        for line, at_row in zip(self._rows[first:last], crossings, strict=True):
            at_row.sort()
            for left, right in zip(at_row[::2], at_row[1::2], strict=True):
                if right > 0 and left < width:
                    line[left if left > 0 else 0 : right] = ink

    def _fill_spans(self, first: int, last: int, a: list[int], b: list[int], ink: int) -> None:
        for line, left, right in zip(self._rows[first:last], a, b, strict=True):
            if left > right:
                left, right = right, left
            if right > 0:
                line[left if left > 0 else 0 : right] = ink

    def shade(self, x: float, y: float, rx: float, ry: float, strength: float) -> None:
        """Darken a soft-edged ellipse, by at most ``strength`` (0..1); labels stay. Lengths in pixels."""
        height, width = self._pixels.shape
        left, right = max(0, int(2 * (x - rx))), min(width, int(2 * (x + rx)) + 1)
        top, bottom = max(0, int(2 * (y - ry))), min(height, int(2 * (y + ry)) + 1)
        if left >= right or top >= bottom:
            return
        u = ((np.arange(left, right) - 2 * x) / (2 * rx)) ** 2  # (w,)
        v = ((np.arange(top, bottom) - 2 * y) / (2 * ry)) ** 2  # (h,)
        depth = np.clip((1 - v[:, None] - u) * 1.6, 0, 1) * strength  # (h, w)
        keep = (256 - 256 * depth).astype(np.uint16)[..., None]  # (h, w, 1)
        colors = self._pixels.view(np.uint8).reshape(height, width, 4)[top:bottom, left:right, :3]
        colors[:] = colors * keep >> 8

    def outline(self, figure: int, strength: float) -> None:
        """Darken the rim of a figure, inside its own pixels."""
        bytes_ = self._pixels.view(np.uint8).reshape(*self._pixels.shape, 4)
        mine = np.array([label.figure == figure for label in self._labels])
        own = mine[bytes_[..., 3]]  # (2 H, 2 W)
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        if not len(rows):
            return
        room = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        own = np.pad(own[room], 1)
        inner = own[:-2, 1:-1] & own[2:, 1:-1] & own[1:-1, :-2] & own[1:-1, 2:]
        rim = np.nonzero(own[1:-1, 1:-1] & ~inner)
        colors = bytes_[room][..., :3]
        colors[rim] = colors[rim] * np.uint16(256 - int(256 * strength)) >> 8

    def image(self) -> NDArray[np.uint8]:
        """The picture so far, antialiased: (H, W, 3) uint8."""
        height, width = self._pixels.shape
        # RGBX, not RGBA: Pillow must not take the label for transparency.
        picture = Image.frombuffer("RGBX", (width, height), self._pixels, "raw", "RGBX", 0, 1)
        return np.asarray(picture.reduce(SUPERSAMPLING))[..., :3]

    def mask(self) -> NDArray[np.uint8]:
        """The mask value of one sub-pixel of every pixel: (H, W) uint8."""
        return self._of_label([label.value for label in self._labels])[self._sampled()].astype(np.uint8)

    def detail(self) -> NDArray[np.uint8]:
        """The detail value of the same sub-pixels: (H, W) uint8."""
        return self._of_label([label.detail for label in self._labels])[self._sampled()].astype(np.uint8)

    def figures(self) -> NDArray[np.uint8]:
        """The number of the figure at the same sub-pixels, from 1 as they were drawn, 0 for none: (H, W) uint8."""
        return self._of_label([label.figure for label in self._labels])[self._sampled()].astype(np.uint8)

    def _sampled(self) -> NDArray[np.uint32]:
        middle = SUPERSAMPLING // 2
        sampled: NDArray[np.uint32] = self._pixels[middle::SUPERSAMPLING, middle::SUPERSAMPLING] >> np.uint32(24)
        return sampled

    def _of_label(self, content: Sequence[int]) -> NDArray[np.int_]:
        """A table from label byte to what is asked of it; labels are kept in the order of their bytes."""
        return np.array(content)


def _joined(chain: Sequence[tuple[int, list[int]]], length: int) -> list[int]:
    """The columns of the edges of one direction, one a row."""
    columns = [0] * length
    for start, part in chain:
        columns[start : start + len(part)] = part
    return columns
