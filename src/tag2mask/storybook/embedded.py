"""Where the weights that ship with the package lie."""

from __future__ import annotations

from pathlib import Path

from tag2mask.types import UserError

CLIP_SHA256 = "3fb2c5b1c25cf12bb96f92a8f060f35185979e00dddee0c4b57baf90e567df2d"
"""Of ``model.safetensors`` in the folder of ``embedded_clip``."""


def embedded_clip() -> Path:
    """The folder of storybook-clip, in Hugging Face layout. Its MODEL_CARD.md says what it knows.

    Raises:
        UserError: the package was installed without its weights.
    """
    folder = Path(__file__).parent / "weights" / "clip"
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"no weights in {folder}, where storybook-clip should be; install the package again, with its data files"
        )
    return folder
