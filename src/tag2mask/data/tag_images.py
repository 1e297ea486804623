"""Finding the image that each row of a tag file means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import normalize
from urllib.parse import unquote

from tag2mask.data.image import without_suffix
from tag2mask.types import UserError
from tag2mask.words import counted, listing, many

__all__ = ["match_images", "names_of"]

Labels = tuple[str, ...] | None

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of a file
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def names_of(images: Sequence[str]) -> Callable[[str], bool]:
    """Whether a cell may be the name of one of ``images``: their bare names, with or without suffix, in any case."""
    names: set[str] = set()

    def there(cell: str) -> bool:
        if not names:
            for image in images:
                name = normalize("NFC", image.rpartition("/")[2]).casefold()
                names.update((name, without_suffix(name)))
        name = _place(cell).rpartition("/")[2].casefold()
        return name in names or (_without_upload(name) or name) in names

    return there


def match_images(
    tags: Mapping[str, Labels], images: Sequence[str], source: Path, root: Path
) -> tuple[dict[int, Labels], list[str]]:
    """Finds the image that each row of a tag file means.

    A row may give the path from the data set's root or from the tag file, with "/" or "\\", with or without suffix,
    in any Unicode normal form; a bare name without a folder is found wherever just one image is called so. A path of
    another machine, a URL, or a number without its zeros is found by the file's name where that is one image's alone.

    Args:
        images: paths relative to ``root``.

    Returns:
        The labels by index into ``images``, and notes: the rows that mean no image, and those found by name alone.

    Raises:
        UserError: a row could mean several images, or several rows mean one, or no row means any.
    """
    prefix = _below(source.resolve().parent, root.resolve())
    bases = (root.as_posix(), root.resolve().as_posix())
    spelled = {name for image in images if "\\" in (name := normalize("NFC", image))}  # no "/", but a part of a name
    local = {key: name if (name := normalize("NFC", key)) in spelled else _local(key, bases, prefix) for key in tags}
    matching = _Matching(tags, images, source, root)
    inside = {key: path for key, path in local.items() if path is not None}
    # From the strictest reading of a row to the loosest. A looser one never adds to what a stricter one found:
    # a row "a.jpg" whose image is gone must not speak for "a.png", which has its own row.
    for reading in _READINGS:
        matching.read(inside, reading)
    foreign = {key: _place(key) for key, path in local.items() if path is None}
    for count in range(max((path.count("/") for path in foreign.values()), default=0), 0, -1):
        for reading in (_as_it_is, _without_suffix):
            matching.read_tails(foreign, count, reading)
    for reading in (_bare, _bare_without_suffix):
        matching.read_tails(foreign, 0, reading)
    elsewhere = [key for key, path in local.items() if path is None and key not in foreign]
    left = {**inside, **foreign}
    uploaded = {key: short for key, path in left.items() if (short := _without_upload(path)) is not None}
    for reading in (_bare, _bare_without_suffix):
        matching.read_tails(uploaded, 0, reading)
    elsewhere += [key for key in left if _without_upload(left[key]) is not None and key not in uploaded]
    numbers = {key: path for key, path in inside.items() if path.isdecimal()}
    asked = list(numbers)
    matching.read_tails(numbers, 0, _number)
    by_number = [key for key in asked if key not in numbers]
    by_case = _read_any_case(matching, inside, foreign, uploaded)
    missing = [key for key in tags if key not in matching.matched]
    if missing and not matching.found:
        which = "the only row" if len(missing) == 1 else f"none of the {len(missing)} rows"
        raise UserError(
            f"{which} of {source} names {'no' if len(missing) == 1 else 'an'} image that is there: rows say "
            f"{missing[0]!r}, images in {root} are called {images[0]!r}"
        )
    notes = counted(f"rows of {source.name} whose image is not there", missing)
    notes += counted(f"rows of {source.name} that give another place, found by the file's name", elsewhere)
    notes += counted(f"rows of {source.name} found by the number that an image is called by", by_number)
    notes += counted(f"rows of {source.name} that write an image's name in other letter case, taken for it", by_case)
    notes += counted(f"rows of {source.name} that mean one image, their labels put together", matching.joined)
    return matching.found, notes


def _read_any_case(matching: _Matching, inside: dict[str, str], *elsewhere: dict[str, str]) -> list[str]:
    """Finds the images of the rows that are left, whatever their letter case, and says which these are.

    Args:
        matching: has tried all else.
        inside: paths from the root of the images.
        elsewhere: paths of which the end counts.
    """
    before = set(matching.matched)

    def left(paths: dict[str, str]) -> dict[str, str]:
        return {key: path for key, path in paths.items() if key not in matching.matched}

    how = "mean one image in {root} where letter case does not count"
    rows = left(inside)
    for reading in _ANY_CASE:
        matching.read_tails(rows, max((path.count("/") for path in rows.values()), default=0), reading, how)
    for paths in elsewhere:
        rows = left(paths)
        for count in range(max((path.count("/") for path in rows.values()), default=0), -1, -1):
            for reading in _ANY_CASE[:2] if count else _ANY_CASE[2:]:
                matching.read_tails(rows, count, reading, how)
    places = {position: key for key, position in matching.matched.items()}
    return [f"{key} for {matching.images[n]}" for n, key in places.items() if key not in before]


Reading = Callable[[str, bool], "str | None"]
"""A path as it is compared: of a row (False) or of an image (True). None = it does not take part."""


class _Matching:
    """What was found so far, and the readings that add to it."""

    def __init__(self, tags: Mapping[str, Labels], images: Sequence[str], source: Path, root: Path) -> None:
        self.tags = tags
        self.images = [normalize("NFC", image) for image in images]
        self.source = source
        self.root = root
        self.found: dict[int, Labels] = {}
        self.matched: dict[str, int] = {}
        self.joined: list[str] = []
        self._indices: dict[Reading, dict[str | None, int]] = {}

    def index(self, reading: Reading) -> dict[str | None, int]:
        """The place of each image as it reads, -1 where several read so."""
        if reading not in self._indices:
            places: dict[str | None, int] = {}
            for position, image in enumerate(self.images):
                name = reading(image, True)
                places[name] = -1 if name in places else position
            self._indices[reading] = places
        return self._indices[reading]

    def read(self, rows: dict[str, str], reading: Reading) -> None:
        """Takes the rows that this reading finds out of ``rows``. Rows that mean one image are put together."""
        self._take(rows, rows, reading, {})

    def read_tails(
        self,
        rows: dict[str, str],
        folders: int,
        reading: Reading,
        how: str = "of other places mean one image in {root} by their file's name",
    ) -> None:
        """As ``read``, by a file's name and so many folders before it; two rows cannot mean one image, ``how``."""
        tails = {key: "/".join(path.split("/")[-folders - 1 :]) for key, path in rows.items()}
        self._take(rows, tails, reading, {position: key for key, position in self.matched.items()}, how)

    def _take(
        self,
        rows: dict[str, str],
        paths: dict[str, str],
        reading: Reading,
        taken: dict[int, str],
        alone: str | None = None,
    ) -> None:
        if not rows:
            return
        places, stricter = self.index(reading), set(self.found)
        several: list[str] = []
        double: list[str] = []
        for key, path in list(paths.items()):
            name = reading(path, False)
            position = places.get(name, -2) if name is not None else -2
            if position == -1:
                several.append(key)
            if position < 0 or position in stricter:
                continue
            if position in taken:
                (double if alone else self.joined).append(f"{taken[position]} and {key}")
                if alone:
                    continue
            taken[position] = key
            rows.pop(key)
            self.matched[key] = position
            before, labels = self.found.get(position), self.tags[key]
            self.found[position] = labels if before is None else before + (labels or ())
        if several:
            raise UserError(
                f"{self.source}: {many(len(several), 'row')} could mean several images: {listing(several)}; "
                f"give their path from {self.root}, with suffix"
            )
        if double:
            raise UserError(
                f"{self.source}: rows {str(alone).format(root=self.root)}: {listing(double)}; give their path from "
                f"{self.root}, as it is written there"
            )


