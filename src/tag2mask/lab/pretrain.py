"""Pretraining storybook-clip: render, teach, train, watch, keep. One folder, which the same command resumes it with.

last.ckpt      the state of the training
watch.csv      what the weights knew now and then, beside the floors
best/, clip/   Hugging Face layout: the weights with the best watched CAM, and the last ones
best/watch.json  the row of watch.csv that the best ones have
recipe.json    the settings, digests of the weights it began with, of the teacher and of the captions' words, and the
               edition of the drawings
cache/, log/   the rendered scenes, unless they lie elsewhere, and the losses
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tag2mask.lab.bench import WATCH_SEED, Bench
from tag2mask.lab.cache import Rendered, render_cache
from tag2mask.lab.contrastive import ContrastiveCLIP
from tag2mask.lab.pretrain_recipe import Pretrain, check
from tag2mask.lab.running import Running
from tag2mask.lab.teacher import check_teacher, teach
from tag2mask.lab.towers import build_clip, warm_start
from tag2mask.lab.views import Pairs
from tag2mask.lab.vocabulary import (
    CONTEXT,
    END,
    PAD,
    START,
    build_tokenizer,
    vocabulary,
    words_version,
    write_tokenizer,
)
from tag2mask.lab.watch import Watch, read_best, read_watch
from tag2mask.models.clip import CLIPModel
from tag2mask.models.save import save_clip
from tag2mask.models.text import FeatureCache, Tokenizer
from tag2mask.models.weights import CLIP, MEAN, STD, load_clip
from tag2mask.run.checkpoint import LAST
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.lock import locked
from tag2mask.run.progress import minutes_left
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.settings import check_own, claim, plain
from tag2mask.run.training import Stopped, fit
from tag2mask.run.warn import warn
from tag2mask.storybook.scenes import CLASSES, EDITION
from tag2mask.types import UserError

WATCHED_BY = "initial"
BEST = "watch.json"
"""In ``best``: the row of watch.csv that is these weights'."""


@dataclass(frozen=True)
class Pretrained:
    """What a call of ``pretrain`` left: step of steps, the folder of the last weights and of the best ones.

    top: the row of ``watched`` that is the best weights'.
    """

    step: int
    steps: int
    clip: Path
    best: Path | None
    top: dict[str, float] | None
    watched: tuple[dict[str, float], ...]

    @classmethod
    def read(cls, out: Path, step: int, steps: int) -> Pretrained:
        """From the folder of the training."""
        top = read_best(out / "best" / BEST)
        best = None if top is None else out / "best"
        return cls(step, steps, out / "clip", best, top, tuple(read_watch(out / "watch.csv")))

    def text(self) -> str:
        """For people, in a few lines."""
        lines = [f"step {self.step} of {self.steps}; weights: {self.clip}"]
        if self.step < self.steps:
            lines.append("the same command resumes it")
        top = self.top
        if top is not None:
            where = f"on {top['scenes']:.0f} scenes, at step {top['step']:.0f}"
            lines.append(f"best initial CAM {top[WATCHED_BY]:.1f} mIoU {where}: {self.best}")
            floors = ", ".join(f"{name[6:]} {value:.1f}" for name, value in top.items() if name.startswith("floor_"))
            lines.append(f"floors: {floors}")
        lines.append(f"to use them: --clip {self.clip}; to measure them: tag2mask storybook measure {self.clip}")
        return "\n".join(lines)


