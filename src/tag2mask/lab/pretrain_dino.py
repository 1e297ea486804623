"""Running the training of storybook-dino: scenes drawn once, a Trainer that can be stopped, weights with a card."""

from __future__ import annotations

import dataclasses
import platform
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from tag2mask.lab.bench import WATCH_SEED
from tag2mask.lab.cache import Rendered
from tag2mask.lab.contacts import Rightness, rightness, touching_scenes
from tag2mask.lab.figures import measured_once, recipe_rows
from tag2mask.lab.running import Running, claimed
from tag2mask.lab.self_distil import Pictures, SelfDistilled, make_learner
from tag2mask.lab.self_distil_recipe import SelfDistil, check
from tag2mask.models.dino import DINO, DINOTower, load_dino
from tag2mask.models.save import save_dino
from tag2mask.models.weights import load_clip
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.files import write_atomic
from tag2mask.run.progress import minutes_left
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.settings import plain
from tag2mask.run.training import fit


@dataclass(frozen=True)
class DINOFigures:
    """Prototypes of super-classes on a DINO's features, beside the maps that they are made of, and random weights."""

    network: Rightness
    maps: Rightness
    untrained: Rightness

    @property
    def helps(self) -> bool:
        """Whether boundaries can learn from it: prototypes are right more often near contacts than the maps."""
        return self.network.contacts > self.maps.contacts

    def text(self) -> str:
        """For people, in a few lines."""
        rows = {"prototypes": self.network, "maps": self.maps, "floor: untrained": self.untrained}
        lines = [f"super-classes right near contacts, in {self.maps.scenes} scenes:"]
        lines += [f"  {name} {row.contacts:.1f} % (everywhere {row.everywhere:.1f} %)" for name, row in rows.items()]
        lines.append(
            "CD-CLIP's boundaries can learn from it"
            if self.helps
            else "its prototypes are right less often than the maps: CD-CLIP's boundaries cannot learn from it"
        )
        return "\n".join(lines)


def pretrain_dino(
    out: Path | str,
    recipe: SelfDistil | None = None,
    running: Running | None = None,
    *,
    clip: str = "storybook-clip",
    scenes: int = 60,
    seed: int = WATCH_SEED,
    workers: int | None = None,
) -> DINOFigures | None:
    """Let an image transformer teach itself on drawn scenes; called again on the same folder, it resumes.

    Leaves config.json, model.safetensors and MODEL_CARD.md in ``out``, which ``load_dino`` takes; beside them
    ``training``, which may be deleted once all is done.

    Args:
        out: the folder; new, empty, or of this training.
        recipe: default: ``SelfDistil()``.
        running: where, and how long.
        clip: whose maps the prototypes of the measurement are made of; no training sees it.
        scenes: so many of the val split are looked at, of which those with two super-classes or more count.
        seed: of these scenes.
        workers: processes that draw scenes; None is one a core.

    Returns:
        How good it is, or None if time was up before the last step.

    Raises:
        UserError: an impossible recipe; the folder cannot be written, or holds other things, or the training of
            another recipe or of other drawings; or there is no such device or CLIP.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    began = time.monotonic()
    out, recipe, running = Path(out), recipe or SelfDistil(), running or Running()
    work = out / "training"
    check(recipe)
    find_precision(recipe.precision, find_device(running.device))
    wanted = Rendered(recipe.scenes, recipe.size)
    with claimed(out, plain(recipe), wanted, running, scenes=scenes, workers=workers) as drawn:
        module = SelfDistilled(recipe, compiled=running.compiled)
        training = recipe.training(
            device=running.device, minutes=minutes_left(running.minutes, began), save_steps=200
        )
        data = Pictures(drawn.images, recipe)
        trainer = fit(module, data, training, work, label="train", unit="pictures", show=running.progress)
        if trainer.global_step < recipe.steps:
            return None
        save_dino(work / "weights", module.teacher.tower)
        dino = load_dino(work / "weights")  # in half precision: what is kept is what is measured
        kept = work / f"measured-{dino.sha256[:16]}-{scenes}-{seed}.json"
        found = _measured(kept, dino, recipe, clip, scenes, seed, running.progress)
        write_atomic(
            out / "MODEL_CARD.md", card(recipe, dino.model, found, trainer.strategy.root_device.type).encode()
        )
        save_dino(out, module.teacher.tower)
        return found


def measure_dino(
    features: DINO, clip: str, scenes: int, seed: int, untrained: DINOTower, *, progress: bool = True
) -> DINOFigures:
    """Figures of a DINO, of the maps, and of random weights of the same shape, on the same scenes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
        maker = load_clip(clip, device="cpu")
    with show_progress(scenes, "measure", unit="scenes", enabled=progress) as bar:
        touching = touching_scenes(maker, scenes, seed=seed, progress=bar.advance)
    blank = dataclasses.replace(features, model=untrained.eval().requires_grad_(False))
    return DINOFigures(
        network=rightness(touching, features.features),
        maps=rightness(touching),
        untrained=rightness(touching, blank.features),
    )


def _measured(
    file: Path, dino: DINO, recipe: SelfDistil, clip: str, scenes: int, seed: int, progress: bool
) -> DINOFigures:
    """The figures, from the file where they are there: they take a minute."""
    return measured_once(
        file,
        lambda kept: DINOFigures(**{name: Rightness(**row) for name, row in kept.items()}),
        lambda: measure_dino(dino, clip, scenes, seed, make_learner(recipe).tower, progress=progress),
    )


def card(recipe: SelfDistil, tower: DINOTower, found: DINOFigures, device: str) -> str:
    """What MODEL_CARD.md says: origin, recipe, figures beside their floors, limits."""
    parameters = sum(p.numel() for p in tower.parameters())
    settings = recipe_rows(recipe)
    rows = {
        "prototypes on this network": found.network,
        "the maps that they are made of": found.maps,
        "prototypes on random weights of the same shape": found.untrained,
    }
    figures = "\n".join(f"| {name} | {row.contacts:.1f} % | {row.everywhere:.1f} % |" for name, row in rows.items())
    views = recipe.steps * recipe.batch * (2 + recipe.few)
    return f"""# storybook-dino

A small image transformer, {recipe.layers} layers of width {recipe.width}, patches of {recipe.patch} pixels:
{parameters:,} parameters, float16, in DINOv2's layout. It taught itself on drawn Storybook scenes, without captions,
tags or masks, and stands where DINOv2 stands in the papers. It knows no photographs.

Made by `tag2mask storybook pretrain-dino`, on {platform.machine()} ({device}), PyTorch {torch.__version__}.

| super-classes right, {found.maps.scenes} scenes with two or more, 256x192 | near contacts | everywhere |
|---|---|---|
{figures}

| recipe | |
|---|---|
{settings}
| pictures seen | {recipe.steps * recipe.batch:,} |
| views seen | {views:,} |
| optimiser | AdamW, warm-up, cosine to zero |
"""
