"""CAM, affinity and boxes, each stage alone, against what CLIP-ES's released code computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tag2mask.ops.affinity import propagate, symmetric_affinity
from tag2mask.ops.boxes import box_masks, region_boxes
from tag2mask.ops.cam import gradcam, min_max, normalise_cam
from tag2mask.ops.masks import upsample

CASES = ["voc_small", "voc_portrait", "voc_tiny_dims", "voc_last8", "coco_wide", "coco_last8"]


@pytest.fixture(params=CASES)
def case(request, golden):
    return {
        k: torch.from_numpy(v) if v.dtype.kind in "fiu" else v
        for k, v in golden(f"clip-es/case_{request.param}").items()
    }


def test_gradcam(case):
    cam = gradcam(case["activation"].flatten(1).T, case["grad_mean"])
    torch.testing.assert_close(normalise_cam(cam).view_as(case["gradcam"]), case["gradcam"], rtol=0, atol=5e-5)


def test_affinity(case):
    affinity = symmetric_affinity(case["attn_mean_last8"])
    torch.testing.assert_close(affinity, case["affinity"], rtol=0, atol=1e-6)


def test_box_mask(case):
    masks = box_masks(case["gradcam"], float(case["threshold"]), keep_edges=False)
    assert torch.equal(masks.to(torch.uint8), case["box_mask"])


def test_refined(case):
    shape = case["gradcam"].shape
    spread = propagate(case["affinity"], case["gradcam"].flatten(1), case["box_mask"].flatten(1).float(), steps=2)
    torch.testing.assert_close(spread.view(shape), case["refined_raw"], rtol=0, atol=1e-6)


def test_saved_map(case):
    maps = min_max(case["refined_raw"].flatten(1)).view_as(case["refined_raw"])
    saved = upsample(maps, tuple(case["attn_highres"].shape[1:]))
    torch.testing.assert_close(saved, case["attn_highres"].float(), rtol=0, atol=5e-4)


def test_min_max_with_resize(golden):
    arrays = golden("clip-es/scale_unit")
    names = [key.removeprefix("in_") for key in arrays if key.startswith("in_")]
    assert {"c", "d", "e", "tiny"} <= set(names)
    for name in names:
        maps = torch.from_numpy(arrays[f"in_{name}"])
        width, height = (int(v) for v in arrays[f"size_wh_{name}"])
        scaled = min_max(maps.flatten()[None]).view(1, *maps.shape)
        if width:
            scaled = upsample(scaled, (height, width))
        np.testing.assert_allclose(scaled[0].numpy(), arrays[f"out_{name}"], atol=1e-5, err_msg=name)


def test_boxes(golden):
    arrays = golden("clip-es/boxes_unit")
    names = [key.removeprefix("map_") for key in arrays if key.startswith("map_")]
    assert len(names) >= 8
    for name in names:
        cam = torch.from_numpy(arrays[f"map_{name}"])
        for threshold in (0.4, 0.7):
            expected = np.zeros(cam.shape)
            for x0, y0, x1, y1 in arrays[f"boxes_{name}_{threshold}_multi"]:
                expected[y0:y1, x0:x1] = 1
            got = box_masks(cam[None], threshold, keep_edges=False)[0].numpy()
            np.testing.assert_array_equal(got, expected, err_msg=f"{name} {threshold}")


def test_diagonal_cells_are_one_region_and_edges_can_be_kept():
    cam = torch.zeros(4, 4)
    cam[1, 1] = cam[2, 2] = cam[3, 3] = 1
    assert region_boxes(cam, 0.4) == [(1, 1, 4, 4)]
    assert box_masks(cam[None], 0.4)[0].sum() == 9
    assert box_masks(cam[None], 0.4, keep_edges=False)[0].sum() == 4
