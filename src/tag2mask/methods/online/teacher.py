"""Pictures and tags to class maps and pseudo labels, by a frozen CLIP: WeCLIP's, at every step of its training.

The tower runs once, without gradients, for the decoder and for the maps. GradCAM of all classes of an image is one
closed form (``models.vjp``); affinities, class distributions and PAR are computed for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.models.clip import VisionTransformer
from tag2mask.models.tower import Positions
from tag2mask.models.weclip import Seen, class_cams, look
from tag2mask.ops.affinity import Affinity, choose_layers, make_affinity, spread
from tag2mask.ops.cam import min_max, normalise_cam
from tag2mask.ops.class_distributions import distribution_factor
from tag2mask.ops.image import standardise
from tag2mask.ops.masks import upsample, winner
from tag2mask.ops.par import PAR, PARSettings, par
from tag2mask.types import IGNORE

Feature = Literal["last", "value"]


@dataclass(frozen=True)
class Maps:
    """Of one image: initial and refined maps of its tags, (K, h, w) in [0, 1], and its affinity (N, N), if any."""

    initial: Tensor
    refined: Tensor
    affinity: Tensor | None


@dataclass(frozen=True)
class Ground:
    """What a frozen CLIP says of a batch before any decoder has a part in it.

    attentions: (B, k, N, N) between patches, of the layers that an affinity goes by. initial: maps (K, h, w) in
    [0, 1] of each image's tags. factor: (B, N, N) of class distributions, where the affinity is rectified by them.
    """

    attentions: Tensor
    initial: tuple[Tensor, ...]
    factor: Tensor | None


@dataclass(frozen=True)
class Texts:
    """Unit rows of texts: of the classes (C, E), of what is no class (M, E), and all that class distributions range
    over (T, E).
    """

    classes: Tensor
    background: Tensor
    compared: Tensor


class Teacher:
    """A frozen CLIP with the texts of a class set.

    Args:
        vision: its image transformer.
        scale: of its logits.
        texts: see there.
        layers: the attention of so many last layers is kept.
        positions, statistics: how pictures enter the tower; statistics are mean and deviation of its pixels, in 0..1.
        feature: what class distributions compare with texts: patch tokens after the "last" block, or its "value" path
            alone.
        refiner: PAR's settings.
    """

    def __init__(
        self,
        vision: VisionTransformer,
        scale: float,
        texts: Texts,
        *,
        layers: int,
        positions: Positions,
        statistics: tuple[tuple[float, ...], tuple[float, ...]],
        feature: Feature = "last",
        refiner: PARSettings = PAR,
    ) -> None:
        self.vision, self.scale, self.texts, self.layers = vision, scale, texts, layers
        self.positions, self.statistics = positions, statistics
        self.feature, self.refiner = feature, refiner

    def pixels(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB 0-255 -> standardised."""
        return standardise(images, *self.statistics)

    def look(self, pixels: Tensor) -> Seen:
        """One pass of the tower over standardised pixels (B, 3, H, W), whose sides are whole patches."""
        return look(self.vision, pixels, self.layers, self.positions)

    @torch.no_grad()
    def patch_features(self, seen: Seen) -> Tensor:
        """Of patches, among the texts: (B, N, E) unit rows."""
        if self.feature == "value":
            tokens = self.vision.blocks[-1].attn.value(seen.last.activation)[:, 1:]
        else:
            tokens = seen.last.tokens[:, 1:]
        return F.normalize(self.vision.project(tokens).float(), dim=-1)

    @torch.no_grad()
    def ground(self, seen: Seen, tags: Sequence[Tensor], settings: Affinity) -> Ground:
        """What the settings go by, and the initial maps of each image's tags (K,)."""
        factor = None
        if settings.steps and settings.distributions is not None:
            factor = distribution_factor(self.patch_features(seen), self.texts.compared, settings.distributions)
        own = [each.to(self.texts.classes.device) for each in tags]
        initial = tuple(self.cams(seen, i, self.texts.classes[each - 1]) for i, each in enumerate(own))
        return Ground(seen.attentions[:, -settings.layers :], initial, factor)

    @staticmethod
    @torch.no_grad()
    def affinities(ground: Ground, settings: Affinity, decoder: Tensor | None) -> Tensor | None:
        """The affinity of each image (B, N, N); None where nothing is spread.

        decoder: the decoder's affinity (B, N, N), if the settings use it.
        """
        if not settings.steps:
            return None
        attention = choose_layers(ground.attentions, decoder, settings.choose)
        return make_affinity(attention, settings, decoder=decoder, factor=ground.factor)

    @torch.no_grad()
    def maps(
        self,
        seen: Seen,
        tags: Sequence[Tensor],
        settings: Affinity,
        decoder: Tensor | None = None,
        probs: Tensor | None = None,
    ) -> list[Maps]:
        """Maps of each image's tags (K,); without tags there are none.

        probs: the decoder's class probabilities (B, C + 1, h, w), to multiply the initial maps by (WeCLIP+).
        """
        return self.refined(self.ground(seen, tags, settings), tags, settings, decoder, probs)

    @torch.no_grad()
    def refined(
        self,
        ground: Ground,
        tags: Sequence[Tensor],
        settings: Affinity,
        decoder: Tensor | None = None,
        probs: Tensor | None = None,
    ) -> list[Maps]:
        """``maps`` from what ``ground`` gave of these tags by these settings."""
        matrices = self.affinities(ground, settings, decoder)
        out = []
        for i, own in enumerate(tags):
            initial = ground.initial[i]
            if probs is not None:
                initial = initial * probs[i, own.to(probs.device)]
            matrix = None if matrices is None else matrices[i]
            out.append(Maps(initial, self.spread(initial, matrix, settings), matrix))
        return out

    @torch.no_grad()
    def cams(self, seen: Seen, image: int, texts: Tensor) -> Tensor:
        """GradCAM of one image for texts (K, E) that compete with each other and the background's: (K, h, w)."""
        if not len(texts):
            return seen.embedding.new_zeros(0, *seen.grid)
        rivals = torch.cat([texts, self.texts.background])
        cams = class_cams(self.vision, seen, image, rivals, len(texts), self.scale)  # (K, N)
        return normalise_cam(cams.float()).view(-1, *seen.grid)

    @staticmethod
    def spread(maps: Tensor, affinity: Tensor | None, settings: Affinity) -> Tensor:
        """Maps (K, h, w) along an affinity (N, N), brought back to [0, 1]."""
        if affinity is None or not len(maps):
            return maps
        return min_max(spread(affinity, maps, settings).flatten(1)).view_as(maps)

    def refine(self, pixels: Tensor, scores: Sequence[Tensor]) -> list[Tensor]:
        """PAR over the scores (S, H, W) of each image, on a GPU all images at once; images have S of their own."""
        if pixels.device.type == "cpu":  # where a batch is no quicker, and filling it up costs
            return [par(one[None], own[None], self.refiner)[0] for one, own in zip(pixels, scores, strict=True)]
        most = max(len(each) for each in scores)
        filled = [F.pad(each, (0, 0, 0, 0, 0, most - len(each))) for each in scores]
        refined = par(pixels, torch.stack(filled), self.refiner)
        return [one[: len(each)] for one, each in zip(refined, scores, strict=True)]

    @torch.no_grad()
    def labels(self, pixels: Tensor, maps: Sequence[Tensor], tags: Sequence[Tensor], known: Tensor | None) -> Tensor:
        """Pseudo labels of a batch.

        Args:
            pixels: (B, 3, H, W) standardised.
            maps: (K, h, w) in [0, 1] of each image.
            tags: (K,) of each image.
            known: (B, H, W) bool; elsewhere the label is IGNORE. None: everywhere.

        Returns:
            (B, H, W) uint8 of 0, the tags, and IGNORE. An image without tags is background.
        """
        size = (pixels.shape[2], pixels.shape[3])
        scores = []
        for own in maps:
            large = upsample(own, size)  # (K, H, W)
            background = 1 - large.amax(0, keepdim=True) if len(large) else torch.ones(1, *size, device=large.device)
            scores.append(torch.cat([background, large]))
        labels = []
        for refined, own in zip(self.refine(pixels, scores), tags, strict=True):
            values = torch.cat([own.new_zeros(1), own]).to(refined.device, torch.uint8)
            labels.append(values[winner(refined)])
        out = torch.stack(labels)
        return out if known is None else torch.where(known, out, IGNORE)
