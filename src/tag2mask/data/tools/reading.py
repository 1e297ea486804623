"""Corrected masks come back: what every importer is given, and what it gives.

Files come from outside. None is unpacked, links out of the folder are not followed, and what a file claims of sizes
is compared before memory is taken.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tag2mask.data.image import MAX_PIXELS
from tag2mask.data.tools.layout import IGNORED, label_names
from tag2mask.types import IGNORE, ClassSet, UserError
from tag2mask.words import did_you_mean

__all__ = [
    "Correction",
    "Files",
    "Importer",
    "Labels",
    "check_names",
    "checked",
    "indexed_mask",
    "json_document",
    "picture_of",
    "size_of",
]

_MOST_BYTES = 4 * 2**30
"""Of one file in an archive, so that a small archive cannot fill the memory."""


_OURS = {"classes.json", ".tag2mask-export"}
"""What stands in every export and says nothing of one image."""


class Correction(NamedTuple):
    """One image of what came back. name: its id or its file's name. mask: None where all labels were removed."""

    name: str
    mask: NDArray[np.uint8] | None


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
            UserError: it cannot be read, or is larger than any that a tool writes.
        """
        try:
            if self._archive is not None:
                if self._archive.getinfo(name).file_size > _MOST_BYTES:
                    raise UserError(f"{name} in {self.path} would be larger than 4 GB; it is not read")
                return self._archive.read(name)
            return (self.path if self.path.is_file() else self.path / name).read_bytes()
        except (OSError, KeyError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: with a password
            raise UserError(f"{name} in {self.path} cannot be read ({error})") from error

    def ending(self, *suffixes: str) -> list[str]:
        """The names that end so."""
        return [name for name in self.names if name.lower().endswith(suffixes)]

    def called(self, *names: str) -> list[str]:
        """The names whose last part is one of these."""
        return [name for name in self.names if PurePosixPath(name).name in names]


class Labels:
    """What is known of the run: the mask values of labels, and the sizes of its images.

    Names of labels are compared as they are, then without regard to case.

    Args:
        classes: the run's.
        size: (H, W) of the image of a name, None where the run has none.
    """

    def __init__(self, classes: ClassSet, size: Callable[[str], tuple[int, int] | None]) -> None:
        self.classes, self.size = classes, size
        self._values = {name: value for value, name in label_names(classes).items()}
        self._values |= {"background": 0, classes.names[0]: 0}

    def value(self, label: Any, where: str) -> int:
        """The mask value of a label.

        Raises:
            UserError: there is no class of that name.
        """
        lower = {name.lower(): value for name, value in self._values.items()}
        found = self._values.get(label, lower.get(str(label).lower()))
        if found is None:
            raise UserError(
                f'{where}: no class is called "{label}"{did_you_mean(str(label), self._values)}; '
                f"the run's: {', '.join(self.classes.foreground)}"
            )
        return found


@dataclass(frozen=True)
class Importer:
    """What reads a format back.

    recognise: whether the files are of this format, by their names and beginnings.
    read: every image of them, one after the other; raises UserError for what a user can fix.
    ignored: whether it tells ignored pixels (255) from background. Where it does not, those that were ignored stay so
        where nothing was drawn.
    """

    recognise: Callable[[Files], bool]
    read: Callable[[Files, Labels], Iterator[Correction]]
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
    """(H, W) that a file claims. Raises UserError where no image has that size."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{where}: an image of {width} x {height} pixels, expected 1 to {MAX_PIXELS}")
    return size


def picture_of(files: Files, name: str) -> Image.Image:
    """A picture among the files, decoded: what it is of in its own mode.

    Raises:
        UserError: it is none, or too large.
    """
    where = f"{name} in {files.path}"
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(files.read(name))) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            size_of(image.height, image.width, where)
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is no readable picture ({error}); export it again") from error


def indexed_mask(files: Files, name: str, labels: Labels) -> NDArray[np.uint8]:
    """A mask whose pixel values, or palette indices, are the run's mask values: (H, W).

    Raises:
        UserError: a picture of colours, or values that are no class.
    """
    image = picture_of(files, name)
    if image.mode not in ("P", "L", "1"):
        raise UserError(
            f"{name} in {files.path} is a picture of mode {image.mode}, not a mask: indexed or 8-bit grey is expected"
        )
    return checked(np.array(image).astype(np.uint8), labels, name)


def check_names(found: Mapping[int, str], labels: Labels, where: str) -> None:
    """Raises UserError where a file gives a mask value another name than the run does."""
    names = {**dict(enumerate(labels.classes.names)), IGNORE: IGNORED}
    wrong = [(value, name) for value, name in found.items() if names.get(value) != name]
    if wrong:
        value, name = wrong[0]
        raise UserError(
            f'{where} calls the value {value} "{name}", the run "{names.get(value, "no class")}": '
            "these are masks of other classes"
        )


def checked(mask: NDArray[np.uint8], labels: Labels, where: str) -> NDArray[np.uint8]:
    """A mask whose values are the run's classes. Raises UserError where one is not."""
    wrong = [int(value) for value in np.unique(mask) if value >= len(labels.classes) and value != IGNORE]
    if wrong:
        raise UserError(
            f"{where}: the value {wrong[0]} is no class; {labels.classes.id} has 0 to {len(labels.classes) - 1}, and "
            f"{IGNORE} for ignored pixels"
        )
    return mask
