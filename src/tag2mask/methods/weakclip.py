"""WeakCLIP: rough masks of another method, its seeds, made better by a network that matches CLIP's texts and pixels.

L. Zhu et al., "WeakCLIP: Adapting CLIP for Weakly-supervised Semantic Segmentation", IJCV 2024. On VOC 2012 the paper
refines MCTformer's seeds of 61.7 mIoU (train) to masks of 77.2; a DeepLabV1-ResNet38 trained on these has 74.0 on val
(COCO 2014: 46.1). None of these numbers was measured here. The network is ``models.weakclip``, an architecture of
``segment``; its training is the segmentation room's, under the seed and boundary losses.

``variant="paper"`` is what the paper says, ``"released"`` what hustvl/WeakCLIP at b72d559 runs. Options in brackets:

=======================  ==================================  ==================================================
                         paper                               released
=======================  ==================================  ==================================================
CLIP [encoders,          frozen, without gradients           a rate of 0 that the cosine's floor of 1e-6 lifts
drop_path]                                                   (lr_floor), with stochastic depth up to 0.1
pyramid adapter          trained                             as the encoders: it hardly moves
[adapter]
taps [taps]              after quarters: 3, 6, 9, 12         4, 6, 8, 12
class embedding          once                                added to its own position, too
[class_twice]
pixels [pixels]          CLIP's mean and deviation           ImageNet's
co-attention [layers,    one layer in each direction         three, of which the last alone is used
chained]
losses [auxiliary]       seed + boundary                     + 0.4 cross-entropy of the matching scores / 0.07
absent classes           255 where one wins, Eq. 14          as they win
(--others)               ("ignore")                          ("keep")
odd sides [edges]        padded, the result cut              cut to whole cells, the result stretched
train list [repeated]    each image once                     those of a list (VOC's 1464) twice
checkpoint [stop]        the last                            the best by ground truth of val: steps 8000 (VOC) of
                                                             20000, 29000 (COCO) of 40000
=======================  ==================================  ==================================================

No checkpoint is chosen by ground truth here: ``stop`` repeats the released choice, by its number. A released file was
chosen so: a run that labels with one (``checkpoint``) says ``tags+pixels(weights: NAME)``, as do runs with other
weights that saw true masks.

Where the paper is silent both take the released value. Its Eq. 13 sums over the image's classes without background,
which is no divergence; here, as in the code, the sum is over all channels. Faults that are kept nowhere: "frozen"
weights that move under ``paper``, a neighbour graph that is computed and thrown away, seeds of COCO by other numbers
than the names, text features that are computed again for each picture at test time.

The seeds are the masks of any run, or a folder of label maps. They are needed for the fit alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from tag2mask.methods.fitting.settings import ALL, FitOptions, FitSettings
from tag2mask.methods.idle import refuse_idle
from tag2mask.methods.protocol import EarlierRun, Trainable
from tag2mask.models.embedded import STORYBOOK_CLIP
from tag2mask.ops.image import shrink_images, working_size
from tag2mask.ops.masks import best_others
from tag2mask.run.files import file_sha256
from tag2mask.run.settings import plain
from tag2mask.segment.network import SegmentationNet, build_network, load_network
from tag2mask.segment.recipe import TrainRecipe, check
from tag2mask.segment.saved import NetworkConfig
from tag2mask.segment.test_time import PRESETS, Preset, TestTime, predict
from tag2mask.segment.weakclip import OF_CHECKPOINT, WeakCLIPChoices, idle_choices, refuse_parted
from tag2mask.types import ClassSet, Dataset, Item, MaskRule, Own, Scores, UserError

if TYPE_CHECKING:
    from tag2mask.models.weights import CLIP
    from tag2mask.run.folder import Run

STORYBOOK: dict[str, Any] = {
    "steps": 600,
    "batch": 8,
    "lr": 1e-3,
    "warmup": 30,
    "crop": 128,
    "size": "uniform:0.7,1.4",
    "loss_stride": 4,
    "resolution": None,
    "width": 64,
    "channels": 64,
    "scales": (0.75, 1.0, 1.25),
    "view": None,
    "window": None,
    "stride": None,
}
"""For storybook-clip, whose scenes are small: the published views would enlarge them 2.7 times."""

_VOC: dict[str, Any] = {"steps": 20_000, "batch": 16}
_COCO: dict[str, Any] = {"steps": 40_000, "batch": 24}
_VIEWS = PRESETS["weakclip"].test
_PUBLISHED: dict[str, Any] = {
    "lr": 1e-4,
    "warmup": 1500,
    "crop": 512,
    "size": "fit:2048,512,0.5,2",
    "loss_stride": 8,
    "scales": _VIEWS.scales,
    "view": _VIEWS.fit,
    "window": _VIEWS.window,
    "stride": _VIEWS.stride,
}


_MAY_BE_NONE = ("resolution", "view", "window", "stride")
"""Options of which None is a value."""

_LEARNING = (
    *("batch", "steps", "lr", "weight_decay", "stop", "warmup", "lr_floor", "crop", "size", "loss_stride"),
    *("auxiliary", "repeated", "seed"),
)
"""Options that a checkpoint, which learns nothing, leaves without effect."""


class WeakCLIPOptions(WeakCLIPChoices, FitOptions):
    """What the network is, how it learns, and how a picture is shown to it. What is left out follows the variant, the
    class set and the CLIP. ``none`` is a value of resolution, view, window and stride; elsewhere it leaves out.
    """

    batch: int | None = Field(None, ge=1, description="images a step; default 16 (coco14: 24)")
    steps: int | None = Field(None, ge=1, description="training steps; default 20000 (coco14: 40000)")
    lr: float | None = Field(None, gt=0, description="learning rate; default 1e-4")
    weight_decay: float = Field(3e-5, ge=0, description="weight decay of all that learns")
    stop: int | None = Field(None, ge=1, description="stop after so many of the steps, without another schedule")
    warmup: int | None = Field(None, ge=0, description="steps over which the rate rises; default 1500")
    lr_floor: float = Field(1e-6, ge=0, description="learning rate at the end; with encoders=creep, theirs too")
    crop: int | None = Field(None, ge=32, description="side of the training images, pixels; default 512")
    size: str | None = Field(None, description="size of an image before the crop; default fit:2048,512,0.5,2")
    loss_stride: int | None = Field(
        None, ge=1, description="side in pixels of the cells on which losses are computed; default 8"
    )
    auxiliary: float | None = Field(
        None, ge=0, description="weight of the matching scores' loss; default 0, released 0.4"
    )
    repeated: str | None = Field(None, description="a list of image ids that are drawn twice as often")
    checkpoint: str | None = Field(
        None, description="a released checkpoint, which labels as it is: nothing is learned"
    )
    scales: tuple[float, ...] | None = Field(None, description="scales of the views while labelling")
    flip: bool = Field(True, description="also look at mirrored views")
    view: tuple[int, int] | None = Field(
        None, description="longest and shortest side that a view of scale 1 fits, or none; default 2048, 512"
    )
    window: int | None = Field(
        None, ge=32, description="side of the windows that views are cut into, or none: views as a whole; default 512"
    )
    stride: int | None = Field(
        None, ge=1, description="pixels from one window to the next, or none: the window's side; default 341"
    )
    max_pixels: int = Field(1_000_000, ge=1, description="an image with more pixels gets maps of this many cells")


class WeakCLIP(Trainable):
    """WeakCLIP as a tag2mask method; fitted by ``stages.machinery.fit``, or ready after ``load``."""

    Options = WeakCLIPOptions
    side_by_side = True
    needs = ("clip",)
    scores_others = True
    options: WeakCLIPOptions
    label_options = ("scales", "flip", "view", "window", "stride", "max_pixels")
    fit_uses = ALL

    def __init__(self, classes: ClassSet, options: WeakCLIPOptions | None = None, *, clip: CLIP) -> None:
        super().__init__(classes, options, clip=clip)
        self.clip = clip
        released, coco = self.options.variant == "released", classes.id == "coco14"
        self.mask_rule = MaskRule(
            background=Own(), refiner="weakclip-coco" if coco else "weakclip", others="keep" if released else "ignore"
        )
        defaults = {**_PUBLISHED, **(_COCO if coco else _VOC), "auxiliary": 0.4 if released else 0.0}
        if clip.name == STORYBOOK_CLIP:
            defaults |= STORYBOOK
        if not self.learns:
            why = "with checkpoint, which labels as it is and brings its own sizes; leave it out"
            refuse_idle("weakclip", self.options, {*_LEARNING, *OF_CHECKPOINT}, why)
        for setting, names in idle_choices(self.options).items():
            refuse_idle("weakclip", self.options, names, f"with {setting}; leave it out")
        self.chosen = {name: self._choice(name, default) for name, default in defaults.items()}
        self._recipe = self._make_recipe()
        check(self._recipe)
        self.test = TestTime(
            self.chosen["scales"],
            flip=self.options.flip,
            fit=self.chosen["view"],
            window=self.chosen["window"],
            stride=self.chosen["stride"],
        )
        self.network_test = Preset(self.test, self.mask_rule.refiner)
        if self.learns:
            refuse_parted(self.chosen["crop"], clip.patch)
        self.net: SegmentationNet | None = None
        if not self.learns:
            self.net = self.start().to(self.device).eval()

    @classmethod
    def earlier_run(cls, options: Any) -> EarlierRun:
        """Masks as seeds, for the fit alone."""
        return EarlierRun(fit=None if options.checkpoint else "masks")

    @property
    def learns(self) -> bool:
        """Whether it is fitted before it labels: a released checkpoint is not."""
        return self.options.checkpoint is None

    @property
    def weights(self) -> str | None:
        """The released checkpoint, which learned from seeds and was chosen by true masks."""
        return self.options.checkpoint

    @property
    def resolved(self) -> dict[str, Any]:
        """What decides the results beside the options."""
        files = {"weights_sha256": self.options.checkpoint, "repeated_sha256": self.options.repeated}
        found = {name: Path(file) for name, file in files.items() if file and Path(file).is_file()}
        recipe = plain(self._recipe)
        del recipe["precision"]  # run.yaml says it of all methods alike, as fit_precision
        return {"recipe": recipe, **{name: file_sha256(path) for name, path in found.items()}}

    @property
    def recipe(self) -> TrainRecipe:
        """The training as the segmentation room knows it, in the numbers in which it computes."""
        numbers: Any = self.precision
        return replace(self._recipe, precision=numbers)

    def _choice(self, name: str, default: Any) -> Any:
        """An option as given, or the default where it is not; None is a value of some."""
        given = getattr(self.options, name)
        taken = name in self.options.model_fields_set and (given is not None or name in _MAY_BE_NONE)
        return given if taken else default

    def _make_recipe(self) -> TrainRecipe:
        options, chosen = self.options, self.chosen
        names = WeakCLIPChoices.model_fields.keys()
        network = {name: chosen.get(name, getattr(options, name)) for name in names}
        texts = self.classes.texts.get("weakclip")
        if texts is not None:
            network["texts"] = [*(texts.background[:1] or ("background",)), *texts.names]
        if options.stop is not None and options.stop > chosen["steps"]:
            raise UserError(f"weakclip: stop {options.stop} is beyond the {chosen['steps']} steps; leave it out")
        storybook = self.clip.name == STORYBOOK_CLIP
        return TrainRecipe(
            architecture="weakclip",
            options={k: v for k, v in network.items() if v is not None or k == "resolution"},
            steps=options.stop or chosen["steps"],
            schedule_steps=chosen["steps"],
            batch=chosen["batch"],
            crop=chosen["crop"],
            scale=chosen["size"],
            colour=TrainRecipe.colour if storybook else "distort",
            share=None if storybook else 0.75,
            place="corner",
            optimiser="adamw",
            lr=chosen["lr"],
            weight_decay=options.weight_decay,
            schedule="cosine",
            lr_floor=options.lr_floor,
            warmup=chosen["warmup"],
            loss="seed+boundary",
            loss_stride=chosen["loss_stride"],
            auxiliary=chosen["auxiliary"],
            resize="labels",
            clip_norm=None,
            seed=options.seed,
        )

    def start(self) -> SegmentationNet:
        """The network before any training, or the released checkpoint's."""
        config = NetworkConfig.of("weakclip", self.classes, **self.recipe.options)
        init: str | None = self.options.checkpoint
        return build_network(config, init=init, seed=self.options.seed, towers={"clip": self.clip})

    def fit(self, data: Dataset, folder: Path, earlier: Run | None = None) -> None:
        """Train on images and seeds; resumes where it was stopped.

        Raises:
            UserError: no image has a seed mask, or one that does not fit; words that CLIP does not know.
        """
        from tag2mask.methods.fitting.weakclip import train

        if earlier is None:
            raise UserError("weakclip learns from the masks of an earlier run; give one")
        recipe, twice = self.recipe, self.options.repeated
        settings = FitSettings.of(self, steps=recipe.steps, batch=recipe.batch, lr=recipe.lr)
        net = self.start()
        again = None if twice is None else Path(twice)
        train(net, recipe, settings, data, folder, earlier, test=self.network_test, twice=again)
        self.net = net

    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Load the network that ``fit`` left."""
        self.net = load_network(folder, str(self.device), towers={"clip": self.clip})

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): every pixel has a cell, but in the largest pictures."""
        return working_size(size, self.options.max_pixels)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Probabilities of the tags, of background and of the best other class, the mean of all views.

        Raises:
            UserError: nothing was fitted or loaded.
        """
        return [self._look(item) for item in items]

    def _look(self, item: Item) -> Scores:
        if self.net is None:
            raise UserError("weakclip labels with what it has learned; call fit and load first, or tag2mask label")
        size = (item.image.shape[1], item.image.shape[2])
        picture, grid = item.image.to(self.device), self.grid(size)
        if grid != size:
            picture = shrink_images(picture[None], grid)[0]
        with torch.inference_mode():
            probs = predict(self.net, picture, self.test).cpu()  # (K + 1, h, w)
        probs = probs.clone()  # an inference tensor would go no further
        tags = item.tags if item.tags is not None else torch.arange(1, len(probs))
        return Scores(tags, probs[tags], size, background=probs[0], others=best_others(probs[1:], tags))
