"""From images to masks by a trained network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tag2mask.methods.protocol import Method, Trainable
from tag2mask.ops.masks import ignore_untagged, keep_tagged, refine
from tag2mask.segment.test_time import PRESETS, Preset, TestTime, predict_labels
from tag2mask.stages.machinery.errors import describe
from tag2mask.stages.machinery.plan import Loaded
from tag2mask.stages.machinery.store import Outcome
from tag2mask.types import MaskRule, Sample

if TYPE_CHECKING:
    from tag2mask.segment.network import SegmentationNet


def tested_by(method: Method) -> Preset:
    """How the network that a method trains is tested."""
    return method.network_test if isinstance(method, Trainable) else PRESETS["plain"]


def rule_of(method: Method, masks_of: Literal["maps", "network"]) -> MaskRule:
    """The method's own mask rule, with the refiner that goes with its network where that makes the masks."""
    own = method.mask_rule
    return own if masks_of == "maps" else replace(own, refiner=tested_by(method).refiner)


class Predictor:
    """From images to masks by a network: the outcomes of the predict stage.

    Several threads may call it at once; the network sees one picture at a time, with all cores.

    Args:
        net: in eval mode, on ``device``.
        device: where it computes.
        test, refine_max_pixels, use_tags: as ``predict`` takes them.
        rule: its refiner, what that starts from, and what becomes of untagged classes under ``use_tags``.
        smaller: what the user can do where an image is too large for the memory.
    """

    steps = ("decode", "network", "write")

    def __init__(
        self,
        net: SegmentationNet,
        device: torch.device,
        test: TestTime,
        rule: MaskRule,
        refine_max_pixels: int | None,
        use_tags: bool,
        smaller: str = "give --tile 1024, --longest 2000 or fewer --scales",
    ):
        self.smaller = smaller
        self.net, self.device, self.test = net, device, test
        self.rule = rule
        self.refine_max_pixels, self.use_tags = refine_max_pixels, use_tags
        self._alone = Lock()

    def __call__(self, loaded: Loaded) -> Iterator[Outcome]:
        """What becomes of each image of a batch that is not finished."""
        for sample in loaded.batch.samples:
            if sample.id in loaded.batch.todo:
                yield self._outcome(sample, loaded)

    def _outcome(self, sample: Sample, loaded: Loaded) -> Outcome:
        seconds = {"decode": loaded.seconds.get(sample.id, 0.0)}
        if sample.id not in loaded.images and sample.id not in loaded.errors:
            return Outcome(sample.id, "skipped", seconds, error="no tags")  # not asked for, so it was not decoded
        if sample.id in loaded.errors:
            return Outcome(sample.id, "failed", seconds, error=loaded.errors[sample.id])
        start = perf_counter()
        try:
            image = loaded.images[sample.id].to(self.device)  # (3, H, W) uint8
            tags = sample.tags if self.use_tags else None
            labels, confidence = predict_labels(
                self._logits, image, self.test, refine=lambda picture, probs: self._refined(picture, probs, tags)
            )
            if tags and self.rule.others == "ignore":
                labels = ignore_untagged(labels, tags)
            mask, sure = labels.cpu().numpy(), confidence.cpu().numpy()  # (H, W) each
        except Exception as error:  # one bad image never stops a run
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            said = describe(error)
            if isinstance(error, torch.OutOfMemoryError):
                said = f"too large for the memory of {self.device}; {self.smaller}"
            return Outcome(sample.id, "failed", seconds, error=said)
        seconds["network"] = perf_counter() - start
        return Outcome(sample.id, "ok", seconds, mask, sure)

    def _logits(self, images: Tensor) -> Tensor:
        with self._alone:
            logits: Tensor = self.net(images)
        return logits

    def _refined(self, picture: Tensor, probs: Tensor, tags: tuple[int, ...] | None) -> Tensor:
        """Probabilities (K, h, w) after tags and refiner.

        Where untagged classes may win, the refiner has all of them, as in WeakCLIP's release; an image whose tags are
        known to be none is background.
        """
        if len(probs) != len(self.net.config.names):
            raise ValueError(
                f"the network gave {len(probs)} classes and is called one of {len(self.net.config.names)}"
            )
        if not torch.isfinite(probs).all():
            raise ValueError("the network gave logits that are not finite")
        if tags is not None and (not tags or self.rule.others == "never"):
            probs = keep_tagged(probs, tags)
        return probs if self.rule.refiner is None else refine(picture, probs, self.rule, self.refine_max_pixels)
