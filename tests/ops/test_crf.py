"""The dense CRF against an exact filter, and against what must hold for any CRF."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tag2mask.ops import crf as ops
from tag2mask.ops import crf_torch, lattice
from tag2mask.ops.crf import (
    CRF,
    dense_crf,
    dense_crf_batch,
    preset,
    unary_from_labels,
    wrap_bgr,
)
from tag2mask.ops.crf_labels import select

pytestmark = pytest.mark.usefixtures("crf_engine")

FROZEN = Path(__file__).parent / "regression" / "crf.npz"


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A disc and a bar over a shaded ground, with noise: (3, H, W) uint8."""
    g = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[:height, :width]
    image = np.stack([60 + 60 * x / max(width, 2), 90 + 40 * y / max(height, 2), 70 + 0 * x])
    disc = (x - 0.35 * width) ** 2 + (y - 0.45 * height) ** 2 < (0.27 * min(height, width)) ** 2
    bar = (x > 0.7 * width) & (y > 0.2 * height)
    image[:, disc] = np.array([[190.0], [70], [60]])
    image[:, bar] = np.array([[70.0], [120], [200]])
    image = image + g.integers(-6, 7, image.shape)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


def energies(classes: int, height: int, width: int, seed: int = 0, strength: float = 1.5) -> torch.Tensor:
    """Smooth random energies (C, H, W), made of exact integers so that every machine draws the same."""
    g = np.random.Generator(np.random.PCG64(100 + seed))
    coarse = torch.from_numpy(g.integers(-64, 65, (1, classes, 6, 8)).astype(np.float32) / 32)
    return strength * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0]


def exact(image: torch.Tensor, unary: torch.Tensor, crf: CRF) -> torch.Tensor:
    """Mean field with every pair of pixels, in float64, written from the paper's equations."""
    c, h, w = unary.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([x.flatten(), y.flatten()], dim=1).double()  # (N, 2)
    color = image.flatten(1).T.double()  # (N, 3)
    kernels = []
    if crf.spatial:
        kernels.append((crf.spatial[1], place / crf.spatial[0]))
    if crf.bilateral:
        sxy, srgb, weight = crf.bilateral
        kernels.append((weight, torch.cat([place / sxy, color / srgb], dim=1)))
    total = torch.zeros(h * w, h * w, dtype=torch.float64)
    for weight, f in kernels:
        k = torch.exp(-torch.cdist(f, f).square() / 2)  # (N, N), self included
        n = k.sum(dim=1).rsqrt()
        total += weight * n[:, None] * k * n
    q = torch.softmax(-unary.double().flatten(1), dim=0)  # (C, N)
    for _ in range(crf.iterations):
        q = torch.softmax(-unary.double().flatten(1) + q @ total, dim=0)
    return q.view(c, h, w)


def seeds(classes: int, height: int, width: int, seed: int) -> torch.Tensor:
    """What a CAM gives: the regions of the picture blurred, with smooth errors; energies (C, H, W)."""
    clean = picture(height, width, seed).float()
    red, blue = clean[0] > 160, clean[2] > 160
    regions = torch.stack([~(red | blue), red | blue] if classes == 2 else [~(red | blue), red, blue])
    blurred = F.avg_pool2d(regions[None].float(), 9, 1, 4, count_include_pad=False)[0]
    score = F.pad(4 * blurred, (0, 0, 0, 0, 0, classes - len(blurred)), value=1)
    return 0.4 * energies(classes, height, width, seed) - score


@pytest.mark.parametrize("name", ["clip-es", "irn", "psa", "weakclip", "weclip"])
@pytest.mark.parametrize("classes", [2, 4])
def test_is_close_to_the_exact_filter(name, classes):
    """Energies follow the picture: where they do not, an approximation may rightly end elsewhere."""
    image, unary = picture(24, 32), seeds(classes, 24, 32, 0)
    q, truth = dense_crf(image, unary, preset(name)), exact(image, unary, preset(name))
    assert (q.argmax(0) == truth.argmax(0)).float().mean() >= 0.98
    assert (q - truth).abs().mean() <= 1e-2
    start = torch.softmax(-unary, dim=0)
    assert (start - truth).abs().mean() > 4e-2  # else agreement says nothing


