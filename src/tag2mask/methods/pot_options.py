"""The options of POT, and what they come to; for the method see ``methods.pot``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from pydantic import Field, model_validator

from tag2mask.methods.cam_reader import CAMOptions
from tag2mask.methods.classifier_cam import SCENES
from tag2mask.methods.fitting.pot_recipe import POTRecipe
from tag2mask.methods.fitting.settings import FitOptions
from tag2mask.methods.idle import refuse_idle
from tag2mask.models.embedded import STORYBOOK_RESNET
from tag2mask.ops.pot import Prototypes


class POTOptions(CAMOptions, FitOptions):
    """What is learned from, how long, and how maps come about. What is None follows the variant and the weights."""

    variant: Literal["paper", "released"] = Field(
        "paper", description="after the paper's supplement, or as the released code, which uses no transport plan"
    )
    weights: str = Field(
        STORYBOOK_RESNET,
        description="the start: a run of classifier-cam that learned, a classifier's folder, storybook-resnet, or "
        "ImageNet weights (.pth)",
    )
    checkpoint: str | None = Field(
        None, description="the released code's checkpoint (final.pth): label by it and learn nothing"
    )
    seeds: Literal["earlier", "classifier"] = Field(
        "earlier",
        description="whose maps say which pixels are sure: an earlier run's, or the classifier's own, which needs no "
        "earlier run. Released: always the classifier's; the earlier maps are fused with",
    )
    clusters: int | None = Field(
        None, ge=1, description="K, prototypes of a class in an image; default 3 (supplement A2.1), released 2"
    )
    threshold: float | None = Field(
        None, gt=0, lt=1, description="tau: seed maps above it are sure; default 0.7 (supplement A2.1)"
    )
    marginal: Literal["similarity", "softmax", "uniform"] | None = Field(
        None,
        description="the mass of a cluster in the transport, from its cosine with the class prototype: that cosine "
        "itself, its softmax, or the same for all. The paper leaves open how cosines become masses; default "
        "similarity, the plainest reading",
    )
    temperature: float | None = Field(
        None, gt=0, description="temperature of marginal=softmax; open in the paper, default 0.1"
    )
    population: Literal["likely", "confident", "all"] | None = Field(
        None,
        description="pixels that renew a prototype: sure ones and those above half the threshold in the seed or "
        "classifier maps, sure ones alone, or all. The paper says all, but every pixel is allotted to a cluster of "
        "every class, background too; default likely",
    )
    allocation: Literal["hard", "soft"] | None = Field(
        None,
        description="a pixel renews the one prototype that the plan gives most of it to, or each by the plan's share "
        'times the seed map. Open in the paper; default hard, the plainer reading of "allocated"',
    )
    combine: Literal["plan", "hard", "mean"] | None = Field(
        None,
        description="how clusters' activations at a pixel are joined: by the plan's share, that of its own cluster, "
        'or the mean. Default plan: the paper has "reweighted by the transport plan", and leaves open how; shares of '
        "each pixel sum to 1",
    )
    epsilon: float | None = Field(
        None, gt=0, description="entropy of the transport; open in the paper, default 0.1, the released code's"
    )
    rounds: int | None = Field(None, ge=1, description="most Sinkhorn rounds; default 100, the released code's")
    tolerance: float | None = Field(
        None, ge=0, description="mean change of scalings at which the rounds end; default 0.01, the released code's"
    )
    consistency: Literal["classifier", "fused"] | None = Field(
        None,
        description="what the maps are held to: the classifier's (paper), or themselves fused with the earlier maps "
        "(released, where there are any)",
    )
    consistency_weight: float = Field(
        10, ge=0, description="weight of the consistency loss; open in the paper, default 10, the released code's"
    )
    adaptive: bool = Field(
        False,
        description="weigh it at each pixel by how sure the plan is of its cluster. The paper's abstract calls the "
        "loss adaptive and what is known does not say how; default false, as in the released code",
    )
    absent: bool | None = Field(
        None,
        description="classes that an image does not have count in the background of the classifier's maps; default "
        "false, released true",
    )
    class_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the loss on tags; open in the paper, default 1 (an earlier upload of the code), "
        "released 0.5",
    )
    fuse: bool | None = Field(
        None,
        description="add the maps fused with the earlier run's while labelling; default false: the paper takes "
        "CLIP's maps as seeds. Released true, where there is an earlier run",
    )
    epochs: float | None = Field(
        None, gt=0, description="training epochs, unless steps are given; default 6, the released code's"
    )
    batch: int | None = Field(None, ge=1, description="images a step; default 16 (storybook-resnet: 8)")
    lr: float | None = Field(
        None, gt=0, description="learning rate of the backbone; what is new has 10 times that; default 0.1"
    )
    decay_as_momentum: bool | None = Field(
        None, description="the weight decay lands in the place of the momentum; default false, released true"
    )
    size: int | None = Field(
        None, ge=16, description="side of the square that the network sees; default 512 (storybook-resnet: 192)"
    )
    long_side: tuple[int, int] | None = Field(
        None,
        description="scale the image's longer side to a size between these and crop the square; default: the whole "
        "image becomes the square, as in the paper with CLIP-ES",
    )
    mirror: float | None = Field(
        None, ge=0, le=1, description="share of images that are mirrored; default 0.5, released 0"
    )
    seed: int = Field(0, ge=0, description="seed of all that is random, also of the k-means' starts while labelling")

    @model_validator(mode="after")
    def _fits(self) -> POTOptions:
        if self.variant == "released":
            of_transport = (*_PAPER_ONLY, "adaptive")
            refuse_idle("pot", self, of_transport, "with variant=released, which has no transport; leave it out")
        if self.marginal != "softmax":
            refuse_idle("pot", self, ("temperature",), "without marginal=softmax; give that, too, or leave it out")
        if self.checkpoint is not None:
            refuse_idle("pot", self, _LEARNING, "with checkpoint, which labels as it is; leave it out")
        needing = [
            name for name, found in (("fuse", self.fuse), ("consistency", self.consistency == "fused")) if found
        ]
        if self.seeds == "classifier" and needing:
            raise ValueError(f"{', '.join(needing)} takes an earlier run's maps, and seeds=classifier takes none")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs {self.epochs:g} and steps {self.steps} both say how long it learns; give one")
        if self.long_side is not None and not 1 <= self.long_side[0] <= self.long_side[1]:
            raise ValueError(f"long_side is {list(self.long_side)}, expected the smaller number first, 1 or more")
        if self.fuses and 1.0 not in self.scales:
            raise ValueError(f"scales are {list(self.scales)}; fuse (released: by default) takes the maps of scale 1")
        return self

    @property
    def fuses(self) -> bool:
        """Whether the maps fused with the earlier run's are added while labelling."""
        released = self.variant == "released" and self.seeds == "earlier"
        return released if self.fuse is None else self.fuse


