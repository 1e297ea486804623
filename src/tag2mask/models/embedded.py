"""Networks of Storybook that ship with the package: their names, and where they lie."""

from __future__ import annotations

from pathlib import Path

from tag2mask.types import UserError

STORYBOOK_CLIP = "storybook-clip"
STORYBOOK_RESNET = "storybook-resnet"

EMBEDDED = {STORYBOOK_CLIP: "clip", STORYBOOK_RESNET: "resnet"}
"""The names of all, and their folders in the package."""

WEIGHTS = Path(__file__).parents[1] / "storybook" / "weights"
"""What holds these folders; all are in Hugging Face layout, with a MODEL_CARD.md of what they know."""


def embedded(name: str) -> Path:
    """The folder of a network that ships.

    Raises:
        UserError: the package was installed without its weights.
    """
    folder = WEIGHTS / EMBEDDED[name]
    if lost := _lost(folder):
        raise UserError(
            f"{name} is missing from this installation ({folder} holds no {' and no '.join(lost)}); install tag2mask "
            "again, with its data files"
        )
    return folder


def is_there(name: str) -> bool:
    """Whether the package was installed with the weights of a network that ships."""
    return not _lost(WEIGHTS / EMBEDDED[name])


def _lost(folder: Path) -> list[str]:
    return [file for file in ("config.json", "model.safetensors") if not (folder / file).is_file()]
