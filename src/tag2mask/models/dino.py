"""DINOv2's image tower, frozen: patch features of an image without any text.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision"; registers: Darcet et al. 2024.

Blocks are those of CLIP's towers (pre-norm, here with an exact GELU and eps 1e-6): a LayerScale is a diagonal matrix
after a linear layer, and is multiplied into that layer when weights are read. Weights come as transformers keeps them
("facebook/dinov2-base", "facebook/dinov2-with-registers-base", ...) or as the authors' hub does
(dinov2_vitb14_pretrain.pth, dinov2_vitb14_reg4_pretrain.pth, ...). They bring positions to other grids in two ways:

=====================  ==========================================================
without registers      transformers: bicubic by size; the hub: bicubic by the factor (side + 0.1) / 37
with registers         both: bicubic by size, smoothed
=====================  ==========================================================

DINOv3 (rotary positions) is transformers' own module, where that is installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.containers import read_weights
from tag2mask.models.find_dino import find_dino, read_config, weight_file
from tag2mask.models.tower import Positions, patch_tokens, resample_positions, walk
from tag2mask.models.transformer import Block
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.run.device import find_device, find_precision
from tag2mask.types import UserError

__all__ = ["DINO", "DINOTower", "load_dino", "load_structure"]

HUB_POSITIONS = Positions("bicubic", offset=0.1)
TRANSFORMERS_POSITIONS = Positions("bicubic")
REGISTER_POSITIONS = Positions("bicubic", antialias=True)

_HEAD = 64  # channels of a head in every published size


class PatchTower(Protocol):
    """What ``DINO`` needs of a network."""

    patch: int
    width: int

    def patches(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised, sides multiples of the patch -> normed patch tokens (B, N, D)."""
        ...


class DINOTower(nn.Module):
    """DINOv2's transformer; a tower as ``models.tower`` has it, with ``registers`` after the class token.

    how: to bring positions to other grids.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        patch: int,
        native_grid: tuple[int, int],
        registers: int = 0,
        eps: float = 1e-6,
        how: Positions = TRANSFORMERS_POSITIONS,
    ) -> None:
        super().__init__()
        self.patch, self.width, self.native_grid, self.how = patch, width, native_grid, how
        self.conv1 = nn.Conv2d(3, width, patch, patch)
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.registers = nn.Parameter(torch.zeros(registers, width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + native_grid[0] * native_grid[1], width))
        self.resblocks = nn.ModuleList(Block(width, heads, "gelu") for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The transformer blocks, first to last."""
        return tuple(self.resblocks)  # type: ignore[arg-type]

    @property
    def trunk(self) -> tuple[nn.Module, ...]:
        """What comes before the last block."""
        return (self.conv1, *self.blocks[:-1])

    def positions(self, grid: tuple[int, int], how: Positions) -> Tensor:
        """Position embeddings for a grid (h, w): (1 + h w, D); registers have none."""
        return resample_positions(self.positional_embedding, self.native_grid, grid, how)

    def embed(self, pixels: Tensor, positions: Positions) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) standardised -> tokens (B, 1 + registers + N, D) entering the first block, and their grid."""
        x, grid = patch_tokens(self.conv1, pixels)  # (B, N, D)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
        x = x + self.positions(grid, positions).to(x.dtype)
        registers = self.registers.to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([x[:, :1], registers, x[:, 1:]], 1), grid

    forward = walk

    def patches(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> patch tokens after the final norm (B, N, D)."""
        tokens = self(pixels, positions=self.how).tokens
        return self.norm(tokens[:, 1 + len(self.registers) :].to(self.norm.weight.dtype))


class _Version3(nn.Module):
    """DINOv3 by transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.patch, self.width = int(model.config.patch_size), int(model.config.hidden_size)
        self.special = 1 + int(model.config.num_register_tokens)

    def patches(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> patch tokens after the final norm (B, N, D)."""
        out: Tensor = self.model(pixel_values=pixels.to(self.model.dtype)).last_hidden_state
        return out[:, self.special :]


