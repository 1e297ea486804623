"""What MCTformer starts from, and its checkpoints: DeiT in timm's names and in transformers', CLIP's image tower,
released MCTformers and ours.

All are brought to the names of ``models.mctformer`` with one class token, or C, and whatever no part of the network
is (a classifier, the final norm, a distillation token) is left out, and said.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from tag2mask.models.clip import VisionTransformer
from tag2mask.models.clip_files import read_clip
from tag2mask.models.containers import prefix_of, read_weights
from tag2mask.models.embedded import STORYBOOK_CLIP, embedded
from tag2mask.models.find_clip import WEIGHTS, cached_clip
from tag2mask.models.mctformer import MCTformer, Shape
from tag2mask.models.public_resnet import pixel_labels
from tag2mask.models.scenes_only import warn_of_scenes
from tag2mask.models.state import fit_state
from tag2mask.models.vit_names import TIMM, TRANSFORMERS, from_timm, from_transformers
from tag2mask.ops.image import MEAN, STD
from tag2mask.run.files import read_object, write_atomic
from tag2mask.run.warn import warn
from tag2mask.types import UserError
from tag2mask.words import did_you_mean

Version = Literal["v1", "v2", "plus"]
RANDOM = "random"
"""In the place of weights: all are drawn."""
HEAD_CHANNELS = 64
"""Channels a head in every DeiT; the weights do not tell."""
TOWER = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.", "transformer.")
"""How the names of the transformer's own tensors begin."""


MODEL_TYPE = "tag2mask-mctformer"
_OWN = "tag2mask"  # the key of our metadata

OFFSET = 0.1
"""Of V1's and V2's positions (``tower.Positions``), against rounding; MCTformer+ has none."""

SAID: dict[Version, str] = {"v1": "V1, without PatchCAM", "v2": "V2", "plus": "+ (MCTformer+)"}
ASKED: dict[Version, str] = {
    "v1": "--set version=v1, with variant paper or released",
    "v2": "--set version=v2, with variant paper or released",
    "plus": "--set variant=plus, without a version",
}
"""What the versions are called."""


@dataclass(frozen=True)
class Start:
    """Weights that MCTformer starts from, or is.

    state: by our names; class_embedding is (S, D) with S class tokens, of which an MCTformer has one for each class.
    version: "v1", "v2" or "plus" of an MCTformer, None of what is none. names: of its classes, where the file says
    them. mean, std: pixel statistics that it was trained with. supervision: what the file says of it.
    """

    state: dict[str, Tensor]
    shape: Shape
    path: Path
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    version: Version | None = None
    names: tuple[str, ...] | None = None
    supervision: str = "tags"


def read_start(source: str | Path, *, heads: int | None = None) -> Start:
    """The weights that ``source`` names, whatever their make.

    Args:
        source: "storybook-clip"; a folder with config.json, or the name of one in the Hugging Face cache (a ViT or
            DeiT of transformers, or a CLIP with an image transformer); or a file: DeiT in timm's names or
            transformers', a released MCTformer, or one of ours.
        heads: of a file that does not tell; None: one for 64 channels, as in every DeiT.

    Raises:
        UserError: nothing there, or it is something else.
    """
    path = _located(source)
    if path.is_file():
        return _read_file(path, heads, MEAN, STD)
    config = _read_config(path)
    if config.get("model_type") == "clip":
        return _from_clip(path)
    found = next((path / name for name in WEIGHTS[:1] + WEIGHTS[2:] if (path / name).is_file()), None)
    if found is None:
        raise UserError(
            f"{path}: holds no weights; expected model.safetensors or pytorch_model.bin beside config.json"
        )
    if config.get("model_type") not in ("vit", "deit") or config.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"{path / 'config.json'}: says model_type {config.get('model_type')!r} and hidden_act "
            f"{config.get('hidden_act')!r}; expected vit or deit with gelu, or a clip"
        )
    return _read_file(found, heads or int(config.get("num_attention_heads", 0)) or None, *_statistics(path))


def _located(source: str | Path) -> Path:
    """The file or folder that is meant; what knows no photographs is named as such."""
    path = Path(source).expanduser()
    if str(source) == STORYBOOK_CLIP:
        warn_of_scenes(STORYBOOK_CLIP, "DeiT-S (facebook/deit-small-patch16-224, or its .pth)")
        return embedded(STORYBOOK_CLIP)
    found = path if path.exists() else cached_clip(str(source))
    if found is None:
        raise UserError(
            f"{source}: is no file, folder or repository in the Hugging Face cache; expected DeiT-S (a .pth or "
            f".safetensors in timm's names or transformers', or its folder), an MCTformer's checkpoint, "
            f'{STORYBOOK_CLIP} or "{RANDOM}"{did_you_mean(str(source), [STORYBOOK_CLIP])}'
        )
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        return read_object(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); expected the folder of a ViT, DeiT or CLIP") from error


