"""CLIP-ES: training-free masks from tags by GradCAM on CLIP, refined by its own attention.

Lin et al., "CLIP is Also an Efficient Segmenter: A Text-Driven Approach for Weakly Supervised Semantic
Segmentation", CVPR 2023. The paper reports (VOC 2012 train, ViT-B/16, not measured here): initial 58.6 mIoU,
+ CAA 70.8, + dense CRF 75.0.

Where paper and released code differ, and what ``variant`` takes:

- Positions: the code rounds the interpolated embedding to float16 even on the CPU. "released" keeps it.
- Box masks: the code's boxes lose the grid's last row and column. "released" keeps it.
- CRF image: the code feeds mean-subtracted BGR whose negatives wrap around. "released" keeps it.
- COCO texts: the code says "sknowboard". "released" keeps it, through the text set "clip-es-released".
- The paper says that images keep their size; the code stretches each side up to a multiple of the patch. Both
  variants do, since the grid needs it.
- Eq. 3 sums over the classes; code and Figure 2 over the image's classes and the background set. Both variants do.
- Steps t, layers and Sinkhorn rounds are unstated in the paper; both variants take the code's 2, 8 and 3.
- Confidence: Eq. 8 is on the maps, code and appendix D take the largest CRF posterior: ``MaskRule.confidence``.
- RN50 (Table S1) is GradCAM at the last stage through the attention pool, without refinement.
- Multi-scale, class token, plain MHSA, synonym levels: in the paper's tables, not in the code. Options here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from tag2mask.methods.idle import refuse_idle
from tag2mask.methods.protocol import Method, MethodOptions
from tag2mask.methods.scales import check_scales
from tag2mask.models.tower import Mean, Positions
from tag2mask.ops.affinity import propagate, symmetric_affinity
from tag2mask.ops.boxes import box_masks
from tag2mask.ops.cam import min_max, normalise_cam, score_cotangents
from tag2mask.ops.image import resize_bicubic, standardise
from tag2mask.ops.masks import upsample
from tag2mask.run.warn import warn
from tag2mask.types import ClassSet, Item, MaskRule, Power, Scores, TextSet, UserError

if TYPE_CHECKING:
    from tag2mask.models.weights import CLIP


class ClipESOptions(MethodOptions):
    """Every choice of the paper's tables."""

    variant: Literal["paper", "released"] = Field(
        "paper", description="the paper, or the released code with its faults"
    )
    score: Literal["softmax", "logits"] = Field("softmax", description="what GradCAM differentiates (Table 6)")
    background: bool = Field(
        True, description="let the background set compete; without it, all classes of the data set do (Table 6)"
    )
    readout: Literal["patches", "class"] = Field(
        "patches", description="image embedding: mean of patch tokens, or class token (Table S1)"
    )
    synonyms: Literal["sentence", "feature", "cam", "none"] = Field(
        "sentence", description="where the synonyms of a class are fused (Tables 8, S2)"
    )
    templates: tuple[str, ...] | None = Field(
        None, description="sentences with one {}; several are an ensemble; default: the class set's"
    )
    affinity: Literal["caa", "mhsa", "none"] | None = Field(
        None,
        description="refinement: class-aware, plain attention, or none (Table 2); default caa, for a ResNet none",
    )
    box_threshold: float | None = Field(
        None, ge=0, lt=1, description="λ of the box mask; default 0.4, for coco14 0.7 (Figure S2)"
    )
    steps: int = Field(2, ge=1, description="t of Eq. 7")
    layers: int = Field(8, ge=1, description="attention is averaged over this many last layers")
    scales: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="image scales whose maps are summed (Table 2 *)"
    )
    flip: bool = Field(False, description="add the mirrored image at every scale")
    allow_unknown: bool = Field(
        False, description="continue, with a warning, where a text has words that the tokenizer does not know"
    )
    max_tokens: int = Field(
        4096, ge=1, description="an image with more patches is shrunk to this many, at every scale"
    )

    _scales = field_validator("scales")(check_scales)

    @field_validator("templates")
    @classmethod
    def _one_slot(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if templates == ():
            raise ValueError("no template; leave it unset for the class set's own")
        for template in templates or ():
            if template.count("{}") != 1:
                raise ValueError(f"a template has exactly one {{}}, got {template!r}")
        return templates


class ClipES(Method):
    """CLIP-ES as a tag2mask method. Frozen: it holds text features and computes nothing twice per class."""

    Options = ClipESOptions
    side_by_side = True
    needs = ("clip",)
    options: ClipESOptions

    def __init__(self, classes: ClassSet, options: ClipESOptions | None = None, *, clip: CLIP) -> None:
        super().__init__(classes, options, clip=clip)
        options = self.options
        self.clip = clip
        self.vision = vision = clip.model.vision
        self.packing = vision.pack()
        self.affinity = options.affinity or ("caa" if vision.blocks else "none")
        if not vision.blocks and (self.affinity != "none" or options.readout != "patches"):
            raise UserError(
                f"{clip.name} is a ResNet: it has no attention between patches and no class token, so affinity "
                f"{self.affinity!r} with readout {options.readout!r} cannot run; leave both unset, or use a ViT"
            )
        self._refuse_idle()
        released = options.variant == "released"
        self.mask_rule = MaskRule(
            background=Power(1.0), refiner="clip-es", mu=0.95, refiner_image="wrapped-bgr" if released else "rgb"
        )
        default = 0.7 if classes.id == "coco14" else 0.4
        self.box_threshold = default if options.box_threshold is None else options.box_threshold
        # the rounding is of a transformer's positions; those in a ResNet's pool stay as they are
        self.positions = Positions(mode="bilinear", round_fp16=released and bool(vision.blocks))
        self.layers = min(options.layers, len(vision.blocks))
        if 0 < self.layers < options.layers and "layers" in options.model_fields_set:
            warn(f"{clip.name} has {self.layers} layers, so layers={options.layers} is all")
        self.scale = float(clip.model.logit_scale.exp())
        texts = class_texts(classes, options)
        templates = options.templates or texts.templates
        # (V, C, E): one row of class features per variant of the names; V > 1 only where CAMs are fused
        self.class_features = torch.stack(
            [self._fused(names, templates) for names in _name_variants(classes, texts, options)]
        )
        # (V, C): how much of a class's map each variant is; every synonym counts once, repeats not at all
        counts = torch.tensor([len(p) for p in _phrases(classes, texts, options)])
        order = torch.arange(len(self.class_features))[:, None]
        self.variant_shares = (order < counts) / counts
        self.background_features = None
        if options.background:
            self.background_features = clip.ensemble(texts.background, templates, allow_unknown=options.allow_unknown)

        rivals = (
            self.class_features.shape[1] if self.background_features is None else 1 + len(self.background_features)
        )
        if options.score == "softmax" and rivals < 2:
            raise UserError(
                "with softmax a single text has no rival: its score is 1 whatever the image, and every map is empty; "
                "keep background=true with background words, or take score=logits"
            )

    @property
    def resolved(self) -> dict[str, object]:
        """Options as they took effect, where the default follows the class set or the weights."""
        return {"affinity": self.affinity, "box_threshold": self.box_threshold, "layers": self.layers}

    def _refuse_idle(self) -> None:
        """Raises UserError where an option was given that has no effect beside the others, or with these weights."""
        why = f"with affinity={self.affinity}"
        if self.options.affinity is None and not self.vision.blocks:
            why += f", the only one for {self.clip.name}, which is a ResNet"
        idle = {"caa": (), "mhsa": ("box_threshold",), "none": ("steps", "layers", "box_threshold")}
        refuse_idle("clip-es", self.options, idle[self.affinity], f"{why}; leave it out")
        if self.options.score == "logits":
            refuse_idle("clip-es", self.options, ("background",), "with score=logits, under which nothing competes")

    def _fused(self, phrases: list[tuple[str, ...]], templates: Sequence[str]) -> Tensor:
        """One unit feature per class, (C, E): the mean of its phrases' features, normalised."""
        flat = [phrase for group in phrases for phrase in group]
        features = self.clip.ensemble(flat, templates, allow_unknown=self.options.allow_unknown)  # (all phrases, E)
        groups = features.split([len(group) for group in phrases])
        return F.normalize(torch.stack([group.mean(0) for group in groups]), dim=-1)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w) in patches: each side up to a whole patch, at most ``max_tokens`` in all."""
        return fit_grid(size, self.clip.patch, self.options.max_tokens)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Score maps of the items' tags; see the module's text.

        Raises:
            ValueError: an item without tags, or with one outside the class set.
        """
        by_grid: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            tags = [] if item.tags is None else item.tags.tolist()
            classes = self.class_features.shape[1]
            if not tags or not all(1 <= tag <= classes for tag in tags):
                raise ValueError(f"{item.id} has tags {tags}; CLIP-ES needs at least one, each in 1..{classes}")
            by_grid[self.grid((item.image.shape[1], item.image.shape[2]))].append(i)
        out: dict[int, Scores] = {}
        with torch.inference_mode(), self.packing.used():
            for grid, indices in by_grid.items():
                for i, scores in zip(indices, self._same_grid([items[i] for i in indices], grid), strict=True):
                    out[i] = scores
        return [out[i] for i in range(len(items))]

    def embeddings(self, items: Sequence[Item]) -> Tensor:
        """Image embeddings (B, E), not normalised, as the scores see them: scale 1, the chosen readout."""
        out = []
        with torch.inference_mode(), self.packing.used():
            for item in items:
                pixels = self._pixels([item], self.grid((item.image.shape[1], item.image.shape[2])))
                out.append(self.vision.embedding(pixels, readout=self.options.readout, positions=self.positions))
        return torch.cat(out)

    def _pixels(self, items: Sequence[Item], grid: tuple[int, int]) -> Tensor:
        """Images stretched to one grid and standardised: (B, 3, h patch, w patch)."""
        side = (grid[0] * self.clip.patch, grid[1] * self.clip.patch)
        pixels = torch.stack([resize_bicubic(item.image.cpu(), side) for item in items])  # (B, 3, ...)
        return standardise(pixels.to(self.clip.device), self.clip.mean, self.clip.std)

    def _same_grid(self, items: list[Item], grid: tuple[int, int]) -> list[Scores]:
        """Items of one grid, over all scales; maps of other scales are brought to the grid of scale 1."""
        views = [
            (scale, flip)
            for scale in self.options.scales
            for flip in ((False, True) if self.options.flip else (False,))
        ]
        initial: list[Tensor] = []
        refined: list[Tensor] = []
        for scale, flip in views:
            at = scale_grid(grid, scale, self.options.max_tokens)
            for i, (first, second) in enumerate(self._view(items, at, flip)):
                first, second = (upsample(m.flip(-1) if flip else m, grid) for m in (first, second))
                if len(initial) <= i:
                    initial.append(first)
                    refined.append(second)
                else:
                    initial[i] = initial[i] + first
                    refined[i] = refined[i] + second
        out = []
        for item, first, second in zip(items, initial, refined, strict=True):
            if len(views) > 1:
                first, second = (min_max(m.flatten(1)).view_as(m) for m in (first, second))
            size = (item.image.shape[1], item.image.shape[2])
            assert item.tags is not None  # for the type checker: scores() has refused it
            out.append(Scores(item.tags.cpu(), second.cpu(), size, initial=first.cpu()))
        return out

    def _view(self, items: list[Item], grid: tuple[int, int], flip: bool) -> list[tuple[Tensor, Tensor]]:
        """Initial and refined maps, each (K, h, w) in [0, 1], of images resized to one grid."""
        pixels = self._pixels(items, grid)
        if flip:
            pixels = pixels.flip(-1)
        out = []
        all_tags = [item.tags for item in items if item.tags is not None]
        found = self.vision.gradcams(
            pixels,
            [partial(self._cotangents, tags=tags) for tags in all_tags],
            readout=self.options.readout,
            attention=Mean(self.layers) if self.affinity != "none" else None,
            positions=self.positions,
        )
        for tags, (cams, attention) in zip(all_tags, found, strict=True):
            cams = normalise_cam(cams)  # (V K, N)
            if len(self.class_features) > 1:
                shares = self.variant_shares[:, tags - 1].to(cams.device)  # (V, K)
                cams = min_max((shares[..., None] * cams.view(*shares.shape, -1)).sum(0))  # (K, N)
            cams = cams.view(-1, *grid)  # (K, h, w)
            out.append((cams, cams if attention is None else self._spread(cams, attention)))
        return out

    def _cotangents(self, embedding: Tensor, tags: Tensor) -> Tensor:
        """Gradients of the tags' scores with respect to the embedding (E,): (V K, E), variant by variant."""
        wanted = (tags - 1).to(embedding.device)
        out = []
        for features in self.class_features:
            texts = [features[wanted]]
            if self.background_features is not None:
                texts.append(self.background_features)
            else:  # all classes compete: with the image's alone, one class would have no gradient at all
                others = torch.ones(len(features), dtype=torch.bool, device=features.device)
                others[wanted] = False
                texts.append(features[others])
            out.append(score_cotangents(embedding, torch.cat(texts), len(wanted), self.scale, self.options.score))
        return torch.cat(out)

    def _spread(self, cams: Tensor, attention: Tensor) -> Tensor:
        """Refine (K, h, w) along the attention between patches (N, N), not renormalised after the cut."""
        mask = None
        if self.affinity == "caa":
            keep_edges = self.options.variant == "paper"
            mask = box_masks(cams, self.box_threshold, keep_edges=keep_edges).flatten(1)  # (K, N)
        spread = propagate(symmetric_affinity(attention), cams.flatten(1), mask, self.options.steps)  # (K, N)
        return min_max(spread).view_as(cams)


