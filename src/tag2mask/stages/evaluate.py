"""Masks and score maps against the ground truth: one pass over the run, one ``metrics.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tag2mask.data.columns import Columns
from tag2mask.data.image import BadImage
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.data.truth import MaskFolders, read_truth
from tag2mask.data.truth_turn import settle_turn
from tag2mask.run.about import check_classes, rule_of
from tag2mask.run.ahead import ahead
from tag2mask.run.corrected import Counting, counting
from tag2mask.run.current import Current
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.segment.counting_masks import BadCorrection, read_counting
from tag2mask.stages.confidence import ConfidenceTally
from tag2mask.stages.evaluation import Evaluation
from tag2mask.stages.tally import Tally
from tag2mask.types import IGNORE, Dataset, Scores, UserError

MOST_WRONG = 100
"""So many images of another size are enough to stop."""


def evaluate(
    run: Run | Path | str,
    data: Dataset,
    *,
    thresholds: bool = True,
    boundary: bool = True,
    confidence: bool = False,
    check_truth: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Score a run's masks, and its score maps for every background rule, against ``data``'s ground truth.

    A mask that a person corrected (``run.corrected``) is scored in the place of the made one. Writes
    ``metrics.json`` into the run folder.

    Args:
        run: the run, or its folder.
        data: the images' ground truth; samples without any are counted and left out.
        thresholds: also sweep powers and constants over the stored maps, before and after refinement.
        boundary: also compute boundary IoU.
        confidence: also count pixels by confidence, and score those that mu would keep (``stages.confidence``).
        check_truth: refuse truth that does not fit the tags (``data.agreement``); else that is a note. Truth whose
            values were chosen (``read_dataset(truth_values=...)``) is never refused for that.
        progress: show it on stderr.

    Raises:
        UserError: no ground truth or none but ignored pixels, no mask, other classes than the run's, masks of another
            size, truth that numbers the classes otherwise, or a damaged run.yaml.
    """
    run = counting(run if isinstance(run, Run) else Run.open(run))
    check_classes(run, data)
    thresholds = thresholds and bool(run.settings.get("keep_scores", True))
    data, notes = settle_truth(run, data)
    tally = Tally(data, boundary, rule_of(run) if thresholds else None, check_truth)
    tally.notes += notes
    tally.sure = ConfidenceTally(len(data.classes)) if confidence else None
    result = replace(
        _score(run, data, tally, progress),
        supervision=supervision_of(run),
        use_tags=bool(run.settings.get("use_tags")),
    )
    text = json.dumps(result.as_dict(), indent=2, allow_nan=False)
    write_atomic(run.path / "metrics.json", text.encode())
    return result


def supervision_of(run: Run) -> str | None:
    """What people gave to the masks, corrections of the run's own masks included."""
    made, by_hand = run.settings.get("supervision"), len(counting(run).corrected)
    return f"{made or 'tags'}+pixels({by_hand})" if by_hand else made


def settle_truth(run: Run, data: Dataset) -> tuple[Dataset, list[str]]:
    """The data with its truth upright also where a mask's size does not tell, and what a user should know of that.

    Raises:
        UserError: nothing tells (``data.truth_turn.settle_turn``).
    """
    if not isinstance(data, Columns):
        return data, []
    naming = data.truth.naming() if isinstance(data.truth, MaskFolders) else []

    def mask(id: str) -> NDArray[np.uint8] | None:
        try:
            return read_mask(run.mask_path(id))
        except BadImage:
            return None

    settled = settle_turn(data, mask)
    return replace(data, truth_turn=settled.turn), [*naming, *settled.notes]


class _Loaded(NamedTuple):
    """One image with truth and mask."""

    id: str
    tags: tuple[int, ...] | None
    truth: Tensor
    mask: Tensor
    maps: Scores | None
    confidence: NDArray[np.float32] | None
    by: str
    turned: bool