def _statistics(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Pixel statistics of preprocessor_config.json; ImageNet's, DeiT's own, where it says none."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return MEAN, STD
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        mean, std = (
            tuple(map(float, config.get(f"image_{name}", own))) for name, own in (("mean", MEAN), ("std", STD))
        )
        if (len(mean), len(std)) != (3, 3):
            raise ValueError("not three numbers each")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); take the file from its source again") from error
    return cast(Any, (mean, std))


def _from_clip(folder: Path) -> Start:
    """A CLIP's image tower: its class token and that one's position are what each class starts with."""
    read = read_clip(folder)
    tower = read.model.vision
    if not isinstance(tower, VisionTransformer):
        raise UserError(f"{folder}: its image tower is a ResNet; expected a transformer (ViT)")
    block = tower.blocks[0]
    state = {name: value for name, value in tower.state_dict().items() if name.startswith(TOWER)}
    state["class_embedding"] = state["class_embedding"][None]
    shape = Shape(
        width=block.ln_1.normalized_shape[0],
        layers=len(tower.blocks),
        heads=block.attn.heads,
        patch=tower.patch,
        grid=tower.native_grid,
        activation=block.mlp.activation,
        eps=block.ln_1.eps,
        pre_norm=True,
        patch_bias=False,
    )
    return Start(state, shape, folder, _sha256(read.files[0]), read.mean, read.std)


