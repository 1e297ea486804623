"""MCTformer: an image transformer with a class token for each class, trained on tags; its attention gives the maps.

L. Xu, W. Ouyang, M. Bennamoun, F. Boussaid and D. Xu, "Multi-class Token Transformer for Weakly Supervised Semantic
Segmentation" (CVPR 2022). It is the seed of WeakCLIP, whose paper gives 61.7 mIoU for the maps on VOC 2012 train, and
69.1 after PSA (not measured here); users of the code report 55 to 59 (V2) and 51 (V1) for the maps.

V1 has the class tokens alone, V2 also PatchCAM, a classifier of the patches. The maps of a class: the attention of
its token to the patches, PatchCAM, or both multiplied; then spread along the attention between patches. ``variant``:

==================  ===========================  ========================  =======================================
                    paper                        released                  plus (MCTformer+, from its code)
==================  ===========================  ========================  =======================================
``late``            rates in time                an epoch late             in time
``edges``           the picture is resized to    what is beyond whole      as paper
                    whole patches                patches is cut off, and
                                                 maps are stretched over
                                                 the whole picture
``contrast``        0                            0                         1: class tokens differ in every block
``layers``          3                            3                         all
maps                product                      product                   its square root
logit of PatchCAM   mean                         mean                      better patches weigh more
``scales``          1                            1                         1, 0.75, 1.25
positions           shifted by 0.1 cells         as paper                  not shifted; repeated for twice the side
``crop``            224                          224                       448
``batch``           64                           64                        32
``epochs``          60                           60                        45
==================  ===========================  ========================  =======================================

The paper is silent on the rest, which is the code's: DeiT-S, AdamW at 5e-4 batch / 512 with a weight decay of 0.05,
DeiT's augmentation, 5 epochs of warm-up, no clipping. 0.39, the score of the background, was chosen there with ground
truth of VOC's train. Faults of the code that are repeated nowhere: the last, smaller batch of an epoch was dropped;
MCTformer+'s positions decayed, since their names were new; half precision. Images without tags take no part.

An MCTformer's checkpoint as ``weights`` labels as it is, unless ``epochs`` or ``steps`` are given. storybook-clip is
a start that knows drawn scenes alone: its class token and that one's position are each class's first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from tag2mask.methods.cam_reader import tags_of
from tag2mask.methods.fitting.settings import ALL, FitOptions, FitSettings
from tag2mask.methods.fitting.tagged import TaggedImages
from tag2mask.methods.idle import refuse_idle
from tag2mask.methods.protocol import Trainable
from tag2mask.methods.scales import check_scales
from tag2mask.models.embedded import STORYBOOK_CLIP
from tag2mask.models.mctformer import MCTformer, Reading, read_maps
from tag2mask.models.mctformer_files import RANDOM, Version, build_mctformer, read_start, save_mctformer
from tag2mask.ops.cam_fusion import scaled_size, sum_at
from tag2mask.ops.image import MEAN, STD, resize_bicubic, standardise, working_size
from tag2mask.ops.masks import upsample
from tag2mask.ops.mctformer import MapKind
from tag2mask.segment.deit_augment import DeiTAugment
from tag2mask.types import ClassSet, Constant, Dataset, Item, MaskRule, Scores, UserError

if TYPE_CHECKING:
    from tag2mask.run.folder import Run

FITTED = "mctformer.safetensors"
"""In a run's checkpoints: the trained network."""

PUBLISHED: dict[str, Any] = {
    "late": False,
    "edges": "fit",
    "contrast": 0.0,
    "layers": 3,
    "scales": (1.0,),
    "crop": 224,
    "batch": 64,
    "epochs": 60,
    "area": (0.08, 1.0),
    "rand_augment": True,
    "erase": 0.25,
    "drop_path": 0.1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"late": True, "edges": "cut"},
    "plus": {
        "contrast": 1.0,
        "layers": None,
        "scales": (1.0, 0.75, 1.25),
        "crop": 448,
        "batch": 32,
        "epochs": 45,
    },
}
"""Where a variant differs from ``PUBLISHED``."""

