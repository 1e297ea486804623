"""Files of ground truth: which one belongs to an image, and what its pixels stand for.

The mask of an image is ``<id>.png``, or a TIFF, BMP, GIF or ``.npy`` of that name. Where most images have none so
called, the masks may be called alike in another way ("a_mask.png", "a.jpg.png", "a_gtFine_labelIds.png").

Pixels are class numbers, unless ``data.truth_values`` says otherwise. A picture of colours is read by them where all
are known. So is an indexed file whose own palette has the known colours in another order: programs renumber indices
when they save. A palette of other colours is decoration.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tag2mask.data.columns import Columns, Strings, listing
from tag2mask.data.image import MAX_PIXELS, BadImage, open_image, without_suffix
from tag2mask.data.truth_turn import Read, TruthOf
from tag2mask.data.truth_values import Values, find_label_list, known_colours, parse_values
from tag2mask.types import IGNORE, ClassSet, Color, Dataset, Sample, UserError

__all__ = ["MaskFolders", "read_truth", "reading_notes", "values_are_chosen"]

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")
"""What files of ground truth end with, in any case."""

LOSSY = (".jpg", ".jpeg")

LEARNED_FROM = 200
"""Images without an ``<id>.png`` that are looked at to find out how the masks are called."""

OWN_COLOURS = "the colours of their own palettes"


@dataclass(frozen=True)
class MaskFolders:
    """Ground truth by id from files, in the first folder that has it; picklable.

    An id that had to keep its image's suffix ("a.jpg") finds its mask without it too.

    endings: what stands between an id and the suffix of its file. classes: those of the mask values, None where
    files are read by number alone. values: what numbers and colours stand for.
    """

    folders: tuple[Path, ...]
    endings: tuple[str, ...] = ("",)
    classes: ClassSet | None = None
    values: Values = field(default_factory=Values)
    _listings: dict[Path, Strings] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listings": {}}

    def read_as(
        self, ids: Sequence[str], classes: ClassSet, truth_values: str | None = None
    ) -> tuple[MaskFolders, list[str]]:
        """The same folders, for these images and classes, and what a user should know of it.

        Args:
            ids: of all images.
            classes: of the mask values.
            truth_values: what numbers and colours stand for, as ``--truth-values`` says it; None: the numbers are
                mask values, unless a list of names beside the masks says otherwise.

        Raises:
            UserError: ``truth_values`` cannot be read, or two lists say different things.
        """
        values, notes = find_label_list(self.folders, classes) if truth_values is None else (None, [])
        if truth_values is not None:
            values = parse_values(truth_values, classes)
        masks = replace(self, endings=self._learn(ids), classes=classes, values=values or Values())
        return masks, [*notes, *masks.naming()]

    def naming(self) -> list[str]:
        """A note of how the masks are called, where that is not ``<id>.png``."""
        if self.endings == ("",):
            return []
        return [f"true masks are called {listing([f'<id>{ending}' for ending in self.endings])}"]

    def __call__(self, name: str) -> Read:
        """The mask (H, W) uint8 of the sample called ``name``.

        Raises:
            BadImage: no file, or one that is no mask.
            UserError: several files, or numbers or colours that stand for nothing known.
        """
        path = self.find(name) or self.folders[0] / f"{name}.png"
        if path.suffix.lower() == ".npy":
            return self._by_number(_read_array(path), path)
        with open_image(path) as image:
            decoded = image.copy()
        return self._decode(decoded, path)  # outside, where a UserError stays one

    def has(self, name: str) -> bool:
        """Whether one of the folders has a mask of this id. Raises UserError where it has several, or a JPEG."""
        return self.find(name) is not None

    def find(self, name: str) -> Path | None:
        """The file of this id's mask. Raises UserError where there are several, or a JPEG alone."""
        for folder in self.folders:
            for stem in dict.fromkeys((name, without_suffix(name))):
                found = [path for ending in self.endings for path in self._named(folder, stem + ending, SUFFIXES)]
                if len(found) > 1:
                    raise UserError(
                        f"{len(found)} files could be the true mask of {name}: {listing(found)}; keep one of them"
                    )
                if found:
                    return found[0]
        for folder in self.folders:
            lossy = list(self._named(folder, name, LOSSY))
            if lossy:
                raise UserError(
                    f"{lossy[0]} is a JPEG, which changes the class numbers at every edge: give the masks as PNG, as "
                    "they were before they were saved so"
                )
        return None

    # --- which file

    def _named(self, folder: Path, stem: str, suffixes: Sequence[str]) -> Iterator[Path]:
        """Files of that name, whatever the case of their letters and the form of their accents."""
        place = PurePosixPath(stem).parent
        names = self._listing(folder / place)
        for suffix in suffixes:
            wanted = PurePosixPath(stem).name + suffix
            same = list(_starting(names, wanted, whole=True))
            exact = [entry for entry in same if entry == wanted]
            yield from (folder / place / entry for entry in exact or same)

    def _listing(self, folder: Path) -> Strings:
        """The names of the files in a folder, in the order of :func:`_key`."""
        if folder not in self._listings:
            try:
                names = sorted((entry.name for entry in folder.iterdir()), key=_key)
            except OSError:
                names = []
            data = [name.encode("utf-8", "surrogateescape") for name in names]
            offsets = np.cumsum([0, *map(len, data)]).astype(np.uint32)
            self._listings[folder] = Strings(np.frombuffer(b"".join(data), np.uint8), offsets)
        return self._listings[folder]

    def _learn(self, ids: Sequence[str]) -> tuple[str, ...]:
        """How the masks are called where most images have none called ``<id>.png``: what stands after the id."""
        if not ids:
            return ("",)
        places = np.linspace(0, len(ids) - 1, min(len(ids), LEARNED_FROM)).astype(int)
        few = [ids[place] for place in places]
        without = [name for name in few if not self.has(name)]
        if 2 * len(without) <= len(few):
            return ("",)
        taken = {_key(name) for name in ids} | {_key(without_suffix(name)) for name in ids}
        counts: Counter[str] = Counter()
        for name in without:
            stem = without_suffix(name)
            counts.update({ending for folder in self.folders for ending in self._endings(folder, stem, taken)})
        most = max(counts.values(), default=0)
        return tuple(sorted(ending for ending, count in counts.items() if 2 * count >= most)) or ("",)

    def _endings(self, folder: Path, stem: str, taken: set[str]) -> Iterator[str]:
        """What stands between ``stem`` and the suffix in names that begin with it and belong to no other image."""
        path = PurePosixPath(stem)
        for entry in _starting(self._listing(folder / path.parent), path.name):
            inner, dot, suffix = entry.rpartition(".")
            ending = normalize("NFC", inner)[len(normalize("NFC", path.name)) :]
            if (
                f"{dot}{suffix}".lower() in SUFFIXES
                and ending[:1] in ("_", "-", ".", " ")
                and any(sign.isalpha() for sign in ending)
                and _key(str(path.parent / inner)) not in taken
            ):
                yield ending

    # --- what the pixels stand for

    def _decode(self, image: Image.Image, path: Path) -> Read:
        if image.mode in ("RGBA", "LA", "PA"):
            full = image.convert("RGBA")
            if np.array(full)[..., 3].min() < 255:
                raise BadImage(path, "is partly transparent, which says nothing of classes: save it without alpha")
            return self._coloured(np.array(full.convert("RGB")), path)
        if image.mode == "P":
            return self._indexed(image, path)
        if image.mode in ("L", "1"):
            return self._by_number(np.array(image).astype(np.uint8), path)
        if image.mode == "I" or image.mode.startswith("I;16"):
            return self._by_number(_small(np.array(image), path), path)
        if image.mode == "RGB":
            return self._coloured(np.array(image), path)
        raise BadImage(path, f"is a picture of mode {image.mode}, not a mask: give an indexed or 8-bit grey file")

    def _by_number(self, pixels: NDArray[np.uint8], path: Path) -> Read:
        """(H, W) numbers -> mask values."""
        numbers = self.values.numbers
        if numbers is None:
            return Read(pixels)
        table = np.arange(256, dtype=np.uint8)
        for number, value in numbers.items():
            table[number] = value
        counts = np.bincount(pixels.ravel(), minlength=256)
        present = np.flatnonzero(counts).tolist()
        self._refuse_foreign([number for number in present if number in self.values.foreign], path)
        unknown = [number for number in present if number not in numbers and number not in (0, IGNORE)]
        if unknown and self.values.whole:
            said = ", ".join(f"{number} ({counts[number]} pixels)" for number in unknown[:5])
            raise UserError(
                f"{path} holds {said}, which {self.values.source} does not name: "
                + (
                    "give a file with a line `value name` for each"
                    if self.values.chosen
                    else "name it there, or give --truth-values as-is to read the numbers as they are"
                )
            )
        return Read(table[pixels], self.values.source)

    def _indexed(self, image: Image.Image, path: Path) -> Read:
        """By the palette's colours where they number the classes otherwise than the indices, else by the indices."""
        pixels = np.array(image).astype(np.uint8)
        flat = image.getpalette() or []
        palette = [(flat[at], flat[at + 1], flat[at + 2]) for at in range(0, len(flat) - 2, 3)]
        present = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
        only_numbers = self.classes is None or self.values.as_is
        if only_numbers or (self.values.numbers is not None and not self.values.colours):
            return self._by_number(pixels, path)
        if present[-1] >= len(palette) or all(palette[index] == (index,) * 3 for index in present):
            return self._by_number(pixels, path)
        colours = {index: palette[index] for index in present}
        if self.values.colours:
            if not all(color in self.values.colours or color in self.values.foreign for color in colours.values()):
                return self._by_number(pixels, path)
            self._refuse_foreign([color for color in colours.values() if color in self.values.foreign], path)
            table, by = self.values.colours, self.values.source
        else:
            tables = [table for table in self._tables() if all(color in table for color in colours.values())]
            agree = [all(index in (table[color], IGNORE) for index, color in colours.items()) for table in tables]
            if not tables or any(agree):
                return self._by_number(pixels, path)
            table, by = tables[0], OWN_COLOURS
            if len(set(colours.values())) < len(colours):
                raise UserError(
                    f"{path} has one colour twice in its palette, and its indices are not the class numbers: give "
                    "--truth-values as-is to read the indices, or a file with a line `value name` for each"
                )
        lookup = np.zeros(256, np.uint8)
        for index, color in colours.items():
            lookup[index] = table[color]
        return Read(lookup[pixels], by)

    def _coloured(self, pixels: NDArray[np.uint8], path: Path) -> Read:
        """(H, W, 3) colours -> mask values."""
        grey = bool((pixels == pixels[..., :1]).all())
        if grey and (self.classes is None or self.values.as_is or (self.values.numbers and not self.values.colours)):
            return self._by_number(pixels[..., 0], path)
        packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (H, W)
        found, where, counts = np.unique(packed, return_inverse=True, return_counts=True)
        colours = [_unpacked(int(code)) for code in found]
        self._refuse_foreign([color for color in colours if color in self.values.foreign], path)
        tables = [self.values.colours] if self.values.colours else self._tables()
        for table in tables:
            if all(color in table for color in colours):
                values = np.array([table[color] for color in colours], np.uint8)
                by = self.values.source if self.values.colours else "their colours"
                return Read(values[where].reshape(packed.shape), by)
        if grey:
            return self._by_number(pixels[..., 0], path)
        most = min(tables, key=lambda table: sum(color not in table for color in colours), default={})
        unknown = [(int(count), color) for color, count in zip(colours, counts, strict=True) if color not in most]
        said = listing([f"{color} at {count} pixels" for count, color in sorted(unknown, reverse=True)], most=3)
        whose = self.values.source or "the class set or VOC"
        raise UserError(
            f"{path} is a picture of colours, and {whose} has no class of these: {said}. Give masks whose pixels are "
            "the class numbers, or say what the colours stand for: --truth-values FILE with a line "
            "`name:red,green,blue::` for each"
        )

    def _tables(self) -> Sequence[Mapping[Color, int]]:
        return () if self.classes is None else known_colours(self.classes)

    def _refuse_foreign(self, keys: Sequence[int | Color], path: Path) -> None:
        if keys:
            said = ", ".join(f"{key} is {self.values.foreign[key]!r}" for key in keys[:5])
            raise UserError(
                f"{path}: by {self.values.source} {said}, which is no class of this run: give --truth-values FILE, a "
                "copy of it in which a class, background or ignore stands there"
            )


