"""storybook-dino: an image transformer that teaches itself on pictures of scenes, without captions, tags or masks.

Source: DINO (Caron et al. 2021) for the pair of student and teacher, whose weights are the student's average, and for
views of several sizes; iBOT (Zhou et al. 2022) for patches that are hidden from the student; DINOv2 (Oquab et al.
2023) for shares of the codes that are evened out by Sinkhorn's rounds instead of a running centre. Our own: codes lie
in the space of the features that ship, so that what is alike in code is alike by cosine, which is what prototypes go
by; and the two views of a place teach each other, patch by patch.

``self_distil_recipe`` says how, ``pretrain_dino`` runs it; here is what a step does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as lightning
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tag2mask.lab.self_distil_recipe import SelfDistil
from tag2mask.lab.views import find, look, window
from tag2mask.models.average import follow
from tag2mask.models.dino import DINOTower
from tag2mask.ops.image import MEAN, STD
from tag2mask.run.sampling import Draw, sample_generator, step_generator
from tag2mask.run.schedule import adamw


class ViewsOf(NamedTuple):
    """One picture (H, W, 3) uint8 and how it is seen: views (V, 9) as ``views.look`` takes them, large ones first."""

    step: int
    image: Tensor
    views: Tensor


class Pictures:
    """Pictures alone, each seen in several windows; ``pictures[draw]`` is one.

    images: (n, H, W, 3) uint8, may be a memory map.
    """

    def __init__(self, images: NDArray[np.uint8], recipe: SelfDistil) -> None:
        self.images, self.recipe = images, recipe

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> ViewsOf:
        """The picture of this draw, and two large and ``few`` small views of it."""
        recipe, rng = self.recipe, sample_generator(self.recipe.seed, draw)
        rows, columns = self.images.shape[1:3]
        place = _part(rng, recipe.place, (0.0, 0.0, rows, columns))
        shares = (recipe.large_share,) * 2 + (recipe.small_share,) * recipe.few
        views = []
        for share in shares:
            top, left, height, width = _part(rng, share, place)
            dice = rng.random(5).tolist()
            shifts = [recipe.colour * (2 * roll - 1) for roll in dice[1:]]
            sides = [height / rows, width / columns, top / rows, left / columns]
            views.append([*sides, float(dice[0] < 0.5), *shifts])
        return ViewsOf(
            draw.step, torch.from_numpy(np.array(self.images[draw.sample])), torch.tensor(views, dtype=torch.float32)
        )

    @staticmethod
    def collate(samples: Sequence[ViewsOf]) -> dict[str, Any]:
        """A batch: image (B, H, W, 3) uint8, views (B, V, 9), and step."""
        return {
            "step": samples[0].step,
            "image": torch.stack([sample.image for sample in samples]),
            "views": torch.stack([sample.views for sample in samples]),
        }


Box = tuple[float, float, float, float]
"""Top, left, height and width, in pixels."""


def _part(rng: np.random.Generator, share: tuple[float, float], of: Box) -> Box:
    """A window in a box, of a share of its area in this range, at most a quarter wider than high, or higher."""
    top, left, rows, columns = of
    dice = rng.random(4)
    area = (share[0] + (share[1] - share[0]) * dice[0]) * rows * columns
    wider = 1.25 ** (2 * dice[1] - 1)
    height, width = min(rows, math.sqrt(area / wider)), min(columns, math.sqrt(area * wider))
    return top + dice[2] * (rows - height), left + dice[3] * (columns - width), height, width


class Learner(nn.Module):
    """A tower, codes in the space of its features, and the token that stands for a hidden patch.

    Args:
        tower: the transformer.
        codes: K.
    """

    def __init__(self, tower: DINOTower, codes: int) -> None:
        super().__init__()
        width = tower.norm.normalized_shape[0]
        self.tower = tower
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.codes = nn.Parameter(torch.randn(codes, width))

    def forward(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Features of unit length: (B, 3, H, W) standardised -> (B, 1 + N, D), the class token's first.

        hidden: (B, N) bool, patches that are not seen.
        """
        tower = self.tower
        x, _ = tower.embed(pixels, tower.how)  # (B, 1 + N, D)
        if hidden is not None:
            own = self.mask_token + tower.positions(_grid(pixels, tower.patch), tower.how)[1:]  # (N, D)
            x = torch.cat([x[:, :1], torch.where(hidden[..., None], own.to(x.dtype), x[:, 1:])], 1)
        for block in tower.blocks:
            x, _ = block(x)
        return F.normalize(tower.norm(x), dim=-1)

    def cosines(self, features: Tensor) -> Tensor:
        """Of features (..., D) of unit length with the codes: (..., K)."""
        return features @ F.normalize(self.codes, dim=-1).T


