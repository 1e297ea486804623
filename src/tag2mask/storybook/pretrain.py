"""Contrastive training of a small CLIP on pictures and captions of Storybook; masks are never read.

Radford et al. 2021, on our own towers. Three readings of a picture may be held against the captions: the class
token, the mean of the patch tokens (what CLIP-ES differentiates), and the patches that fit a text (PACL's idea).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from tag2mask.models.average import follow
from tag2mask.models.clip import CLIPModel, Positions, TextTransformer, Transformer, VisionTransformer
from tag2mask.models.clip import resample_positions as resample
from tag2mask.models.weights import CLIP, MEAN, STD
from tag2mask.run.sampling import Training, step_generator
from tag2mask.run.schedule import warm_cosine
from tag2mask.storybook.losses import aligned_similarity, alike, contrastive, cosine, pairwise
from tag2mask.storybook.views import look
from tag2mask.storybook.vocabulary import CONTEXT, vocabulary
from tag2mask.types import UserError

MOST_SCALE = math.log(100)

Size = tuple[int, int]


@dataclass(frozen=True)
class Pretrain:
    """The whole recipe. Equal recipes on one machine's processor give equal weights.

    width, layers, heads, patch, side, embed: the image tower; its positions are learned for side x side pixels.
    text_width, text_layers, text_heads: the text tower.
    scenes: pictures that are rendered once, at the largest size. sizes: (H, W) in pixels; each batch takes the next.
    crop: the least share of a side that a view keeps. colour: the most that light and colours are shifted.
    drop: share of the patches that a batch leaves out. class_weight, patch_weight, aligned_weight: of the three
    readings' losses. sharpness: of the aligned reading's look at the patches.
    loss: over the batch's captions ("softmax") or pair by pair ("sigmoid").
    lr, warmup, weight_decay: AdamW's, with a cosine to nothing over ``steps``. ema: decay of the averaged weights
    that are kept instead of the last; 0 keeps the last.
    init: an existing CLIP, a folder or "storybook-clip", from which all that fits is taken.
    """

    width: int = 192
    layers: int = 8
    heads: int = 3
    patch: int = 8
    side: int = 192
    embed: int = 128
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    scenes: int = 60_000
    sizes: tuple[Size, ...] = ((192, 192), (144, 192), (192, 144), (128, 160))
    crop: float = 0.9
    colour: float = 0.2
    drop: float = 0.5
    class_weight: float = 0.5
    patch_weight: float = 1.0
    aligned_weight: float = 0.5
    sharpness: float = 10.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    steps: int = 5000
    batch: int = 512
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 300
    weight_decay: float = 0.1
    ema: float = 0.0
    precision: str = "float32"
    seed: int = 0
    init: str | None = None

    @property
    def largest(self) -> Size:
        """The size of the rendered scenes: (H, W)."""
        return max(height for height, _ in self.sizes), max(width for _, width in self.sizes)

    def training(self, **how: Any) -> Training:
        """Steps, batch and seed of this recipe for the Trainer; ``how`` says the rest."""
        return Training(
            steps=self.steps,
            batch=self.batch,
            accumulate=self.accumulate,
            seed=self.seed,
            precision=self.precision,
            **how,
        )


def check(recipe: Pretrain) -> None:
    """Refuse a recipe that cannot be run, before anything is rendered.

    Raises:
        UserError: naming what does not fit.
    """
    small = [name for name in _COUNTS if getattr(recipe, name) < 1]
    if small:
        raise UserError(f"{_named(recipe, small)}: expected at least 1")
    odd = [name for name in _SHARES if not 0 <= getattr(recipe, name) < math.inf]  # false for nan, too
    odd += [name for name in ("lr", "sharpness") if not 0 < getattr(recipe, name) < math.inf]
    odd += [name for name in ("seed", "warmup") if not 0 <= getattr(recipe, name) < 2**63]  # what torch takes
    if odd:
        raise UserError(
            f"{_named(recipe, odd)}: expected finite numbers, lr and sharpness above 0, the others at least 0"
        )
    wrong = [size for size in recipe.sizes if size[0] % recipe.patch or size[1] % recipe.patch or min(size) < 16]
    if wrong or not recipe.sizes:
        raise UserError(
            f"sizes {list(recipe.sizes)}: expected heights and widths of at least 16, in multiples of {recipe.patch}"
        )
    if recipe.side % recipe.patch or recipe.width % recipe.heads or recipe.text_width % recipe.text_heads:
        raise UserError(
            f"side {recipe.side} has to be a multiple of the patch {recipe.patch}, width {recipe.width} of "
            f"heads {recipe.heads}, text_width {recipe.text_width} of text_heads {recipe.text_heads}"
        )
    if not 0 <= recipe.drop < 1 or not 0 < recipe.crop <= 1 or not 0 <= recipe.ema < 1:
        raise UserError(
            f"drop {recipe.drop}, crop {recipe.crop}, ema {recipe.ema}: expected 0 <= drop < 1, 0 < crop <= 1, "
            "0 <= ema < 1"
        )
    if not recipe.class_weight + recipe.patch_weight + recipe.aligned_weight:
        raise UserError("class_weight, patch_weight and aligned_weight are 0: expected one above")
    if recipe.loss not in ("softmax", "sigmoid"):
        raise UserError(f"loss {recipe.loss!r}: expected softmax or sigmoid")


_COUNTS = (
    *("width", "layers", "heads", "patch", "side", "embed", "text_width", "text_layers", "text_heads"),
    *("scenes", "steps", "batch", "accumulate"),
)
_SHARES = ("colour", "class_weight", "patch_weight", "aligned_weight", "weight_decay")


def _named(recipe: Pretrain, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {getattr(recipe, name)}" for name in names)


# --- the network ---------------------------------------------------------------------------------------


def build_clip(recipe: Pretrain) -> CLIPModel:
    """The recipe's towers with fresh weights, drawn as CLIP's own are, from the recipe's seed."""
    grid = recipe.side // recipe.patch
    vision = VisionTransformer(
        width=recipe.width,
        layers=recipe.layers,
        heads=recipe.heads,
        patch=recipe.patch,
        native_grid=(grid, grid),
        embed=recipe.embed,
    )
    text = TextTransformer(
        vocabulary=len(vocabulary()),
        context=CONTEXT,
        width=recipe.text_width,
        layers=recipe.text_layers,
        heads=recipe.text_heads,
        embed=recipe.embed,
    )
    model = CLIPModel(vision, text)
    _draw(model, torch.Generator().manual_seed(recipe.seed))
    return model


