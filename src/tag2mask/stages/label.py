"""Images with tags in, a run folder with masks, confidence and scores out.

It can be killed at any moment and started again; it then goes on, and the folder ends up with the same bytes as
if nothing had happened. One bad image never stops it. A disk that is full or read-only does, and loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tag2mask.methods import known_methods, make_method
from tag2mask.methods.protocol import EarlierRun, Machine, Method, NamedTower, Trainable
from tag2mask.models.find_classifier import weights_file
from tag2mask.models.public_resnet import pixel_labels
from tag2mask.ops.crf import engine
from tag2mask.ops.refiners import crf_engine, find_refiner
from tag2mask.run.ahead import ahead
from tag2mask.run.current import earlier_file
from tag2mask.run.folder import Run
from tag2mask.run.inputs import KnownInputs
from tag2mask.run.mask_folder import MaskFolder
from tag2mask.run.processes import helping
from tag2mask.run.progress import minutes_left
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.settings import plain
from tag2mask.run.shard import WHOLE, Shard, in_shard
from tag2mask.run.warn import warn
from tag2mask.segment.network import find_network, load_network
from tag2mask.stages.machinery.changes import Changes, Removed, left_over
from tag2mask.stages.machinery.fit import check_machine, help_to_fit, make_ready, open_fitted
from tag2mask.stages.machinery.labeller import Labeller
from tag2mask.stages.machinery.plan import load, plan, survey
from tag2mask.stages.machinery.predictor import Predictor, rule_of, tested_by
from tag2mask.stages.machinery.work import Summary, Work, describe
from tag2mask.types import ClassSet, Dataset, MaskRule, Sample, UserError

REFINE_MAX_PIXELS = 2_000_000
"""A larger image is refined at this size, since a refiner's memory grows with the pixels."""

_GPU_BATCH = 8


@dataclass(frozen=True)
class LabelSettings:
    """How ``label`` goes about its work.

    rule: how maps become masks; default: the method's own.
    prior: an earlier run on the same images, for methods that start from one.
    fitted: another run whose fit the method takes, instead of learning from these images.
    keep_scores: store the score maps, which evaluation, report and refinement need.
    refine_max_pixels: images with more are refined at this size; None: at full size.
    masks_of: "maps", or "network": by the network that the method has trained, of the tagged classes alone, in the
        views that the method says (``Trainable.network_test``).
    shard: (index, count): the images with ``crc32(id) % count == index``.
    batch_size: images a call of the method. Default: 8 on a GPU; 1 on a processor, where more is hardly quicker and
        one makes an image's result independent of its neighbours and of the sharding, to the byte.
    overwrite: remove an earlier run in the folder instead of going on with it. What was learned under the same
        settings stays: it would come out the same.
    refit: remove what was learned and labelled in the folder, and do everything again.
    fit_only: stop after the fit; the same call without it then labels, in shards too.
    machine: what a fit may use, and for how long from this call on; no setting of the results.
    removed: what becomes of the masks of images that are not in the data any more, or not tagged.
    noted: circumstances to be kept in run.yaml, such as where the data came from.
    progress: show it on stderr.
    """

    rule: MaskRule | None = None
    prior: Run | Path | str | None = None
    fitted: Run | Path | str | None = None
    keep_scores: bool = True
    refine_max_pixels: int | None = REFINE_MAX_PIXELS
    masks_of: Literal["maps", "network"] = "maps"
    shard: Shard = WHOLE
    batch_size: int | None = None
    overwrite: bool = False
    refit: bool = False
    fit_only: bool = False
    machine: Machine = Machine()  # noqa: RUF009  # frozen
    removed: Removed = "keep"
    noted: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True


