"""Learning rates and weights of losses as functions of the step, and the parameter groups of the papers.

Steps count optimiser steps from 0: ``poly(t, ...)`` is the factor for step t itself. Nothing here keeps a state, so
training resumed at any step has the rate it would have had.

- IRN, PSA, CLIMS, CCT: ``poly(t, total)``; past ``total`` the rate stays at its last value, which is not 0.
- DeepLabV2: ``poly(t, total, hold=10)``: the rate changes at every tenth step only.
- WeakCLIP's DeepLabV1-ResNet38: ``poly(t, total + 1)``. WeakCLIP's own network: ``cosine``.
- MCTformer: ``cosine_epochs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def poly(step: int, total: int, *, power: float = 0.9, hold: int = 1, warmup: int = 0) -> float:
    """The polynomial decay (1 - t / total) ** power of a learning rate.

    Args:
        step: optimiser steps done before this one.
        total: steps of the whole training; at and after it the factor is that of step ``total - 1``.
        power: of the decay.
        hold: t is ``step`` rounded down to a multiple of this.
        warmup: the factor rises linearly over so many first steps, from 1 / warmup of its value to all of it.

    Returns:
        the factor on the first learning rate, in (0, 1].

    Raises:
        ValueError: if ``step`` is negative, or ``total`` or ``hold`` is below 1.
    """
    if step < 0 or total < 1 or hold < 1:
        raise ValueError(f"got step={step}, total={total}, hold={hold}; expected step >= 0, total >= 1 and hold >= 1")
    t = min(step, total - 1) // hold * hold
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rise * (1 - t / total) ** power


def cosine(step: int, total: int, *, warmup: int = 0) -> tuple[float, float]:
    """Half a cosine from a rate down to a floor that is the same for all, under a linear rise (mmcv's, WeakCLIP's).

    A rate below the floor comes up to it: WeakCLIP's "frozen" encoders, whose rate is 0 at first, end at 1e-6.

    Args:
        step: optimiser steps done before this one.
        total: steps of the whole training; at and after it the factors are those of step ``total - 1``.
        warmup: both factors rise linearly over so many first steps, from 1e-6 of their value.

    Returns:
        the factors on the first learning rate and on the floor, whose sum is the learning rate.

    Raises:
        ValueError: if ``step`` is negative or ``total`` is below 1.
    """
    if step < 0 or total < 1:
        raise ValueError(f"got step={step}, total={total}; expected step >= 0 and total >= 1")
    share = (1 + math.cos(math.pi * min(step, total - 1) / total)) / 2
    rise = 1 - (1 - step / warmup) * (1 - 1e-6) if step < warmup else 1.0
    return rise * share, rise * (1 - share)


def warm_poly(step: int, total: int, *, warmup: int = 50, start: float = 1e-6, power: float = 1.0) -> float:
    """WeCLIP's rate: up in a line from ``start``, then (1 - t / total) ** power of the whole training.

    Args:
        step: optimiser steps done before this one.
        total: steps of the whole training.
        warmup: steps of the rise; of a short training a tenth of all at most.
        start: the factor of the first step.
        power: of the decay.

    Returns:
        the factor on the first learning rate.

    Raises:
        ValueError: if ``step`` is negative or ``total`` below 1.
    """
    if step < 0 or total < 1:
        raise ValueError(f"got step={step}, total={total}; expected step >= 0 and total >= 1")
    warmup = min(warmup, total // 10)
    if step < warmup:
        return 1 - (1 - step / warmup) * (1 - start)
    return (1 - min(step, total - 1) / total) ** power


def cosine_epochs(
    epoch: int,
    epochs: int,
    lr: float,
    *,
    late: bool = False,
    warmup: int = 5,
    first: float = 1e-6,
    last: float = 1e-5,
) -> float:
    """DeiT's learning rate, the same for all of an epoch: a linear warm-up, then half a cosine.

    Args:
        epoch: from 0.
        epochs: of the whole training.
        lr: where the warm-up would lead to.
        late: every rate comes an epoch late, as in MCTformer's code, so that the first one holds for two epochs.
        warmup: epochs of it.
        first: the rate that the warm-up begins with.
        last: the rate that the cosine leads to, and would reach at ``epochs``.

    Raises:
        ValueError: if ``epoch`` is negative, or ``epochs`` is below 1.
    """
    if epoch < 0 or epochs < 1:
        raise ValueError(f"got epoch={epoch}, epochs={epochs}; expected epoch >= 0 and epochs >= 1")
    t = min(epoch, epochs - 1)
    t = max(t - 1, 0) if late else t
    if t < warmup:
        return first + t * (lr - first) / warmup
    return last + (lr - last) * (1 + math.cos(math.pi * t / epochs)) / 2


def _sigmoid(x: float) -> float:
    return math.exp(-5 * (1 - x) ** 2)


def _log(x: float) -> float:
    return 1 - math.exp(-5 * x)


RAMPS: Mapping[str, Callable[[float], float]] = {
    "sigmoid": _sigmoid,
    "log": _log,
}
"""CCT's ramps, from x = 0 to 1. "log" ends at 1 - exp(-5), not at 1."""


