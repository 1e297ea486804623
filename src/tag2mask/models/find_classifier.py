"""Where a classifier of ours lies: its folder, by whatever of it a user names."""

from __future__ import annotations

from pathlib import Path

from tag2mask.models.embedded import STORYBOOK_RESNET, embedded
from tag2mask.models.public_resnet import about_own
from tag2mask.run.document import read_document
from tag2mask.run.files import file_sha256
from tag2mask.types import UserError

MODEL_TYPE = "tag2mask-classifier"
WEIGHTS = "model.safetensors"
MAKE = "`tag2mask label IMAGES -m classifier-cam --set epochs=5 --set weights=RESNET50.pth --fit-only -o RUN`"
"""The command that makes a classifier of a user's own images."""


def is_classifier(source: str | Path) -> bool:
    """Whether weights are meant to be a classifier of ours, there or not: all but the files of others are."""
    path = Path(source).expanduser()
    return not path.is_file() or _is_own(path)


def weights_file(source: str | Path) -> Path:
    """The file that weights are in: the source itself, or the one of a classifier of ours.

    Raises:
        UserError: as ``find_classifier``.
    """
    return find_classifier(source) / WEIGHTS if is_classifier(source) else Path(source).expanduser()


def weights_sha256(source: str | Path) -> str:
    """The sha256 of that file."""
    return file_sha256(weights_file(source))


def find_classifier(source: str | Path = STORYBOOK_RESNET, instead: str = "") -> Path:
    """The folder of config.json and model.safetensors.

    source: that folder, the weights in it, a run of classifier-cam that learned, or "storybook-resnet".
    instead: what else the caller takes, for the message.

    Raises:
        UserError: there is none, with the command that makes one.
    """
    path = Path(source).expanduser()
    if str(source) == STORYBOOK_RESNET:
        return embedded(STORYBOOK_RESNET)
    folder = path.parent if path.is_file() and _is_own(path) else _folder_of_run(path) or path
    what = (
        f"expected {STORYBOOK_RESNET}, a run that learned a classifier ({MAKE} makes one), or a folder that "
        f"`tag2mask storybook pretrain-resnet` wrote{instead}"
    )
    if not folder.exists():
        raise UserError(f"{path} does not exist; {what}")
    if folder.is_file():
        raise UserError(f"{path} is a file that does not say which classes it knows; {what}")
    lost = [name for name in ("config.json", WEIGHTS) if not (folder / name).is_file()]
    if lost:
        raise UserError(f"{folder}: holds no {' and no '.join(lost)}; {what}")
    return folder


def _is_own(file: Path) -> bool:
    """Whether a file is the weights of a classifier of ours, beside its settings."""
    from safetensors import SafetensorError, safe_open

    if file.name != WEIGHTS or not (file.parent / "config.json").is_file():
        return False
    try:
        with safe_open(file, "pt") as opened:
            return about_own(opened.metadata() or {}).get("model_type") == MODEL_TYPE
    except (OSError, SafetensorError):
        return False


def _folder_of_run(path: Path) -> Path | None:
    """Where a run keeps the classifier that it learned; None where the path is no run.

    Raises:
        UserError: it is a run, and keeps none.
    """
    document = read_document(path)
    if document is None:
        return None
    settings, folder = document["settings"], path / "checkpoints"
    method = settings.get("method")
    if method != "classifier-cam":
        raise UserError(f"{path} is a run of {method or settings.get('stage')}; expected one of classifier-cam")
    learned = settings.get("fitted")
    if learned is None:
        used = (settings.get("options") or {}).get("weights")
        raise UserError(f"{path} learned nothing; name the weights that it labelled with, {used}")
    if learned != "here":
        raise UserError(
            f"{path} took what another run learned; name that one, {document['noted'].get('fitted_path')}"
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{path} has not finished learning; give its command again to resume it")
    return folder
