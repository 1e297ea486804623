"""WeakCLIP's released checkpoints: their names, and the parts of them that a network of ours takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tag2mask.models.state import read_state
from tag2mask.models.weakclip import WeakCLIPNet
from tag2mask.types import UserError

_PARTS = (
    ("tower.", "backbone."),
    ("adapter.", "backbone."),
    ("decoder.neck.", "neck."),
    ("decoder.decode_head.", "decode_head."),
)

NO_CLASS = {
    12: "street sign",
    26: "hat",
    29: "shoe",
    30: "eye glasses",
    45: "plate",
    66: "mirror",
    68: "window",
    69: "desk",
    71: "door",
    83: "blender",
}
"""COCO's category numbers that no image was ever annotated with; the released code has an output for each."""


def released_name(name: str) -> str:
    """What a tensor of ``WeakCLIPNet`` is called in a released checkpoint."""
    for own, theirs in _PARTS:
        if name.startswith(own):
            return theirs + name.removeprefix(own)
    return name


def read_released(path: Path) -> dict[str, Tensor]:
    """The tensors of a released checkpoint, by their names there.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    state = read_state(path)
    if "contexts" not in state or "decode_head.conv_seg.weight" not in state:
        raise UserError(
            f"{path}: holds {', '.join(sorted(state)[:3])}, …; expected a checkpoint of WeakCLIP (contexts, "
            "backbone.…, decode_head.conv_seg.weight)"
        )
    return state


def silent_texts(state: Mapping[str, Tensor], classes: int, path: Path) -> tuple[str, ...]:
    """The names that a checkpoint has outputs for and a network of K ``classes`` has not: COCO's ten of 91.

    Raises:
        UserError: another number of classes.
    """
    count = len(state["decode_head.conv_seg.weight"])
    if count == classes:
        return ()
    if count == classes + len(NO_CLASS) == 91:
        return tuple(NO_CLASS.values())
    raise UserError(
        f"{path}: is a WeakCLIP of {count} classes, expected {classes} with background, or 91 for COCO's 81; name "
        "the classes that it was trained on"
    )


def fill_from_released(net: WeakCLIPNet, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a released checkpoint: both towers, and all that learns.

    COCO's ten names without images keep their texts in the matching and lose their outputs, so that the other outputs
    are what they were. Of co-attention layers that were declared and not used, a network without them takes the last.

    Raises:
        UserError: what is missing or of another shape.
    """
    own = net.state_dict()
    found: dict[str, Tensor] = {}
    faults = []
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        theirs = _layer(released_name(name), net)
        if theirs not in state:
            faults.append(f"{theirs} is missing")
            continue
        given = _reordered(theirs, state[theirs], net)
        if name == "text_encoder.positional_embedding" and len(given) < len(value):
            given = torch.cat([given, value[len(given) :].to(given)])  # only so many positions were ever used
        if given.shape != value.shape:
            faults.append(f"{theirs} is {tuple(given.shape)}, expected {tuple(value.shape)}")
        found[name] = given
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise UserError(f"{path}: {'; '.join(faults[:3])}{more}; these are weights of another network")
    net.load_state_dict(found, strict=False)


def _layer(name: str, net: WeakCLIPNet) -> str:
    """A network of chained layers that has one takes the released code's last of three, the only one in use."""
    if net.settings.layers == 1:
        for part in ("decoder", "anti_decoder"):
            name = name.replace(f"context_decoder.{part}.0.", f"context_decoder.{part}.2.")
    return name


def _reordered(name: str, value: Tensor, net: WeakCLIPNet) -> Tensor:
    """Outputs and matching scores in our order: the classes, then the texts without a class."""
    if len(net.ids) == net.classes:
        return value
    rows = [row for row in range(len(net.ids)) if row not in NO_CLASS]
    if name.startswith("decode_head.conv_seg."):
        return value[rows]
    if name.startswith("neck.lateral_convs.") and name.endswith("weight"):
        features = value.shape[1] - len(net.ids)
        order = [*range(features), *(features + row for row in [*rows, *NO_CLASS])]
        return value[:, order]
    return value