SCENES: dict[str, Any] = {
    "crop": 96,
    "batch": 8,
    "epochs": 4,
    "lr": 5e-4,
    "area": (0.15, 0.6),
    "rand_augment": False,
    "erase": 0.0,
    "drop_path": 0.0,
}
"""Of fits that start from storybook-clip, whose scenes are small and whose fits are short. Parts of this area are
about as much larger than the crop as DeiT's of a photograph: maps are read at the scale that was learned on."""


class MCTformerOptions(FitOptions):
    """What is learned from, how long, and how maps are read; what is None follows the variant and the weights."""

    variant: Literal["paper", "released", "plus"] = Field(
        "paper", description="as the paper says, as its code does, or MCTformer+"
    )
    version: Literal["v1", "v2"] | None = Field(
        None, description="v1: class tokens alone; v2 (default): with PatchCAM; not for variant plus"
    )
    weights: str = Field(
        STORYBOOK_CLIP,
        description="the start: DeiT-S (.pth, .safetensors, a folder or its name on the hub), a CLIP's folder, "
        'storybook-clip, or "random"; an MCTformer\'s checkpoint labels as it is',
    )
    epochs: float | None = Field(None, gt=0, description="training epochs; default 60 (plus: 45, storybook-clip: 4)")
    steps: int | None = Field(None, ge=1, description="training steps, instead of epochs")
    batch: int | None = Field(None, ge=1, description="images a step; default 64 (plus: 32, storybook-clip: 8)")
    lr: float | None = Field(
        None, ge=1e-5, description="where the warm-up leads; default 5e-4 batch / 512 (storybook-clip: 5e-4)"
    )
    weight_decay: float = Field(
        0.05, ge=0, description="weight decay of all but biases, norms, class tokens and positions"
    )
    late: bool | None = Field(None, description="rates come an epoch late; default: released alone")
    contrast: float | None = Field(None, ge=0, description="weight of the loss that keeps class tokens apart")
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="how often the last block leaves out a branch; default 0.1 (storybook-clip: 0)"
    )
    crop: int | None = Field(
        None, ge=16, description="side of what it learns from, in pixels; default 224 (plus: 448, storybook-clip: 96)"
    )
    area: tuple[float, float] | None = Field(
        None, description="share of the picture that becomes it; default 0.08 to 1 (storybook-clip: 0.15 to 0.6)"
    )
    rand_augment: bool | None = Field(
        None, description="change colours and geometry; default: not for storybook-clip"
    )
    erase: float | None = Field(
        None, ge=0, le=1, description="how often a rectangle becomes noise; default 0.25 (storybook-clip: 0)"
    )
    maps: MapKind | None = Field(
        None, description="class-to-patch (attention), patchcam, or fused (both); default fused (v1: class-to-patch)"
    )
    affinity: bool = Field(True, description="spread the maps along the attention between patches")
    layers: int | None = Field(
        None, ge=1, description="last blocks whose attention from class tokens counts; default 3 (plus: all)"
    )
    scales: tuple[float, ...] | None = Field(
        None, min_length=1, description="image scales whose maps are summed; default 1 (plus: 1, 0.75, 1.25)"
    )
    flip: bool = Field(True, description="add the mirrored image at every scale")
    edges: Literal["fit", "cut"] | None = Field(
        None, description="pictures whose sides are no whole patches: resize (fit) or cut them; default fit"
    )
    max_cells: int = Field(4096, ge=1, description="an image with more patches is shrunk to so many, at every scale")

    _scales = field_validator("scales")(check_scales)

    @model_validator(mode="after")
    def _fits(self) -> MCTformerOptions:
        if self.variant == "plus" and self.version is not None:
            raise ValueError(
                f"version {self.version} is not of variant plus, which has its own; leave one of them out"
            )
        if self.version == "v1" and self.maps in ("patchcam", "fused"):
            raise ValueError(f"maps {self.maps} need PatchCAM, which v1 does not have; take class-to-patch, or v2")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs {self.epochs:g} and steps {self.steps} both say how long it learns; give one")
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {list(self.area)}, expected two shares, 0 to 1, the smaller first")
        return self

    @property
    def kind(self) -> Version:
        """What the network is."""
        return "plus" if self.variant == "plus" else self.version or "v2"

    def chosen(self, name: str) -> Any:
        """An option, or what follows from the weights and the variant."""
        own = getattr(self, name)
        if own is not None:
            return own
        if self.weights == STORYBOOK_CLIP and name in SCENES:
            return SCENES[name]
        return {**PUBLISHED, **VARIANTS[self.variant]}[name]

    @property
    def rate(self) -> float:
        """The learning rate that the warm-up leads to."""
        published = 5e-4 * self.chosen("batch") / 512
        return self.lr or (SCENES["lr"] if self.weights == STORYBOOK_CLIP else published)

    @property
    def notches(self) -> int:
        """The published number of epochs: so often the rate changes, however long it learns."""
        return int({**PUBLISHED, **VARIANTS[self.variant]}["epochs"])


