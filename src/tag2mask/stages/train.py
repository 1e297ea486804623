"""Training a segmentation network on the masks of a run. One folder, which the same command resumes it with.

recipe.json   the settings, and what stands for the masks; another training is refused
last.ckpt     the state of the training
network/      the network as ``predict`` and ``export`` load it, written with every checkpoint
log/          the losses, and for TensorBoard where it is installed
train.json    what the last call did: steps, images a second, losses, supervision
"""

from __future__ import annotations

import importlib.util
import json
import platform
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from tag2mask.run.checkpoint import LAST, steps_done
from tag2mask.run.corrected import counting
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.files import file_sha256, write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.lock import locked
from tag2mask.run.progress import minutes_left
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.settings import check_own, claim, plain
from tag2mask.run.training import first_process, fit
from tag2mask.run.warn import warn
from tag2mask.segment.architectures import pixels_of_start
from tag2mask.segment.examples import Examples
from tag2mask.segment.network import build_network, save_network
from tag2mask.segment.options import WITH_HEAD
from tag2mask.segment.recipe import TrainRecipe, check
from tag2mask.segment.saved import INSIDE, NetworkConfig, find_network, read_saved
from tag2mask.segment.semi import CrossConsistency, Mixed
from tag2mask.segment.supervised import SupervisedTraining
from tag2mask.segment.targets import Targets, check_targets, find_targets
from tag2mask.stages.machinery.longer import (
    RECIPE,
    SUMMARY,
    clear,
    lengthen,
    lengthened,
    may_lengthen,
    refuse_other_examples,
)
from tag2mask.stages.machinery.watch import Validation, Watch, held_out, validation_samples
from tag2mask.stages.run_data import data_for
from tag2mask.types import Dataset, UserError


@dataclass(frozen=True)
class TrainSettings:
    """How ``train`` goes about its work; none of it changes what the weights become, but for rounding.

    device, devices: auto, cpu, cuda, ...; and how many of them.
    workers: processes that prepare batches.
    minutes: stop so long after the call, saved; one step is done in any case. None runs to the end.
    save_steps: a checkpoint every so many steps, and every five minutes. log_steps: a line of the log.
    validation: measure mIoU while it runs, on ground truth that nothing is learned from; images that it holds out
        are not trained on.
    overwrite: remove the training in the folder, and start over.
    progress: show it on stderr.
    """

    device: str = "auto"
    devices: int = 1
    workers: int = 0
    minutes: float | None = None
    save_steps: int = 1000
    log_steps: int = 20
    validation: Validation | None = None
    overwrite: bool = False
    progress: bool = True


@dataclass(frozen=True)
class Trained:
    """What a call of ``train`` left.

    step, steps: done, and in all. network: its folder. supervision: what people gave: "tags", "tags+pixels(100)".
    examples: images trained on; left_out: how many were not, by reason; replaced: {id: why} of those that could not
    be read. images_per_second, seconds, loss (mean of the last batches): of this call; None where it had no step.
    validation: the last mIoU that was measured, in words. log: the folder of the logs.
    """

    step: int
    steps: int
    network: Path
    supervision: str
    examples: int
    left_out: dict[str, int]
    replaced: dict[str, str]
    seconds: float
    images_per_second: float | None
    loss: float | None
    validation: str | None = None
    log: Path | None = None
    machine: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """For people, in a few lines."""
        speed = "" if self.images_per_second is None else f", {self.images_per_second:.3g} images/s"
        loss = "" if self.loss is None else f", loss {self.loss:.4f} (mean of this call's last batches)"
        lines = [f"step {self.step} of {self.steps}{loss}{speed}; network: {self.network}"]
        left = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        lines.append(
            f"trained on {self.examples} images, supervision: {self.supervision}"
            + (f"; left out: {left}" if left else "")
        )
        if self.validation is not None:
            lines.append(f"{self.validation}; measured alone: nothing was learned from it or chosen by it")
        if self.log is not None:
            board = importlib.util.find_spec("tensorboard") is not None
            how = f"tensorboard --logdir {self.log.parent}" if board else "pip install 'tag2mask[logs]'"
            lines.append(f"logs: {self.log}; for TensorBoard: {how}")
        if self.replaced:
            lines.append(f"could not be read, others stood in: {len(self.replaced)} images (train.json names them)")
        if self.step < self.steps:
            lines.append("the same command resumes it")
        return "\n".join(lines)


