"""A trained network for other programs: one ONNX file, or a folder of its own with safetensors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.formats import exporters
from tag2mask.models.deeplab import MultiScale
from tag2mask.run.files import write_atomic
from tag2mask.segment.network import SegmentationNet, load_network, save_network
from tag2mask.segment.saved import SavedNetwork, find_network, read_saved
from tag2mask.stages.export import refuse_foreign_file
from tag2mask.types import UserError
from tag2mask.words import did_you_mean

FORMATS = ("onnx", "safetensors")
SIZES = ((96, 128), (97, 131), (161, 115), (192, 192))
"""(H, W) of the pictures that an ONNX file is tried on; the first is what it was made with."""

MARK = "tag2mask"
"""An ONNX file's producer, near its beginning: such a file may be replaced."""

_OPSET = 18
_LARGEST = 1 << 14
"""The largest side of a picture for which an ONNX file's scales are checked."""
_CLOSE = 1e-4  # of the largest logit: two classes nearer to one another than this may change places


@dataclass(frozen=True)
class Exported:
    """What was written, and how an ONNX file compares with torch.

    pixels: how many were compared. other: of these, how many got another class, all of them where two classes were as
    good as equal. apart: the largest difference of a logit.
    """

    path: Path
    pixels: int = 0
    other: int = 0
    apart: float = 0.0

    def text(self) -> str:
        """What there is to say of it."""
        if not self.pixels:
            return f"written: {self.path}"
        equal = "the same class at every pixel" if not self.other else f"another class at {self.other} equal scores"
        return (
            f"written: {self.path}\nchecked: onnxruntime against torch on {self.pixels} pixels of {len(SIZES)} "
            f"sizes: {equal}, logits at most {self.apart:.1e} apart"
        )


