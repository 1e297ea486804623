"""The small recorded cases in ``tests/regression``; ``python tests/frozen_cases.py`` copies them from shared/golden.

Only what is made of random numbers or drawn shapes is listed here, and of large cases only a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

FROZEN = Path(__file__).resolve().parent / "regression"
GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"

Arrays = Mapping[str, np.ndarray]
Part = Callable[[Arrays], dict[str, np.ndarray]]


def only(*names: str) -> Part:
    """These arrays of a case."""
    return lambda arrays: {name: arrays[name] for name in names}


def without(*names: str) -> Part:
    """All arrays of a case but these."""
    return lambda arrays: {name: array for name, array in arrays.items() if name not in names}


def corner(arrays: Arrays) -> dict[str, np.ndarray]:
    """The decoder's first 3 x 4 cells: each cell is decoded by itself, to 8 x 8 pixels."""
    return {**arrays, "feat": arrays["feat"][:, :, :3, :4], "out": arrays["out"][:, :, :24, :32]}


def coarse_pixels(arrays: Arrays) -> dict[str, np.ndarray]:
    """The recorded pixels are a coarse random grid, enlarged: keep the grid, and of the features every 16th."""
    pixels = torch.from_numpy(arrays["pixels"]).double()
    grid = (pixels.shape[2] // 16, pixels.shape[3] // 16)
    rows, columns = (
        F.interpolate(torch.eye(cells).double()[None, None], (side, cells), mode="bicubic")[0, 0]  # (side, cells)
        for cells, side in zip(grid, pixels.shape[2:], strict=True)
    )
    coarse = torch.linalg.pinv(rows) @ pixels @ torch.linalg.pinv(columns).T
    kept = without("pixels")(arrays)
    kept |= {"pixels_coarse": coarse.float().numpy(), "pixels_size": np.array(pixels.shape[2:])}
    if "feature" in kept:
        kept["feature"] = kept["feature"][:, ::16]
    return kept


whole = without()

CASES: dict[str, Part] = {
    "cdclip/cda": whole,
    "cdclip/dice_weclip_plus": whole,
    "cdclip/sbe": whole,
    "clims/cam_fusion": whole,
    "clims/cct_icnr": whole,
    "clims/cct_losses": whole,
    "clims/cct_metrics": whole,
    "clims/cct_pairwise": whole,
    "clims/cct_poly_lr": whole,
    "clims/cct_psp": whole,
    "clims/cct_rampup": whole,
    "clims/cct_upsample_head": corner,
    "clims/clims_losses_current": whole,
    "clims/clims_simloss_curve": whole,
    "clims/crf_deeplab": whole,
    "clims/crf_psa": whole,
    "clims/deeplab_loss": whole,
    "clims/deeplab_metric": whole,
    "clims/deeplab_poly_lr": whole,
    "clims/deeplab_shapes": whole,
    "clims/irn_affinity_labels_r10": whole,
    "clims/irn_imutils": only("lab", "lab_quarter_nearest"),
    "clims/irn_losses": without("pair_disp"),
    "clims/irn_path_index_r10": whole,
    "clims/irn_path_index_r5": whole,
    "clims/irn_propagate_t2": whole,
    "clims/irn_shapes": whole,
    "clims/poly_optimizer": whole,
    "clims/psa_affinity_labels_loss": whole,
    "clims/psa_la_ha_combine": whole,
    "clims/psa_pair_indices_r5": whole,
    "clims/strided_sizes": whole,
    "clip-es/boxes_unit": whole,
    "clip-es/eval_unit": whole,
    "clip-es/posemb_A": only("pos_7x10", "pos_1x5"),
    "clip-es/posemb_B": only("pos_7x10", "pos_1x5"),
    "clip-es/scale_unit": without("in_a", "size_wh_a", "out_a", "in_b", "size_wh_b", "out_b"),
    "clip-es/text_A": without("templates", "voc_fg_two_templates"),
    "clip-es/text_B": without("templates", "voc_fg_two_templates"),
    "clip-es/tokens": only("ids_voc_fg", "ids_voc_bg", "ids_coco_fg", "ids_coco_bg", "ids_extra"),
    "mctformer/forward_64": whole,
    "mctformer/forward_90x117": without("patch_attention_sum"),
    "mctformer/schedule": whole,
    "mctformer/seed_maps_v1": whole,
    "mctformer/seed_maps_v2": whole,
    "mctformer/training_loss": without("grad_blocks.4.mlp.fc2.weight"),
    "mctformer/weights": without("norm.weight", "norm.bias"),
    "pot/network_infer": coarse_pixels,
    "pot/network_train": coarse_pixels,
    "weakclip/forward_128": without("pixels", "pyramid0", "pyramid1", "neck0", "neck1"),
    "weakclip/losses_b2": only("crf_image", "crf_prob", "crf_q"),
    "weakclip/schedule": whole,
    "weakclip/weights_weakclip": whole,
    "weclip/decoder_weights": whole,
    "weclip/losses": without("seg_logits", "seg_loss"),
    "weclip/rfm": without("label_png", "keys", "mhsa_mean8_refined_highres", "rfm_refined_highres"),
    "weclip/step_early": whole,
    "weclip/step_late": whole,
}
"""Case -> the part of it that is kept here."""


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; pickles are refused."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


if __name__ == "__main__":
    for case, part in CASES.items():
        target = FROZEN / f"{case}.npz"
        target.parent.mkdir(exist_ok=True)
        np.savez_compressed(target, **part(read(GOLDEN / f"{case}.npz")))
