"""Files whose picture is whole though Pillow refuses them: JPEGs without their end, PNGs with a lot of text.

Pillow's own switches for both hold for the whole process, and images are decoded in threads; besides,
``LOAD_TRUNCATED_IMAGES`` fills half a photograph with grey and says nothing. Here the file's bytes are looked at.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

__all__ = ["LOST_SHARE", "completed_jpeg", "readable_png"]

LOST_SHARE = 0.01
"""How much of a JPEG may be grey because the file's last bytes are missing: a block or two in the lower right."""

_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Raw profile type exif\0"  # how ImageMagick keeps the orientation: never left out

_END = b"\xff\xd9"
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_NOISE = np.random.default_rng(0).integers(0, 255, 1 << 16, dtype=np.uint8).tobytes()  # no 0xFF: no marker


def readable_png(file: BinaryIO) -> BinaryIO:
    """The file, from its start; of a PNG a copy without the texts and profiles that are too large for Pillow.

    Pillow refuses the whole picture where one of these unpacks to more than ``MAX_TEXT_CHUNK`` (1 MiB). None is
    unpacked further than that here either.
    """
    large = list(_large_texts(file)) if file.read(len(_PNG)) == _PNG else []
    file.seek(0)
    if not large:
        return file
    content, kept, at = file.read(), [], 0
    for start, stop in large:
        kept.append(content[at:start])
        at = stop
    return io.BytesIO(b"".join((*kept, content[at:])))


def _large_texts(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where the chunks that Pillow would refuse start and stop, in a PNG that is read up to its first chunk."""
    total = 0
    while len(head := file.read(8)) == 8:
        start, length, kind = file.tell() - 8, int.from_bytes(head[:4]), head[4:]
        size, large = 0, False
        if kind in (b"iCCP", b"zTXt", b"iTXt", b"tEXt"):
            content = file.read(length)
            size, large = (0, False) if content.startswith(_EXIF) else _unpacked(kind, content)
        if kind == b"IEND":
            return
        if large or total + size > PngImagePlugin.MAX_TEXT_MEMORY:
            yield start, start + length + 12
        elif kind != b"iCCP":
            total += size
        file.seek(start + length + 12)


def _unpacked(kind: bytes, content: bytes) -> tuple[int, bool]:
    """How many bytes a chunk holds, and whether it unpacks to more than one may. Plain text has no such limit."""
    _, _, rest = content.partition(b"\0")  # after the keyword: method, data
    packed = rest[1:]
    if kind == b"iTXt":  # after the keyword: whether it is packed, method, language, translated keyword, data
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] in (b"", b"\0")):
        return len(content), False
    unpacking = zlib.decompressobj()
    try:
        size = len(unpacking.decompress(packed, PngImagePlugin.MAX_TEXT_CHUNK))
    except zlib.error:
        return 0, False  # Pillow leaves such a text out
    return size, bool(unpacking.unconsumed_tail)


def completed_jpeg(content: bytes) -> Image.Image | None:
    """A JPEG that ends too early, decoded, where next to nothing of its picture is missing; else None.

    What is missing shows in what two tails do: the end marker, for which the decoder leaves the rest grey, and noise.
    Where the picture is whole, no pixel depends on the tail. It may depend on it in the last row of blocks, in at
    most ``LOST_SHARE`` of the picture. A file with several scans must have begun all of them.
    """
    content = content.rstrip(b"\xff")  # half a marker
    scan = _last_scan(content)
    if scan is None:
        return None
    last = _RESTART.findall(content, scan)
    following = 0xD0 + (last[-1][0] - 0xD0 + 1) % 8 if last else 0xD0
    # Noise on both sides of the restart marker that comes next: the file may end just before one.
    noise = _NOISE + bytes((0xFF, following)) + _NOISE
    try:
        image = _decode(content + _END)
        ends = np.asarray(image), np.asarray(_decode(content + noise + _END))  # (H, W) or (H, W, channels) each
    except Exception:
        return None  # why it fails is what the file itself, undoctored, says
    differs = (ends[0] != ends[1]).reshape(*ends[0].shape[:2], -1).any(axis=2)  # (H, W)
    if not differs.any():
        return image
    height, width = differs.shape
    below, right = height - int(differs.any(axis=1).argmax()), width - int(differs.any(axis=0).argmax())
    # After the first pixel that is not sure none is, also where both tails give the same grey.
    lost = below * right / differs.size
    return image if below <= _ROW_OF_BLOCKS and lost <= LOST_SHARE else None


_ROW_OF_BLOCKS = 16 + 2
"""Pixels: the highest row of blocks that is usual, and what smoothing of colours may reach beyond it."""


def _decode(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def _last_scan(content: bytes) -> int | None:
    """Where the data of the last scan begin, or None where the file lacks a scan, or its headers are broken."""
    components: set[int] = set()
    progressive = False
    exact: set[tuple[int, int]] = set()  # (component, coefficient) that is there down to its last bit
    at, begun = 2, None
    while (marker := _MARKER.search(content, at)) is not None:
        kind, body = marker[1][0], marker.end() + 2
        at = marker.end() + int.from_bytes(content[marker.end() : body])
        if body > len(content) or at > len(content):
            return None
        segment = content[body:at]
        if kind in _FRAMES:
            progressive = kind in _PROGRESSIVE
            components = set(segment[6 : 6 + 3 * segment[5] : 3])
        if kind == 0xDA:
            begun, count = at, segment[0]
            first, end, bits = segment[1 + 2 * count : 4 + 2 * count] if progressive else (0, 63, 0)
            if bits & 15 == 0:
                exact |= {(which, k) for which in segment[1 : 1 + 2 * count : 2] for k in range(first, end + 1)}
    whole = components and exact >= {(which, k) for which in components for k in range(64)}
    return begun if whole else None
