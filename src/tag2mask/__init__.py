"""From image tags to pixel masks, with CLIP.

The public names are imported when first used, so that ``import tag2mask`` stays quick and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ClassSet": "types",
    "TextSet": "types",
    "Sample": "types",
    "Dataset": "types",
    "Item": "types",
    "Scores": "types",
    "MaskRule": "types",
    "IGNORE": "types",
    "load_classes": "classes",
    "read_voc": "data",
    "read_coco": "data",
    "read_folder": "data",
    "load_clip": "models.weights",
    "make_method": "methods",
    "check": "stages.check",
    "label": "stages.label",
    "mask": "stages.mask",
    "train": "stages.train",
    "predict": "stages.predict",
    "load_network": "segment.network",
    "pseudo_mask": "ops.masks",
    "evaluate": "stages.evaluate",
    "report": "stages.report",
    "export": "stages.export",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tag2mask' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"tag2mask.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
