"""Short trainings of CD-CLIP and WeCLIP: their maps and networks, everywhere and near contacts of objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cd_clip_maps import make
from cd_clip_scenes import Counts, Kept, Row, fit_row, items_of, slug
from torch import Tensor

from tag2mask.methods import make_method
from tag2mask.methods.online.method import Online
from tag2mask.models.weights import CLIP
from tag2mask.ops.masks import pseudo_mask
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.folder import Run
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.stages.machinery.fit import fit
from tag2mask.types import Dataset

SETTINGS = ("#0 none", "#1 CAA", "#2 RFM", "#3 CDA", "#4 CDA + CAA", "#5 CDA + RFM", "#6 CDA + boundaries")
WECLIP = "WeCLIP, RFM from half of the steps on"

GATES = {
    "never": "#3 CDA",
    "one super-class": "gate: one",
    "two and more (#6)": "#6 CDA + boundaries",
    "all": "gate: all",
}
"""The paper's Table 4: row -> fit."""

LAMBDAS = {0.0: "#3 CDA", 0.2: "lambda 0.2", 0.4: "lambda 0.4", 0.6: "#6 CDA + boundaries", 0.8: "lambda 0.8",
           1.0: "lambda 1.0"}  # fmt: skip
SETS = {"five (#6)": "#6 CDA + boundaries", "four": "super-classes: four", "seven (a guess)": "super-classes: seven"}

FITS: dict[str, dict[str, Any]] = {
    **{name: {"setting": row} for row, name in enumerate(SETTINGS)},
    WECLIP: {},
    "gate: one": {"setting": 6, "boundary_gate": "one"},
    "gate: all": {"setting": 6, "boundary_gate": "all"},
    **{name: {"setting": 6, "boundary_weight": weight} for weight, name in LAMBDAS.items() if "lambda" in name},
    "super-classes: four": {"setting": 6, "superclasses": "four"},
    "super-classes: seven": {"setting": 6, "superclasses": "seven-guess"},
}
"""What is fitted, in this order: name -> options of cd-clip, of WeCLIP where there are none."""


def method_of(name: str, clip: CLIP, data: Dataset, **how: Any) -> Online:
    """The method of a row, not fitted."""
    if name == WECLIP:
        found = make_method("weclip", data.classes, clip=clip, **how)
        assert isinstance(found, Online)
        return found
    return make(clip, data, **FITS[name], **how)


def taken_up(name: str, clip: CLIP, data: Dataset, folder: Path, **how: Any) -> Online:
    """The method of a row with what its fit left in ``folder``."""
    method = method_of(name, clip, data, **how)
    method.load(Run.open(folder / slug(name)).checkpoints)
    return method


def fitted(name: str, clip: CLIP, data: Dataset, touching: Sequence[Dataset], folder: Path, **how: Any) -> Row:
    """mIoU of the maps after a training, and of the network's own masks at one scale, without CRF."""
    method = method_of(name, clip, data, **how)
    began = time.perf_counter()
    with Run.create(folder / slug(name), {"method": method.name, "options": method.options}) as run:
        begun = steps_done(run.checkpoints)  # of a fit that was stopped
        fit(method, data, run)
    seconds = time.perf_counter() - began
    net = method.net
    assert net is not None
    maps, network, own = Counts.of(data), Counts.of(data), Counts.of(data)
    near_maps, near_network = Counts.of(data), Counts.of(data)
    for part in (data, *touching):
        for i, (item, truth) in enumerate(items_of(part)):
            mask = _mask(method, item, folder / "masks" / f"{_affinity(method)}-{part.root.name}-{i}.npy")
            labels, _ = predict_labels(net, item.image, TestTime())
            if part is data:
                maps.add(truth, mask)
                network.add(truth, labels)
                own.add(mask, labels)
            else:
                near_maps.add(truth, mask)
                near_network.add(truth, labels)
    images = (method.recipe.steps - begun) * method.recipe.batch
    return {
        "maps": maps.miou,
        "network": network.miou,
        "against": own.miou,
        "images/s": round(images / seconds, 2),
        "maps, two": near_maps.boundary(same=False),
        "maps, one": near_maps.boundary(same=True),
        "network, two": near_network.boundary(same=False),
        "network, one": near_network.boundary(same=True),
        "network there": near_network.miou,
    }


def _affinity(method: Online) -> str:
    """A name for maps that no decoder has a part in; others are not kept."""
    late = method.recipe.late
    if late.decoder:
        return ""
    return f"{method.name}-{getattr(method.options, 'setting', '')}-{getattr(method.options, 'superclasses', '')}"


def _mask(method: Online, item: Any, path: Path) -> Tensor:
    """The mask of an item's maps, made once where the decoder has no part in it."""
    keep = not path.name.startswith("-")
    if keep and path.exists():
        return torch.from_numpy(np.load(path))
    mask, _ = pseudo_mask(method.scores([item])[0], item.image, method.mask_rule)
    if keep:
        path.parent.mkdir(exist_ok=True)
        np.save(path, mask.numpy())
    return mask


def measure_fits(
    kept: Kept, clip: CLIP, data: Dataset, touching: Sequence[Dataset], names: Sequence[str], **how: Any
) -> None:
    """All rows of fits."""
    folder = kept.folder / f"fits-{how['steps']}"
    for name in names:
        kept(fit_row(name, how["steps"]), partial(fitted, name, clip, data, touching, folder, **how))
