"""Test time against views written out by hand; tiles against the whole picture."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.ops.refiners import REFINERS
from tag2mask.segment.test_time import PRESETS, TestTime, find_preset, predict, predict_labels
from tag2mask.types import UserError


class Net(nn.Module):
    """A lopsided network of stride 4 that remembers the sizes it has seen."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.two = nn.Conv2d(8, classes, 3, stride=2, padding=1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return self.two(F.relu(self.one(x / 128 - 1))) * 3


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval().requires_grad_(False)


def photo(height: int, width: int, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=g) * 255
    return F.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)


def up(x: Tensor, size: tuple[int, int], align: bool = False) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=align)


@pytest.mark.parametrize("fuse", ["logits", "probs", "max"])
@pytest.mark.parametrize("align", [False, True])
def test_scales_and_mirror_images_written_out(net: Net, fuse: str, align: bool) -> None:
    picture = photo(37, 50)
    x = picture[None].float()
    views = []
    for size in ((37, 50), (18, 25), (56, 75)):  # 18.5 and 55.5: halves to even
        scaled = up(x, size, align) if size != (37, 50) else x
        views += [up(net(scaled), (37, 50), align), up(net(scaled.flip(-1)).flip(-1), (37, 50), align)]
    stack = torch.cat(views)
    if fuse == "logits":
        expected = stack.mean(0).softmax(0)
    else:
        probs = stack.softmax(1)
        expected = probs.mean(0) if fuse == "probs" else probs.amax(0) / probs.amax(0).sum(0)
    settings = TestTime((1.0, 0.5, 1.5), flip=True, fuse=fuse, align_input=align, align_output=align)  # type: ignore
    found = predict(net, picture, settings)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.sum(0), torch.ones(37, 50))
    assert torch.allclose(
        predict(
            net,
            picture,
            TestTime(settings.scales, True, settings.fuse, batch=2, align_input=align, align_output=align),
        ),
        found,
        atol=1e-6,
    )


def test_windows_are_averaged_where_they_overlap(net: Net) -> None:
    picture = photo(30, 45)
    x = picture[None].float()
    total, count = torch.zeros(4, 30, 45), torch.zeros(30, 45)
    for y in (0, 10):  # the last window is flush with the border
        for left in (0, 15, 25):
            part = x[..., y : y + 20, left : left + 20]
            total[:, y : y + 20, left : left + 20] += up(net(part), (20, 20))[0]
            count[y : y + 20, left : left + 20] += 1
    expected = (total / count).softmax(0)
    for batch in (1, 4, 100):
        found = predict(net, picture, TestTime(window=20, stride=15, batch=batch))
        assert torch.allclose(found, expected, atol=1e-6)
    small = photo(20, 12)
    assert torch.equal(predict(net, small, TestTime(window=20, stride=15)), predict(net, small, TestTime()))
    wide = predict(net, photo(12, 50), TestTime(window=20))
    assert torch.isfinite(wide).all()


def test_padding_to_a_multiple_is_reflected_and_cut_off(net: Net) -> None:
    picture = photo(29, 33)
    x = picture[None].float()
    index_y, index_x = [*range(29), 27, 26, 25], [*range(33), *range(31, 24, -1)]
    padded = x[..., index_y, :][..., index_x]
    expected = up(net(padded), (32, 40))[..., :29, :33].softmax(1)[0]
    assert torch.allclose(predict(net, picture, TestTime(multiple=8)), expected, atol=1e-6)
    assert predict(net, photo(3, 2), TestTime(multiple=8)).shape == (4, 3, 2)


def test_labels_and_confidence(net: Net) -> None:
    picture = photo(33, 47)
    probs = predict(net, picture, TestTime())
    labels, confidence = predict_labels(net, picture, TestTime())
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), probs.argmax(0))
    assert torch.equal(confidence, probs.amax(0))
    turned, _ = predict_labels(net, picture, TestTime(), refine=lambda image, p: p.flip(0) * (image.shape[1] == 33))
    assert torch.equal(turned.long(), probs.flip(0).argmax(0))


def test_tiles_give_the_whole_pictures_labels_in_bounded_memory() -> None:
    net = Net().eval()
    picture = photo(168, 228)  # of whole cells: else the cells are stretched a little otherwise
    whole, sure = predict_labels(net, picture, TestTime(tile=1000))
    net.seen.clear()
    boxes: list[tuple[int, ...]] = []

    def note(image: Tensor, probs: Tensor) -> Tensor:
        boxes.append(tuple(image.shape))
        return probs

    tiled, confidence = predict_labels(net, picture, TestTime(tile=64, margin=32), refine=note)
    assert torch.equal(tiled, whole)
    assert torch.allclose(confidence, sure, atol=1e-5)
    assert len(net.seen) == len(boxes) == 3 * 4
    assert max(max(shape[2:]) for shape in net.seen) <= 64 + 2 * 32
    bare, _ = predict_labels(net, picture, TestTime(tile=64, margin=0))
    assert 0 < (bare != whole).float().mean() < 0.1  # what the margin is for