def _score(run: Counting, data: Dataset, tally: Tally, progress: bool) -> Evaluation:
    """Pass over ``data`` once: read in one thread, count in this one."""
    wrong: list[str] = []
    current = Current(run)
    for id, tags, truth, mask, maps, confidence, by, turned in ahead(_load(run, data, tally, current, progress)):
        sizes = {"mask": mask.shape} if maps is None else {"mask": mask.shape, "scores": maps.size}
        odd = [f"{what} {_size(shape)}" for what, shape in sizes.items() if tuple(shape) != tuple(truth.shape)]
        if odd:
            wrong.append(f"{id}: {', '.join(odd)}, ground truth {_size(truth.shape)}")
            if len(wrong) == MOST_WRONG:
                break
            continue
        tally.turned += turned
        tally.read_by.update([by] if by else [])
        if not tally.agreement.add(id, truth.numpy(), tags):
            continue
        try:
            tally.add(id, truth, mask, maps)
            if tally.sure is not None and confidence is not None:
                tally.sure.add(truth, mask, confidence)
        except ValueError as error:
            raise UserError(f"{id}: {error}; are mask, ground truth and class set of the same data?") from error
    if wrong:
        more = " or more" if len(wrong) == MOST_WRONG else ""
        raise UserError(
            f"sizes differ (width x height) for {len(wrong)}{more} images, so these cannot be compared: "
            f"{'; '.join(wrong[:5])}. Are {run.path} and the ground truth of the same images? Scale these true "
            "masks to their images (nearest neighbour), or remove them: images without truth are counted, not "
            "scored"
        )
    if tally.images and not tally.confusion.any():
        raise UserError(
            f"no pixel of the ground truth is scored: all {tally.images} true masks of {data.root} hold nothing "
            f"but {IGNORE}, which is left out; are these the masks with the classes?"
        )
    tally.stale += [f"NOT COUNTED: {line}" for line in current.stale.lines(("picture",))]
    # data without any tags says nothing of them
    though_older = ("tags", "earlier", *(("untagged",) if current.stale.counts["untagged"] < tally.images else ()))
    tally.stale += [f"counted, though their masks are older: {line}" for line in current.stale.lines(though_older)]
    tally.refuse_other_numbers()
    if not tally.images:
        if tally.missing_count:
            raise UserError(
                f"{run.path} has no mask for any of the {tally.missing_count} images with ground truth "
                f"(first: {tally.missing[0]}); label them first"
            )
        if current.stale.counts:
            raise UserError(f"nothing can be scored: {current.note()}")
        raise UserError(
            f"{data.root} has no ground truth for any of its {len(data)} images, so nothing can be scored; "
            "name the folder of true masks by --truth. A report without scores is still possible: tag2mask report"
        )
    return tally.result()


def _load(run: Counting, data: Dataset, tally: Tally, current: Current, progress: bool) -> Iterator[_Loaded]:
    for sample in show_progress(data, "evaluate", enabled=progress):
        if sample.truth is None:
            tally.without_truth += 1
            continue
        reason = current.why_none(sample)
        if reason == "absent":
            tally.missing_count += 1
            if len(tally.missing) < 10:
                tally.missing.append(sample.id)
        if reason in ("absent", "picture"):  # the truth is of what is there now
            continue
        try:
            mask, true = torch.from_numpy(read_counting(run, sample.id)), read_truth(sample)
            made = run.corrected.path(sample.id) is None  # how sure a person is is not known
            sure = read_confidence(run.confidence_path(sample.id)) if tally.sure is not None and made else None
        except BadCorrection as error:
            raise UserError(f"{sample.id} cannot be scored: {error}") from error
        except (BadImage, OSError) as error:
            # leaving it out would change the figures in silence
            raise UserError(f"{sample.id} cannot be scored: {error}; fix or remove that file") from error
        maps = None if tally.rule is None else _stored(run, sample.id)
        tally.without_maps += tally.rule is not None and maps is None and not made
        yield _Loaded(sample.id, sample.tags, torch.from_numpy(true.mask), mask, maps, sure, true.by, true.turned)


def _stored(run: Run, id: str) -> Scores | None:
    """The stored maps, or None where the run kept none."""
    return run.scores(id) if run.scores_path(id).exists() else None


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
