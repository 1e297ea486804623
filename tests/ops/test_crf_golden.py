"""The dense CRF against marginals recorded from the code that the papers ran."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tag2mask.ops.crf import CRF, dense_crf, preset, unary_from_probs, wrap_bgr

pytestmark = pytest.mark.usefixtures("crf_engine")

CASES = [
    "01_c2_clipes",
    "02_c5_irn",
    "03_c21_psa",
    "04_c3_clipes_wrapimage",
    "05_c21_irn_labels",
    "06_c4_oddsize_dl140",
    "07_c3_flat_clip",
    "08_c2_bilateral_only_1it",
    "09_full_c21_psa_f16",
    "10_full_c21_clipes_f16",
]


def chw(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("prune", [1e-3, 0])
def test_marginals(golden, name, prune):
    case = golden(f"crf/{name}")
    if prune == 0 and name.startswith(("09", "10")):
        pytest.skip("one large run is enough")
    image = chw(case["image"])
    unary = torch.from_numpy(case["unary"]).float().view(-1, *image.shape[1:])
    spatial, bilateral = (
        (case["gauss_sxy"], case["gauss_compat"]),
        (case["bi_sxy"], case["bi_srgb"], case["bi_compat"]),
    )
    kernels = tuple(map(float, spatial)) if spatial[1] else None, tuple(map(float, bilateral))
    truth = torch.from_numpy(case["marginals"]).float()
    q = dense_crf(image, unary, CRF(*kernels, int(case["iters"])), prune=prune)
    half = case["marginals"].dtype == np.float16
    assert (q - truth).abs().mean() <= (2e-4 if half else 1e-5)
    assert (q - truth).abs().max() <= (1e-4 if name.startswith("08") else 5e-3)
    assert (q.argmax(0) == torch.from_numpy(case["label"])).float().mean() >= 0.9999
    assert (q.sum(0) - 1).abs().max() <= 1e-5
    if "marginals_iter1" in case:
        once = dense_crf(image, unary, CRF(*kernels, 1), prune=prune)
        assert (once - torch.from_numpy(case["marginals_iter1"])).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["voc_small", "voc_portrait", "voc_full", "coco_wide"])
def test_clip_es_pseudo_masks(golden, name):
    case = golden("clip-es/crf")
    image = chw(case[f"image_minus_mean_{name}"])
    q = dense_crf(image, unary_from_probs(torch.from_numpy(case[f"prob_{name}"])), preset("clip-es"))
    truth = torch.from_numpy(case[f"Q_{name}"])
    assert (q - truth).abs().mean() <= 1e-5
    assert (q - truth).abs().max() <= 5e-3
    # the mask: the class key + 1 of the largest posterior, 255 where that is below 0.95
    mask = torch.from_numpy(case[f"mask_{name}"])
    values = torch.zeros(len(q), dtype=torch.uint8)
    sure = mask != 255
    for label in range(len(q)):
        here = mask[sure & (truth.argmax(0) == label)]
        values[label] = here[0] if len(here) else 0
    confidence, best = q.max(0)
    own = torch.where(confidence < 0.95, 255, values[best])
    assert (own == mask).float().mean() >= 0.9999


@pytest.mark.parametrize("name", ["voc_portrait", "coco_wide"])
def test_wrapped_image_of_the_released_code(golden, name):
    image = chw(golden(f"clip-es/case_{name}")["image"])
    assert torch.equal(wrap_bgr(image), chw(golden("clip-es/crf")[f"image_minus_mean_{name}"]))


def test_deeplab(golden):
    case = golden("clims/crf_deeplab")
    q = dense_crf(chw(case["img"]), unary_from_probs(torch.from_numpy(case["prob"])), preset("deeplab"))
    assert (q - torch.from_numpy(case["q"])).abs().mean() <= 1e-5
    assert (q - torch.from_numpy(case["q"])).abs().max() <= 5e-3
    assert (q.argmax(0) == torch.from_numpy(case["label"])).float().mean() >= 0.9999


@pytest.mark.parametrize("background", ["la", "ha"])
def test_psa(golden, background):
    case = golden("clims/crf_psa")
    q = dense_crf(chw(case["img"]), unary_from_probs(torch.from_numpy(case[f"score_{background}"])), preset("psa"))
    truth = torch.from_numpy(case[f"crf_{background}"])
    assert (q - truth).abs().mean() <= 1e-5
    assert (q - truth).abs().max() <= 5e-3
    assert (q.argmax(0) == truth.argmax(0)).float().mean() >= 0.9999
