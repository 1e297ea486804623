"""What every training shares: a Trainer that can be stopped at any moment and resumed.

The samples and all that is random about them are those of ``run.sampling``, so that a training that was killed and
resumed ends, on one processor, in the same bits as one that ran through. Import this module only where training is
done: it loads Lightning, which takes seconds.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from tag2mask.run.checkpoint import LAST, steps_done
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.files import atomic_path
from tag2mask.run.progress import Bar, progress
from tag2mask.run.sampling import StepSampler, Training
from tag2mask.types import UserError


class Stopped(KeyboardInterrupt):
    """A training was asked to stop, and ended its step; all of it is saved."""


def fit(
    module: lightning.LightningModule,
    dataset: Any,
    training: Training,
    folder: Path,
    *,
    label: str = "train",
    unit: str = "samples",
    callbacks: Sequence[lightning.Callback] = (),
    show: bool = True,
) -> lightning.Trainer:
    """Train ``module``, resuming from ``folder/last.ckpt`` where there is one.

    Logs lie in ``folder/log/version_<leg>/metrics.csv``, one leg a call, and for TensorBoard where it is installed.

    Args:
        module: its ``training_step`` gets the batches.
        dataset: ``len(dataset)`` samples; ``dataset[draw]`` is one, ``dataset.collate`` makes a batch of several.
            With ``dataset.groups``, the sizes of its groups of samples, each batch has ``training.batch`` of each.
        training: see there.
        folder: of this training alone.
        label, unit: for the progress on stderr, which counts steps, and units a second.
        callbacks: more of Lightning's; what they keep in ``state_dict`` is in the checkpoint.
        show: show progress.

    Raises:
        UserError: no such device or precision, a batch that the devices cannot share, a checkpoint that is damaged
            or does not fit, or, where a checkpoint is due, a loss or weights that are not finite.
        Stopped: Ctrl-C; the state is saved.
        SystemExit: SIGTERM; on one device the state is saved.
        KeyboardInterrupt: a second Ctrl-C, which stops at once, without saving.
    """
    last = folder / LAST
    counts = getattr(dataset, "groups", (len(dataset),))
    steps_done(folder)  # a damaged checkpoint is named before anything is set up
    keeper = _Keeper(last, training, show)
    with _quiet():
        trainer = make_trainer(training, folder, [*callbacks, keeper, _Progress(training, label, unit, show)])
        sampler = StepSampler(
            training, counts, lambda: trainer.global_step * training.accumulate, lambda: trainer.global_rank
        )
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=dataset.collate,
            num_workers=training.workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            persistent_workers=False,
            worker_init_fn=_ignore_ctrl_c,
        )
        ending = _endings(keeper, last, training)
        with keeper.listening(), _launching(training.devices), ending:
            trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
    if keeper.stopped_by == "ctrl-c":
        raise Stopped(
            f"stopped at step {trainer.global_step} of {training.steps}; all of it is saved in {folder}: "
            "give the same command again to resume"
        )
    return trainer


@contextmanager
def _endings(keeper: _Keeper, last: Path, training: Training) -> Iterator[None]:
    """Inside, a training that ends before its time says so in our words."""
    try:
        yield
    except (RuntimeError, KeyError) as error:
        if last.exists() and "state_dict" in str(error):
            raise UserError(
                f"{last} holds another network than the one to be trained; train into another folder"
            ) from error
        raise
    except SystemExit as error:  # Lightning's answer to SIGTERM and to a second Ctrl-C
        if keeper.ended or isinstance(error, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from error  # a shell would take Lightning's for success
        raise KeyboardInterrupt(
            f"stopped at once; {last.parent} holds all up to step {steps_done(last.parent)} of {training.steps}: "
            "give the same command again to resume"
        ) from error
    except UserError as error:  # from a process that prepares samples it comes with its traceback
        said = str(error).strip().splitlines()[-1]
        raise UserError(said.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")) from error


def make_trainer(training: Training, folder: Path, callbacks: Sequence[lightning.Callback] = ()) -> lightning.Trainer:
    """A Trainer with logs and without Lightning's own bar, checkpoints and summaries.

    Several devices work by DDP: under torchrun or SLURM in the processes that these start, else Lightning starts the
    others with this very command line. Norms of the batch are then taken over all GPUs.

    Raises:
        UserError: no such device, it does not compute in that precision, or the devices cannot share a batch evenly.
    """
    device = find_device(training.device)
    find_precision(training.precision, device)
    cuda, many = device.type == "cuda", training.devices > 1
    if training.devices < 1 or training.batch % training.devices:
        raise UserError(
            f"{training.devices} devices for batches of {training.batch}: expected a number that divides the batch"
        )
    if cuda and training.devices > torch.cuda.device_count() * int(os.environ.get("WORLD_SIZE", "1")):
        raise UserError(f"{training.devices} devices: PyTorch sees {torch.cuda.device_count()} GPUs here")
    names = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
    loggers: list[Logger] = [CSVLogger(folder, name="log", flush_logs_every_n_steps=training.log_steps)]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="tensorboard"))
    return lightning.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=training.devices if many else [device.index or 0] if cuda else 1,
        strategy="ddp" if many else "auto",
        sync_batchnorm=many and cuda,
        precision=names[training.precision],  # type: ignore[arg-type]
        max_steps=training.steps,
        max_epochs=-1,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=training.clip_norm,
        logger=loggers,
        log_every_n_steps=training.log_steps,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


_LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What Lightning sets in the environment when it starts processes for further devices."""


