"""Settings as plain values that YAML keeps unchanged, and how two sets of them differ."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tag2mask.run.files import cannot_write, write_atomic
from tag2mask.types import Background, UserError

_SHOWN = 5
_OF_MACHINE = ("workers", "minutes")


def plain(value: Any) -> Any:
    """The value in mappings, lists, strings, numbers and None, the same before and after a trip through YAML.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, Background):
        return value.plain()
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Path):
        return plain(value.as_posix())
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # a path may hold what UTF-8 cannot
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    raise TypeError(f"settings hold {type(value).__name__} {value!r}, which run.yaml cannot keep")


def without_machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without what earlier versions kept among a method's options, and what decides nothing."""
    options = settings.get("options")
    if not isinstance(options, Mapping):
        return dict(settings)
    return {**settings, "options": {key: value for key, value in options.items() if key not in _OF_MACHINE}}


def describe_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, each as ``key is A there and B now``; empty when none does."""
    old, new = dict(_leaves(there)), dict(_leaves(now))
    keys = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    return _differences(keys, old, new)


def added_classes(there: Any, now: Any) -> tuple[str, ...]:
    """The classes that a class set (as ``plain`` gives it) has after all those of another, or () where it is no such.

    Nothing that is said of the old ones may differ: they keep their mask values, colours and texts.
    """
    if not isinstance(there, Mapping) or not isinstance(now, Mapping) or there == now:
        return ()
    names, more = list(there.get("names") or ()), list(now.get("names") or ())
    count = len(names)
    if not (0 < count < len(more) and more[:count] == names and there.keys() == now.keys()):
        return ()
    same = all(
        _grows(there[key], now[key], count) if key in ("palette", "texts") else there[key] == now[key]
        for key in there
        if key != "names"
    )
    return tuple(str(name) for name in more[count:]) if same else ()


def _grows(there: Any, now: Any, count: int) -> bool:
    """Whether palette or texts of ``count`` mask values say the same of these, and perhaps something of others."""
    if isinstance(there, list):
        return bool(now[:count] == there[:count])
    return there.keys() == now.keys() and all(
        texts["names"] == now[method]["names"][: count - 1]
        and all(now[method][key] == texts[key] for key in ("templates", "background"))
        and all(now[method]["per_class"].get(name) == said for name, said in texts["per_class"].items())
        for method, texts in there.items()
    )


def _differences(keys: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    shown = [_difference(key, old, new) for key in keys[:_SHOWN]]
    if len(keys) > _SHOWN:
        shown.append(f"and {len(keys) - _SHOWN} more")
    return "; ".join(shown)


def _difference(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    then: Any = old.get(key)
    now: Any = new.get(key)
    lists = isinstance(then, list) and isinstance(now, list) and len(then) == len(now)
    if lists and _show(old, key) == _show(new, key):
        # long lists look alike when cut short: show the first entry that is not the same
        i = next(i for i, pair in enumerate(zip(then, now, strict=True)) if pair[0] != pair[1])
        key, old, new = f"{key}[{i}]", {f"{key}[{i}]": then[i]}, {f"{key}[{i}]": now[i]}
    return f"{key} is {_show(old, key)} there and {_show(new, key)} now"


def check_own(folder: Path, mark: str) -> None:
    """Refuse a folder with things in it but without ``mark``, the file in it that says they are ours.

    Called before anything is written there. Names that begin with a dot do not count.

    Raises:
        UserError: naming some of them.
    """
    if (folder / mark).is_file() or not folder.is_dir():
        return
    own = Path(mark).parts[0]
    held = sorted(each.name for each in folder.iterdir() if not each.name.startswith(".") and each.name != own)
    if held:
        named = ", ".join(held[:4]) + (", ..." if len(held) > 4 else "")
        raise UserError(
            f"--out {folder} holds other things ({named}), and nothing is overwritten; choose a new folder"
        )


def claim(path: Path, settings: Mapping[str, Any], *, begun: bool = True) -> None:
    """Make the folder of ``path`` that of a training with these settings, or see that it already is.

    Args:
        path: a JSON file, written where there is none.
        settings: all that decides what the training ends in; ``plain`` values.
        begun: whether something was learned there; if not, other settings may take the folder over.

    Raises:
        UserError: the folder holds another training, is damaged, or cannot be written.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomic(path, (json.dumps(settings, indent=2) + "\n").encode())
            return
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        there = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError(f"expected a mapping, got {type(there).__name__}")
    except OSError as error:
        raise cannot_write(f"--out {folder}", error) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove {folder}, or choose another --out") from error
    differences = describe_differences(there, settings)
    if differences and begun:
        raise UserError(f"{folder} holds another training: {differences}; choose another --out")
    if differences:
        write_atomic(path, (json.dumps(settings, indent=2) + "\n").encode())


_ABSENT = object()


def _show(leaves: Mapping[str, Any], key: str) -> str:
    text = repr(leaves[key]) if key in leaves else "absent"
    return text if len(text) <= 60 else text[:57] + "..."


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
