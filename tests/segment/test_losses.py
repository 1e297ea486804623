"""The losses against recorded values, the specification's closed forms, and loops over single pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from tag2mask.ops.crf import CRF, dense_crf
from tag2mask.segment import losses
from tag2mask.types import IGNORE, UserError


def batch(seed: int = 0, k: int = 4, size: tuple[int, int] = (5, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, k, *size, generator=g) * 3
    labels = torch.randint(0, k + 1, (2, *size), generator=g)
    return logits, labels.masked_fill(labels == k, IGNORE)


def pixel_ce(logits: torch.Tensor, label: int) -> float:
    """Cross entropy of one pixel from its definition, in Python floats."""
    values = [float(v) for v in logits]
    return math.log(sum(math.exp(v) for v in values)) - values[label]


def by_pixel(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"bg": [], "fg": []}
    for b, y, x in np.ndindex(*labels.shape):
        label = int(labels[b, y, x])
        if label != IGNORE:
            found["fg" if label else "bg"].append(pixel_ce(logits[b, :, y, x], label))
    return found


def test_cross_entropy_counts_only_valid_pixels_or_all() -> None:
    logits, labels = batch()
    found = by_pixel(logits, labels)
    every = found["bg"] + found["fg"]
    assert float(losses.cross_entropy(logits, labels)) == pytest.approx(sum(every) / len(every), rel=1e-5)
    assert float(losses.cross_entropy(logits, labels, divide="all")) == pytest.approx(
        sum(every) / labels.numel(), rel=1e-5
    )
    assert float(losses.cross_entropy(logits, labels, temperature=2)) == pytest.approx(
        float(losses.cross_entropy(logits / 2, labels)), rel=1e-6
    )


def test_balanced_cross_entropy_is_the_mean_of_two_means() -> None:
    logits, labels = batch(1)
    found = by_pixel(logits, labels)
    expected = sum(sum(v) / len(v) for v in found.values()) / 2
    assert float(losses.balanced_cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [0, 2, IGNORE])
def test_no_loss_is_nan_where_a_kind_of_pixel_is_missing(value: int) -> None:
    logits, labels = batch(2)
    labels = torch.full_like(labels, value)
    found = by_pixel(logits, labels)
    every = found["bg"] + found["fg"]
    mean = sum(every) / max(len(every), 1)
    for name, expected in (
        ("cross_entropy", mean),
        ("balanced_cross_entropy", mean / 2),
        ("balanced_seed_loss", mean),
    ):
        x = logits.clone().requires_grad_()
        loss = getattr(losses, name)(x, labels)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4), name
        assert x.grad is not None, name
        assert torch.isfinite(x.grad).all(), name


def test_half_precision_is_summed_in_float32() -> None:
    logits, labels = batch(3, size=(200, 200))
    low = logits.half()
    assert losses.cross_entropy(low, labels).dtype == torch.float32
    assert float(losses.cross_entropy(low, labels)) == pytest.approx(
        float(losses.cross_entropy(low.float(), labels)), rel=1e-6
    )


def test_confidence_guided_loss_both_ways() -> None:
    logits, labels = batch(4)
    confidence = torch.rand(labels.shape, generator=torch.Generator().manual_seed(5))
    confidence[0, 0, 0] = 0.5  # Eq. 9 keeps a pixel at mu itself
    labels[0, 0, 0] = 1
    kept = [
        pixel_ce(logits[b, :, y, x], int(labels[b, y, x]))
        for b, y, x in np.ndindex(*labels.shape)
        if labels[b, y, x] != IGNORE and confidence[b, y, x] >= 0.5
    ]
    loss = losses.confidence_guided_loss(logits, labels, confidence, mu=0.5)
    assert float(loss) == pytest.approx(sum(kept) / len(kept), rel=1e-5)
    from_ignored = losses.cross_entropy(logits, losses.confident_labels(labels, confidence, 0.5))
    assert float(loss) == float(from_ignored)
    every = losses.confidence_guided_loss(logits, labels, confidence, mu=0.5, divide="all")
    assert float(every) == pytest.approx(sum(kept) / labels.numel(), rel=1e-5)
    assert float(losses.confidence_guided_loss(logits, labels, confidence, mu=2.0)) == 0
    with pytest.raises(ValueError, match="expected one shape"):
        losses.confident_labels(labels, confidence[:, 1:], 0.5)


def spec_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The closed-form case of the specification: B = 2, K = 5, 6 x 7, computed in float64 and then cast."""
    b, k, h, w = (
        torch.arange(n, dtype=torch.float64).view([-1 if i == d else 1 for i in range(4)])
        for d, n in enumerate((2, 5, 6, 7))
    )
    logits = (3 * torch.sin(1 + 0.7 * b + 1.3 * k + 0.11 * h + 0.05 * w)).float()
    q = (4 * torch.cos(0.3 + 0.2 * b + 0.9 * k + 0.21 * h - 0.13 * w)).softmax(1).float()
    labels = ((3 * b + 2 * h + w) % 7).long()[:, 0]
    return logits, labels.masked_fill(labels >= 5, IGNORE), q


