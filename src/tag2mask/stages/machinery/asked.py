"""A call of ``label``: what is asked for, checked before any work, and what run.yaml says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tag2mask.methods import known_methods
from tag2mask.methods.protocol import EarlierRun, Machine, Method, NamedTower, Trainable
from tag2mask.models.find_classifier import weights_file
from tag2mask.models.public_resnet import pixel_labels
from tag2mask.ops.crf import engine
from tag2mask.ops.refiners import crf_engine, find_refiner
from tag2mask.run.folder import Run
from tag2mask.run.mask_folder import MaskFolder
from tag2mask.run.settings import plain
from tag2mask.run.shard import WHOLE, Shard
from tag2mask.run.warn import warn
from tag2mask.stages.machinery.changes import Removed
from tag2mask.stages.machinery.fit import check_machine, open_fitted
from tag2mask.stages.machinery.predictor import rule_of, tested_by
from tag2mask.types import ClassSet, Dataset, MaskRule, UserError

__all__ = ["REFINE_MAX_PIXELS", "Asked", "Fit", "LabelSettings", "ask", "beside_by", "circumstances"]

REFINE_MAX_PIXELS = 2_000_000
"""A larger image is refined at this size, since a refiner's memory grows with the pixels."""

_GPU_BATCH = 8

MOST_BESIDE = 8
"""Batches that are worked off at once, where nobody says otherwise: each has memory of its own."""


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
    limit: make masks of so many tagged images alone, from the first on, of all shards together; a fit is of all
        images whatever it is. None: of all.
    batch_size: images a call of the method. Default: 8 on a GPU; 1 on a processor, where more is hardly quicker and
        one makes an image's result independent of its neighbours and of the sharding, to the byte.
    overwrite: remove an earlier run in the folder instead of resuming it. What was learned under the same
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
    limit: int | None = None
    batch_size: int | None = None
    overwrite: bool = False
    refit: bool = False
    fit_only: bool = False
    machine: Machine = Machine()  # noqa: RUF009  # frozen
    removed: Removed = "keep"
    noted: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True


@dataclass(frozen=True)
class Fit:
    """Where a method's fit is: ``here``, in the run's own folder, ``elsewhere`` with its sha256, or nowhere."""

    here: bool
    elsewhere: Run | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, method: Method, settings: LabelSettings, classes: ClassSet) -> Fit:
        """By the method and the settings. Raises UserError where these ask for a fit and there is none."""
        found = cls(method.learns)
        if settings.fitted is not None:
            said = {**_named(method), "texts": _classes_of(classes, method).get("texts")}
            found = cls(False, *open_fitted(settings.fitted, method, classes, said))
        if (settings.fit_only or settings.refit) and not found.here:
            option = "fit_only (--fit-only)"
            if settings.refit:
                option = "refit (--refit); overwrite (--overwrite) labels everything again"
            may = isinstance(method, Trainable) and settings.fitted is None
            hint = f" (`tag2mask methods {name_of(method)}` says which options make it learn)" if may else ""
            raise UserError(f"{name_of(method)} has nothing to fit here{hint}; leave out {option}")
        return found

    @property
    def kept(self) -> dict[str, Any]:
        """What run.yaml says of it."""
        if self.here:
            return {"fitted": "here"}
        return {} if self.elsewhere is None else {"fitted": {"sha256": self.sha256}}


@dataclass(frozen=True)
class Asked:
    """A call of ``label`` that can work; nothing is written yet.

    use: what the method takes from ``before``, the earlier run. deciding: what decides the masks, for run.yaml.
    beside: batches that are worked off at once. threads: torch's, in each of them.
    """

    method: Method
    settings: LabelSettings
    rule: MaskRule
    batch_size: int
    use: EarlierRun
    before: Run | None
    fit: Fit
    deciding: Mapping[str, Any]
    beside: int
    threads: int