def ramp(step: int, length: float, kind: str = "sigmoid") -> float:
    """How much of a loss counts at a step; CCT ramps its consistency loss over the first tenth of training.

    Args:
        step: optimiser steps done before this one.
        length: steps until the ramp ends; 0 for no ramp.
        kind: a name in ``RAMPS``.

    Returns:
        the factor, in [0, 1].
    """
    return RAMPS[kind](min(max(step / length, 0.0), 1.0)) if length > 0 else 1.0


def conv_groups(backbone: nn.Module, head: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """The parameter groups that DeepLab, PSA and CLIMS train with.

    Convolutions of the backbone at 1x (their biases at 2x), of the head at 10x (their biases at 20x); biases do not
    decay. Norms go with the weights beside them and do not decay; those of the papers' backbones are frozen, and
    WeakCLIP's released code leaves its head's untrained too. Parameters that need no gradient are left out.

    Args:
        backbone: what was pretrained.
        head: what starts from random weights; none of its parameters may be in ``backbone``.
        lr: learning rate of the backbone's convolutions.
        weight_decay: of all convolution weights.

    Returns:
        groups for ``torch.optim``; each has ``lr``, ``weight_decay`` and ``initial_lr``.
    """
    found: dict[tuple[int, bool], list[Tensor]] = {(r, d): [] for r in (1, 2, 10, 20) for d in (True, False)}
    for part, rate in ((backbone, 1), (head, 10)):
        for module in part.modules():
            layer = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            for name, parameter in module.named_parameters(recurse=False):
                bias = layer and name == "bias"
                if parameter.requires_grad:
                    found[2 * rate if bias else rate, layer and not bias].append(parameter)
    groups = []
    for (rate, decays), parameters in found.items():
        if parameters:
            decay = weight_decay if decays else 0.0
            groups.append({"params": parameters, "lr": lr * rate, "initial_lr": lr * rate, "weight_decay": decay})
    return groups


def even_groups(network: nn.Module, held: tuple[str, ...], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """The parameter groups that WeakCLIP trains with: all that learns decays at one rate, norms and biases too.

    Args:
        network: whose parameters that need a gradient are taken.
        held: beginnings of the names of those whose rate is 0; a floor of the schedule moves them nevertheless.
        lr: learning rate of the others.
        weight_decay: of all.

    Returns:
        groups for ``torch.optim``; each has ``lr``, ``weight_decay`` and ``initial_lr``.
    """
    found: dict[float, list[Tensor]] = {lr: [], 0.0: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            found[0.0 if name.startswith(held) else lr].append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": weight_decay}
        for rate, parameters in found.items()
        if parameters
    ]


def set_rate(optimizer: torch.optim.Optimizer, factor: float, added: float = 0.0) -> None:
    """Give every group ``factor`` times its first learning rate (``initial_lr``, or ``lr`` at the first call).

    added: on top of it, the same for all groups.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor + added


def sgd(
    groups: Sequence[Mapping[str, Any]] | Iterable[Tensor],
    lr: float,
    weight_decay: float,
    *,
    momentum: float = 0.9,
    decay_as_momentum: bool = False,
) -> torch.optim.SGD:
    """Stochastic gradient descent as the papers say, or as IRN's, PSA's and CLIMS's code does.

    Args:
        groups: parameters or groups of them; ``lr`` and ``weight_decay`` of a group go before those given here.
        lr: learning rate.
        weight_decay: L2 penalty.
        momentum: of the updates.
        decay_as_momentum: the fault of IRN's ``PolyOptimizer``, kept to repeat its numbers: the weight decay lands
            in the place of the momentum, and only groups that bring their own ``weight_decay`` decay.

    Returns:
        the optimiser.
    """
    listed: Any = [dict(g) if isinstance(g, Mapping) else g for g in groups]
    if decay_as_momentum:
        return torch.optim.SGD(listed, lr=lr, momentum=weight_decay, weight_decay=0.0)
    return torch.optim.SGD(listed, lr=lr, momentum=momentum, weight_decay=weight_decay)