def test_seed_and_boundary_loss_of_the_specification() -> None:
    logits, labels, q = spec_case()
    logits.requires_grad_()
    seed, boundary = losses.balanced_seed_loss(logits, labels), losses.boundary_loss(logits, q)
    assert float(seed.detach()) == pytest.approx(4.402606, abs=2e-6)
    assert float(boundary.detach()) == pytest.approx(0.397013, abs=2e-6)
    (gradient,) = torch.autograd.grad(seed + boundary, logits)
    assert float(gradient.norm()) == pytest.approx(0.250946, abs=2e-6)
    assert gradient[0, 0, 0, :3].tolist() == pytest.approx([-0.0423728, 0.0086245, 0.0103741], abs=2e-6)
    blank = labels.clone()
    blank[1] = IGNORE
    assert float(losses.balanced_seed_loss(logits.detach(), blank)) == pytest.approx(2.119778, abs=2e-6)
    assert float(losses.cross_entropy(logits.detach(), labels, divide="all")) == pytest.approx(2.275640, abs=2e-6)
    assert float(losses.cross_entropy(logits.detach(), labels)) == pytest.approx(3.185896, abs=2e-6)


def test_a_label_beyond_the_classes_is_no_seed() -> None:
    logits, labels, _ = spec_case()
    other = labels.masked_fill(labels == IGNORE, 7)
    assert torch.equal(losses.balanced_seed_loss(logits, labels), losses.balanced_seed_loss(logits, other))