def label(
    data: Dataset, method: Method | str, out: Path | str, settings: LabelSettings | None = None, **changes: Any
) -> Summary:
    """Make a pseudo mask for every image that has tags.

    Samples with unknown tags are skipped and counted; those with none at all (``()``) get a mask of background. In a
    folder with masks, those of images that were replaced or are tagged otherwise now are made again, and no others
    (of batches of several, whose last bits may depend on neighbours, the others keep those they had).
    A method that learns is fitted first, in the folder's checkpoints, on all of the data (``stages.machinery.fit``).

    Args:
        data: images and tags. Ground truth, if it has any, is never read.
        method: what ``methods.make_method`` makes; of a name alone, with its defaults.
        out: the run folder; see :mod:`tag2mask.run.folder`.
        settings: default: ``LabelSettings()``.
        changes: fields of ``LabelSettings`` that take the place of those in ``settings``.

    Raises:
        UserError: settings that cannot work (before any work), or a disk that cannot be written.
        KeyboardInterrupt: as the user asked, or the minutes of a fit are over; the message says what is saved.
    """
    began = time.monotonic()
    settings = replace(settings or LabelSettings(), **changes)
    if isinstance(method, str):
        method = make_method(method, data.classes)
    rule = settings.rule or rule_of(method, settings.masks_of)
    _check_rule(rule, method, settings)
    batch_size = _batch_size(settings, method.device)
    use = method.earlier_run(method.options)
    before = _open_earlier(settings.prior, method, use, data, Path(out), learns=settings.fitted is None)
    fit = _Fit.of(method, settings, data.classes)
    check_machine(_name_of(method), method, settings.machine, here=fit.here)
    if settings.machine.devices > 1 and helping():
        help_to_fit(method, data, Path(out), before, settings.machine)
        return Summary(str(out), "labelled", 0)
    files = _fit_files(before, use.fit) if fit.here else None
    surveyed = survey(data, settings.shard, files=files, known=_known(Path(out)) if fit.here else None)
    by = crf_engine(rule.refiner, method.device)
    run = Run.create(
        out,
        _deciding(method, rule, data.classes, before, fit, settings),
        noted={
            "data_root": Path(data.root).absolute(),
            **_noted(method, before, fit, by),
            "batch_size": batch_size,
            **settings.noted,
        },
        images=len(data),
        shard=settings.shard,
        overwrite=settings.overwrite,
        refit=settings.refit,
        may_grow=not fit.here,
    )
    with run:
        if isinstance(method, Trainable) and method.learns:
            if fit.elsewhere is not None:
                method.load(fit.elsewhere.checkpoints, before)
            else:
                method.machine = replace(settings.machine, minutes=minutes_left(settings.machine.minutes, began))
                shown = settings.progress
                make_ready(method, data, run, before, surveyed=surveyed, shard=settings.shard, progress=shown)
            if settings.fit_only:
                return Summary(str(run.path), "labelled", surveyed.total)
        elif isinstance(method, Trainable) and use.label is not None:  # weights of others, on an earlier run's maps
            method.load(run.checkpoints, before)
        seen = before if use.label is not None else None
        renewed = Changes(run, seen, use.label)
        left = left_over(run, data, settings.shard, settings.removed)
        samples = (sample for sample in data if in_shard(sample.id, settings.shard))
        batches = plan(samples, method.grid, batch_size, renewed.finished)
        worker = _worker(method, rule, seen, settings, fit.elsewhere or run)
        work = Work(
            *(run, data.classes, worker, surveyed.total),
            did="labelled",
            steps=worker.steps,
            device=method.device,
            # compiled loops use one core a picture, the torch engine uses them all
            beside=torch.get_num_threads() if by == "loops" else 1,
            made=renewed.made,
            notes=lambda: [*renewed.notes(), *left],
        )
        loaded = ahead(load(batches, describe, renewed.inputs))
        return work.through(loaded, show_progress(surveyed.total, "label", enabled=settings.progress))


def _worker(
    method: Method, rule: MaskRule, seen: Run | None, settings: LabelSettings, fitted: Run
) -> Labeller | Predictor:
    """What makes the masks: the method's maps, or the network that its fit has left."""
    if settings.masks_of == "maps":
        most = settings.refine_max_pixels
        return Labeller(method, rule, seen, refine_max_pixels=most, keep_scores=settings.keep_scores)
    if find_network(fitted.path) is None:
        raise UserError(f"{_name_of(method)} trains no network; make the masks of its maps (--masks-of maps)")
    net = load_network(fitted.path, str(method.device))
    test = tested_by(method).test
    test = replace(test, align_output=test.align_output or net.align_corners)
    smaller = f"`tag2mask predict {fitted.path} IMAGES --use-tags` with --tile 1024 or --longest 2000 can do it"
    return Predictor(net, method.device, test, rule, settings.refine_max_pixels, use_tags=True, smaller=smaller)