_LEARNING = {
    *(set(FitOptions.model_fields) - {"seed"}),
    *("weights", "consistency", "consistency_weight", "adaptive", "class_weight"),
    *("epochs", "decay_as_momentum", "size", "long_side", "mirror"),
}
_PAPER_ONLY = tuple(field.name for field in fields(Prototypes) if field.name != "clusters")


STORYBOOK: dict[str, Any] = {"batch": SCENES["batch"], "size": SCENES["crop"]}
"""For storybook-resnet, whose scenes are small; the rates are the published ones."""


def make_recipe(options: POTOptions) -> POTRecipe:
    """The variant's settings with the options in their place."""
    released, earlier = options.variant == "released", options.seeds == "earlier"

    def chosen(name: str, default: Any) -> Any:
        own = getattr(options, name)
        if own is None and options.weights == STORYBOOK_RESNET:
            own = STORYBOOK.get(name)
        return default if own is None else own

    given = {name: getattr(options, name) for name in _PAPER_ONLY}
    prototypes = Prototypes(
        clusters=chosen("clusters", 2 if released else 3),
        **{name: value for name, value in given.items() if value is not None},
    )
    return POTRecipe(
        released=released,
        earlier=earlier,
        prototypes=prototypes,
        consistency=chosen("consistency", "fused" if released and earlier else "classifier"),
        consistency_weight=options.consistency_weight,
        adaptive=options.adaptive,
        absent=chosen("absent", released),
        class_weight=chosen("class_weight", 0.5 if released else 1.0),
        epochs=chosen("epochs", 6),
        batch=chosen("batch", 16),
        lr=chosen("lr", 0.1),
        decay_as_momentum=chosen("decay_as_momentum", released),
        size=chosen("size", 512),
        long_side=options.long_side,
        mirror=chosen("mirror", 0.0 if released else 0.5),
    )
