"""What the numbers and colours in a file of ground truth stand for.

Three things can say so: the option ``--truth-values``, a list of names beside the masks (``labelmap.txt`` of CVAT,
``class_names.txt`` of labelme, ``classes.txt``, ...), and the colours of the class set. Else the numbers are the
mask values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tag2mask.classes import class_index, color_map, fold
from tag2mask.types import BACKGROUND, IGNORE, ClassSet, Color, UserError
from tag2mask.words import did_you_mean

__all__ = ["COCO_IDS", "Values", "find_label_list", "known_colours", "parse_values", "read_label_list"]

COCO_IDS = tuple(id for id in range(1, 91) if id not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""The category ids of COCO's 80 classes, in their order."""

LIST_NAMES = (
    "labelmap.txt",
    "label_map.txt",
    "class_names.txt",
    "classes.txt",
    "labels.txt",
    "label_names.txt",
    "label_colors.txt",
    "class_dict.csv",
    "codes.txt",
    "names.txt",
)
"""What lists of names beside masks are called."""

_IGNORED = {"ignore", "ignored", "void", "dontcare"}
_CVAT = re.compile(r"([^:]+):(\d+),(\d+),(\d+):[^:]*:[^:]*")

FORMS = "as-is, from-0, from-2, coco-ids, VALUE=NAME such as 255=cat, or a file with a line `value name` for each"
"""What ``--truth-values`` takes."""


@dataclass(frozen=True)
class Values:
    """Mask values by the numbers and by the colours in a file; picklable.

    numbers: mask value by number; None: the numbers are the mask values.
    whole: whether a number that is not in ``numbers``, nor 0 or 255, is an error; else it stays as it is.
    colours: mask value by colour, of the list alone.
    foreign: names by number or colour that are no class.
    source: the option or the list that says so, for messages. as_is: the user wants the numbers as they are.
    chosen: the user said how to read them.
    """

    numbers: Mapping[int, int] | None = None
    whole: bool = False
    colours: Mapping[Color, int] = field(default_factory=dict)
    foreign: Mapping[int | Color, str] = field(default_factory=dict)
    source: str = ""
    as_is: bool = False
    chosen: bool = False


def parse_values(choice: str, classes: ClassSet) -> Values:
    """What ``--truth-values`` says.

    Raises:
        UserError: neither a known word, nor pairs VALUE=NAME, nor a file that can be read as a list of names.
    """
    count = len(classes)
    if choice == "as-is":
        return Values(as_is=True, chosen=True, source=choice)
    if choice == "from-0":
        numbers = {value: value + 1 for value in range(count - 1)} | {IGNORE: BACKGROUND}
    elif choice == "from-2":
        numbers = {0: IGNORE, 1: BACKGROUND} | {value + 1: value for value in range(1, count)} | {IGNORE: IGNORE}
    elif choice == "coco-ids":
        if count != len(COCO_IDS) + 1:
            raise UserError(
                f"--truth-values coco-ids: these are the ids of COCO's 80 classes, but {classes.id} has {count - 1}; "
                "give a file with a line `value name` for each class"
            )
        numbers = {id: value for value, id in enumerate(COCO_IDS, start=1)}
    elif "=" in choice and not Path(choice).is_file():
        return _pairs(choice, classes)
    elif Path(choice).is_file():
        return read_label_list(Path(choice), classes, chosen=True)
    else:
        known = ["as-is", "from-0", "from-2", "coco-ids"]
        hint = did_you_mean(choice, known) or ": there is no such file"
        raise UserError(f"--truth-values {choice!r}{hint}. It takes {FORMS}")
    return Values(numbers, whole=True, source=f"--truth-values {choice}", chosen=True)


def _pairs(choice: str, classes: ClassSet) -> Values:
    numbers: dict[int, int] = {}
    for pair in choice.split(","):
        number, _, name = pair.partition("=")
        value = _meaning(name, class_index(classes))
        if value is None or not re.fullmatch(r"\s*\d{1,3}\s*", number) or int(number) > 255:
            hint = did_you_mean(name, classes.foreground) if value is None else ""
            raise UserError(
                f"--truth-values: {pair!r} is not VALUE=NAME with a value of 0 to 255 and a class, background or "
                f"ignore{hint}"
            )
        if numbers.setdefault(int(number), value) != value:
            raise UserError(f"--truth-values: {int(number)} is named twice")
    return Values(numbers, source=f"--truth-values {choice}", chosen=True)


def _meaning(name: str, index: Mapping[str, int]) -> int | None:
    """The mask value of a name; None where it is no class."""
    key = fold(name)
    if key in index:
        return index[key]
    return BACKGROUND if key in ("background", "bg") else IGNORE if key in _IGNORED else None


