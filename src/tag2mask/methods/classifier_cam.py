"""Classifier CAM: the baseline of the field, and the start of CLIMS, IRN, PSA and POT.

A ResNet-50 trained on image tags (Zhou et al. 2016 in the form of IRN: Ahn et al., "Weakly Supervised Learning of
Instance Segmentation with Inter-pixel Relations", CVPR 2019). IRN reports 48.3 mIoU on VOC 2012 train, CLIMS 48.1 of
its own classifier (not measured here).

It labels with a trained classifier. Where ``epochs`` or ``steps`` are given, it first learns one from the tags of the
data at hand, starting from ImageNet weights, another classifier, or nothing. What it learned lies in the run's
checkpoints as a classifier's folder; other methods take it by the name of the run (``--set weights=RUN``).

The training is that of both codes: multi-label soft margin loss, 5 epochs of batches of 16 crops of 512 pixels from
pictures of 320 to 640, mirrored or not, SGD under polynomial decay from 0.1 (head: 1), weight decay 1e-4, the stem
frozen. They differ in two options:

=================  =========================================  =======================================
                   IRN (``recipes/voc12_classifier_cam``)     CLIMS (the default)
=================  =========================================  =======================================
``frozen_norm``    true: norms keep ImageNet's statistics     false
``frozen_parts``   3: the first two stages do not learn       1: only the stem does not
=================  =========================================  =======================================

Faults of the codes that are left out: the weight decay landed in the place of the momentum, 1e-4 (no momentum here,
which trains the same to the eye); norms decayed; the last, smaller batch of an epoch was dropped. Images without tags
take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tag2mask.methods.cam_reader import CAMOptions, CAMReader
from tag2mask.methods.fitting.settings import ALL, FitOptions, FitSettings
from tag2mask.methods.fitting.tagged import TaggedImages
from tag2mask.methods.idle import refuse_idle
from tag2mask.methods.protocol import Trainable
from tag2mask.models.classifier import (
    RANDOM,
    Classifier,
    load_classifier,
    save_classifier,
    start_classifier,
    warn_of_weights,
)
from tag2mask.models.embedded import STORYBOOK_RESNET
from tag2mask.models.find_classifier import MAKE, weights_file, weights_sha256
from tag2mask.models.public_resnet import pixel_labels
from tag2mask.segment.augment import Augment, LongSide
from tag2mask.types import ClassSet, Constant, Dataset, Item, MaskRule, Scores, UserError

if TYPE_CHECKING:
    from tag2mask.run.folder import Run

SCENES: dict[str, Any] = {"batch": 8, "crop": 192, "long_side": (192, 256), "frozen_norm": True}
"""Of trainings that start from storybook-resnet, whose scenes are small."""

PUBLISHED: dict[str, Any] = {"batch": 16, "crop": 512, "long_side": (320, 640), "frozen_norm": False}


class ClassifierCAMOptions(CAMOptions, FitOptions):
    """What the class maps are made from, and how that learns first; what is None follows the weights."""

    weights: str = Field(
        STORYBOOK_RESNET,
        description="a classifier: storybook-resnet, a run that learned one, or a folder; learning also starts from "
        'ImageNet weights (.pth, .safetensors) or from "random" ones',
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="epochs in which it learns the tags first (published: 5); default: label with the weights as is",
    )
    steps: int | None = Field(None, ge=1, description="steps in which it learns the tags, instead of epochs")
    batch: int | None = Field(None, ge=1, description="images a step; default 16 (storybook-resnet: 8)")
    lr: float = Field(0.1, gt=0, description="learning rate of the backbone; the head's is 10 times it")
    crop: int | None = Field(
        None,
        ge=16,
        description="side of the square that it learns from, in pixels; default 512 (storybook-resnet: 192)",
    )
    long_side: tuple[int, int] | None = Field(
        None,
        description="the image's longer side before the crop; default 320 to 640 (storybook-resnet: 192 to 256)",
    )
    frozen_norm: bool | None = Field(
        None, description="norms keep their statistics; default: for storybook-resnet, whose batches are small"
    )
    frozen_parts: int | None = Field(
        None, ge=0, le=5, description="the stem and first stages that do not learn; default 1, with random weights 0"
    )

    @property
    def learns(self) -> bool:
        """Whether it learns before it labels."""
        return self.epochs is not None or self.steps is not None

    @model_validator(mode="after")
    def _fits(self) -> ClassifierCAMOptions:
        if not self.learns:
            refuse_idle("classifier-cam", self, _LEARNING, "without epochs or steps; give one too, or leave it out")
        if not self.learns and self.weights == RANDOM:
            raise ValueError("random weights know nothing; give epochs or steps to learn from the tags")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs {self.epochs:g} and steps {self.steps} both say how long it learns; give one")
        if self.long_side is not None and not 1 <= self.long_side[0] <= self.long_side[1]:
            raise ValueError(f"long_side is {list(self.long_side)}, expected the smaller number first, 1 or more")
        return self

    @model_serializer(mode="wrap")
    def _kept(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where nothing is learned, what matters to learning alone is no setting of the results."""
        return {name: value for name, value in handler(self).items() if self.learns or name not in _LEARNING}

    def chosen(self, name: str) -> Any:
        """An option, or what follows from the weights."""
        own = getattr(self, name)
        return own if own is not None else (SCENES if self.weights == STORYBOOK_RESNET else PUBLISHED)[name]


