"""What is said of an error that befalls one image and stops nothing else."""

from __future__ import annotations

import os
import traceback

from tag2mask.data.image import BadImage
from tag2mask.types import UserError

__all__ = ["describe"]


def describe(error: Exception) -> str:
    """An error in one line; one that nobody foresaw also says where it arose."""
    if isinstance(error, BadImage | UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str):
        return f"{error.filename}: {error.strerror}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
