"""A small self-distillation, for the tests of its parts."""

from __future__ import annotations

from tag2mask.lab.self_distil_recipe import SelfDistil

TINY = SelfDistil(
    width=16,
    layers=2,
    heads=2,
    side=16,
    small=8,
    few=1,
    hidden=0.3,
    whole_weight=0.25,
    scenes=8,
    size=(32, 48),
    codes=12,
    steps=4,
    batch=4,
    warmup=1,
    lr=1e-3,
)
