"""What this installation has, and the traps that are known to break it."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from tag2mask import __version__

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "torch",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
    "scipy",
    "pycocotools",
    "pydantic",
)


def doctor() -> tuple[list[str], bool]:
    """Lines to show, and whether everything that tag2mask needs works."""
    lines = [f"tag2mask {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    healthy = True
    for name in _PACKAGES:
        try:
            lines.append(f"  {name} {version(name)}")
        except PackageNotFoundError:
            healthy = False
            lines.append(f"  {name}: missing; run: pip install {name}")
    if not healthy:
        return lines, False
    trouble = broken_torchvision()
    if trouble:
        lines.append(f"PROBLEM: {trouble}")
        healthy = False
    return [*lines, *_devices(), *_weights()], healthy


def broken_torchvision() -> str | None:
    """How to fix a torchvision that does not fit torch, or None.

    tag2mask does not use torchvision, but a CUDA build of it beside a CPU build of torch breaks every package that
    looks for it, transformers among them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever it raises, it is broken
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        return (
            f"torchvision is installed but does not import ({' '.join(str(error).split())}); it was built for "
            "another torch. tag2mask does not need it: pip uninstall torchvision, or install the build that fits"
        )
    return None


def _devices() -> list[str]:
    import torch

    from tag2mask.run.device import find_device, find_precision

    lines = [f"device: {find_device('auto')} ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        lines += [f"  cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    lines.append(_crf(find_device("auto")))
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        find_precision("bfloat16", find_device("auto"))
    lines += [f"  bfloat16: {caught[0].message}" if caught else "  bfloat16: native"]
    return lines


def _crf(device: torch.device) -> str:
    from tag2mask.ops.compiled import trouble
    from tag2mask.ops.crf import engine

    if engine(device) == "loops":
        return f"  dense CRF: compiled loops (numba {version('numba')})"
    why = trouble() if device.type == "cpu" else None
    return "  dense CRF: torch" + (f", several times slower: {why}" if why else "")


def _weights() -> list[str]:
    from tag2mask.models.weights import DEFAULT_CLIP, cached_clip

    lines = ["weights: storybook-clip, storybook-resnet (embedded; they know no photographs)"]
    if cached_clip(DEFAULT_CLIP) is None:
        lines.append(f"  {DEFAULT_CLIP}: not here; run: tag2mask fetch {DEFAULT_CLIP}")
    else:
        lines.append(f"  {DEFAULT_CLIP}: in the cache")
    return lines
