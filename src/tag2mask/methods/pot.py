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

Everything that the supplement leaves open is an option that says so, with the reason for its default
(``methods.pot_options``).

Faults of the code that are kept nowhere: the gradients are never set to zero (hidden by its loss scaling); a class
whose k-means loses a cluster never ends; its Sinkhorn can give NaN, and then crashes; clusters and classes are mixed
up in the plan. Checkpoints were compared on masks by hand; the last one, which its labelling takes, is kept here.

Confidence (``--mu``) is a class's share of its own and the background's score (``ops.masks.map_confidence``). Under
``released``, whose background is never below 0.4 where a class has at most 2, no class is surer than 0.83 without a
refiner and without ``fuse``.

Earlier maps may be any method's: CLIP-ES with CAA, as in the paper, CLIMS's, IRN-refined ones, another POT's.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.methods.cam_reader import CAMOptions, tags_of
from tag2mask.methods.fitting.affinity import PriorMaps
from tag2mask.methods.fitting.pot_recipe import finite_maps, maps_of
from tag2mask.methods.fitting.settings import ALL, FitSettings
from tag2mask.methods.fitting.weights import keep_weights
from tag2mask.methods.pot_options import POTOptions, make_recipe
from tag2mask.methods.protocol import EarlierRun, Trainable
from tag2mask.models.classifier import warn_of_weights
from tag2mask.models.find_classifier import weights_sha256
from tag2mask.models.pot import POTNetwork, build_pot, load_released
from tag2mask.models.state import fit_state, read_state, state_sha256
from tag2mask.ops.cam_fusion import flip_sum, scaled_size, strided_size
from tag2mask.ops.image import MEAN, STD, resize_bicubic, standardise, working_size
from tag2mask.ops.masks import upsample
from tag2mask.ops.pot import fuse, less_background, max_scaled
from tag2mask.ops.pot_batch import classifier_maps, mean_prototype_maps, transported_maps, with_rest
from tag2mask.types import ClassSet, Dataset, Item, MaskRule, Own, Scores, UserError

if TYPE_CHECKING:
    from tag2mask.run.folder import Run

POT_FILE = "pot.safetensors"
"""In a run's checkpoints: the trained network."""

GROUND = 0.4
"""What the released code adds to the background of its summed maps, whose classes it doubles."""


class POT(Trainable):
    """POT as a tag2mask method; fitted by ``stages.machinery.fit``, or ready after ``load``."""

    Options = POTOptions
    side_by_side = True
    options: POTOptions
    mask_rule = MaskRule(background=Own())
    label_options = (*CAMOptions.model_fields, "fuse")
    fit_uses = ALL

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
        """Train on images, tags and the earlier run's maps; resumes where it was stopped.

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
        keep_weights(folder / POT_FILE, network.state_dict())

    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Load the network that ``fit`` left, and read the earlier run's maps as that run makes masks of them."""
        if self.learns:
            path = folder / POT_FILE
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
        tags = tags_of(item, len(self.classes) - 1)
        size = (item.image.shape[1], item.image.shape[2])
        grid, within = self.grid(size), self._within(size)
        earlier = self._earlier(item, within)
        labels = torch.zeros(1, len(self.classes) - 1, dtype=torch.bool, device=self.device)
        labels[0, tags.to(self.device) - 1] = True
        dice = torch.Generator().manual_seed(zlib.crc32(item.id.encode()) + self.options.seed)
        total = torch.zeros(1 + len(tags), *grid)
        fused = torch.zeros_like(total)
        channels = torch.cat([tags.new_zeros(1), tags]).to(self.device)  # background first
        for scale in self.options.scales:
            maps, joined = self._at(
                item.image, scaled_size(within, self._capped(scale, within)), labels, earlier, dice
            )
            total += upsample(maps[0, channels].cpu(), grid)
            if joined is not None and scale == 1:
                fused += upsample(joined[0, channels].cpu(), grid)
        maps, background = self._finished(total, max_scaled(fused) if self.options.fuses else None)
        return Scores(tags, maps, size, background=background)

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
        maps = finite_maps(self.maps, item.prior.scores(), item.tags.cpu(), size, within, item.id)  # (K, H, W)
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
