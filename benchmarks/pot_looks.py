"""Where POT loses what it loses, with exact masks used for looking only; and how six scenes look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.data.image import read_image
from tag2mask.lab.bench import RULES
from tag2mask.methods.pot import POT
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.masks import upsample
from tag2mask.ops.metrics import BackgroundSweep, metrics
from tag2mask.ops.pot import Activation, Prototypes, activate, max_scaled
from tag2mask.ops.pot_batch import classifier_maps
from tag2mask.types import Sample

if TYPE_CHECKING:
    from pot import Bench, Row


class Looked:
    """One scene as the network sees it at scale 1, on its grid. All maps are of the image's own K tags.

    image: (3, H, W) uint8. truth: (H, W). features: (1, D, h, w). seeds, own, exact: (1, K, h, w), the earlier maps
    over their maximum, the classifier's, and 1 where at least half of a cell is of the class.
    """

    def __init__(self, method: POT, sample: Sample, earlier: Any) -> None:
        assert sample.truth is not None
        self.tags = torch.tensor(sample.tags)
        self.image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1).contiguous()
        self.truth = torch.from_numpy(sample.truth())
        pixels = standardise(self.image[None], MEAN, STD)
        with torch.inference_mode():
            logits, self.features = method.net(pixels)
        labels = torch.zeros(1, logits.shape[1], dtype=torch.bool)
        labels[0, self.tags - 1] = True
        cells = (logits.shape[2], logits.shape[3])
        self.own = classifier_maps(logits, labels, absent=False)[:, self.tags]
        maps = upsample(earlier.maps, earlier.size, earlier.frame)  # (K, H, W)
        self.seeds = max_scaled(F.interpolate(maps[None], cells, mode="bilinear", align_corners=False))
        kinds = torch.stack([(self.truth == tag).float() for tag in self.tags])  # (K, H, W)
        self.exact = (F.adaptive_avg_pool2d(kinds[None], cells) >= 0.5).float()

    def activated(self, settings: Prototypes, seeds: Tensor | None = None) -> Activation:
        """POT's maps, from these seeds or the scene's."""
        chosen = self.seeds if seeds is None else seeds
        with torch.inference_mode():
            return activate(self.features, chosen, self.own, [torch.Generator().manual_seed(0)], settings)


def looks(bench: Bench, row: Row, *, fitted: bool) -> list[Looked]:
    """All scenes, by the network before or after its fit."""
    from pot import CLIP_ES, slug

    from tag2mask.run.folder import Run

    method: Any = bench.method(row)
    earlier = Run.open(bench.kept / slug(CLIP_ES))
    if fitted:
        method.load(Run.open(bench.kept / slug(row.name)).checkpoints, earlier)
    return [Looked(method, sample, earlier.scores(sample.id)) for sample in bench.data if sample.tags]


def oracle(bench: Bench, row: Row) -> dict[str, Any]:
    """The table: each stage's purity, and what the maps would be if a stage were perfect."""
    before, after = (_stages(bench, looks(bench, row, fitted=fitted)) for fitted in (False, True))
    return {"rows": {name: [before[name], after[name]] for name in before}}


