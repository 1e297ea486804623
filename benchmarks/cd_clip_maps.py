"""Maps of CD-CLIP before any training: how they are spread, by which CLIP, and which patches belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from cd_clip_scenes import Counts, Kept, Row, items_of
from torch import Tensor

from tag2mask.methods import make_method
from tag2mask.methods.cd_clip import SETTINGS
from tag2mask.methods.online.method import Online
from tag2mask.models.weclip import Seen
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.ops.class_distributions import ClassDistributions, class_shares, distribution_factor
from tag2mask.ops.divergences import distances
from tag2mask.ops.masks import pseudo_mask
from tag2mask.types import Dataset, Scores

MHSA = {"setting": 3, "tau": 1e9}
"""Attention alone: with a tau beyond all distances the class distributions rectify nothing."""

BEFORE: dict[str, dict[str, Any]] = {
    "#0 none": {"setting": 0},
    "attention alone (MHSA)": MHSA,
    "#1 CAA": {"setting": 1},
    "#3 CDA": {"setting": 3},
    "#4 CDA + CAA": {"setting": 4},
    "CDA, KL": {"setting": 3, "distance": "kl"},
    "CDA, Wasserstein on the index": {"setting": 3, "distance": "ws_index"},
    "CDA, cosine of the features": {"setting": 3, "distance": "cos"},
    "CDA, tau = the median": {"setting": 3, "tau": 1.0},
    "CDA, tau = a half of it": {"setting": 3, "tau": 0.5},
    "CDA, tau = a sixteenth of it": {"setting": 3, "tau": 1 / 16},
    "CDA, read literally": {"setting": 3, "combine": "matmul", "tau": 0.1, "tau_of": "one"},
    "CDA, classes alone": {"setting": 3, "compared": "classes"},
    "CDA, four super-classes": {"setting": 3, "superclasses": "four"},
    "CDA, seven (a guess)": {"setting": 3, "superclasses": "seven-guess"},
}
"""Maps that need no training: row -> options of cd-clip."""

KINDS: dict[str, dict[str, Any]] = {
    "none": {"setting": 0},
    "MHSA": MHSA,
    "CAA": {"setting": 1},
    "CDA": {"setting": 3},
}
"""Columns of the table of starting points."""

FLOOR = "floor: an untrained CLIP, #3"
FIRST_TAG = "floor: the first tag everywhere"


@dataclass(frozen=True)
class Start:
    """A row of that table. layers: of the attention; None: as by default. kept: of an initial map only what reaches
    this share of its maximum is left. clip: a folder's name for other weights.
    """

    name: str
    layers: int | None = None
    kept: float = 0.0
    clip: str = ""

    def options(self, kind: str) -> dict[str, Any]:
        """Of a column."""
        own = KINDS[kind]
        return {**own, "layers": self.layers} if self.layers and own["setting"] else own


STARTS = (
    Start("storybook-clip"),
    Start("its last layer alone", layers=1),
    Start("all its layers", layers=8),
    Start("what of its initial maps is above 0.8", kept=0.8),
    Start("what of its initial maps is above 0.8, last layer", layers=1, kept=0.8),
)


def make(clip: CLIP, data: Dataset, **options: Any) -> Online:
    """CD-CLIP with these options; boundaries stand on CLIP's own patches, for want of a DINO that knows scenes."""
    taught = SETTINGS[options.get("setting", 6)][1] and options.get("boundary_gate") != "never"
    own = {"structure": "clip"} if taught else {}
    method = make_method("cd-clip", data.classes, clip=clip, **own, **options)
    assert isinstance(method, Online)
    return method


def other_clip(folder: Path) -> tuple[CLIP, dict[str, Any]]:
    """Weights of an earlier state, and the options that they need: some know no words of super-classes."""
    clip = load_clip(folder, device="cpu", cache=None)
    known = not any(clip.unknown(word) for word in ("animal", "vehicle", "household item", "furniture", "person"))
    return clip, {"allow_unknown": True, **({} if known else {"compared": "classes"})}


def thinned(method: Online, share: float) -> Online:
    """The method with initial maps that are 0 below a share of their maximum."""
    whole: Callable[[Seen, int, Tensor], Tensor] = method.teacher.cams

    def cams(seen: Seen, image: int, texts: Tensor) -> Tensor:
        maps = whole(seen, image, texts)
        return torch.where(maps >= share, maps, 0.0)

    method.teacher.cams = cams  # type: ignore[method-assign]
    return method


