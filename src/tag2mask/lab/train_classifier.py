"""Running the training of storybook-resnet: scenes drawn once, a Trainer that can be stopped, weights with a card."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tag2mask.lab.cache import Rendered, SceneCache
from tag2mask.lab.classifier import (
    DICE,
    ClassifierRecipe,
    Measured,
    augment,
    check,
    make_classifier,
    measure,
)
from tag2mask.lab.figures import measured_once, recipe_rows
from tag2mask.lab.running import Running, claimed
from tag2mask.models.classifier import Classifier, load_classifier, save_classifier
from tag2mask.run.device import find_device
from tag2mask.run.progress import minutes_left
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.sampling import Draw, Training, sample_generator
from tag2mask.run.schedule import adamw
from tag2mask.run.settings import plain
from tag2mask.run.tag_training import TagBatch, TagTraining
from tag2mask.run.training import fit
from tag2mask.types import UserError


@dataclass(frozen=True)
class TaggedPictures:
    """What the Trainer draws its samples from.

    pictures: (N, H, W, 3) uint8, may be a memory map. tags: (N, C) bool.
    """

    pictures: NDArray[np.uint8]
    tags: NDArray[np.bool_]
    seed: int

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Picture (3, H, W) uint8, tags (C,) float32, and the numbers that decide how it is seen."""
        _, index = draw
        picture = torch.from_numpy(np.array(self.pictures[index])).permute(2, 0, 1)
        tags = torch.from_numpy(self.tags[index]).float()
        dice = sample_generator(self.seed, draw).random(DICE, dtype=np.float32)
        return picture, tags, torch.from_numpy(dice)

    @classmethod
    def of(cls, cache: SceneCache, classes: Sequence[str], seed: int) -> TaggedPictures:
        """The pictures of a cache, with the names of what each holds as tags."""
        tags = np.array([[name in facts.names for name in classes] for facts in cache.facts])
        return cls(cache.images, tags, seed)

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """The same with a batch in front."""
        pictures, tags, dice = zip(*samples, strict=True)
        return torch.stack(pictures), torch.stack(tags), torch.stack(dice)


def tag_training(recipe: ClassifierRecipe, model: Classifier, *, compiled: bool = False) -> TagTraining:
    """The training of ``model`` on batches of ``TaggedPictures``, by AdamW under a warm-up and a cosine."""

    def look(batch: tuple[Tensor, Tensor, Tensor]) -> TagBatch:
        pictures, tags, dice = batch
        return augment(pictures, dice, recipe), tags, None

    def optimizer() -> Any:
        return adamw(recipe, model.parameters())

    return TagTraining(model.train(), look, optimizer, compiled=compiled)


@dataclass(frozen=True)
class ClassifierFigures:
    """What ``pretrain_resnet`` ended in: the network's figures, and those of random weights of the same shape."""

    network: Measured
    untrained: Measured

    def text(self) -> str:
        """For people, in two lines."""
        network, blank = self.network, self.untrained
        return (
            f"tag mAP {100 * network.tag_map:.1f} (floor: untrained {100 * blank.tag_map:.1f})\n"
            f"class maps {100 * network.miou:.1f} mIoU at {network.threshold:.2f} (floors: untrained "
            f"{100 * blank.miou:.1f}, everything foreground {100 * network.everything:.1f})"
        )


