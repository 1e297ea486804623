"""Corrected masks come back from other tools and stand beside those that a run made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from tag2mask import formats
from tag2mask.data.image import BadImage, image_size
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, Unread, UnreadableError, drawn
from tag2mask.run.about import check_classes, stored_classes
from tag2mask.run.corrected import CORRECTED, Counting, counting
from tag2mask.run.files import cannot_write
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.tables import find
from tag2mask.types import IGNORE, Dataset, UserError
from tag2mask.words import listing, many

__all__ = ["Imported", "import_masks"]

_SHOWN = 20
"""Files that cannot be read, with the reason of each, in the text; ``Imported.unread`` has all."""


@dataclass(frozen=True)
class Imported:
    """What an import did.

    kind: the format; shown: whether its files showed it, and nobody named it. corrected: ids of masks that differ
    from what counted before; replaced: those among them that had been corrected before, whose earlier corrections are
    kept; added: those among them that have no made mask. equal: images that came back as they were. blank: ids of
    images without a made mask on which nothing was drawn; they get none. older: ids of masks that came back as the
    run made them, though corrected since; the corrections stay. unknown: names that are no image of the run.
    unread: (file or image, why) of what is damaged. classes: how many of the corrected masks hold each class, by
    name; background where a mask holds no other. folder: where corrected masks are stored.
    """

    kind: str
    corrected: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    equal: int = 0
    blank: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    folder: Path | None = None
    shown: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing that came back was left out."""
        return not (self.unknown or self.unread)

    def text(self) -> str:
        """It in words."""
        lines = [f"read as {self.kind}, as its files show; --from names another format"] if self.shown else []
        which = f" ({listing(self.corrected)})" if self.corrected else ""
        lines.append(f"{self.kind}: {many(len(self.corrected), 'mask')} corrected{which}, {self.equal} as they were")
        if self.added:
            lines.append(
                f"{len(self.added)} of them {'is' if len(self.added) == 1 else 'are'} of images without a made mask "
                f"({listing(self.added)}): what needs score maps or confidence leaves them out"
            )
        if self.replaced:
            lines.append(
                f"{len(self.replaced)} of them had been corrected before ({listing(self.replaced)}); the earlier "
                "corrections are kept in corrected-before"
            )
        if self.corrected:
            holding = ", ".join(f"{name} {count}" for name, count in self.classes.items())
            lines.append(f"corrected masks by class: {holding}")
            lines += [] if self.folder is None else [f"stored in {self.folder}; the made masks stay where they are"]
        if self.blank:
            lines.append(
                f"nothing is drawn on {many(len(self.blank), 'image')} without a made mask, which get none: "
                f"{listing(self.blank)}; of images that hold no class, say so by the tag background"
            )
        if self.older:
            lines.append(
                f"{many(len(self.older), 'mask')} came back as made, though corrected since, as if from an older "
                f"export ({listing(self.older)}): the corrections stay; to take one back, remove it from corrected"
            )
        if self.unknown:
            lines.append(
                f"LEFT OUT: {many(len(self.unknown), 'name')} that the run does not have: {listing(self.unknown)}"
            )
        if self.unread:
            lines.append(f"LEFT OUT: {len(self.unread)} that cannot be read:")
            lines += [f"  {name}: {why}" for name, why in self.unread[:_SHOWN]]
            more = len(self.unread) - _SHOWN
            lines += [f"  and {more} more: {listing([name for name, _ in self.unread[_SHOWN:]])}"] if more > 0 else []
        return "\n".join(lines)


