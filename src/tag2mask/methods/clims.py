"""CLIMS: a CAM network trained on tags with CLIP as its critic.

J. Xie, X. Hou, K. Ye and L. Shen, "CLIMS: Cross Language Image Matching for Weakly Supervised Semantic Segmentation",
CVPR 2022. The paper reports 56.6 mIoU for its maps on VOC 2012 train, the current repository 58.6, over a classifier
CAM of 48.1 (not measured here). The losses are in ``ops.clims``, the networks in ``models.clims``.

``variant="paper"`` is the camera-ready code, ``"released"`` the current repository:

==================  =====================================  ====================================================
                    paper                                  released
==================  =====================================  ====================================================
head                bottleneck, then 1x1 with background   1x1 of the classifier
weights of losses   10, 25, 29.5, 1.15                     10, 24, 1, 0.2 (coco14: 2, 14, 1.25, 0.2)
L_CBS               texts of boat and train, their mean    one list for all, each text above 0.26 (coco14 0.285)
emphasis            3 for chair, diningtable, sofa         none
words               plain names                            "player", "dining table", ...; a full stop
epochs              10                                     15 (coco14: 8)
==================  =====================================  ====================================================

Faults of the code; those marked * are kept in "released", the others nowhere:

- * CLIP was fed pixels with ImageNet's statistics; the camera-ready fed the backbone CLIP's. Here each has its own.
- * The weight decay landed in the place of the momentum (``segment.schedule.sgd``). Else the momentum is 0, which is
  what the published rates were found with.
- * The gradient of a hopeless pair is cut off, flatly (``CLIMSLoss.clamp``).
- The camera-ready meant its head to learn at 10 times the rate, and an empty list made it once; its norms never
  learned. Here the head learns at 10 times the rate, norms at the rate of the weights beside them.
- Batches with one tag or none, half-precision cosines, texts encoded at every step: see ``ops.clims``.
- The last, smaller batch of an epoch was dropped. Here epochs follow each other without a gap.
- CLIP collected gradients of its own weights; it is frozen here.
- The start, a classifier's checkpoint, had to be downloaded. Here it is trained where the weights bring none for
  these classes, as the code would. The camera-ready stepped a cosine schedule there that had no effect.
- 0.26 belongs to OpenAI's ViT-B/32. For another CLIP the threshold is calibrated on the tags (``ops.calibration``).

CLIP may first be fine-tuned on the tags (``finetune_clip``), the remedy that the supplement names. Paper and code
differ in its weight decay (0.003, 0.001). Images without tags take no part; the code gave them the caption
"background".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field

from tag2mask.methods.cam_reader import CAMOptions, CAMReader
from tag2mask.methods.classifier_cam import SCENES
from tag2mask.methods.fitting.clims_critic import CLIMSFit, CLIMSRecipe
from tag2mask.methods.fitting.settings import ALL, FitOptions, FitSettings
from tag2mask.methods.fitting.weights import keep_weights
from tag2mask.methods.idle import refuse_idle
from tag2mask.methods.protocol import Trainable
from tag2mask.models.classifier import warn_of_weights
from tag2mask.models.clims import CLIMSNetwork, build_clims
from tag2mask.models.embedded import STORYBOOK_CLIP, STORYBOOK_RESNET
from tag2mask.models.find_classifier import weights_sha256
from tag2mask.models.state import fit_state, read_state
from tag2mask.ops.clims import CAMERA_READY, RELEASED, RELEASED_COCO, CLIMSLoss
from tag2mask.types import ClassSet, Constant, Dataset, Item, MaskRule, Scores, TextSet, UserError

if TYPE_CHECKING:
    from tag2mask.models.weights import CLIP
    from tag2mask.run.folder import Run

CLIMS_FILE = "clims.safetensors"
"""In a run's checkpoints: the trained network."""

_VIT_B32 = ("clip-vit-base-patch32", "ViT-B-32.pt")
"""How OpenAI's files and folders of it are called, wherever they lie."""


