from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.pot import POTNetwork, released_names
from tag2mask.models.state import fit_state
from tag2mask.ops.pot import consistency_loss, fuse, fuse_in_training, max_scaled, mean_activation, with_background

STRIDES = (1, 2, 2, 1)


def small(width=4, classes=3):
    torch.manual_seed(0)
    return POTNetwork(ResNet(Layout(blocks=(1, 1, 1, 1), width=width, strides=STRIDES, frozen_norm=True)), classes)


def recorded_weights(network):
    """The weights that the recorded passes ran with, by our names, drawn as the arrays' README says."""
    ours = {name.removeprefix("backbone."): name for name in network.state_dict()}
    dice, digest, state = np.random.Generator(np.random.PCG64(611)), hashlib.sha256(), {}
    for name in sorted(name for name in ours if not name.endswith("num_batches_tracked")):
        shape = tuple(network.state_dict()[ours[name]].shape)
        z = dice.standard_normal(shape)
        if name.endswith("running_var"):
            z = 1 + 0.3 * abs(z)
        elif name.endswith("running_mean"):
            z = 0.1 * z
        elif len(shape) == 1 and name.endswith("weight"):
            z = (1 + 0.1 * z) * (0.3 if "bn3" in name else 1)
        elif name.endswith("bias"):
            z = 0.05 * z
        elif name.startswith(("side", "classifier")):
            z = z / np.sqrt(shape[1])
        else:
            z = z * np.sqrt(2 / np.prod(shape[1:]))
        half = z.astype(np.float16)
        digest.update(name.encode() + half.tobytes())
        state[ours[name]] = torch.from_numpy(half.astype(np.float32))
    return state, digest.hexdigest()


@pytest.fixture(scope="module")
def released(golden):
    """The full network with the recorded weights."""
    network = POTNetwork(ResNet(Layout(strides=STRIDES, frozen_norm=True)), 20)
    state, digest = recorded_weights(network)
    if digest != str(golden("pot/network_train")["weights_sha256"]):
        pytest.skip("this numpy draws other weights than those of the recording")
    network.load_state_dict(state, strict=False)
    return network


def arrays(recorded):
    return {key: torch.from_numpy(value) for key, value in recorded.items() if value.dtype.kind in "fi"}


def pixels_of(case):
    """The recorded pixels; in the case kept with the tests they are the coarse grid that was enlarged."""
    if "pixels" in case:
        return case["pixels"]
    return F.interpolate(case["pixels_coarse"], tuple(case["pixels_size"].tolist()), mode="bicubic")


def won_pixels(maps, labels):
    return (F.one_hot(maps.argmax(1), maps.shape[1]).permute(0, 3, 1, 2) * labels).bool()


def recorded_starts(won, counts, rows):
    """Classes of at least two pixels, ascending within an image, have one recorded draw each."""
    start, draws = torch.full((*won.shape[:2], 2), -1), list(zip(counts.tolist(), rows, strict=True))
    for image in range(won.shape[0]):
        for group in range(won.shape[1]):
            pixels = won[image, group].flatten().nonzero()[:, 0]
            if len(pixels) >= 2:
                count, first = draws.pop(0)
                assert count == len(pixels)
                start[image, group] = pixels[first]
    assert not draws
    return start


def test_a_recorded_training_step_with_its_gradients(golden, released):
    recorded = golden("pot/network_train")
    case = arrays(recorded)
    labels = case["labels"]
    valid = torch.cat([torch.ones(2, 1), labels], 1)[:, :, None, None].expand(-1, -1, 8, 7)
    logits, features = released(pixels_of(case))
    np.testing.assert_allclose(logits.mean((2, 3)).detach(), case["score"], atol=1e-4)
    kept = features[:, :: features.shape[1] // case["feature"].shape[1]]  # all, or every 16th
    np.testing.assert_allclose(kept.detach(), case["feature"], atol=1e-5)
    maps = with_background(logits) * valid
    np.testing.assert_allclose(maps.detach(), case["norm_cam"], atol=1e-4)
    won = won_pixels(maps, valid)
    prototypes = mean_activation(features, won, recorded_starts(won, case["kmeans_pixels"], case["kmeans_init"]))
    ours, joined = fuse_in_training(prototypes, case["clip_cam"], valid)
    np.testing.assert_allclose(ours.detach(), case["cam_class"], atol=1e-4)
    np.testing.assert_allclose(joined.detach(), case["cam_add"], atol=1e-4)
    consistency = 10 * consistency_loss(max_scaled(ours * valid), max_scaled(joined * valid))
    classes = F.multilabel_soft_margin_loss(logits.mean((2, 3)), labels)
    total = 0.5 * classes + consistency
    for mine, name in ((classes, "loss_cls"), (consistency, "loss_con"), (total, "total")):
        assert mine.item() == pytest.approx(case[name].item(), rel=1e-4), name
    released.zero_grad()
    total.backward()
    learned = dict(released.named_parameters())
    for name, norm in zip(recorded["gradnorm_names"].tolist(), recorded["gradnorm"], strict=True):
        gradient = learned[name.replace("resnet50.", "backbone.")].grad
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-2), name
    np.testing.assert_allclose(released.classifier.weight.grad[:, :64, 0, 0], case["grad_classifier_8"], atol=1e-5)
    assert released.backbone.conv1.weight.grad is None