def train(
    run: Run | Path | str | None,
    out: Path | str,
    recipe: TrainRecipe | None = None,
    settings: TrainSettings | None = None,
    *,
    data: Dataset | None = None,
    pixel_labels: Path | None = None,
    **changes: Any,
) -> Trained:
    """Train a network on a run's masks; called again, it resumes where it was.

    A training with more steps than before continues from its last checkpoint, too. Where the learning rate and the
    loss do not depend on how many steps there are (``schedule_steps`` is set), it ends in the same weights as one
    that was asked for at once; else a warning says what differs.

    Args:
        run: a run with masks; those that a person corrected are pixel labels. None: true masks alone, of ``data`` and
            ``pixel_labels`` (the upper bound).
        out: the folder of this training.
        recipe: all that decides what the weights become.
        settings: default: ``TrainSettings()``.
        data: the images; default: where the run's were.
        pixel_labels: a text file of image ids whose true masks are used, instead of the run's. It is the only way in
            which ground truth is read, and the network's supervision says how many masks it were. For ``semi`` they
            are the labelled images, and all others are the unlabelled ones.
        changes: fields of ``TrainSettings`` that take the place of those in ``settings``.

    Raises:
        UserError: an impossible recipe; masks that do not fit their images or classes, or none; a folder that cannot
            be written, holds another training, or is in use by another process.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    began, out, recipe = time.monotonic(), Path(out), recipe or TrainRecipe()
    how = replace(settings or TrainSettings(), **changes)
    check(recipe)
    where = find_device(how.device)
    find_precision(recipe.precision, where)
    targets = find_masks(run, data, pixel_labels, recipe)
    watch = None
    if how.validation is not None:
        targets = held_out(targets, how.validation.hold_out)
        samples = validation_samples(how.validation, targets)
        watch = Watch(samples, how.validation.every, recipe.accumulate, how.progress)
    supervision, start = _supervision(targets, recipe)
    drawn = (Mixed if recipe.semi else Examples)(targets, recipe.augment, recipe.seed, recipe.mu is not None)
    config = NetworkConfig.of(recipe.architecture, targets.data.classes, **recipe.options)
    net = build_network(config, init=recipe.start, seed=recipe.seed)
    net.check_crop(recipe.crop)
    if first_process() and not (out / "run.yaml").exists():
        check_own(out, RECIPE)
    with locked(out, f"The training in {out}") if first_process() else nullcontext():
        if how.overwrite and first_process():
            clear(out)
        _claim(out, recipe, targets, supervision, start)
        done = steps_done(out)
        if not done:
            _check_masks(targets, recipe, how.progress)
        module = (CrossConsistency if recipe.semi else SupervisedTraining)(recipe, net)
        noted = {"recipe": plain(recipe), "examples": len(targets), **lengthened(out)}
        keep = _Keep(out / INSIDE, supervision, noted, done)
        training = recipe.training(
            device=how.device,
            devices=how.devices,
            workers=how.workers,
            minutes=minutes_left(how.minutes, began),
            save_steps=how.save_steps,
            log_steps=how.log_steps,
        )
        unit = "pairs" if recipe.semi else "images"
        try:
            watching = [keep] if watch is None else [watch, keep]
            trainer = fit(module, drawn, training, out, unit=unit, callbacks=watching, show=how.progress)
        finally:
            result = _result(module, keep, targets, recipe, supervision, where)
            if watch is not None and watch.miou is not None:
                result = replace(result, validation=f"{watch.text()} at step {watch.at}")
            if first_process() and (keep.batches or not (out / SUMMARY).exists()):
                write_atomic(out / SUMMARY, (json.dumps(asdict(result), indent=2, default=str) + "\n").encode())
        if trainer.is_global_zero and not (out / INSIDE).exists():
            keep.write(module, trainer.global_step)  # the training was over, and its network was deleted
    return result


def find_masks(
    run: Run | Path | str | None, data: Dataset | None, pixel_labels: Path | None, recipe: TrainRecipe
) -> Targets:
    """The masks to train on; those that a person corrected take the place of the made ones.

    run, data, pixel_labels, recipe: as ``train`` takes them.

    Raises:
        UserError: there is neither a run nor a list of images with true masks; or as ``find_targets``.
    """
    run = run if run is None or isinstance(run, Run) else Run.open(run)
    if data is None:
        if run is None:
            raise UserError("without a run, name the data (--data) and the images with true masks (--pixel-labels)")
        data = data_for(run)
    if run is None and pixel_labels is None:
        raise UserError("no masks to train on: give a run with masks, or --pixel-labels with a list of image ids")
    blank = recipe.semi == "cct" and recipe.cct.weak == "none"  # then the made masks are not read
    return find_targets(data, None if run is None else counting(run), pixel_labels, blank=blank)


class _Keep(lightning.Callback):
    """Writes the network just before each checkpoint, so that there is one wherever there is a checkpoint."""

    def __init__(self, folder: Path, supervision: str, noted: dict[str, Any], step: int) -> None:
        self.folder, self.supervision, self.noted = folder, supervision, noted
        self.batches, self.step, self.seconds = 0, step, 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.batches, self.step = self.batches + 1, trainer.global_step
        self.seconds = time.monotonic() - self.began

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero and isinstance(pl_module, SupervisedTraining):
            self.write(pl_module, trainer.global_step)

    def write(self, module: SupervisedTraining, step: int) -> None:
        save_network(self.folder, module.weights, supervision=self.supervision, noted={**self.noted, "step": step})


def _check_masks(targets: Targets, recipe: TrainRecipe, progress: bool) -> None:
    """Look at all masks before the first step, and warn of what is odd. Raises as ``check_targets``."""
    with show_progress(len(targets), "check masks", enabled=progress and first_process()) as bar:
        for note in check_targets(targets, bar.advance, confidence=recipe.mu is not None):
            warn(note)


def _supervision(targets: Targets, recipe: TrainRecipe) -> tuple[str, str | None]:
    """What people gave, to masks and first weights; and these weights' digest, where they are files."""
    parts = [targets.supervision, *([f"pixels({recipe.init_pixels})"] if recipe.init_pixels else [])]
    start = recipe.start
    if find_network(start) is not None:
        saved = read_saved(start)
        parts += [part for part in saved.supervision.split("+") if part not in ("tags", *parts)]
        return "+".join(parts), saved.sha256
    path = Path(start.removeprefix(WITH_HEAD)).expanduser()
    found = pixels_of_start(start, recipe.architecture) if recipe.init_pixels is None else ()
    if found:
        warn(
            f"{Path(start).name}: these weights hold a decoder, so they seem to be trained on pixel labels; the "
            f'supervision says so ({"+".join(found)}). Name the data set by init_pixels=NAME, or say init_pixels="" '
            "if nobody drew masks for them"
        )
        parts += [part for part in found if part not in parts]
    if not path.is_file():
        return "+".join(parts), None
    return "+".join(parts), file_sha256(path)


