"""A cosine threshold for any CLIP, from image tags alone.

CLIMS suppresses a background text where its cosine with the masked picture is above 0.26 (0.285 on COCO). That number
belongs to OpenAI's ViT-B/32: another CLIP spreads its cosines elsewhere, and the threshold would count everything or
nothing. Tags say for each image which class texts describe it and which do not, so they show where this CLIP draws
the line. Background texts are said in the same sentence, so the line found on classes is used for them.

The threshold is the cosine that few class texts exceed on images without that class. It is a statement about false
alarms, like CLIMS's "the water is seen only if CLIP is sure", and no mask or pixel is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tag2mask.types import UserError


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it does on the tags that it was taken from.

    threshold: a cosine. false_alarms: share of (image, absent class) pairs above it, a mean over classes.
    hits: share of (image, present class) pairs above it, a mean over classes.
    separation: probability that a present class has a higher cosine than an absent one (of any image); 0.5 is chance.
    """

    threshold: float
    false_alarms: float
    hits: float
    separation: float


def calibrate_threshold(similarity: Tensor, present: Tensor, *, false_alarms: float = 0.05) -> Calibration:
    """The cosine above which a text is believed.

    Every class counts the same, however many images have it.

    Args:
        similarity: (N, C) cosines of whole images with the class texts, in the sentence that background texts use.
        present: (N, C) bool, the tags. Leave images of unknown tags out.
        false_alarms: share of wrong texts that may pass, in (0, 1).

    Raises:
        UserError: where no class is present in some and absent in other images, or where absent classes pass as
            often as present ones: this CLIP does not know these classes by these words.
    """
    if similarity.shape != present.shape or similarity.ndim != 2:
        raise ValueError(
            f"got cosines {tuple(similarity.shape)} and tags {tuple(present.shape)}, expected (N, C) twice"
        )
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms: got {false_alarms}, expected a share between 0 and 1")
    count = present.sum(0)
    usable = (count > 0) & (count < len(present))  # (C,)
    if not usable.any():
        raise UserError(
            f"no threshold can be taken from {len(present)} images: no class is in some of them and not in others; "
            "give more images with tags, or the threshold itself"
        )
    cosine, here = similarity[:, usable].double(), present[:, usable]  # (N, U)
    right = here.double() / here.sum(0)  # every class weighs 1
    wrong = (~here).double() / (~here).sum(0)
    order = cosine.flatten().argsort(descending=True, stable=True)
    ranked = cosine.flatten()[order]
    classes = here.shape[1]
    alarms = wrong.flatten()[order].cumsum(0) / classes  # share of wrong texts among the first 1, 2, ...
    hits = right.flatten()[order].cumsum(0) / classes
    # The last rank at which few enough wrong texts have been seen, ties included: ">" passes none of the next cosine.
    last_of_tie = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool, device=ranked.device)])
    good = (last_of_tie & (alarms <= false_alarms)).nonzero()[:, 0]
    passed = int(good[-1]) + 1 if len(good) else 0
    threshold = ranked[min(passed, len(ranked) - 1)]
    result = Calibration(
        threshold=float(threshold),
        false_alarms=float(alarms[passed - 1]) if passed else 0.0,
        hits=float(hits[passed - 1]) if passed else 0.0,
        separation=_separation(ranked, right.flatten()[order], wrong.flatten()[order], classes),
    )
    if result.separation <= 0.5:
        raise UserError(
            f"this CLIP tells present from absent classes with probability {result.separation:.2f}, no better than "
            "chance; use other words for the classes or another CLIP"
        )
    return result


def _separation(ranked: Tensor, right: Tensor, wrong: Tensor, classes: int) -> float:
    """Area under the curve of hits over false alarms; ties count half."""
    _, tie = ranked.unique_consecutive(return_inverse=True)
    sums = torch.zeros(2, int(tie[-1]) + 1, dtype=torch.float64, device=ranked.device)
    sums[0].index_add_(0, tie, right)
    sums[1].index_add_(0, tie, wrong)
    hit, alarm = sums / classes
    return float((alarm * (hit.cumsum(0) - hit / 2)).sum())