def import_masks(
    run: Run | Path | str,
    source: Path | str,
    kind: str | None = None,
    *,
    data: Dataset | None = None,
    progress: bool = True,
) -> Imported:
    """Take masks back that a person corrected in another tool. All are looked at before the first is stored.

    Each is stored in the run's folder beside the made one; ``eval``, ``export``, ``report`` and ``train`` use it
    instead. Images that came back as they were stay as they are. Nothing is lost: a correction that is replaced is
    kept. What is damaged, or of another size than its image, is left out and named; it stops none of the others.

    Args:
        run: the run whose masks were exported, or its folder.
        source: the folder, zip archive or file that the tool wrote.
        kind: the format, a key of ``formats.IMPORTERS``; None: what its files show.
        data: the images of the run: those without a made mask can have a corrected one, too, and the aliases of
            their class set are understood. None: images with a mask alone.
        progress: show it on stderr.

    Raises:
        UserError: no format, or several, that the files could be; labels, values or colours that are no class of the
            run (all at once); a name that could be several images; the same image twice; nothing that can be read, or
            not one image of the run; ``data`` is of other classes than the run.
    """
    run = counting(run if isinstance(run, Run) else Run.open(run))
    if data is not None:
        check_classes(run, data)
    source = Path(source)
    files, images = Files(source), _Images(run, data)
    shown = kind is None
    kind, importer = _importer(files, kind)
    labels = Labels(stored_classes(run) if data is None else data.classes, images.size)
    with tempfile.TemporaryFile() as kept:  # PNGs of what is to be stored, once everything was looked at
        found = _Found(kept, np.zeros(256, np.int64))
        for each in _each(show_progress(importer.read(files, labels), "read", enabled=progress), kind, source):
            if isinstance(each, Unread):
                found.unread.append((each.name, each.why))
            else:
                _look(each, images, labels, importer.ignored, found, source)
        labels.refuse_unknown(str(source))
        if not found.looked_at:
            raise UserError(_nothing(found, run, source))
        replaced = []
        for id, content in found.contents():
            try:
                if run.corrected.store(id, content, f"{kind}: {source.name}", images.picture(id)):
                    replaced.append(id)
            except OSError as error:
                raise cannot_write(run.path, error) from error
    changed = [id for id, _ in found.places]
    added = [id for id in changed if not images.is_made(id)]
    return Imported(
        kind,
        tuple(changed),
        tuple(replaced),
        tuple(added),
        len(found.looked_at) - len(changed) - len(found.blank) - len(found.older),
        tuple(found.blank),
        tuple(found.older),
        tuple(found.unknown),
        tuple(found.unread),
        {name: count for name, count in zip(labels.classes.names, found.holding.tolist(), strict=False) if count},
        run.path / CORRECTED,
        shown,
    )


@dataclass
class _Found:
    """What was looked at so far.

    kept: a file of the masks to store. holding: how many of them hold each value. places: their ids and lengths in
    the file, in order.
    """

    kept: BinaryIO
    holding: NDArray[np.int64]
    looked_at: set[str] = field(default_factory=set)
    places: list[tuple[str, int]] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    older: list[str] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)
    unread: list[tuple[str, str]] = field(default_factory=list)

    def keep(self, id: str, mask: NDArray[np.uint8], content: bytes) -> None:
        values = np.unique(mask[(mask > 0) & (mask != IGNORE)])
        self.holding[values if len(values) else 0] += 1
        self.kept.write(content)
        self.places.append((id, len(content)))

    def contents(self) -> Iterator[tuple[str, bytes]]:
        self.kept.seek(0)
        for id, length in self.places:
            yield id, self.kept.read(length)


def _each(read: Iterable[Correction | Unread], kind: str, source: Path) -> Iterator[Correction | Unread]:
    """What an importer reads, whatever is in the files."""
    try:
        yield from read
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} is not as {kind} has it ({type(error).__name__}: {error}); export it again, or name another "
            "format by --from"
        ) from error


def _look(
    correction: Correction, images: _Images, labels: Labels, ignored: bool, found: _Found, source: Path
) -> None:
    """Compare one image with the mask that counts, and keep it where it differs.

    ignored: whether the format tells ignored pixels (255) from background.
    """
    id = images.find(correction.name)
    if id is None:
        found.unknown[correction.name] = None
        return
    if id in found.looked_at:
        raise UserError(f"{source} has several masks of {id}; keep the one that holds")
    try:
        now, damaged = images.mask(id)
        size = images.size(id) if now is None else (now.shape[0], now.shape[1])
        given = drawn(correction)
        if size is not None and given is not None and given.shape != size:
            raise UnreadableError(
                f"the mask is {given.shape[1]} x {given.shape[0]} (width x height), the run's is "
                f"{size[1]} x {size[0]}; export it in the size of the picture"
            )
    except (BadImage, UnreadableError) as error:
        found.unread.append((correction.name, str(error)))
        return
    found.looked_at.add(id)
    if now is None:
        if given is None or not given.any():
            found.blank.append(id)
            return
        mask = given
    else:
        mask = _whole(given, now, ignored)
        if np.array_equal(mask, now) and not damaged:  # else the damaged correction would stay
            return
        made = None if damaged else images.made_before(id)
        if made is not None and np.array_equal(_whole(given, made, ignored), made):
            found.older.append(id)
            return
    found.keep(id, mask, encode_mask(mask, labels.classes.palette))


def _whole(given: NDArray[np.uint8] | None, now: NDArray[np.uint8], ignored: bool) -> NDArray[np.uint8]:
    """The mask that came back, with ignored pixels of ``now`` where the format does not tell them from background."""
    mask = np.zeros_like(now) if given is None else given
    return mask if ignored else np.where((mask == 0) & (now == IGNORE), np.uint8(IGNORE), mask)


