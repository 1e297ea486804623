"""A run's masks in the formats that other tools read."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tag2mask import formats
from tag2mask.classes import CLASSES_FILE, CLASSES_MARK, classes_json, load_classes
from tag2mask.config import explain
from tag2mask.data.image import BadImage
from tag2mask.data.protocol import Content, Export, ExportOptions, FileExporter, FolderExporter, Labelled, Picture
from tag2mask.data.tools.layout import PieceOptions
from tag2mask.data.tools.shapes import drop_small
from tag2mask.run.about import check_classes, is_predicted, stored_classes
from tag2mask.run.artefacts import CHECKPOINTS, CONFIDENCE, MASKS, SCORES
from tag2mask.run.corrected import CORRECTED, counting
from tag2mask.run.current import Current
from tag2mask.run.files import atomic_path, write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.warn import warn
from tag2mask.segment.counting_masks import BadCorrection, read_counting
from tag2mask.tables import find
from tag2mask.types import Dataset, UserError
from tag2mask.words import listing, many

MARKER = ".tag2mask-export"
"""A file that says that the folder is an export, whose masks may be replaced. It is written first, empty, and again
at the end: what is newer than it then was changed by somebody."""

_OF_SYSTEMS = {"Thumbs.db", "desktop.ini"}

Exporter = FileExporter | FolderExporter


def export(
    run: Run | Path | str,
    data: Dataset | None,
    to: str,
    out: Path | str,
    options: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
) -> Path:
    """Write the masks of a run in another form and return where they are.

    A mask that a person corrected (``run.corrected``) is written in the place of the made one. Only images of
    ``data`` that have a mask are written, and only masks that are of what ``data`` is now (``run.current``); a
    warning says what was left out. Memory does not grow with their number. Nothing is replaced but what an earlier
    export wrote. ``classes.json`` says what the mask values stand for: in the folder, or beside the file
    ("masks.classes.json" of "masks.json").

    Args:
        run: the run, or its folder.
        data: the data set that was labelled; it gives file names and classes. It may be None where the format does
            not need it ("png"): all masks of the run are written.
        to: a name in ``formats.exporters()``: "png", "coco", "voc-test", or another package's.
        out: the folder, or the file, as the format is.
        options: of the format.
        progress: show it on stderr.

    Raises:
        UserError: an unknown format or option, other classes than the run's or than the format knows, no mask to
            write, one that is damaged, or one missing where all are needed; ``out`` holds, or lies among, the images,
            the run's own files, or anything else that is no export, or files that were changed since their export; or
            is to be one file and has no suffix.
    """
    run = counting(run if isinstance(run, Run) else Run.open(run))
    out = Path(out)
    exporter = find_exporter(to)
    chosen = _options(to, exporter, options or {})
    if data is None and exporter.needs_images:
        others = [name for name in formats.exporters() if not find_exporter(name).needs_images]
        raise UserError(f"{to} needs the images' file names; give the data set, or export to {' or '.join(others)}")
    classes = stored_classes(run) if data is None else data.classes
    _check_names(run, to, exporter)
    if data is not None:
        check_classes(run, data)
    if isinstance(exporter, FolderExporter):
        _refuse_folder(out, run, data)
    else:
        refuse_foreign_file(out, exporter.mark, exporter.called, exporter.example)
        refuse_foreign_file(_classes_beside(out), CLASSES_MARK, "list of classes of tag2mask", CLASSES_FILE)
    masks = _run_masks(run, progress) if data is None else _masks(run, data, exporter.whole, progress)
    first = next(masks, None)
    if first is None:
        whose = "" if data is None else f" for any of the {len(data)} images of {data.root}"
        raise UserError(f"{run.path} has no mask{whose}; label them first")
    small = _Small(chosen.min_pixels if isinstance(chosen, PieceOptions) else 0)
    _write(exporter, Export(classes, small.without(itertools.chain([first], masks)), chosen), out)
    small.warn()
    return out


class _Small:
    """Leaves small pieces out of masks, and counts them. least: pixels of the smallest that stays."""

    def __init__(self, least: int) -> None:
        self._least, self._pieces, self._pixels, self._images = least, 0, 0, 0

    def without(self, masks: Iterator[Labelled]) -> Iterator[Labelled]:
        for each in masks:
            mask, pieces, pixels = drop_small(each.mask, self._least)
            self._pieces, self._pixels = self._pieces + pieces, self._pixels + pixels
            self._images += pieces > 0
            yield each._replace(mask=mask)

    def warn(self) -> None:
        if self._pieces:
            warn(
                f"left out: {many(self._pieces, 'piece')} of fewer than {self._least} pixels, "
                f"{many(self._pixels, 'pixel')} in {many(self._images, 'image')}. These masks do not come back "
                "equal, so import takes them for corrected: give back those alone that a person changed"
            )


def find_exporter(name: str) -> Exporter:
    """The exporter of that name. Raises UserError where there is none, or it does not import."""
    places = {known: entry.where for known, entry in formats.exporters().items()}
    return cast(Exporter, find("exporter", name, places))


def _options(to: str, exporter: Exporter, given: Mapping[str, Any]) -> ExportOptions:
    try:
        return exporter.Options(**given)
    except ValidationError as error:
        raise UserError(f"{to}: {explain(error, exporter.Options)}") from None


def _check_names(run: Run, to: str, exporter: Exporter) -> None:
    """Raises UserError where the format knows other classes alone."""
    if exporter.only is None:
        return
    names, known = stored_classes(run).names, load_classes(exporter.only).names
    if names != known:
        raise UserError(
            f"{run.path} has {len(names)} classes ({', '.join(names[:4])}, …), expected the {len(known)} of "
            f"{exporter.only} in their order: {to} knows no others; make masks of these classes"
        )


def _write(exporter: Exporter, masks: Export, out: Path) -> None:
    classes = classes_json(masks.classes.names, masks.classes.palette)
    if isinstance(exporter, FolderExporter):
        write_atomic(out / MARKER, b"")
        write_atomic(out / CLASSES_FILE, classes)
        for name, content in exporter.files(masks):
            _place(out / name, content)
        write_atomic(out / MARKER, b"complete\n")
        return
    with atomic_path(out) as path, path.open("wb") as file:
        exporter.write(masks, cast(BinaryIO, file))
    write_atomic(_classes_beside(out), classes)


def _classes_beside(file: Path) -> Path:
    """Where the classes of an export that is one file stand: "masks.classes.json" beside "masks.json"."""
    return file.with_name(f"{file.stem}.{CLASSES_FILE}")


def _place(path: Path, content: Content) -> None:
    """Put a file into an export, whole or not at all."""
    if isinstance(content, bytes):
        write_atomic(path, content)
        return
    with atomic_path(path) as temporary:
        if isinstance(content, Picture) and content.link:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(content.path.resolve())
        elif isinstance(content, Picture):
            shutil.copyfile(content.path, temporary)
        else:
            with content, temporary.open("wb") as file:
                shutil.copyfileobj(content, file)


def refuse_foreign_file(path: Path, mark: str, kind: str, example: str) -> None:
    """Only what this package wrote may be replaced.

    Args:
        path: where a file is to be written.
        mark: what stands near the beginning of every file of this kind.
        kind: what such a file is called.
        example: a file name to advise.

    Raises:
        UserError: there is a folder, or a file without the mark; or the name has no suffix.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; the {kind} is one file, such as {path / example}")
    if not path.suffix:
        known = path.with_name(path.name + Path(example).suffix)
        raise UserError(f"{path} has no suffix, by which others know the {kind}; name it {known}")
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            if mark.encode() in file.read(1024):
                return
    raise UserError(f"{path} exists and is no {kind}, so it is not replaced; choose another name, or remove it")


