"""What this installation has, and the traps that are known to break it."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tag2mask import __version__

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


@dataclass(frozen=True)
class Finding:
    """What ``doctor`` found.

    packages: version by name, None where it is missing. problem: what is broken and how to fix it. device, weights:
    None where a package is missing, without which they cannot be looked at; weights: whether they are at hand, by
    name.
    """

    version: str
    python: str
    platform: str
    packages: Mapping[str, str | None]
    problem: str | None = None
    device: Device | None = None
    weights: Mapping[str, bool] | None = None

    @property
    def healthy(self) -> bool:
        """Whether everything that tag2mask needs works."""
        return self.problem is None and None not in self.packages.values() and not self._missing()

    def _missing(self) -> list[str]:
        """Networks that should have come with the package."""
        from tag2mask.models.embedded import EMBEDDED

        return [name for name, there in (self.weights or {}).items() if name in EMBEDDED and not there]

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"tag2mask {self.version}, Python {self.python}, {self.platform}"]
        for name, found in self.packages.items():
            lines.append(f"  {name}: missing; run: pip install {name}" if found is None else f"  {name} {found}")
        if self.problem is not None:
            lines.append(f"PROBLEM: {self.problem}")
        if self.device is not None:
            lines += self.device.lines()
        if self.weights is not None:
            from tag2mask.models.find_clip import DEFAULT_CLIP

            there = ", ".join(name for name in self.weights if name != DEFAULT_CLIP and self.weights[name])
            lines.append(f"weights: {there or 'none'} (embedded; they know no photographs)")
            lines += [f"  {name}: missing; install tag2mask again, with its data files" for name in self._missing()]
            here = "in the cache" if self.weights[DEFAULT_CLIP] else f"not here; run: tag2mask fetch {DEFAULT_CLIP}"
            lines.append(f"  {DEFAULT_CLIP}: {here}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"healthy": self.healthy, **asdict(self)}


@dataclass(frozen=True)
class Device:
    """What computes. gpus: their names, in CUDA's order.

    crf: the dense CRF's engine, "loops" (compiled, by that numba) or "torch". crf_slow: why it is the slow one, on a
    processor. bfloat16: "native", or what should be known of it.
    """

    name: str
    threads: int
    gpus: tuple[str, ...]
    crf: str
    numba: str | None
    crf_slow: str | None
    bfloat16: str

    def lines(self) -> list[str]:
        """For people."""
        loops = f"compiled loops (numba {self.numba})"
        torch = "torch" + (f", several times slower: {self.crf_slow}" if self.crf_slow else "")
        return [
            f"device: {self.name} ({self.threads} threads)",
            *(f"  cuda:{i} {gpu}" for i, gpu in enumerate(self.gpus)),
            f"  dense CRF: {loops if self.crf == 'loops' else torch}",
            f"  bfloat16: {self.bfloat16}",
        ]


def doctor() -> Finding:
    """What this installation has."""
    found = Finding(
        __version__, platform.python_version(), platform.platform(), {name: _version(name) for name in _PACKAGES}
    )
    if not found.healthy:
        return found
    return replace(found, problem=broken_torchvision(), device=_device(), weights=_weights())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


def _device() -> Device:
    import torch

    from tag2mask.ops.compiled import trouble
    from tag2mask.ops.crf import engine
    from tag2mask.run.device import find_device, find_precision

    device = find_device("auto")
    crf = engine(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        find_precision("bfloat16", device)
    return Device(
        name=str(device),
        threads=torch.get_num_threads(),
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        crf=crf,
        numba=version("numba") if crf == "loops" else None,
        crf_slow=trouble() if crf != "loops" and device.type == "cpu" else None,
        bfloat16=str(caught[0].message) if caught else "native",
    )


def _weights() -> dict[str, bool]:
    from tag2mask.models.embedded import EMBEDDED, is_there
    from tag2mask.models.weights import DEFAULT_CLIP, cached_clip

    return {**{name: is_there(name) for name in EMBEDDED}, DEFAULT_CLIP: cached_clip(DEFAULT_CLIP) is not None}
