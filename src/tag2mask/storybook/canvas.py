"""A canvas that paints colours and mask values in one stroke.

The picture has four bytes a pixel: red, green, blue and the mask value. Every stroke sets all four, so
the mask is exactly what is seen, occlusion included: paint of value 0 over an object takes its pixels
out of the mask. Strokes are drawn at twice the size and averaged down (antialiasing); the mask is
sampled, never averaged.

Polygons are filled here and in whole numbers, not by a drawing library: those compare edges in floating
point, where the same corners give other pixels on another processor or after an update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUPERSAMPLING = 2
"""Sub-pixels per pixel and direction."""

_FINE = 16
"""Corners are rounded to this fraction of a sub-pixel."""

Color = tuple[int, int, int]
Point = tuple[float, float]


class Pen:
    """Draws in a figure's own coordinates: x to the right, y down, 1 = ``scale`` pixels.

    Angles are degrees, clockwise as seen. ``value`` is the mask value of everything this pen draws.
    """

    def __init__(
        self,
        canvas: Canvas,
        value: int,
        x: float,
        y: float,
        scale: float,
        angle: float,
        flip: bool,
    ):
        self._canvas = canvas
        self._value = value
        self._scale = scale * SUPERSAMPLING * _FINE
        cos = math.cos(math.radians(angle)) * self._scale
        sin = math.sin(math.radians(angle)) * self._scale
        mirror = -1.0 if flip else 1.0
        self._matrix = (cos * mirror, -sin, sin * mirror, cos)
        self._origin = (x * SUPERSAMPLING * _FINE, y * SUPERSAMPLING * _FINE)

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """Fill the polygon with these corners."""
        xx, xy, yx, yy = self._matrix
        x0, y0 = self._origin
        corners = [(round(xx * x + xy * y + x0), round(yx * x + yy * y + y0)) for x, y in points]
        self._canvas.fill(corners, color, self._value)

    def rectangle(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        """Fill a rectangle whose sides follow the figure's axes."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        color: Color,
        *,
        angle: float = 0.0,
        arc: tuple[float, float] = (0.0, 360.0),
    ) -> None:
        """Fill an ellipse around (x, y), turned by ``angle``; ``arc`` keeps the sector's chord segment."""
        # Eyes and lamps are a few sub-pixels wide: 28 corners there would only cost time.
        corners = 28 if max(rx, ry) * self._scale > 6 * _FINE else 12
        start, stop = (math.radians(a) for a in arc)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        points = []
        for i in range(corners):
            t = start + (stop - start) * i / (corners - 1)
            u, v = rx * math.cos(t), ry * math.sin(t)
            points.append((x + u * cos - v * sin, y + u * sin + v * cos))
        self.polygon(points, color)

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Draw straight strokes of this width from point to point, with flat ends."""
        for (xa, ya), (xb, yb) in pairwise(points):
            length = math.hypot(xb - xa, yb - ya) + 1e-9
            nx, ny = -(yb - ya) / length * width / 2, (xb - xa) / length * width / 2
            self.polygon([(xa + nx, ya + ny), (xb + nx, yb + ny), (xb - nx, yb - ny), (xa - nx, ya - ny)], color)


class Canvas:
    """A picture being painted, over a ground that belongs to no class.

    ground: (H, W, 3) uint8.
    """

    def __init__(self, ground: NDArray[np.uint8]):
        bytes_ = np.zeros((*ground.shape[:2], 4), np.uint8)
        bytes_[..., :3] = ground
        # Repeating pixels and averaging them later gives the ground back unchanged, grain and all.
        pixels = bytes_.view("<u4")[..., 0]  # (H, W)
        self._pixels = pixels.repeat(SUPERSAMPLING, 0).repeat(SUPERSAMPLING, 1)  # (2 H, 2 W)

    def pen(
        self,
        value: int,
        x: float = 0.0,
        y: float = 0.0,
        scale: float = 1.0,
        angle: float = 0.0,
        flip: bool = False,
    ) -> Pen:
        """A pen for one figure whose origin lies at pixel (x, y); value 0 paints background."""
        return Pen(self, value, x, y, scale, angle, flip)

    def fill(self, corners: Sequence[tuple[int, int]], color: Color, value: int) -> None:
        """Fill the sub-pixels whose middle lies inside the polygon (even-odd rule).

        corners: (x, y) in sixteenths of a sub-pixel. A middle on a left or upper edge counts as inside.
        """
        height, width = self._pixels.shape
        half = _FINE // 2  # row j has its middle at _FINE * j + half
        ys = [y for _, y in corners]
        first = max(0, -((half - min(ys)) // _FINE))
        last = min(height, -((half - max(ys)) // _FINE))
        if last <= first:
            return
        crossings: list[list[int]] = [[] for _ in range(first, last)]
        for (xa, ya), (xb, yb) in pairwise((*corners, corners[0])):
            if ya > yb:
                xa, ya, xb, yb = xb, yb, xa, ya
            start = max(first, -((half - ya) // _FINE))
            count = min(last, -((half - yb) // _FINE)) - start
            if count <= 0:
                continue
            # The first column whose middle is right of the edge, in every row: a line in whole numbers.
            rise, run = yb - ya, xb - xa
            divisor = _FINE * rise
            at = (xa - half) * rise + (_FINE * start + half - ya) * run + divisor - 1
            step = _FINE * run
            for row in range(start - first, start - first + count):
                crossings[row].append(at // divisor)
                at += step
        red, green, blue = color
        ink = red | green << 8 | blue << 16 | value << 24
        for line, columns in zip(self._pixels[first:last], crossings, strict=True):
            columns.sort()
            for i in range(0, len(columns), 2):
                left, right = columns[i], columns[i + 1]
                if right > 0 and left < width:
                    line[left if left > 0 else 0 : right] = ink

    def image(self) -> NDArray[np.uint8]:
        """The picture so far, antialiased: (H, W, 3) uint8."""
        height, width = self._pixels.shape
        # RGBX, not RGBA: Pillow must not take the mask value for transparency.
        picture = Image.frombytes("RGBX", (width, height), self._pixels.tobytes())
        return np.asarray(picture.reduce(SUPERSAMPLING))[..., :3]

    def mask(self) -> NDArray[np.uint8]:
        """The value of one sub-pixel of every pixel: (H, W) uint8."""
        middle = SUPERSAMPLING // 2
        return (self._pixels[middle::SUPERSAMPLING, middle::SUPERSAMPLING] >> 24).astype(np.uint8)
