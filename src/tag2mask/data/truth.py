"""Files of ground truth: which one belongs to an image, and what its pixels stand for.

The mask of an image is ``<id>.png``, or a TIFF, BMP, GIF or ``.npy`` of that name. Where most images have none so
called, the masks may be called alike in another way (``data.truth_names``).

Pixels are class numbers, unless ``data.truth_values`` says otherwise. A picture of colours is read by them where all
are known. So is an indexed file whose own palette has the known colours in another order: programs renumber indices
when they save. A palette of other colours is decoration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tag2mask.classes import load_classes
from tag2mask.data.columns import Columns
from tag2mask.data.image import MAX_PIXELS, BadImage, open_image, without_suffix
from tag2mask.data.truth_names import LEARNED_FROM, LOSSY, SUFFIXES, Files, Naming, describe_files, learn
from tag2mask.data.truth_turn import Read, TruthOf
from tag2mask.data.truth_values import Values, find_label_list, known_colours, parse_values
from tag2mask.types import IGNORE, ClassSet, Color, Dataset, Sample, UserError
from tag2mask.words import listing

if TYPE_CHECKING:
    from tag2mask.data.agreement import Finding

__all__ = ["MaskFolders", "read_truth", "reading_notes", "refuses"]

OWN_COLOURS = "the colours of their own palettes"


@dataclass(frozen=True)
class MaskFolders:
    """Ground truth by id from files, in the first folder that has it; picklable.

    An id that had to keep its image's suffix ("a.jpg") finds its mask without it too.

    namings: how the files are called after their images. classes: those of the mask values, None where files are
    read by number alone. values: what numbers and colours stand for.
    """

    folders: tuple[Path, ...]
    namings: tuple[Naming, ...] = (Naming(),)
    classes: ClassSet | None = None
    values: Values = field(default_factory=Values)
    _files: Files = field(default_factory=Files, compare=False, repr=False)

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
        masks = replace(self, namings=self._learn(ids), classes=classes, values=values or Values())
        return masks, [*notes, *masks.naming()]

    def naming(self) -> list[str]:
        """A note of how the masks are called, where that is not ``<id>.png``."""
        if self.namings == (Naming(),):
            return []
        return [f"true masks are called {listing([str(naming) for naming in self.namings])}"]

    def check_any(self, ids: Sequence[str]) -> None:
        """Refuse folders that have a mask of no image.

        Raises:
            UserError: naming some of the files that are there, and of those expected.
        """
        if not any(self.has(name) for name in ids):
            where = " and ".join(map(str, self.folders))
            raise UserError(
                f"{where} has no mask of any image: {describe_files(self._files, self.folders, ids)}. Give the "
                "folder with the masks, or call each as its image is called"
            )

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
                called = [each for naming in self.namings if (each := naming.stem(stem)) is not None]
                found = [path for each in called for path in self._files.named(folder, each, SUFFIXES)]
                if len(found) > 1:
                    raise UserError(
                        f"{len(found)} files could be the true mask of {name}: {listing(found)}; keep one of them"
                    )
                if found:
                    return found[0]
        for folder in self.folders:
            lossy = list(self._files.named(folder, name, LOSSY))
            if lossy:
                raise UserError(
                    f"{lossy[0]} is a JPEG, which changes the class numbers at every edge: give the masks as PNG, as "
                    "they were before they were saved so"
                )
        return None

    def _learn(self, ids: Sequence[str]) -> tuple[Naming, ...]:
        """How the masks are called where most images have none called ``<id>.png``."""
        if not ids:
            return (Naming(),)
        places = np.linspace(0, len(ids) - 1, min(len(ids), LEARNED_FROM)).astype(int)
        few = [ids[place] for place in places]
        without = [name for name in few if not self.has(name)]
        if 2 * len(without) <= len(few):
            return (Naming(),)
        return learn(self._files, self.folders, ids, without) or (Naming(),)

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
        whose = self.values.source or f"the class set {self.classes.id if self.classes else ''}".rstrip()
        voc = load_classes("voc12")
        theirs = [f"{c} is VOC's {voc.names[voc.palette.index(c)]!r}" for _, c in unknown if c in voc.palette]
        hint = f" ({listing(theirs, most=3)}: were these images labelled with --classes voc12, it would be read)"
        raise UserError(
            f"{path} is a picture of colours, and {whose} has no class of these: {said}{hint if theirs else ''}. "
            "Give masks whose pixels are the class numbers, or say what the colours stand for: --truth-values FILE "
            "with a line `name:red,green,blue::` for each"
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
    """The true mask of a sample that has one, and how it was read.

    Raises:
        ValueError: the sample has none.
        BadImage: it cannot be read.
    """
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


def refuses(found: Finding | None, data: Dataset) -> bool:
    """Whether truth must not be used: it does not fit, and the user did not say what its numbers stand for.

    found: by ``data.agreement``. Numbers that are no class at all are refused whatever was said of them.
    """
    chosen = isinstance(data, Columns) and isinstance(data.truth, MaskFolders) and data.truth.values.chosen
    return found is not None and found.refuse and (found.outside or not chosen)


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