class WholeSize(nn.Module):
    """A network whose logits are as large as its pictures."""

    def __init__(self, net: SegmentationNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float RGB, 0-255 -> logits (B, K, H, W)."""
        logits = self.net(images)
        size = images.shape[2:]
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.net.align_corners)


def holds_network(source: Path | str, to: str) -> bool:
    """Whether a folder to be exported is a network's (True) or a run's (False).

    Raises:
        UserError: it is neither, or ``to`` is a format of the other.
    """
    known = exporters()
    networks, masks = ", ".join(FORMATS), ", ".join(known)
    network, run = find_network(source) is not None, (Path(source) / "run.yaml").is_file()
    if not network and not run:
        raise UserError(
            f"{source}: is neither a run folder (its masks go to {masks}) nor the folder of a network or of its "
            f"training (it goes to {networks}); give one that `label`, `predict` or `train` wrote"
        )
    if to in (*FORMATS, *known):
        wants = to in FORMATS
        if wants and not network:
            raise UserError(f"{source}: is a run, whose masks go to {masks}; a network goes to {networks}")
        if not wants and not run:
            raise UserError(f"{source}: is a network, which goes to {networks}; the masks of a run go to {masks}")
        return wants
    hint = did_you_mean(to, (*FORMATS, *known))
    raise UserError(f"cannot export to {to!r}{hint}; masks of a run go to {masks}, a network goes to {networks}")


def export_network(folder: Path | str, to: str, out: Path | str) -> Exported:
    """Write a network for other programs.

    Args:
        folder: of the network, or of its training.
        to: "onnx": one file that takes "images", float32 RGB of 0-255 (batch, 3, height, width), and gives "logits"
            (batch, K, height, width); names and colours of the classes and the supervision are in its metadata. It is
            written once onnxruntime and torch agree on it. "safetensors": a folder that ``predict`` takes, without
            the rest of the training.
        out: the file, or the folder.

    Raises:
        UserError: an unknown format, no network, a missing extra, a network that ONNX cannot express, one with a
            scale that ONNX rounds otherwise, or ``out`` holds something else.
    """
    out = Path(out)
    if to not in FORMATS:
        raise UserError(f"cannot export a network to {to!r}; choose one of {', '.join(FORMATS)}")
    saved = read_saved(folder)
    if to == "onnx":
        refuse_foreign_file(out, MARK, "ONNX file of tag2mask", "network.onnx")
        return _export_onnx(load_network(saved, "cpu"), saved, out)
    if out.exists() and not (out.is_dir() and (find_network(out) == out or not any(out.iterdir()))):
        raise UserError(f"{out} exists and is no network of tag2mask; choose a new or empty folder")
    if out.resolve() != saved.path.resolve():
        save_network(out, load_network(saved, "cpu"), supervision=saved.supervision, noted=saved.noted)
    return Exported(out)


def _export_onnx(net: SegmentationNet, saved: SavedNetwork, out: Path) -> Exported:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError('ONNX needs other packages: pip install "tag2mask[export]"') from error
    _check_scales(net, out)
    model = WholeSize(net).eval()
    proto = onnx.load_model_from_string(_trace(model, net.config.architecture))
    proto.producer_name = MARK
    props = {
        "names": json.dumps(net.config.names),
        "palette": json.dumps(net.config.palette),
        "classes": net.config.classes,
        "architecture": net.config.architecture,
        "supervision": saved.supervision,
        "weights_sha256": saved.sha256,
    }
    onnx.helper.set_model_props(proto, props)
    onnx.checker.check_model(proto)
    data = proto.SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # its errors are said in one line of ours
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (2, 3, *size), generator=generator).float() for size in SIZES]
    found = compare(model, session, pictures, out)
    write_atomic(out, data)
    return found


def _check_scales(net: SegmentationNet, out: Path) -> None:
    """Raises UserError where a scale of the network gives pictures of another size in ONNX than in torch.

    Both take floor(side * scale), ONNX in float32 and torch in float64: 90 * 0.7 is 63 in one and 62 in the other.
    """
    sides = np.arange(1, _LARGEST + 1)
    for scale in net.network.scales if isinstance(net.network, MultiScale) else ():
        ours = np.floor(sides * scale)
        theirs = np.floor(sides.astype(np.float32) * np.float32(scale))
        differing = sides[ours != theirs]
        if len(differing):
            raise UserError(
                f"{out}: was not written: the network's scale {scale} rounds a side of {differing[0]} pixels to "
                f"{int(ours[differing[0] - 1])} in torch and to {int(theirs[differing[0] - 1])} in ONNX "
                f"({len(differing)} of the sides up to {_LARGEST} differ), so the file would give other masks; "
                "export to safetensors, or train with scales that float32 holds exactly, such as 0.5 and 0.75"
            )


def compare(model: WholeSize, session: Any, pictures: Sequence[Tensor], out: Path) -> Exported:
    """Torch's and onnxruntime's answers on the same pictures.

    Args:
        model: in evaluation mode, on the processor.
        session: an onnxruntime.InferenceSession.
        pictures: (B, 3, H, W) float each.
        out: what the session was made from, for the messages.

    Raises:
        UserError: a pixel has another class, and not because two were as good as equal.
    """
    pixels = other = 0
    apart = 0.0
    for images in pictures:
        with torch.inference_mode():
            ours = model(images).numpy()  # (B, K, H, W)
        try:
            theirs = session.run(None, {"images": images.numpy()})[0]
        except Exception as error:  # onnxruntime's own, of many kinds
            raise _unlike(out, f"onnxruntime refuses pictures of {tuple(images.shape)}") from error
        if theirs.shape != ours.shape:
            raise _unlike(out, f"its logits are {theirs.shape}, expected {ours.shape}")
        mine, its = ours.argmax(1)[:, None], theirs.argmax(1)[:, None]  # (B, 1, H, W)
        lost = np.take_along_axis(ours, mine, 1) - np.take_along_axis(ours, its, 1)  # by torch's own measure
        wrong = int((lost > _CLOSE * np.abs(ours).max()).sum())
        if wrong:
            raise _unlike(out, f"{wrong} of {lost.size} pixels of pictures {tuple(images.shape)} have another class")
        pixels, other = pixels + lost.size, other + int((mine != its).sum())
        apart = max(apart, float(np.abs(ours - theirs).max()))
    return Exported(out, pixels, other, apart)


def _unlike(out: Path, what: str) -> UserError:
    return UserError(
        f"{out}: was not written, for onnxruntime and torch do not agree ({what}): ONNX cannot express this "
        "architecture for pictures of every size; export to safetensors"
    )


def _trace(model: WholeSize, architecture: str) -> bytes:
    """The ONNX file's bytes, for pictures of any number and size."""
    axes = {0: "batch", 2: "height", 3: "width"}
    buffer = io.BytesIO()
    try:
        with _quiet():
            # by tracing: torch.export takes minutes to reason about free sizes and gives the same graph
            torch.onnx.export(
                model,
                (torch.rand(2, 3, *SIZES[0]) * 255,),
                buffer,  # type: ignore[arg-type]
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": axes, "logits": axes},
                opset_version=_OPSET,
                dynamo=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0].partition("  [")[0].partition(". Please feel free")[0]
        raise UserError(f"{architecture} cannot be written as ONNX: {said}; export to safetensors") from error
    return buffer.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Where the exporter fails, its C++ part prints the whole graph; what it warns of is judged by ``compare``."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            for stream in (1, 2):
                os.dup2(nowhere.fileno(), stream)
            yield
    finally:
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)
