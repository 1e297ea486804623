"""Corrected masks come back: what every importer is given, and what it gives.

Files come from outside. None is unpacked, links out of the folder are not followed, and what a file claims of sizes
is compared before memory is taken.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tag2mask.classes import class_index
from tag2mask.data.image import MAX_PIXELS
from tag2mask.data.tools.layout import IGNORED, label_names
from tag2mask.types import IGNORE, ClassSet, UserError
from tag2mask.words import did_you_mean, fold, listing, many

__all__ = [
    "Correction",
    "Files",
    "Importer",
    "Labels",
    "Unread",
    "UnreadableError",
    "check_names",
    "checked",
    "drawn",
    "indexed_mask",
    "json_document",
    "picture_of",
    "size_of",
]

_MOST_BYTES = 4 * 2**30
"""Of one file in an archive, so that a small archive cannot fill the memory."""


_OURS = {"classes.json", ".tag2mask-export"}
"""What stands in every export and says nothing of one image."""


class UnreadableError(UserError):
    """A file, or what it says of one image, is damaged: that one is left out and named, the others are taken."""


class Correction(NamedTuple):
    """One image of what came back. name: its id or its file's name.

    mask: reads it, (H, W) uint8; None where all labels were removed. It may raise ``UnreadableError``.
    """

    name: str
    mask: Callable[[], NDArray[np.uint8] | None]


class Unread(NamedTuple):
    """A file of several images, none of which can be read, and why."""

    name: str
    why: str


def drawn(correction: Correction) -> NDArray[np.uint8] | None:
    """The mask of one image, whatever a file that was changed by hand holds.

    Raises:
        UnreadableError: it cannot be read.
        UserError: what it says has two meanings, which a person must decide.
    """
    try:
        return correction.mask()
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, RecursionError) as error:
        raise UnreadableError(
            f"it is not as the format has it ({type(error).__name__}: {error}); export it again"
        ) from error


class Files:
    """A folder, a zip archive, or one file, by names with "/"."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where there is nothing, or an archive that is damaged."""
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        if not path.exists():
            raise UserError(f"{path} is not there; give the folder, archive or file that the tool exported")
        if path.is_file() and zipfile.is_zipfile(path):
            try:
                self._archive = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{path} is a damaged archive ({error}); export it again") from error
            self.names = [info.filename for info in self._archive.infolist() if not info.is_dir()]
        elif path.is_file():
            self.names = [path.name]
        else:
            real = path.resolve()
            found = (each for each in path.rglob("*") if each.is_file() and each.resolve().is_relative_to(real))
            self.names = [each.relative_to(path).as_posix() for each in found]
        self.names = sorted(name for name in self.names if PurePosixPath(name).name not in _OURS)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            UnreadableError: it cannot be read, or is larger than any that a tool writes.
        """
        try:
            if self._archive is not None:
                if self._archive.getinfo(name).file_size > _MOST_BYTES:
                    raise UnreadableError(f"{name} in {self.path} would be larger than 4 GB; it is not read")
                return self._archive.read(name)
            return (self.path if self.path.is_file() else self.path / name).read_bytes()
        except (EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise UnreadableError(  # RuntimeError: with a password
                f"{name} in {self.path} cannot be read ({error})"
            ) from error

    def ending(self, *suffixes: str) -> list[str]:
        """The names that end so."""
        return [name for name in self.names if name.lower().endswith(suffixes)]

    def called(self, *names: str) -> list[str]:
        """The names whose last part is one of these."""
        return [name for name in self.names if PurePosixPath(name).name in names]


@dataclass
class _Unknown:
    """How often something that is no class was met, and where first."""

    where: str
    count: int = 0


_MOST_UNKNOWN = 1000


class Labels:
    """What is known of the run: the mask values of labels, and the sizes of its images.

    Names of labels are compared as they are, then as tags are: without regard to case, spaces, "_" and "-", and by
    the aliases of the class set. Those that are no class are counted, so that all can be named at once.

    Args:
        classes: the run's.
        size: (H, W) of the image of a name, None where the run has none.
    """

    def __init__(self, classes: ClassSet, size: Callable[[str], tuple[int, int] | None]) -> None:
        self.classes, self.size = classes, size
        self._values = {name: value for value, name in label_names(classes).items()}
        self._values |= {"background": 0, classes.names[0]: 0}
        self._folded = {fold(name): value for name, value in self._values.items()} | class_index(classes)
        self._unknown: dict[str, _Unknown] = {}

    def value(self, label: Any, where: str) -> int:
        """The mask value of a label; 0 where it is no class, which :meth:`refuse_unknown` says in the end."""
        found = self._values.get(label) if isinstance(label, str) else None
        if found is None:
            found = self._folded.get(fold(str(label)))
        if found is None:
            self.unknown(f'"{label}"{did_you_mean(str(label), [*self._values, *self.classes.aliases])}', where)
            return 0
        return found

    def unknown(self, what: str, where: str) -> None:
        """Count what is no class of the run: a name, a value, a colour."""
        if what in self._unknown or len(self._unknown) < _MOST_UNKNOWN:
            self._unknown.setdefault(what, _Unknown(where)).count += 1

    def refuse_unknown(self, source: str) -> None:
        """Raises UserError where anything was no class: all of it at once, and what to do."""
        if not self._unknown:
            return
        met = [f"{what} ({many(each.count, 'time')}, first in {each.where})" for what, each in self._unknown.items()]
        raise UserError(
            f"{source}: no class of the run is {listing(met, 20)}. The run's are "
            f"{', '.join(self.classes.foreground)}. Nothing is stored. Rename them in the tool and export again; or "
            f"say which class they mean, such as aliases: {{other name: {self.classes.names[-1]}}} in a YAML file of "
            "the run's classes, given by --classes; a class that is new must be one of the run first: add it at "
            "the end of the run's classes and label again"
        )


@dataclass(frozen=True)
class Importer:
    """What reads a format back.

    recognise: whether the files are of this format, by their names and beginnings.
    read: every image of them, one after the other, and files that cannot be read; raises UserError where all is lost
        or a user must decide something.
    ignored: whether it tells ignored pixels (255) from background. Where it does not, those that were ignored stay so
        where nothing was drawn.
    """

    recognise: Callable[[Files], bool]
    read: Callable[[Files, Labels], Iterator[Correction | Unread]]
    ignored: bool = True


def json_document(files: Files, names: tuple[str, ...] = ()) -> Any:
    """The JSON file among ``files``: the only one, or the one of these names; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    found = files.called(*names) or files.ending(".json")
    if len(found) != 1:
        return None
    try:
        return json.loads(files.read(found[0]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{found[0]} in {files.path} is damaged JSON ({error}); export it again") from error


def size_of(height: Any, width: Any, where: str) -> tuple[int, int]:
    """(H, W) that a file claims. Raises UnreadableError where no image has that size."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise UnreadableError(f"{where}: an image of {width} x {height} pixels, expected 1 to {MAX_PIXELS}")
    return size


def picture_of(files: Files, name: str) -> Image.Image:
    """A picture among the files, decoded: what it is of in its own mode.

    Raises:
        UnreadableError: it is none, or too large.
    """
    where = f"{name} in {files.path}"
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(files.read(name))) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            size_of(image.height, image.width, where)
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"{where} is no readable picture ({error}); export it again") from error


def indexed_mask(files: Files, name: str, labels: Labels) -> NDArray[np.uint8]:
    """A mask whose pixel values, or palette indices, are the run's mask values: (H, W).

    Raises:
        UnreadableError: no picture, or one of colours.
    """
    image = picture_of(files, name)
    if image.mode not in ("P", "L", "1"):
        raise UnreadableError(
            f"{name} in {files.path} is a picture of mode {image.mode}, not a mask: indexed or 8-bit grey is expected"
        )
    return checked(np.array(image).astype(np.uint8), labels, name)


def check_names(found: Mapping[int, str], labels: Labels, where: str) -> None:
    """Raises UserError where a file gives a mask value another name than the run does."""
    names = {**dict(enumerate(labels.classes.names)), IGNORE: IGNORED}
    wrong = [(value, name) for value, name in found.items() if names.get(value) != name]
    if wrong:
        told = [f'{value} "{name}" (the run: "{names.get(value, "no class")}")' for value, name in wrong]
        raise UserError(
            f"{where} calls {'the value' if len(wrong) == 1 else 'the values'} {listing(told, 20)}: these are masks "
            "of other classes. Nothing is stored. Give masks of the run's classes, in its order; or export from the "
            "tool in a form that has names (coco, cvat, labelme, datumaro)"
        )


def checked(mask: NDArray[np.uint8], labels: Labels, where: str) -> NDArray[np.uint8]:
    """A mask whose values are the run's classes; those that are none are counted (``Labels.refuse_unknown``)."""
    for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)):
        if value >= len(labels.classes) and value != IGNORE:
            labels.unknown(f"the value {value} (they are 0 to {len(labels.classes) - 1}, and {IGNORE})", where)
    return mask