def pretrain(
    out: Path,
    recipe: Pretrain,
    running: Running | None = None,
    *,
    workers: int = 0,
    watch: int = 1000,
    watch_scenes: int = 60,
    save_steps: int = 1000,
) -> Pretrained:
    """Train a CLIP on pictures and captions; called again, it resumes where it was.

    Args:
        out: the folder of this training.
        recipe: all that decides what the weights become.
        running: where, and how long.
        workers: processes that prepare batches.
        watch: measure every so many steps, on ``watch_scenes`` scenes; 0 never does.
        save_steps: a checkpoint every so many steps, and every five minutes.

    Raises:
        UserError: an impossible recipe, a teacher that is not there or lacks a class, or a folder that cannot be
            written, or that holds another training: of other settings, or of other code that draws scenes or writes
            captions.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    began = time.monotonic()
    running = running or Running()
    check(recipe)
    find_precision(recipe.precision, find_device(running.device))
    model, started_from = _model(recipe)
    taught_by = check_teacher(recipe.teacher, CLASSES) if recipe.dense else None
    settings = {
        "init_sha256": started_from,
        "teacher_sha256": taught_by,
        "drawing": EDITION,
        "words": words_version(),
    }
    check_own(out, "recipe.json")
    with locked(out, f"The training in {out}"):
        begun = (out / LAST).exists() or (out / "best").exists()  # weights may be watched before they are saved
        claim(out / "recipe.json", {**plain(recipe), **settings}, begun=begun)
        pairs = _pairs(running.cache or out / "cache", recipe, running.progress)
        module = ContrastiveCLIP(recipe, model, compiled=running.compiled)
        watching = [_watch(out, recipe, watch, watch_scenes, running)] if watch and watch_scenes else []
        left = minutes_left(running.minutes, began)
        training = recipe.training(device=running.device, workers=workers, minutes=left, save_steps=save_steps)
        try:
            trainer = fit(
                *(module, pairs, training, out),
                label="pretrain",
                unit="images",
                callbacks=watching,
                show=running.progress,
            )
        except Stopped:
            write_clip(out / "clip", module.weights)
            raise
        write_clip(out / "clip", module.weights)
        return Pretrained.read(out, trainer.global_step, recipe.steps)


def write_clip(folder: Path, model: CLIPModel) -> None:
    """Weights and tokenizer, as ``load_clip`` and transformers read them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    words = vocabulary()
    save_clip(folder, model, start=words[START], end=words[END], pad=words[PAD])


def in_training(model: CLIPModel, device: torch.device) -> CLIP:
    """A network that is being trained, as the methods take one."""
    words, name = vocabulary(), "in training"
    reader = Tokenizer(build_tokenizer(), CONTEXT, len(words), words[END])
    return CLIP(model, name, name, MEAN, STD, device, torch.float32, reader, FeatureCache(None))


def _pairs(cache: Path, recipe: Pretrain, progress: bool) -> Pairs:
    """The scenes and, where the recipe has dense lessons, their pseudo masks; what is missing is made."""
    with show_progress(recipe.scenes, "render", unit="scenes", enabled=progress) as bar:
        scenes = render_cache(cache, Rendered(recipe.scenes, recipe.largest), progress=bar.advance)
    masks = None
    if recipe.dense:
        with show_progress(recipe.scenes, "teach", unit="scenes", enabled=progress) as bar:
            masks = teach(scenes, recipe.teacher, CLASSES, progress=bar.advance)
    return Pairs(scenes, recipe.seed, recipe.crop, recipe.colour, masks)


def _watch(out: Path, recipe: Pretrain, every: int, scenes: int, running: Running) -> Watch:
    return Watch(
        out / "watch.csv",
        every,
        _Measure(recipe, scenes, running.device),
        scenes=scenes,
        by=WATCHED_BY,
        best=out / "best" / BEST,
        keep=lambda best: write_clip(out / "best", best),
        say=lambda line: print(line, file=sys.stderr, flush=True) if running.progress else None,
    )


class _Measure:
    """What is watched; scenes are drawn and floors are measured at the first look."""

    def __init__(self, recipe: Pretrain, n: int, device: str) -> None:
        self.recipe, self.n, self.device = recipe, n, find_device(device)
        self.floors: dict[str, float] = {}

    def __call__(self, model: CLIPModel) -> Mapping[str, float]:
        clip = in_training(model, self.device)
        if not self.floors:
            self.bench = Bench.draw(clip, self.n, seed=WATCH_SEED)
            fresh = build_clip(self.recipe).to(self.device).eval().requires_grad_(False)
            blank = self.bench.measure(clip=in_training(fresh, self.device))
            self.floors = {
                "floor_initial": blank.initial,
                "floor_caa": blank.maps,
                "floor_everything": self.bench.everything_foreground(),
            }
        figures = self.bench.measure(clip=clip)
        names = {"map_class": "class", "map_patches": "patches"}
        maps = {name: self.bench.tag_map(clip=clip, readout=readout) for name, readout in names.items()}
        return {**maps, "initial": figures.initial, "caa": figures.maps, **self.floors}


def _model(recipe: Pretrain) -> tuple[CLIPModel, str | None]:
    """The network to begin with, and the digest of the weights that it was taken from."""
    model = build_clip(recipe)
    if recipe.init is None:
        return model, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
        try:
            other = load_clip(recipe.init, cache=None)
        except UserError as error:
            raise UserError(f"init: {error}; expected storybook-clip, or a folder of `storybook pretrain`") from error
    fresh = warm_start(model, other)
    if fresh:
        named = ", ".join([*fresh[:4], *(["..."] if len(fresh) > 4 else [])])
        warn(
            f"{recipe.init} has nothing that fits {len(fresh)} parameters and words; these start from random "
            f"weights: {named}"
        )
    return model, other.sha256
