"""The cost of a step of CD-CLIP: ours beside the obvious way, on the same crops, in turns in one run."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from cd_clip_scenes import Row, items_of
from torch import Tensor

from tag2mask.methods import make_method
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.online.method import Online
from tag2mask.methods.online.training import OnlineTraining
from tag2mask.models.tower import Each
from tag2mask.models.vjp import read_out
from tag2mask.models.weights import CLIP
from tag2mask.ops.cam import min_max, normalise_cam
from tag2mask.ops.class_distributions import class_shares
from tag2mask.ops.masks import upsample
from tag2mask.ops.par import PAR, PARSettings
from tag2mask.types import Dataset


def obvious_labels(method: Online, pixels: Tensor, tags: list[Tensor]) -> Tensor:
    """The labels of a batch as one would write them first: image by image, class by class, by autograd."""
    teacher, vision, settings = method.teacher, method.vision, method.recipe.early
    labels = []
    for one, own in zip(pixels, tags, strict=True):
        with torch.no_grad():
            seen = vision(
                one[None], attention=Each(teacher.layers), stop_before_last=True, positions=teacher.positions
            )
            x = seen.tokens
            tokens, last = vision.last_block(x, need_weights=True)
            features = F.normalize(vision.project(tokens[0, 1:]), dim=-1)
        texts = torch.cat([teacher.texts.classes[own - 1], teacher.texts.background])
        cams = torch.stack([autograd_cam(vision, x, texts, k, teacher.scale) for k in range(len(own))])  # (K, N)
        attention = torch.cat([seen.attention[0], last])[-settings.layers :, 1:, 1:].mean(0)
        shares = class_shares(features, teacher.texts.compared, settings.distributions)
        middle = (shares[:, None] + shares[None]) / 2  # (N, N, T)
        entropy = torch.special.entr(shares).sum(-1)
        apart = torch.special.entr(middle).sum(-1) - (entropy[:, None] + entropy[None]) / 2
        outside = ~torch.eye(len(apart), dtype=torch.bool)
        matrix = attention * torch.exp(-apart / (settings.distributions.tau * apart[outside].median()))
        refined = []
        for cam in normalise_cam(cams):
            a = matrix
            for _ in range(settings.rounds):
                a = a / a.sum(0, keepdim=True)
                a = a / a.sum(1, keepdim=True)
            a = (a + a.T) / 2
            refined.append(min_max((a @ a) @ cam))  # steps: 2
        maps = upsample(torch.stack(refined).view(-1, *seen.grid), (pixels.shape[2], pixels.shape[3]))
        scores = torch.cat([1 - maps.amax(0, keepdim=True), maps])
        values = torch.cat([own.new_zeros(1), own])
        labels.append(values[obvious_par(one, scores).argmax(0)])
    return torch.stack(labels)


def obvious_par(pixels: Tensor, scores: Tensor, settings: PARSettings = PAR) -> Tensor:
    """PAR of one image with all neighbours side by side, as its formulas read: scores (S, H, W)."""
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]

    def neighbours(x: Tensor) -> Tensor:  # (C, H, W) -> (C, 48, H, W)
        out = []
        for d in settings.dilations:
            wide = F.pad(x[None], (d, d, d, d), mode="replicate")[0]
            for dy, dx in around:
                out.append(wide[:, d + dy * d : d + dy * d + x.shape[1], d + dx * d : d + dx * d + x.shape[2]])
        return torch.stack(out, 1)

    near = neighbours(pixels)
    like = -((((near - pixels[:, None]) / (near.std(1, keepdim=True) + 1e-8) / settings.colour) ** 2).mean(0))
    far = torch.tensor([d * (dy * dy + dx * dx) ** 0.5 for d in settings.dilations for dy, dx in around])
    place = (-((far / (far.std() + 1e-8) / settings.colour) ** 2)).softmax(0)
    weights = like.softmax(0) + settings.place * place[:, None, None]  # (48, H, W)
    for _ in range(settings.iterations):
        scores = (neighbours(scores) * weights).sum(1)
    return scores


def autograd_cam(vision: Any, x: Tensor, texts: Tensor, k: int, scale: float) -> Tensor:
    """GradCAM of one class, (N,)."""
    block = vision.blocks[-1]
    a = block.ln_1(x).detach().requires_grad_()
    y = x + block.attn(a)[0]
    y = y + block.mlp(block.ln_2(y))
    embedding = F.normalize(read_out(vision, y, "patches")[0], dim=-1)
    score = (scale * texts @ embedding).softmax(0)[k]
    (gradient,) = torch.autograd.grad(score, a)
    return F.relu(a[0, 1:].detach() @ gradient[0, 1:].mean(0))


def cost(clip: CLIP, data: Dataset, repeats: int = 3) -> Row:
    """Seconds of a step, ours and the obvious way's, in turns on the same batches; and whether labels agree."""
    method = make_method("cd-clip", data.classes, clip=clip, setting=3, steps=10)
    assert isinstance(method, Online)
    side, count = method.recipe.crop, 4
    chosen = [item for item, _ in items_of(data) if min(item.image.shape[1:]) >= side][: count * repeats]
    keys = ("ours", "obvious", "ours, labels", "obvious, labels", "kept", "kept, labels")
    keys += ("ours, a scene", "obvious, a scene")
    seconds: dict[str, list[float]] = {key: [] for key in keys}
    same = []
    module = alone(method)
    fixed = make_method("cd-clip", data.classes, clip=clip, setting=3, steps=10, views=1)
    assert isinstance(fixed, Online)
    for start in range(0, count * repeats, count):
        some = chosen[start : start + count]
        images = torch.stack([item.image[:, :side, :side].float() for item in some])
        tags = [item.tags for item in some if item.tags is not None]
        pixels = method.teacher.pixels(images)

        def ours(pixels: Tensor = pixels, tags: list[Tensor] = tags) -> Tensor:
            seen = method.teacher.look(pixels)
            maps = method.teacher.maps(seen, tags, method.recipe.early)
            return method.teacher.labels(pixels, [each.refined for each in maps], tags, None)

        def step(images: Tensor = images, tags: list[Tensor] = tags) -> None:
            module.training_step((images, tags), 0).backward()

        def obvious_step(pixels: Tensor = pixels, tags: list[Tensor] = tags) -> None:
            labels = obvious_labels(method, pixels, tags)
            module.on_labels(pixels, labels)

        first, a = timed(ours)
        second, b = timed(lambda: obvious_labels(method, pixels, tags))  # noqa: B023  # called at once
        seconds["ours, labels"].append(first)
        seconds["obvious, labels"].append(second)
        same.append(float((a.long() == b).float().mean()))
        seconds["ours"].append(timed(step)[0])
        seconds["obvious"].append(timed(obvious_step)[0])
        with TemporaryDirectory() as folder:
            again = alone(fixed, Path(folder))

            def kept_step(again: Any = again, images: Tensor = images, tags: list[Tensor] = tags) -> None:
                again.training_step((images, tags), 0).backward()

            def kept_labels(again: Any = again, images: Tensor = images, tags: list[Tensor] = tags) -> None:
                known = torch.ones_like(images[:, 0], dtype=torch.bool)
                again.lessons(images, tags, known).teach(method.recipe.early, None, None)

            kept_step()
            seconds["kept"].append(timed(kept_step)[0])
            seconds["kept, labels"].append(timed(kept_labels)[0])
        whole, own = method.teacher.pixels(some[0].image[None]), tags[:1]
        seconds["ours, a scene"].append(timed(lambda: ours(whole, own))[0])  # noqa: B023  # called at once
        seconds["obvious, a scene"].append(timed(lambda: obvious_labels(method, whole, own))[0])  # noqa: B023
    row: Row = {name: round(sorted(values)[len(values) // 2], 3) for name, values in seconds.items()}
    classes = sum(len(item.tags) for item in chosen if item.tags is not None) / len(chosen)
    return {
        **row,
        "equal labels": round(100 * sum(same) / len(same), 3),
        "classes an image": round(classes, 2),
        "batch": f"{count} crops of {side}",
        "MB a view": round(fixed.view_bytes(fixed.new_network().network) / 1e6, 1),
        "command": f"python benchmarks/cd_clip.py -n {len(data)} --parts cost",
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, which other programs do not add to, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def alone(method: Online, folder: Path = Path()) -> Any:
    """A training's module without a Trainer."""
    net = method.new_network().network
    lessons, _ = method.lessons(net, folder)

    class Alone(OnlineTraining):
        global_step = 0

        def log_dict(self, values: Any, **how: Any) -> None: ...

        def on_labels(self, pixels: Tensor, labels: Tensor) -> None:
            """The rest of a step, its decoder looking at the pictures by itself."""
            self.lessons = lambda *batch: replace(lessons(*batch), teach=lambda *_: (labels, []))
            try:
                self.training_step((pixels, []), 0).backward()
            finally:
                self.lessons = lessons

    settings = FitSettings.of(method, steps=method.recipe.steps, batch=method.recipe.batch, lr=method.recipe.lr)
    return Alone(net, lessons, method.recipe, settings)
