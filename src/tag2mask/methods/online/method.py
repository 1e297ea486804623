"""What WeCLIP and CD-CLIP share as methods: options, the fit, and maps by what was learned."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tag2mask.methods.clip_es import fit_grid
from tag2mask.methods.fitting.settings import FitOptions, FitSettings
from tag2mask.methods.idle import refuse_idle
from tag2mask.methods.online.lesson import FOLDER, Fixed, Lessons, Live, check_room, view_bytes
from tag2mask.methods.online.teacher import Feature, Teacher, Texts
from tag2mask.methods.protocol import Trainable
from tag2mask.models.clip import VisionTransformer
from tag2mask.models.embedded import STORYBOOK_CLIP
from tag2mask.models.tower import Positions
from tag2mask.ops.decoder_affinity import decoder_affinity
from tag2mask.ops.image import MEAN, STD, resize_bicubic
from tag2mask.segment.network import SegmentationNet, build_network, check_network_classes, load_network
from tag2mask.segment.saved import NetworkConfig, read_saved
from tag2mask.segment.test_time import PRESETS
from tag2mask.types import ClassSet, Dataset, Item, MaskRule, Power, Scores, TextSet, UserError

if TYPE_CHECKING:
    from tag2mask.methods.online.boundaries import Boundaries
    from tag2mask.methods.online.recipe import OnlineRecipe
    from tag2mask.models.dino import DINO
    from tag2mask.models.weclip import WeCLIPNet
    from tag2mask.models.weights import CLIP
    from tag2mask.run.folder import Run

ARCHITECTURE = "weclip"

VOC_STEPS, COCO_STEPS = 30_000, 80_000
STORYBOOK_STEPS, STORYBOOK_LR = 300, 2e-4
"""For storybook-clip, whose scenes are small and which runs on a processor; not tuned."""


class OnlineOptions(FitOptions):
    """How the decoder is trained. What is None follows the variant, the data and the weights."""

    variant: Literal["paper", "released"] = Field("paper", description="the paper, or the released code's faults too")
    steps: int | None = Field(
        None, ge=1, description="training steps; default 30000, for coco14 80000, with storybook-clip 300"
    )
    batch: int | None = Field(None, ge=1, description="images at a time; default 4")
    accumulate: int = Field(1, ge=1, description="batches that make a step")
    views: int | None = Field(
        None, ge=1, description="fixed views of each picture, whose tower outputs are kept on the disk while the fit "
        "lasts; default: a new view at each step, as published"
    )  # fmt: skip
    crop: int | None = Field(None, ge=8, description="side of what is seen, in pixels; default 20 patches")
    scales: tuple[float, float] = Field((0.5, 2.0), description="pictures are enlarged by a factor: from, to")
    lr: float | None = Field(None, gt=0, description="base learning rate; the decoder's is 10 times it")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of all weights of the decoder")
    warmup: int = Field(50, ge=0, description="steps in which the rate rises; a tenth of all at most")
    width: int | None = Field(
        None, ge=8, multiple_of=8, description="channels of the decoder; default a third of CLIP's, 256 of ViT-B"
    )
    affinity_weight: float = Field(0.1, ge=0, description="weight of the loss of the decoder's affinity")
    layers: int | None = Field(
        None, ge=1, description="plain attention is averaged over so many last layers; default two thirds of all"
    )
    late_layers: int | None = Field(
        None, ge=1, description="RFM chooses among so many last layers; default half of all, for coco14 five sixths"
    )
    choose: Literal["all", "signed", "abs"] | None = Field(
        None, description="RFM's choice of layers; default abs (the paper's formula), released signed"
    )
    box_threshold: float | None = Field(
        None, ge=0, lt=1, description="threshold of the box mask; default 0.4, for coco14 0.7"
    )
    spread_steps: int = Field(2, ge=1, description="how often maps are spread")
    padding: Literal["ignored", "labelled"] | None = Field(
        None, description="what a crop has beyond its picture; default ignored, released labelled"
    )
    statistics: Literal["imagenet", "clip"] = Field(
        "imagenet", description="whose mean and deviation standardise CLIP's pixels; WeCLIP's code uses ImageNet's"
    )
    allow_unknown: bool = Field(False, description="continue where a text has words that the tokenizer does not know")
    max_tokens: int = Field(4096, ge=1, description="an image with more patches is shrunk to this many, for its maps")


def _lasting(name: str) -> str:
    """What a tower is asked for by, from wherever the network is read: a path from the root, or a name."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _dino_of(sha256: str) -> str:
    return f"a DINO of sha256 {sha256[:12]}…" if sha256 else "CLIP alone"