def fit_grid(size: tuple[int, int], patch: int, max_tokens: int) -> tuple[int, int]:
    """(H, W) in pixels -> (h, w) in patches, each side rounded up, shrunk alike to hold ``max_tokens`` at most."""
    return _at_most((-(-size[0] // patch), -(-size[1] // patch)), max_tokens)


def scale_grid(grid: tuple[int, int], scale: float, max_tokens: int) -> tuple[int, int]:
    """The grid of an image at another scale; never more than ``max_tokens`` either."""
    h, w = (max(1, round(side * scale)) for side in grid)
    return _at_most((h, w), max_tokens)


def _at_most(grid: tuple[int, int], max_tokens: int) -> tuple[int, int]:
    h, w = grid
    if h * w <= max_tokens:
        return h, w
    shrink = (max_tokens / (h * w)) ** 0.5
    h, w = max(1, int(h * shrink)), max(1, int(w * shrink))
    return min(h, max_tokens // w or 1), min(w, max_tokens // h or 1)


def class_texts(classes: ClassSet, options: ClipESOptions) -> TextSet:
    """The class set's texts for CLIP-ES, or those of its released code."""
    if options.variant == "released" and "clip-es-released" in classes.texts:
        return classes.texts["clip-es-released"]
    return classes.texts["clip-es"]


def _phrases(classes: ClassSet, texts: TextSet, options: ClipESOptions) -> list[tuple[str, ...]]:
    """What each class is called: one phrase ("sentence", "none") or its synonyms one by one ("feature", "cam")."""
    if options.synonyms == "none":
        return [(name,) for name in classes.foreground]
    if options.synonyms == "sentence":
        return [(name,) for name in texts.names]
    return [
        tuple(texts.per_class.get(name, ())) or (text,)
        for name, text in zip(classes.foreground, texts.names, strict=True)
    ]


def _name_variants(classes: ClassSet, texts: TextSet, options: ClipESOptions) -> list[list[tuple[str, ...]]]:
    """For each variant of the names, the phrases of every class; a class's phrases are fused as features.

    There is one variant, but for "cam": there each variant names every class by one synonym, and shorter lists go
    round so that a class always competes; its repeats do not count in the fused map.
    """
    phrases = _phrases(classes, texts, options)
    if options.synonyms != "cam":
        return [phrases]
    count = max(len(p) for p in phrases)
    return [[(p[v % len(p)],) for p in phrases] for v in range(count)]