def _batch_size(settings: LabelSettings, device: torch.device) -> int:
    size = settings.batch_size
    if size is None:
        size = 1 if device.type == "cpu" else _GPU_BATCH
    if size < 1:
        raise UserError(f"batch size {size}: expected 1 or more")
    return size


def _check_rule(rule: MaskRule, method: Method, settings: LabelSettings) -> None:
    """Raises UserError where a mask rule cannot work, before any work."""
    if rule.refiner is not None:
        find_refiner(rule.refiner)
    if settings.masks_of == "network":
        names = ("background", "normalise", "mu", "confidence")
        idle = [f"masks.{name}" for name in names if getattr(rule, name) != getattr(method.mask_rule, name)]
        if idle:
            raise UserError(
                f"{', '.join(idle)}: of masks that are made of maps, and a network makes these; leave it out, or "
                "take --masks-of maps"
            )
    if rule.others != "never" and settings.masks_of == "maps" and not method.scores_others:
        raise UserError(
            f"{_name_of(method)} scores the tags alone, so untagged classes never win; it cannot "
            f"{rule.others} them: leave out others={rule.others} (--others)"
        )


@dataclass(frozen=True)
class _Fit:
    """Where a method's fit is: ``here``, in the run's own folder, ``elsewhere`` with its sha256, or nowhere."""

    here: bool
    elsewhere: Run | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, method: Method, settings: LabelSettings, classes: ClassSet) -> _Fit:
        found = cls(method.learns)
        if settings.fitted is not None:
            said = {**_named(method), "texts": _classes_of(classes, method).get("texts")}
            found = cls(False, *open_fitted(settings.fitted, method, classes, said))
        if (settings.fit_only or settings.refit) and not found.here:
            option = "fit_only (--fit-only)"
            if settings.refit:
                option = "refit (--refit); overwrite (--overwrite) labels everything again"
            may = isinstance(method, Trainable) and settings.fitted is None
            hint = f" (`tag2mask methods {_name_of(method)}` says which options make it learn)" if may else ""
            raise UserError(f"{_name_of(method)} has nothing to fit here{hint}; leave out {option}")
        return found

    @property
    def kept(self) -> dict[str, Any]:
        """What run.yaml says of it."""
        if self.here:
            return {"fitted": "here"}
        return {} if self.elsewhere is None else {"fitted": {"sha256": self.sha256}}


def _deciding(
    method: Method, rule: MaskRule, classes: ClassSet, before: Run | None, fit: _Fit, settings: LabelSettings
) -> dict[str, Any]:
    """What decides the masks, for run.yaml."""
    return {
        "stage": "label",
        **_named(method),
        "mask_rule": rule,
        "classes": _classes_of(classes, method),
        "prior": None if before is None else before.digest,
        **fit.kept,
        **_precision(method, fit),
        **({} if settings.masks_of == "maps" else _of_network(method)),
        "keep_scores": settings.keep_scores and settings.masks_of == "maps",
        "refine_max_pixels": settings.refine_max_pixels,
        "supervision": _supervision(before, method, fit.elsewhere),
    }


def _of_network(method: Method) -> dict[str, Any]:
    """That the masks are its network's, and in which views, for run.yaml."""
    test = plain(tested_by(method).test)
    return {"masks_of": "network", "test": {name: value for name, value in test.items() if name != "batch"}}


def _noted(method: Method, before: Run | None, fit: _Fit, by: str | None) -> dict[str, Any]:
    """Circumstances that decide the last bits at most, for run.yaml. by: the engine of the masks' CRF, if any."""
    by = engine(method.device) if method.learns else by  # a fit may have a CRF of its own
    return {
        "prior_path": None if before is None else before.path.absolute(),
        "prior_found": method.earlier_run(method.options).label,
        "fitted_path": None if fit.elsewhere is None else fit.elsewhere.path.absolute(),
        "clip": None,
        **{name: tower.name for name, tower in method.towers.items()},
        "torch": torch.__version__,
        **({} if by is None else {"crf_engine": by}),
        "threads": torch.get_num_threads(),
        "device": method.device.type,  # not which of equal ones: under torchrun each process has another
    }


