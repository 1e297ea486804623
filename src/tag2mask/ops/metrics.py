"""How good masks are: the confusion matrix and everything read from it, boundary IoU, and background sweeps.

Every figure is pooled over the data set: counts are added image by image and divided once, at the end. A mean
of per-image IoUs is another number, and not the field's mIoU.

Two values of a mask are no class. ``IGNORE`` in the ground truth is never scored. ``IGNORE`` in a prediction
(a pseudo mask's uncertain pixels) has a column of its own in the confusion matrix, so that both readings come
from the same counts: in ``Metrics.miou`` such a pixel counts as missed (it adds to the union of its true class,
and to no other class), in ``Metrics.miou_kept`` it is left out, as training on the mask leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from tag2mask.ops.masks import background_score
from tag2mask.types import BACKGROUND, IGNORE, Constant, Power


@dataclass(frozen=True)
class Metrics:
    """What a confusion matrix says; all are fractions, NaN where there was nothing to divide by.

    iou, precision, recall: (C,) float64, background first. A class that is predicted but nowhere in the
    ground truth has IoU 0 and no share in the means; one that is in neither has NaN.
    miou: mean IoU over the classes in the ground truth. fw_iou: the same weighted by their pixels.
    miou_kept: mean IoU over the pixels that the prediction does not ignore. ignored: the share of the others.
    """

    iou: Tensor
    precision: Tensor
    recall: Tensor
    miou: float
    miou_kept: float
    pixel_accuracy: float
    mean_accuracy: float
    fw_iou: float
    ignored: float


def confusion_matrix(truth: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count pixels by true class and predicted label; matrices of different images add up.

    Args:
        truth: (H, W) uint8, values below ``classes`` or IGNORE.
        labels: (H, W) uint8, likewise.
        classes: C, background included.

    Returns:
        (C, C + 1) int64: rows are true classes, columns predicted ones; the last column is IGNORE.

    Raises:
        ValueError: the shapes differ, or a value is neither a class nor IGNORE.
    """
    _check_pair(truth, labels, classes)
    # one pass over all 256 x 256 pairs of bytes; numpy, as threads cost more than they bring on one image
    pairs = truth.numpy().astype(np.uint16) * np.uint16(256) + labels.numpy()  # (H, W)
    counts = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
    return torch.from_numpy(counts[:classes][:, [*range(classes), IGNORE]].astype(np.int64))


def metrics(confusion: Tensor) -> Metrics:
    """Read every figure from a confusion matrix.

    Args:
        confusion: (C, C + 1) int64, from ``confusion_matrix``.
    """
    counts = confusion.double()
    kept = counts[:, :-1]  # (C, C + 1) -> (C, C)
    hit = kept.diagonal()
    true, found = counts.sum(1), kept.sum(0)
    present = true > 0
    iou = hit / (true + found - hit)
    recall = hit / true
    total = true.sum()
    return Metrics(
        iou=iou,
        precision=hit / found,
        recall=recall,
        miou=iou[present].mean().item(),
        miou_kept=_mean_iou(kept),
        pixel_accuracy=(hit.sum() / total).item(),
        mean_accuracy=recall[present].mean().item(),
        fw_iou=((true * iou)[present].sum() / total).item(),
        ignored=(counts[:, -1].sum() / total).item(),
    )


def _mean_iou(square: Tensor) -> float:
    hit, true, found = square.diagonal(), square.sum(1), square.sum(0)
    return (hit / (true + found - hit))[true > 0].mean().item()


