"""What a method learns before it labels: fitted into the run's own checkpoints, or taken from another run.

::

    checkpoints/          what lies directly in it is what was learned, and what the method's ``load`` reads
    checkpoints/network/   what a method that trains a network while it learns leaves for ``predict`` and ``export``
    checkpoints/last.ckpt, hidden files and folders: the state of the training, which resumes from there
    checkpoints/fit_data.json   written first: of which images, tags and maps (their content) the fit is
    checkpoints/fitted.json   written last: the fit is done, and these are its files and their sha256

A fit sees images and tags alone. It is killed at any moment and started again without harm. A finished fit stays
what it is when images or tags change, and says so; an unfinished one starts over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from tag2mask.methods.protocol import Machine, Method, Trainable
from tag2mask.run.checkpoint import LAST
from tag2mask.run.files import file_sha256, write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.lock import Lock
from tag2mask.run.progress import silent
from tag2mask.run.settings import describe_differences, plain, without_machine
from tag2mask.run.shard import WHOLE, Shard
from tag2mask.run.warn import warn
from tag2mask.segment.saved import INSIDE
from tag2mask.stages.machinery.fit_data import FIT_DATA, Surveyed, what_changed
from tag2mask.types import ClassSet, Dataset, Sample, UserError

FITTED = "fitted.json"
_LOCK = ".fit.lock"


class TagsOnly:
    """A data set as a fit may see it: without ground truth."""

    def __init__(self, data: Dataset) -> None:
        self._data = data

    @property
    def classes(self) -> ClassSet:
        """The class set."""
        return self._data.classes

    @property
    def root(self) -> Path:
        """Where the data are."""
        return self._data.root

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self._data[index]
        return Sample(sample.id, sample.image, sample.tags)

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self)):
            yield self[index]


def fit(
    method: Trainable,
    data: Dataset,
    run: Run,
    prior: Run | None = None,
    *,
    surveyed: Surveyed | None = None,
    progress: bool = True,
) -> str:
    """Fit ``method`` into ``run.checkpoints``, or see that this is done; the method then holds what was learned.

    Args:
        method: not fitted yet.
        data: all images with their tags, of every shard.
        run: whose settings decide the fit.
        prior: the earlier run that the method learns from, if it does.
        surveyed: ``data`` (``stages.machinery.plan.survey``); None: it is not compared.
        progress: show it on stderr.

    Returns:
        The sha256 of what was learned.

    Raises:
        UserError: another process fits into the same run, or what an earlier fit left is damaged.
        KeyboardInterrupt: as the user asked; the state is saved and the same call resumes it.
    """
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = Lock(run.checkpoints / _LOCK, f"What is fitted in {run.path}")
    try:
        digest = fitted_digest(run)
        _compare_data(run, data, surveyed, done=digest is not None)
        if digest is None:
            with nullcontext() if progress else silent():
                method.fit(TagsOnly(data), run.checkpoints, prior)
            learned = {path.relative_to(run.checkpoints).as_posix(): file_sha256(path) for path in _learned(run)}
            if not learned:
                raise RuntimeError(f"{type(method).__name__}.fit left nothing directly in {run.checkpoints}")
            write_atomic(run.checkpoints / FITTED, (json.dumps(learned, indent=1) + "\n").encode(), sync=True)
            digest = _digest(learned)
        method.load(run.checkpoints, prior)  # in any case: what labels is what is on the disk
    finally:
        lock.release()
    return digest


def help_to_fit(method: Method, data: Dataset, out: Path, prior: Run | None, machine: Machine) -> None:
    """What a process does that was started for a further device: its part of the training that is under way.

    Returns where none is in ``out``: then it is in another run of the same command.

    Raises:
        SystemExit: its part is done.
    """
    run = Run.open(out)
    if not (isinstance(method, Trainable) and method.learns) or fitted_digest(run) is not None:
        return
    method.machine = machine
    try:
        with silent():
            method.fit(TagsOnly(data), run.checkpoints, prior)
    except KeyboardInterrupt:
        pass  # the first process says what is saved
    raise SystemExit(0)


def fitted_digest(run: Run) -> str | None:
    """The sha256 of what a finished fit left in ``run.checkpoints``; None where none is finished.

    Raises:
        UserError: a file is missing or is not what the fit wrote.
    """
    path = run.checkpoints / FITTED
    try:
        learned: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            name
            for name, sha256 in learned.items()
            if not (run.checkpoints / name).is_file() or file_sha256(run.checkpoints / name) != sha256
        ]
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete {run.checkpoints} to fit again") from error
    if changed:
        raise UserError(
            f"{run.checkpoints}: missing or changed since the fit: {', '.join(changed)}; "
            f"restore a copy, or delete {run.checkpoints} to fit again"
        )
    return _digest(learned)


def make_ready(
    method: Trainable,
    data: Dataset,
    run: Run,
    prior: Run | None,
    *,
    surveyed: Surveyed | None = None,
    shard: Shard = WHOLE,
    progress: bool = True,
) -> None:
    """Fit a method in the run that it is to label in; one shard of several only takes up a finished fit.

    Raises:
        UserError: as ``fit``; and in a shard, where the fit is not finished.
    """
    if shard == WHOLE:
        fit(method, data, run, prior, surveyed=surveyed, progress=progress)
    elif fitted_digest(run) is None:
        raise UserError(
            f"what the method learns is not finished in {run.path}, and one of {shard[1]} shards cannot do it for "
            "all; first give the same command once with --fit-only --shard 0/1, then the shards"
        )
    else:
        _compare_data(run, data, surveyed, done=True)
        method.load(run.checkpoints, prior)


def _compare_data(run: Run, data: Dataset, now: Surveyed | None, *, done: bool) -> None:
    """See whether what is or was fitted in ``run`` is of these images and tags; keep which it is of."""
    path = run.checkpoints / FIT_DATA
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        before = None
    if now is None or now.is_of(before) or (before is None and done):
        return
    if done:
        warn(
            f"what was learned in {run.path} is from earlier data ({what_changed(before, now, data)}), and is used "
            "without learning again. --refit learns and labels everything again"
        )
        return
    if before is not None:
        warn(f"{run.path}: images or tags changed since the fit began; it starts over")
        _clear(run.checkpoints)
    write_atomic(path, (json.dumps(now.plain()) + "\n").encode(), sync=True)


def _clear(folder: Path) -> None:
    """Remove what an unfinished fit left, but not the lock that this process holds."""
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        elif each.name != _LOCK:
            each.unlink()


def check_machine(name: str, method: Method, machine: Machine, *, here: bool, several: bool) -> None:
    """Refuse what was asked of a fit that is none, or that does not use it.

    here: whether the method is fitted in the run that it labels in. several: whether it may label several batches
        at once.

    Raises:
        UserError: naming what has no meaning.
    """
    asked = [each.name for each in fields(Machine) if getattr(machine, each.name) != each.default]
    uses = ["precision"] if method.towers else []  # they compute in it
    uses += ["workers"] if several else []
    if isinstance(method, Trainable):
        asked += ["precision"] if method.precision != "float32" else []
        uses += method.fit_uses if here else ()
    idle = [f"--{each}" for each in asked if each not in uses]
    if machine.devices > 1 and "RANK" in os.environ:
        raise UserError(
            "--devices under torchrun: its processes are shards, which do not learn together; first give the "
            "command once without torchrun, with --fit-only"
        )
    if idle:
        why = f"the fit of {name} does not use it" if here else f"{name} fits nothing here"
        raise UserError(f"{', '.join(idle)}: {why}; leave it out")


def open_fitted(
    fitted: Run | Path | str, method: Method, classes: ClassSet, named: Mapping[str, Any]
) -> tuple[Run, str]:
    """Another run whose fit this method may take, and the sha256 of what was learned there.

    named: "method", "options", "resolved" and the towers ("clip", ...) of this method, as run.yaml keeps them, and
        the "texts" that it may say to its CLIP.
        Options that the method lists in ``label_options`` may differ, and the precision of towers.

    Raises:
        UserError: no run, no finished fit, or one of another method, other options, weights or classes.
    """
    run = fitted if isinstance(fitted, Run) else Run.open(fitted)
    if not (isinstance(method, Trainable) and method.learns):
        how = " with these options" if isinstance(method, Trainable) else ""
        raise UserError(f"{named['method']} learns nothing{how}, so it cannot take what was fitted in {run.path}")
    theirs = run.settings.get("method")
    if theirs != named["method"]:
        raise UserError(f"{run.path} is a run of {theirs}, not of {named['method']}; give one of the same method")
    digest = fitted_digest(run)
    if digest is None:
        raise UserError(f"{run.path} holds no finished fit; finish it with the command that began it")
    names = run.settings.get("classes", {}).get("names")
    if names != list(classes.names):
        raise UserError(
            f"{run.path} was fitted for other classes ({run.settings.get('classes', {}).get('id')}) than "
            f"{classes.id}; give a run on the same class set, or name that one (--classes)"
        )
    free = method.label_options

    def deciding(settings: Mapping[str, Any], texts: Any) -> dict[str, Any]:
        options = settings.get("options") or {}
        return {
            "options": {key: value for key, value in options.items() if key not in free},
            **{name: (settings.get(name) or {}).get("sha256") for name in ("clip", *method.towers)},
            "resolved": settings.get("resolved"),
            "texts": texts,
        }

    there = deciding(without_machine(run.settings), run.settings["classes"].get("texts"))
    differences = describe_differences(there, deciding(plain(named), plain(named.get("texts"))))
    if differences:
        raise UserError(f"{run.path} was fitted with other settings: {differences}; give these, or fit again")
    return run, digest


def _learned(run: Run) -> list[Path]:
    found = [
        path
        for path in run.checkpoints.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name not in (FITTED, FIT_DATA, LAST)
    ]
    network = run.checkpoints / INSIDE
    return sorted([*found, *(network.iterdir() if network.is_dir() else ())])


def _digest(learned: Mapping[str, str]) -> str:
    if len(learned) == 1:
        return next(iter(learned.values()))
    return hashlib.sha256("".join(f"{name} {learned[name]}\n" for name in sorted(learned)).encode()).hexdigest()
