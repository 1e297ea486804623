"""Score maps as bytes: an .npz of plain arrays, small (float16, on the grid) and the same for the same maps."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from tag2mask.types import Others, Scores

_OPTIONAL = ("background", "initial", "boundary", "displacement")

_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time stamp, so that equal maps are equal bytes


def encode_scores(scores: Scores) -> bytes:
    """Scores as the bytes of an .npz file with tags, maps, size and, where present, background, initial, frame,
    boundary, displacement, others_score and others_values.

    Maps are stored as float16, which rounds them by 2**-11 of themselves at the most.
    """
    arrays = {
        "tags": scores.tags.detach().cpu().numpy().astype(np.int64),  # (K,)
        "maps": _half(scores.maps),  # (K, h, w)
        "size": np.array(scores.size, dtype=np.int64),  # (2,)
    }
    for name in _OPTIONAL:
        maps = getattr(scores, name)
        if maps is not None:
            arrays[name] = _half(maps)
    if scores.frame is not None:
        arrays["frame"] = np.array(scores.frame, dtype=np.int64)  # (2,)
    if scores.others is not None:
        arrays["others_score"] = _half(scores.others.score)  # (h, w)
        arrays["others_values"] = scores.others.values.detach().cpu().numpy().astype(np.uint8)  # (h, w)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w") as member:
                npy.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_scores(path: Path) -> Scores:
    """Scores from a file of :func:`encode_scores`; maps are float32 again. Nothing is ever unpickled.

    Raises:
        OSError, ValueError, KeyError, zipfile.BadZipFile: absent or no such file.
    """
    with np.load(path, allow_pickle=False) as arrays:
        height, width = (int(side) for side in arrays["size"])
        frame = tuple(int(side) for side in arrays["frame"]) if "frame" in arrays else None
        others = None
        if "others_score" in arrays:
            others = Others(_float(arrays["others_score"]), torch.from_numpy(arrays["others_values"]))
        return Scores(
            tags=torch.from_numpy(arrays["tags"]),
            maps=torch.from_numpy(arrays["maps"].astype(np.float32)),
            size=(height, width),
            frame=(frame[0], frame[1]) if frame else None,
            others=others,
            **{name: _float(arrays[name]) for name in _OPTIONAL if name in arrays},
        )


def _half(maps: torch.Tensor) -> np.ndarray:
    array: np.ndarray = maps.detach().to("cpu", torch.float16).numpy()
    return array


def _float(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))