@torch.no_grad()
def _draw(model: CLIPModel, generator: torch.Generator) -> None:
    vision, text = cast(VisionTransformer, model.vision), model.text

    def normal(parameter: Tensor, std: float) -> None:
        parameter.copy_(std * torch.randn(parameter.shape, generator=generator))

    normal(vision.conv1.weight, vision.conv1.weight[0].numel() ** -0.5)
    normal(vision.class_embedding, vision.class_embedding.numel() ** -0.5)
    for parameter in (vision.positional_embedding, vision.proj):
        normal(parameter, len(vision.class_embedding) ** -0.5)
    normal(text.token_embedding.weight, 0.02)
    normal(text.positional_embedding, 0.01)
    normal(text.text_projection, text.text_projection.shape[0] ** -0.5)
    for tower in (vision.transformer, text.transformer):
        _draw_tower(tower, normal)


def _draw_tower(tower: Transformer, normal: Any) -> None:
    blocks = tower.blocks
    for block in blocks:
        width = block.attn.out_proj.in_features
        deep = (2 * len(blocks)) ** -0.5  # what is added to the path by each of so many layers
        normal(block.attn.in_proj_weight, width**-0.5)
        normal(block.attn.out_proj.weight, width**-0.5 * deep)
        normal(block.mlp.c_fc.weight, (2 * width) ** -0.5)
        normal(block.mlp.c_proj.weight, width**-0.5 * deep)
        for bias in (block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
            nn.init.zeros_(bias)


@torch.no_grad()
def warm_start(model: CLIPModel, clip: CLIP) -> list[str]:
    """Take from another CLIP all that fits; what is left fresh is named.

    Parameters of the same name and shape are copied, so of more or fewer layers the first ones; word embeddings go
    by word, positions are brought to the grid.

    Raises:
        UserError: nothing fits, as the other is of another width.
    """
    theirs = dict(clip.model.state_dict())
    vision, other = cast(VisionTransformer, model.vision), clip.model.vision
    name = "vision.positional_embedding"
    if isinstance(other, VisionTransformer) and theirs[name].shape[1] == vision.positional_embedding.shape[1]:
        theirs[name] = resample(theirs[name], other.native_grid, vision.native_grid, Positions())
    fresh = []
    for name, own in model.state_dict().items():
        if name == "text.token_embedding.weight":
            fresh += _take_words(own, theirs[name], clip.tokenizer.backend.get_vocab())
        elif name == "text.positional_embedding" and own.shape[1:] == theirs[name].shape[1:]:
            rows = min(len(own), len(theirs[name]))
            own[:rows] = theirs[name][:rows]
        elif name in theirs and theirs[name].shape == own.shape:
            own.copy_(theirs[name])
        else:
            fresh.append(name)
    if "vision.conv1.weight" in fresh:
        raise UserError(
            f"{clip.name} cannot start this recipe: its patches are of another size or width; "
            "take its width and patch, or start without init"
        )
    return fresh


def _take_words(own: Tensor, theirs: Tensor, words: Mapping[str, int]) -> list[str]:
    """Copy the rows of words that both know; those that stay fresh are named."""
    if own.shape[1] != theirs.shape[1]:
        return ["text.token_embedding.weight"]
    fresh = []
    for word, row in vocabulary().items():
        if word in words:
            own[row] = theirs[words[word]]
        else:
            fresh.append(f"word {word}")
    return fresh


def kept_patches(step: int, seed: int, batch: int, patches: int, drop: float) -> Tensor | None:
    """Which patches each picture of a batch keeps, ascending: (B, n) int64; None keeps all."""
    if not drop:
        return None
    keep = max(1, round(patches * (1 - drop)))
    dice = torch.rand(batch, patches, generator=step_generator(seed, step))
    return dice.argsort(1)[:, :keep].sort(1).values


def encode_image(vision: VisionTransformer, pixels: Tensor, keep: Tensor | None) -> Tensor:
    """The last block's tokens, class token first, without the final norm: (B, 3, H, W) -> (B, 1 + n, D).

    keep: (B, n), the patches that the network sees, or None for all.
    """
    x, _ = vision.embed(pixels, Positions())  # (B, 1 + N, D)
    if keep is not None:
        rows = torch.cat([keep.new_zeros(len(keep), 1), keep + 1], 1)  # (B, 1 + n)
        x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))  # (B, 1 + n, D)
    for block in vision.blocks:
        x, _ = block(x)
    return x