def _below(folder: Path, inner: Path) -> tuple[str, ...]:
    """The folders from one down to another, or () where it is not inside."""
    return inner.relative_to(folder).parts if inner.is_relative_to(folder) else ()


def _local(key: str, bases: tuple[str, ...], prefix: tuple[str, ...]) -> str | None:
    """A row's path from the root of the data set, or None where it leaves the root.

    A tags file beside the image folder may count from where it lies: ``prefix`` is what it then says too much.
    """
    path = normalize("NFC", key.replace("\\", "/"))
    base = next((base for base in bases if path.startswith(f"{base}/")), None)
    if base is not None:
        path = path.removeprefix(f"{base}/")
    elif PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive or _URL.match(path):
        return None
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts or not parts:
        return None
    if prefix and parts[: len(prefix)] == prefix and len(parts) > len(prefix):
        parts = parts[len(prefix) :]
    return "/".join(parts)


def _place(key: str) -> str:
    """A path of another machine, or a URL, without what names the machine."""
    path = key.replace("\\", "/")
    if _URL.match(path) or "?d=" in path:  # ?d= is how Label Studio serves local files
        path = unquote(path.partition("?d=")[2] or re.split(r"[?#]", path, maxsplit=1)[0])
    return "/".join(part for part in normalize("NFC", path).split("/") if part not in ("", ".", ".."))


def _without_upload(path: str) -> str | None:
    name = path.rpartition("/")[2]
    return _UPLOADED.sub("", name, count=1) if _UPLOADED.match(name) else None


def _as_it_is(path: str, image: bool) -> str | None:
    return path


def _without_suffix(path: str, image: bool) -> str | None:
    return without_suffix(path)


def _bare(path: str, image: bool) -> str | None:
    """The file's name; a row that gives a folder means that folder."""
    return path.rpartition("/")[2] if image or "/" not in path else None


def _bare_without_suffix(path: str, image: bool) -> str | None:
    name = _bare(path, image)
    return name if name is None else without_suffix(name)


def _number(path: str, image: bool) -> str | None:
    """A name as the number that programs make of it: "000000000009", "2007_000032", "COCO_train2014_000000000009"."""
    name = without_suffix(path.rpartition("/")[2])
    if image:
        name = re.sub(r"(?<=^\d{4})_(?=\d{6}$)|^COCO_\w+_(?=\d{12}$)", "", name)
    return str(int(name)) if name.isdecimal() else None


def _any_case(reading: Reading) -> Reading:
    """The same reading where upper and lower case are one."""

    def read(path: str, image: bool) -> str | None:
        found = reading(path, image)
        return None if found is None else found.casefold()

    return read


_READINGS = (_as_it_is, _without_suffix, _bare, _bare_without_suffix)
_ANY_CASE = tuple(map(_any_case, _READINGS))