class CLIMSOptions(CAMOptions, FitOptions):
    """What is learned from, how long, and which losses count. What is None follows the variant and the weights."""

    variant: Literal["paper", "released"] = Field("paper", description="the camera-ready, or the current repository")
    weights: str = Field(
        STORYBOOK_RESNET,
        description="the start: a run of classifier-cam that learned, a classifier's folder, storybook-resnet, or "
        "ImageNet weights (.pth)",
    )
    epochs: float | None = Field(None, gt=0, description="epochs of CLIMS's training")
    steps: int | None = Field(None, ge=1, description="steps of CLIMS's training, instead of epochs")
    baseline_epochs: float | None = Field(
        None, ge=0, description="epochs of the classifier before it; default 0 where the weights know all classes"
    )
    baseline_lr: float | None = Field(None, gt=0, description="learning rate of the classifier's training")
    momentum: float | None = Field(None, ge=0, lt=1, description="momentum of SGD; not for released")
    object: float | None = Field(
        None,
        ge=0,
        description="weight of L_OTM: the object is what its text says; default of it and the next three: paper "
        "10, 25, 29.5, 1.15 (with storybook-clip 10, 25, 5, 5), released 10, 24, 1, 0.2 (coco14 2, 14, 1.25, 0.2)",
    )
    background: float | None = Field(None, ge=0, description="weight of L_BTM: what is left is not")
    suppression: float | None = Field(None, ge=0, description="weight of L_CBS: what occurs with it stays out")
    area: float | None = Field(None, ge=0, description="weight of L_REG: maps are small")
    threshold: float | Literal["calibrated"] | None = Field(
        None, description="released: cosine above which a background text counts, or calibrated (from the tags)"
    )
    crop: int | None = Field(None, ge=16, description="side of the square that the network sees, in pixels")
    long_side: tuple[int, int] | None = Field(None, description="the image's longer side before the crop: from, to")
    clip_size: int | None = Field(
        None,
        ge=16,
        description="side of what CLIP sees; default: what it was trained on (storybook-clip: 128, quicker)",
    )
    finetune_clip: int = Field(0, ge=0, description="steps in which CLIP first learns the data set's tags")
    finetune_lr: float = Field(5e-5, gt=0, description="learning rate of these")
    frozen_norm: bool | None = Field(
        None, description="norms keep their statistics; default: for storybook-resnet, whose batches are small"
    )
    allow_unknown: bool = Field(False, description="continue where a text has words that the tokenizer does not know")


def make_recipe(
    options: CLIMSOptions, classes: ClassSet, *, knows_all: bool, clip_name: str, native_size: int, patch: int
) -> CLIMSRecipe:
    """The variant's settings with the options in their place.

    Args:
        options: as given.
        classes: the class set.
        knows_all: whether the weights bring a classifier for all classes.
        clip_name: tells OpenAI's ViT-B/32, for which the thresholds were published.
        native_size, patch: of the CLIP.

    Raises:
        UserError: options that contradict each other.
    """
    released, coco = options.variant == "released", classes.id == "coco14"
    storybook, own_clip = options.weights == STORYBOOK_RESNET, clip_name == STORYBOOK_CLIP
    loss, calibrated = _loss(options, coco=coco, clip_name=clip_name)
    size = options.clip_size or (128 if own_clip else native_size)
    if size % patch:
        raise UserError(f"clims: clip_size {size} is no multiple of this CLIP's patch, {patch}; give one that is")
    long_side = options.long_side or (STORYBOOK["long_side"] if storybook else (320, 640))
    if not 1 <= long_side[0] <= long_side[1]:
        raise UserError(f"clims: long_side is {list(long_side)}, expected the smaller number first, 1 or more")

    def chosen(name: str, published: Any) -> Any:
        own = getattr(options, name)
        return own if own is not None else STORYBOOK.get(name, published) if storybook else published

    return CLIMSRecipe(
        loss=loss,
        calibrated=calibrated,
        epochs=chosen("epochs", 8 if released and coco else 15 if released else 10),
        baseline_epochs=0
        if knows_all and options.baseline_epochs is None
        else chosen("baseline_epochs", 5 if released else 15),
        batch=chosen("batch", 16),
        lr=chosen("lr", 5e-4 if released and coco else 2.5e-4),
        baseline_lr=chosen("baseline_lr", 0.1 if released else 0.01),
        momentum=0.0 if released else options.momentum or 0.0,
        decay_as_momentum=released,
        crop=chosen("crop", 512),
        long_side=long_side,
        clip_size=size,
        own_statistics=not released,
        frozen_norm=chosen("frozen_norm", False),
        finetune_decay=1e-3 if released else 3e-3,
    )


def _loss(options: CLIMSOptions, *, coco: bool, clip_name: str) -> tuple[CLIMSLoss, bool]:
    """The losses' weights and threshold, and whether that one is still to be calibrated."""
    released = options.variant == "released"
    loss = (RELEASED_COCO if coco else RELEASED) if released else CAMERA_READY
    if clip_name == STORYBOOK_CLIP and not released:
        loss = replace(loss, **STORYBOOK_LOSS)
    given = {k: getattr(options, k) for k in ("object", "background", "suppression", "area")}
    loss = replace(loss, **{name: value for name, value in given.items() if value is not None})
    if not released:
        if options.threshold is not None:
            raise UserError(
                "clims: variant paper has texts of its own for each class, and no threshold; leave it out"
            )
        return loss, False
    published = Path(clip_name).name in _VIT_B32
    calibrated = options.threshold == "calibrated" or (options.threshold is None and not published)
    if calibrated or options.threshold is not None:
        loss = replace(loss, threshold=0.0 if calibrated else float(options.threshold or 0))
    if options.momentum is not None:
        raise UserError(
            "clims: variant released uses its weight decay as momentum; leave momentum out, or take variant paper"
        )
    return loss, calibrated