def test_boundary_loss_clips_the_ratio_and_its_gradient() -> None:
    logits = torch.tensor([12.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    q = torch.tensor([0.02, 0.98]).view(1, 2, 1, 1).requires_grad_()
    loss = losses.boundary_loss(logits, q)
    assert float(loss.detach()) == pytest.approx(0.02 * math.log(0.05) + 0.98 * math.log(20), rel=1e-4)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert q.grad is None


def test_boundary_loss_raises_and_normalises_the_refined() -> None:
    logits = torch.zeros(1, 3, 1, 1)
    q = torch.tensor([0.0, 0.5, 0.5]).view(1, 3, 1, 1)
    raised = [v / 1.0001 for v in (1e-4, 0.5, 0.5)]
    expected = sum(v * math.log(max(v * 3, 0.05)) for v in raised)
    assert float(losses.boundary_loss(logits, q)) == pytest.approx(expected, rel=1e-5)


def test_a_single_seed_weighs_as_much_as_many() -> None:
    logits, labels = batch(9)
    labels = torch.full_like(labels, IGNORE)
    labels[0, 2, 3], labels[1, 0, 0] = 2, 0
    expected = pixel_ce(logits[0, :, 2, 3], 2) / 2 + pixel_ce(logits[1, :, 0, 0], 0) / 2
    assert float(losses.balanced_seed_loss(logits, labels)) == pytest.approx(expected, rel=1e-5)


def test_refine_is_the_crf_of_the_floored_softmax() -> None:
    logits, _ = batch(6, k=3, size=(8, 9))
    images = torch.randint(0, 256, (2, 3, 8, 9), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    crf = CRF((3, 3), (20, 13, 10), iterations=3)
    q = losses.refine(images, logits.requires_grad_(), crf)
    assert not q.requires_grad
    p = logits.detach().softmax(1).clamp(min=1e-4)
    for i in range(2):
        expected = dense_crf(images[i], -p[i].log(), crf)
        assert torch.allclose(q[i], expected, atol=1e-4)


def test_shrunk_images_are_scipy_zoom_of_order_one() -> None:
    image = torch.randint(0, 256, (1, 3, 40, 56), generator=torch.Generator().manual_seed(8), dtype=torch.uint8)
    small = losses.shrink_to_corners(image, (10, 7))[0].numpy()
    expected = ndimage.zoom(image[0].double().numpy(), (1, 10 / 40, 7 / 56), order=1)
    assert np.array_equal(small, (expected + 1e-6).astype(np.uint8))  # scipy may fall just below a whole level


def test_resized_labels_are_pils_nearest() -> None:
    g = np.random.default_rng(0)
    for H, W, h, w in [
        (33, 33, 9, 9),
        (321, 200, 41, 25),
        (7, 5, 14, 15),
        (40, 90, 12, 7),
        (1, 1, 3, 4),
        (60, 77, 60, 20),
    ]:
        labels = g.integers(0, 256, (H, W)).astype(np.uint8)
        expected = np.asarray(Image.fromarray(labels).resize((w, h), Image.Resampling.NEAREST))
        assert np.array_equal(losses.resize_labels(torch.from_numpy(labels), (h, w)).numpy(), expected), (H, W, h, w)


def test_labels_outside_the_classes_are_named() -> None:
    losses.check_labels(torch.tensor([0, 3, IGNORE]), 4, "a.png")
    with pytest.raises(UserError, match=r"a\.png: got mask value 4, 9, expected 0\.\.3 or 255"):
        losses.check_labels(torch.tensor([0, 4, 9, IGNORE]), 4, "a.png")


def test_golden_deeplab(golden) -> None:
    data = golden("clims/deeplab_loss")
    logits, labels = torch.from_numpy(data["logits"]), torch.from_numpy(data["labels"])
    small = losses.resize_labels(labels, (9, 9))
    assert np.array_equal(small.numpy(), data["labels_resized_9"])
    assert float(losses.balanced_cross_entropy(logits, small)) == pytest.approx(float(data["balanced"]), rel=1e-5)
    assert float(losses.cross_entropy(logits, small)) == pytest.approx(float(data["ce"]), rel=1e-5)
    without = small.masked_fill((small > 0) & (small < IGNORE), 0)
    assert torch.isfinite(losses.balanced_cross_entropy(logits, without))


def test_golden_cct_cross_entropy(golden) -> None:
    data = golden("clims/cct_losses")
    logits, labels = torch.from_numpy(data["logits"]), torch.from_numpy(data["target"])
    assert float(losses.cross_entropy(logits, labels)) == pytest.approx(float(data["ce"]), rel=1e-5)
    warm = losses.cross_entropy(logits, labels, temperature=2)
    assert float(warm) == pytest.approx(float(data["ce_temp2"]), rel=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, labels = batch()
    with pytest.raises(ValueError, match=r"expected \(B, K, h, w\) and \(B, h, w\)"):
        losses.cross_entropy(logits, labels[:, 1:])
    with pytest.raises(ValueError, match="expected one shape"):
        losses.boundary_loss(logits, F.pad(logits, (0, 1)))