@dataclass(frozen=True, eq=False)
class DINO:
    """A loaded DINO, frozen: a tower of ``methods.protocol``.

    name: what it was asked for by. sha256: of the weights' file. layout: "transformers" or "hub", which decides how
    positions are resampled. dtype: of the blocks.
    """

    model: Any
    name: str
    sha256: str
    layout: str
    device: torch.device
    dtype: torch.dtype

    @property
    def fingerprint(self) -> str:
        """Of all that decides its features, but for ``dtype`` and ``device``."""
        how = getattr(self.model, "how", None)
        return hashlib.sha256(repr((self.sha256, self.layout, how, MEAN, STD)).encode()).hexdigest()

    @property
    def patch(self) -> int:
        """Pixels on a side of a cell."""
        return int(self.model.patch)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Cells (h, w) of an image of ``size`` (H, W): whole patches, at least one."""
        return max(size[0] // self.patch, 1), max(size[1] // self.patch, 1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Patch features of images; sides are brought down to whole patches (WeCLIP+: 320 -> 308 pixels).

        Args:
            images: (B, 3, H, W) RGB, 0-255, on this device.

        Returns:
            (B, D, h, w) float32, unit length over D.
        """
        grid = self.grid((images.shape[2], images.shape[3]))
        size = (grid[0] * self.patch, grid[1] * self.patch)
        pixels = standardise(images, MEAN, STD)
        if tuple(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        tokens = self.model.patches(pixels).float()  # (B, N, D)
        return F.normalize(tokens, dim=-1).transpose(1, 2).unflatten(2, grid)


def load_dino(source: str | Path, *, device: str | torch.device = "cpu", precision: str = "float32") -> DINO:
    """A DINO from what is on this machine; nothing is downloaded.

    Args:
        source: a hub repository that is in the Hugging Face cache, a folder in Hugging Face layout, a file of the
            authors' hub, or its name there ("dinov2_vitb14") where torch.hub has cached it.
        device, precision: as ``load_clip`` takes them.

    Raises:
        UserError: nothing is found, or what is found is no DINO, or does not fit together.
    """
    place = find_device(str(device))
    dtype = find_precision(precision, place)
    path = find_dino(source)
    file, layout, model = _read(path)
    model = model.to(place, dtype).eval().requires_grad_(False)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return DINO(model, str(source), digest, layout, place, dtype)


def load_structure(name: str, sha256: str) -> Any:
    """The frozen tower that a network was trained on, on the processor, in float32.

    Args:
        name: what the DINO was asked for by.
        sha256: of its weights.

    Raises:
        UserError: nothing is found by that name, or other weights.
    """
    about = f"the network stands on the frozen tower of {name}"
    do = "restore it under that name, or write where it lies now as `dino` under `options` in its config.json"
    try:
        found = load_dino(name)
    except UserError as error:
        raise UserError(f"{about}, which is not saved with it and not at hand ({error}); {do}") from error
    if found.sha256 != sha256:
        raise UserError(f"{about} with sha256 {sha256[:12]}…, and what is there now has {found.sha256[:12]}…; {do}")
    return found.model


def _read(path: Path) -> tuple[Path, str, Any]:
    """The file of weights, its layout, and the model."""
    if path.is_file():
        state = read_weights(path).state
        return path, "hub", _fitting(path, lambda: _from_hub(state))
    config = read_config(path)
    kind = config.get("model_type")
    file = weight_file(path)
    if kind == "dinov3_vit":
        return file, "transformers", _Version3(_version_3(path))
    if kind not in ("dinov2", "dinov2_with_registers"):
        raise UserError(
            f"{path}: config.json says model_type {kind!r}; expected dinov2, dinov2_with_registers or dinov3_vit"
        )
    state = read_weights(file).state
    return file, "transformers", _fitting(file, lambda: _from_transformers(state, config))


def _fitting(path: Path, build: Any) -> DINOTower:
    try:
        tower: DINOTower = build()
    except KeyError as error:
        raise UserError(f"{path}: has no tensor {error}; expected the weights of a DINOv2 ViT") from error
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors do not fit together: {str(error).splitlines()[-1].strip()}") from error
    return tower


def _from_hub(state: Mapping[str, Tensor]) -> DINOTower:
    """From the names of the authors' code."""
    if any(".w12." in name for name in state):
        raise UserError("this is DINOv2's ViT-g, whose MLPs are gated; take ViT-S, ViT-B or ViT-L")
    registers = state["register_tokens"][0] if "register_tokens" in state else None
    width = state["cls_token"].shape[-1]
    how = HUB_POSITIONS if registers is None else REGISTER_POSITIONS
    tower = _empty(
        state["patch_embed.proj.weight"], state["pos_embed"], registers, width // _HEAD, _count(state), how
    )
    own = {
        "conv1.weight": state["patch_embed.proj.weight"],
        "conv1.bias": state["patch_embed.proj.bias"],
        "class_embedding": state["cls_token"][0],
        "positional_embedding": state["pos_embed"][0],
        "registers": state["cls_token"][0][:0] if registers is None else registers,
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    for i in range(len(tower.blocks)):
        at = f"blocks.{i}."
        qkv = {end: state[f"{at}attn.qkv.{end}"] for end in ("weight", "bias")}
        parts = {part: _linear(state, f"{at}{part}") for part in ("attn.proj", "mlp.fc1", "mlp.fc2")}
        scales = (state.get(f"{at}ls1.gamma"), state.get(f"{at}ls2.gamma"))
        norms = {part: _linear(state, f"{at}{part}") for part in ("norm1", "norm2")}
        own |= _block(i, qkv, parts["attn.proj"], parts["mlp.fc1"], parts["mlp.fc2"], norms, scales)
    return _filled(tower, own)


def _from_transformers(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> DINOTower:
    """From the names that transformers writes."""
    if config.get("use_swiglu_ffn"):
        raise UserError("this is DINOv2's ViT-g, whose MLPs are gated; take ViT-S, ViT-B or ViT-L")
    state = {name.split("dinov2_with_registers.")[-1].split("dinov2.")[-1]: value for name, value in state.items()}
    registers = state["embeddings.register_tokens"][0] if "embeddings.register_tokens" in state else None
    how = TRANSFORMERS_POSITIONS if registers is None else REGISTER_POSITIONS
    projection = "embeddings.patch_embeddings.projection"
    table = state["embeddings.position_embeddings"]
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    eps = float(config.get("layer_norm_eps", 1e-6))
    tower = _empty(state[f"{projection}.weight"], table, registers, heads, layers, how, eps)
    own = {
        "conv1.weight": state[f"{projection}.weight"],
        "conv1.bias": state[f"{projection}.bias"],
        "class_embedding": state["embeddings.cls_token"][0],
        "positional_embedding": table[0],
        "registers": table[0][:0] if registers is None else registers,
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for i in range(layers):
        at = f"encoder.layer.{i}."
        three = [_linear(state, f"{at}attention.attention.{part}") for part in ("query", "key", "value")]
        qkv = {end: torch.cat([part[end] for part in three]) for end in ("weight", "bias")}
        parts = {part: _linear(state, f"{at}{part}") for part in ("attention.output.dense", "mlp.fc1", "mlp.fc2")}
        scales = (state.get(f"{at}layer_scale1.lambda1"), state.get(f"{at}layer_scale2.lambda1"))
        norms = {part: _linear(state, f"{at}{part}") for part in ("norm1", "norm2")}
        own |= _block(i, qkv, parts["attention.output.dense"], parts["mlp.fc1"], parts["mlp.fc2"], norms, scales)
    return _filled(tower, own)


Linear = Mapping[str, Tensor]
"""Weight and bias of a layer."""


def _linear(state: Mapping[str, Tensor], name: str) -> Linear:
    return {end: state[f"{name}.{end}"] for end in ("weight", "bias")}


def _count(state: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def _empty(
    kernel: Tensor,
    table: Tensor,
    registers: Tensor | None,
    heads: int,
    layers: int,
    how: Positions,
    eps: float = 1e-6,
) -> DINOTower:
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side != table.shape[1] - 1:
        raise UserError(f"its table of positions has {table.shape[1] - 1} cells, which are no square grid")
    return DINOTower(
        width=kernel.shape[0],
        layers=layers,
        heads=heads,
        patch=kernel.shape[-1],
        native_grid=(side, side),
        registers=0 if registers is None else len(registers),
        eps=eps,
        how=how,
    )


def _block(
    index: int,
    qkv: Linear,
    out: Linear,
    fc1: Linear,
    fc2: Linear,
    norms: Mapping[str, Linear],
    scales: Sequence[Tensor | None],
) -> dict[str, Tensor]:
    """The tensors of one block under our names, its LayerScales multiplied into the layers before them."""

    def scaled(layer: Linear, by: Tensor | None) -> Linear:
        if by is None:
            return layer
        return {"weight": layer["weight"].float() * by.float()[:, None], "bias": layer["bias"].float() * by.float()}

    named: dict[str, Linear] = {
        "ln_1": norms["norm1"],
        "ln_2": norms["norm2"],
        "attn.out_proj": scaled(out, scales[0]),
        "mlp.c_fc": fc1,
        "mlp.c_proj": scaled(fc2, scales[1]),
    }
    found = {
        f"resblocks.{index}.{name}.{end}": value for name, layer in named.items() for end, value in layer.items()
    }
    return found | {f"resblocks.{index}.attn.in_proj_{end}": value for end, value in qkv.items()}


def _filled(tower: DINOTower, own: Mapping[str, Tensor]) -> DINOTower:
    tower.load_state_dict({name: value.float() for name, value in own.items()})
    return tower


def _version_3(folder: Path) -> Any:
    try:
        from transformers import DINOv3ViTModel
    except ImportError as error:
        raise UserError(
            f'{folder}: is a DINOv3, which needs another package: pip install "tag2mask[transformers]"'
        ) from error
    try:
        return DINOv3ViTModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).float()
    except Exception as error:  # the library's own, of many kinds
        raise UserError(f"{folder}: was not read: {str(error).splitlines()[0]}; fetch it again") from error