def pretrain_resnet(
    out: Path | str,
    recipe: ClassifierRecipe | None = None,
    running: Running | None = None,
    *,
    scenes: int = 300,
    workers: int | None = None,
) -> ClassifierFigures | None:
    """Train a classifier on drawn scenes' tags; called again on the same folder, it resumes.

    Leaves config.json, model.safetensors and MODEL_CARD.md in ``out``, which ``load_classifier`` takes; beside them
    ``training``, which may be deleted once all is done.

    Args:
        out: the folder; new, empty, or of this training.
        recipe: default: ``ClassifierRecipe()``.
        running: where, and how long.
        scenes: of the val split, that the result is measured on.
        workers: processes that draw scenes; None is one a core.

    Returns:
        How good it is, or None if time was up before the last step.

    Raises:
        UserError: an impossible recipe; the folder cannot be written, or holds other things, or the training of
            another recipe or of other drawings; there is no such device; or ``init`` is not there, or of other
            classes or another width.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    began = time.monotonic()
    out, recipe, running = Path(out), recipe or ClassifierRecipe(), running or Running()
    work = out / "training"
    check(recipe)
    find_device(running.device)
    model, started_from = _start(recipe)
    module = tag_training(recipe, model, compiled=running.compiled)
    settings = {**plain(recipe), "init_sha256": started_from}
    wanted = Rendered(recipe.scenes, recipe.size, seed=recipe.seed, classes=recipe.classes)
    with claimed(out, settings, wanted, running, scenes=scenes, workers=workers) as drawn:
        data = TaggedPictures.of(drawn, recipe.classes, recipe.seed)
        left = minutes_left(running.minutes, began)
        training = Training(
            *(recipe.steps, recipe.batch), seed=recipe.seed, device=running.device, minutes=left, save_steps=200
        )
        trainer = fit(module, data, training, work, label="train", unit="pictures", show=running.progress)
        if trainer.global_step < recipe.steps:
            return None
        save_classifier(model.cpu().eval(), work / "weights", "")
        classifier, digest = load_classifier(work / "weights")  # in half precision: what is kept is what is measured
        kept = work / f"measured-{digest[:16]}-{scenes}.json"
        found = _measured(kept, classifier, data, recipe, scenes, running.progress)
        where = trainer.strategy.root_device.type
        save_classifier(classifier, out, card(recipe, started_from, classifier, found, where))
        return found


def _measured(
    file: Path, classifier: Classifier, data: TaggedPictures, recipe: ClassifierRecipe, scenes: int, progress: bool
) -> ClassifierFigures:
    """The figures of a network and of its floor, from the file where they are there: they take minutes."""

    def both() -> ClassifierFigures:
        with show_progress(2 * scenes, "measure", unit="scenes", enabled=progress) as bar:
            network = measure(classifier, scenes, progress=bar.advance)
            untrained = measure(_settled(make_classifier(recipe), data, recipe), scenes, progress=bar.advance)
        return ClassifierFigures(network, untrained)

    return measured_once(
        file, lambda kept: ClassifierFigures(**{name: Measured(**row) for name, row in kept.items()}), both
    )


def card(
    recipe: ClassifierRecipe, started_from: str | None, classifier: Classifier, found: ClassifierFigures, device: str
) -> str:
    """What MODEL_CARD.md says: origin, recipe, figures beside their floors, limits."""
    trained, blank = found.network, found.untrained
    began = "random weights" if started_from is None else f"the weights {started_from[:12]} (sha256)"
    parameters = sum(p.numel() for p in classifier.parameters())
    settings = recipe_rows(recipe)
    return f"""# storybook-resnet

A ResNet-50 of width {recipe.width} (the public one has 64) with one score for each of {len(recipe.classes)} classes:
{parameters:,} parameters, convolutions in float16. It was trained from {began} on drawn Storybook scenes and
their tags, never on masks, and stands where ImageNet weights stand in the papers. It knows no photographs.

Made by `tag2mask storybook pretrain-resnet`, on {platform.machine()} ({device}), PyTorch {torch.__version__}.

| measured on {trained.scenes} scenes of the val split, 256x192 | tag mAP | class maps, mIoU at the best threshold* |
|---|---|---|
| this network | {trained.tag_map:.3f} | {100 * trained.miou:.1f} % (threshold {trained.threshold:.2f}) |
| random weights of the same shape | {blank.tag_map:.3f} | {100 * blank.miou:.1f} % |
| every pixel is the first tag | {trained.chance:.3f} (a guess) | {100 * trained.everything:.1f} % |

\\* chosen with ground truth, as in the papers' tables. Class maps are of scales 1, 0.5, 1.5 and 2 with mirror images.

| recipe | |
|---|---|
{settings}
| pictures seen | {recipe.steps * recipe.batch:,} |
| loss | multi-label soft margin |
| optimiser | AdamW, warm-up, cosine to zero |
"""


def _start(recipe: ClassifierRecipe) -> tuple[Classifier, str | None]:
    """The network to begin with, and the digest of the weights that it was taken from."""
    model = make_classifier(recipe)
    if recipe.init is None:
        return model, None
    try:
        other, digest = load_classifier(recipe.init)
    except UserError as error:
        raise UserError(f"init: {error}") from error
    there, asked = other.backbone.layout, model.backbone.layout
    if there.width != asked.width:
        raise UserError(
            f"init: {recipe.init} is of width {there.width}, the recipe of width {asked.width}; "
            f"give --width {there.width}"
        )
    if (other.names, there) != (model.names, asked):
        raise UserError(
            f"init: {recipe.init} knows {', '.join(other.names)}, with {there}; expected {', '.join(model.names)}, "
            f"with {asked}"
        )
    model.load_state_dict(other.state_dict())
    return model, digest


def _settled(model: Classifier, data: TaggedPictures, recipe: ClassifierRecipe) -> Classifier:
    """Random weights whose norms have seen pictures: a floor that differs from the network by its learning alone."""
    count = min(len(data), 32)
    for step in range(20):
        pictures, _, dice = data.collate([data[Draw(step, (step * count + i) % len(data))] for i in range(count)])
        with torch.no_grad():
            model.train()(augment(pictures, dice, recipe))
    return model.eval()
