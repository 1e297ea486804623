"""Which classes are in a picture, by a CLIP alone: what a person may take for a first draft of its tags."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.image import resize_bicubic, standardise
from tag2mask.ops.zero_shot import VIEWS, class_scores, crop_views, view_grid
from tag2mask.types import ClassSet, UserError

if TYPE_CHECKING:
    from tag2mask.models.weights import CLIP

PHOTO_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a close-up photo of a {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
)
"""The most general of CLIP's own 80 for ImageNet; a text's feature is the mean over them."""


class ZeroShot:
    """Scores of all classes of a set, for pictures of any size.

    Classes and what else may be shown are called as the class set's texts for CLIP-ES have them.
    """

    def __init__(
        self,
        classes: ClassSet,
        clip: CLIP,
        templates: Sequence[str] | None = None,
        *,
        allow_unknown: bool = False,
    ) -> None:
        """templates: sentences with one {}; None: ``PHOTO_TEMPLATES``, but for those with words the CLIP lacks.

        Raises:
            UserError: words that this CLIP does not know, or a template without {}.
        """
        texts, self.clip = classes.texts["clip-es"], clip
        if templates is None:
            templates = [each for each in PHOTO_TEMPLATES if not clip.unknown(each.replace("{}", " "))]
            if not templates:
                raise UserError(f"{clip.name} knows no template of ours; give one in its words (--template)")
        self.templates = tuple(templates)
        self.names, self.background = texts.names, texts.background
        self.classes = clip.ensemble(self.names, self.templates, allow_unknown=allow_unknown)  # (C, E)
        self.others = clip.ensemble(self.background, self.templates, allow_unknown=allow_unknown)  # (M, E)
        if len(self.classes) + len(self.others) < 2:
            raise UserError("a single class without background words has no rival: name two classes or more")
        h, w = clip.model.vision.native_grid
        self._tokens = h * w

    def scores(self, images: Sequence[Tensor]) -> Tensor:
        """(3, H, W) uint8 each -> (B, C) within 0 and 1, see ``ops.zero_shot.class_scores``."""
        by_grid: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, image in enumerate(images):
            by_grid[view_grid((image.shape[1], image.shape[2]), self._tokens)].append(place)
        found = torch.empty(len(images), len(self.classes))
        scale = float(self.clip.model.logit_scale.exp())
        with torch.inference_mode():
            for grid, places in by_grid.items():
                unit = F.normalize(self._embeddings([images[place] for place in places], grid).float(), dim=-1)
                unit = unit.unflatten(0, (len(places), VIEWS))  # (B, V, E)
                found[places] = class_scores(unit, self.classes, self.others, scale).cpu()
        return found

    def _embeddings(self, images: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Of all views of all images, (B V, E), not normalised."""
        clip = self.clip
        side = (grid[0] * clip.patch, grid[1] * clip.patch)
        views = [resize_bicubic(view.cpu(), side) for image in images for view in crop_views(image)]
        pixels = standardise(torch.stack(views).to(clip.device), clip.mean, clip.std)
        return clip.model.vision.embedding(pixels, readout="class" if clip.model.vision.blocks else "patches")