def test_a_recorded_pass_while_labelling(golden, released):
    case = arrays(golden("pot/network_infer"))
    pixels = pixels_of(case)
    height, width = pixels.shape[2:]
    keys = case["keys"]
    labels = torch.zeros(1, 21, 1, 1)
    labels[0, 0] = labels[0, keys + 1] = 1
    with torch.no_grad():
        logits, features = released(torch.cat([pixels, pixels.flip(-1)]))
    logits, features = (each[:1] + each[1:].flip(-1) for each in (logits, features))
    won = won_pixels(with_background(logits), labels)
    start = recorded_starts(won, case["kmeans_pixels"], case["kmeans_init"])
    prototypes = mean_activation(features, won, start) * labels
    clip = torch.zeros(1, 20, height // 16, width // 16)
    clip[:, keys] = F.interpolate(case["clip_highres"][None], clip.shape[2:], mode="bilinear", align_corners=True)
    clip = torch.cat([1 - clip.amax(1, keepdim=True), clip], 1)
    ours, joined = fuse(prototypes, F.interpolate(clip, logits.shape[2:], mode="bilinear", align_corners=True))
    np.testing.assert_allclose(ours[0], case["cam_class"], atol=1e-4)
    np.testing.assert_allclose(joined[0], case["result"], atol=1e-4)


def test_the_released_checkpoints_names_and_shapes():
    path = Path(__file__).resolve().parents[3] / "shared" / "golden" / "pot" / "state_dict_shapes.json"
    if not path.exists():
        pytest.skip("the recorded names are not at hand (looked beside the project for shared/golden)")
    shapes = json.loads(path.read_text())
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        network = POTNetwork(ResNet(Layout(strides=STRIDES, frozen_norm=True)), 20)
    kept = released_names(state)
    wanted = network.state_dict()
    assert {name: tuple(value.shape) for name, value in kept.items()} == {
        name: tuple(value.shape) for name, value in wanted.items()
    }


def test_released_names_leave_aliases_out_and_load_whole():
    network = small()
    state = {name.replace("backbone.", "resnet50.", 1): value + 1 for name, value in network.state_dict().items()}
    aliases = {
        "backbone.0.weight": torch.zeros(1),
        "newly_added.0.weight": torch.zeros(1),
        "f9.weight": torch.ones(2),
    }
    fit_state(network, released_names({**aliases, **state}), "given.pth")
    assert torch.equal(network.side2.weight, state["side2.weight"])
    assert torch.equal(network.backbone.layer1[0].conv1.weight, state["resnet50.layer1.0.conv1.weight"])


@pytest.mark.parametrize("size", [(64, 64), (120, 150), (33, 17), (16, 16)])
def test_shapes_of_any_size(size):
    logits, features = small()(torch.randn(2, 3, *size))
    grid = tuple(-(-side // 16) for side in size)
    assert logits.shape == (2, 3, *grid)
    assert features.shape == (2, 768, *grid)


def test_each_stages_part_has_length_one_and_the_picture_counts_in_each():
    network = small()
    pixels = torch.randn(1, 3, 48, 64)
    _, features = network(pixels)
    # the last two parts are made on the grid itself, so nothing shortens them
    for part in features.split((128, 128, 256, 256), 1)[2:]:
        np.testing.assert_allclose(part.norm(dim=1).detach(), 1, atol=1e-3)
    for side in (network.side1, network.side2, network.side3, network.side4):
        with torch.no_grad():
            before = network(pixels)[1]
            side.weight[:, -3:] += 1
            assert not torch.equal(network(pixels)[1], before)


def test_maps_are_those_of_the_whole_pass():
    network = small().eval()
    pixels = torch.randn(1, 3, 48, 64)
    torch.testing.assert_close(network.maps(pixels), network(pixels)[0])


def test_what_learns_and_at_which_rate():
    network = small()
    fresh = {id(parameter) for parameter in network.new_parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in fresh}
    assert names == {"side1.weight", "side2.weight", "side3.weight", "side4.weight", "classifier.weight"}
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"}


def test_statistics_of_norms_stay_in_training():
    network = small().train()
    before = network.backbone.bn1.running_mean.clone()
    network(torch.randn(2, 3, 32, 32))
    assert torch.equal(before, network.backbone.bn1.running_mean)


def test_the_features_by_hand():
    """One stage after the other: corners of the picture on corners of the stage, pixels of a part on its area."""
    network = small().double()
    pixels = torch.randn(1, 3, 50, 70, dtype=torch.float64)
    stages = network.backbone.features(pixels)[1:]
    parts = []
    for side, stage in zip((network.side1, network.side2, network.side3, network.side4), stages, strict=True):
        rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in stage.shape[2:])
        corners = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], -1)[None]
        beside = torch.cat([stage, F.grid_sample(pixels, corners, align_corners=True)], 1)
        seen = torch.einsum("od,bdhw->bohw", side.weight[:, :, 0, 0], beside)
        parts.append(seen / (seen.square().sum(1, keepdim=True).sqrt() + 1e-5))
    height, width = stages[2].shape[2:]
    areas = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in (height, width)]
    cells = torch.stack([areas[1].expand(height, -1), areas[0][:, None].expand(-1, width)], -1)[None]
    whole = [F.grid_sample(part, cells, align_corners=False, padding_mode="border") for part in parts]
    torch.testing.assert_close(network(pixels)[1], torch.cat(whole, 1))
