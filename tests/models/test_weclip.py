"""WeCLIP's network: a recorded training step before and after the switch, and how it deals with any picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from golden_models import golden_clip
from tag2mask.models.clip import VisionTransformer
from tag2mask.models.dino import DINOTower
from tag2mask.models.tower import Each, Mean, Positions
from tag2mask.models.weclip import WeCLIPNet, class_cams, look
from tag2mask.ops.affinity import AFFINITIES, choose_layers, make_affinity, spread
from tag2mask.ops.cam import min_max, normalise_cam, score_cotangents
from tag2mask.ops.decoder_affinity import affinity_loss, affinity_targets, decoder_affinity
from tag2mask.ops.masks import upsample
from tag2mask.ops.par import par
from tag2mask.segment.losses import balanced_cross_entropy
from tiny_clips import shake

RELEASED = Positions(round_fp16=True)


@pytest.fixture(scope="module")
def clip(golden):
    return golden_clip(golden, "B").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def texts(golden):
    arrays = golden("clip-es/text_B", "voc_fg", "voc_bg")
    return torch.from_numpy(arrays["voc_fg"]).float(), torch.from_numpy(arrays["voc_bg"]).float()


@pytest.fixture(scope="module", params=["step_early", "step_late"])
def case(request, golden):
    arrays = {name: torch.from_numpy(array) for name, array in golden(f"weclip/{request.param}").items()}
    name = "caa" if request.param == "step_early" else "rfm"
    return replace(AFFINITIES[name], keep_edges=False), arrays


@pytest.fixture
def net(golden, clip):
    net = WeCLIPNet(clip.vision, 21, width=32, positions=RELEASED).eval()
    state = {name: torch.from_numpy(array).float() for name, array in golden("weclip/decoder_weights").items()}
    found = net.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert {name.split(".")[0] for name in found.missing_keys} == {"tower"}
    return net


def test_a_whole_step(net, clip, texts, case):
    settings, wanted = case
    seen = look(clip.vision, wanted["pixels"], 8, RELEASED)
    found = net.decode(seen.taps, seen.grid)
    fused, logits, affinity = found.features, found.logits, decoder_affinity(found.features)
    torch.testing.assert_close(fused, wanted["fused"], rtol=0, atol=5e-4)
    torch.testing.assert_close(logits, wanted["seg_logits"], rtol=0, atol=1e-3)
    torch.testing.assert_close(affinity, wanted["affinity"], rtol=0, atol=1e-4)

    tags = wanted["labels"][0][wanted["labels"][0] > 0]
    said = torch.cat([texts[0][tags - 1], texts[1]])
    scale = float(clip.logit_scale.exp())
    cams = normalise_cam(class_cams(clip.vision, seen, 0, said, len(tags), scale)).view(-1, *seen.grid)
    torch.testing.assert_close(cams, wanted["gradcam"], rtol=0, atol=1e-3)

    chosen = choose_layers(seen.attentions[0, -settings.layers :], affinity[0].detach(), settings.choose)
    matrix = make_affinity(chosen, settings, decoder=affinity[0].detach())
    refined = spread(matrix, wanted["gradcam"], settings)
    torch.testing.assert_close(refined, wanted["refined"], rtol=0, atol=1e-4)
    maps = upsample(min_max(refined.flatten(1)).view_as(refined), (96, 80))
    scores = torch.cat([1 - maps.amax(0, keepdim=True), maps])[None]
    labels = torch.cat([tags.new_zeros(1), tags])[par(wanted["pixels"], scores)[0].argmax(0)]
    assert (labels == wanted["pseudo_label"][0]).float().mean() >= 0.995

    labels = wanted["pseudo_label"]
    targets = affinity_targets(labels, seen.grid, int(wanted["radius"]))
    assert torch.equal(targets, wanted["aff_label"])
    first, second = (
        balanced_cross_entropy(upsample(logits[0], (96, 80))[None], labels),
        affinity_loss(affinity, targets),
    )
    torch.testing.assert_close(first, wanted["loss_seg"], rtol=0, atol=1e-3)
    torch.testing.assert_close(second, wanted["loss_aff"], rtol=0, atol=1e-3)
    total = first + 0.1 * second
    torch.testing.assert_close(total, wanted["total"], rtol=0, atol=1e-3)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    for name in (name for name in wanted if name.startswith("grad_")):
        bound = 5e-3 * float(wanted[name].abs().max())
        torch.testing.assert_close(gradients[name.removeprefix("grad_")], wanted[name], rtol=0, atol=bound)
    assert all(grad is None for name, grad in gradients.items() if name.startswith("tower."))


# --- a tiny tower ------------------------------------------------------------------------------------------------


def tower(layers=4):
    vision = VisionTransformer(width=48, layers=layers, heads=3, patch=8, native_grid=(4, 4), embed=24)
    return shake(vision).eval().requires_grad_(False)


def pictures(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_look_is_the_towers_own_walk():
    vision = tower()
    pixels = pictures(2, 3, 24, 32)
    seen = look(vision, pixels, 3)
    whole = vision(pixels, taps=(0, 1, 2), attention=Each(3))
    assert seen.grid == whole.grid == (3, 4)
    for i, tap in enumerate(seen.taps):
        torch.testing.assert_close(tap, whole.taps[i][:, 1:])
    torch.testing.assert_close(seen.attentions, whole.attention[..., 1:, 1:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.last.tokens, whole.tokens, rtol=1e-4, atol=1e-5)
    one = look(vision, pixels, 1)
    torch.testing.assert_close(one.attentions, seen.attentions[:, -1:])


def test_maps_of_all_classes_at_once_are_those_of_the_tower():
    vision = tower()
    pixels, texts = pictures(2, 3, 24, 32), F.normalize(pictures(6, 24), dim=-1)
    expected = vision.gradcams(
        pixels,
        [lambda e: score_cotangents(e, texts, 3, 20.0, "softmax")] * 2,
        readout="patches",
        attention=Mean(2),
    )
    seen = look(vision, pixels, 2)
    for i, (cams, attention) in enumerate(expected):
        torch.testing.assert_close(class_cams(vision, seen, i, texts, 3, 20.0), cams, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(seen.attentions[i].mean(0), attention, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "grid"), [((24, 32), (3, 4)), ((31, 33), (3, 4)), ((3, 20), (1, 2)), ((1, 1), (1, 1))]
)
def test_pictures_of_any_size_have_logits_of_whole_patches(size, grid):
    net = WeCLIPNet(tower(), 5, width=16).eval()
    pixels = pictures(2, 3, *size)
    logits = net(pixels)
    assert logits.shape == (2, 5, *grid)
    assert torch.isfinite(logits).all()
    if min(size) >= 8:
        torch.testing.assert_close(logits, net(pixels[..., : grid[0] * 8, : grid[1] * 8]))


def test_what_is_learned_is_the_decoder_alone():
    net = WeCLIPNet(tower(), 5, width=16)
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {
        "decoder_fts_fuse",
        "decoder",
    }
    net(pictures(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.decoder_fts_fuse.parameters())


def test_training_and_looking_give_the_same_logits():
    net = WeCLIPNet(tower(), 5, width=16).eval()
    pixels = pictures(1, 3, 24, 24)
    seen = look(net.tower, pixels, 2)
    torch.testing.assert_close(net.decode(seen.taps, seen.grid).logits, net(pixels))


# --- beside a DINO ------------------------------------------------------------------------------------------------


def dino_tower():
    how = {"width": 64, "layers": 1, "heads": 1, "patch": 7, "native_grid": (4, 4), "registers": 2}
    return shake(DINOTower(**how)).eval().requires_grad_(False)


@pytest.fixture
def both():
    return WeCLIPNet(tower(), 5, width=16, dino=dino_tower()).eval()


def test_a_decoder_beside_a_dino_is_shared(both):
    """Logits are the mean of what one decoder makes of CLIP's last tap and of the DINO; the affinity is of both."""
    pixels = pictures(2, 3, 24, 32)  # 3x4 cells of CLIP, 3x4 of a patch of 7
    seen, structure = look(both.tower, pixels, 2), both.structure(pixels)
    assert structure.grid == (3, 4)
    found = both.decode(seen.taps, seen.grid, structure)
    clip = both.decoder_fts_fuse(seen.taps[-1:], seen.grid)
    dino = both.dino_decoder_fts_fuse([both.dino.patches(F.interpolate(pixels, (21, 28), mode="bilinear"))], (3, 4))
    torch.testing.assert_close(found.logits, (both.decoder(clip) + both.decoder(dino)) / 2)
    torch.testing.assert_close(found.features, torch.cat([clip, dino], 1))
    torch.testing.assert_close(found.logits, both(pixels))
    names = {name.rsplit(".", 2)[0] for name in both.state_dict() if "fuse.linears" in name}
    fuses = ("decoder_fts_fuse", "dino_decoder_fts_fuse")
    assert names == {f"{fuse}.linears_modulelist.0" for fuse in fuses}  # as released, one layer each


def test_a_dinos_cells_are_brought_to_clips(both):
    pixels = pictures(1, 3, 32, 40)  # 4x5 cells of CLIP; the DINO has the same of 28x35 pixels
    assert both.structure(pixels).grid == (4, 5)
    pixels = pictures(1, 3, 56, 64)  # 7x8 and 8x9
    assert both.structure(pixels).grid == (8, 9)
    found = both.decode(look(both.tower, pixels, 2).taps, (7, 8), both.structure(pixels))
    assert [tuple(each.shape) for each in found.fused] == [(1, 16, 7, 8)] * 2
    assert both(pixels).shape == (1, 5, 7, 8)


def test_beside_a_dino_both_fuse_layers_learn_and_no_tower(both):
    both(pictures(1, 3, 24, 24)).sum().backward()
    learned = {name.split(".")[0] for name, p in both.named_parameters() if p.grad is not None}
    assert learned == {"decoder_fts_fuse", "decoder", "dino_decoder_fts_fuse"}
    with pytest.raises(ValueError, match="nothing of the DINO"):
        both.decode([torch.zeros(1, 9, 48)], (3, 3))
