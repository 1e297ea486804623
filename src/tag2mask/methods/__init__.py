"""The methods by name: one file here and one line in ``METHODS`` each, or an entry point of another package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tag2mask.methods.protocol import Machine, Method, NamedTower, Trainable
from tag2mask.run.device import find_device, find_precision
from tag2mask.tables import find, offered
from tag2mask.types import ClassSet, UserError
from tag2mask.words import did_you_mean

if TYPE_CHECKING:
    import torch

    from tag2mask.models.dino import DINO
    from tag2mask.models.weights import CLIP

METHODS = {
    "clip-es": "tag2mask.methods.clip_es:ClipES",
    "cd-clip": "tag2mask.methods.cd_clip:CDCLIP",
    "classifier-cam": "tag2mask.methods.classifier_cam:ClassifierCAM",
    "clims": "tag2mask.methods.clims:CLIMS",
    "mctformer": "tag2mask.methods.mctformer:MCTformerMethod",
    "irn": "tag2mask.methods.irn:IRN",
    "psa": "tag2mask.methods.psa:PSA",
    "weakclip": "tag2mask.methods.weakclip:WeakCLIP",
    "weclip": "tag2mask.methods.weclip:WeCLIP",
    "pot": "tag2mask.methods.pot:POT",
}
"""Name -> "module:class", a class as ``methods.protocol`` has it."""

ENTRY_POINTS = "tag2mask.methods"
"""The entry-point group in which other packages offer methods, "name = module:class"."""


def known_methods() -> dict[str, str]:
    """Name -> "module:class" of every method at hand; ours come first and keep their names."""
    return offered(METHODS, ENTRY_POINTS)


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: no method of that name, or another package's does not import.
    """
    found: type[Method] = find("method", name, known_methods())
    return found


def make_options(name: str, options: Mapping[str, Any]) -> BaseModel:
    """The options of a method, checked and with its defaults filled in.

    Raises:
        UserError: an unknown option, with the nearest known one, or a value that does not fit.
    """
    model: type[BaseModel] = method_class(name).Options
    try:
        return model(**options)
    except ValidationError as error:
        raise UserError(
            f"method {name}: " + "; ".join(_explain(problem, model) for problem in error.errors())
        ) from None


def make_method(
    name: str,
    classes: ClassSet,
    *,
    clip: CLIP | str | None = None,
    dino: DINO | str | None = None,
    device: str = "auto",
    precision: str = "float32",
    **options: Any,
) -> Method:
    """A method by name, ready to use or to fit.

    Args:
        name: a key of :func:`known_methods`.
        classes: what there is to be found.
        clip: a model, or the name or folder of one; None: the default one, if the method needs one and it is on this
            machine.
        dino: a model, or the name or folder of one, for a method that needs one.
        device, precision: where the method computes, and in which numbers its fit and towers that are loaded here do.
        options: the method's own.

    Raises:
        UserError: unknown name or option, a value that does not fit, no such device, or no tower where one is needed.
    """
    kind = method_class(name)
    checked = make_options(name, options)  # a misspelt option is refused before a model is loaded
    where = find_device(device)
    towers: dict[str, NamedTower] = {}
    needs = kind.towers_of(checked)
    if "clip" in needs:
        towers["clip"] = _clip(clip, where, precision)
    if "dino" in needs:
        towers["dino"] = _dino(dino, name, where, precision)
    method = kind(classes, checked, **towers)
    method.to(where)
    if isinstance(method, Trainable):
        find_precision(precision, where)
        method.precision = precision
    return method


def _clip(clip: CLIP | str | None, device: torch.device, precision: str) -> CLIP:
    from tag2mask.models.weights import load_clip

    if clip is not None and not isinstance(clip, str):
        return clip
    find_precision(precision, device)
    return load_clip(clip, device=device, precision=precision)


def _dino(dino: DINO | str | None, method: str, device: torch.device, precision: str) -> DINO:
    from tag2mask.models.dino import load_dino

    if dino is None:
        raise UserError(
            f"{method} needs a DINO with these options, and none was named; fetch one (about 350 MB) with `tag2mask "
            "fetch facebook/dinov2-base` and give it as --dino facebook/dinov2-base"
        )
    return load_dino(dino, device=device, precision=precision) if isinstance(dino, str) else dino


def _explain(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "options"
    if problem["type"] == "extra_forbidden":
        if where in {each.name for each in fields(Machine)}:
            return f'"{where}" is a setting of the machine, not of the method: give --{where} {problem["input"]}'
        known = sorted(model.model_fields)
        return f'option "{where}" is not known{did_you_mean(where, known)}; known: {", ".join(known) or "none"}'
    return f"option {where} = {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
