"""The run folder: what was asked (run.yaml), what became of each image, and the artefacts themselves.

::

    run.yaml                          settings (compared when the run is resumed) and circumstances (only noted)
    classes.json                      index, name and colour of the mask values
    masks/<id>.png                    the pseudo mask; written last, so it says that the image is done
    confidence/<id>.png
    scores/<id>.npz
    manifest.<shard>.jsonl            one line an image: what became of it, and what its mask was made of
    summary.<shard>.json
    checkpoints/                      what a method learned
    seeds/                            the run whose maps were refined, where it was made together with this one
    metrics.json, report.html         what later stages say of the run
    report-images/                    the report's pages of small pictures

An id may hold "/": the artefacts lie in folders like the images did.

Which images the run is of is no setting: an image belongs to its artefacts by its content and tags (``run.inputs``),
so photographs may be added, replaced and tagged otherwise, and only these are made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tag2mask import __version__
from tag2mask.run.artefacts import CHECKPOINTS, CONFIDENCE, KINDS, MASKS, SCORES, artefact, ids_of
from tag2mask.run.document import may_resume, read_document, write_classes, write_document
from tag2mask.run.files import cannot_write, write_atomic
from tag2mask.run.inputs import Inputs, KnownInputs
from tag2mask.run.lock import Lock
from tag2mask.run.manifest import LastWords, Manifest, Record, read_manifest
from tag2mask.run.renamed import as_before
from tag2mask.run.resume import (
    lock_shard,
    other_settings,
    own_document,
    refuse_other_writers,
    remove_artefacts,
    remove_figures,
    warn_of_changes,
)
from tag2mask.run.scores import encode_scores, read_scores
from tag2mask.run.settings import plain
from tag2mask.run.shard import WHOLE, Shard, check_shard, in_shard, shard_name
from tag2mask.run.warn import warn
from tag2mask.types import Scores, UserError

_WHERE = ("data_root", "config", "prior_path", "fitted_path")
"""Circumstances that say where the data are: they may have moved."""


class Run:
    """One run folder. Made by :meth:`create` to write, by :meth:`open` to read."""

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        noted: Mapping[str, Any],
        images: int | None = None,
    ):
        self.path = path
        self.settings = dict(settings)
        self.noted = dict(noted)
        self.images = images
        """Of the data, of all shards, when it was labelled last; None where that is not known."""
        self._shard: Shard | None = None
        self._lock: Lock | None = None
        self._manifest: Manifest | None = None
        self._forgot = False

    @classmethod
    def create(
        cls,
        path: Path | str,
        settings: Mapping[str, Any],
        *,
        noted: Mapping[str, Any] | None = None,
        images: int | None = None,
        shard: Shard = WHOLE,
        overwrite: bool = False,
        refit: bool = False,
        may_grow: bool = True,
    ) -> Run:
        """Begin a run, or resume the one in the folder, and lock the shard.

        Args:
            path: a new or empty folder, or one of an earlier run with the same settings.
            settings: everything that decides what the results are; nested mappings of plain values,
                dataclasses or pydantic models.
            noted: circumstances worth knowing (library versions, threads): written; those that may move
                the last bits of a result (``version``, ``torch``, ``threads`` ...) are compared, with a warning.
            images: how many the data has, in all shards.
            shard: (index, count); the part that this process writes.
            overwrite: remove what earlier runs left of this shard, or of all shards if the settings differ.
                Nothing but files of this package's making is touched.
            refit: remove what earlier runs left of all shards, and what was learned, too.
            may_grow: whether classes may be added at the end of the run's; what was fitted to those does not know
                them.

        Raises:
            UserError: other settings; files that are no run of ours, or one of an earlier version; another process
                writes this shard, or one of another number of shards; the folder cannot be written.
        """
        path, shard = Path(path), check_shard(shard)
        run = cls(path, plain(settings), {"version": __version__, **plain(noted or {})}, images)
        try:
            path.mkdir(parents=True, exist_ok=True)
            setup = Lock(path / ".setup.lock", f"The set-up of {path}", wait=True)
            try:
                run._set_up(shard, overwrite, refit, may_grow)
            finally:
                setup.release()
        except OSError as error:
            run.close()
            raise cannot_write(path, error) from error
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """An existing run, to read.

        Raises:
            UserError: there is no run in the folder, or its run.yaml is not readable.
        """
        path = Path(path)
        document = read_document(path)
        if document is None:
            raise UserError(
                f"{path} is no run of tag2mask: it has no run.yaml of ours. Give a folder that label wrote"
            )
        old = document["settings"].get("data")  # in the first layout the number of images was a setting
        images = document.get("images", old.get("images") if isinstance(old, dict) else None)
        return cls(path, document["settings"], document["noted"], images)

    @classmethod
    def begun(cls, path: Path | str, settings: Mapping[str, Any], *, afresh: bool = False) -> Run | None:
        """The run that ``create`` would resume, to read; None where it would begin a new one. Nothing is written.

        settings: as for ``create``. afresh: what is there would be removed.

        Raises:
            UserError: other settings, or files that are no run of ours.
        """
        path = Path(path)
        document = own_document(path) if path.is_dir() else None
        differences, _ = may_resume(document, plain(settings))
        if differences and not afresh:
            raise other_settings(path, differences)
        return None if document is None or afresh else cls.open(path)

    def _set_up(self, shard: Shard, overwrite: bool, refit: bool, may_grow: bool) -> None:
        document = own_document(self.path)
        self._lock = lock_shard(self.path, shard)
        differences, added = may_resume(document, self.settings)
        if differences and not (overwrite or refit):
            raise other_settings(self.path, differences)
        afresh = bool(differences) or refit
        if added and not (may_grow or afresh):
            raise UserError(
                f"{self.path} was fitted for other classes: {', '.join(map(repr, added))} "
                f"{'is' if len(added) == 1 else 'are'} new. Pass --refit to learn and label everything again"
            )
        refuse_other_writers(self.path, shard, spare_siblings=not afresh)
        if afresh:
            remove_artefacts(self.path, lambda id: True)
        elif overwrite:
            remove_artefacts(self.path, lambda id: in_shard(id, shard), shard)
        if document is not None and not afresh:
            warn_of_changes(self.path, document["noted"], self.noted)
            self.noted = {**document["noted"], **{key: self.noted[key] for key in _WHERE if key in self.noted}}
            if "options" in document["settings"]:  # with what earlier versions kept there: ``digest`` stays the same
                self.settings["options"] = document["settings"]["options"]
        if added and not afresh:
            warn(
                f"{self.path}: classes that are new since its masks were made come after the others: "
                f"{', '.join(map(repr, added))}"
            )
        before = None if document is None else (document["noted"], document.get("images"))
        if afresh or added or before != (self.noted, self.images):
            write_document(self.path, self.images, self.settings, self.noted)
        write_classes(self.path, self.settings)
        self._shard = shard
        self._manifest = Manifest(self.path / f"manifest.{shard_name(shard)}.jsonl")

    # --- writing ---------------------------------------------------------------------------------------------

    def finished(self, id: str) -> bool:
        """Whether every artefact of the image is there. An empty file (a power cut) is none."""
        kinds = [MASKS, CONFIDENCE, SCORES] if self.settings.get("keep_scores", True) else [MASKS, CONFIDENCE]
        try:
            return all(os.stat(artefact(self.path, kind, id)).st_size > 0 for kind in kinds)
        except OSError:  # among them a name too long for this file system: writing will say so
            return False

    def write(self, id: str, *, mask: bytes, confidence: bytes, scores: Scores | None) -> None:
        """Store the artefacts of one image; the mask comes last and says that the image is done.

        An earlier mask goes first, so that none ever stands beside the artefacts of another picture; and before that
        a line in the manifest says so, so that a kill before the line on this one leaves no old word on it.

        Raises:
            OSError: the disk is full or read-only, or the id is not possible as a file name there.
        """
        token = shard_name(self._writing()[0])
        self._forget_figures()
        if any(artefact(self.path, kind, id).exists() for kind in KINDS):
            self.record(id, "failed", error="it was to be made again, and that was not finished")
            self.mask_path(id).unlink(missing_ok=True)
        if scores is not None:
            write_atomic(self.scores_path(id), encode_scores(scores), token=token)
        write_atomic(self.confidence_path(id), confidence, token=token)
        write_atomic(self.mask_path(id), mask, token=token)

    def _forget_figures(self) -> None:
        """Remove what was measured and shown of masks that are about to be others."""
        if not self._forgot:
            remove_figures(self.path)
            self._forgot = True

    def record(
        self,
        id: str,
        status: Literal["ok", "failed", "skipped"],
        seconds: Mapping[str, float] | None = None,
        error: str | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        """Append a line to the shard's manifest.

        inputs: what the mask was made of, where there is one now.

        Raises:
            OSError: the disk is full or read-only.
        """
        self._writing()[1].append(Record(id, status, seconds or {}, error, inputs=inputs))

    def discard(self, id: str) -> None:
        """Remove the artefacts of one image, the mask first."""
        for kind in KINDS:
            artefact(self.path, kind, id).unlink(missing_ok=True)

    def write_summary(self, data: bytes) -> None:
        """Store summary.<shard>.json."""
        write_atomic(self.path / f"summary.{shard_name(self._writing()[0])}.json", data, sync=True)

    def _writing(self) -> tuple[Shard, Manifest]:
        if self._shard is None or self._manifest is None:
            raise RuntimeError(f"the run {self.path} was opened to read, or is closed; Run.create opens it to write")
        return self._shard, self._manifest

    def close(self) -> None:
        """Close the manifest and let go of the lock. Reading stays possible."""
        if self._manifest is not None:
            self._manifest.close()
        if self._lock is not None:
            self._lock.release()
        self._manifest = self._lock = self._shard = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- reading ---------------------------------------------------------------------------------------------

    def ids(self) -> list[str]:
        """The ids that have a mask, sorted."""
        return sorted(ids_of(self.path, MASKS))

    def mask_ids(self) -> Iterator[str]:
        """The ids that have a mask, in no order, as the folder is walked."""
        return ids_of(self.path, MASKS)

    def scores(self, id: str) -> Scores:
        """The stored maps of an image, as float32.

        Raises:
            UserError: they are not there, or not readable.
        """
        path = self.scores_path(id)
        try:
            return read_scores(path)
        except FileNotFoundError:
            raise UserError(f"{self.path} has no scores of {id}; label it again with scores kept") from None
        except Exception as error:
            raise UserError(f"{path} is damaged ({error}); remove it and run label again") from error

    def mask_path(self, id: str) -> Path:
        """Where the mask of an image is or will be."""
        return artefact(self.path, MASKS, id)

    def confidence_path(self, id: str) -> Path:
        """Where the confidence of an image is or will be."""
        return artefact(self.path, CONFIDENCE, id)

    def scores_path(self, id: str) -> Path:
        """Where the scores of an image are or will be."""
        return artefact(self.path, SCORES, id)

    @property
    def digest(self) -> str:
        """Stands for the settings of this run in those of another, which compares the classes itself."""
        deciding = as_before({key: value for key, value in self.settings.items() if key != "classes"})
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def checkpoints(self) -> Path:
        """The folder for what a method learns; removed with the run when it is overwritten by other settings."""
        return self.path / CHECKPOINTS

    def records(self) -> dict[str, Record]:
        """The last word of all shards' manifests on every image."""
        return {record.id: record for record in self.last_words()}

    def last_words(self) -> LastWords:
        """The same, to be gone through without holding them all."""
        return LastWords(self._manifests())

    def inputs(self) -> KnownInputs:
        """What the masks were made of, by all shards' manifests."""
        latest = 0.0

        def rows() -> Iterator[tuple[str, float, Inputs | None]]:
            nonlocal latest
            for path in sorted(self._manifests()):
                for line in read_manifest(path):
                    latest = max(latest, line.at)
                    if line.status != "skipped":  # for want of tags: it keeps the mask that it had
                        yield line.id, line.at, line.inputs

        known = KnownInputs(rows())
        if self._manifest is not None:
            self._manifest.comes_after(latest)
        return known

    def _manifests(self) -> Iterator[Path]:
        return self.path.glob("manifest.*.jsonl")