def _refuse_folder(out: Path, run: Run, data: Dataset | None) -> None:
    """Masks named as the images are must not come to lie upon anything but an earlier export."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; masks are written into a folder: choose a new or empty one")
    if data is not None:
        images = {sample.image.parent for sample in data}
    else:
        root = run.noted.get("data_root")
        images = {Path(root)} if isinstance(root, str) and Path(root).is_dir() else set()
    own = {run.path / name for name in (MASKS, CONFIDENCE, SCORES, CHECKPOINTS, CORRECTED)}
    place = out.resolve()
    for what, folders in (("the images", images), ("the run's own files", own)):
        for folder in folders:
            there = folder.resolve()
            if place.is_relative_to(there) or there.is_relative_to(place):
                raise UserError(f"{out} is, holds, or lies in {folder}, where {what} are; choose a folder elsewhere")
    if out.is_dir() and not (out / MARKER).is_file():
        found = sorted(path.name for path in out.iterdir())
        if found:
            raise UserError(
                f"{out} is not empty and is no earlier export (it holds {found[0]}); choose a new or empty folder"
            )
    if changed := _changed(out):
        raise UserError(
            f"{out} holds {many(len(changed), 'file')} that changed since the export ({listing(changed)}), and would "
            f"be lost: take them back first (tag2mask import {run.path} {out}), or choose another folder"
        )


def _changed(out: Path) -> list[str]:
    """The files of a finished export that are newer than it: corrections, for all that is known."""
    marker = out / MARKER
    if not marker.is_file() or not marker.stat().st_size:
        return []
    finished = marker.stat().st_mtime_ns
    return sorted(
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.name not in _OF_SYSTEMS
        and not path.name.startswith(".")
        and not path.is_symlink()
        and path.is_file()
        and path.stat().st_mtime_ns > finished
    )


def _run_masks(run: Run, progress: bool) -> Iterator[Labelled]:
    """All masks of the run."""
    for id in show_progress(run.ids(), "export", enabled=progress):
        yield Labelled(id, f"{id}.png", None, _read(run, id))


def _masks(run: Run, data: Dataset, whole: bool, progress: bool) -> Iterator[Labelled]:
    """The masks of the data's images; ``whole``: of all of them, in the order of their ids."""
    without = untagged = 0
    current = Current(run)
    if whole:
        _check_whole(run, data)
    images = sorted(data, key=lambda sample: sample.id) if whole else data
    for sample in show_progress(images, "export", enabled=progress):
        if (reason := current.why_none(sample)) is not None:
            without += reason == "absent"
            untagged += reason == "absent" and sample.tags is None
            continue
        inside = sample.image.is_relative_to(data.root)
        name = sample.image.relative_to(data.root).as_posix() if inside else sample.image.as_posix()
        yield Labelled(sample.id, name, sample.image, _read(run, sample.id))
    if 0 < without < len(data):
        tags = f" ({untagged} of them have no tags)" if untagged else ""
        warn(
            f"{without} of {len(data)} images have no mask in {run.path}{tags} and are left out; label them, "
            "export again"
        )
    if note := current.note():
        warn(note)


def _check_whole(run: Run, data: Dataset) -> None:
    """Raises UserError where an image has no mask of what it is now."""
    current = Current(run)
    missing = [sample.id for sample in data if current.why_none(sample) is not None]
    if missing:
        note = current.note()
        raise UserError(
            f"{run.path} has no mask of {len(missing)} of the {len(data)} images of {data.root}: {listing(missing)}; "
            "all are needed, so make those, or name the --split that was predicted" + (f" ({note})" if note else "")
        )


def _read(run: Run, id: str) -> NDArray[np.uint8]:
    try:
        return read_counting(run, id)
    except BadCorrection as error:
        raise UserError(str(error)) from error
    except BadImage as error:
        raise UserError(f"{error}; remove it and run {'predict' if is_predicted(run) else 'label'} again") from error