def readings(vision: VisionTransformer, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class token (B, E), mean of patch tokens (B, E) and each patch (B, n, E), projected; tokens (B, 1 + n, D).

    The mean is taken after the final norm and before the projection, as CLIP-ES takes it.
    """
    normed = vision.ln_post(tokens)
    each = normed @ vision.proj  # (B, 1 + n, E)
    return each[:, 0], normed[:, 1:].mean(1) @ vision.proj, each[:, 1:]


# --- the training --------------------------------------------------------------------------------------


class ContrastiveCLIP(lightning.LightningModule):
    """Lightning's side of it: a batch of ``views.Pairs`` in, a loss out."""

    def __init__(self, recipe: Pretrain, model: CLIPModel, *, compiled: bool = False) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = model.train().requires_grad_(True)
        self.bias = nn.Parameter(torch.tensor(-10.0), requires_grad=recipe.loss == "sigmoid")
        self.average = copy.deepcopy(model).requires_grad_(False) if recipe.ema else None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        # a compiled function is no module: it leaves the names in the checkpoint as they are
        self.encode = torch.compile(encode_image) if compiled else encode_image

    @property
    def weights(self) -> CLIPModel:
        """What is measured and kept: the averaged weights, where they are averaged."""
        return self.model if self.average is None else self.average

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted sum of the readings' losses."""
        recipe, step = self.recipe, int(batch["step"])
        size = recipe.sizes[step % len(recipe.sizes)]
        pixels = (look(batch["image"], batch["view"], size) - self.mean) / self.std  # (B, 3, h, w)
        vision = cast(VisionTransformer, self.model.vision)
        patches = size[0] * size[1] // recipe.patch**2
        keep = kept_patches(step, recipe.seed, len(pixels), patches, recipe.drop)
        tokens = self.encode(vision, pixels, None if keep is None else keep.to(pixels.device))
        whole, mean, each = readings(vision, tokens)
        texts = self.model.text(batch["ids"], batch["end"])  # (B, E)
        positive = alike(batch["meaning"])
        losses = {}
        if recipe.class_weight:
            losses["class"] = recipe.class_weight * self._loss(cosine(whole, texts), positive)
        if recipe.patch_weight:
            losses["patch"] = recipe.patch_weight * self._loss(cosine(mean, texts), positive)
        if recipe.aligned_weight:
            similarity = aligned_similarity(each, texts, recipe.sharpness)
            losses["aligned"] = recipe.aligned_weight * self._loss(similarity, positive)
        loss = torch.stack([*losses.values()]).sum()
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()})
        self.log_dict({"loss": loss.detach(), "scale": self.model.logit_scale.detach().exp()})
        return loss

    def _loss(self, similarity: Tensor, positive: Tensor) -> Tensor:
        scale = self.model.logit_scale.exp()
        if self.recipe.loss == "sigmoid":
            return pairwise(similarity, positive, scale, self.bias)
        return contrastive(similarity, positive, scale)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step; then the temperature is kept within CLIP's bound, and the average takes its share."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MOST_SCALE)
            if self.average is not None:
                follow(self.average, self.model, self.recipe.ema, self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        """AdamW, no decay on norms, biases and the temperature; warm-up, then a cosine to nothing."""
        recipe = self.recipe
        own = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in own if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_cosine(step, recipe.steps, recipe.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