def test_a_longest_side_shrinks_what_the_network_sees() -> None:
    net = Net().eval()
    picture = photo(120, 200)
    labels, confidence = predict_labels(net, picture, TestTime(longest=50, tile=20))
    assert net.seen == [(1, 3, 30, 50)]
    small = F.interpolate(picture[None].float(), (30, 50), mode="bilinear", antialias=True).round()
    probs = up(up(net(small), (30, 50)).softmax(1), (120, 200))[0]
    assert torch.allclose(confidence, probs.amax(0), atol=1e-6)
    assert (labels.long() == probs.argmax(0)).float().mean() > 0.999
    net.seen.clear()
    predict_labels(net, photo(30, 50), TestTime(longest=50))
    assert net.seen == [(1, 3, 30, 50)]


def test_a_result_does_not_depend_on_the_network_mode_of_autograd(net: Net) -> None:
    assert not predict(Net().eval(), photo(16, 16), TestTime()).requires_grad


def test_settings_that_cannot_be_are_refused() -> None:
    for bad, message in (
        ({"scales": ()}, "expected one or more above 0"),
        ({"scales": (1.0, 0.0)}, "expected one or more above 0"),
        ({"scales": (1.0, math.nan)}, "expected one or more above 0"),
        ({"scales": (math.inf,)}, "expected one or more above 0"),
        ({"window": 10, "stride": 11}, "stride=11 and window=10"),
        ({"stride": 11}, "stride=11 and window=None"),
        ({"tile": 0}, "got tile below"),
        ({"batch": 0}, "got batch below"),
        ({"margin": -1}, "got margin below"),
    ):
        with pytest.raises(UserError, match=message):
            TestTime(**bad)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="got a network of 256 classes, expected at most 255"):
        predict_labels(lambda x: torch.zeros(1, 256, 2, 2), photo(8, 8), TestTime())


def test_fit_is_the_size_of_the_view_at_scale_one(net: Net) -> None:
    """As WeakCLIP resizes: the shorter side to 512 as long as the longer one is within 2048."""
    for size, views in (
        ((40, 60), [(64, 96), (32, 48)]),  # the shorter side decides
        ((20, 90), [(57, 256), (28, 128)]),  # the longer one does
    ):
        net.seen.clear()
        labels, _ = predict_labels(net, photo(*size), TestTime((1.0, 0.5), fit=(256, 64)))
        assert [shape[2:] for shape in net.seen] == views
        assert labels.shape == size
    net.seen.clear()
    # tiles of a picture are enlarged as the whole would be
    predict_labels(net, photo(64, 200), TestTime(fit=(1000, 128), tile=64, margin=32))
    assert {shape[2] for shape in net.seen} == {128}
    assert max(shape[3] for shape in net.seen) == 256


def test_presets_are_what_the_papers_do() -> None:
    for name, preset in PRESETS.items():
        assert find_preset(name) is preset
        assert preset.refiner is None or preset.refiner in REFINERS
    weakclip = PRESETS["weakclip"].test
    assert (len(weakclip.scales) * 2, weakclip.window, weakclip.stride, weakclip.fuse) == (12, 512, 341, "probs")
    assert PRESETS["seam"].test.fuse == PRESETS["cct"].test.fuse == "logits"
    assert (PRESETS["mctformer"].test.fuse, PRESETS["mctformer"].test.flip) == ("max", False)
    with pytest.raises(UserError, match="did you mean 'weakclip'"):
        find_preset("weak-clip")
    with pytest.raises(UserError, match="got fit below"):
        TestTime(fit=(0, 5))


def test_further_views_on_the_grid_of_the_first():
    """WeCLIP's own network: the mean of the views is taken on the first one's cells, by hand."""

    def network(pixels):
        return F.avg_pool2d(pixels, 8)

    picture = torch.rand(3, 48, 32, generator=torch.Generator().manual_seed(0)) * 255
    first = network(picture[None])
    half = network(F.interpolate(picture[None], (24, 16), mode="bilinear"))
    mean = (first + F.interpolate(half, first.shape[2:], mode="bilinear")) / 2
    expected = F.interpolate(mean, (48, 32), mode="bilinear").softmax(1)[0]
    settings = TestTime((1.0, 0.5), fuse="logits", first_grid=True)
    torch.testing.assert_close(predict(network, picture, settings), expected)
    assert (predict(network, picture, replace(settings, first_grid=False)) - expected).abs().max() > 1e-3


def test_weclips_views_have_a_longer_side_of_512_pixels():
    sizes = []

    def network(pixels):
        sizes.append(tuple(pixels.shape[2:]))
        return torch.zeros(len(pixels), 2, 1, 1)

    predict(network, torch.zeros(3, 375, 500), replace(PRESETS["weclip"].test, batch=2))
    predict(network, torch.zeros(3, 375, 500), replace(PRESETS["cd-clip"].test, batch=2))
    assert sizes == [(384, 512), (288, 384), (384, 512), (576, 768)]
