"""MCTformer's network: stage by stage against arrays of the released code, and by what must hold of any weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mctformers import golden_network, random_network
from tag2mask.methods.fitting.mctformer import Course, losses
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.models.mctformer import Reading, read_maps
from tag2mask.models.tower import Each, walk
from tag2mask.models.transformer import drop_path
from tag2mask.ops.masks import class_probabilities
from tag2mask.ops.mctformer import contrast_classes, seed_maps, spread
from tag2mask.segment.schedule import cosine_epochs
from tag2mask.types import Constant, MaskRule, Scores, UserError

SIZES = ["64", "96x64", "90x117"]


@pytest.fixture(params=SIZES)
def case(request, golden):
    return {key: torch.from_numpy(value) for key, value in golden(f"mctformer/forward_{request.param}").items()}


def close(ours, recorded, atol):
    np.testing.assert_allclose(ours.detach(), recorded, rtol=0, atol=atol)


@torch.no_grad()
def test_recorded_passes_stage_by_stage(golden, case, tmp_path):
    network = golden_network(golden, tmp_path, "v2")
    grid = (case["pixels"].shape[2] // 16, case["pixels"].shape[3] // 16)
    close(network.positions(grid, network.how)[None], case["positions"], 1e-6)
    seen = network.see(case["pixels"], 3)
    patches = seen.patch_tokens.flatten(2).transpose(1, 2)
    close(torch.cat([seen.class_tokens, patches], 1), case["tokens"], 2e-4)
    logits = network.logits(case["pixels"])
    close(logits.classes, case["cls_logits"], 5e-5)
    close(logits.patches, case["patch_logits"], 5e-5)
    maps = network.patch_maps(seen.patch_tokens)
    close(seen.attention, case["v2_mct"], 1e-4)
    close(seed_maps("class-to-patch", seen.attention, maps), case["v2_mct"], 1e-4)
    close(seed_maps("patchcam", seen.attention, maps), case["v2_patchcam"], 1e-4)
    fused = seed_maps("fused", seen.attention, maps)
    close(fused, case["v2_fused"], 1e-4)
    if "patch_attention_sum" in case:
        close(seen.affinity, case["patch_attention_sum"], 1e-4)
    # what each stage makes of the recorded input, so that an error is found where it is made
    close(
        network.patch_maps(case["tokens"][:, 4:].transpose(1, 2).unflatten(2, grid)).relu(), case["v2_patchcam"], 1e-4
    )
    close(spread(seen.affinity, case["v2_fused"]), case["v2_fused_refined"], 1e-4)
    close(spread(seen.affinity, fused), case["v2_fused_refined"], 1e-4)


@torch.no_grad()
def test_recorded_passes_of_v1(golden, case, tmp_path):
    network = golden_network(golden, tmp_path, "v1")
    close(network.logits(case["pixels"]).classes, case["v1_logits"], 5e-5)
    assert network.logits(case["pixels"]).patches is None
    close(network.see(case["pixels"], 3).attention.flatten(2), case["v1_maps"].flatten(2), 1e-4)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_recorded_seed_maps(golden, tmp_path, version):
    case = golden(f"mctformer/seed_maps_{version}")
    network = golden_network(golden, tmp_path, version)
    pixels, keys = torch.from_numpy(case["pixels"]), torch.from_numpy(case["keys"])
    size = tuple(pixels.shape[2:])
    maps = read_maps(network, pixels, keys, Reading("class-to-patch" if version == "v1" else "fused"))
    scores = Scores(keys + 1, maps / maps.amax(), size)  # stretched over the picture, as released
    found = class_probabilities(scores, MaskRule(background=Constant(0.39), normalise="class"))[1:]
    close(found, case["maps"], 2e-4)


def test_recorded_losses_and_gradients(golden, tmp_path):
    case = golden("mctformer/training_loss")
    network = golden_network(golden, tmp_path, "v2").train()
    found = losses(network, torch.from_numpy(case["pixels"]), torch.from_numpy(case["targets"]), None)
    assert found.classes.item() == pytest.approx(float(case["loss_cls"]), abs=1e-5)
    assert found.patches.item() == pytest.approx(float(case["loss_patch"]), abs=1e-5)
    found.total.backward()
    ours = {
        "cls_token": network.class_embedding.grad[None],
        "pos_embed": network.positional_embedding.grad[None],
        "blocks.0.attn.qkv.bias": network.blocks[0].attn.in_proj_bias.grad,
        "blocks.4.mlp.fc2.weight": network.blocks[4].mlp.c_proj.weight.grad,
        "head.weight": network.head.weight.grad,
        "head.bias": network.head.bias.grad,
    }
    recorded = {name.removeprefix("grad_"): value for name, value in case.items() if name.startswith("grad_")}
    assert recorded.keys() <= ours.keys()
    for name, value in recorded.items():
        assert np.linalg.norm(ours[name].numpy() - value) <= 1e-3 * np.linalg.norm(value), name
    assert all(parameter.grad is not None for parameter in network.parameters())
    # what learns nothing there has no place here
    assert set(case["no_grad"].tolist()) == {"norm.weight", "norm.bias"}


# --- of any weights ---------------------------------------------------------------------------------------------


def pixels_of(height=13, width=18, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_attention_is_what_a_walk_through_the_tower_collects():
    network, pixels = random_network(), pixels_of()
    seen = network.see(pixels, 2)
    each = walk(network, pixels, attention=Each(3), positions=network.how)
    np.testing.assert_allclose(each.attention.sum(-1), 1, atol=1e-5)
    close(seen.attention.flatten(2), each.attention[:, 1:, :4, 4:].sum(1), 1e-6)
    close(seen.affinity, each.attention[:, :, 4:, 4:].sum(1), 1e-6)
    close(seen.class_tokens, each.tokens[:, :4], 1e-5)
    close(seen.patch_tokens.flatten(2).transpose(1, 2), each.tokens[:, 4:], 1e-5)
    assert (each.grid, tuple(seen.attention.shape)) == ((3, 4), (2, 4, 3, 4))


@pytest.mark.parametrize("version", ["v1", "v2", "plus"])
@torch.no_grad()
def test_logits_by_their_formula(version):
    network, pixels = random_network(version), pixels_of()
    tokens = walk(network, pixels, positions=network.how).tokens
    found = network.logits(pixels)
    close(found.classes, tokens[:, :4].mean(-1), 1e-6)
    close(found.layers[-1], tokens[:, :4], 1e-6)
    assert len(found.layers) == 3
    if version == "v1":
        assert found.patches is None
        return
    maps = F.conv2d(
        tokens[:, 4:].transpose(1, 2).reshape(2, 16, 3, 4), network.head.weight, network.head.bias, padding=1
    )
    expected = maps.mean((2, 3))
    if version == "plus":
        weights = [0.996**n for n in range(12)]
        expected = torch.tensor(
            [
                [
                    sum(w * v for w, v in zip(weights, sorted(m.flatten().tolist(), reverse=True), strict=True))
                    for m in image
                ]
                for image in maps
            ]
        ) / sum(weights)
    close(found.patches, expected, 1e-5)


@torch.no_grad()
def test_other_order_of_classes_other_order_of_maps():
    network, other, turn = random_network(), random_network(), torch.tensor([2, 0, 3, 1])
    other.class_embedding.copy_(network.class_embedding[turn])
    other.positional_embedding[:4] = network.positional_embedding[:4][turn]
    other.head.weight.copy_(network.head.weight[turn])
    other.head.bias.copy_(network.head.bias[turn])
    pixels, how = pixels_of(batch=1), Reading(layers=2)
    close(read_maps(other, pixels, torch.arange(4), how), read_maps(network, pixels, turn, how), 1e-5)


@torch.no_grad()
def test_maps_of_one_view_by_hand():
    network, pixels, channels = random_network(), pixels_of(batch=1), torch.tensor([3, 1])
    seen = network.see(pixels, 2)
    cam = network.patch_maps(seen.patch_tokens).relu()[0]
    expected = {
        "class-to-patch": seen.attention[0],
        "patchcam": cam,
        "fused": seen.attention[0] * cam,
    }
    for kind, maps in expected.items():
        for root in (False, True):
            maps_of = maps.sqrt() if root and kind == "fused" else maps
            found = read_maps(network, pixels, channels, Reading(kind, 2, affinity=False, root=root, flip=False))
            close(found, maps_of[channels], 1e-6)
            spread_maps = torch.einsum("ij,kj->ki", seen.affinity[0], maps_of[channels].flatten(1)).view(2, 3, 4)
            found = read_maps(network, pixels, channels, Reading(kind, 2, root=root, flip=False))
            close(found, spread_maps, 1e-5)
            mirrored = read_maps(network, pixels.flip(-1), channels, Reading(kind, 2, root=root, flip=False)).flip(-1)
            close(read_maps(network, pixels, channels, Reading(kind, 2, root=root)), spread_maps + mirrored, 1e-5)


def test_the_contrast_by_loops():
    tokens = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    tags = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    expected = []
    for image in range(3):
        values = []
        for layer in range(2):
            for own in range(4):
                if tags[image, own]:
                    cosines = [
                        F.cosine_similarity(tokens[layer, image, own], tokens[layer, image, k], dim=0)
                        for k in range(4)
                    ]
                    values.append(-torch.stack(cosines).softmax(0)[own].log())
        expected.append(torch.stack(values).mean() if values else torch.tensor(0.0))
    close(contrast_classes(tokens, tags), torch.stack(expected), 1e-6)


def test_losses_of_the_known_alone_and_of_none():
    network = random_network("plus")
    pixels, tags = pixels_of(batch=3), torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    some = losses(network, pixels, tags, torch.tensor([True, False, True]), contrast=2.0)
    alone = losses(network, pixels[[0, 2]], tags[[0, 2]], None, contrast=1.0)
    assert some.classes.item() == pytest.approx(alone.classes.item(), rel=1e-5)
    assert some.patches.item() == pytest.approx(alone.patches.item(), rel=1e-5)
    assert some.contrast.item() == pytest.approx(2 * alone.contrast.item(), rel=1e-5)
    assert losses(network, pixels, tags, torch.zeros(3, dtype=torch.bool), contrast=1.0).total.item() == 0
    assert losses(network, pixels, tags, None).contrast.item() == 0


def test_what_decays_and_when_rates_change():
    network = random_network()
    course = Course(FitSettings(120, 2, 1e-3, 0.05), epochs=60, late=True)
    optimizer = course.optimizer(network)["optimizer"]
    decays = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        plain = name.endswith(("bias", "_embedding")) or "ln_" in name
        assert (id(parameter) in decays) == (not plain), name
    rates = [course.rate(step) for step in range(121)]
    assert rates[0] == rates[3] == 1e-6 < rates[4] == rates[5] < rates[6]
    assert rates[120] == rates[118] == cosine_epochs(59, 60, 1e-3, late=True)


def test_branches_are_left_out_while_training_alone():
    network, pixels = random_network(), pixels_of(batch=64)
    network.set_drop_path(0.5)
    assert [block.drop_path for block in network.blocks] == [0, 0.25, 0.5]
    with torch.no_grad():
        still = network.logits(pixels).classes
        torch.manual_seed(0)
        block = network.blocks[2].train()
        x = torch.ones(4000, 2, 16)
        out = block(x)[0]
    assert torch.equal(network.eval().logits(pixels).classes, still)
    kinds = torch.unique(out[:, 0, 0].round(decimals=3), return_counts=True)[1] / 4000
    assert len(kinds) == 4  # both branches, either, none
    assert (kinds - 0.25).abs().max() < 0.04


def test_a_dropped_branch_is_made_up_for():
    torch.manual_seed(0)
    assert drop_path(torch.ones(20000, 2), 0.4).mean().item() == pytest.approx(1, abs=0.02)
    x = torch.ones(3, 2)
    assert drop_path(x, 0.0) is x


def test_asked_for_what_is_not_there():
    network = random_network("v1")
    with pytest.raises(ValueError, match="at least a patch, 4"):
        network.see(pixels_of(3, 9), 1)
    with pytest.raises(UserError, match="last 4 blocks was asked for; this network has 3"):
        network.see(pixels_of(), 4)
    with pytest.raises(ValueError, match="need PatchCAM, which V1 does not have"):
        read_maps(network, pixels_of(batch=1), torch.tensor([0]), Reading("fused", 1))