def _read_file(
    path: Path, heads: int | None, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Start:
    """A file of weights, by the names in it."""
    weights = read_weights(path)
    if _about(weights.about).get("model_type") == MODEL_TYPE:
        return _own(path, weights.state, _about(weights.about))
    named = {name: value.float() for name, value in weights.state.items() if value.is_floating_point()}
    timm, hugging = (prefix_of(named, anchor, path) for anchor in (TIMM, TRANSFORMERS))
    if (timm is None) == (hugging is None):
        found = "both" if timm is not None else ", ".join(sorted(named)[:3])
        raise UserError(
            f"{path}: holds {found}; expected an image transformer in timm's names ({TIMM}: DeiT-S, or a released "
            f"MCTformer) or in transformers' ({TRANSFORMERS})"
        )
    around = timm if timm is not None else hugging
    inside = {
        name.removeprefix(around or ""): value for name, value in named.items() if name.startswith(around or "")
    }
    found_state, left = (from_timm if timm is not None else from_transformers)(inside)
    odd = sorted(name for name in left if not re.match(r"(norm|layernorm|head|head_dist|pooler|fc_norm)\.", name))
    if odd:
        warn(
            f"{path}: {', '.join(odd[:3])}{', …' if len(odd) > 3 else ''} are no part of MCTformer, and are left out"
        )
    state, version = _completed(path, found_state)
    shape = _shape(path, state, heads)
    supervision = "+".join(("tags", *pixel_labels(path)))
    return Start(state, shape, path, _sha256(path), mean, std, version, supervision=supervision)


def _completed(path: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Version | None]:
    """One table of positions over class tokens and patches, without a distillation token; and what it is of."""
    plus = "pos_embed_cls" in state
    if plus:
        state["positional_embedding"] = torch.cat([state.pop("pos_embed_cls"), state.pop("pos_embed_pat")], 1)
    lost = [name for name in ("class_embedding", "positional_embedding") if name not in state]
    if lost:
        raise UserError(f"{path}: has no {' and no '.join(lost)}; expected DeiT or an MCTformer whole")
    tokens, positions = state["class_embedding"], state["positional_embedding"]
    if tokens.ndim != 3 or positions.ndim != 3 or len(tokens) != 1 or len(positions) != 1:
        raise UserError(
            f"{path}: class tokens are {tuple(tokens.shape)} and positions {tuple(positions.shape)}; expected "
            "(1, S, D) and (1, S + N, D)"
        )
    state["class_embedding"], positions = tokens[0], positions[0]
    if state.pop("dist_token", None) is not None:
        positions = torch.cat([positions[:1], positions[2:]])
    state["positional_embedding"] = positions
    if len(state["class_embedding"]) == 1:
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
        return state, None
    return state, "plus" if plus else "v2" if "head.weight" in state else "v1"


def _shape(path: Path, state: Mapping[str, Tensor], heads: int | None) -> Shape:
    """As read off the weights."""
    conv, tokens = state["conv1.weight"], state["class_embedding"]
    count = len(state["positional_embedding"]) - len(tokens)
    side = math.isqrt(max(count, 0))
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.")}
    if conv.ndim != 4 or side * side != count or not count or conv.shape[2] != conv.shape[3] or not layers:
        raise UserError(
            f"{path}: the patch convolution is {tuple(conv.shape)}, {count} positions are of patches, and there are "
            f"{len(layers)} blocks; expected square patches on a square grid, and at least one block"
        )
    width = conv.shape[0]
    if width % (heads or HEAD_CHANNELS) or not width // (heads or HEAD_CHANNELS):
        raise UserError(
            f"{path}: is {width} wide, which "
            + (f"{heads} heads do not divide" if heads else "is no multiple of 64, DeiT's channels a head")
            + "; give the folder with the config.json that names the heads"
        )
    return Shape(
        width=width,
        layers=len(layers),
        heads=heads or width // HEAD_CHANNELS,
        patch=conv.shape[2],
        grid=(side, side),
        patch_bias="conv1.bias" in state,
    )


def build_mctformer(
    start: Start | None, names: Sequence[str], version: Version, *, seed: int = 0, expand: int = 1
) -> MCTformer:
    """The network of some classes over the weights that it starts from; in evaluation mode.

    A single class token and its position are repeated for each class, so labels alone make them differ.

    Args:
        start: None: DeiT-S with all weights drawn.
        names: of the classes.
        version: "v1", "v2" or "plus".
        seed: of what is drawn.
        expand: positions of patches are repeated so often in both directions (MCTformer+: 2, for twice the side).

    Raises:
        UserError: the weights are of other classes, of another version, or do not fit together.
    """
    shape = Shape() if start is None else start.shape
    shape = replace(shape, grid=(expand * shape.grid[0], expand * shape.grid[1]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plus = version == "plus"
        made = MCTformer(len(names), shape, patch_cam=version != "v1", ranked=plus, offset=0.0 if plus else OFFSET)
    if start is not None:
        _check_classes(start, names, version)
        state = _repeated(start, len(names), expand)
        fit_state(made, state, start.path, () if "head.weight" in state else ("head.",))
    return made.eval()


def _check_classes(start: Start, names: Sequence[str], version: Version) -> None:
    if start.version is None:
        return
    known = len(start.state["class_embedding"])
    if known != len(names) or (start.names is not None and start.names != tuple(names)):
        of = f": {', '.join(start.names[:5])}{', …' if known > 5 else ''}" if start.names else ""
        raise UserError(
            f"{start.path}: is an MCTformer of {known} classes{of}; expected one of these {len(names)}: "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}, in this order. Take one of your classes, or "
            "learn from DeiT-S: --set weights=deit_small_patch16_224-cd65a155.pth"
        )
    if start.version != version:
        raise UserError(f"{start.path}: is an MCTformer {SAID[start.version]}; for it give {ASKED[start.version]}")


def _repeated(start: Start, classes: int, expand: int) -> dict[str, Tensor]:
    """The state with a token for each class, and the positions of a larger grid."""
    state = dict(start.state)
    tokens, table = state["class_embedding"], state["positional_embedding"]
    special, patches = table[: len(tokens)], table[len(tokens) :]
    if len(tokens) == 1:
        tokens, special = tokens.expand(classes, -1), special.expand(classes, -1)
    if expand > 1:
        square = patches.unflatten(0, start.shape.grid)  # (h, w, D)
        patches = square.repeat_interleave(expand, 0).repeat_interleave(expand, 1).flatten(0, 1)
    return {**state, "class_embedding": tokens, "positional_embedding": torch.cat([special, patches])}


def save_mctformer(network: MCTformer, path: Path, about: Mapping[str, Any]) -> None:
    """Write the weights in float32 with what they are, so that ``read_start`` reads them.

    about: "names", "version", "mean", "std" and "supervision", as ``Start`` has them.
    """
    import safetensors.torch

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    said = {"model_type": MODEL_TYPE, "shape": asdict(network.shape), **about}
    write_atomic(path, safetensors.torch.save(state, metadata={_OWN: json.dumps(said)}), sync=True)


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        said = json.loads(metadata.get(_OWN, "{}"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _own(path: Path, state: Mapping[str, Tensor], said: Mapping[str, Any]) -> Start:
    try:
        stored: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in said["shape"].items()}
        shape = Shape(**stored)
        mean, std = tuple(said["mean"]), tuple(said["std"])
        names, version, supervision = tuple(said["names"]), said["version"], str(said["supervision"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: does not say what it is ({error!r}); copy it again from where it was made"
        ) from error
    return Start(
        dict(state), shape, path, _sha256(path), cast(Any, mean), cast(Any, std), version, names, supervision
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
