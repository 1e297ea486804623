"""Semi-supervised training by cross-consistency (CCT: Ouali, Hudelot, Tami 2020), with masks for unlabelled images.

One encoder and main decoder learn from labelled pictures. On unlabelled ones, auxiliary decoders see the encoder's
features perturbed in seven ways and learn to agree with the main decoder, and, where there are pseudo masks, with
those ("CCT + CLIMS": 1,464 labelled by pixels, 9,118 by tags):

    L  =  w_s CE(main, y)  +  w_u mean_k D(aux_k, softmax main)  +  w_w mean_k CE(aux_k, pseudo mask)

No gradient flows into the main decoder from the second and third term; all of them reach the encoder.

Where the released code errs, this differs: guided cut-out takes every object of some area (there: only contours of
more than 50 vertices, which a rectangle has not); the adversarial direction is normalised whatever its length and is
found with a larger step (there: 1e-6, lost in float32, so that r was a two-hundredth of its length); the pair-wise
loss is returned to be added (there: added after the sum was formed); batches are not cached crops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Generator, Tensor, nn

from tag2mask.models.decoders import CCTNet
from tag2mask.segment.losses import cross_entropy
from tag2mask.segment.schedule import ramp
from tag2mask.types import IGNORE, UserError

Kind = Literal["vat", "dropout", "cutout", "context", "object", "drop", "noise"]

PUBLISHED: Mapping[Kind, int] = MappingProxyType(
    {"vat": 2, "dropout": 6, "cutout": 6, "context": 2, "object": 2, "drop": 6, "noise": 6}
)
"""How many auxiliary decoders there are of each kind, in this order: 30."""

SMALLEST_OBJECT = 50
"""Pixels of the smallest object that guided cut-out cuts."""


def kinds(counts: Mapping[Kind, int] = PUBLISHED) -> tuple[Kind, ...]:
    """The perturbation of each auxiliary decoder, in order."""
    return tuple(kind for kind, count in counts.items() for _ in range(count))


def _rand(shape: Sequence[int], like: Tensor, generator: Generator) -> Tensor:
    """Uniform numbers in [0, 1), drawn where the generator is: the same for every device of ``like``."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device).to(like)


def feature_noise(z: Tensor, generator: Generator, amount: float = 0.3) -> Tensor:
    """z + z n with n uniform within +- ``amount``, one n (C, h, w) for all pictures: (B, C, h, w) -> the same."""
    return z + z * (_rand(z.shape[1:], z, generator) * 2 - 1) * amount


def feature_drop(z: Tensor, generator: Generator, low: float = 0.7, high: float = 0.9) -> Tensor:
    """Zero where the mean over channels is at least gamma of its largest, gamma uniform in [low, high).

    Args:
        z: (B, C, h, w).
        generator: one gamma is drawn for all pictures.
        low, high: limits of gamma.

    Returns:
        (B, C, h, w): the most active places are gone.
    """
    activity = z.mean(1, keepdim=True)  # (B, 1, h, w)
    gamma = low + (high - low) * _rand((), z, generator)
    return z * (activity < gamma * activity.amax((2, 3), keepdim=True))


def feature_dropout(z: Tensor, generator: Generator, p: float = 0.5) -> Tensor:
    """Zero whole channels with probability ``p`` and enlarge the others to make up: (B, C, h, w) -> the same."""
    return z * (_rand((*z.shape[:2], 1, 1), z, generator) >= p) / (1 - p)


def _objects(guess: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, K, H, W) -> where another class than background leads, (B, 1, h, w) of 0 and 1."""
    return F.interpolate((guess.argmax(1, keepdim=True) > 0).float(), tuple(size), mode="nearest")


def context_masking(z: Tensor, guess: Tensor) -> Tensor:
    """Zero the background that the main decoder sees.

    Args:
        z: (B, C, h, w).
        guess: the main decoder's logits (B, K, H, W).

    Returns:
        (B, C, h, w).
    """
    return z * _objects(guess, z.shape[2:])


def object_masking(z: Tensor, guess: Tensor) -> Tensor:
    """Zero the objects that the main decoder sees; arguments and result as ``context_masking``."""
    return z * (1 - _objects(guess, z.shape[2:]))


def guided_cutout(z: Tensor, guess: Tensor, generator: Generator, erase: float = 0.4) -> Tensor:
    """Zero a box at a random place within the bounding box of every object that the main decoder sees.

    Objects are connected foreground (of any class; corners connect) of at least ``SMALLEST_OBJECT`` pixels.

    Args:
        z: (B, C, h, w).
        guess: the main decoder's logits (B, K, H, W).
        generator: two numbers are drawn for each object, those of the first picture first.
        erase: share of each side of the bounding box that is cut.

    Returns:
        (B, C, h, w).
    """
    foreground = (guess.argmax(1) > 0).cpu().numpy()  # (B, H, W)
    keep = torch.ones(foreground.shape)
    for picture, kept in zip(foreground, keep, strict=True):
        components, count = ndimage.label(picture, structure=[[1] * 3] * 3)
        areas = ndimage.sum_labels(picture, components, range(1, count + 1))
        for area, box in zip(areas, ndimage.find_objects(components), strict=True):
            if area < SMALLEST_OBJECT:
                continue
            u = torch.rand(2, generator=generator, device=generator.device).tolist()
            cut = []
            for place, side in zip(u, box, strict=True):
                length = side.stop - side.start
                start = side.start + int(place * (int(length * (1 - erase)) + 1))
                cut.append(slice(start, start + int(length * erase)))
            kept[tuple(cut)] = 0
    return z * F.interpolate(keep[:, None].to(z), z.shape[2:], mode="nearest")


def _unit(x: Tensor, otherwise: Tensor) -> Tensor:
    """Each picture's (B, ...) tensor at length 1; where it is all zero (or not finite), that of ``otherwise``."""
    flat = x.flatten(1).float()
    flat = flat / flat.abs().amax(1, keepdim=True)  # squares of tiny gradients would vanish
    flat = flat / flat.norm(dim=1, keepdim=True)
    good = flat.isfinite().all(1).view(-1, *[1] * (x.ndim - 1))
    return torch.where(good, flat.view_as(x), otherwise)