_LABELLING = ("maps", "affinity", "layers", "scales", "flip", "edges", "max_cells")
_LEARNING = tuple(name for name in PUBLISHED if name not in (*_LABELLING, "epochs"))
"""What follows variant and weights, and decides what is learned; how maps are read may differ with the same fit."""


class MCTformerMethod(Trainable):
    """MCTformer as a tag2mask method; fitted on tags, or ready with an MCTformer's checkpoint."""

    Options = MCTformerOptions
    side_by_side = True
    options: MCTformerOptions
    mask_rule = MaskRule(background=Constant(0.39), normalise="class")
    label_options = _LABELLING
    fit_uses = ALL

    def __init__(self, classes: ClassSet, options: MCTformerOptions | None = None) -> None:
        super().__init__(classes, options)
        given = self.options.weights
        self.begin = None if given == RANDOM else read_start(given)
        self.ready = not self.learns
        if self.ready:
            refuse_idle(
                "mctformer",
                self.options,
                (*_LEARNING, "lr", "weight_decay", "seed"),
                f"with weights={given}, an MCTformer that labels as it is; give epochs or steps to learn on from it, "
                "or leave it out",
            )
        if self.options.maps == "patchcam":
            refuse_idle("mctformer", self.options, ("layers",), "with maps=patchcam; leave it out")
        self._read_with(self.start())

    @property
    def learns(self) -> bool:
        """Whether it is to be fitted before it labels."""
        trained = self.begin is not None and self.begin.version is not None
        return not trained or self.options.epochs is not None or self.options.steps is not None

    def start(self) -> MCTformer:
        """The network before any training."""
        expand = 1
        if self.options.kind == "plus" and self.begin is not None and self.begin.version is None:
            shape = self.begin.shape
            expand = max(1, self.options.chosen("crop") // (shape.patch * max(shape.grid)))
        return build_mctformer(
            self.begin, self.classes.foreground, self.options.kind, seed=self.options.seed, expand=expand
        )

    @property
    def statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and deviation of pixels that the weights were trained with."""
        return (MEAN, STD) if self.begin is None else (self.begin.mean, self.begin.std)

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        sha256 = None if self.begin is None else self.begin.sha256
        known: dict[str, object] = {"weights_sha256": sha256, "version": self.options.kind}
        if not self.learns:
            return known
        return {**known, **{name: self.options.chosen(name) for name in _LEARNING}, "lr": self.options.rate}

    @property
    def weights(self) -> str:
        """What it starts from: the file, where one was found by another name."""
        found = None if self.begin is None else self.begin.path
        return str(found) if found is not None and found.is_file() else self.options.weights

    def to(self, device: torch.device) -> None:
        """Compute on that device."""
        self.network.to(device)
        self.device = device

    def fit(self, data: Dataset, folder: Path, earlier: Run | None = None) -> None:
        """Train on images and tags, resuming where it was stopped.

        Raises:
            UserError: no image has a tag.
            Stopped: Ctrl-C, or the minutes are over; the state is saved.
        """
        from tag2mask.methods.fitting.mctformer import Course, train

        options, chosen, (mean, std) = self.options, self.options.chosen, self.statistics
        images = TaggedImages(data, self._augmentation(), options.seed, tagged_only=True)
        if not len(images):
            raise UserError(f"mctformer learns from tags; none of the {len(data)} images in {data.root} has any")
        settings = FitSettings.of(self, batch=chosen("batch"), lr=options.rate)
        course = Course(settings.lasting(chosen("epochs"), len(images)), options.notches, chosen("late"))
        network = self.start()
        train(
            network,
            images,
            course,
            folder,
            statistics=(mean, std),
            drop_path=chosen("drop_path"),
            contrast=chosen("contrast"),
        )
        supervision = "tags" if self.begin is None else self.begin.supervision
        about = {"names": self.classes.foreground, "version": self.options.kind, "mean": mean, "std": std}
        save_mctformer(network, folder / FITTED, {**about, "supervision": supervision})

    def _augmentation(self) -> DeiTAugment:
        chosen, (mean, std) = self.options.chosen, self.statistics
        return DeiTAugment(
            chosen("crop"),
            area=chosen("area"),
            rand_augment=chosen("rand_augment"),
            erase=chosen("erase"),
            mean=(255 * mean[0], 255 * mean[1], 255 * mean[2]),
            std=(255 * std[0], 255 * std[1], 255 * std[2]),
        )

    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Load the network that ``fit`` left."""
        found = read_start(folder / FITTED)
        self._read_with(build_mctformer(found, self.classes.foreground, self.options.kind))
        self.ready = True

    def _read_with(self, network: MCTformer) -> None:
        blocks, given = len(network.blocks), self.options.layers
        if given is not None and given > blocks:
            raise UserError(f"layers {given}: this network has {blocks} blocks; give at most that many")
        plain: MapKind = "class-to-patch" if self.options.kind == "v1" else "fused"
        self.reading = Reading(
            self.options.maps or plain,
            given or min(self.options.chosen("layers") or blocks, blocks),
            affinity=self.options.affinity,
            root=self.options.kind == "plus",
            flip=self.options.flip,
        )
        self.network = network.eval().requires_grad_(False).to(self.device)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): the patches of the picture at scale 1."""
        return self._cells(self._within(size))

    def _within(self, size: tuple[int, int]) -> tuple[int, int]:
        return working_size(size, self.options.max_cells * self.network.patch**2)

    def _cells(self, size: tuple[int, int]) -> tuple[int, int]:
        """Whole patches, at least one, over a picture of that size."""
        patch, cut = self.network.patch, self.options.chosen("edges") == "cut"
        h, w = (side // patch if cut else (2 * side + patch) // (2 * patch) for side in size)
        return max(1, h), max(1, w)

    def _side(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """The size, in pixels, at which a picture of ``size`` is looked at: at least a patch."""
        patch, wanted = self.network.patch, scaled_size(size, scale)
        if self.options.chosen("edges") == "cut":  # the patch convolution cuts what is beyond whole patches
            return max(patch, wanted[0]), max(patch, wanted[1])
        h, w = self._cells(wanted)
        return h * patch, w * patch

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Maps of the items' tags, each divided by its maximum, one image at a time.

        Raises:
            UserError: it is to learn first, and nothing was fitted or loaded.
        """
        if not self.ready:
            raise UserError("mctformer labels with what it has learned; call fit and load first, or tag2mask label")
        return [self._scores(item) for item in items]

    @torch.inference_mode()
    def _scores(self, item: Item) -> Scores:
        """Raises ValueError where the item has no tags, or one that is no class."""
        tags = tags_of(item, self.network.classes)
        size = (item.image.shape[1], item.image.shape[2])
        within, found = self._within(size), []
        most = math.sqrt(self.options.max_cells * self.network.patch**2 / (within[0] * within[1]))
        channels = (tags - 1).to(self.device)
        for scale in self.options.chosen("scales"):
            image = resize_bicubic(item.image.cpu(), self._side(within, min(scale, most)))
            pixels = standardise(image[None].to(self.device), *self.statistics)
            found.append(read_maps(self.network, pixels, channels, self.reading))
        maps: Tensor = sum_at(found, self.grid(size)).cpu()  # (K, h, w)
        peak = upsample(maps, size).amax((1, 2), keepdim=True)  # the mask rule's min-max sees the same pixels
        return Scores(tags, maps / peak.clamp_min(1e-30) * (peak > 0), size)
