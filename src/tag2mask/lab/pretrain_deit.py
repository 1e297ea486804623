"""storybook-deit: a small image transformer trained on scenes' tags and on what storybook-resnet says of each view.

Source: DeiT (Touvron et al. 2021): an image transformer learns sooner beside a convolutional teacher's answers. Here
the teacher's probabilities and the tags are mixed into one target for the class token; there is no token of its own
for the teacher. Where things are is not told: the teacher's class maps stay out, or seeds would be its own.

The training is ``TagTraining``, the data those of storybook-resnet; masks are read only to say how good it is.
"""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tag2mask.lab import classifier as resnet
from tag2mask.lab.cache import Rendered
from tag2mask.lab.classifier import ClassifierRecipe, augment
from tag2mask.lab.figures import measured_once, recipe_rows
from tag2mask.lab.running import Running, claimed
from tag2mask.lab.teacher import check_teacher
from tag2mask.lab.train_classifier import TaggedPictures
from tag2mask.models.classifier import Classifier, load_classifier
from tag2mask.models.containers import read_weights
from tag2mask.models.mctformer import MCTformer, Shape
from tag2mask.models.mctformer_files import read_start
from tag2mask.models.save import save_vit
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.metrics import average_precision
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.files import write_atomic
from tag2mask.run.progress import Advance, minutes_left, no_progress
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.sampling import Training
from tag2mask.run.schedule import adamw
from tag2mask.run.settings import plain
from tag2mask.run.tag_training import TagBatch, TagTraining
from tag2mask.run.training import fit
from tag2mask.storybook.render import kind_of, scene_seed
from tag2mask.storybook.scenes import CLASSES, draw_scene
from tag2mask.types import UserError

OFFSET = 0.1
"""How positions are brought to other grids: as MCTformer's V1 and V2, which start from these weights."""


@dataclass(frozen=True)
class DeitRecipe:
    """How storybook-deit is made.

    width, layers, heads, patch, side: the transformer; its positions are learned for side x side pixels.
    scenes, size, crop, zoom, jitter, batch, steps, warmup, lr, weight_decay: as storybook-resnet's recipe has them;
    crop in whole patches.
    teacher: a classifier that knows all classes, a folder or "storybook-resnet". soft: its share of the target,
    beside the tags. precision: float32 or bfloat16.
    init: a folder that such a training wrote, of the same shape, to begin with; None draws weights.
    """

    width: int = 192
    layers: int = 6
    heads: int = 3
    patch: int = 8
    side: int = 128
    scenes: int = 8000
    size: tuple[int, int] = (144, 192)
    crop: tuple[int, int] = (96, 128)
    zoom: tuple[float, float] = (0.7, 1.0)
    jitter: float = 0.3
    teacher: str = "storybook-resnet"
    soft: float = 0.5
    batch: int = 64
    steps: int = 2000
    warmup: int = 100
    lr: float = 1e-3
    weight_decay: float = 0.05
    precision: str = "float32"
    seed: int = 0
    init: str | None = None

    @property
    def views(self) -> ClassifierRecipe:
        """How pictures are drawn and seen."""
        same = ("scenes", "size", "crop", "zoom", "jitter", "batch", "steps", "warmup", "lr", "weight_decay", "seed")
        return ClassifierRecipe(**{name: getattr(self, name) for name in same})


def check(recipe: DeitRecipe) -> None:
    """Refuse a recipe that cannot be run, before anything is drawn.

    Raises:
        UserError: naming what does not fit.
    """
    resnet.check(recipe.views)
    counts = ("width", "layers", "heads", "patch", "side")
    if small := [name for name in counts if getattr(recipe, name) < 1]:
        raise UserError(f"{', '.join(f'{name} {getattr(recipe, name)}' for name in small)}: expected at least 1")
    fits = {
        "a width in multiples of heads": recipe.width % recipe.heads == 0,
        "side and both sides of crop in multiples of patch": not any(
            each % recipe.patch for each in (recipe.side, *recipe.crop)
        ),
        "0 <= soft <= 1": 0 <= recipe.soft <= 1,
    }
    wrong = [expected for expected, kept in fits.items() if not kept]
    if wrong:
        raise UserError(f"{recipe}: expected {'; '.join(wrong)}")