def adversarial(
    z: Tensor,
    decoder: nn.Module,
    generator: Generator,
    *,
    step: float = 0.1,
    length: float = 2.0,
    iterations: int = 1,
) -> Tensor:
    """z + r, r of a given length in the direction that changes the decoder's output most (virtual adversarial).

    Args:
        z: (B, C, h, w).
        decoder: from z to logits; its parameters get no gradient here.
        generator: of the first direction.
        step: xi, how far the direction is probed; the released 1e-6 is lost in float32.
        length: epsilon, of each picture's r over all its numbers.
        iterations: of the power method.

    Returns:
        (B, C, h, w); r is a constant.
    """
    still = z.detach().float()
    start = _rand(z.shape, still, generator) - 0.5
    direction = _unit(start, start)
    with torch.enable_grad(), torch.autocast(z.device.type, enabled=False):
        target = decoder(still).softmax(1).detach()
        for _ in range(iterations):
            direction.requires_grad_()
            log_probs = decoder(still + step * direction).log_softmax(1)
            distance = F.kl_div(log_probs, target, reduction="batchmean")
            (gradient,) = torch.autograd.grad(distance, direction)
            direction = _unit(gradient, direction.detach())
    return z + length * direction.to(z)


def perturb(kind: Kind, z: Tensor, guess: Tensor, decoder: nn.Module, generator: Generator) -> Tensor:
    """Features as one kind of auxiliary decoder sees them, with the published settings.

    Args:
        kind: see ``PUBLISHED``.
        z: (B, C, h, w), of the encoder.
        guess: the main decoder's logits (B, K, H, W).
        decoder: the auxiliary decoder.
        generator: of all random choices.

    Returns:
        (B, C, h, w).

    Raises:
        UserError: if there is no such kind.
    """
    match kind:
        case "vat":
            return adversarial(z, decoder, generator)
        case "dropout":
            return feature_dropout(z, generator)
        case "cutout":
            return guided_cutout(z, guess, generator)
        case "context":
            return context_masking(z, guess)
        case "object":
            return object_masking(z, guess)
        case "drop":
            return feature_drop(z, generator)
        case "noise":
            return feature_noise(z, generator)
    raise UserError(f"CCT: got a perturbation {kind!r}, expected one of {', '.join(PUBLISHED)}; change the settings")


def consistency(
    logits: Tensor, target: Tensor, kind: Literal["mse", "kl", "js"] = "mse", threshold: float | None = None
) -> Tensor:
    """How far an auxiliary decoder's output is from the main one's.

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W) probabilities, constant.
        kind: mean squared difference of the probabilities (what the paper trains with), or the Kullback-Leibler or
            Jensen-Shannon divergence; means are over B K H W.
        threshold: only pixels whose largest target is above it count, for "mse" and "kl". As released, "kl" is then
            the sum over them divided by B H W, and not by what counts.

    Returns:
        a scalar; 0 where no pixel counts.
    """
    log_probs, target = logits.float().log_softmax(1), target.detach().float()
    if kind == "js":
        middle = (log_probs.exp() + target) / 2
        log_middle = middle.log()
        return (middle * (2 * log_middle - log_probs - (target + 1e-5).log())).mean() / 2
    squared = kind == "mse"
    losses = (log_probs.exp() - target) ** 2 if squared else torch.xlogy(target, target) - target * log_probs
    if threshold is None:
        return losses.mean()
    sure = target.amax(1) > threshold  # (B, H, W)
    total = torch.where(sure[:, None], losses, 0).sum()
    return total / (sure.sum().clamp(min=1) * losses.shape[1] if squared else sure.numel())