def _native_size(clip: CLIP) -> int:
    """The side in pixels of the images that a CLIP was trained on."""
    return clip.model.vision.native_grid[0] * clip.model.vision.patch


STORYBOOK: dict[str, Any] = {**SCENES, "epochs": 2}
"""For storybook-resnet, whose scenes are small: two epochs of 200 scenes are 50 steps. After 100 the maps of boats
were worse again, on 60 scenes of ``val`` (seed 1) and with earlier weights."""

STORYBOOK_LOSS: dict[str, Any] = {"suppression": 5.0, "area": 5.0}
"""For storybook-clip, whose cosines with water or railway move over a wide range (OpenAI's: some hundredths): at the
paper's 29.5 and a rate of 0.004, L_CBS alone decides, and boats shrink to their sails (docs/clims.md)."""


class CLIMS(Trainable):
    """CLIMS as a tag2mask method; fitted by ``stages.machinery.fit``, or ready after ``load``."""

    Options = CLIMSOptions
    side_by_side = True
    needs = ("clip",)
    options: CLIMSOptions
    mask_rule = MaskRule(background=Constant(0.15))
    label_options = tuple(CAMOptions.model_fields)
    fit_uses = ALL

    def __init__(self, classes: ClassSet, options: CLIMSOptions | None = None, *, clip: CLIP) -> None:
        super().__init__(classes, options, clip=clip)
        self.clip = clip
        options = self.options
        if not options.finetune_clip:
            refuse_idle("clims", options, ("finetune_lr",), "without finetune_clip; give it, too, or leave this out")
        warn_of_weights(options.weights)
        network, unknown = self.start()
        self.recipe = make_recipe(
            options,
            classes,
            knows_all=not unknown,
            clip_name=clip.name,
            native_size=_native_size(clip),
            patch=clip.patch,
        )
        if not self.recipe.baseline_epochs:
            why = "where no classifier is learned first (baseline_epochs is 0); leave it out"
            refuse_idle("clims", options, ("baseline_lr",), why)
        self._read_with(network)
        self.ready = False

    def start(self) -> tuple[CLIMSNetwork, tuple[str, ...]]:
        """The network before any training, and the classes that it does not know yet."""
        head: Literal["cam", "camera-ready"] = "cam" if self.options.variant == "released" else "camera-ready"
        return build_clims(self.options.weights, self.classes.foreground, head, seed=self.options.seed)

    @property
    def weights(self) -> str:
        """Of the classifier that it starts from."""
        return self.options.weights

    @property
    def texts(self) -> TextSet:
        """What is said to CLIP."""
        name = "clims-released" if self.options.variant == "released" else "clims"
        sets = self.classes.texts
        return sets.get(name) or sets.get("clims") or TextSet(self.classes.foreground, ("a photo of {}",))

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        return {"weights_sha256": weights_sha256(self.options.weights), "recipe": self.recipe}

    def fit(self, data: Dataset, folder: Path, earlier: Run | None = None) -> None:
        """Train on images and tags; resumes where it was stopped.

        Raises:
            UserError: no image has a tag, or words that CLIP does not know.
            Stopped: Ctrl-C, or the minutes are over; the state is saved.
        """
        from tag2mask.methods.fitting.clims import train

        network = train(self.fit_of(), data, folder)
        keep_weights(folder / CLIMS_FILE, network.state_dict())

    def fit_of(self) -> CLIMSFit:
        """What its fit is made of."""
        options, recipe = self.options, self.recipe
        settings = FitSettings.of(
            self,
            batch=recipe.batch,
            lr=recipe.lr,
            momentum=recipe.momentum,
            decay_as_momentum=recipe.decay_as_momentum,
        )
        return CLIMSFit(
            self.classes,
            self.texts,
            self.clip,
            recipe,
            lambda: self.start()[0],
            settings,
            finetune_steps=options.finetune_clip,
            finetune_lr=options.finetune_lr,
            allow_unknown=options.allow_unknown,
        )

    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Load the network that ``fit`` left."""
        path = folder / CLIMS_FILE
        network, _ = self.start()
        fit_state(network, read_state(path), path)
        self._read_with(network)
        self.ready = True

    def _read_with(self, network: CLIMSNetwork) -> None:
        self.net = network.eval().requires_grad_(False).to(self.device)
        self.reader = CAMReader(self.net, torch.arange(len(self.classes.foreground)), self.options)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): whole cells of the network, each cut into cells of ``map_stride``."""
        return self.reader.grid(size)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Maps of the items' tags without sigmoid, each divided by its maximum, one image at a time.

        Raises:
            UserError: nothing was fitted or loaded.
        """
        if not self.ready:
            raise UserError("clims labels with what it has learned; call fit and load first, or tag2mask label")
        return [self.reader.scores(item) for item in items]
