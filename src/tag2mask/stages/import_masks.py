"""Corrected masks come back from other tools and stand beside those that a run made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tag2mask import formats
from tag2mask.data.image import image_size
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels
from tag2mask.run.about import stored_classes
from tag2mask.run.corrected import Corrected
from tag2mask.run.files import cannot_write
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.tables import find
from tag2mask.types import IGNORE, UserError
from tag2mask.words import listing, many

__all__ = ["Imported", "import_masks"]


@dataclass(frozen=True)
class Imported:
    """What an import did.

    kind: the format. corrected: ids of masks that differ from what counted before; replaced: those among them that
    had been corrected before, whose earlier corrections are kept. equal: images that came back as they were.
    unknown: names that are no image of the run.
    """

    kind: str
    corrected: tuple[str, ...]
    replaced: tuple[str, ...]
    equal: int
    unknown: tuple[str, ...]

    def text(self) -> str:
        """It in words."""
        lines = [f"{self.kind}: {many(len(self.corrected), 'mask')} corrected, {self.equal} as they were"]
        if self.replaced:
            lines.append(
                f"{len(self.replaced)} of them had been corrected before ({listing(self.replaced)}); the earlier "
                "corrections are kept in corrected-before"
            )
        if self.unknown:
            lines.append(
                f"LEFT OUT: {many(len(self.unknown), 'name')} that the run does not have: {listing(self.unknown)}"
            )
        return "\n".join(lines)


def import_masks(
    run: Run | Path | str, source: Path | str, kind: str | None = None, *, progress: bool = True
) -> Imported:
    """Take masks back that a person corrected in another tool. All are looked at before the first is stored.

    Each is stored in the run's folder beside the made one; ``eval``, ``export`` and ``train`` use it instead. Images
    that came back as they were stay as they are. Nothing is lost: a correction that is replaced is kept.

    Args:
        run: the run whose masks were exported, or its folder.
        source: the folder, zip archive or file that the tool wrote.
        kind: the format, a key of ``formats.IMPORTERS``; None: what its files show.
        progress: show it on stderr.

    Raises:
        UserError: no format, or several, that the files could be; a file that is damaged; a class that the run does
            not have; a mask of another size than the run's; a name that could be several images; the same image
            twice; not one image of the run.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    files, ids, corrected = Files(Path(source)), _Ids(run.ids()), Corrected(run)
    kind, importer = _importer(files, kind)

    def size(name: str) -> tuple[int, int] | None:
        id = ids.find(name)
        return None if id is None else image_size(run.mask_path(id))

    labels = Labels(stored_classes(run), size)
    unknown: dict[str, None] = {}
    given = (ids, corrected, unknown, importer.ignored, str(source))
    found: dict[str, bool] = {}  # whether the mask is another one
    for id, _, differs in _read(show_progress(importer.read(files, labels), "read", enabled=progress), *given):
        found[id] = differs
    changed = [id for id, differs in found.items() if differs]
    if not found:
        raise UserError(
            f"{source} has no mask of an image of {run.path}; its names are {listing(list(unknown)) or 'none'}, "
            f"the run's {listing(run.ids())}"
        )
    replaced = []
    for id, mask, differs in _read(importer.read(files, labels), *given) if changed else ():
        if differs:
            try:
                if corrected.store(id, encode_mask(mask, labels.classes.palette), f"{kind}: {Path(source).name}"):
                    replaced.append(id)
            except OSError as error:
                raise cannot_write(run.path, error) from error
    return Imported(kind, tuple(changed), tuple(replaced), len(found) - len(changed), tuple(unknown))


def _read(
    corrections: Iterable[Correction],
    ids: _Ids,
    corrected: Corrected,
    unknown: dict[str, None],
    ignored: bool,
    source: str,
) -> Iterator[tuple[str, NDArray[np.uint8], bool]]:
    """(id, mask, whether it differs from the one that counts) of each image of the run; other names go to unknown."""
    seen: set[str] = set()
    for name, drawn in corrections:
        id = ids.find(name)
        if id is None:
            unknown[name] = None
            continue
        if id in seen:
            raise UserError(f"{source} has several masks of {id}; keep the one that holds")
        seen.add(id)
        now = read_mask(corrected.mask_path(id))
        mask = np.zeros_like(now) if drawn is None else drawn
        if mask.shape != now.shape:
            raise UserError(
                f"{source}: the mask of {id} is {mask.shape[1]} x {mask.shape[0]} (width x height), the run's is "
                f"{now.shape[1]} x {now.shape[0]}; export it in the size of the picture"
            )
        if not ignored:
            mask = np.where((mask == 0) & (now == IGNORE), np.uint8(IGNORE), mask)
        yield id, mask, not np.array_equal(mask, now)


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


class _Ids:
    """The images of a run by what tools call them: the id, with a suffix, with folders before it, or its end."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = set(ids)
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