def read_truth(sample: Sample) -> Read:
    """The true mask of a sample that has one, and how it was read."""
    if sample.truth is None:
        raise ValueError(f"{sample.id} has no truth")
    return sample.truth.read() if isinstance(sample.truth, TruthOf) else Read(sample.truth())


def reading_notes(read_by: Mapping[str, int], turned: int) -> list[str]:
    """What a user should know of how true masks were read: how many by what, and how many were turned."""
    notes = [f"{count} true masks were read by {by}" for by, count in sorted(read_by.items())]
    if turned:
        notes.append(
            f"{turned} true masks were turned as EXIF turns their photographs: they were drawn on the stored pixels"
        )
    return notes


def values_are_chosen(data: Dataset) -> bool:
    """Whether the user said what the numbers in the true masks stand for."""
    return isinstance(data, Columns) and isinstance(data.truth, MaskFolders) and data.truth.values.chosen


def _key(name: str) -> str:
    """What is compared when two spellings of a file's name are."""
    return name.lower() if name.isascii() else normalize("NFC", name).casefold()


def _starting(names: Strings, prefix: str, *, whole: bool = False) -> Iterator[str]:
    """The names that begin with ``prefix``, or are it as a whole."""
    wanted = _key(prefix)
    for place in range(bisect_left(range(len(names)), wanted, key=lambda at: _key(names[at])), len(names)):
        key = _key(names[place])
        if not (key == wanted if whole else key.startswith(wanted)):
            return
        yield names[place]


def _unpacked(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255


def _small(values: NDArray, path: Path) -> NDArray[np.uint8]:
    """Whole numbers of any kind as uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise BadImage(path, f"is no mask: its values go from {low} to {high}, a mask's only from 0 to 255")
    return values.astype(np.uint8)


def _read_array(path: Path) -> NDArray[np.uint8]:
    """An array that NumPy saved. Nothing in it is unpickled."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if values.ndim != 2 or values.dtype.kind not in "bui" or not 0 < values.size <= MAX_PIXELS:
            raise BadImage(path, f"holds {values.shape} {values.dtype}, but a mask is (H, W) whole numbers")
        return _small(np.array(values), path)
    except FileNotFoundError as error:
        raise BadImage(path, "does not exist") from error
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise BadImage(path, f"is no array of NumPy ({error})") from error
