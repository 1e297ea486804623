"""WeakCLIP's network as an architecture: its options, what a variant makes of them, and its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor

from tag2mask.models.clip_files import MEAN as CLIP_MEAN
from tag2mask.models.clip_files import STD as CLIP_STD
from tag2mask.models.weakclip import TOWERS, WeakCLIPNet, WeakCLIPSettings, default_taps
from tag2mask.models.weakclip_parts import coarsest
from tag2mask.ops.image import MEAN as IMAGENET_MEAN
from tag2mask.ops.image import STD as IMAGENET_STD
from tag2mask.ops.image import standardise
from tag2mask.segment.options import LATER, RANDOM, WITH_HEAD, Names, Options
from tag2mask.types import UserError

if TYPE_CHECKING:
    from tag2mask.models.weights import CLIP

Statistics = tuple[float, float, float]

_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "encoders": "frozen",
        "adapter": "trained",
        "class_twice": False,
        "drop_path": 0.0,
        "edges": "pad",
        "layers": 1,
        "chained": True,
        "pixels": "clip",
    },
    "released": {
        "encoders": "creep",
        "adapter": "as-encoders",
        "class_twice": True,
        "drop_path": 0.1,
        "edges": "cut",
        "layers": 3,
        "chained": False,
        "pixels": "imagenet",
    },
}


class WeakCLIPChoices(BaseModel):
    """What of the network can be chosen. What is None follows the variant, and the taps the image tower's depth."""

    variant: Literal["paper", "released"] = Field("paper", description="whose defaults the other options have")
    encoders: Literal["frozen", "creep", "trained"] | None = Field(
        None, description="CLIP's towers: frozen, creep (rate from 0 up to lr_floor), or trained as the rest"
    )
    adapter: Literal["trained", "as-encoders"] | None = Field(None, description="how the pyramid adapter is trained")
    taps: tuple[int, int, int, int] | None = Field(
        None, description="blocks of the image tower, from 1, after which features are taken"
    )
    class_twice: bool | None = Field(None, description="the class embedding is added to its token once more")
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="how often the last block of encoders that learn leaves out a branch"
    )
    edges: Literal["pad", "cut"] | None = Field(
        None, description="pictures that do not fit the cells: padded, or cut and the result stretched"
    )
    pixels: Literal["clip", "imagenet"] | None = Field(
        None, description="whose mean and deviation standardise the pixels"
    )
    resolution: int | None = Field(
        512, ge=1, description="positions are first resized to the grid of a square of this side; none: they are not"
    )
    prompts: int = Field(8, ge=0, description="learnt vectors before each name")
    match: Literal["co-attention", "direct"] = Field(
        "co-attention", description="how texts and pixels are matched; direct: by CLIP's own cosines"
    )
    layers: int | None = Field(None, ge=1, description="layers of the co-attention in each direction")
    chained: bool | None = Field(
        None, description="layers of the co-attention follow one another; else only the last is used"
    )
    width: int = Field(256, ge=1, description="channels of the co-attention")
    heads: int = Field(4, ge=1, description="heads of the co-attention")
    scale: float = Field(0.1, description="first scale of what the co-attention adds to texts and pixels")
    decoder: Literal["text-guided", "plain", "none"] = Field(
        "text-guided",
        description="plain: it does not see the matching scores, which are added after it; none: only these",
    )
    channels: int = Field(256, ge=1, description="channels of the decoder")
    allow_unknown: bool = Field(False, description="continue where a name has words that the tokenizer does not know")

    @model_validator(mode="wrap")
    @classmethod
    def _follow_the_variant(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        known = _VARIANTS.get(values.get("variant", "paper"), {}) if isinstance(values, Mapping) else {}
        given = {name: value for name, value in values.items() if name not in known or value is not None}
        made = handler({**known, **given})
        made.model_fields_set.difference_update(known.keys() - given.keys())  # nobody gave what the variant says
        return made


class WeakCLIPOptions(WeakCLIPChoices, Options):
    """Of "weakclip".

    clip, sha256: of the CLIP. mean, std: of the pixels; None: as ``pixels`` says. texts: what is said to CLIP,
    background first; None: the names of the classes. own_towers: the towers are no longer what that CLIP has.
    """

    clip: str | None = Field(None, description="hub id, folder, OpenAI .pt, or storybook-clip; default: as for label")
    sha256: str = Field("", description="sha256 of the CLIP's weights; empty: any")
    mean: Statistics | None = Field(None, description="means of red, green and blue in 0..1; default: as pixels says")
    std: Statistics | None = Field(None, description="their deviations; default: as pixels says")
    texts: tuple[str, ...] | None = Field(
        None, description="names said to CLIP, background first; further ones take part in the matching alone"
    )
    own_towers: bool = Field(False, description="the towers' weights are kept with the network (set where needed)")

    @property
    def stored(self) -> bool:
        """Whether the towers are kept with the network: they learn, or are a checkpoint's."""
        return self.own_towers or self.encoders != "frozen"

    def settings(self, depth: int) -> WeakCLIPSettings:
        """The same for the network, over an image tower of so many blocks.

        Raises:
            UserError: taps that the tower does not have, or a width that the heads cannot share.
        """
        taps = self.taps or default_taps(depth, self.variant)
        if not all(1 <= tap <= depth for tap in taps) or list(taps) != sorted(taps):
            raise UserError(f"weakclip: taps {list(taps)}: expected four blocks from 1 to {depth}, ascending")
        if self.width % self.heads:
            raise UserError(f"weakclip: width {self.width} for {self.heads} heads: expected a multiple of them")
        names = WeakCLIPSettings.__dataclass_fields__.keys() & type(self).model_fields.keys()
        return WeakCLIPSettings(**{**{name: getattr(self, name) for name in names}, "taps": taps})


OF_CHECKPOINT = ("resolution", "prompts", "width", "channels", "encoders", "adapter", "drop_path", "scale")
"""Choices that a released checkpoint makes itself, or that are about learning alone."""


def idle_choices(options: WeakCLIPChoices) -> dict[str, tuple[str, ...]]:
    """Choices that others leave without effect, by the one that does."""
    found = {
        "match=direct": ("width", "heads", "layers", "chained", "scale"),
        "decoder=none": ("channels", "adapter"),
        "encoders=frozen": ("drop_path",),
    }
    taken = {f"{name}={getattr(options, name)}" for name in ("match", "decoder", "encoders")}
    return {setting: names for setting, names in found.items() if setting in taken}


def refuse_parted(crop: int, patch: int) -> None:
    """Refuse crops that part the coarsest cell of a CLIP with such patches, in pixels.

    Raises:
        UserError: labels would not lie on the pixels that the network answers for.
    """
    cell = coarsest(patch)
    if crop % cell:
        raise UserError(
            f"weakclip: crop {crop} is no multiple of {cell}, the coarsest cell of this CLIP, and labels would not "
            f"lie on their pixels; give --set crop={max(1, crop // cell) * cell}"
        )


def weakclip_towers(options: WeakCLIPOptions) -> tuple[str, ...]:
    """The parts that are not kept with the network."""
    return () if options.stored else TOWERS


def weakclip_held(options: WeakCLIPOptions) -> tuple[str, ...]:
    """The parts whose rate rises from 0."""
    if options.encoders != "creep":
        return ()
    return (*TOWERS, "adapter") if options.adapter == "as-encoders" else TOWERS


def weakclip_pixels(images: Tensor, options: WeakCLIPOptions) -> Tensor:
    """Pictures (B, 3, H, W) RGB 0-255 as the image tower takes them, of the same shape."""
    own = options.pixels == "clip"
    mean = options.mean or (CLIP_MEAN if own else IMAGENET_MEAN)
    return standardise(images, mean, options.std or (CLIP_STD if own else IMAGENET_STD))


def build_weakclip(
    name: str, names: Names, options: WeakCLIPOptions, init: str, *, towers: Mapping[str, Any] | None = None
) -> WeakCLIPNet:
    """The network of a CLIP, with random parts or those of a released checkpoint.

    Args:
        name: of the architecture.
        names: of the classes, background first.
        options: as given.
        init: "random", "later", or a released checkpoint's path.
        towers: {"clip": a loaded CLIP} that is taken instead of one loaded by name.

    Raises:
        UserError: no such CLIP, or another one than the network was trained on; names that it does not know or that
            are too long; a checkpoint that does not fit.
    """
    from tag2mask.models.weakclip_files import fill_from_released, read_released, silent_texts

    clip = _clip(options, towers or {})
    texts = options.texts or names
    path = None if init in (RANDOM, LATER) else Path(init.removeprefix(WITH_HEAD)).expanduser()
    state: dict[str, Tensor] = {}
    if path is not None:
        if not path.is_file():
            raise UserError(
                f'init {init}: there is no such file; expected a released checkpoint of WeakCLIP (.pth), "random", '
                "or a network folder that `train` wrote"
            )
        if options.variant != "released":
            raise UserError(
                f"init {init}: is a released checkpoint, whose pixels, positions and taps are those of "
                "variant=released; set that among the options (options.variant=released)"
            )
        state = read_released(path)
        if options.texts is None:
            texts = (*names, *silent_texts(state, len(names), path))
        options = options.model_copy(update={"own_towers": True, **_checkpoint_sizes(state)})
    if len(texts) < len(names):
        raise UserError(f"weakclip: got {len(texts)} texts for {len(names)} classes; name one for each")
    clip.refuse_unknown(texts, options.allow_unknown)
    tokens = [clip.tokenizer.encode(text) for text in texts]
    settings = options.settings(len(clip.model.vision.blocks))
    vision: Any = clip.model.vision
    network = WeakCLIPNet(vision, clip.model.text, tokens, len(names), settings, own_towers=options.stored)
    if path is not None:
        fill_from_released(network, state, path)
    own_pixels = {"mean": clip.mean, "std": clip.std} if options.pixels == "clip" else {}
    network.found_options = {
        **options.model_dump(mode="json"),
        "clip": clip.name,
        "sha256": clip.sha256,
        "texts": list(texts),
        "taps": list(settings.taps),
        **own_pixels,
    }
    return network


def _clip(options: WeakCLIPOptions, towers: Mapping[str, Any]) -> CLIP:
    """The CLIP at hand, or the one that the options name."""
    from tag2mask.models.weights import load_clip

    clip: CLIP = towers["clip"] if "clip" in towers else load_clip(options.clip)
    if options.sha256 and clip.sha256 != options.sha256:
        raise UserError(
            f"weakclip: {clip.name} has weights of sha256 {clip.sha256[:12]}…, and the network is one over "
            f"{options.clip} with {options.sha256[:12]}…; give that CLIP, or train again"
        )
    return clip


def _checkpoint_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a released checkpoint's shapes say of the options."""
    rows, patch = len(state["backbone.positional_embedding"]) - 1, state["backbone.conv1.weight"].shape[2]
    return {
        "resolution": math.isqrt(rows) * patch,
        "prompts": state["contexts"].shape[1],
        "width": state["context_decoder.text_proj.1.weight"].shape[0],
        "channels": state["decode_head.conv_seg.weight"].shape[1],
    }