def _nothing(found: _Found, run: Run, source: Path) -> str:
    """What to say where nothing could be taken."""
    if found.unread:
        told = "; ".join(f"{name}: {why}" for name, why in found.unread[:_SHOWN])
        more = len(found.unread) - _SHOWN
        return f"nothing of {source} can be read: {told}" + (f"; and {more} more" if more > 0 else "")
    return (
        f"{source} has no mask of an image of {run.path}; its names are {listing(list(found.unknown)) or 'none'}, "
        f"the run's {listing(run.ids())}"
    )


def _importer(files: Files, kind: str | None) -> tuple[str, Importer]:
    places = {known: entry.where for known, entry in formats.IMPORTERS.items()}
    if kind is not None:
        return kind, cast(Importer, find("importer", kind, places))
    found = {
        name: each for name in places if (each := cast(Importer, find("importer", name, places))).recognise(files)
    }
    if len(found) != 1:
        could = f"could be {' or '.join(found)}" if found else f"is none of {', '.join(places)}"
        raise UserError(f"{files.path} {could}; name the format: --from {next(iter(found or places))}")
    return next(iter(found.items()))


class _Images:
    """The images of a run, and of its data, by what tools call them.

    That is the id, with a suffix, with folders before it, or its end.
    """

    def __init__(self, run: Counting, data: Dataset | None) -> None:
        self._run, self._data = run, data
        self._made = set(run.made.mask_ids())
        self._others = {} if data is None else {s.id: at for at, s in enumerate(data) if s.id not in self._made}
        self._ids = {*run.mask_ids(), *self._others}
        self._by_end: dict[str, list[str]] = {}
        for id in self._ids:
            self._by_end.setdefault(PurePosixPath(id).name, []).append(id)

    def find(self, name: str) -> str | None:
        """The id, None where there is none. Raises UserError where it could be several."""
        path = PurePosixPath(str(name).replace("\\", "/"))
        for whole in (path.as_posix(), path.with_suffix("").as_posix() if path.name else ""):
            if whole in self._ids:
                return whole
            parts = whole.split("/")
            for first in range(1, len(parts)):  # "images/train/a/b" of the image a/b
                if (rest := "/".join(parts[first:])) in self._ids:
                    return rest
        found = self._by_end.get(path.name, []) or self._by_end.get(path.stem, [])
        if len(found) > 1:
            raise UserError(
                f"{name} could be {' or '.join(sorted(found)[:4])} of the run: keep the folders in the names"
            )
        return found[0] if found else None

    def is_made(self, id: str) -> bool:
        """Whether there is a made mask of it."""
        return id in self._made

    def made_before(self, id: str) -> NDArray[np.uint8] | None:
        """The made mask (H, W) of an image that has a correction besides; else None."""
        if id not in self._made or self._corrected(id) is None:
            return None
        return read_mask(self._run.made.mask_path(id))

    def mask(self, id: str) -> tuple[NDArray[np.uint8] | None, bool]:
        """The mask that counts, (H, W), None where there is none yet; and whether a correction is damaged.

        A damaged correction, and one of a picture that was replaced since, are as good as none.

        Raises:
            BadImage: the made mask is damaged.
        """
        corrected, damaged = self._corrected(id), False
        if corrected is not None:
            try:
                return read_mask(corrected), False
            except BadImage:
                damaged = True
        return read_mask(self._run.made.mask_path(id)) if id in self._made else None, damaged

    def _corrected(self, id: str) -> Path | None:
        """The corrected mask, None where it is of a picture that was replaced since."""
        place = self._run.corrected.path(id)
        if place is None or self._data is None or id not in self._others:
            return place
        return place if self._run.corrected.shows(self._data[self._others[id]]) else None

    def size(self, name: str) -> tuple[int, int] | None:
        """(H, W) of the image of a name; None: there is none. Raises BadImage where it cannot be read."""
        id = self.find(name)
        if id is None:
            return None
        made = self._run.made.mask_path(id) if id in self._made else None
        places = [place for place in (self.picture(id), self._corrected(id), made) if place is not None]
        for place in places[:-1]:
            with suppress(BadImage):  # a damaged correction; the next one says the size, too
                return image_size(place)
        return image_size(places[-1]) if places else None

    def picture(self, id: str) -> Path | None:
        """The image itself, where it has no made mask and the data are at hand."""
        return self._data[self._others[id]].image if self._data is not None and id in self._others else None