@pytest.mark.parametrize(
    ("crf", "bound"),
    [
        (CRF((2, 2), None, iterations=1), 4e-3),
        (CRF((5, 3), None, iterations=1), 4e-3),
        (CRF(None, (20, 20, 2), iterations=1), 1e-2),
        (CRF(None, (4, 60, 2), iterations=1), 1e-2),
        (CRF(None, (40, 10, 2), iterations=1), 1e-2),
    ],
)
def test_each_kernel_alone_is_close_to_the_exact_filter(crf, bound):
    image, unary = picture(24, 32, seed=3), energies(3, 24, 32, seed=4, strength=3)
    q, truth = dense_crf(image, unary, crf), exact(image, unary, crf)
    assert (q - truth).abs().mean() <= bound


@pytest.mark.parametrize("d", [2, 5])
def test_filter_is_a_gaussian_with_itself_and_symmetric_normalisation(d):
    g = torch.Generator().manual_seed(d)
    f = torch.rand(d, 300, generator=g) * 2
    k = torch.exp(-torch.cdist(f.T, f.T).square() / 2)
    n = k.sum(dim=1).rsqrt()
    exact_filter = n[:, None] * k * n
    own = lattice.build(f)(torch.eye(300))
    assert (own - exact_filter).abs().sum(dim=1).mean() <= 0.25  # of rows that sum to about 1
    assert own.sum() == pytest.approx(exact_filter.sum().item(), rel=2e-2)
    # the blur runs along the directions in turn, and a missing vertex breaks its symmetry a little
    assert (own - own.T).abs().max() <= 0.2 * own.max()


def test_the_impulse_response_has_unit_variance():
    line = torch.zeros(2, 401)
    line[0] = torch.linspace(-10, 10, 401)
    own = lattice.build(line)(torch.eye(401)[:, 200:201])[:, 0]  # an impulse at 0
    assert (own * line[0].square()).sum() / own.sum() == pytest.approx(1, rel=0.1)
    assert (own * line[0]).sum() / own.sum() == pytest.approx(0, abs=0.02)


def test_barycentric_weights_are_a_partition_that_gives_back_the_point():
    f = (torch.rand(5, 500, generator=torch.Generator().manual_seed(1)) - 0.3) * 50
    quotient, rank, weights = lattice._simplices(f)
    assert weights.min() >= -1e-5
    assert torch.allclose(weights.sum(0), torch.ones(500), atol=1e-5)
    assert torch.equal(rank.sort(dim=0)[0], torch.arange(6, dtype=torch.int8)[:, None].expand(6, 500))
    # corner k has coordinates 6 q + k, less 6 where rank > 5 - k: their mean is the elevated point
    corners = [6 * quotient + k - 6 * (rank[:5] > 5 - k) for k in range(6)]
    point = sum(w * c for w, c in zip(weights, corners, strict=True))
    scale = [6 * math.sqrt(2 / 3) / math.sqrt(i * (i + 1)) for i in range(1, 6)]
    elevated = [
        sum(f[j] * scale[j] for j in range(i, 5)) - (i * f[i - 1] * scale[i - 1] if i else 0) for i in range(5)
    ]
    assert torch.allclose(point, torch.stack(elevated), atol=2e-3)


def test_neighbours_are_those_of_a_dictionary():
    f = torch.rand(3, 2000, generator=torch.Generator().manual_seed(1)) * 8
    quotient, rank, _ = lattice._simplices(f)
    corners = set()
    for k in range(4):
        shift = k - 4 * (rank > 3 - k).long()
        first = torch.cat([4 * quotient, -4 * quotient.sum(0, keepdim=True)]).long()  # the last from the others
        corners |= set(map(tuple, (first + shift).T.tolist()))
    found = lattice.build(f).neighbours.view(4, -1, 2)
    assert found.shape[1] == len(corners) + 1
    for j in range(4):
        step = [1 - 4 * (i == j) for i in range(4)]
        pairs = sum(tuple(a + b for a, b in zip(c, step, strict=True)) in corners for c in corners)
        v = len(corners)
        assert int((found[j, :v, 0] != v).sum()) == pairs == int((found[j, :v, 1] != v).sum())
        forward = found[j, :v, 0].long()
        has = forward != v
        assert torch.equal(found[j, forward[has], 1].long(), torch.arange(v)[has])