class Online(Trainable):
    """A method whose masks arise while it trains a decoder; derive ``WeCLIP`` and ``CDCLIP`` from it.

    name: of the method, and of the text set of a class set that is its own.
    """

    needs = ("clip",)
    side_by_side = True
    label_options = ("max_tokens",)
    fit_uses = ("devices", "workers", "minutes")
    mask_rule = MaskRule(background=Power(1.0), refiner="par")
    name: ClassVar[str]
    options: Any

    def __init__(self, classes: ClassSet, options: Any = None, *, clip: CLIP, **towers: Any) -> None:
        super().__init__(classes, options, clip=clip, **towers)
        vision: Any = clip.model.vision
        if not isinstance(vision, VisionTransformer):
            raise UserError(
                f"{self.name}: {clip.name} is a ResNet, and the decoder stands on a ViT's blocks; take a ViT"
            )
        self.clip, self.vision = clip, vision
        if self.options.crop is not None and self.options.crop % clip.patch:
            raise UserError(
                f"{self.name}: crop {self.options.crop} is no multiple of this CLIP's patch, {clip.patch}; give one "
                "that is"
            )
        if not 0 < self.options.scales[0] <= self.options.scales[1] < math.inf:
            raise UserError(f"{self.name}: scales {list(self.options.scales)}: expected the smaller first, above 0")
        self.recipe = self.make_recipe()
        for setting, names in self.idle().items():
            refuse_idle(self.name, self.options, names, f"with {setting}; leave it out")
        self.teacher = self.make_teacher()
        self.net: SegmentationNet | None = None
        published = PRESETS[self.name]
        if self.scenes:  # which the published views would enlarge several times
            published = replace(published, test=replace(published.test, fit=None))
        self.network_test = published

    # --- what the methods differ in ---

    @abstractmethod
    def make_recipe(self) -> OnlineRecipe:
        """The variant's settings with the options in their place."""

    @abstractmethod
    def compared_texts(self) -> Tensor:
        """(T, E): the texts that class distributions range over."""

    @abstractmethod
    def idle(self) -> dict[str, set[str]]:
        """Options that a setting leaves without effect, by that setting."""

    @property
    def feature(self) -> Feature:
        """What class distributions compare with texts."""
        return "last"

    @property
    def second(self) -> DINO | None:
        """The DINO that the decoder stands on beside CLIP, if it stands on one."""
        return None

    def make_boundaries(self) -> Boundaries | None:
        """What teaches boundaries between super-classes, if anything does."""
        return None

    # --- what they share ---

    @property
    def released(self) -> bool:
        """Whether the released code's faults are kept."""
        return bool(self.options.variant == "released")

    @property
    def coco(self) -> bool:
        """Whether the published settings for COCO are taken."""
        return self.classes.id == "coco14"

    @property
    def scenes(self) -> bool:
        """Whether the CLIP is the embedded one."""
        return self.clip.name == STORYBOOK_CLIP

    @property
    def steps(self) -> int:
        """Of the training."""
        published = STORYBOOK_STEPS if self.scenes else COCO_STEPS if self.coco else VOC_STEPS
        return self.options.steps or published

    def decoder_lr(self, published: float) -> float:
        """Of the decoder: 10 times the base rate that is given, or published."""
        return 10 * (self.options.lr or (STORYBOOK_LR if self.scenes else published))

    @property
    def text_set(self) -> TextSet:
        """What is said to CLIP: CLIP-ES's texts, unless the class set has some of the method's own."""
        sets = self.classes.texts
        names = [self.name, "weclip", *(["clip-es-released"] if self.released else []), "clip-es"]
        found = next((sets[name] for name in names if name in sets), None)
        return found or TextSet(self.classes.foreground, ("a clean origami {}.",), ("background",))

    def say(self, phrases: Sequence[str]) -> Tensor:
        """Unit rows of phrases in the templates: (T, E)."""
        return self.clip.ensemble(phrases, self.text_set.templates, allow_unknown=self.options.allow_unknown)

    def make_teacher(self) -> Teacher:
        """The frozen CLIP with the texts.

        Raises:
            UserError: the class set has no background phrases.
        """
        texts = self.text_set
        if not texts.background:
            raise UserError(
                f"{self.name}: the texts of {self.classes.id!r} have no background phrases, and the only class of an "
                "image would have no rival; give some under texts in the class set's YAML"
            )
        layers = max(self.recipe.early.layers, self.recipe.late.layers)
        return Teacher(
            self.vision,
            float(self.clip.model.logit_scale.exp()),
            Texts(self.say(texts.names), self.say(texts.background), self.compared_texts()),
            layers=layers,
            positions=Positions(round_fp16=self.released),
            statistics=self.pixel_statistics,
            feature=self.feature,
        )

    @property
    def pixel_statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and deviation of the pixels that the tower sees."""
        return (MEAN, STD) if self.options.statistics == "imagenet" else (self.clip.mean, self.clip.std)

    def layers_of(self, given: int | None, share: float) -> int:
        """So many last layers, or a share of all of this CLIP's.

        Raises:
            UserError: more than it has.
        """
        total = len(self.vision.blocks)
        if given is not None and given > total:
            raise UserError(f"{self.name}: {given} layers of attention, and {self.clip.name} has {total}; give fewer")
        return given or max(1, round(share * total))

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        return {"recipe": self.recipe}

    def new_network(self) -> SegmentationNet:
        """A decoder of random weights, drawn by the seed, over this method's own tower."""
        mean, std = self.pixel_statistics
        options = {
            "clip": _lasting(self.clip.name),
            "sha256": self.clip.sha256,
            **(
                {} if self.second is None else {"dino": _lasting(self.second.name), "dino_sha256": self.second.sha256}
            ),
            "activation": self.vision.blocks[0].mlp.activation,
            "width": self.options.width or 8 * max(1, round(self.vision.ln_post.normalized_shape[0] / 24)),
            "round_fp16": self.released,
            "mean": mean,
            "std": std,
        }
        config = NetworkConfig.of(ARCHITECTURE, self.classes, **options)
        return build_network(config, seed=self.options.seed, towers=self._towers)

    @property
    def _towers(self) -> dict[str, Any]:
        """What is at hand, and need not be loaded again."""
        return {"clip": self.clip, **({} if self.second is None else {"dino": self.second})}

    def fit(self, data: Dataset, folder: Path, earlier: Run | None = None) -> None:
        """Train on images and tags; goes on where it was stopped. Leaves the decoder in ``folder / INSIDE``.

        Raises:
            UserError: no image has a tag.
        """
        from tag2mask.methods.fitting.tagged import TaggedImages
        from tag2mask.methods.fitting.training import keep_network, train_to_end
        from tag2mask.methods.online.training import OnlineTraining
        from tag2mask.segment.augment import Augment, Uniform

        recipe, options = self.recipe, self.options
        padding = (math.nan,) * 3  # no pixel is that
        shapes = Augment(recipe.crop, scale=Uniform(*recipe.scales), place="anywhere", fill=padding)
        images = TaggedImages(data, shapes, options.seed, views=options.views)
        if not any(images.data[i].tags for i in images.indices):
            raise UserError(
                f"{self.name} learns from tags, and none of the {len(data)} images in {data.root} has any"
            )
        net = self.new_network().to(self.device)
        bare: Any = net.network
        settings = FitSettings.of(self, steps=recipe.steps, batch=recipe.batch, lr=recipe.lr)
        settings = replace(settings, accumulate=options.accumulate)
        if options.views:
            views = min(options.views * len(images), recipe.steps * recipe.batch * options.accumulate)
            view = view_bytes(recipe, len(bare.decoder_fts_fuse.linears_modulelist), self.view_sizes)
            check_room(folder, views, view, self.name)
        lessons, weight = self.lessons(bare, folder)
        train_to_end(OnlineTraining(bare, lessons, recipe, settings, weight), images, settings, folder, self.name)
        if isinstance(lessons, Fixed):
            lessons.forget()
        noted = {"method": self.name, "steps": recipe.steps, "test": self.network_test}
        keep_network(folder, net, recipe.steps, supervision="tags", noted=noted)

    def lessons(self, net: WeCLIPNet, folder: Path) -> tuple[Lessons, float]:
        """What a decoder is shown and taught, of fixed views kept in ``folder``, and the boundary loss's weight."""
        boundaries = self.make_boundaries()
        live = Live(self.teacher, net.structure, boundaries)
        weight = 0.0 if boundaries is None else boundaries.settings.weight
        if self.options.views is None:
            return live, weight
        taps = len(net.decoder_fts_fuse.linears_modulelist)
        return Fixed(live, taps, folder / FOLDER, self._described), weight

    @property
    def view_sizes(self) -> list[tuple[int, int]]:
        """Patch and width of each tower that the decoder stands on."""
        second = [] if self.second is None else [(self.second.patch, self.second.model.width)]
        return [(self.clip.patch, self.vision.ln_post.normalized_shape[0]), *second]

    @property
    def _described(self) -> str:
        """All that decides a view's maps but the picture and its tags, and more."""
        learned = {name: value for name, value in self.options if name not in self.label_options}
        towers = [(name, each.sha256, each.fingerprint, str(each.dtype)) for name, each in self.towers.items()]
        return repr((self.name, learned, self.resolved, self.pixel_statistics, self.text_set, towers))

    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Load the decoder that ``fit`` left.

        Raises:
            UserError: there is none, it is damaged, or it stands on another CLIP.
        """
        saved = read_saved(folder)
        check_network_classes(saved.config, self.classes.names, saved.path)
        if saved.config.architecture != ARCHITECTURE or saved.config.options.get("sha256") != self.clip.sha256:
            raise UserError(
                f"{saved.path}: was trained on {saved.config.options.get('clip')} (weights of sha256 "
                f"{str(saved.config.options.get('sha256'))[:12]}…), not on {self.clip.name} "
                f"({self.clip.sha256[:12]}…); give that CLIP, or fit again"
            )
        theirs, own = saved.config.options.get("dino_sha256") or "", "" if self.second is None else self.second.sha256
        if theirs != own:
            raise UserError(
                f"{saved.path}: its decoder stands on {_dino_of(theirs)}, and this method's on {_dino_of(own)}; give "
                "that DINO and that decoder (--dino, --set decoder=), or fit again"
            )
        self.net = load_network(saved, str(self.device), towers=self._towers)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w) in patches: each side up to a whole patch, at most ``max_tokens`` in all."""
        return fit_grid(size, self.clip.patch, self.options.max_tokens)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Maps of the items' tags as the last step of the training would refine them, one image at a time.

        Raises:
            UserError: nothing was fitted or loaded.
        """
        if self.net is None:
            raise UserError(
                f"{self.name} labels with what it has learned; call fit and load first, or tag2mask label"
            )
        with torch.inference_mode():
            return [self._scores(item, self.net.network) for item in items]

    def _scores(self, item: Item, net: Any) -> Scores:
        size = (item.image.shape[1], item.image.shape[2])
        if item.tags is None:
            raise ValueError(f"{item.id} has no tags; {self.name} needs to know them")
        grid, patch = self.grid(size), self.clip.patch
        image = resize_bicubic(item.image.cpu(), (grid[0] * patch, grid[1] * patch))
        pixels = self.teacher.pixels(image[None].to(self.device))
        seen = self.teacher.look(pixels)
        found = net.decode(seen.taps, seen.grid, net.structure(pixels))
        recipe = self.recipe
        settings = recipe.late if recipe.steps > recipe.switch else recipe.early
        probs = found.logits.softmax(1) if recipe.feedback else None
        maps = self.teacher.maps(seen, [item.tags], settings, decoder_affinity(found.features), probs)[0]
        return Scores(item.tags, maps.refined.float().cpu(), size, initial=maps.initial.float().cpu())
