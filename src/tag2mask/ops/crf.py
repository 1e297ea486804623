"""The fully connected CRF: clean score maps with the edges of the picture.

P. Krähenbühl and V. Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (2011).
Every pixel is linked to every other one by two Gaussian kernels, over position and over position and colour,
with a Potts model: mean-field inference repeats

    Q_i(l)  =  softmax_l( -U_i(l) + sum_m w_m sum_j k_m(f_i, f_j) Q_j(l) ),      Q = softmax(-U) at first.

Each kernel is normalised symmetrically (n K n, n_i = 1 / sqrt((K 1)_i)) and includes the pixel itself, as in
the authors' code that all the papers here ran. Filters are permutohedral lattices (``ops.lattice``).

One definition, two engines: plain torch (``ops.crf_torch``) and compiled loops (``ops.crf_loops``); see ``engine``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from tag2mask.ops import crf_torch
from tag2mask.ops.compiled import trouble
from tag2mask.ops.crf_labels import Labels, select
from tag2mask.types import UserError
from tag2mask.words import named

ENGINES = ("loops", "torch")
_SWITCH = "TAG2MASK_CRF"


@dataclass(frozen=True)
class CRF:
    """The kernels of a dense CRF. A kernel that is None is left out.

    spatial: (sxy, weight); sxy is a standard deviation in pixels.
    bilateral: (sxy, srgb, weight); srgb is a standard deviation in grey levels (0-255).
    iterations: mean-field updates after Q = softmax(-U).
    """

    spatial: tuple[float, float] | None
    bilateral: tuple[float, float, float] | None
    iterations: int = 10

    def __post_init__(self) -> None:
        for name, kernel in (("spatial", self.spatial), ("bilateral", self.bilateral)):
            if kernel is None:
                continue
            *sigmas, weight = kernel
            if not (all(0 < s < math.inf for s in sigmas) and 0 <= weight < math.inf):
                raise UserError(
                    f"CRF: got {name}={kernel}, expected deviations above 0 and a weight of 0 or more; change it"
                )
        if self.iterations < 0:
            raise UserError(f"CRF: got iterations={self.iterations}, expected 0 or more; change it")


_DEEPLAB = CRF((1, 3), (67, 3, 4))
_IRN = CRF((3, 3), (50, 5, 10))
_PSA = CRF((3, 3), (80, 13, 10))
_WECLIP = CRF((3, 3), (64, 5, 4))

PRESETS: Mapping[str, CRF] = MappingProxyType(
    {
        "clip-es": _DEEPLAB,  # CLIP-ES, eval_cam_with_crf.py
        "deeplab": _DEEPLAB,  # deeplab-pytorch, the test-time CRF of DeepLabV2 (also CLIMS')
        "irn": _IRN,  # IRN, cam_to_ir_label: on hard labels (unary_from_labels)
        "clims": _IRN,  # CLIMS refines by IRN: the same labels for it
        "clims-camera-ready": CRF(
            (3, 3), (50, 5, 10), iterations=1
        ),  # CLIMS, previous version, after the random walk
        "pot": _IRN,  # POT, cam2ir step: IRN's
        "psa": _PSA,  # PSA, crf_inference on the scores with background (1 - max)^4 and ^32
        "mctformer": _PSA,  # MCTformer, labels for its PSA with background (1 - max)^1 and ^12
        "mctformer-retrain": CRF((4, 3), (83, 5, 3)),  # MCTformer, test of the network trained on its masks
        "dsrg-train": CRF((3 / 12, 3), (80 / 12, 13, 10)),  # DSRG, boundary loss on its 41 x 41 grid (scale 12)
        "weakclip-train": _PSA,  # WeakCLIP, boundary loss on its 64 x 64 grid (scale 1)
        "weakclip": CRF((3, 3), (83, 5, 3)),  # WeakCLIP, make_crf on VOC
        "weakclip-coco": _DEEPLAB,  # WeakCLIP, make_crf on COCO
        "weakclip-retrain": CRF((1, 3), (112, 2, 3)),  # WeakCLIP, test of its DeepLabV1-ResNet38 on VOC
        "seam-retrain": CRF((3, 3), (32, 13, 10), iterations=1),  # SEAM, test of its DeepLabV1-ResNet38
        "weclip": _WECLIP,  # WeCLIP and WeCLIP+, test
        "cd-clip": _WECLIP,  # CD-CLIP tests as WeCLIP+ does
    }
)
"""CRF settings by the name of the system whose released code uses them."""


def preset(name: str) -> CRF:
    """The CRF settings called ``name`` in ``PRESETS``.

    Raises:
        UserError: if there are none, with the known names and the nearest.
    """
    return named(PRESETS, name, "CRF preset")


def unary_from_probs(probs: Tensor, clip: float = 1e-5) -> Tensor:
    """-log p of scores in [0, 1], which need not sum to 1.

    Args:
        probs: (C, H, W) floating. Half precision is clipped and logged in half precision, as CLIP-ES does.
        clip: smaller scores count as this one.

    Returns:
        (C, H, W) float32.

    Raises:
        ValueError: if ``probs`` is no such tensor.
    """
    if not probs.is_floating_point():
        raise ValueError(f"probs: got {probs.dtype}, expected a floating dtype")
    return probs.clamp(clip, 1).log().neg().float()


def unary_from_labels(labels: Tensor, classes: int, gt_prob: float = 0.7, unsure: int | None = None) -> Tensor:
    """Unaries of a label map that is right with probability ``gt_prob`` at every pixel.

    Args:
        labels: (H, W) of an integer dtype, 0 .. classes - 1.
        classes: C, background included.
        gt_prob: in (0, 1); the others share the rest equally.
        unsure: pixels of this value (IGNORE, for example) have no opinion: -log(1 / C) for every class.

    Returns:
        (C, H, W) float32: -log(gt_prob), or -log((1 - gt_prob) / (C - 1)).

    Raises:
        ValueError: if a label is out of range, or an argument is.
    """
    if labels.ndim != 2 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels: got {tuple(labels.shape)} {labels.dtype}, expected (H, W) integers")
    if classes < 1 or not 0 < gt_prob < 1:
        raise ValueError(f"got classes={classes}, gt_prob={gt_prob}; expected at least 1 class and 0 < gt_prob < 1")
    labels = labels.long()
    known = torch.ones_like(labels, dtype=torch.bool) if unsure is None else labels != unsure
    wrong = labels[known & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise ValueError(
            f"labels: got value {int(wrong[0])}, expected 0..{classes - 1}"
            + ("; name the value of unlabelled pixels with unsure=" if unsure is None else f" or unsure={unsure}")
        )
    here = torch.arange(classes, device=labels.device)[:, None, None] == labels  # (C, H, W)
    sure, other = -math.log(gt_prob), -math.log((1 - gt_prob) / max(classes - 1, 1))
    unary = torch.full(here.shape, other, device=labels.device).masked_fill_(here, sure)
    return unary.masked_fill_(~known, math.log(classes))


def wrap_bgr(image: Tensor) -> Tensor:
    """The picture as the released CLIP-ES and DeepLab code gives it to the CRF; for ``variant="released"`` only.

    Blue first, minus the ImageNet mean, cast to uint8: values below the mean wrap around to 255, which draws
    a false edge through middle grey.

    Args:
        image: (3, H, W) uint8, RGB.

    Returns:
        (3, H, W) uint8.

    Raises:
        ValueError: if ``image`` is no such tensor.
    """
    _check_image(image)
    mean = torch.tensor([104.008, 116.669, 122.675], device=image.device)[:, None, None]
    # A cast of a negative float to uint8 is undefined: truncate towards zero, then wrap, as x86 does.
    return (image.flip(0).float() - mean).to(torch.int32).bitwise_and(255).to(torch.uint8)


def dense_crf(image: Tensor, unary: Tensor, crf: CRF, *, prune: float = 1e-3) -> Tensor:
    """Mean-field marginals of the dense CRF.

    Args:
        image: (3, H, W) uint8, RGB.
        unary: (C, H, W) floating: energies, -log of (unnormalised) probabilities.
        crf: kernels and iterations.
        prune: a label whose probability softmax(-U) stays below this at every pixel receives no message, but
            keeps its place in the normalisation; it could not have grown (messages are at most the weight
            times its probability, so the error stays far below ``prune``). 0 turns this off.

    Returns:
        (C, H, W) float32, on the device of ``image``; sums to 1 over C. On the CPU two calls give equal bytes.

    Raises:
        ValueError: if the tensors do not have these shapes and dtypes, or ``unary`` is not finite.
    """
    return _joint([image], [unary], crf, prune)[0]


def dense_crf_batch(
    images: Sequence[Tensor], unaries: Sequence[Tensor], crf: CRF, *, prune: float = 1e-3
) -> list[Tensor]:
    """``dense_crf`` of several pictures, which may differ in size and in number of labels.

    On CUDA one lattice holds them all, since one picture does not fill a GPU.

    Args:
        images: (3, H, W) uint8 each.
        unaries: (C, H, W) floating each.
        crf: kernels and iterations.
        prune: as in ``dense_crf``.

    Returns:
        (C, H, W) float32 each, in order.

    Raises:
        ValueError: as ``dense_crf``, or if there are not as many unaries as images.
    """
    if len(images) != len(unaries):
        raise ValueError(f"got {len(images)} images and {len(unaries)} unaries, expected one unary per image")
    if images and images[0].is_cuda:
        return _joint(images, unaries, crf, prune)
    return [dense_crf(i, u, crf, prune=prune) for i, u in zip(images, unaries, strict=True)]


def engine(device: torch.device | str = "cpu") -> str:
    """Which of ``ENGINES`` does the arithmetic of single pictures there.

    Compiled loops on a processor, where numba is installed (the extra ``fast``); torch everywhere else, and where the
    environment has ``TAG2MASK_CRF=torch``. Their results agree to rounding.

    Raises:
        UserError: the environment names an engine that does not exist, or that cannot run here.
    """
    wanted = os.environ.get(_SWITCH) or None
    if wanted not in (None, *ENGINES):
        raise UserError(f"{_SWITCH}={wanted}: expected {' or '.join(ENGINES)}, or nothing for the faster one")
    if wanted == "torch" or torch.device(device).type != "cpu":
        return "torch"
    why_not = trouble()
    if wanted == "loops" and why_not:
        raise UserError(f"{_SWITCH}=loops: {why_not}. Or unset {_SWITCH}")
    return "torch" if why_not else "loops"


@torch.no_grad()
def _joint(images: Sequence[Tensor], unaries: Sequence[Tensor], crf: CRF, prune: float) -> list[Tensor]:
    """Inference on all pictures at once."""
    for image, unary in zip(images, unaries, strict=True):
        _check(image, unary)
    with torch.autocast(images[0].device.type, enabled=False):  # the sums over labels need float32
        labels = [select(unary.flatten(1).float(), prune) for unary in unaries]
        marginals = _mean_field(images, labels, crf)
    return [q.unflatten(1, image.shape[1:]) for q, image in zip(marginals, images, strict=True)]


def _mean_field(images: Sequence[Tensor], labels: Sequence[Labels], crf: CRF) -> list[Tensor]:
    """(C, N) of each picture, by the engine for them."""
    if len(images) == 1 and engine(images[0].device) == "loops":
        from tag2mask.ops import crf_loops

        with suppress(OverflowError):  # a sorted lattice's keys hold what a picture has, these what it could have
            return [crf_loops.mean_field(images[0], labels[0], crf)]
    return crf_torch.mean_field(images, labels, crf)


def _check_image(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or image.numel() == 0:
        raise ValueError(f"image: got {tuple(image.shape)} {image.dtype}, expected (3, H, W) uint8 of at least 1 x 1")


def _check(image: Tensor, unary: Tensor) -> None:
    _check_image(image)
    if unary.ndim != 3 or len(unary) == 0 or unary.shape[1:] != image.shape[1:] or not unary.is_floating_point():
        raise ValueError(
            f"unary: got {tuple(unary.shape)} {unary.dtype}, "
            f"expected (C, {image.shape[1]}, {image.shape[2]}) floating with C >= 1"
        )
    if unary.device != image.device:
        raise ValueError(f"unary is on {unary.device}, image on {image.device}: expected one device")