@contextmanager
def _launching(devices: int) -> Iterator[None]:
    """Afterwards this process is alone again, so that a second training can start processes of its own."""
    before = {name: os.environ[name] for name in _LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        if devices > 1 and "LOCAL_RANK" not in before:
            for name in _LAUNCHED:
                os.environ.pop(name, None)
            os.environ.update(before)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def first_process() -> bool:
    """Whether this is the first process of a training, or the only one: it alone writes and speaks."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0  # as torchrun, SLURM or Lightning number them


class _Keeper(lightning.Callback):
    """Saves the state between two steps, never with half a step's gradients, and stops when asked to."""

    def __init__(self, path: Path, training: Training, show: bool) -> None:
        self.path, self.training, self.show = path, training, show
        self.stopped_by: str | None = None
        self.ended = False  # by SIGTERM
        self._asked = False
        self._step = -1

    def listening(self) -> _Listening:
        return _Listening(self)

    def ask(self) -> None:
        self._asked = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._began = self._saved = time.monotonic()
        self._step = trainer.global_step
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ended)  # Lightning's own, put back by it afterwards, saves nothing

    def _ended(self, *_: object) -> None:
        self.ended = True
        self.ask()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % self.training.accumulate:
            return  # gradients are half summed, and no checkpoint holds them
        step, now = trainer.global_step, time.monotonic()
        minutes = self.training.minutes
        if _any(trainer, self._asked):
            self.stopped_by = "ctrl-c"
        elif _any(trainer, minutes is not None and now - self._began >= 60 * minutes and step < self.training.steps):
            self.stopped_by = "clock"
        due = step - self._step >= self.training.save_steps or now - self._saved >= 60 * self.training.save_minutes
        if _any(trainer, bool(due or self.stopped_by or step >= self.training.steps)):
            self._check(pl_module, outputs, step)  # before good weights are written over
            if trainer.is_global_zero:
                with atomic_path(self.path, token="checkpoint", sync=True) as temporary:
                    trainer.save_checkpoint(temporary)
            else:
                trainer.save_checkpoint(self.path)  # all take part, the first one alone writes
            self._step, self._saved = step, time.monotonic()
        if self.stopped_by:
            trainer.should_stop = True

    def _check(self, module: lightning.LightningModule, outputs: Any, step: int) -> None:
        """See that the last loss is finite, and so are the weights: a finite loss may have gradients that are not."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        wrong = ""
        if isinstance(loss, torch.Tensor) and not bool(loss.isfinite().all()):
            wrong = f"the loss is {float(loss)}"
        elif not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            wrong = "there are weights that are not finite"
        if wrong:
            saved = f"{self.path} is from before" if self.path.exists() else "nothing was saved"
            raise UserError(
                f"at step {step} {wrong}; {saved}: train into another folder with a lower lr (where they are "
                "settings, clip_norm=1 and float32 help, too)"
            )


def _any(trainer: lightning.Trainer, here: bool) -> bool:
    """Whether it is so in any of the processes: their clocks differ, and they have to do the same."""
    return trainer.strategy.reduce_boolean_decision(here, all=False) if trainer.world_size > 1 else here


class _Listening:
    """While it lasts, the first Ctrl-C asks the keeper to save and stop; the second acts as ever."""

    def __init__(self, keeper: _Keeper) -> None:
        self.keeper = keeper
        self.here = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self.here:
            self.before = signal.signal(signal.SIGINT, self._heard)

    def _heard(self, *_: object) -> None:
        self.keeper.ask()
        signal.signal(signal.SIGINT, self.before)
        if self.keeper.show:
            with suppress(OSError):  # who reads it may have been stopped, too
                print(
                    "\nstopping, saved, after this step; a second Ctrl-C stops at once", file=sys.stderr, flush=True
                )

    def __exit__(self, *_: object) -> None:
        if self.here:
            signal.signal(signal.SIGINT, self.before)


class _Progress(lightning.Callback):
    """The project's own bar: steps, samples a second and the time that is left."""

    def __init__(self, training: Training, label: str, unit: str, show: bool) -> None:
        self.training, self.label, self.unit, self.show = training, label, unit, show
        self.bar: Bar[None] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        shown, each = self.show and trainer.is_global_zero, self.training.batch * self.training.accumulate
        self.bar = progress(
            self.training.steps, self.label, unit=self.unit, enabled=shown, counted="steps", each=each
        )
        self.bar.__enter__()
        self.bar.advance(trainer.global_step, worked=False)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.bar is not None and not (batch_idx + 1) % self.training.accumulate:
            self.bar.advance()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Lightning calls no teardown then, and a bar that goes on hides the terminal's cursor."""
        self._end(exception)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._end()

    def _end(self, error: BaseException | None = None) -> None:
        if self.bar is not None:
            self.bar.__exit__(error)
            self.bar = None


def _ignore_ctrl_c(_: int) -> None:
    """A terminal's Ctrl-C reaches all processes; those that prepare samples wait for the main one to end them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


class _quiet(warnings.catch_warnings):  # noqa: N801  # reads as a verb
    """Lightning without what it says about itself; its errors stay."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", module=r"lightning")
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
        os.environ.setdefault("POSSIBLE_USER_WARNINGS", "off")
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)
