"""Decoding photographs: whatever Pillow can read becomes (H, W, 3) uint8, RGB, upright.

A plain JPEG gives exactly the pixels of ``Image.open(path).convert("RGB")``, as in the released codes of the
methods. Beyond that:

* EXIF orientation is applied (the released codes ignore it). In a PNG it must stand before the pixels.
* Transparency is laid on white, which is what a viewer shows; the colours hidden under it are often rubbish.
* 16-bit grey is divided by 257 and rounded, where Pillow's ``convert`` would clip at 255. 16-bit colour loses its
  low byte (Pillow decodes it so).
* 32-bit integer and float grey has no agreed range: values up to 1 (floats only), 255 or 65535 are taken to span
  0-1, 0-255 or 0-65535; anything else is refused.
* A picture that is transparent everywhere is refused: on white it would be blank, whatever colours it hides.
* Of several pages or frames the first is read.
* HEIC and HEIF are read where the package pillow-heif is installed (``tag2mask[heif]``), AVIF where Pillow or that
  package can.
* A JPEG that lacks its end is read where at most a hundredth of the picture is missing (grey, in the lower right
  corner): the end marker alone, or the last few bytes. One that is cut further up is refused.
* What a PNG says besides its pixels is left out where it is too large (profiles, texts).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from tag2mask.data.heif import prepare_heif
from tag2mask.data.repair import completed_jpeg, readable_png

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "UNREAD_SUFFIXES",
    "BadImage",
    "Decoded",
    "decode_image",
    "image_size",
    "is_image",
    "open_image",
    "read_image",
    "stored_form",
    "upright_pixels",
    "without_suffix",
]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".heic", ".heif", ".hif", ".avif"},
)
"""What readers take for an image, in any case."""

UNREAD_SUFFIXES = frozenset(
    {
        *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".raw"),  # as a camera's sensor saw them
        *(".jxl", ".jp2", ".tga", ".ppm", ".pgm", ".psd", ".xcf", ".svg"),
        *(".mp4", ".mov", ".avi", ".mkv", ".webm"),
    }
)
"""Of pictures and films that readers leave out, and name."""

MAX_PIXELS = 150_000_000
"""Larger images are refused before they are decoded: a few kilobytes can claim to be terabytes."""

_ORIENTATION = 0x0112
_WIDTH, _LENGTH = 256, 257  # TIFF tags

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):  # noqa: N818 (what it is, as the manifest says it)
    """A file that cannot be used as an image, and why. One such file never stops a run."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return without_suffix(name) != name


def without_suffix(path: str) -> str:
    """A path without the suffix of an image; "a.b" stays as it is."""
    stem, dot, suffix = path.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else path


class Decoded(NamedTuple):
    """An image, (H, W, 3) uint8, RGB, upright, and whether its file lacks its last bytes, and no more."""

    pixels: NDArray[np.uint8]
    lacks_end: bool


def read_image(path: Path | str, least: int | None = None) -> NDArray[np.uint8]:
    """Decodes an image to (H, W, 3) uint8, RGB, upright. The array is the caller's own.

    least: to be shown small, so that a JPEG may be decoded at a half, a quarter or an eighth of its size, if no side
        is shorter than this then. It saves most of the time.

    Raises:
        BadImage: as :func:`decode_image`.
    """
    return decode_image(path, least).pixels


def decode_image(path: Path | str, least: int | None = None) -> Decoded:
    """Decodes an image as :func:`read_image`. The array is the caller's own.

    Raises:
        BadImage: missing, a folder, empty, no image, truncated, too large, transparent everywhere, or of a kind that
            has no colours.
    """
    with open_image(path) as opened:
        if least is not None:
            opened.draft(None, (least, least))  # None keeps the mode
        image, lacks_end = _loaded(opened, Path(path))
        return Decoded(upright_pixels(image), lacks_end)


def upright_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """A picture that Pillow has opened as (H, W, 3) uint8, RGB, upright, as :func:`read_image` gives its file.

    Raises:
        ValueError: it is transparent everywhere, or grey of an unknown range. OSError: its pixels cannot be decoded.
    """
    orientation = 1 if isinstance(image, TiffImageFile) else _orientation(image)  # Pillow itself turns TIFF
    rgb = _to_rgb(image)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    return np.array(rgb)  # (H, W, 3)


def image_size(path: Path | str) -> tuple[int, int]:
    """(H, W) of the upright image, from the file's header alone.

    Raises:
        BadImage: as :func:`read_image`, but a truncated file is not noticed.
    """
    orientation, (height, width) = stored_form(path)
    return (width, height) if orientation >= 5 else (height, width)


def stored_form(path: Path | str) -> tuple[int, tuple[int, int]]:
    """EXIF orientation, 1 to 8, and (H, W) of the pixels as the file stores them, from the header alone.

    Raises:
        BadImage: as :func:`image_size`.
    """
    with open_image(path) as image:
        # Whether Pillow's own `size` of a TIFF is the upright one depends on its version; the tags are the file's.
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else None
        width, height = image.size if tags is None else (int(tags[_WIDTH]), int(tags[_LENGTH]))
        return _orientation(image), (height, width)


@contextmanager
def open_image(path: Path | str) -> Iterator[Image.Image]:
    """Opens an image whose pixels are not yet decoded.

    Raises:
        BadImage: it cannot be read or is too large; whatever goes wrong inside the ``with`` becomes one, too.
    """
    path = Path(path)
    if path.is_dir():
        raise BadImage(path, "is a folder, not an image")
    try:
        if path.stat().st_size == 0:
            raise BadImage(path, "is empty (0 bytes)")
        with path.open("rb") as file:
            trouble = prepare_heif(file)
            if trouble is not None:
                raise BadImage(path, trouble)
            file.seek(0)
            with Image.open(readable_png(file)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise BadImage(path, _too_large(f"{width} x {height} pixels"))
                yield image
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage(path, "does not exist") from error
    except UnidentifiedImageError as error:
        raise BadImage(path, "is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise BadImage(path, _too_large("its header")) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError, ...
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(path, f"cannot be decoded: {reason}") from error


def _loaded(image: Image.Image, path: Path) -> tuple[Image.Image, bool]:
    """The image, a JPEG with its pixels decoded; and whether it lacks its end."""
    if image.format not in ("JPEG", "MPO"):
        return image, False  # to decode a PNG here would find an orientation that stands after the pixels
    try:
        image.load()
    except OSError:
        completed = completed_jpeg(path.read_bytes())
        if completed is None:
            raise
        return completed, True
    return image, False


def _too_large(what: str) -> str:
    return f"is too large: {what}, more than {MAX_PIXELS} pixels; scale it down"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # asking on would decode all pixels in search of a chunk after them
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF is common, and the picture is fine without
        return 1
    return value if value in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64) / 257)
    if image.mode in ("I", "F"):
        return _grey(_spread_to_255(np.asarray(image), floats=image.mode == "F"))
    if image.mode in ("RGBa", "La"):  # colours already multiplied by alpha
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (0, 0):
            raise ValueError("every pixel is transparent (alpha 0), so the picture is blank: save it without alpha")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _spread_to_255(values: NDArray, floats: bool) -> NDArray[np.float64]:
    """(H, W) of any range -> (H, W) within 0..255."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # also true of NaN
        raise ValueError(
            f"32-bit grey with values {low:g} to {high:g}, but 0-1, 0-255 or 0-65535 are expected: save it as 8 bit"
        )
    scale = 255 if floats and high <= 1 else 1 if high <= 255 else 1 / 257
    return values.astype(np.float64) * scale


def _grey(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