def ask(data: Dataset, method: Method, out: Path, settings: LabelSettings) -> Asked:
    """Check what is asked of ``label``. Raises UserError where it cannot work."""
    rule = settings.rule or rule_of(method, settings.masks_of)
    _check_rule(rule, method, settings)
    if settings.limit is not None and settings.limit < 1:
        raise UserError(f"limit {settings.limit}: expected 1 or more images")
    if settings.limit is not None and settings.fit_only:
        raise UserError("--fit-only labels nothing, so there is nothing to --limit: leave out one of them")
    batch_size = _batch_size(settings, method.device)
    use = method.earlier_run(method.options)
    before = _open_earlier(settings.prior, method, use, data, out, learns=settings.fitted is None)
    fit = Fit.of(method, settings, data.classes)
    several = _side_by_side(method, settings)
    check_machine(name_of(method), method, settings.machine, here=fit.here, several=several)
    deciding = _deciding(method, rule, data.classes, before, fit, settings)
    beside, threads = 1, torch.get_num_threads()
    if several:
        wanted = min(threads, MOST_BESIDE) if settings.machine.workers is None else settings.machine.workers
        beside = max(1, min(wanted, len(data)))  # of all images, however few are left: threads may move a last bit
        threads = max(1, threads // beside)  # which then need not wait for each other
    elif _on_processor(method, settings):  # the method has all threads in turn
        beside = beside_by(crf_engine(rule.refiner, method.device))
    return Asked(method, settings, rule, batch_size, use, before, fit, deciding, beside, threads)


def beside_by(engine: str | None) -> int:
    """How many pictures are refined at once by an engine of the CRF: compiled loops use one core a picture."""
    return min(torch.get_num_threads(), MOST_BESIDE) if engine == "loops" else 1


def _on_processor(method: Method, settings: LabelSettings) -> bool:
    return settings.masks_of == "maps" and method.device.type == "cpu"


def _side_by_side(method: Method, settings: LabelSettings) -> bool:
    """Whether whole batches are worked off side by side: on a processor, by a method that allows it."""
    return method.side_by_side and _on_processor(method, settings) and not settings.fit_only


def _deciding(
    method: Method, rule: MaskRule, classes: ClassSet, before: Run | None, fit: Fit, settings: LabelSettings
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


def circumstances(method: Method, before: Run | None, fit: Fit, by: str | None) -> dict[str, Any]:
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


def _precision(method: Method, fit: Fit) -> dict[str, str]:
    """The numbers that a fit computes in, where it is done here and these are not float32."""
    if isinstance(method, Trainable) and fit.here and "precision" in method.fit_uses:
        return {} if method.precision == "float32" else {"fit_precision": method.precision}
    return {}


def _named(method: Method) -> dict[str, Any]:
    """The method as run.yaml keeps it: its name, options as given and as they took effect, and its towers."""
    towers = {name: _tower(tower) for name, tower in method.towers.items()}
    resolved = {"resolved": dict(method.resolved)} if method.resolved else {}
    return {"method": name_of(method), "options": method.options, "clip": None, **towers, **resolved}


def _tower(tower: NamedTower) -> dict[str, str]:
    return {
        "sha256": tower.sha256,
        "precision": str(tower.dtype).removeprefix("torch."),
        "fingerprint": tower.fingerprint,
    }


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


def name_of(method: Method) -> str:
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
        own = {key: texts for key, texts in classes.texts.items() if key.startswith(name_of(method))}
        kept["texts"] = own or classes.texts
    return kept


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
            f"{name_of(method)} scores the tags alone, so untagged classes never win; it cannot "
            f"{rule.others} them: leave out others={rule.others} (--others)"
        )


def _open_earlier(
    prior: Run | Path | str | None, method: Method, use: EarlierRun, data: Dataset, out: Path, *, learns: bool
) -> Run | None:
    """The earlier run that the method needs, or None. learns: whether it is fitted here, if it is fitted at all."""
    name = name_of(method)
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
            f"the earlier run is of images in {made_from}, these are in {data.root}: images of the same name are "
            "taken for the same"
        )
    return run
