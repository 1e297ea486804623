"""How good the maps are that a run has stored, as several benchmarks show it."""

from __future__ import annotations

import torch

from tag2mask.data.pixels import read_pixels
from tag2mask.lab.bench import RULES
from tag2mask.ops.masks import pseudo_mask, upsample
from tag2mask.ops.metrics import BackgroundSweep, confusion_matrix, metrics
from tag2mask.run.folder import Run
from tag2mask.types import Dataset, MaskRule


def measure(run: Run, data: Dataset, rule: MaskRule, *, sweep: bool = True) -> tuple[float, float, str]:
    """mIoU (%) of the masks that ``rule`` makes, and of the maps under the best background rule, with its name.

    sweep: False leaves the latter out, as NaN and "". The best rule is chosen with ground truth.
    """
    count = len(data.classes)
    total = torch.zeros(count, count + 1, dtype=torch.int64)
    swept = BackgroundSweep(RULES, count)
    for sample in data:
        if not sample.tags or sample.truth is None:
            continue
        truth, scores = torch.from_numpy(sample.truth()), run.scores(sample.id)
        total += confusion_matrix(truth, pseudo_mask(scores, read_pixels(sample.image), rule)[0], count)
        if sweep:
            swept.update(truth, upsample(scores.maps, scores.size, scores.frame).clamp(0, 1), scores.tags)
    own = 100 * metrics(total).miou
    if not sweep:
        return own, float("nan"), ""
    found = [metrics(each).miou for each in swept.confusion()]
    best = max(range(len(found)), key=lambda i: found[i])
    return own, 100 * found[best], str(RULES[best])
