"""From images with tags to masks by a method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from threading import Lock
from time import perf_counter

import torch

from tag2mask.data.png import read_mask
from tag2mask.methods.protocol import Method
from tag2mask.ops.masks import pseudo_mask
from tag2mask.run.current import STALE, Current
from tag2mask.run.folder import Run
from tag2mask.segment.losses import check_labels
from tag2mask.stages.machinery.errors import describe
from tag2mask.stages.machinery.plan import Loaded
from tag2mask.stages.machinery.store import Outcome
from tag2mask.types import Item, MaskRule, Prior, Sample, Scores


class Labeller:
    """From images with tags to masks by a method: the outcomes of the label stage.

    Several threads may call it at once; the method sees one batch at a time, unless it says ``side_by_side``.
    """

    steps = ("decode", "method", "masks", "write")

    def __init__(
        self,
        method: Method,
        rule: MaskRule,
        prior: Run | None = None,
        *,
        refine_max_pixels: int | None = None,
        keep_scores: bool = True,
    ):
        self.method, self.rule, self.prior = method, rule, prior
        self._current = None if prior is None else Current(prior)
        self.refine_max_pixels, self.keep_scores = refine_max_pixels, keep_scores
        self._alone = nullcontext() if method.side_by_side else Lock()

    @property
    def device(self) -> torch.device:
        """The method's."""
        return self.method.device

    def __call__(self, loaded: Loaded) -> Iterator[Outcome]:
        """What becomes of each image of a batch that is not finished."""
        items: list[Item] = []
        for sample in loaded.batch.samples:
            todo = sample.id in loaded.batch.todo
            error = loaded.errors.get(sample.id) or self._missing_prior(sample)
            seconds = {"decode": loaded.seconds.get(sample.id, 0.0)}
            if sample.tags is None:
                if todo:
                    yield Outcome(sample.id, "skipped", seconds, error="no tags")
            elif error is not None:
                if todo:
                    yield Outcome(sample.id, "failed", seconds, error=error)
            elif sample.id in loaded.images:
                items.append(self._item(sample, loaded.images[sample.id]))
        found = self._scores(items, loaded.batch.todo)
        for item in items:
            if item.id in loaded.batch.todo:
                scores, method_seconds = found[item.id]
                seconds = {"decode": loaded.seconds[item.id], "method": method_seconds}
                yield self._mask(item, scores, seconds)

    def _item(self, sample: Sample, image: torch.Tensor) -> Item:
        prior = self.prior
        seen = None
        if prior is not None:
            seen = Prior(
                scores=lambda: prior.scores(sample.id),
                labels=lambda: self._labels(prior, sample.id),
            )
        return Item(sample.id, image, torch.tensor(sample.tags, dtype=torch.int64), seen)

    def _labels(self, prior: Run, id: str) -> torch.Tensor:
        mask = torch.from_numpy(read_mask(prior.mask_path(id)))
        check_labels(mask, len(prior.settings["classes"]["names"]), str(prior.mask_path(id)))
        return mask

    def _missing_prior(self, sample: Sample) -> str | None:
        if self._current is None or not sample.tags:
            return None
        reason = self._current.why_none(sample)
        if reason == "absent":
            return f"the earlier run has no mask of it: {self._current.run.mask_path(sample.id)}"
        if reason is not None:
            where = self._current.run.path
            return (
                f"it is one of the images {STALE[reason]} since {where} labelled them; label them there again first"
            )
        return None

    def _scores(self, items: list[Item], todo: frozenset[str]) -> dict[str, tuple[Scores | str, float]]:
        """id -> (scores or the reason why there are none, seconds)."""
        if all(item.tags is not None and item.tags.numel() == 0 for item in items):
            return {item.id: (_nothing(item), 0.0) for item in items}
        start = perf_counter()
        try:
            with self._alone:
                found: list[Scores | str] = [*self.method.scores(items)]
            if len(found) != len(items):
                raise ValueError(f"the method gave {len(found)} scores for {len(items)} images")
        except Exception as error:  # one bad image never stops a run
            found = [describe(error)]
        seconds = (perf_counter() - start) / len(items)
        if len(found) == len(items):
            return {item.id: (each, seconds) for item, each in zip(items, found, strict=True)}
        # Something in the batch is too much for it, or for the memory: find out who, one by one.
        if self.method.device.type == "cuda":
            torch.cuda.empty_cache()
        alone: dict[str, tuple[Scores | str, float]] = {}
        for item in items:
            if item.id in todo:
                alone.update(self._scores([item], todo))
        return alone

    def _mask(self, item: Item, scores: Scores | str, seconds: dict[str, float]) -> Outcome:
        start = perf_counter()
        try:
            if isinstance(scores, str):
                return Outcome(item.id, "failed", seconds, error=scores)
            check_scores(scores, item, self.rule)
            mask, confidence = pseudo_mask(scores, item.image, self.rule, refine_max_pixels=self.refine_max_pixels)
            seconds["masks"] = perf_counter() - start
            kept = scores if self.keep_scores else None
            return Outcome(item.id, "ok", seconds, mask.cpu().numpy(), confidence.cpu().numpy(), kept)
        except Exception as error:  # one bad image never stops a run
            return Outcome(item.id, "failed", seconds, error=describe(error))


def check_scores(scores: Scores, item: Item, rule: MaskRule) -> None:
    """Refuse what would give a wrong mask without a word.

    Raises:
        ValueError: tags or size are not the item's, shapes do not fit, a value is not finite, or untagged classes
            are missing that the rule asks for.
    """
    if item.tags is None or not torch.equal(scores.tags.cpu(), item.tags):
        raise ValueError(f"the method gave scores for tags {scores.tags.tolist()}, asked for {item.tags}")
    if tuple(scores.size) != tuple(item.image.shape[1:]):
        raise ValueError(
            f"the method gave scores of size {scores.size} for an image of {tuple(item.image.shape[1:])}"
        )
    if scores.maps.ndim != 3 or len(scores.maps) != len(scores.tags):
        raise ValueError(f"the method gave maps of shape {tuple(scores.maps.shape)} for {len(scores.tags)} tags")
    others = scores.others
    maps = (scores.maps, scores.background, None if others is None else others.score)
    if not all(torch.isfinite(each).all() for each in maps if each is not None):
        raise ValueError("the method gave maps that are not finite")
    if others is None:
        if rule.others != "never" and scores.tags.numel():
            raise ValueError(f"the method gave no score of untagged classes, which others={rule.others!r} asks for")
    elif not others.score.shape == others.values.shape == scores.maps.shape[1:]:
        raise ValueError(
            f"the method gave untagged scores {tuple(others.score.shape)} and values {tuple(others.values.shape)} "
            f"for maps of shape {tuple(scores.maps.shape)}"
        )


def _nothing(item: Item) -> Scores:
    """The scores of an image with no tags at all: no maps, so all of it is background."""
    size = (item.image.shape[1], item.image.shape[2])
    return Scores(tags=torch.zeros(0, dtype=torch.int64), maps=torch.zeros(0, 1, 1), size=size)
