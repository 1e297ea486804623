"""Where the weights that ship with the package lie."""

from __future__ import annotations

from pathlib import Path

from tag2mask.models.embedded import STORYBOOK_CLIP, embedded

CLIP_SHA256 = "3ff319885d1cedaed42cf0320618ed4730f5619f4b2373e1c8e34732235a4c61"
"""Of ``model.safetensors`` in the folder of ``embedded_clip``."""


def embedded_clip() -> Path:
    """The folder of storybook-clip, in Hugging Face layout. Its MODEL_CARD.md says what it knows.

    Raises:
        UserError: the package was installed without its weights.
    """
    return embedded(STORYBOOK_CLIP)