def _claim(out: Path, recipe: TrainRecipe, targets: Targets, supervision: str, start: str | None) -> None:
    """See that the folder is that of this very training."""
    if not first_process():
        return
    recipe_file = out / RECIPE
    _refuse_run(out)
    if _nothing_learned(out):
        recipe_file.unlink()  # a corrected command may begin here
    settings = _deciding(recipe, targets, supervision, start)
    refuse_other_examples(recipe_file, settings["examples"])
    lengthen(out, settings, recipe)
    claim(recipe_file, {**settings, **lengthened(out)})


def find_out(out: Path, recipe: TrainRecipe, targets: Targets, *, afresh: bool = False) -> tuple[int, str]:
    """How many steps are done in a training's folder, and the supervision of its network. Nothing is written.

    afresh: what is there would be removed.

    Raises:
        UserError: the folder holds other things, or another training.
    """
    _refuse_run(out)
    check_own(out, RECIPE)
    supervision, start = _supervision(targets, recipe)
    if afresh:
        return 0, supervision
    if (out / RECIPE).is_file() and not _nothing_learned(out):
        settings = _deciding(recipe, targets, supervision, start)
        refuse_other_examples(out / RECIPE, settings["examples"])
        if not may_lengthen(out, settings, recipe):
            claim(out / RECIPE, {**settings, **lengthened(out)})  # which is there, so that it only compares
    return steps_done(out), supervision


def _refuse_run(out: Path) -> None:
    if (out / "run.yaml").exists():
        raise UserError(f"--out {out}: is a run of masks; choose a folder of its own for the network")


def _nothing_learned(out: Path) -> bool:
    return not (out / LAST).exists() and not (out / INSIDE).exists() and _is_own(out / RECIPE)


def _deciding(recipe: TrainRecipe, targets: Targets, supervision: str, start: str | None) -> dict[str, Any]:
    """All that decides what a training ends in."""
    classes = targets.data.classes
    return {
        **plain(recipe),
        "init_sha256": start,
        "supervision": supervision,
        "classes": {"id": classes.id, "names": list(classes.names)},
        "examples": targets.examples,
        "run": None if targets.run is None else targets.run.digest,
    }


def _is_own(recipe_file: Path) -> bool:
    """Whether it is of a training of this kind: other trainings keep a file of that name, too."""
    try:
        return "examples" in json.loads(recipe_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _result(
    module: SupervisedTraining,
    keep: _Keep,
    targets: Targets,
    recipe: TrainRecipe,
    supervision: str,
    where: torch.device,
) -> Trained:
    images = keep.batches * recipe.batch * (2 if recipe.semi else 1)  # as many labelled as unlabelled ones
    return Trained(
        step=keep.step,
        steps=recipe.steps,
        network=keep.folder,
        supervision=supervision,
        examples=len(targets),
        left_out=dict(targets.left_out),
        replaced=dict(module.replaced),
        seconds=round(keep.seconds, 3),
        images_per_second=round(images / keep.seconds, 3) if keep.seconds else None,
        loss=module.last_loss(),
        log=keep.folder.parent / "log",
        machine={
            "device": where.type,
            "name": torch.cuda.get_device_name(where)
            if where.type == "cuda"
            else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )
