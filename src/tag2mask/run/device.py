"""Where the work runs and in which numbers, and the memory it took."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import torch

from tag2mask.run.processes import launched
from tag2mask.run.warn import warn
from tag2mask.types import UserError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, else Apple's GPU, else the processor.

    Under torchrun, which sets LOCAL_RANK, "auto" gives each process of a machine a GPU of its own, and where several
    devices share a training, "cuda" does, too.

    Raises:
        UserError: no such device here.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "cuda" and torch.cuda.is_available() and launched():
        name = _own_cuda()
    if name == "auto":
        name = _own_cuda() if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'device "{name}": expected auto, cpu, cuda, cuda:0 or mps') from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(
                f'device "{name}": PyTorch {torch.__version__} sees {count} CUDA devices here; '
                "use cpu, or install a PyTorch built for this machine's driver"
            )
    elif device.type == "mps" and not has_mps:
        raise UserError('device "mps": this PyTorch sees no Apple GPU; use cpu')
    elif device.type not in {"cpu", "mps"}:
        raise UserError(f'device "{name}": expected auto, cpu, cuda, cuda:0 or mps')
    return device


def _own_cuda() -> str:
    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdecimal():
        return "cuda"
    # around again where there are more processes than GPUs, or where each process is shown a single one
    return f"cuda:{int(rank) % max(torch.cuda.device_count(), 1)}"


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """The number type of that name, if the device computes in it.

    bfloat16 on a processor without it is allowed with a warning: it is right, but slower than float32.

    Raises:
        UserError: unknown, or not possible on the device.
    """
    if name not in PRECISIONS:
        raise UserError(f'precision "{name}": expected {", ".join(PRECISIONS)}')
    if name == "float16" and device.type == "cpu":
        raise UserError("precision float16 on a processor is slow and loses small gradients; use float32 or bfloat16")
    if name == "bfloat16" and device.type == "cpu" and not cpu_has_bfloat16():
        warn("this processor has no bfloat16: float32 will be quicker")
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("precision bfloat16: this GPU has none; use float16 or float32")
    return PRECISIONS[name]


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; False where that is not known."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        words = cpuinfo.read_text(errors="replace")
        return any(flag in words for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    return sys.platform == "darwin"  # Apple's processors since the M2; elsewhere not known, so warned


def peak_memory() -> int | None:
    """The most memory this process ever had resident, in bytes; None where the system does not say."""
    # getrusage is the second choice: on Linux it starts from what the parent process had
    from_status = _status("VmHWM")
    if from_status is not None:
        return from_status
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int | None:
    """The memory this process has resident now, in bytes; None where the system does not say."""
    return _status("VmRSS")


def peak_device_memory(device: torch.device) -> int | None:
    """The most memory PyTorch ever held on a CUDA device, in bytes; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(f"{key}:")]
    return int(found[0].split()[1]) * 1024 if found else None
