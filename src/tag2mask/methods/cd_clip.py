"""CD-CLIP, a reconstruction: WeCLIP with class distributions in its affinity and boundaries between super-classes.

Z. Yang, X. Zhao, X. Wang, Q. Zhang and J. Xiao, "Leveraging Class Distributions in CLIP for Weakly Supervised
Semantic Segmentation", CVPR 2026. No code of it is public. What is here was built from the abstract, the supplement
and notes on the paper, and is **not the authors' own**: where these leave something open, the readings are options,
the default is ours, and the paper's numbers (mIoU with dense CRF on VOC 2012 val 82.5, on COCO val 54.1; of
maps 80.8) were not reproduced here.

Known: the divergence (Jensen-Shannon), that it rectifies the initial affinity, that all classes and super-classes are
compared, super-class prototypes on DINOv2's features, Dice against them where an image has two super-classes or more,
its weight 0.6, and the training: WeCLIP's decoder, AdamW at 2e-5 (the decoder at 10 times that, which is WeCLIP+'s
rule), 30 000 steps of 4 crops of 320 on VOC, 80 000 of 8 on COCO, tests at scales 1 and 1.5, mirrored, with CRF.

Open, and what is taken here:

===============================  ==================================================================================
min-max of similarities          per text over the patches (``shares_over``)
tau                              a quarter of the image's median distance (``tau``, ``tau_of``)
product with the affinity        entry by entry, with exp(-D / tau) (``combine``), before Sinkhorn (``place``); as a
                                 product of matrices at tau 0.1, which is the literal reading, maps lose their shape
side of the product with maps    A M; the notes write M A (``side``); the same for the symmetric default
patch features                   the last block's tokens, projected (``feature``)
map of a super-class             the highest of its members' (``boundary_source``), on drawn scenes right more often
                                 near contacts than GradCAM of its own text
background of boundary labels    1 - the highest map (``boundary_background``)
the network's super-classes      its probabilities, summed over the classes of each
the decoder's affinity loss      kept, at 0.1 (``affinity_weight``)
maps times probabilities         not (``feedback``); WeCLIP+ does it
which class is in which          by the words' meaning; see ``superclasses`` in the class set's file
padding of crops                 ignored; WeCLIP labels it
===============================  ==================================================================================

``setting`` is a row of the paper's Table 3: 0 none, 1 CAA, 2 RFM, 3 CDA, 4 CDA + CAA, 5 CDA + RFM, 6 CDA +
boundaries. An option that a row leaves without effect is refused. With ``setting=1`` a step is WeCLIP's before its
switch. In rows 2 and 5 the attention is multiplied by the decoder's affinity from step 0 on, when the decoder has
learned nothing: WeCLIP waits with RFM for its switch, what is known of the paper names none for these rows.
Boundaries only teach: at test time the decoder and its CLIP are all that is needed.

WeCLIP+, whose training this is, does more, which is off here and can be asked for: ``decoder=clip+dino`` (a second
fuse layer over a DINO's features; both outputs agree by ``mutual_weight``, their mean counts, and the DINO is needed
at test time, too), ``feedback``, ``dice_weight`` and ``replace_at``. Its code (zbf1991/WeCLIP at 0f47db4) has rules
for one data set alone; ``recipes/`` has a file for each:

============================  ===========================  =================
WeCLIP+                       VOC                          COCO
============================  ===========================  =================
labels replaced after step    18 000 of 30 000             40 000 of 80 000
boxes                         none                         at 0.7
batch                         4                            8
layers that RFM chooses from  6                            8
CRF at test time              yes                          no
blocks before GradCAM's       one is left out: not here    all
tags from                     the images' object names     true masks: not here
============================  ===========================  =================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tag2mask.methods.online.boundaries import Boundaries, BoundarySettings
from tag2mask.methods.online.method import Online, OnlineOptions
from tag2mask.methods.online.recipe import OnlineRecipe, recipe_of
from tag2mask.methods.online.teacher import Feature
from tag2mask.methods.weclip import tuned, without_effect
from tag2mask.ops.affinity import AFFINITIES, Affinity
from tag2mask.ops.class_distributions import ClassDistributions
from tag2mask.ops.divergences import CONTROLS, DISTANCES
from tag2mask.ops.superclasses import superclass_values
from tag2mask.run.warn import warn
from tag2mask.types import ClassSet, UserError

if TYPE_CHECKING:
    from tag2mask.models.dino import DINO
    from tag2mask.models.weights import CLIP

SETTINGS: dict[int, tuple[str, bool]] = {
    0: ("none", False),
    1: ("caa", False),
    2: ("rfm", False),
    3: ("cda", False),
    4: ("cda+caa", False),
    5: ("cda+rfm", False),
    6: ("cda", True),
}
"""Rows of the paper's Table 3: the affinity, and whether boundaries are taught."""