def read_label_list(path: Path, classes: ClassSet, *, chosen: bool = False) -> Values:
    """A list that names numbers or colours.

    A line is ``name:red,green,blue:parts:actions`` (CVAT), a number and a name, a name and a colour, or a name alone:
    then its place is its number, from 0 where the first name is the background and from 1 where it is a class. A
    first line ``__ignore__`` (labelme) does not count. The places of CVAT's names are their numbers, too. "#" begins
    a comment.

    Args:
        path: the file.
        classes: what the names are looked up in.
        chosen: whether the user named it.

    Raises:
        UserError: not such a list.
    """
    rows = _rows(path)
    kinds = {len(numbers) for numbers, _ in rows}
    if not rows or len(kinds) != 1 or not kinds <= {0, 1, 3}:
        raise UserError(
            f"{path} is no list of names: a line is `value name`, `name:red,green,blue::`, or a name alone, "
            "all lines alike"
        )
    if fold(rows[0][1]) == "ignore" and kinds == {0}:
        rows = rows[1:]
    index = class_index(classes)
    first = 0 if rows and _meaning(rows[0][1], index) == BACKGROUND else 1
    numbers: dict[int, int] = {}
    colours: dict[Color, int] = {}
    foreign: dict[int | Color, str] = {}
    for place, (given, name) in enumerate(rows, start=first):
        number = given[0] if len(given) == 1 else place
        value = _meaning(name, index)
        if value == IGNORE and fold(name) == "void" and (number == 0 or given == (0, 0, 0)):
            value = None  # what is not drawn, or what should not count? the user must say
        keys: list[int | Color] = [number]
        if len(given) == 3:
            keys.append((given[0], given[1], given[2]))
        for key in keys:
            table: dict = numbers if isinstance(key, int) else colours
            if key in table or key in foreign:
                if isinstance(key, int) and kinds != {1}:
                    continue
                raise UserError(f"{path} names {key} twice, as {name!r} and as something else: take one out")
            if value is None:
                foreign[key] = name
            else:
                table[key] = value
    return Values(numbers, True, colours, foreign, str(path) if chosen else path.name, chosen=chosen)


def _rows(path: Path) -> list[tuple[tuple[int, ...], str]]:
    """(numbers, name) of each line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of names ({error})") from None
    rows = []
    for line in text.splitlines():
        line = line.split("#")[0].strip() if line.lstrip().startswith("#") else line.strip().rstrip(",")
        if not line:
            continue
        if match := _CVAT.fullmatch(line):
            rows.append((tuple(int(match[n]) for n in (2, 3, 4)), match[1].strip()))
            continue
        line = line.strip("{}")
        parts = [part.strip(" \"'[]") for part in re.split(r"[,;:=\t]", line)]
        if len(parts) == 1 and (match := re.fullmatch(r"(\d+(?:\s+\d+\s+\d+)?)\s+(.*\D.*)", line)):
            parts = [*match[1].split(), match[2]]
        elif len(parts) == 1 and (match := re.fullmatch(r"(.*\D.*?)\s+(\d+\s+\d+\s+\d+)", line)):
            parts = [match[1], *match[2].split()]
        given = tuple(int(part) for part in parts if re.fullmatch(r"\d{1,3}", part))
        words = [part for part in parts if part and not re.fullmatch(r"\d{1,3}", part)]
        heads = {part.lower() for part in parts[1:]} & {"name", "r", "g", "b", "value", "id", "label"}
        if heads and not given and not rows:
            continue  # the head of a table
        name = words[0] if given and words else line.strip(" \"'[]")
        if any(number > 255 for number in given) or (given and not words):
            raise UserError(f"{path}: {line!r} is no name with a value or a colour of 0 to 255")
        rows.append((given, name))
    return rows


def find_label_list(folders: Iterable[Path], classes: ClassSet) -> tuple[Values | None, list[str]]:
    """The list of names that lies in one of the folders or one above, and says other than the numbers; and a note.

    A list that names none of the classes is something else, and does not count.

    Raises:
        UserError: two lists beside one another that say different things.
    """
    for place in dict.fromkeys(place for folder in folders for place in (folder, folder.parent)):
        lists: list[Values] = []
        for name in LIST_NAMES:
            if not (place / name).is_file():
                continue
            try:
                found = read_label_list(place / name, classes)
            except UserError:
                continue
            if {*(found.numbers or {}).values(), *found.colours.values()} - {BACKGROUND, IGNORE}:
                lists.append(found)
        if not lists:
            continue
        first = lists[0]
        for other in lists[1:]:
            one, two = ({**(found.numbers or {}), **found.foreign} for found in (first, other))
            if any(one[key] != two[key] for key in one.keys() & two.keys()):
                raise UserError(
                    f"{place} has two lists of names that say different things, {first.source} and {other.source}: "
                    "name the right one by --truth-values FILE, or give --truth-values as-is to read the numbers as "
                    "they are"
                )
        plain = all(number == value for number, value in (first.numbers or {}).items()) and not first.foreign
        if plain and not first.colours:
            return None, []
        what = "numbers and colours" if first.colours else "numbers"
        return first, [f"{first.source} beside the true masks says what their {what} stand for"]
    return None, []


def known_colours(classes: ClassSet) -> Sequence[Mapping[Color, int]]:
    """Mask values by colour: in the class set's own colours, and in VOC's. VOC's cream white is 255."""
    tables = []
    for palette in (tuple(classes.palette[: len(classes)]), color_map(len(classes))):
        table = {color: value for value, color in enumerate(palette)}
        if len(table) == len(palette):  # colours that two classes share tell nothing
            tables.append({color_map(256)[IGNORE]: IGNORE} | table)
    return tuple(tables)
