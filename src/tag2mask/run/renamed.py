"""Settings in run.yaml that had other names before: older runs are read, resumed and refined as if made today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["as_before", "as_today"]

_NAMES = {"crf": "refiner", "crf_image": "refiner_image", "crf_max_pixels": "refine_max_pixels"}
_OLD = {new: old for old, new in _NAMES.items()}
_NEW = {"refiner_on": "scores", "others": "never"}
"""Of mask rules: settings that came later, with what was done before there were any."""


def as_today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by the names of today; those that have them already stay as they are."""
    settings = {_NAMES.get(key, key): value for key, value in settings.items()}
    rule = settings.get("mask_rule")
    if isinstance(rule, Mapping):
        settings["mask_rule"] = {**_NEW, **{_NAMES.get(key, key): value for key, value in rule.items()}}
    return settings


def as_before(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by their first names, without what was not there and is at its default.

    ``Run.digest`` is made of these, so that it is the same for an older run and for a new one.
    """
    settings = {_OLD.get(key, key): value for key, value in settings.items()}
    rule = settings.get("mask_rule")
    if isinstance(rule, Mapping):
        kept = {_OLD.get(key, key): value for key, value in rule.items() if key not in _NEW or value != _NEW[key]}
        settings["mask_rule"] = kept
    return settings