def test_kernels_use_their_own_sigma():
    image, unary = picture(24, 32), energies(3, 24, 32)
    wide, narrow = CRF(None, (60, 5, 8)), CRF(None, (5, 60, 8))
    assert (dense_crf(image, unary, wide) - dense_crf(image, unary, narrow)).abs().mean() > 1e-2


def test_sums_to_one_and_is_float32():
    q = dense_crf(picture(40, 50), energies(7, 40, 50).double(), preset("irn"))
    assert q.shape == (7, 40, 50)
    assert q.dtype == torch.float32
    assert torch.allclose(q.sum(0), torch.ones(40, 50), atol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_without_iterations_it_is_the_softmax(classes):
    unary = energies(classes, 20, 30)
    q = dense_crf(picture(20, 30), unary, CRF((3, 3), (50, 5, 10), iterations=0))
    assert torch.allclose(q, torch.softmax(-unary, dim=0), atol=1e-6)


@pytest.mark.parametrize("crf", [CRF(None, None), CRF((3, 0), (50, 5, 0))])
def test_without_kernels_it_is_the_softmax(crf):
    unary = energies(3, 20, 30)
    assert torch.allclose(dense_crf(picture(20, 30), unary, crf), torch.softmax(-unary, dim=0), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_a_permutation_of_labels_permutes_the_marginals(classes):
    image, unary = picture(30, 40), energies(classes, 30, 40)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(1)).flip(0)
    q, p = dense_crf(image, unary, preset("irn")), dense_crf(image, unary[order], preset("irn"))
    assert torch.allclose(q[order], p, atol=1e-4)


def test_equal_labels_are_merged_without_a_trace(monkeypatch):
    labels = (energies(4, 40, 50).argmax(0) * 5).to(torch.uint8)
    unary = unary_from_labels(labels, 21)
    image = picture(40, 50)
    assert len(select(unary.flatten(1), 0).mass) == 5  # four seen, and one for all the others
    assert sorted(select(unary.flatten(1), 0).mass.tolist()) == [1, 1, 1, 1, 17]
    merged = dense_crf(image, unary, preset("irn"), prune=0)
    apart = unary.clone()
    apart[:, 0, 0] += 1e-4 * torch.arange(21)  # one pixel keeps every label apart
    assert len(select(apart.flatten(1), 0).mass) == 21
    assert (merged - dense_crf(image, apart, preset("irn"), prune=0)).abs().mean() <= 1e-5


def test_labels_that_agree_where_probed_are_not_merged():
    unary = torch.zeros(2, 5000)
    unary[1, 1234] = 1  # between two probes
    assert len(select(unary, 0).mass) == 2


def test_pruning_changes_next_to_nothing():
    large = torch.softmax(-energies(4, 40, 50), dim=0)
    small = 9e-4 * torch.sigmoid(energies(5, 40, 50, seed=1))  # below 1e-3 everywhere, different from each other
    unary = -torch.cat([large * (1 - small.sum(0)), small]).log()
    image = picture(40, 50)
    assert len(select(unary.flatten(1), 1e-3).mass) == 4
    pruned, full = dense_crf(image, unary, preset("irn")), dense_crf(image, unary, preset("irn"), prune=0)
    assert (pruned - full).abs().mean() <= 1e-5
    once = dense_crf(image, unary, CRF((3, 0.1), None, 1))  # little message: the small ones still weigh
    assert torch.allclose(once.sum(0), torch.ones(40, 50), atol=1e-5)
    assert (once[4:] > 1e-5).all()


def test_many_small_labels_are_never_all_pruned():
    unary = torch.rand(80, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.softmax(-unary, dim=0).max() < 0.05
    q = dense_crf(picture(6, 7), unary, CRF((3, 3), (80, 13, 10), iterations=2), prune=0.05)
    assert torch.allclose(q.sum(0), torch.ones(6, 7), atol=1e-5)
    assert (q - dense_crf(picture(6, 7), unary, CRF((3, 3), (80, 13, 10), iterations=2), prune=0)).abs().max() < 1e-5


def test_many_labels_in_chunks_are_as_all_at_once(monkeypatch):
    image, unary = picture(30, 40), energies(11, 30, 40)
    whole = dense_crf(image, unary, preset("irn"))
    monkeypatch.setattr(crf_torch, "_WIDEST", 4)
    assert torch.allclose(dense_crf(image, unary, preset("irn")), whole, atol=1e-4)


def test_two_labels_are_as_two_of_three():
    image, unary = picture(30, 40), energies(2, 30, 40)
    third = torch.full((1, 30, 40), 60.0)
    both = dense_crf(image, unary, preset("clip-es"))
    general = dense_crf(image, torch.cat([unary, third]), preset("clip-es"), prune=0)
    assert torch.allclose(both, general[:2], atol=1e-4)


SIZES = [(20, 30), (20, 30), (17, 9), (1, 1), (25, 31)]


@pytest.mark.parametrize("joint", [dense_crf_batch, lambda i, u, c: ops._joint(i, u, c, 1e-3)])
def test_a_batch_is_as_one_by_one(joint):
    """The second way is the one that CUDA takes: all pictures in one lattice, always by torch."""
    images = [picture(*s, seed=i) for i, s in enumerate(SIZES)]
    unaries = [energies(c, *s, seed=i) for i, (s, c) in enumerate(zip(SIZES, [3, 3, 2, 1, 6], strict=True))]
    unaries[4][5] += 20  # pruned
    unaries[1][2] = unaries[1][0]  # merged
    together = joint(images, unaries, preset("irn"))
    for image, unary, q in zip(images, unaries, together, strict=True):
        alone = dense_crf(image, unary, preset("irn"))
        assert q.shape == alone.shape
        assert (q - alone).abs().max() <= 1e-4


def test_joint_flat_pictures_keep_apart():
    images = [torch.full((3, 40, 50), 90, dtype=torch.uint8)] * 3
    unaries = [energies(3, 40, 50, seed=i) for i in range(3)]
    for i, q in enumerate(ops._joint(images, unaries, preset("psa"), 0)):
        assert (q - dense_crf(images[i], unaries[i], preset("psa"), prune=0)).abs().max() <= 1e-4


def test_an_empty_batch_is_empty():
    assert dense_crf_batch([], [], preset("irn")) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (2, 2)])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_tiny_pictures(size, classes):
    unary = energies(classes, *size, strength=6)
    q, truth = dense_crf(picture(*size), unary, preset("irn")), exact(picture(*size), unary, preset("irn"))
    assert q.shape == unary.shape
    assert torch.allclose(q.sum(0), torch.ones(size), atol=1e-5)
    assert (q - truth).abs().mean() <= 0.1


