"""From a CLIP's files to its model: Hugging Face's layout, open_clip's, OpenAI's archive, or a bare state dict.

OpenAI's CLIPs have a quick GELU, open_clip's own mostly a GELU, and the tensors are the same: the wrong one gives
other numbers without a word. OpenAI's archives, config.json and open_clip_config.json tell; a bare state dict does
not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tag2mask.models.clip import CLIPModel
from tag2mask.models.containers import prefix_of, read_weights
from tag2mask.models.convert import TEXT_DEFAULTS, from_hf_state, from_openai_state
from tag2mask.models.find_clip import OPEN_CLIP, OPEN_CLIP_WEIGHTS, WEIGHTS
from tag2mask.models.transformer import Activation
from tag2mask.run.files import read_object
from tag2mask.run.warn import warn
from tag2mask.types import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, of red, green and blue in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class CLIPFiles:
    """What was read: the model, pixel statistics, the token that ends a text (None: the largest), and from where."""

    model: CLIPModel
    mean: Triple
    std: Triple
    end: int | None
    files: list[Path]


def read_clip(path: Path, activation: Activation | None = None) -> CLIPFiles:
    """The CLIP in a folder or file.

    path: a folder with config.json (Hugging Face) or open_clip_config.json, or a file with OpenAI's names.
    activation: of a bare state dict; None where the files say it.

    Raises:
        UserError: what is there is no CLIP, does not fit together, or leaves the activation open.
    """
    if path.is_dir() and ((path / "config.json").is_file() or not (path / OPEN_CLIP).is_file()):
        config = _read_json(path / "config.json")
        files = _weight_files(path)
        state, _ = _read_files(files, "vision_model.embeddings.class_embedding")
        model = _fitting(path, lambda: from_hf_state(state, config))
        text: Any = model.text.transformer.resblocks[0]
        _agree(path / "config.json", text.mlp.activation, activation)
        eos = (TEXT_DEFAULTS | (config.get("text_config") or {}))["eos_token_id"]
        end = None if eos == 2 else eos  # transformers' own rule, for configs written before it was corrected
        return CLIPFiles(model, *_statistics(path), end, files)
    files = _weight_files(path) if path.is_dir() else [path]
    beside = (path if path.is_dir() else path.parent) / OPEN_CLIP
    settings = _open_clip(beside) if beside.is_file() else None
    state, script = _read_files(files, "visual.conv1.weight")
    if settings is not None:
        _agree(beside, settings.activation, activation)
        chosen: Activation | None = settings.activation
    else:
        chosen = activation or ("quick_gelu" if script else None)  # only OpenAI ships archives
    heads = {} if settings is None else settings.heads
    model = _fitting(path, lambda: from_openai_state(_clip_names(state), activation=chosen or "quick_gelu", **heads))
    if chosen is None:
        raise UserError(
            f"{path}: is a bare state dict, which does not say which activation its CLIP has, and "
            f"no {OPEN_CLIP} lies beside it; say --activation quick_gelu (OpenAI's weights, and open_clip's models "
            "called -quickgelu) or --activation gelu (open_clip's others, such as LAION's)"
        )
    mean, std = (MEAN, STD) if settings is None else (settings.mean, settings.std)
    return CLIPFiles(model, mean, std, None, files)


def _agree(file: Path, found: Activation, given: Activation | None) -> None:
    if given is not None and given != found:
        raise UserError(f"{file} says {found}, --activation {given}; leave the option out, or correct the file")


@dataclass(frozen=True)
class _OpenCLIP:
    activation: Activation
    mean: Triple
    std: Triple
    heads: dict[str, int]


def _open_clip(path: Path) -> _OpenCLIP:
    """What open_clip_config.json says."""
    config = _read_json(path)
    try:
        model, pixels = config["model_cfg"], config.get("preprocess_cfg") or {}
        vision, text = model["vision_cfg"], model["text_cfg"]
        heads = {"text_heads": int(text["heads"])} if "heads" in text else {}
        if isinstance(vision.get("width"), int) and isinstance(vision["layers"], int):
            heads["vision_heads"] = vision["width"] // int(vision.get("head_width", 64))
        mean, std = _triples(path, pixels.get("mean", MEAN), pixels.get("std", STD), "mean and std")
        return _OpenCLIP("quick_gelu" if model.get("quick_gelu") else "gelu", mean, std, heads)
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: describes no CLIP ({type(error).__name__}: {error}); expected open_clip's model_cfg with "
            "vision_cfg and text_cfg; take the file from its source again"
        ) from error


def _clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names: open_clip keeps some text towers apart, under "text."."""
    if "text.token_embedding.weight" not in state:
        return dict(state)
    return {name.removeprefix("text."): value for name, value in state.items()}


def _weight_files(folder: Path) -> list[Path]:
    names = WEIGHTS if (folder / "config.json").is_file() or not (folder / OPEN_CLIP).is_file() else OPEN_CLIP_WEIGHTS
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: holds no weights; expected one of {', '.join(names)}")
    if found[0].suffix != ".json":
        return found[:1]
    weight_map = _read_json(found[0]).get("weight_map")
    parts = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    lost = [name for name in parts if Path(name).name != name or not (folder / name).is_file()]
    if lost or not parts:
        raise UserError(
            f"{found[0]}: names {lost or 'no files'}, expected files beside it; fetch the checkpoint again"
        )
    return [folder / name for name in parts]


def _read_files(files: Sequence[Path], anchor: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors of all files, without what stands before a CLIP's names; whether they are TorchScript's."""
    state: dict[str, Tensor] = {}
    script = False
    for file in files:
        read = read_weights(file)
        state |= read.state
        script |= read.script
    around = prefix_of(state, anchor, files[0])
    if not around:
        return state, script
    inside = {name.removeprefix(around): value for name, value in state.items() if name.startswith(around)}
    if len(inside) < len(state):
        warn(f"{files[0]}: {len(state) - len(inside)} tensors outside of {around!r}, the CLIP in it, were left out")
    return inside, script


def _fitting(path: Path, build: Any) -> CLIPModel:
    try:
        model: CLIPModel = build()
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); expected the JSON file of a Hugging Face checkpoint"
        ) from error


def _statistics(folder: Path) -> tuple[Triple, Triple]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return MEAN, STD
    settings = _read_json(path)
    mean, std = settings.get("image_mean", MEAN), settings.get("image_std", STD)
    return _triples(path, mean, std, "image_mean and image_std")


def _triples(path: Path, mean: Any, std: Any, names: str) -> tuple[Triple, Triple]:
    try:
        r, g, b = map(float, mean)
        sr, sg, sb = map(float, std)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {names} are not three numbers each; fetch it again") from error
    return (r, g, b), (sr, sg, sb)
