"""Images with tags in, a run folder with masks, confidence and scores out.

It can be killed at any moment and started again; it then goes on, and the folder ends up with the same bytes as
if nothing had happened. One bad image never stops it. A disk that is full or read-only does, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tag2mask.methods import known_methods, make_method, make_options, method_class
from tag2mask.methods.refiners import Refiner
from tag2mask.models.public_resnet import pixel_labels
from tag2mask.ops.crf import engine, preset
from tag2mask.run.ahead import ahead
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.shard import WHOLE, Shard, in_shard
from tag2mask.run.warn import warn
from tag2mask.stages.changes import Changes, Removed, left_over
from tag2mask.stages.fit import make_ready, open_fitted
from tag2mask.stages.plan import load, plan, survey
from tag2mask.stages.work import Labeller, Summary, Work, describe, device_of, place
from tag2mask.types import ClassSet, Dataset, MaskRule, Method, Sample, Trainable, UserError

if TYPE_CHECKING:
    from tag2mask.models.weights import CLIP

CRF_MAX_PIXELS = 2_000_000
"""The CRF of a larger image is done at this size, since its memory grows with the pixels."""

_GPU_BATCH = 8


def label(
    data: Dataset,
    method: Method | str,
    out: Path | str,
    *,
    options: Mapping[str, Any] | None = None,
    clip: CLIP | str | None = None,
    device: str = "auto",
    precision: str = "float32",
    rule: MaskRule | None = None,
    settings: Mapping[str, Any] | None = None,
    noted: Mapping[str, Any] | None = None,
    shard: Shard = WHOLE,
    batch_size: int | None = None,
    overwrite: bool = False,
    keep_scores: bool = True,
    prior: Run | Path | str | None = None,
    fitted: Run | Path | str | None = None,
    fit_only: bool = False,
    refit: bool = False,
    removed: Removed = "keep",
    crf_max_pixels: int | None = CRF_MAX_PIXELS,
    progress: bool = True,
) -> Summary:
    """Make a pseudo mask for every image that has tags.

    Samples with unknown tags are skipped and counted; those with none at all (``()``) get a mask of background. In a
    folder with masks, those of images that were replaced or are tagged otherwise now are made again, and no others
    (of batches of several, whose last bits may depend on neighbours, the others keep those they had).
    A method that learns is fitted first, in the folder's checkpoints, on all of the data; see ``stages.fit``.

    Args:
        data: images and tags. Ground truth, if it has any, is never read.
        method: a method, or the name of one.
        out: the run folder; see :mod:`tag2mask.run.folder`.
        options: of the method, where it is given by name.
        clip: a model, or the name or folder of one, for a method given by name; None: the default one, if it is
            on this machine and the method needs one.
        device, precision: where a method given by name computes, and in which numbers its CLIP does.
        rule: how maps become masks; default: the method's own.
        settings: what else decides the results, for run.yaml; method, options, CLIP, rule, classes and data are
            there without being named here.
        noted: circumstances to be kept in run.yaml, such as where the data came from.
        shard: (index, count): the images with ``crc32(id) % count == index``.
        batch_size: images a call of the method. Default: 8 on a GPU; 1 on a processor, where more is hardly
            quicker and one makes an image's result independent of its neighbours and of the sharding, to the byte.
        overwrite: remove an earlier run in the folder instead of going on with it. What was learned under the same
            settings stays: it would come out the same.
        keep_scores: store the score maps, which evaluation, report and refinement need.
        prior: an earlier run on the same images, for methods that start from one.
        fitted: another run whose fit the method takes, instead of learning from these images.
        fit_only: stop after the fit; the same call without it then labels, in shards too.
        refit: remove what was learned and labelled in the folder, and do all anew.
        removed: what becomes of the masks of images that are not in the data any more, or not tagged.
        crf_max_pixels: images with more are refined at this size; None: at full size.
        progress: show it on stderr.

    Raises:
        UserError: settings that cannot work (before any work), or a disk that cannot be written.
        KeyboardInterrupt: as the user asked; the message says what is saved.
    """
    if isinstance(method, str):
        method, named = _make(method, data.classes, options or {}, clip, device, precision)
    elif options is not None or clip is not None:
        raise UserError("options and clip belong to a method given by name; this one is already made")
    else:
        named = {"method": _name_of(method), "options": getattr(method, "options", {})}
    rule = rule or method.mask_rule
    if rule.crf is not None:
        preset(rule.crf)
    if batch_size is None:
        batch_size = 1 if device_of(method).type == "cpu" else _GPU_BATCH
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: expected 1 or more")
    before = _open_prior(prior, method, data.classes, Path(out))
    made_from = None if before is None else before.noted.get("data_root")
    if made_from is not None and Path(made_from) != Path(data.root).absolute():
        warn(
            f"the earlier run is of images in {made_from}, these are in {data.root}: equal names are taken for equal"
        )
    learned: dict[str, Any] = {"fitted": "here"} if isinstance(method, Trainable) else {}
    elsewhere = None
    if fitted is not None:
        decided = {**named, "clip": _clip_of(method), **_resolved_of(method)}
        elsewhere, digest = open_fitted(fitted, method, data.classes, decided)
        learned = {"fitted": {"sha256": digest}}
    if (fit_only or refit) and learned.get("fitted") != "here":
        option = "fit_only (--fit-only)" if fit_only else "refit (--refit); overwrite (--overwrite) labels all anew"
        raise UserError(f"{named['method']} has nothing to fit here; leave out {option}")
    total, fingerprint = survey(
        data, shard, files=_fit_files(before) if learned.get("fitted") == "here" else _no_files
    )
    crf_engine = engine(device_of(method)) if rule.crf is not None or isinstance(method, Trainable) else None
    run = Run.create(
        out,
        {
            "stage": "label",
            **named,
            "clip": _clip_of(method),
            "mask_rule": rule,
            **_resolved_of(method),
            "classes": _classes_of(data.classes, method, named["method"]),
            "prior": None if before is None else before.digest,
            **learned,
            "keep_scores": keep_scores,
            "crf_max_pixels": crf_max_pixels,
            "supervision": _supervision(before, method),
            **(settings or {}),
        },
        noted={
            "data_root": Path(data.root).absolute(),
            "prior_path": None if before is None else before.path.absolute(),
            "fitted_path": None if elsewhere is None else elsewhere.path.absolute(),
            "clip": getattr(getattr(method, "clip", None), "name", None),
            "torch": torch.__version__,
            **({} if crf_engine is None else {"crf_engine": crf_engine}),
            "threads": torch.get_num_threads(),
            "device": device_of(method).type,  # not which of equal ones: under torchrun each process has another
            "batch_size": batch_size,
            **(noted or {}),
        },
        images=len(data),
        shard=shard,
        overwrite=overwrite,
        refit=refit,
        may_grow=learned.get("fitted") != "here",
    )
    with run:
        if elsewhere is not None:
            method.load(elsewhere)  # type: ignore[attr-defined]  # open_fitted has seen that it can
            if isinstance(method, Refiner) and before is not None:
                method.follow(before)
        elif isinstance(method, Trainable):
            make_ready(method, data, run, before, fingerprint=fingerprint, shard=shard, progress=progress)
        if fit_only:
            return Summary(str(run.path), "labelled", total)
        changes = Changes(run, before)
        left = left_over(run, data, shard, removed)
        samples = (sample for sample in data if in_shard(sample.id, shard))
        batches = plan(samples, method.grid, batch_size, changes.finished)
        labeller = Labeller(method, rule, before, crf_max_pixels=crf_max_pixels, keep_scores=keep_scores)
        work = Work(
            *(run, data.classes, labeller, total),
            did="labelled",
            steps=labeller.steps,
            device=device_of(method),
            # Compiled loops use one core a picture; the torch engine uses them all.
            beside=torch.get_num_threads() if crf_engine == "loops" and rule.crf is not None else 1,
            notes=lambda: [*changes.notes(), *left],
        )
        loaded = ahead(load(batches, describe, changes.inputs))
        return work.through(loaded, show_progress(total, "label", enabled=progress))


def _make(
    name: str, classes: ClassSet, options: Mapping[str, Any], clip: CLIP | str | None, device: str, precision: str
) -> tuple[Method, dict[str, Any]]:
    """The method of that name, and what run.yaml says of it."""
    checked = make_options(name, options)  # a misspelt option is told before a model is loaded
    if not method_class(name).needs_clip:
        model = None
    elif clip is None or isinstance(clip, str):
        from tag2mask.models.weights import load_clip

        where = find_device(device)
        find_precision(precision, where)
        model = load_clip(clip, device=where, precision=precision)
    else:
        model = clip
    method = make_method(name, classes, clip=model, **options)
    place(method, device)
    return method, {"method": name, "options": checked}


def _no_files(_: Sample) -> tuple[Path, ...]:
    return ()


def _fit_files(before: Run | None) -> Callable[[Sample], tuple[Path, ...]]:
    """The files that a fit reads of a sample."""
    if before is None:
        return lambda sample: (sample.image,)
    return lambda sample: (sample.image, before.scores_path(sample.id))


def _supervision(before: Run | None, method: Method) -> str:
    """What people gave: to the earlier run, and to the weights that the method starts with."""
    parts = ["tags"] if before is None else str(before.settings.get("supervision", "tags")).split("+")
    file = Path(str(getattr(getattr(method, "options", None), "weights", ""))).expanduser()
    if file.is_file() and file.suffix != ".params":  # MXNet's are ImageNet's classifier
        parts += [part for part in pixel_labels(file) if part not in parts]
    return "+".join(parts)


def _name_of(method: Method) -> str:
    """The name under which the method is known, or else where its class is."""
    kind = type(method)
    where = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, known in known_methods().items() if known == where), where)


def _clip_of(method: Method) -> dict[str, str] | None:
    """The CLIP that decides the results, as run.yaml keeps it."""
    clip: CLIP | None = getattr(method, "clip", None)
    if clip is None:
        return None
    kept = {"sha256": clip.sha256, "precision": str(clip.dtype).removeprefix("torch.")}
    fingerprint = getattr(clip, "fingerprint", None)
    return kept if fingerprint is None else {**kept, "fingerprint": fingerprint}


def _resolved_of(method: Method) -> dict[str, Any]:
    """Options as they took effect, where a method tells: a default may follow the weights or the class set."""
    resolved = getattr(method, "resolved", None)
    return {} if resolved is None else {"resolved": resolved}


def _classes_of(classes: ClassSet, method: Method, name: str) -> dict[str, Any]:
    """The class set as run.yaml keeps it, with what a method that has a CLIP may say to it.

    These are the method's own texts ("clip-es", "clip-es-released"), or all where none bear its name.
    """
    kept: dict[str, Any] = {"id": classes.id, "names": classes.names, "palette": classes.palette}
    if getattr(method, "clip", None) is not None:
        own = {key: texts for key, texts in classes.texts.items() if key.startswith(name)}
        kept["texts"] = own or classes.texts
    return kept


def _open_prior(prior: Run | Path | str | None, method: Method, classes: ClassSet, out: Path) -> Run | None:
    if prior is None:
        if method.needs_prior:
            raise UserError(
                f"{type(method).__name__} starts from an earlier run's maps; give its folder as the prior (--prior "
                "RUN), or refine a method of your choice by it (--refine)"
            )
        return None
    if not method.needs_prior:
        raise UserError(f"{type(method).__name__} starts from no earlier run; leave out the prior (--prior)")
    run = prior if isinstance(prior, Run) else Run.open(prior)
    if run.path.resolve() == out.resolve():
        raise UserError(f"{out} cannot be both the earlier run and the new one; choose another folder for the new")
    names = run.settings.get("classes", {}).get("names")
    if names != list(classes.names):
        raise UserError(f"{run.path} was made for other classes than {classes.id}; give a run on the same class set")
    return run