def _precision(method: Method, fit: _Fit) -> dict[str, str]:
    """The numbers that a fit computes in, where it is done here and these are not float32."""
    if isinstance(method, Trainable) and fit.here and "precision" in method.fit_heeds:
        return {} if method.precision == "float32" else {"fit_precision": method.precision}
    return {}


def _named(method: Method) -> dict[str, Any]:
    """The method as run.yaml keeps it: its name, options as given and as they took effect, and its towers."""
    towers = {name: _tower(tower) for name, tower in method.towers.items()}
    resolved = {"resolved": dict(method.resolved)} if method.resolved else {}
    return {"method": _name_of(method), "options": method.options, "clip": None, **towers, **resolved}


def _tower(tower: NamedTower) -> dict[str, str]:
    return {
        "sha256": tower.sha256,
        "precision": str(tower.dtype).removeprefix("torch."),
        "fingerprint": tower.fingerprint,
    }


def _fit_files(before: Run | None, found: str | None) -> Callable[[Sample], tuple[Path, ...]]:
    """The files that a fit reads of a sample."""
    if before is None or found is None:
        return lambda sample: (sample.image,)
    return lambda sample: (sample.image, earlier_file(before, sample.id, found))


def _known(out: Path) -> KnownInputs | None:
    """What the run in a folder, if there is one, knows of its images' files."""
    try:
        return Run.open(out).inputs()
    except UserError:  # none yet, or one that is damaged: ``Run.create`` will say so
        return None


def _supervision(before: Run | None, method: Method, fitted: Run | None) -> str:
    """What people gave: to the earlier run, to the fit of another run, and to the weights that it starts with."""
    runs = [run for run in (before, fitted) if run is not None]
    said = [part for run in runs for part in str(run.settings.get("supervision", "tags")).split("+")]
    parts = list(dict.fromkeys(said or ["tags"]))
    if method.weights is None:
        return "+".join(parts)
    try:
        file = weights_file(method.weights)
    except UserError:
        return "+".join(parts)  # drawn, or of a kind that another package's method knows
    if file.is_file() and file.suffix != ".params":  # MXNet's are ImageNet's classifier
        parts += [part for part in pixel_labels(file) if part not in parts]
    return "+".join(parts)


def _name_of(method: Method) -> str:
    """The name under which the method is known, or else where its class is."""
    kind = type(method)
    where = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, known in known_methods().items() if known == where), where)


def _classes_of(classes: ClassSet, method: Method) -> dict[str, Any]:
    """The class set as run.yaml keeps it, with what a method that has a CLIP may say to it.

    These are the method's own texts ("clip-es", "clip-es-released"), or all where none has its name.
    """
    kept: dict[str, Any] = {"id": classes.id, "names": classes.names, "palette": classes.palette}
    if "clip" in method.towers:
        own = {key: texts for key, texts in classes.texts.items() if key.startswith(_name_of(method))}
        kept["texts"] = own or classes.texts
    return kept


def _open_earlier(
    prior: Run | Path | str | None, method: Method, use: EarlierRun, data: Dataset, out: Path, *, learns: bool
) -> Run | None:
    """The earlier run that the method needs, or None. learns: whether it is fitted here, if it is fitted at all."""
    name = _name_of(method)
    if prior is None:
        if use.label is not None or (learns and use.fit is not None):
            raise UserError(
                f"{name} starts from an earlier run's {use.label or use.fit}; give its folder as the prior (--prior "
                "RUN), or refine a method of your choice by it (--refine)"
            )
        return None
    if not use.needed:
        raise UserError(f"{name} starts from no earlier run; leave out the prior (--prior)")
    if isinstance(prior, Run):
        run = prior
    elif "maps" in (use.fit, use.label) or (Path(prior) / "run.yaml").exists():
        run = Run.open(prior)
    else:
        run = MaskFolder(prior, data.classes)
    if run.path.resolve() == out.resolve():
        raise UserError(f"{out} cannot be both the earlier run and the new one; choose another folder for the new")
    names = run.settings.get("classes", {}).get("names")
    if names != list(data.classes.names):
        raise UserError(
            f"{run.path} was made for other classes than {data.classes.id}; give a run on the same class set"
        )
    made_from = run.noted.get("data_root")
    if made_from is not None and Path(made_from) != Path(data.root).absolute():
        warn(
            f"the earlier run is of images in {made_from}, these are in {data.root}: equal names are taken for equal"
        )
    return run