@torch.no_grad()
def untrained_maps(method: Online, data: Dataset) -> Row:
    """mIoU of the masks of maps that no decoder has a part in."""
    counts = Counts.of(data)
    for item, truth in items_of(data):
        size = (item.image.shape[1], item.image.shape[2])
        seen = method.teacher.look(method.teacher.pixels(item.image[None]))
        maps = method.teacher.maps(seen, [item.tags], method.recipe.early)[0].refined
        mask, _ = pseudo_mask(Scores(item.tags, maps, size), item.image, method.mask_rule)
        counts.add(truth, mask)
    return {"maps": counts.miou}


def everything(data: Dataset) -> Row:
    """The floor: the first tag everywhere."""
    counts = Counts.of(data)
    for item, truth in items_of(data):
        counts.add(truth, torch.full_like(truth, int(item.tags[0])))
    return {"maps": counts.miou}


# --- which patches belong together ------------------------------------------------------------------------------


PAIRED = 12
"""Scenes whose pairs of patches are compared, 300,000 a scene."""


def auc(scores: Tensor, same: Tensor) -> float:
    """How often a pair of one class has the higher score than a pair of two: the area under the curve, in %."""
    order = scores.double().argsort()
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    hits = int(same.sum())
    rest = len(scores) - hits
    return float(100 * (ranks[same].sum() - hits * (hits + 1) / 2) / (hits * rest))


@torch.no_grad()
def joined(method: Online, data: Dataset) -> Row:
    """By what patches of one class are told from others: attention, distances of class distributions, or both."""
    found: dict[str, list[float]] = {}
    teacher, settings = method.teacher, method.recipe.early
    for item, truth in islice(items_of(data), PAIRED):
        seen = teacher.look(teacher.pixels(item.image[None]))
        cell = method.clip.patch
        cells = truth[cell // 2 :: cell, cell // 2 :: cell][: seen.grid[0], : seen.grid[1]].flatten()
        if len(cells.unique()) < 2:
            continue
        pairs = torch.ones(len(cells), len(cells), dtype=torch.bool).triu(1)
        same = (cells[:, None] == cells[None])[pairs]
        attention = seen.attentions[0, -settings.layers :].mean(0)
        attention = (attention + attention.T) / 2
        features = teacher.patch_features(seen)[0]
        shares = class_shares(features, teacher.texts.compared, ClassDistributions())
        scores = {
            "attention": attention,
            **{name: -distances(name, shares) for name in ("js", "kl_sym", "ws_index")},
            "cos": -distances("cos", features),
            "both": attention * distribution_factor(features, teacher.texts.compared, ClassDistributions()),
        }
        for name, matrix in scores.items():
            found.setdefault(name, []).append(auc(matrix[pairs], same))
        on_same = (attention * (cells[:, None] == cells[None])).sum() / attention.sum()
        found.setdefault("share", []).append(100 * float(on_same))
        chance = (cells[:, None] == cells[None]).float().mean()
        found.setdefault("chance", []).append(100 * float(chance))
    return {name: round(sum(values) / len(values), 1) for name, values in found.items()}


JOINED = {
    "attention": "attention",
    "js": "JS of class distributions",
    "kl_sym": "KL, both ways",
    "ws_index": "Wasserstein on the index",
    "cos": "cosine of the features",
    "both": "attention x exp(-JS / tau) (CDA)",
    "share": "share of the attention that stays in its class",
    "chance": "share of the pairs that are of one class",
}
"""Rows of that table."""


def measure_maps(kept: Kept, clip: CLIP, data: Dataset, others: dict[str, Path]) -> None:
    """All rows of maps."""
    from tag2mask.models.untrained import untrained

    kept("joined storybook-clip", lambda: joined(make(clip, data, setting=3), data))
    for name, folder in others.items():
        loaded, more = other_clip(folder)
        kept(f"joined {name}", lambda c=loaded, m=more: joined(make(c, data, setting=3, **m), data))
        for kind, own in KINDS.items():
            cleaned = {k: v for k, v in more.items() if k != "compared" or own.get("setting") == 3}
            kept(
                f"start {name} {kind}",
                lambda c=loaded, o={**own, **cleaned}: untrained_maps(make(c, data, **o), data),
            )
    for name, options in BEFORE.items():
        kept(f"maps {name}", lambda o=options: untrained_maps(make(clip, data, **o), data))
    random = untrained(clip, seed=0)
    kept(f"maps {FLOOR}", lambda: untrained_maps(make(random, data, setting=3), data))
    kept(f"maps {FIRST_TAG}", lambda: everything(data))
    for start in STARTS[1:]:
        for kind in KINDS:
            if kind != "none" or (start.kept and not start.layers):
                kept(
                    f"start {start.name} {kind}",
                    lambda s=start, k=kind: untrained_maps(thinned(make(clip, data, **s.options(k)), s.kept), data),
                )
