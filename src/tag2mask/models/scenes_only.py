"""What is said where weights that have seen drawn scenes alone are about to look at a user's images."""

from __future__ import annotations

from tag2mask.run.warn import warn


def knows_no_photographs(name: str) -> str:
    """What everyone must know of embedded weights."""
    return f"{name} was trained on drawn Storybook scenes alone and knows no photographs"


def warn_of_scenes(name: str, instead: str) -> None:
    """Warn of embedded weights. name: theirs. instead: what to take for photographs."""
    warn(f"{knows_no_photographs(name)}; for photographs take {instead}")