class TaggedViT(nn.Module):
    """An image transformer whose class token scores classes: (B, 3, H, W) standardised -> logits (B, C)."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.tower = MCTformer(1, shape, patch_cam=False, offset=OFFSET)
        self.norm = nn.LayerNorm(shape.width, shape.eps)
        self.head = nn.Linear(shape.width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        tokens = self.tower(pixels, positions=self.tower.how).tokens  # (B, 1 + N, D)
        return self.head(self.norm(tokens[:, 0]))


def make_vit(recipe: DeitRecipe) -> TaggedViT:
    """The untrained network of a recipe; its weights depend on the recipe alone."""
    grid = recipe.side // recipe.patch
    shape = Shape(recipe.width, recipe.layers, recipe.heads, recipe.patch, (grid, grid))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = TaggedViT(shape, len(CLASSES))
        nn.init.trunc_normal_(network.head.weight, std=0.02)
        nn.init.zeros_(network.head.bias)
    return network


@torch.no_grad()
def soft_tags(teacher: Classifier, pixels: Tensor, tags: Tensor, soft: float) -> Tensor:
    """Tags (B, C) mixed with what the teacher sees in pixels (B, 3, H, W): the target of each class, in [0, 1].

    soft: the teacher's share; 0 asks it nothing.
    """
    if not soft:
        return tags
    order = torch.tensor([teacher.names.index(name) for name in CLASSES], device=pixels.device)
    return torch.lerp(tags, teacher(pixels)[:, order].float().sigmoid(), soft)


def deit_training(
    recipe: DeitRecipe, network: TaggedViT, teacher: Classifier, *, compiled: bool = False
) -> TagTraining:
    """The training of ``network`` on batches of ``TaggedPictures``, by AdamW under a warm-up and a cosine."""

    def look(batch: tuple[Tensor, Tensor, Tensor]) -> TagBatch:
        pictures, tags, dice = batch
        pixels = augment(pictures, dice, recipe.views)
        return pixels, soft_tags(teacher.to(pixels.device), pixels, tags, recipe.soft), None

    def optimizer() -> Any:
        return adamw(recipe, network.parameters())

    return TagTraining(network.train(), look, optimizer, compiled=compiled)


@torch.inference_mode()
def tag_precision(
    network: nn.Module,
    n: int,
    *,
    size: tuple[int, int] = (192, 256),
    split: str = "val",
    seed: int = 0,
    progress: Advance = no_progress,
) -> float:
    """Mean average precision (%) of the tags of the first ``n`` scenes of a split."""
    logits, shown = torch.empty(n, len(CLASSES)), torch.zeros(n, len(CLASSES), dtype=torch.bool)
    for i in range(n):
        scene = draw_scene(scene_seed(split, seed, i), size, CLASSES, kind_of(split))
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]  # (1, 3, H, W)
        logits[i] = network(standardise(image, MEAN, STD))[0]
        shown[i, [tag - 1 for tag in scene.tags]] = True
        progress()
    return 100 * float(average_precision(logits, shown).nanmean())


@dataclass(frozen=True)
class DeitFigures:
    """Tag mAP (%) of the network, of its teacher and of random weights, on the same scenes."""

    network: float
    teacher: float
    untrained: float
    scenes: int

    def text(self) -> str:
        """For people, in a line."""
        return (
            f"tag mAP {self.network:.1f} on {self.scenes} scenes (teacher {self.teacher:.1f}, floor: untrained "
            f"{self.untrained:.1f})"
        )


def pretrain_deit(
    out: Path | str,
    recipe: DeitRecipe | None = None,
    running: Running | None = None,
    *,
    scenes: int = 200,
    workers: int | None = None,
) -> DeitFigures | None:
    """Train an image transformer on drawn scenes' tags and a teacher's; called again on the same folder, it resumes.

    Leaves config.json, model.safetensors and MODEL_CARD.md in ``out``, which MCTformer starts from (``--set
    weights=``); beside them ``training``, which may be deleted once all is done.

    Args:
        out: the folder; new, empty, or of this training.
        recipe: default: ``DeitRecipe()``.
        running: where, and how long.
        scenes: of the val split, that the result is measured on.
        workers: processes that draw scenes; None is one a core.

    Returns:
        How good it is, or None if time was up before the last step.

    Raises:
        UserError: an impossible recipe; the folder cannot be written, or holds other things, or the training of
            another recipe or of other drawings; there is no such device or teacher, or it lacks a class; or
            ``init`` is not there, or is of another shape.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    began = time.monotonic()
    out, recipe, running = Path(out), recipe or DeitRecipe(), running or Running()
    work = out / "training"
    check(recipe)
    find_precision(recipe.precision, find_device(running.device))
    taught_by = check_teacher(recipe.teacher, CLASSES)
    network, begun = started(recipe)
    settings = {**plain(recipe), "teacher_sha256": taught_by, "init_sha256": begun}
    wanted = Rendered(recipe.scenes, recipe.size, seed=recipe.seed)
    with claimed(out, settings, wanted, running, scenes=scenes, workers=workers) as drawn:
        teacher, _ = load_classifier(recipe.teacher)
        module = deit_training(recipe, network, teacher.requires_grad_(False), compiled=running.compiled)
        left = minutes_left(running.minutes, began)
        training = Training(
            *(recipe.steps, recipe.batch),
            seed=recipe.seed,
            device=running.device,
            precision=recipe.precision,
            minutes=left,
            save_steps=200,
        )
        data = TaggedPictures.of(drawn, CLASSES, recipe.seed)
        trainer = fit(module, data, training, work, label="train", unit="pictures", show=running.progress)
        if trainer.global_step < recipe.steps:
            return None
        parts = (network.tower, network.norm, network.head, CLASSES)
        with tempfile.TemporaryDirectory() as place:
            save_vit(Path(place), *parts)
            saved, digest = load_vit(Path(place), recipe)  # in half precision: what is kept is what is measured
        kept = work / f"measured-{digest[:16]}-{scenes}.json"
        found = measured(kept, saved, teacher.cpu(), recipe, scenes, running.progress)
        write_atomic(out / "MODEL_CARD.md", card(recipe, network, found, trainer.strategy.root_device.type).encode())
        save_vit(out, *parts)
        return found