def average_precision(scores: Tensor, present: Tensor) -> Tensor:
    """Average precision of ranking images by each class's score: the mean precision at the images that hold it.

    Args:
        scores: (n, C), higher is likelier. Equal scores keep the images' order.
        present: (n, C) bool.

    Returns:
        (C,) float64, NaN for a class that no image holds. Its mean over the others is the data set's mAP.

    Raises:
        ValueError: a score that is no number has no rank.
    """
    if bool(scores.isnan().any()):
        raise ValueError(f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN")
    order = scores.argsort(dim=0, descending=True, stable=True)
    hit = present.gather(0, order).double()  # (n, C), best first
    rank = torch.arange(1, len(hit) + 1, dtype=torch.float64, device=hit.device)[:, None]
    return (hit.cumsum(0) / rank * hit).sum(0) / hit.sum(0)


def chosen_right(chosen: Tensor, present: Tensor) -> tuple[float, float]:
    """Precision and recall of chosen classes, of all images together; NaN where there is nothing to divide by.

    Args:
        chosen, present: (n, C) bool.
    """
    hit = (chosen & present).sum().double()
    return (hit / chosen.sum()).item(), (hit / present.sum()).item()


def boundary_band(labels: Tensor, width: int) -> Tensor:
    """Pixels within ``width`` (chessboard distance) of another label or of the image's edge.

    For every label at once this is "mask minus its erosion by ``width``": a pixel survives the erosion of its
    own label exactly when its (2 width + 1)-square window lies in the image and holds no other label.

    Args:
        labels: (H, W) uint8.
        width: in pixels, at least 1.

    Returns:
        (H, W) bool.
    """
    values = labels.numpy()
    low = ndimage.minimum_filter(values, size=2 * width + 1, mode="nearest")
    high = ndimage.maximum_filter(values, size=2 * width + 1, mode="nearest")
    band = low != high  # (H, W)
    band[:width], band[-width:] = True, True
    band[:, :width], band[:, -width:] = True, True
    return torch.from_numpy(band)


def boundary_counts(truth: Tensor, labels: Tensor, classes: int, ratio: float = 0.02) -> Tensor:
    """Count what boundary IoU needs (Cheng et al., CVPR 2021); counts of different images add up.

    Pixels that are IGNORE in the ground truth are not counted, but an object ends where they begin.

    Args:
        truth: (H, W) uint8.
        labels: (H, W) uint8.
        classes: C, background included.
        ratio: width of the boundary as a share of the image's diagonal.

    Returns:
        (3, C) int64: pixels in both boundary bands, in the truth's, in the prediction's.

    Raises:
        ValueError: as ``confusion_matrix``.
    """
    _check_pair(truth, labels, classes)
    height, width = truth.shape
    reach = max(1, round(ratio * (height**2 + width**2) ** 0.5))
    true, found = truth.numpy(), labels.numpy()
    in_truth = boundary_band(truth, reach).numpy() & (true != IGNORE)
    in_labels = boundary_band(labels, reach).numpy() & (true != IGNORE) & (found != IGNORE)
    in_both = in_truth & in_labels & (true == found)
    counted = ((true, in_both), (true, in_truth), (found, in_labels))
    rows = [np.bincount(values[where], minlength=classes) for values, where in counted]
    return torch.from_numpy(np.stack(rows).astype(np.int64))  # (3, C)


def boundary_iou(counts: Tensor) -> tuple[Tensor, float]:
    """Boundary IoU per class, (C,) float64, and its mean over the classes in the ground truth.

    Args:
        counts: (3, C) int64, from ``boundary_counts``.
    """
    both, true, found = counts.double()
    iou = both / (true + found - both)  # (C,)
    return iou, iou[true > 0].mean().item()


class BackgroundSweep:
    """Confusion matrices of many background rules from one look at the score maps.

    The best class of a pixel does not depend on the background score; only whether it wins does. It wins when
    its score m exceeds b(m), with b(m) = (1 - m)^a or a constant, and as b never rises with m, each rule has
    one *crossing*: the smallest score that wins. One histogram over (true class, best class, number of
    crossings reached) therefore holds the confusion matrix of every rule. Crossings are exact to the last
    bit of the maps' own type, so the result equals labelling the image again for each rule. Ties go to the
    background, then to the lower class, as in the released code of CLIP-ES.
    """

    def __init__(self, rules: Sequence[Power | Constant], classes: int) -> None:
        self.rules = tuple(rules)
        self.classes = classes
        self._edges: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        # a rule's place among the sorted crossings depends on the maps' type, so each type keeps its counts
        self._counts: dict[torch.dtype, Tensor] = {}

    def update(self, truth: Tensor, maps: Tensor, tags: Tensor, others: Tensor | None = None) -> None:
        """Add one image.

        Args:
            truth: (H, W) uint8.
            maps: (K, H, W) float32 or float16, 0 or more, on the image's pixels; with ``others`` (K + 1, H, W), the
                last that of untagged classes.
            tags: (K,) int64, the mask value of each map.
            others: (H, W) uint8, the mask value of the last map, a class or IGNORE.

        Raises:
            ValueError: the shapes differ, or truth or ``others`` hold a value that is no class.
        """
        _check_values(truth, self.classes, "the ground truth")
        values: list[int | NDArray[np.intp]] = [*tags.tolist()]
        if others is not None:
            _check_values(others, self.classes, "the untagged classes")
            each = others.numpy().astype(np.intp)
            values.append(np.where(each == IGNORE, self.classes, each))  # (H, W)
        if maps.shape[1:] != truth.shape or len(maps) != len(values):
            raise ValueError(f"maps {tuple(maps.shape)} do not fit {len(tags)} tags and {tuple(truth.shape)}")
        if maps.dtype not in self._edges:
            self._edges[maps.dtype] = _sorted_crossings(self.rules, maps.dtype)
            size = self.classes * (self.classes + 1) * (len(self.rules) + 1)
            self._counts[maps.dtype] = torch.zeros(size, dtype=torch.int64)
        edges, _ = self._edges[maps.dtype]
        # numpy, as threads cost more than they bring on one image
        scored = truth.numpy() != IGNORE
        score = np.full(truth.shape, -np.inf, np.float32)  # (H, W)
        label = np.zeros(truth.shape, np.intp)
        for value, each in zip(values, maps.float().numpy(), strict=True):
            better = each > score  # the first of equals stays
            np.maximum(score, each, out=score)
            np.copyto(label, value, where=better)
        level = np.searchsorted(edges.numpy(), score[scored], side="right")  # (n,) in 0..R: crossings reached
        code = (truth.numpy()[scored] * np.intp(self.classes + 1) + label[scored]) * (len(self.rules) + 1) + level
        counts = self._counts[maps.dtype]
        counts += torch.from_numpy(np.bincount(code, minlength=len(counts)))

    def confusion(self) -> Tensor:
        """(R, C, C + 1) int64, one confusion matrix a rule, in the order of ``rules``."""
        classes, rules = self.classes, len(self.rules)
        total = torch.zeros(rules, classes, classes + 1, dtype=torch.int64)
        for dtype, flat in self._counts.items():
            counts = flat.view(classes, classes + 1, rules + 1)
            won = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # (C, C + 1, R): the r-th crossing was reached
            lost = counts.sum(-1, keepdim=True) - won
            _, order = self._edges[dtype]
            total[order] += won.permute(2, 0, 1)  # (C, C + 1, R) -> (R, C, C + 1)
            total[order, :, BACKGROUND] += lost.sum(1).T  # (C, R) -> (R, C)
        return total


def crossing(rule: Power | Constant, dtype: torch.dtype = torch.float32) -> float:
    """The smallest score from 0 that beats the background score it causes; it may lie above 1.

    Found among the numbers of ``dtype`` with ``ops.masks.background_score`` itself, so rounding is included.
    """
    integer = {torch.float32: torch.int32, torch.float16: torch.int16}[dtype]
    # the bit patterns of non-negative floats are in the order of their values
    top = int(torch.tensor([torch.inf], dtype=dtype).view(integer))
    low, high = -1, top  # low loses, high wins: infinity beats every rule
    while high - low > 1:
        step = max(1, (high - low) // 4096)
        bits = torch.arange(low + 1, high, step, dtype=integer)
        scores = bits.view(dtype)
        wins = scores > background_score(scores.view(1, 1, -1), rule).view(-1)
        first = int(wins.int().argmax()) if bool(wins.any()) else len(bits)
        if first < len(bits):
            high = int(bits[first])
        if first > 0:
            low = int(bits[first - 1])
    return float(torch.tensor([high], dtype=integer).view(dtype))


def _sorted_crossings(rules: Sequence[Power | Constant], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ascending crossings (R,) float32, and (R,) int64: which rule each belongs to."""
    edges = torch.tensor([crossing(rule, dtype) for rule in rules], dtype=torch.float32)
    return torch.sort(edges, stable=True)


def _check_pair(truth: Tensor, labels: Tensor, classes: int) -> None:
    if truth.shape != labels.shape:
        raise ValueError(f"the mask is {tuple(labels.shape)}, the ground truth {tuple(truth.shape)}")
    _check_values(truth, classes, "the ground truth")
    _check_values(labels, classes, "the mask")


def _check_values(mask: Tensor, classes: int, what: str) -> None:
    values = mask.numpy()
    wrong = np.unique(values[(values >= classes) & (values != IGNORE)])
    if len(wrong):
        shown = ", ".join(str(value) for value in wrong[:5])
        raise ValueError(
            f"{what} holds the value {shown}, but the classes are 0..{classes - 1} (and {IGNORE} = ignored)"
        )