def test_a_strip_of_20000_pixels():
    image = picture(30, 100).repeat(1, 1, 200)
    q = dense_crf(image, energies(2, 30, 20000), CRF((3, 3), (50, 5, 10), iterations=1))
    assert q.shape == (2, 30, 20000)
    assert torch.isfinite(q).all()
    lattice.SPATIAL.clear()


def test_long_bags_are_cut_and_sum_to_the_same(monkeypatch):
    flat = torch.full((3, 60, 80), 128, dtype=torch.uint8)
    unary = energies(3, 60, 80)
    features = torch.cat([lattice.positions(60, 80, 80, torch.device("cpu")), flat.flatten(1) / 13])
    cut = lattice.build(features)
    assert cut.pieces is not None
    assert int(torch.diff(cut.starts).max()) <= lattice._PIECE
    q = dense_crf(flat, unary, preset("psa"))
    monkeypatch.setattr(lattice, "_PIECE", 10**9)
    assert lattice.build(features).pieces is None
    assert (q - dense_crf(flat, unary, preset("psa"))).abs().max() <= 1e-4


def test_two_runs_give_equal_bytes():
    image, unary = picture(60, 80), energies(4, 60, 80)
    first = dense_crf(image, unary, preset("clip-es"))
    lattice.SPATIAL.clear()
    assert torch.equal(first, dense_crf(image, unary, preset("clip-es")))