def _stages(bench: Bench, scenes: list[Looked]) -> dict[str, float]:
    paper = Prototypes()
    found = [scene.activated(paper) for scene in scenes]
    exact = replace(paper, threshold=0.5, population="confident")

    def share(chosen: Callable[[Looked], Tensor], of: Callable[[Looked], Tensor]) -> float:
        """Of chosen cells, how many are in others, in %."""
        hit = sum(float((chosen(scene) * of(scene)).sum()) for scene in scenes)
        return 100 * hit / max(sum(float(chosen(scene).sum()) for scene in scenes), 1.0)

    def likely(scene: Looked) -> Tensor:
        half = paper.threshold / 2
        return ((scene.seeds > half) | (scene.own > half)).float()

    def sure(scene: Looked) -> Tensor:
        return (scene.seeds > paper.threshold).float()

    inside, outside = _activations(scenes, found)
    return {
        "sure pixels (seeds above tau): purity, %": share(sure, lambda scene: scene.exact),
        "sure pixels: share of the class that they are, %": share(lambda scene: scene.exact, sure),
        "pixels that renew prototypes (likely): purity, %": share(likely, lambda scene: scene.exact),
        "pixels that renew prototypes, if all do: purity, %": share(
            lambda scene: torch.ones_like(scene.exact), lambda scene: scene.exact
        ),
        "activation of pixels of the class, mean": inside,
        "activation of other pixels, mean": outside,
        "seeds (CLIP-ES) on this grid: mIoU": _miou(bench, scenes, [scene.seeds[0] for scene in scenes]),
        "the classifier's maps: mIoU": _miou(bench, scenes, [scene.own[0] for scene in scenes]),
        "POT, K = 1: mIoU": _miou(bench, scenes, [s.activated(replace(paper, clusters=1)).maps[0] for s in scenes]),
        "POT, paper: mIoU": _miou(bench, scenes, [each.maps[0] for each in found]),
        "POT, only sure pixels renew prototypes: mIoU": _miou(
            bench, scenes, [s.activated(replace(paper, population="confident")).maps[0] for s in scenes]
        ),
        "POT, all pixels renew prototypes: mIoU": _miou(
            bench, scenes, [s.activated(replace(paper, population="all")).maps[0] for s in scenes]
        ),
        "POT, exact pixels for sure ones: mIoU": _miou(
            bench, scenes, [scene.activated(exact, scene.exact).maps[0] for scene in scenes]
        ),
        "exact masks on this grid: mIoU": _miou(bench, scenes, [scene.exact[0] for scene in scenes]),
    }


def _activations(scenes: list[Looked], found: list[Activation]) -> tuple[float, float]:
    """The mean of the maps on cells of the class, and on all others."""
    inside = [scene_maps.maps[scene.exact > 0] for scene, scene_maps in zip(scenes, found, strict=True)]
    outside = [scene_maps.maps[scene.exact == 0] for scene, scene_maps in zip(scenes, found, strict=True)]
    return float(torch.cat(inside).mean()), float(torch.cat(outside).mean())


def _miou(bench: Bench, scenes: list[Looked], maps: list[Tensor]) -> float:
    """mIoU (%) of maps (K, h, w) at the best background."""
    sweep = BackgroundSweep(RULES, len(bench.data.classes))
    for scene, each in zip(scenes, maps, strict=True):
        size = (scene.truth.shape[0], scene.truth.shape[1])
        sweep.update(scene.truth, upsample(each, size).clamp(0, 1), scene.tags)
    return 100 * max(metrics(each).miou for each in sweep.confusion())


def pictures(bench: Bench, row: Row, path: Path, count: int = 6) -> None:
    """Six scenes: image, truth, clusters, the plan of each cluster, the map before and after; of each one class."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    paper = Prototypes()
    scenes = [scene for scene in looks(bench, row, fitted=True) if (scene.seeds > paper.threshold).any()][:count]
    titles = ["image", "exact mask", "clusters", *(f"plan {k + 1}" for k in range(paper.clusters)), "seeds", "POT"]
    figure, axes = plt.subplots(
        len(scenes), len(titles), figsize=(1.5 * len(titles), 1.2 * len(scenes)), layout="constrained", squeeze=False
    )
    for line, scene in zip(axes, scenes, strict=True):
        found = scene.activated(paper)
        sizes = [int((scene.truth == tag).sum()) for tag in scene.tags]
        group = sizes.index(max(sizes))  # the largest of its classes
        cells = found.maps.shape[2:]
        image = scene.image.permute(1, 2, 0).numpy()
        clusters = found.clusters[0, group].reshape(cells)
        plan = found.plan[0, group].T.reshape(-1, *cells)  # (K, h, w)
        share = plan / plan.sum(0).clamp_min(1e-12)
        shown = [image, (scene.truth == scene.tags[group]).numpy(), _coloured(clusters, plt.get_cmap("tab10"))]
        shown += [share[k].numpy() for k in range(paper.clusters)]
        shown += [scene.seeds[0, group].numpy(), found.maps[0, group].numpy()]
        for axis, each in zip(line, shown, strict=True):
            axis.imshow(each, cmap="inferno", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(bench.data.classes.names[int(scene.tags[group])], fontsize=7)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 85})


def _coloured(clusters: Tensor, colours: Any) -> np.ndarray:
    """(h, w) int64 -> (h, w, 3); pixels of no cluster are grey."""
    picture = np.full((*clusters.shape, 3), 0.85)
    for cluster in range(int(clusters.max()) + 1):
        picture[(clusters == cluster).numpy()] = colours(cluster)[:3]
    return picture