def bootstrap_threshold(step: int, total: int, classes: int, highest: float = 0.9) -> float:
    """The probability below which a pixel counts in ``bootstrapped_cross_entropy``: from 1 / K up to ``highest``.

    Args:
        step: optimiser steps done before this one.
        total: steps of the whole training; the ramp ends after two fifths of them.
        classes: K.
        highest: where the ramp would end (it reaches 99.3 % of the way).

    Returns:
        the threshold.
    """
    return 1 / classes + ramp(step, 0.4 * total, "log") * (highest - 1 / classes)


def bootstrapped_cross_entropy(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Cross entropy of the pixels that are not yet sure of their label (CCT's ab-CE, for few labelled pictures).

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) with IGNORE.
        threshold: pixels whose probability of their label is below it count, and the B least sure at any rate.

    Returns:
        a scalar, the mean of those; 0 where none counts.
    """
    losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE, reduction="none")[labels != IGNORE]
    if losses.numel() == 0:
        return logits.float().sum() * 0
    probs = torch.exp(-losses.detach())  # (n,)
    least = probs.kthvalue(min(len(logits), probs.numel() - 1) + 1).values
    counts = probs < least.clamp(min=threshold)
    return torch.where(counts, losses, 0).sum() / counts.sum().clamp(min=1)


def pairwise(outputs: Sequence[Tensor]) -> Tensor:
    """How much auxiliary decoders differ: the variance of their probabilities, summed over classes.

    Args:
        outputs: logits (B, K, H, W) each.

    Returns:
        a scalar, the mean over pixels.
    """
    probs = torch.stack([x.float().softmax(1) for x in outputs])  # (n, B, K, H, W)
    return probs.var(0, correction=0).sum(1).mean()


@dataclass(frozen=True)
class Weights:
    """The weights of the unlabelled pictures' losses after their ramp; both rise together (sigmoid ramp).

    ramp_steps: a tenth of the training in the published settings.
    """

    ramp_steps: int
    consistency: float = 30.0
    weak: float = 0.4

    def at(self, step: int) -> tuple[float, float]:
        """(w_u, w_w) for a step, counted from 0."""
        factor = ramp(step, self.ramp_steps)
        return self.consistency * factor, self.weak * factor


@dataclass(frozen=True)
class Unlabelled:
    """The losses of unlabelled pictures, before their weights; means over the auxiliary decoders.

    weak: None where there were no pseudo masks. pairwise: an option of the paper's supplement, of weight 0 there.
    """

    consistency: Tensor
    weak: Tensor | None
    pairwise: Tensor | None


def unlabelled_losses(
    network: CCTNet,
    auxiliary: Sequence[nn.Module] | nn.ModuleList,
    pixels: Tensor,
    perturbations: Sequence[Kind],
    generator: Generator,
    *,
    weak: Tensor | None = None,
    kind: Literal["mse", "kl", "js"] = "mse",
    threshold: float | None = None,
    with_pairwise: bool = False,
) -> Unlabelled:
    """What unlabelled pictures teach.

    Args:
        network: encoder and main decoder.
        auxiliary: one decoder for each perturbation.
        pixels: (B, 3, H, W) standardised, H and W multiples of 8.
        perturbations: of each auxiliary decoder, see ``kinds``.
        generator: of all random choices.
        weak: pseudo masks (B, H, W) with IGNORE.
        kind, threshold: of ``consistency``.
        with_pairwise: also how much the auxiliary decoders differ; keeps all their outputs.

    Returns:
        the losses.

    Raises:
        UserError: if there are not as many decoders as perturbations, or none.
    """
    if len(perturbations) != len(auxiliary) or not perturbations:
        raise UserError(
            f"CCT: got {len(perturbations)} perturbations for {len(auxiliary)} auxiliary decoders, expected "
            "one for each, and at least one; give as many"
        )
    z = network.encode(pixels)  # (B, C, H / 8, W / 8)
    with torch.no_grad():
        guess = network.main(z)  # (B, K, H, W)
        target = guess.float().softmax(1)
    agreement, taught = z.new_zeros((), dtype=torch.float32), z.new_zeros((), dtype=torch.float32)
    outputs = []
    for name, decoder in zip(perturbations, auxiliary, strict=True):
        logits = decoder(perturb(name, z, guess, decoder, generator))
        agreement = agreement + consistency(logits, target, kind, threshold)
        if weak is not None:
            taught = taught + cross_entropy(logits, weak)
        if with_pairwise:
            outputs.append(logits)
    count = len(perturbations)
    return Unlabelled(
        agreement / count,
        None if weak is None else taught / count,
        pairwise(outputs) if with_pairwise else None,
    )