def test_inputs_are_left_alone():
    image, unary = picture(20, 30), energies(3, 20, 30)
    before = image.clone(), unary.clone()
    dense_crf(image, unary.requires_grad_(), preset("irn"))
    assert torch.equal(image, before[0])
    assert torch.equal(unary, before[1])


def test_autocast_changes_nothing():
    image, unary = picture(20, 30), energies(3, 20, 30)
    with torch.autocast("cpu", torch.bfloat16):
        inside = dense_crf(image, unary, preset("irn"))
    assert torch.equal(inside, dense_crf(image, unary, preset("irn")))


def test_huge_weights_do_not_overflow():
    q = dense_crf(picture(20, 30), energies(3, 20, 30), CRF((3, 500), (50, 5, 2000)), prune=0)
    assert torch.isfinite(q).all()
    assert torch.allclose(q.sum(0), torch.ones(20, 30), atol=1e-5)


def test_the_spatial_cache_is_bounded():
    cache = lattice.LatticeCache(lattice.over_position, count=2)
    device = torch.device("cpu")
    first = cache.get(5, 6, 3.0, device)
    assert cache.get(5, 6, 3.0, device) is first
    assert cache.get(6, 5, 3.0, device) is not first
    cache.get(5, 6, 1.0, device)  # the first is the oldest now
    assert len(cache) == 2
    assert cache.get(5, 6, 3.0, device) is not first
    small = lattice.LatticeCache(lattice.over_position, nbytes=first.nbytes)
    small.get(5, 6, 3.0, device)
    small.get(50, 60, 3.0, device)
    assert len(small) <= 1


def test_features_too_wide_for_the_keys_are_refused():
    with pytest.raises(ValueError, match="use a larger sigma"):
        lattice.build(torch.rand(5, 100) * 1e6)


def frozen_case() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A picture drawn here, and what five settings make of it."""
    image = picture(60, 80, seed=7)
    soft, many = energies(3, 60, 80, seed=7), energies(9, 60, 80, seed=8, strength=4)
    hard = unary_from_labels(energies(4, 60, 80, seed=9).argmax(0) * 5, 21)
    return image, {
        "clip_es": dense_crf(image, soft, preset("clip-es")),
        "clip_es_two": dense_crf(image, soft[:2], preset("clip-es"))[:1],
        "irn_hard": dense_crf(image, hard, preset("irn"))[[0, 1, 5]],
        "psa_many": dense_crf(image, many, preset("psa"))[:3],
        "bilateral_once": dense_crf(image, soft, CRF(None, (67, 3, 4), 1)),
        "spatial_once": dense_crf(wrap_bgr(image), soft, CRF((3, 3), None, 1)),
        "wrapped": dense_crf(wrap_bgr(image), soft, CRF((1, 3), (67, 3, 4), 2)),
    }


def test_frozen_marginals():
    """Frozen when every golden case passed: a clone without the golden data is guarded too."""
    image, found = frozen_case()
    with np.load(FROZEN, allow_pickle=False) as arrays:
        assert torch.equal(image, torch.from_numpy(arrays["image"]))
        for name, q in found.items():
            expected = torch.from_numpy(arrays[name]).float() / 65535
            assert (q - expected).abs().mean() <= 2e-5, name
            assert (q - expected).abs().max() <= 5e-3, name


if __name__ == "__main__":  # freeze anew: only where the golden cases pass
    drawn, marginals = frozen_case()
    kept = {name: (q * 65535).round().to(torch.int32).numpy().astype(np.uint16) for name, q in marginals.items()}
    np.savez_compressed(FROZEN, image=drawn.numpy(), **kept)
