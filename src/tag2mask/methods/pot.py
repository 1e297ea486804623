"""POT: several prototypes of each class in each image, to which optimal transport allots the image's features.

"POT: Prototypical Optimal Transport for Weakly Supervised Semantic Segmentation", CVPR 2025. On VOC 2012 val the
paper reports 76.1 mIoU of the network trained on its masks, over 68.8 of SIPE's single prototype (supplement, Table
A1; not measured here). The maps are in ``ops.pot``, the network in ``models.pot``, the training in
``methods.fitting.pot``.

What is known of the paper is its supplement. The released code is another method: it computes a transport plan and
throws it away. ``variant="paper"`` is made after the supplement, ``"released"`` after the code:

======================  =====================================  ==================================================
                        paper                                  released
======================  =====================================  ==================================================
clustered pixels        seed maps above ``threshold``, 0.7     those that a class or background wins in the
                                                               classifier's maps
``clusters``            3                                      2
masses of clusters      how typical of its class each is       uniform
prototypes              renewed after the transport            centres of the k-means
a class's map           activations weighted by the plan       mean of activations; less half of CLIP's background
``consistency``         with the classifier's maps             of maps that are fused with CLIP-ES's
``absent``              false                                  true: classes that an image does not have count in
                                                               the classifier's background
``class_weight``        1 (the code of June 2025)              0.5
``mirror``              0.5 (supplement A1: random flips)      0
``decay_as_momentum``   false                                  true: weight decay in the place of the momentum
``fuse`` (labelling)    false                                  true: plus the maps fused with CLIP-ES's
background              1 - the highest class                  that of each scale, summed, + 0.4; classes twice
======================  =====================================  ==================================================

Everything that the supplement leaves open is an option that says so, with the reason for its default.

Faults of the code that are kept nowhere: the gradients are never set to zero (hidden by its loss scaling); a class
whose k-means loses a cluster never ends; its Sinkhorn can give NaN, and then crashes; clusters and classes are mixed
up in the plan. Checkpoints were compared on masks by hand; the last one, which its labelling takes, is kept here.

Earlier maps may be any method's: CLIP-ES with CAA, as in the paper, CLIMS's, IRN-refined ones, another POT's.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from tag2mask.methods.cam_reader import CAMOptions
from tag2mask.methods.classifier_cam import SCENES
from tag2mask.methods.fitting.affinity import PriorMaps
from tag2mask.methods.fitting.pot_recipe import POTRecipe, maps_of
from tag2mask.methods.fitting.settings import ALL, FitOptions, FitSettings
from tag2mask.methods.fitting.weights import keep_weights
from tag2mask.methods.protocol import EarlierRun, Trainable
from tag2mask.models.classifier import MEAN, STD, warn_of_weights
from tag2mask.models.find_classifier import STORYBOOK_RESNET, weights_sha256
from tag2mask.models.pot import POTNetwork, build_pot, load_released
from tag2mask.models.state import fit_state, read_state, state_sha256
from tag2mask.ops.cam_fusion import flip_sum, scaled_size, strided_size
from tag2mask.ops.image import resize_bicubic, standardise, working_size
from tag2mask.ops.masks import upsample
from tag2mask.ops.pot import Prototypes, fuse, less_background, max_scaled
from tag2mask.ops.pot_batch import classifier_maps, mean_prototype_maps, transported_maps, with_rest
from tag2mask.types import ClassSet, Dataset, Item, MaskRule, Own, Scores, UserError

if TYPE_CHECKING:
    from tag2mask.run.folder import Run

WEIGHTS = "pot.safetensors"
"""In a run's checkpoints: the trained network."""