_OF_BOUNDARIES = ("boundary_weight", "boundary_gate", "boundary_source", "boundary_background", "structure")


class CDCLIPOptions(OnlineOptions):
    """The row of Table 3, class distributions, boundaries, and what WeCLIP+ adds."""

    setting: int = Field(6, ge=0, le=6, description="row of Table 3: 0 none, 1 CAA, 2 RFM, 3 CDA, 4 CDA+CAA, 5 "
                         "CDA+RFM, 6 CDA and boundaries")  # fmt: skip
    batch: int | None = Field(None, ge=1, description="images at a time; default 4, for coco14 8")
    distance: str = Field("js", description=f"of class distributions: {', '.join(DISTANCES)}")
    shares_over: Literal["text", "patch", "all"] = Field(
        "text", description="over what similarities are brought to 0..1: each text, each patch, or all"
    )
    temperature: float = Field(1.0, gt=0, description="temperature of the softmax over the texts")
    tau: float = Field(0.25, gt=0, description="distances are divided by it")
    tau_of: Literal["median", "one"] = Field(
        "median", description="tau is a share of the image's median, or a number"
    )
    combine: Literal["mul", "mul-rows", "matmul", "replace"] = Field(
        "mul", description="with the affinity: entries times exp(-D / tau), or rows of a softmax in three ways"
    )
    place: Literal["before", "after"] = Field(
        "before", description="whether they are combined before or after Sinkhorn"
    )
    side: Literal["arriving", "leaving"] = Field("arriving", description="A M, or M A")
    feature: Literal["last", "value"] = Field("last", description="patch tokens of the last block, or its values")
    compared: Literal["classes", "classes+super", "classes+super+background"] = Field(
        "classes+super", description="texts that distributions range over"
    )
    superclasses: str | None = Field(
        None, description="the set of super-classes, by its name in the class set; default: the first there"
    )
    boundary_weight: float = Field(0.6, ge=0, description="lambda of the boundary loss")
    boundary_gate: Literal["several", "one", "all", "never"] = Field(
        "several", description="which images it teaches, by how many super-classes they have"
    )
    boundary_source: Literal["members", "texts"] = Field(
        "members", description="the map of a super-class: the highest of its classes', or of its own text"
    )
    boundary_background: Literal["maps", "prototypes", "none"] = Field(
        "maps", description="background of boundary labels: 1 - the highest map or prototype's map, or none"
    )
    structure: Literal["dino", "clip"] = Field(
        "dino", description="features of the prototypes: DINO's (--dino), or, where there is none, CLIP's own patches"
    )
    boxes: bool | None = Field(
        None, description="spread only from inside the boxes of a map; default as the setting has it, WeCLIP+ has "
        "none on VOC"
    )  # fmt: skip
    decoder: Literal["clip", "clip+dino"] = Field(
        "clip",
        description="what the decoder stands on: CLIP's blocks (WeCLIP), or its last but one and a DINO (WeCLIP+)",
    )
    mutual_weight: float = Field(
        0.1, ge=0, description="weight of the agreement between the decoder's two outputs, with decoder=clip+dino"
    )
    feedback: bool = Field(False, description="multiply initial maps by the decoder's probabilities, as WeCLIP+ does")
    dice_weight: float = Field(0.0, ge=0, description="weight of WeCLIP+'s Dice loss over all classes")
    replace_at: int | None = Field(
        None, ge=0, description="step from which sure predictions replace labels, as in WeCLIP+"
    )
    sure: float = Field(0.75, ge=0, le=1, description="a prediction above this is sure")