def started(recipe: DeitRecipe) -> tuple[TaggedViT, str | None]:
    """The network that a training begins with, and the sha256 of the weights in ``init``, if it names any.

    Raises:
        UserError: ``init`` is none that this training wrote, or of another shape.
    """
    fresh = make_vit(recipe)
    if recipe.init is None:
        return fresh, None
    shape = read_start(recipe.init).shape
    if shape != fresh.tower.shape:
        raise UserError(f"init: {recipe.init} has {shape}; expected that of the recipe, {fresh.tower.shape}")
    try:
        return load_vit(Path(recipe.init), recipe)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"init: {recipe.init} does not score {len(CLASSES)} classes; expected a folder that `tag2mask storybook "
            "pretrain-deit` wrote"
        ) from error


def load_vit(folder: Path, recipe: DeitRecipe) -> tuple[TaggedViT, str]:
    """The network of a recipe with the weights that ``save_vit`` wrote, in evaluation mode; and their sha256."""
    start = read_start(folder)
    others = read_weights(start.path).state
    state = {f"tower.{name}": value for name, value in start.state.items()}
    for ours, theirs in (("norm", "vit.layernorm"), ("head", "classifier")):
        state |= {f"{ours}.{end}": others[f"{theirs}.{end}"] for end in ("weight", "bias")}
    network = make_vit(recipe)
    network.load_state_dict(state)
    return network.eval(), start.sha256


def measured(
    file: Path, network: TaggedViT, teacher: Classifier, recipe: DeitRecipe, scenes: int, progress: bool = True
) -> DeitFigures:
    """The figures, from the file where they are there: they take a minute."""

    def measure() -> DeitFigures:
        ordered = _Ordered(teacher, [teacher.names.index(name) for name in CLASSES])
        with show_progress(3 * scenes, "measure", unit="scenes", enabled=progress) as bar:
            network_, teacher_, blank = (
                tag_precision(each.eval(), scenes, progress=bar.advance)
                for each in (network, ordered, make_vit(recipe))
            )
        return DeitFigures(network_, teacher_, blank, scenes)

    return measured_once(file, lambda kept: DeitFigures(**kept), measure)


class _Ordered(nn.Module):
    """A classifier's scores in another order of classes."""

    def __init__(self, network: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.network, self.order = network, order

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.network(pixels)
        return scores[:, self.order]


def card(recipe: DeitRecipe, network: TaggedViT, found: DeitFigures, device: str) -> str:
    """What MODEL_CARD.md says: origin, recipe, figures beside their floors, limits."""
    parameters = sum(p.numel() for p in network.parameters())
    settings = recipe_rows(recipe)
    return f"""# storybook-deit

A small image transformer, {recipe.layers} layers of width {recipe.width}, patches of {recipe.patch} pixels:
{parameters:,} parameters, float16, in transformers' layout. It was trained from random weights on drawn Storybook
scenes, their tags and a teacher's answers, never on masks or class maps, and stands where DeiT-S stands in the
papers. It knows no photographs.

Made by `tag2mask storybook pretrain-deit`, on {platform.machine()} ({device}), PyTorch {torch.__version__}.

| tag mAP on {found.scenes} scenes of the val split, 256x192 | % |
|---|---|
| this network | {found.network:.1f} |
| its teacher | {found.teacher:.1f} |
| random weights of the same shape | {found.untrained:.1f} |

| recipe | |
|---|---|
{settings}
| pictures seen | {recipe.steps * recipe.batch:,} |
| optimiser | AdamW, warm-up, cosine to zero |
"""
