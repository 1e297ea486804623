"""run.yaml: what was asked of a run, and under which circumstances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tag2mask import __version__
from tag2mask.classes import CLASSES_FILE, classes_json, color_map
from tag2mask.run.files import write_atomic
from tag2mask.run.renamed import as_today
from tag2mask.run.settings import added_classes, describe_differences, without_machine
from tag2mask.types import UserError

__all__ = ["LAYOUT", "may_resume", "read_document", "write_classes", "write_document"]

LAYOUT = 2
"""Of the run folder. In the first a run was of one list of images, and its manifest did not say what masks are of."""

_MADE_BY = "tag2mask"


def read_document(folder: Path) -> dict[str, Any] | None:
    """What a folder's run.yaml holds, its settings by the names of today; or None if there is none of ours.

    Raises:
        UserError: it is not readable, or damaged.
    """
    path = folder / "run.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable ({error}); choose another folder") from None
    if not isinstance(document, dict) or not str(document.get("made_by", "")).startswith(_MADE_BY):
        return None
    if not isinstance(document.get("settings"), dict) or not isinstance(document.get("noted"), dict):
        raise UserError(f"{path} is damaged: it has no settings; choose another folder")
    return {**document, "settings": as_today(document["settings"])}


def write_document(folder: Path, images: int | None, settings: Mapping[str, Any], noted: Mapping[str, Any]) -> None:
    """Write run.yaml: plain values alone. Raises OSError where the folder cannot be written."""
    head = {"made_by": f"{_MADE_BY} {__version__}", "layout": LAYOUT, "images": images}
    head |= {"settings": dict(settings), "noted": dict(noted)}
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    write_atomic(folder / "run.yaml", text.encode(), token="setup", sync=True)


def write_classes(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what the mask values stand for, where the settings say it and no file there does."""
    classes = settings.get("classes") or {}
    names = classes.get("names")
    if not names:
        return
    content = classes_json(names, classes.get("palette") or color_map(len(names)))
    path = folder / CLASSES_FILE
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content, token="setup")


def may_resume(document: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Why a run may not be resumed with these settings, as in "it was made ...", or ""; and classes that they add.

    Classes may be added at the end of the run's own: masks that are there keep their meaning.
    """
    if document is None:
        return "", ()
    layout = document.get("layout", 1)
    if isinstance(layout, int) and layout > LAYOUT:
        return f"by a newer version of tag2mask (its folder has layout {layout}, here {LAYOUT} is known)", ()
    if layout != LAYOUT:
        return (
            "by an earlier version of tag2mask, which did not note what its masks were made of: it can be evaluated, "
            "exported and trained on, but not resumed",
            (),
        )
    before = without_machine(document["settings"])
    added = added_classes(before.get("classes"), settings.get("classes"))
    if added:
        before = {**before, "classes": settings["classes"]}
    differences = describe_differences(before, settings)
    return f"with other settings: {differences}" if differences else "", added