def _bounded(options: CDCLIPOptions) -> bool:
    """Whether boundaries are taught."""
    return bool(SETTINGS[options.setting][1] and options.boundary_weight and options.boundary_gate != "never")


class CDCLIP(Online):
    """CD-CLIP, reconstructed, as a tag2mask method; fitted by ``stages.machinery.fit``, or ready after ``load``."""

    Options = CDCLIPOptions
    name = "cd-clip"
    options: CDCLIPOptions

    @classmethod
    def towers_of(cls, options: Any) -> tuple[str, ...]:
        """A DINO where boundaries are taught by one, or the decoder stands on one."""
        used = (_bounded(options) and options.structure == "dino") or options.decoder == "clip+dino"
        return (*cls.needs, *(("dino",) if used else ()))

    def __init__(
        self, classes: ClassSet, options: CDCLIPOptions | None = None, *, clip: CLIP, dino: DINO | None = None
    ) -> None:
        chosen = options or CDCLIPOptions()
        if chosen.distance not in DISTANCES:
            raise UserError(f"cd-clip: distance {chosen.distance!r} is not known; known: {', '.join(DISTANCES)}")
        if chosen.variant == "released":
            raise UserError("cd-clip: no code of CD-CLIP was released, so there is no such variant; take paper")
        if chosen.decoder == "clip+dino" and chosen.statistics != "imagenet":
            raise UserError(
                f"cd-clip: statistics={chosen.statistics} with decoder=clip+dino: CLIP and the DINO see the same "
                "pixels, and a DINO knows ImageNet's; leave statistics out"
            )
        if chosen.views and chosen.feedback and _bounded(chosen):
            raise UserError(
                "cd-clip: views keeps boundary labels, and feedback changes them at every step; leave one of them "
                "out, or boundaries (--set boundary_gate=never)"
            )
        self.groups, self.group_names = self._groups(classes, chosen)
        self.dino = dino
        super().__init__(classes, chosen, clip=clip, **({} if dino is None else {"dino": dino}))

    @staticmethod
    def _groups(classes: ClassSet, options: CDCLIPOptions) -> tuple[dict[str, tuple[int, ...]], str]:
        """The super-classes that have classes, where the options use any, and the name of their set."""
        affinity, bounded = SETTINGS[options.setting]
        if not bounded and not (affinity.startswith("cda") and "super" in options.compared):
            return {}, ""
        if not classes.superclasses:
            raise UserError(
                f"cd-clip compares super-classes, and classes {classes.id!r} have none; give some under superclasses "
                "in the class set's YAML, or take --set setting=3 --set compared=classes"
            )
        name = options.superclasses or next(iter(classes.superclasses))
        groups, empty = superclass_values(classes, name)
        if empty:
            warn(f"super-classes {name!r}: {', '.join(empty)} have no class in {classes.id!r}; they are left out")
        return groups, name

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        return {**super().resolved, "superclasses": self.groups}

    def make_recipe(self) -> OnlineRecipe:
        """As ``Online`` asks: the same affinity from the first step on."""
        options = self.options
        affinity = self.spreading()
        return recipe_of(
            options,
            steps=self.steps,
            batch=8 if self.coco else 4,
            patch=self.clip.patch,
            lr=self.decoder_lr(2e-5),
            early=affinity,
            late=affinity,
            switch=0,
            padding="ignored",
            dice_weight=options.dice_weight,
            mutual_weight=options.mutual_weight if options.decoder == "clip+dino" else 0.0,
            feedback=options.feedback,
            replace_at=options.replace_at,
            sure=options.sure,
        )

    def idle(self) -> dict[str, set[str]]:
        """Of the row of Table 3, and of options that switch others off."""
        options, (_, bounded) = self.options, SETTINGS[self.options.setting]
        row = without_effect(self.recipe.late) | (set() if self.recipe.late.steps else {"boxes"})
        if self.recipe.late.distributions is None:
            row |= {"distance", "shares_over", "temperature", "tau", "tau_of", "combine", "place", "side"}
            row |= {"feature", "compared"}
        if not bounded:
            row |= set(_OF_BOUNDARIES)
        found = {f"setting={options.setting}": row}
        if not self.groups:
            found[f"setting={options.setting} and compared={options.compared}"] = {"superclasses"}
        if bounded and not _bounded(options):
            off = "boundary_gate" if options.boundary_gate == "never" else "boundary_weight"
            found[f"{off}={getattr(options, off)}"] = {*_OF_BOUNDARIES} - {off}
        if options.distance in CONTROLS:
            found[f"distance={options.distance}"] = {"shares_over", "temperature", "compared"}
        if self.recipe.late.distributions is not None and options.place == "before":
            found["place=before, after which the affinity is made symmetric"] = {"side"}
        if options.replace_at is None:
            found["no replace_at"] = {"sure"}
        if options.decoder == "clip":
            found["decoder=clip"] = {"mutual_weight"}
        return found

    def spreading(self) -> Affinity:
        """The affinity of the setting, with the options in it."""
        options = self.options
        affinity = AFFINITIES[SETTINGS[options.setting][0]]
        if options.boxes is not None:
            affinity = replace(affinity, boxes=0.4 if options.boxes else None)  # its threshold is set by ``tuned``
        affinity = tuned(self, affinity)
        if affinity.distributions is None:
            return affinity
        distributions = ClassDistributions(
            distance=options.distance,
            scale=options.shares_over,
            temperature=options.temperature,
            tau=options.tau,
            tau_of=options.tau_of,
            combine=options.combine,
        )
        return replace(affinity, distributions=distributions, place=options.place, side=options.side)

    def compared_texts(self) -> Tensor:
        """Classes, and super-classes and background where they are asked for: (T, E) unit rows."""
        texts = [self.say(self.text_set.names)]
        if self.groups and "super" in self.options.compared:
            texts.append(self.say(tuple(self.groups)))
        if "background" in self.options.compared:
            texts.append(self.say(self.text_set.background))
        return torch.cat(texts)

    @property
    def feature(self) -> Feature:
        """As the options have it."""
        return self.options.feature

    @property
    def second(self) -> DINO | None:
        """With decoder=clip+dino."""
        return self.dino if self.options.decoder == "clip+dino" else None

    def make_boundaries(self) -> Boundaries | None:
        """What teaches boundaries, where the setting has it."""
        options = self.options
        if not _bounded(options):
            return None
        settings = BoundarySettings(
            gate=options.boundary_gate,
            source=options.boundary_source,
            background=options.boundary_background,
            weight=options.boundary_weight,
        )
        return Boundaries(self.teacher, settings, self.groups, self.say(tuple(self.groups)), self.structure())

    def structure(self) -> Callable[[Tensor], Tensor]:
        """The features of prototypes: images (B, 3, H, W) RGB 0-255 to (B, D, h, w), unit length over D.

        Raises:
            UserError: they are to be a DINO's, and there is none.
        """
        if self.options.structure == "clip":
            return self._clip_patches
        if self.dino is None:
            raise UserError("cd-clip: boundaries need a DINO; give one (--dino), or take --set structure=clip")
        return self.dino.features

    @torch.no_grad()
    def _clip_patches(self, images: Tensor) -> Tensor:
        """CLIP's own patch tokens before the projection, (B, D, h, w), unit length."""
        tokens, grid = self._tokens(images)
        return F.normalize(tokens.float(), dim=-1).transpose(1, 2).unflatten(2, grid)

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        seen = self.vision(self.teacher.pixels(images), positions=self.teacher.positions)
        return self.vision.ln_post(seen.tokens.to(self.vision.ln_post.weight.dtype))[:, 1:], seen.grid