GROUND = 0.4
"""What the released code adds to the background of its summed maps, whose classes it doubles."""


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
    temperature: float | None = Field(None, gt=0, description="of marginal=softmax; open in the paper, default 0.1")
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
        description="of the clusters' activations at a pixel: weighted by the plan's share, that of its own cluster, "
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
        10, ge=0, description="of that loss; open in the paper, default 10, the released code's"
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
        description="of the loss on tags; open in the paper, default 1 (an earlier upload of the code), released 0.5",
    )
    fuse: bool | None = Field(
        None,
        description="add the maps fused with the earlier run's while labelling; default false: the paper takes "
        "CLIP's maps as seeds. Released true, where there is an earlier run",
    )
    epochs: float | None = Field(
        None, gt=0, description="of the training, where steps do not say it; default 6, the released code's"
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
    seed: int = Field(0, ge=0, description="of all that is random, the starts of the k-means while labelling too")

    @model_validator(mode="after")
    def _fits(self) -> POTOptions:
        idle = [name for name in (*_PAPER_ONLY, "adaptive") if getattr(self, name) not in (None, False)]
        if self.variant == "released" and idle:
            raise ValueError(f"{', '.join(idle)}: of the transport, which variant released does not use; leave out")
        if self.temperature is not None and self.marginal != "softmax":
            raise ValueError("temperature is of marginal=softmax; give that, too, or leave it out")
        learning = sorted(name for name in self.model_fields_set & _LEARNING if getattr(self, name) is not None)
        if self.checkpoint is not None and learning:
            raise ValueError(f"{', '.join(learning)}: for learning alone, and checkpoint learns nothing; leave out")
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


class POT(Trainable):
    """POT as a tag2mask method; fitted by ``stages.machinery.fit``, or ready after ``load``."""

    Options = POTOptions
    options: POTOptions
    mask_rule = MaskRule(background=Own())
    label_options = (*CAMOptions.model_fields, "fuse")
    fit_heeds = ALL

    def __init__(self, classes: ClassSet, options: POTOptions | None = None) -> None:
        super().__init__(classes, options)
        self.recipe = make_recipe(self.options)
        self.maps: PriorMaps | None = None
        given = self.options.checkpoint
        self.ready = given is not None
        if given is not None:
            self.net = load_released(given, len(classes.foreground))
            self.sha256 = state_sha256(self.net)
        else:
            warn_of_weights(self.options.weights)
            self.net, self.sha256 = self.start(), weights_sha256(self.options.weights)
        self.net.requires_grad_(False)

    def start(self) -> POTNetwork:
        """The network before any training."""
        return build_pot(self.options.weights, self.classes.foreground, seed=self.options.seed)

    @classmethod
    def earlier_run(cls, options: POTOptions) -> EarlierRun:
        """Maps, to learn from and while it labels; none where the seeds are the classifier's."""
        if options.seeds == "classifier":
            return EarlierRun()
        return EarlierRun(fit=None if options.checkpoint else "maps", label="maps")

    @property
    def learns(self) -> bool:
        """Whether it is to be fitted before it labels."""
        return self.options.checkpoint is None

    @property
    def weights(self) -> str | None:
        """Of the network that it starts from, or labels with."""
        return self.options.checkpoint or self.options.weights

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        return {"weights_sha256": self.sha256, "recipe": self.recipe}

    def to(self, device: torch.device) -> None:
        """Compute on that device."""
        self.net.to(device)
        self.device = device

    def fit(self, data: Dataset, folder: Path, earlier: Run | None = None) -> None:
        """Train on images, tags and the earlier run's maps; goes on where it was stopped.

        Raises:
            UserError: no earlier run where one is needed, one that is unfinished or without maps, no image to learn
                from, or a training that came to nothing.
            Stopped: Ctrl-C, or the minutes are over; the state is saved.
        """
        from tag2mask.methods.fitting.pot import train

        if self.recipe.earlier and earlier is None:
            raise UserError(
                "pot learns from an earlier run's maps; give its folder as the prior, or seeds=classifier"
            )
        recipe = self.recipe
        settings = FitSettings.of(
            self,
            batch=recipe.batch,
            lr=recipe.lr,
            decay_as_momentum=recipe.decay_as_momentum,
            clip_norm=1.0,  # of the whole gradient, as in the released code
        )
        network = train(self.start(), recipe, settings, data, folder, earlier)
        keep_weights(folder / WEIGHTS, network.state_dict())

    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Take up the network that ``fit`` left, and read the earlier run's maps as that run makes masks of them."""
        if self.learns:
            path = folder / WEIGHTS
            network = self.start()
            fit_state(network, read_state(path), path)
            self.net = network.requires_grad_(False).to(self.device)
        self.maps = None if earlier is None else maps_of(earlier)
        self.ready = True

    # --- labelling ---------------------------------------------------------------------------------------------

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): ``map_stride`` pixels a cell, stretched over the image."""
        return strided_size(self._within(size), self.options.map_stride)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Maps of the items' tags and of background, one image at a time.

        Raises:
            UserError: nothing was fitted or loaded; or an item has no earlier maps where they are needed.
            ValueError: an item has no tags, or the network gives features that are not finite.
        """
        if not self.ready:
            raise UserError("pot labels with what it has learned; call fit and load first, or tag2mask label")
        return [self.look(item) for item in items]

    @torch.inference_mode()
    def look(self, item: Item) -> Scores:
        """One image: the maps of all scales, summed."""
        tags = [] if item.tags is None else item.tags.tolist()
        if item.tags is None or not tags or not all(1 <= tag < len(self.classes) for tag in tags):
            raise ValueError(f"{item.id} has tags {tags}; class maps need at least one of 1..{len(self.classes) - 1}")
        size = (item.image.shape[1], item.image.shape[2])
        grid, within = self.grid(size), self._within(size)
        earlier = self._earlier(item, within)
        labels = torch.zeros(1, len(self.classes) - 1, dtype=torch.bool, device=self.device)
        labels[0, item.tags.to(self.device) - 1] = True
        dice = torch.Generator().manual_seed(zlib.crc32(item.id.encode()) + self.options.seed)
        total = torch.zeros(1 + len(tags), *grid)
        fused = torch.zeros_like(total)
        channels = torch.tensor([0, *tags], device=self.device)  # background first
        for scale in self.options.scales:
            maps, joined = self._at(
                item.image, scaled_size(within, self._capped(scale, within)), labels, earlier, dice
            )
            total += upsample(maps[0, channels].cpu(), grid)
            if joined is not None and scale == 1:
                fused += upsample(joined[0, channels].cpu(), grid)
        maps, background = self._finished(total, max_scaled(fused) if self.options.fuses else None)
        return Scores(item.tags.cpu(), maps, size, background=background)

    def _at(
        self, image: Tensor, size: tuple[int, int], labels: Tensor, earlier: Tensor | None, dice: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Maps of one scale, background first, (1, C + 1, h, w); and those fused with the earlier ones, if asked."""
        recipe = self.recipe
        pixels = standardise(resize_bicubic(image.cpu(), size)[None].to(self.device), MEAN, STD)  # (1, 3, H, W)
        logits, features = self.net(torch.cat([pixels, pixels.flip(-1)]) if self.options.flip else pixels)
        if self.options.flip:
            logits, features = flip_sum(logits)[None], flip_sum(features)[None]
        cells = (logits.shape[2], logits.shape[3])
        if recipe.released:
            # the released code masks no absent class here, and one may win a pixel, which then is nobody's
            everyone = labels if not recipe.absent else torch.ones_like(labels)
            own = classifier_maps(logits, everyone, absent=recipe.absent)
            maps = mean_prototype_maps(features, own, labels, [dice], recipe.prototypes.clusters)
            clip = None if earlier is None else _clip_maps(earlier, size, cells)
            ground = None if clip is None else clip[:, :1]
            joined = fuse(maps, clip)[1] if clip is not None and self.options.fuses else None
            return less_background(maps, ground), joined
        own = classifier_maps(logits, labels, absent=recipe.absent)[:, 1:]
        seeds = own
        if earlier is not None:
            seeds = F.interpolate(earlier, cells, mode="bilinear", align_corners=False)
        maps = with_rest(transported_maps(features, seeds, own, labels, [dice], recipe.prototypes)[0])
        if earlier is None or not self.options.fuses:
            return maps, None
        return maps, fuse(maps, _clip_maps(earlier, size, cells))[1]

    def _finished(self, total: Tensor, fused: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stored maps (K, h, w) and background (h, w) of the scales' sum (K + 1, h, w), all within 0..1.

        A common factor, which no mask depends on, brings the released code's sums down.
        """
        maps = max_scaled(total)
        if self.recipe.released:
            maps = torch.cat([maps[:1] + GROUND, 2 * maps[1:]])
        else:
            maps = torch.cat([1 - maps[1:].amax(0, keepdim=True), maps[1:]])
        most = 2.0 if self.recipe.released else 1.0
        if fused is not None:
            maps, most = maps + fused, most + 1
        maps = (maps / most).clamp(0, 1)
        return maps[1:].contiguous(), maps[0].contiguous()

    def _earlier(self, item: Item, within: tuple[int, int]) -> Tensor | None:
        """The earlier maps of all classes, (1, C, H, W), zeros for those that the image does not have."""
        if self.options.seeds == "classifier":
            return None
        if self.maps is None or item.prior is None or item.tags is None:
            raise UserError(f"{item.id} comes without an earlier run's maps; give that run as the prior")
        size = (item.image.shape[1], item.image.shape[2])
        scores = item.prior.scores()
        if tuple(scores.size) != size:
            raise UserError(f"the earlier run saw {item.id} at {scores.size}, but it is {size}; label it again")
        maps = self.maps.read(scores, item.tags.cpu(), within)  # (K, H, W)
        if not torch.isfinite(maps).all():
            raise UserError(f"the earlier run's maps of {item.id} are not finite; label it again there")
        out = torch.zeros(1, len(self.classes) - 1, *within, device=self.device)
        out[0, item.tags.to(self.device) - 1] = maps.to(self.device)
        return out

    def _within(self, size: tuple[int, int]) -> tuple[int, int]:
        return working_size(size, self.options.max_pixels)

    def _capped(self, scale: float, size: tuple[int, int]) -> float:
        """The scale, or the largest that makes no more than ``max_pixels`` of an image of ``size``."""
        return min(scale, (self.options.max_pixels / (size[0] * size[1])) ** 0.5)


def _clip_maps(earlier: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """The earlier maps as the released code fuses them while labelling: (1, C, H, W) -> (1, C + 1, h, w).

    Their background is made on a grid that rounds down, and all is resized from there.
    """
    small = (max(1, size[0] // 16), max(1, size[1] // 16))
    maps = with_rest(F.interpolate(earlier, small, mode="bilinear", align_corners=True))
    return F.interpolate(maps, cells, mode="bilinear", align_corners=True)
