"""Class sets: the names and colours of the mask values, and what is said to CLIP about them.

Built in are ``voc12`` and ``coco14``. Your own is a YAML file, as short as::

    names: [cat, dog]

or as long as the built-in ones beside this file: ``id``, ``names``, ``palette``, ``aliases``, ``texts``
(by method: ``names``, ``templates``, ``background``, ``per_class``) and ``superclasses``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tag2mask.safe_yaml import parse_yaml
from tag2mask.types import IGNORE, MAX_CLASSES, ClassSet, Color, TextSet, UserError
from tag2mask.words import did_you_mean, fold, plain

__all__ = [
    "BUILT_IN",
    "CLASSES_FILE",
    "CLASSES_MARK",
    "class_index",
    "classes_json",
    "color_map",
    "find_class",
    "fold",
    "load_classes",
    "plain",
    "plain_classes",
    "with_more",
]

BUILT_IN = ("voc12", "coco14")

CLASSES_FILE = "classes.json"
"""Says what the values in masks stand for: beside the masks of a run, and in every export."""

CLASSES_MARK = '"made_by": "tag2mask"'
"""Stands at the beginning of every such file."""

_ALWAYS = ("clip-es", "clims", "clims-released")
"""The text sets that every class set has, whether its file gives them or not."""

_Word = Annotated[str, Field(min_length=1, strict=True)]
_Channel = Annotated[int, Field(ge=0, le=255, strict=True)]


class _Texts(BaseModel):
    """One method's texts as a YAML file gives them; what is left out is filled from the method's own for VOC.

    A method that has none there borrows CLIP-ES's.
    """

    model_config = ConfigDict(extra="forbid")
    names: dict[_Word, _Word] = {}
    templates: tuple[_Word, ...] | None = Field(default=None, min_length=1)
    background: tuple[_Word, ...] | None = None
    per_class: dict[_Word, Annotated[tuple[_Word, ...], Field(min_length=1)]] | None = None


class _File(BaseModel):
    """A class set as a YAML file gives it."""

    model_config = ConfigDict(extra="forbid")
    id: _Word | None = None
    names: tuple[_Word, ...] = Field(min_length=1)
    palette: tuple[tuple[_Channel, _Channel, _Channel], ...] | None = None
    aliases: dict[_Word, _Word] = {}
    texts: dict[_Word, _Texts] = {}
    superclasses: dict[_Word, dict[_Word, tuple[_Word, ...]]] = {}


def load_classes(name_or_path: str | Path) -> ClassSet:
    """Reads a built-in class set by its id, or a YAML file.

    Raises:
        UserError: no such set or file, or a file that says something impossible.
    """
    if str(name_or_path) in BUILT_IN:
        return _built_in(str(name_or_path))
    path = Path(name_or_path)
    if path.is_file():
        return _read(parse_yaml(path.read_bytes(), path), str(path), path.stem)
    raise UserError(
        f"no class set {str(name_or_path)!r}{did_you_mean(str(name_or_path), BUILT_IN)}: "
        f"give one of {', '.join(BUILT_IN)}, or a YAML file that exists"
    )


def plain_classes(names: Sequence[str], name: str, aliases: Mapping[str, str] | None = None) -> ClassSet:
    """A class set of bare names: VOC's colours, and each class called by its name in CLIP-ES's sentence.

    Args:
        names: the foreground classes in the order of their mask values, 1 onwards.
        name: the id of the set.
        aliases: other words for them.

    Raises:
        UserError: a name is empty or there twice, or there are more than 254.
    """
    return _build(_File(names=tuple(names), aliases=dict(aliases or {})), name, f"classes {name!r}")


def with_more(classes: ClassSet, names: Sequence[str], aliases: Mapping[str, str] | None = None) -> ClassSet:
    """A class set with further classes after its own, of which all that it says stays, but for background phrases
    that are classes now.

    Args:
        classes: the set.
        names: the new classes, each called by its name.
        aliases: further words for classes.

    Raises:
        UserError: a name is empty or there twice, or there are more than 254.
    """
    every = [*classes.foreground, *names]
    words = {**classes.aliases, **(aliases or {})}
    words = {alias: name for alias, name in words.items() if fold(alias) not in map(fold, names)}
    index = _check_names(tuple(every), words, f"classes {classes.id!r}")
    taken = {key: name for key, name in index.items() if name in names}  # the published phrases suit its own classes
    texts = {
        method: replace(text, names=(*text.names, *names), background=_background(text.background, taken))
        for method, text in classes.texts.items()
    }
    palette = (*classes.palette, *color_map(len(every) + 1)[len(classes.palette) :])
    return replace(classes, names=("background", *every), palette=palette, texts=texts, aliases=words)


def class_index(classes: ClassSet) -> dict[str, int]:
    """Mask value by folded name and alias; for many look-ups, else :func:`find_class`."""
    index = {fold(name): tag for tag, name in enumerate(classes.foreground, start=1)}
    return {**{fold(alias): index[fold(name)] for alias, name in classes.aliases.items()}, **index}


def find_class(classes: ClassSet, word: str) -> int | None:
    """The mask value (1..C) of a class by its name or an alias, or None. "background" is never found."""
    return class_index(classes).get(fold(word))


@lru_cache
def color_map(count: int) -> tuple[Color, ...]:
    """VOC's colours of the mask values 0..count-1.

    The bits of the value are dealt out to red, green and blue in turn, the lowest to the highest bit of each.
    """
    return tuple(
        (_spread(value), _spread(value >> 1), _spread(value >> 2))  # each takes every third bit
        for value in range(count)
    )


def _spread(value: int) -> int:
    return sum((value >> (3 * k) & 1) << (7 - k) for k in range(8))


@lru_cache
def _built_in(name: str) -> ClassSet:
    content = resources.files(__package__).joinpath(f"{name}.yaml").read_bytes()
    return _read(yaml.safe_load(content), f"{name}.yaml", name)


def _read(parsed: object, source: str, default_id: str) -> ClassSet:
    if not isinstance(parsed, dict):
        raise UserError(f"{source} holds {type(parsed).__name__}, not keys: write at least `names: [cat, dog]`")
    try:
        file = _File.model_validate(parsed)
    except ValidationError as error:
        raise UserError(f"{source}: {'; '.join(_explained(error.errors()))}") from error
    return _build(file, file.id or default_id, source)


def _explained(problems: Sequence[Mapping]) -> list[str]:
    """Pydantic's complaints in the user's terms, one for all entries of a list that are wrong in the same way."""
    # a list without a right entry is also said to be empty
    inner = {problem["loc"][:-1] for problem in problems}
    groups: dict[tuple, list[Mapping]] = {}
    for problem in problems:
        if problem["loc"] not in inner:
            last = problem["loc"][-1] if problem["loc"] else ""
            place = (*problem["loc"][:-1], None) if isinstance(last, int) else problem["loc"]
            groups.setdefault((place, problem["type"], type(problem["input"])), []).append(problem)
    more = {key: f" ({len(group) - 1} more like it)" if len(group) > 1 else "" for key, group in groups.items()}
    return [_explain(group[0]) + more[key] for key, group in groups.items()]


_OTHER_WORDS = {
    **dict.fromkeys(("colours", "colors", "colour", "color", "colormap", "colourmap"), "palette"),
    **dict.fromkeys(("classes", "labels", "class_names", "categories"), "names"),
    **dict.fromkeys(("synonyms", "alias"), "aliases"),
    "prompts": "texts",
}
"""What other programs call the keys of a class set."""

_HINTS = {
    "palette": ", [red, green, blue] from 0 to 255 for each mask value, background first: [[0, 0, 0], [128, 0, 0]]",
    "aliases": ", such as aliases: {puppy: dog}",
    "texts": ", such as texts: {clip-es: {names: {oak: oak tree}}}",
    "names": ", such as names: [cat, dog]",
}


def _explain(problem: Mapping) -> str:
    """One pydantic complaint in the user's terms."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden" and str(problem["loc"][-1]) in _OTHER_WORDS and len(problem["loc"]) == 1:
        return f"unknown key {where!r}: it is called '{_OTHER_WORDS[str(problem['loc'][-1])]}' here"
    if problem["type"] in ("tuple_type", "list_type") and isinstance(problem["input"], str):
        words = re.split(r"[,;\s]+", problem["input"].strip())
        return f"{where} is the text {problem['input']!r}: write a list, such as {where}: [{', '.join(words)}]"
    if problem["type"] in ("tuple_type", "list_type"):
        return f"{where} is {problem['input']!r}: expected a list{_HINTS.get(where, '')}"
    if problem["type"] == "dict_type":
        return f"{where} is {problem['input']!r}: expected keys with values{_HINTS.get(where, '')}"
    if problem["type"] == "string_type" and problem["loc"][0] == "aliases" and isinstance(problem["input"], list):
        name, words = problem["loc"][1], [str(word) for word in problem["input"]]
        turned = ", ".join(f"{word}: {name}" for word in words)
        return f"aliases are written the other way round, word: class; such as aliases: {{{turned}}}"
    if problem["type"] == "extra_forbidden":
        known = _Texts.model_fields if len(problem["loc"]) > 1 else _File.model_fields
        return f"unknown key {where!r}" + (
            did_you_mean(str(problem["loc"][-1]), known) or f", known: {', '.join(known)}"
        )
    if problem["type"] == "missing":
        return f"the key {where!r} is missing"
    if problem["type"] == "string_type" and isinstance(problem["input"], bool):
        return f"{where} must be text, but YAML reads yes, no, on and off as true or false: put it in quotes"
    if problem["type"] == "string_type":
        return f"{where} must be text, got {problem['input']!r}: put it in quotes"
    return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _build(file: _File, name: str, source: str) -> ClassSet:
    lists_background = fold(file.names[0]) == "background"
    written = file.names[1:] if lists_background else file.names
    names = ("background", *written)
    index = _check_names(written, file.aliases, source)
    if file.palette is not None and len(file.palette) != len(names):
        raise UserError(
            f"{source}: the palette has {len(file.palette)} colours for {len(names)} mask values: "
            "give one for each, background first, or leave the palette out"
        )

    def canonical(word: str, where: str) -> str:
        if fold(word) not in index:
            raise UserError(f"{source}: {where} names {word!r}, which is no class{did_you_mean(word, written)}")
        return index[fold(word)]

    def text_set(text: _Texts, method: str) -> TextSet:
        where = f"texts.{method}"
        phrases = {canonical(word, f"{where}.names"): phrase for word, phrase in text.names.items()}
        templates, background, per_class = text.templates, text.background, text.per_class
        if templates is None or background is None or per_class is None:  # VOC's own leave nothing out
            voc = _built_in("voc12").texts
            base = voc.get(method, voc["clip-es"])
            templates = base.templates if templates is None else templates
            background = _background(base.background, index) if background is None else background
            if (
                per_class is None
            ):  # CLIMS's say what a class occurs with; CLIP-ES's are synonyms, which its names fuse
                known = base.per_class if method == "clims" else {}
                per_class = {word: more for word, more in known.items() if fold(word) in index}
        return TextSet(
            names=tuple(phrases.get(name, name) for name in written),
            templates=_check_templates(templates, f"{source}: {where}.templates"),
            background=background,
            per_class={canonical(word, f"{where}.per_class"): more for word, more in per_class.items()},
        )

    return ClassSet(
        id=name,
        names=names,
        palette=file.palette or color_map(len(names)),
        texts={
            method: text_set(text, method)
            for method, text in {**dict.fromkeys(_ALWAYS, _Texts()), **file.texts}.items()
        },
        superclasses={
            grouping: {
                group: tuple(canonical(word, f"superclasses.{grouping}.{group}") for word in members)
                for group, members in groups.items()
            }
            for grouping, groups in file.superclasses.items()
        },
        aliases={alias: index[fold(target)] for alias, target in file.aliases.items()},
        lists_background=lists_background,
    )