def make_learner(recipe: SelfDistil) -> Learner:
    """The untrained network of a recipe; its weights depend on the recipe alone."""
    grid = recipe.side // recipe.patch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tower = DINOTower(
            width=recipe.width,
            layers=recipe.layers,
            heads=recipe.heads,
            patch=recipe.patch,
            native_grid=(grid, grid),
        )
        learner = Learner(tower, recipe.codes)
        deep = (2 * recipe.layers) ** -0.5  # what is added to the path by each of so many layers
        for each in (tower.class_embedding, tower.positional_embedding, learner.mask_token):
            nn.init.trunc_normal_(each, std=0.02)
        for block in tower.blocks:
            nn.init.normal_(block.attn.out_proj.weight, std=deep * recipe.width**-0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * recipe.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=deep * recipe.width**-0.5)
            for bias in (block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
                nn.init.zeros_(bias)
    return learner


class SelfDistilled(lightning.LightningModule):
    """Lightning's side of it: a batch of ``Pictures`` in, a loss out."""

    def __init__(self, recipe: SelfDistil, *, compiled: bool = False) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = make_learner(recipe).train()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        # a compiled function is no module: it leaves the names in the checkpoint as they are
        self.learn = torch.compile(_run) if compiled else _run

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted sum of the losses."""
        losses = self.losses(batch)
        loss = torch.stack([*losses.values()]).sum()
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()})
        self.log("loss", loss.detach())
        return loss

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Each loss, times its weight."""
        recipe, views = self.recipe, batch["views"]
        step, count = int(batch["step"]), views.shape[1]
        sizes = [(recipe.side,) * 2] * 2 + [(recipe.small,) * 2] * (count - 2)
        grids = [(size[0] // recipe.patch, size[1] // recipe.patch) for size in sizes]
        pixels = [
            (look(batch["image"], views[:, v], size) - self.mean) / self.std for v, size in enumerate(sizes)
        ]  # (B, 3, h, w) each
        large, small = torch.cat(pixels[:2]), torch.cat(pixels[2:]) if count > 2 else None
        with torch.no_grad():
            cosines = self.teacher.cosines(self.learn(self.teacher, large, None))
            taught = self._targets(cosines, len(views))  # two of (B, 1 + N, K)
        hidden = hidden_patches(step, recipe.seed, len(large), grids[0], recipe.hidden)
        hidden = None if hidden is None else hidden.to(large.device)
        seen = [*self.learn(self.student, large, hidden).chunk(2)]
        if small is not None:
            seen += self.learn(self.student, small, None).chunk(count - 2)
        logs = [
            (self.student.cosines(each).float() / recipe.student_temperature).log_softmax(-1) for each in seen
        ]  # (B, 1 + n, K) each
        whole, aligned = [], []
        for v, own in enumerate(logs):
            for t, target in enumerate(taught):
                if t == v:
                    continue
                whole.append(-(target[:, 0] * own[:, 0]).sum(-1).mean())
                there, shown = sample_targets(target[:, 1:], grids[t], views[:, t], views[:, v], grids[v])
                each = -(there * own[:, 1:]).sum(-1)  # (B, n)
                aligned.append((each * shown).sum() / shown.sum().clamp_min(1))
        losses = {
            "whole": recipe.whole_weight * torch.stack(whole).mean(),
            "aligned": recipe.aligned_weight * torch.stack(aligned).mean(),
            "spread": recipe.spread_weight * crowding(torch.cat(seen[:2])[:, 1:].flatten(0, 1)),
        }
        if hidden is not None:
            each = -(torch.cat(taught)[:, 1:] * torch.cat(logs[:2])[:, 1:]).sum(-1)  # (2 B, N)
            losses["hidden"] = recipe.hidden_weight * (each * hidden).sum() / hidden.sum().clamp_min(1)
        return losses

    def _targets(self, cosines: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """What the teacher says of the two large views: (2 B, 1 + N, K) -> two of the same over B, sums of 1."""
        logits = cosines.float() / self.recipe.teacher_temperature
        whole = even_shares(logits[:, 0])[:, None]
        patches = even_shares(logits[:, 1:].flatten(0, 1)).unflatten(0, (len(logits), -1))
        first, second = torch.cat([whole, patches], 1).split(batch)
        return first, second

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step of the student; then the teacher follows."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        follow(self.teacher, self.student, self.recipe.ema, self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up, then a cosine to nothing."""
        recipe = self.recipe
        return adamw(recipe, self.student.parameters())


def _run(learner: Learner, pixels: Tensor, hidden: Tensor | None) -> Tensor:
    out: Tensor = learner(pixels, hidden)
    return out


def _grid(pixels: Tensor, patch: int) -> tuple[int, int]:
    return pixels.shape[2] // patch, pixels.shape[3] // patch


@torch.no_grad()
def even_shares(logits: Tensor, rounds: int = 3) -> Tensor:
    """Softmax of logits (M, K), evened out until every code has the same share of the rows: (M, K), rows sum to 1.

    Without it all rows would end in one code. Sinkhorn's rounds, each over codes and then over rows, in logarithms.
    """
    for _ in range(rounds):
        logits = logits - logits.logsumexp(0)
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()


def crowding(features: Tensor) -> Tensor:
    """How far features (M, D) of unit length are from lying in all directions alike: 0 where they do, at most log D.

    The logarithm of D times the mean squared cosine of two of them.
    """
    with torch.autocast(features.device.type, enabled=False):
        moments = features.float().T @ features.float() / len(features)  # (D, D)
        return (features.shape[1] * moments.square().sum()).log()


def hidden_patches(step: int, seed: int, batch: int, grid: tuple[int, int], share: float) -> Tensor | None:
    """Which patches each picture of a batch hides, in blots: (B, N) bool, so many in each; None hides none."""
    count = round(grid[0] * grid[1] * share)
    if not count:
        return None
    coarse = tuple(max(2, side // 3) for side in grid)
    dice = torch.rand(batch, 1, *coarse, generator=step_generator(seed, step))
    smooth = F.interpolate(dice, grid, mode="bilinear", align_corners=False).flatten(1)  # (B, N)
    return torch.zeros_like(smooth, dtype=torch.bool).scatter_(1, smooth.topk(count, 1).indices, True)


def sample_targets(
    shares: Tensor, grid: tuple[int, int], there: Tensor, here: Tensor, own: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """What one view says of the places that the patches of another show.

    Args:
        shares: (B, N, K), of the patches of the first view, whose grid is ``grid`` (h, w).
        there, here: (B, 9), the two views of each picture.
        own: (h, w), the grid of the second.

    Returns:
        (B, n, K), between patches in proportion, and (B, n) float: 1 where the first view shows the place, else 0.
    """
    places = find(window(here, own), there)  # (B, h, w, 2)
    square = shares.transpose(1, 2).unflatten(2, grid)  # (B, K, h, w)
    found = F.grid_sample(square, places, padding_mode="border", align_corners=False)  # (B, K, h', w')
    shown = (places.abs() <= 1).all(-1).flatten(1)  # (B, n)
    return found.flatten(2).transpose(1, 2), shown.float()
