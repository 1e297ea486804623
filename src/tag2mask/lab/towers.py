"""The towers of a small CLIP: fresh or begun from another's weights, and how a training reads a picture by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tag2mask.lab.pretrain_recipe import Pretrain
from tag2mask.lab.vocabulary import CONTEXT, vocabulary
from tag2mask.models.clip import CLIPModel, TextTransformer, VisionTransformer
from tag2mask.models.tower import BILINEAR
from tag2mask.models.transformer import Transformer
from tag2mask.models.weights import CLIP
from tag2mask.run.sampling import step_generator
from tag2mask.types import UserError


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
    _draw(vision, text, torch.Generator().manual_seed(recipe.seed))
    return CLIPModel(vision, text)


@torch.no_grad()
def _draw(vision: VisionTransformer, text: TextTransformer, generator: torch.Generator) -> None:
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
    name = "vision.positional_embedding"
    if name in theirs:  # a ResNet has its own in the pool
        theirs[name] = clip.model.vision.positions(model.vision.native_grid, BILINEAR)
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


class Encoded(NamedTuple):
    """What the image tower makes of a picture, class token first, without the final norm.

    tokens: (B, 1 + n, D), of the last block. values: (B, 1 + n, D), of its value path.
    attention: (B, 1 + n, 1 + n), the mean over all heads and blocks, where it was asked for.
    """

    tokens: Tensor
    values: Tensor
    attention: Tensor | None


def encode_image(
    vision: VisionTransformer, pixels: Tensor, keep: Tensor | None, *, attention: bool = False
) -> Encoded:
    """Of pixels (B, 3, H, W); keep: (B, n), the patches that the network sees, or None for all."""
    x, _ = vision.embed(pixels, BILINEAR)  # (B, 1 + N, D)
    if keep is not None:
        rows = torch.cat([keep.new_zeros(len(keep), 1), keep + 1], 1)  # (B, 1 + n)
        x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))  # (B, 1 + n, D)
    seen = []
    for block in vision.blocks:
        before = x
        x, weights = block(before, need_weights=attention)
        if weights is not None:
            seen.append(weights)
    values = block.attn.value(block.ln_1(before))
    return Encoded(x, values, torch.stack(seen).mean(0) if seen else None)


class Readings(NamedTuple):
    """A picture as the captions are held against it, in their space.

    whole: (B, E), the class token. mean: (B, E), of the patch tokens. each: (B, n, E), the patch tokens.
    values: (B, n, E), the patches on the last block's value path.
    """

    whole: Tensor
    mean: Tensor
    each: Tensor
    values: Tensor


def readings(vision: VisionTransformer, encoded: Encoded) -> Readings:
    """The mean is taken after the final norm and before the projection, as CLIP-ES takes it."""
    normed = vision.ln_post(encoded.tokens)
    each = normed @ vision.proj  # (B, 1 + n, E)
    mean = normed[:, 1:].mean(1) @ vision.proj
    return Readings(each[:, 0], mean, each[:, 1:], vision.ln_post(encoded.values[:, 1:]) @ vision.proj)
