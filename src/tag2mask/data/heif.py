"""HEIC, HEIF and AVIF: which of them a file is, and whether it can be read here.

All are the same container, whose first box names its brands. Pillow reads AVIF where it was built with it; the
package pillow-heif teaches it the others. Both turn the pixels, or say by EXIF how, as the file says.
"""

from __future__ import annotations

import threading
from typing import BinaryIO

from PIL import features

__all__ = ["brands", "prepare_heif"]

_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_MOST = 256  # bytes of the first box that are looked at

_turn = threading.Lock()
_ready: list[bool] = []


def brands(file: BinaryIO) -> frozenset[bytes]:
    """The brands in the first box of a file that is read from its start; none where it is no such container."""
    head = file.read(_MOST)
    if head[4:8] != b"ftyp":
        return frozenset()
    box = head[8 : min(int.from_bytes(head[:4]), len(head))]
    return frozenset(box[at : at + 4] for at in (0, *range(8, len(box), 4)))  # 4 bytes of version after the first


def prepare_heif(file: BinaryIO) -> str | None:
    """Make Pillow able to read a file of these kinds. Why it cannot, or None; also None for files of other kinds."""
    found = brands(file)
    if found & _AVIF:
        if features.check("avif"):
            return None
        kind, hint = "AVIF, which this Pillow cannot read", "pip install --upgrade pillow"
    elif found & _HEIC:
        kind, hint = "HEIC (HEIF), which needs the package pillow-heif", 'pip install "tag2mask[heif]"'
    else:
        return None
    with _turn:
        if _ready:
            return None
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            return f"is {kind}: {hint}, or save it as JPEG"
        register_heif_opener()
        _ready.append(True)
    return None
