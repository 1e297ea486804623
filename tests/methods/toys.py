"""A toy of each kind of method, and a tiny world to run them on. Small, but with the manners of the real ones."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from listed import Listed
from tag2mask.data.image import read_image
from tag2mask.methods.protocol import EarlierRun, Method, MethodOptions, Trainable
from tag2mask.models.state import state_sha256
from tag2mask.run.files import write_atomic
from tag2mask.segment.architectures import Architecture, Options
from tag2mask.segment.network import SegmentationNet, build_network, load_network, save_network
from tag2mask.segment.saved import INSIDE, NetworkConfig
from tag2mask.types import ClassSet, Dataset, Item, MaskRule, Own, Power, Sample, Scores, UserError

CLASSES = ClassSet(
    id="toy",
    names=("background", "red", "green", "blue"),
    palette=((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)),
)


def forbidden() -> np.ndarray:
    raise AssertionError("the ground truth was read")


@dataclass
class TinyData(Listed):
    """A Dataset in a list. Every sample has a truth that raises when anybody reads it."""

    samples: list[Sample]
    root: Path
    classes: ClassSet = field(default=CLASSES)


def make_data(
    root: Path, count: int = 12, sizes: Sequence[tuple[int, int]] = ((24, 32), (16, 40), (17, 23)), seed: int = 0
) -> TinyData:
    """Images with blocks of red, green or blue, in nested folders, of sizes that take turns."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        tags = tuple(sorted(rng.choice([1, 2, 3], size=1 + i % 2, replace=False).tolist()))
        for tag in tags:
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            pixels[top : top + height // 2, left : left + width // 2, tag - 1] = 230
        path = root / f"part{i % 2}" / f"img.{i:03}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        samples.append(Sample(f"part{i % 2}/img.{i:03}", path, tags, forbidden))
    return TinyData(samples, root)


def cell_grid(size: tuple[int, int], cell: int = 4) -> tuple[int, int]:
    return -(-size[0] // cell), -(-size[1] // cell)


def pooled(image: Tensor) -> Tensor:
    """(3, H, W) uint8 -> mean colour of each cell, (3, h, w) in [0, 1]."""
    return F.adaptive_avg_pool2d(image[None].float() / 255, cell_grid((image.shape[1], image.shape[2])))[0]


def size_of(item: Item) -> tuple[int, int]:
    return item.image.shape[1], item.image.shape[2]


class NoOptions(MethodOptions):
    pass


class TrainingFree(Method):
    """The red, green or blue of each cell."""

    class Options(NoOptions):
        gain: float = 1.0

    mask_rule = MaskRule(background=Power(1.0))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return cell_grid(size)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        by_grid: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            by_grid[self.grid(size_of(item))].append(i)
        out: dict[int, Scores] = {}
        for indices in by_grid.values():
            colours = torch.stack([pooled(items[i].image) for i in indices])  # (B, 3, h, w)
            for i, colour in zip(indices, colours, strict=True):
                maps = (self.options.gain * colour[items[i].tags - 1]).clamp(0, 1)  # (K, h, w)
                out[i] = Scores(items[i].tags, maps, size_of(items[i]), initial=colour[items[i].tags - 1])
        return [out[i] for i in range(len(items))]


class Neighbourly(TrainingFree):
    """Its result depends on what else is in the batch, far more than any rounding: batches must not change."""

    seconds = 0.0
    """That an image takes."""

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        time.sleep(self.seconds * len(items))
        shift = sum(int(item.image.sum()) for item in items) % 97 / 100
        return [
            Scores(each.tags, (each.maps + shift) / 2, each.size, initial=each.initial)
            for each in super().scores(items)
        ]


class FittedOnTags(Trainable):
    """Learns the mean colour of the images of each class, one checkpoint for every few images."""

    Options = NoOptions
    mask_rule = MaskRule(background=Own())
    every = 4

    def __init__(self, classes: ClassSet, options: NoOptions | None = None):
        super().__init__(classes, options)
        self.sums = np.zeros((len(classes), 3))
        self.counts = np.zeros(len(classes))

    def fit(self, data: Dataset, folder, earlier=None) -> None:
        seen = 0
        self.sums, self.counts = np.zeros_like(self.sums), np.zeros_like(self.counts)
        if (folder / "colours.npz").exists():
            self.load(folder)
            seen = self.seen
        for i in range(seen, len(data)):
            sample = data[i]
            for tag in sample.tags or ():
                self.sums[tag] += read_image(sample.image).mean((0, 1)) / 255
                self.counts[tag] += 1
            if (i + 1) % self.every == 0 or i + 1 == len(data):
                packed = np.concatenate([self.sums.ravel(), self.counts, [i + 1]])
                write_atomic(folder / "colours.npz", packed.tobytes())

    def load(self, folder, earlier=None) -> None:
        packed = np.frombuffer((folder / "colours.npz").read_bytes())
        self.sums = packed[: self.sums.size].reshape(self.sums.shape).copy()
        self.counts = packed[self.sums.size : -1].copy()
        self.seen = int(packed[-1])

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return cell_grid(size)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        means = torch.from_numpy(self.sums / np.maximum(self.counts, 1)[:, None]).float()  # (C + 1, 3)
        out = []
        for item in items:
            colour = pooled(item.image)  # (3, h, w)
            distance = (colour[None] - means[item.tags][:, :, None, None]).abs().mean(1)  # (K, h, w)
            maps = 1 - distance
            out.append(Scores(item.tags, maps, size_of(item), background=1 - maps.amax(0)))
        return out


class Refiner(Trainable):
    """Smooths an earlier run's maps; how much is fitted on those maps."""

    Options = NoOptions

    @classmethod
    def earlier_run(cls, options):
        return EarlierRun(fit="maps", label="maps")

    mask_rule = MaskRule(background=Power(2.0), normalise="image")

    def __init__(self, classes: ClassSet, options: NoOptions | None = None):
        super().__init__(classes, options)
        self.mix = 0.0

    def fit(self, data: Dataset, folder, earlier=None) -> None:
        spread = [float(earlier.scores(sample.id).maps.std()) for sample in data if sample.tags]
        write_atomic(folder / "mix.bin", np.array([min(1.0, sum(spread) / len(spread))]).tobytes())
        self.load(folder)

    def load(self, folder, earlier=None) -> None:
        self.mix = float(np.frombuffer((folder / "mix.bin").read_bytes())[0])

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return cell_grid(size)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        out = []
        for item in items:
            before = item.prior.scores()
            labels = item.prior.labels()
            if labels.shape != size_of(item):
                raise ValueError("the prior's labels have another size")
            smooth = F.avg_pool2d(before.maps[None], 3, 1, 1, count_include_pad=False)[0]  # (K, h, w)
            out.append(Scores(item.tags, torch.lerp(before.maps, smooth, self.mix).clamp(0, 1), size_of(item)))
        return out


class Eye(nn.Module):
    """A frozen tower: what it computes follows from its name."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(name))
            self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).requires_grad_(False)


class EyeOptions(Options):
    tower: str = "eye"
    sha256: str


class OnlineNet(nn.Module):
    """A decoder over a frozen tower."""

    def __init__(self, classes: int, eye: Eye):
        super().__init__()
        self.eye, self.decoder = eye, nn.Conv2d(4, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.decoder(self.eye.conv(pixels).relu())


def build_online(name: str, names: tuple[str, ...], options: EyeOptions, init: str) -> nn.Module:
    eye = Eye(options.tower)
    if state_sha256(eye) != options.sha256:
        raise UserError(f"{options.tower} is another tower than the network was trained on")
    return OnlineNet(len(names), eye)


ONLINE = Architecture(EyeOptions, build_online, lambda images, _: images.float() / 255, "adamw", towers=("eye",))


class Online(Trainable):
    """Trains a segmentation network on pseudo labels that it makes itself, step by step; its CAM is the logits."""

    class Options(NoOptions):
        tower: str = "eye"

    mask_rule = MaskRule(background=Power(1.0), normalise="class")
    steps = 12

    def __init__(self, classes: ClassSet, options: Any = None):
        super().__init__(classes, options)
        self.net = self._new()

    def _new(self) -> SegmentationNet:
        options = {"tower": self.options.tower, "sha256": state_sha256(Eye(self.options.tower))}
        return build_network(NetworkConfig.of("toy-online", self.classes, **options), seed=0)

    def fit(self, data: Dataset, folder, earlier=None) -> None:
        step, path = 0, folder / "training" / "state.bin"
        self.net = self._new()
        decoder = self.net.network.decoder
        if path.exists():
            packed = np.frombuffer(path.read_bytes(), np.float32)
            torch.nn.utils.vector_to_parameters(torch.tensor(packed[:-1]), decoder.parameters())
            step = int(packed[-1])
        optimiser = torch.optim.SGD(decoder.parameters(), lr=0.1)
        while step < self.steps:
            sample = data[step % len(data)]  # every random choice is a function of the step: none is left to chance
            pixels = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)[None]
            logits = self.net(pixels)  # (1, C + 1, h, w)
            colour = F.interpolate(pixels.float() / 255, logits.shape[2:], mode="area")[0]  # (3, h, w)
            tags = torch.tensor(sample.tags)
            best, winner = colour[tags - 1].max(0)  # (h, w)
            target = torch.where(best > 0.5, tags[winner], 0)  # the pseudo label, born in the loop
            loss = F.cross_entropy(logits, target[None])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            packed = torch.nn.utils.parameters_to_vector(decoder.parameters()).detach().numpy()
            write_atomic(path, np.append(packed, np.float32(step)).tobytes())
        if not (folder / INSIDE / "model.safetensors").exists():
            save_network(folder / INSIDE, self.net, supervision="tags", noted={"steps": self.steps})
        self.net.eval()

    def load(self, folder, earlier=None) -> None:
        self.net = load_network(folder, "cpu")

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // 2), -(-size[1] // 2)

    @torch.no_grad()
    def scores(self, items: Sequence[Item]) -> list[Scores]:
        out = []
        for item in items:
            probs = self.net(item.image[None]).softmax(1)[0]  # (C + 1, h, w)
            out.append(Scores(item.tags, probs[item.tags], size_of(item), background=probs[0]))
        return out


TOYS = {
    "toy-training-free": TrainingFree,
    "toy-fitted-on-tags": FittedOnTags,
    "toy-refiner": Refiner,
    "toy-online": Online,
}
