"""Affinity and propagation against loops and matrix powers written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tag2mask.ops.affinity import (
    AFFINITIES,
    choose_layers,
    make_affinity,
    propagate,
    sinkhorn,
    spread,
    symmetric_affinity,
)
from tag2mask.ops.boxes import box_masks


def positive(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3 + 0.01


def by_loop(attention, rounds):
    """Columns first, then rows."""
    a = attention.copy()
    for _ in range(rounds):
        for j in range(a.shape[1]):
            a[:, j] /= a[:, j].sum()
        for i in range(a.shape[0]):
            a[i] /= a[i].sum()
    return a


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_sinkhorn_is_columns_then_rows(rounds):
    a = positive(7, 7)
    np.testing.assert_allclose(sinkhorn(a, rounds).numpy(), by_loop(a.numpy(), rounds), rtol=1e-10)


def test_three_rounds_unless_told_otherwise():
    a = positive(7, 7)
    assert not torch.allclose(sinkhorn(a, 3), sinkhorn(a, 4), atol=1e-8)
    assert torch.equal(sinkhorn(a), sinkhorn(a, 3))
    assert torch.equal(symmetric_affinity(a), symmetric_affinity(a, 3))


def test_sinkhorn_of_a_stack_is_matrix_by_matrix():
    a = positive(2, 5, 5)
    out = sinkhorn(a)
    for one, got in zip(a, out, strict=True):
        np.testing.assert_allclose(got.numpy(), by_loop(one.numpy(), 3), rtol=1e-10)


def test_an_attention_must_be_square():
    with pytest.raises(ValueError, match="square"):
        sinkhorn(positive(3, 4))


def test_symmetric_affinity():
    a = positive(2, 6, 6)
    out = symmetric_affinity(a, 2)
    torch.testing.assert_close(out, out.transpose(1, 2), rtol=0, atol=0)
    for one, got in zip(a.numpy(), out, strict=True):
        d = by_loop(one, 2)
        np.testing.assert_allclose(got.numpy(), (d + d.T) / 2, rtol=1e-10)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_propagation_is_a_matrix_power_from_the_left(steps):
    affinity, maps = positive(5, 5), positive(3, 5, seed=1)  # not symmetric, so that a lost transpose is seen
    power = np.linalg.matrix_power(affinity.numpy(), steps)
    expected = np.array([[sum(power[i, j] * m[j] for j in range(5)) for i in range(5)] for m in maps.numpy()])
    np.testing.assert_allclose(propagate(affinity, maps, None, steps).numpy(), expected, rtol=1e-10)


def test_the_mask_cuts_sources_not_targets():
    affinity, maps = positive(5, 5), positive(2, 5, seed=1)
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.float64)
    before = maps.clone()
    power = affinity.numpy() @ affinity.numpy()
    expected = (power @ (maps * mask).numpy().T).T  # cut once, before the first step
    out = propagate(affinity, maps, mask, 2)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-10)
    assert (out > 0).all()  # it spreads beyond the mask
    assert torch.equal(maps, before)


# --- sources, rectifiers and settings ------------------------------------------------------------------------


def test_the_side_counts_where_the_affinity_is_not_symmetric():
    a, maps = positive(6, 6), positive(2, 6, seed=1)
    power = torch.linalg.matrix_power(a, 3)
    torch.testing.assert_close(propagate(a, maps, None, 3), maps @ power.T)
    torch.testing.assert_close(propagate(a, maps, None, 3, side="leaving"), maps @ power)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="same grid"):
        propagate(positive(6, 6), positive(2, 5), None, 1)


def test_layers_near_the_decoder():
    """By loops: signed, the decoder's affinity counts for nothing; of absolute differences it decides."""
    layers, decoder = positive(5, 4, 4) / 10, positive(4, 4, seed=1)
    for how in ("signed", "abs"):
        apart = [decoder - layer for layer in layers]
        away = [float(each.abs().sum() if how == "abs" else each.sum()) for each in apart]
        kept = [layer for layer, d in zip(layers, away, strict=True) if d <= sum(away) / len(away)]
        assert 0 < len(kept) < 5
        torch.testing.assert_close(choose_layers(layers, decoder, how), torch.stack(kept).mean(0))
    torch.testing.assert_close(choose_layers(layers, None, "all"), layers.mean(0))
    torch.testing.assert_close(choose_layers(layers, None, "signed"), choose_layers(layers, decoder, "signed"))
    with pytest.raises(ValueError, match="without one"):
        choose_layers(layers, None, "abs")


def test_layers_that_are_all_alike_are_all_kept():
    layers = positive(1, 4, 4).expand(6, -1, -1)
    for how in ("signed", "abs"):
        torch.testing.assert_close(choose_layers(layers, positive(4, 4, seed=1), how), layers[0])


def test_layers_are_chosen_image_by_image():
    layers, decoder = positive(2, 5, 4, 4), positive(2, 4, 4, seed=1)
    for how in ("signed", "abs"):
        both = choose_layers(layers, decoder, how)
        for i in range(2):
            torch.testing.assert_close(both[i], choose_layers(layers[i], decoder[i], how))


@pytest.mark.parametrize(("name", "key"), [("caa", "mhsa_mean8"), ("rfm", "rfm")])
def test_spreads_as_weclip(golden, name, key):
    arrays = {k: torch.from_numpy(v) for k, v in golden("weclip/rfm").items() if v.dtype == np.float32}
    layers = torch.cat([arrays["attn_layers_1_11"], arrays["attn_layer_12"]])[:, 1:, 1:]
    settings = replace(AFFINITIES[name], keep_edges=False)
    decoder = arrays["seg_affinity"][0]
    affinity = make_affinity(
        choose_layers(layers[-settings.layers :], decoder, settings.choose), settings, decoder=decoder
    )
    if name == "caa":
        torch.testing.assert_close(affinity @ affinity, arrays["trans_mat_mean8"], rtol=0, atol=1e-5)
    got = spread(affinity, arrays["gray_cam"], settings)
    torch.testing.assert_close(got, arrays[f"{key}_refined_lowres"], rtol=0, atol=1e-5)


def test_settings_are_pieces_that_compose():
    attention, decoder = positive(9, 9), positive(9, 9, seed=1)
    maps = positive(2, 3, 3, seed=2).clamp(0, 1)
    plain = make_affinity(attention, AFFINITIES["mhsa"])
    torch.testing.assert_close(plain, symmetric_affinity(attention))
    torch.testing.assert_close(
        make_affinity(attention, AFFINITIES["rfm"], decoder=decoder), symmetric_affinity(attention * decoder)
    )
    torch.testing.assert_close(spread(plain, maps, AFFINITIES["none"]), maps)
    boxes = box_masks(maps, 0.4).flatten(1)
    torch.testing.assert_close(
        spread(plain, maps, AFFINITIES["caa"]).flatten(1), propagate(plain, maps.flatten(1), boxes, 2)
    )
    both = make_affinity(attention, AFFINITIES["cda+rfm"], decoder=decoder, factor=attention)
    torch.testing.assert_close(both, symmetric_affinity(attention * decoder * attention))


@pytest.mark.parametrize("name", ["rfm", "cda", "cda+rfm"])
def test_what_the_settings_need_must_be_given(name):
    with pytest.raises(ValueError, match="was not given"):
        make_affinity(positive(4, 4), AFFINITIES[name])