_LEARNING = set(ClassifierCAMOptions.model_fields) - set(CAMOptions.model_fields) - {"weights"}


class ClassifierCAM(Trainable):
    """Class activation maps of a classifier as a tag2mask method.

    A given classifier's classes are matched by name, so one that knows more than the class set will do.
    """

    Options = ClassifierCAMOptions
    side_by_side = True
    options: ClassifierCAMOptions
    mask_rule = MaskRule(background=Constant(0.15))  # IRN's and CLIMS's threshold
    label_options = tuple(CAMOptions.model_fields)
    fit_uses = ALL

    def __init__(self, classes: ClassSet, options: ClassifierCAMOptions | None = None) -> None:
        super().__init__(classes, options)
        given = self.options.weights
        self.sha256: str | None
        self.ready = not self.learns
        if self.learns:
            warn_of_weights(given)
            self.sha256 = None if given == RANDOM else weights_sha256(given)
            self._read_with(self.start())
        else:
            warn_of_weights(given, f"weights that were trained on yours; {MAKE} makes them")
            classifier, self.sha256 = load_classifier(given)
            self._read_with(classifier)

    @property
    def learns(self) -> bool:
        """Whether it is to be fitted before it labels."""
        return self.options.learns

    def start(self) -> Classifier:
        """The network before any training."""
        return start_classifier(self.options.weights, self.classes.foreground, seed=self.options.seed)[0]

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        if not self.learns:
            return {"weights_sha256": self.sha256}
        followed = {name: self.options.chosen(name) for name in PUBLISHED}
        return {"weights_sha256": self.sha256, **followed, "frozen_parts": self.frozen_parts}

    @property
    def frozen_parts(self) -> int:
        """How many first parts of the backbone do not learn."""
        given = self.options.frozen_parts
        return given if given is not None else 0 if self.options.weights == RANDOM else 1

    @property
    def weights(self) -> str:
        """The classifier's."""
        return self.options.weights

    def to(self, device: torch.device) -> None:
        """Compute on that device."""
        self.classifier.to(device)
        self.device = device

    def fit(self, data: Dataset, folder: Path, earlier: Run | None = None) -> None:
        """Train on images and tags, resuming where it was stopped; leaves a classifier's folder in the checkpoints.

        Raises:
            UserError: no image has a tag.
            Stopped: Ctrl-C, or the minutes are over; the state is saved.
        """
        from tag2mask.methods.fitting.classifier import Descent, tag_training
        from tag2mask.methods.fitting.training import train_to_end

        options, chosen = self.options, self.options.chosen
        shapes = Augment(chosen("crop"), scale=LongSide(*chosen("long_side")), place="anywhere", resample="bicubic")
        images = TaggedImages(data, shapes, options.seed, tagged_only=True)
        if not len(images):
            raise UserError(f"classifier-cam learns from tags; none of the {len(data)} images in {data.root} has any")
        settings = FitSettings.of(self, batch=chosen("batch")).lasting(options.epochs or 1, len(images))
        network, descent = self.start(), Descent(settings, chosen("frozen_norm"), self.frozen_parts)
        module = tag_training(network, len(network.names), descent)
        train_to_end(module, images, settings, folder, "fit classifier-cam")
        pixels = () if options.weights == RANDOM else pixel_labels(weights_file(options.weights))
        supervision = "+".join(("tags", *pixels))
        save_classifier(network.eval(), folder, self._card(settings.steps, len(images), supervision), supervision)

    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Load the classifier that ``fit`` left."""
        self._read_with(load_classifier(folder)[0])
        self.ready = True

    def _card(self, steps: int, images: int, supervision: str) -> str:
        """What MODEL_CARD.md says: origin and recipe. Nothing of the machine: a fit is the same bytes anywhere."""
        options, names = self.options, self.classes.foreground
        name = Path(options.weights).name
        began = "random weights" if self.sha256 is None else f"{name} (sha256 {self.sha256[:12]})"
        settings = {"lr": options.lr, "weight_decay": options.weight_decay, "seed": options.seed, **self.resolved}
        rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items() if key != "weights_sha256")
        return f"""# A classifier of {len(names)} classes

A ResNet with one score for each of {", ".join(names)}. It started from {began} and learned from the tags of {images}
images in {steps} steps. tag2mask takes it wherever it takes a classifier's weights.

| recipe | |
|---|---|
{rows}
| loss | multi-label soft margin |
| optimiser | SGD, polynomial decay |
| supervision | {supervision} |
"""

    def _read_with(self, classifier: Classifier) -> None:
        known, wanted = classifier.names, self.classes.foreground
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise UserError(
                f"the classifier {self.options.weights} does not know {', '.join(unknown[:5])} of {self.classes.id}; "
                f"it knows {', '.join(known)}; take weights that were trained on your classes, or learn these "
                "from the images first: --set epochs=5, for photographs with --set weights=RESNET50.pth"
            )
        channels = torch.tensor([known.index(name) for name in wanted])  # (C,)
        self.classifier = classifier.to(self.device)
        self.reader = CAMReader(classifier, channels, self.options)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): whole cells of the network, each cut into cells of ``map_stride``."""
        return self.reader.grid(size)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Class maps of the items' tags, each divided by its maximum, one image at a time.

        Raises:
            UserError: it is to learn first, and nothing was fitted or loaded.
        """
        if not self.ready:
            raise UserError("classifier-cam labels with what it has learned; call fit and load first")
        return [self.reader.scores(item) for item in items]
