"""A folder of label maps that others made, in the place of an earlier run whose masks are taken."""

from __future__ import annotations

from pathlib import Path

from tag2mask.run.artefacts import check_id
from tag2mask.run.folder import Run
from tag2mask.types import ClassSet, UserError

__all__ = ["MaskFolder"]


class MaskFolder(Run):
    """Masks ``<id>.png`` and nothing else: no maps, no manifest.

    Args:
        path: the folder. classes: what the values in its masks stand for, which only its user knows.

    Raises:
        UserError: there is no such folder, or no PNG in it.
    """

    def __init__(self, path: Path | str, classes: ClassSet) -> None:
        path = Path(path)
        if next(path.rglob("*.png"), None) is None:
            raise UserError(f"{path}: expected a run, or a folder of label maps, <image id>.png each; it has no PNG")
        about = {"id": classes.id, "names": list(classes.names), "palette": [list(c) for c in classes.palette]}
        super().__init__(
            path,
            {
                "stage": "masks",
                "classes": about,
                "keep_scores": False,
                "supervision": f"tags+masks({path.resolve().name.replace('+', '_')})",
            },
            {},
        )

    def mask_path(self, id: str) -> Path:
        """Where the mask of an image would be."""
        return self.path / f"{check_id(id)}.png"