def _check_names(names: tuple[str, ...], aliases: Mapping[str, str], source: str) -> dict[str, str]:
    """Class name by folded name and alias, once it is sure that none means two things."""
    if not 1 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{source}: {len(names)} classes besides background, but an 8-bit mask has room for 1 to {MAX_CLASSES}"
        )
    index: dict[str, str] = {}
    for name in names:
        key = fold(name)
        if not key.strip("-"):
            raise UserError(f"{source}: {name!r} is no name: use letters or digits")
        if name == "__ignore__":
            raise UserError(
                f"{source}: '__ignore__' is labelme's word for pixels that are not looked at, and no class: "
                "leave it out"
            )
        if key == "background":
            raise UserError(f"{source}: 'background' stands among the classes: leave it out, or put it first")
        if key in index:
            raise UserError(
                f"{source}: the names {index[key]!r} and {name!r} are the same to tag2mask "
                "(case, and spaces, '_' and '-' between letters do not count): rename one"
            )
        index[key] = name
    classes = dict(index)
    for alias, target in aliases.items():
        if fold(target) not in classes and fold(alias) in classes:
            raise UserError(
                f"{source}: aliases are written word: class, and {alias!r} is the class of the two: write "
                f"{target}: {alias}"
            )
        if fold(target) not in classes:
            raise UserError(
                f"{source}: the alias {alias!r} stands for {target!r}, which is no class{did_you_mean(target, names)}"
            )
        name = classes[fold(target)]
        if index.setdefault(fold(alias), name) != name:
            raise UserError(
                f"{source}: {alias!r} stands for {name!r} and for {index[fold(alias)]!r}: take one out of the aliases"
            )
    return index


def _check_templates(templates: tuple[str, ...], where: str) -> tuple[str, ...]:
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise UserError(f"{where}: {template!r} must hold one {{}} where the class goes, and no other brace")
    return templates


def _background(phrases: tuple[str, ...], index: Mapping[str, str]) -> tuple[str, ...]:
    """The phrases that are no class here.

    A phrase is a class also where it is the last word of a class's name: a stop sign is a sign. CLIP-ES's 25
    phrases for VOC and COCO's names leave exactly the 23 that CLIP-ES uses there.
    """
    taken = set(index) | {fold(name.split()[-1]) for name in index.values()}
    return tuple(phrase for phrase in phrases if fold(phrase) not in taken)


def classes_json(names: Sequence[str], palette: Sequence[Sequence[int]]) -> bytes:
    """What ``CLASSES_FILE`` holds: index, name and colour (red, green, blue) of each mask value, background first."""
    rows = [
        {"index": index, "name": name, "color": [int(channel) for channel in color]}
        for index, (name, color) in enumerate(zip(names, palette, strict=False))
    ]
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    return f'{{{CLASSES_MARK}, "ignore": {IGNORE}, "classes": [\n{lines}\n]}}\n'.encode()
