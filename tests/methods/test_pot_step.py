"""POT's training step, recorded and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from golden_models import recorded_pot
from methods.pot_cases import recipe_of, small_network
from methods.toys import CLASSES
from tag2mask.methods import make_method
from tag2mask.methods import pot as labelling
from tag2mask.methods.fitting import pot as subject
from tag2mask.methods.fitting.pot import Batch, certainty, pot_losses
from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.pot import POTNetwork
from tag2mask.ops import pot as maps_of_pot
from tag2mask.ops import pot_batch
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.pot import Prototypes, activate, max_scaled
from tag2mask.ops.pot_batch import Groups, classifier_maps, mean_prototype_maps, transported_maps
from tag2mask.types import ClassSet
from tiny_classifiers import LAYOUT

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the recorded step of the released code


@pytest.fixture(scope="module")
def released(golden):
    network = POTNetwork(ResNet(Layout(strides=LAYOUT.strides, frozen_norm=True)), 20)
    return recorded_pot(network, str(golden("pot/network_train")["weights_sha256"]))


def recorded_draws(case):
    """Stands in for ``draw_members``: classes of at least two pixels, in order, begin where the recording did."""
    draws = list(zip(case["kmeans_pixels"].tolist(), torch.from_numpy(case["kmeans_init"]), strict=True))

    def draw(members, clusters, generators):
        start = torch.full((*members.shape[:2], clusters), -1)
        for image, group in itertools.product(*map(range, members.shape[:2])):
            pixels = members[image, group].nonzero()[:, 0]
            if len(pixels) >= clusters:
                count, rows = draws.pop(0)
                assert len(pixels) == count
                start[image, group] = pixels[rows]
        return start

    return draw, draws


def pixels_of(case):
    """The recorded pixels; in the case kept with the tests they are the coarse grid that was enlarged."""
    if "pixels" in case:
        return torch.from_numpy(case["pixels"])
    size = tuple(case["pixels_size"].tolist())
    return F.interpolate(torch.from_numpy(case["pixels_coarse"]), size, mode="bicubic")


def test_a_recorded_training_step_with_its_gradients(golden, released, monkeypatch):
    """Losses and gradients of the very function that the training calls."""
    case = golden("pot/network_train")
    draw, left = recorded_draws(case)
    monkeypatch.setattr(pot_batch, "draw_members", draw)
    compared = []  # the two sets of maps, before they are scaled for the loss
    fused = subject.fuse_in_training
    monkeypatch.setattr(subject, "fuse_in_training", lambda *maps: compared.append(fused(*maps)) or compared[-1])
    monkeypatch.setattr(subject, "standardise", lambda pictures, *_: pictures)  # the recording begins after it
    labels = torch.from_numpy(case["labels"]).bool()
    batch = Batch(
        pixels_of(case),
        labels,
        torch.from_numpy(case["clip_cam"]),
        torch.ones(2, 1, 8, 7, dtype=torch.bool),
        torch.arange(2),
    )
    with torch.no_grad():
        logits, features = released(batch.pictures)
    kept = features[:, :: features.shape[1] // case["feature"].shape[1]]  # all, or every 16th
    np.testing.assert_allclose(kept, case["feature"], atol=1e-5)
    np.testing.assert_allclose(logits.mean((2, 3)), case["score"], atol=1e-4)
    own = classifier_maps(logits, labels, absent=True)
    np.testing.assert_allclose(own, case["norm_cam"], atol=1e-4)
    released.zero_grad()
    found = pot_losses(released, batch, recipe_of(variant="released"))
    assert not left
    for mine, name in zip(compared[0], ("cam_class", "cam_add"), strict=True):
        np.testing.assert_allclose(mine.detach(), case[name], atol=1e-4)
    for mine, name in zip(found, ("total", "loss_cls", "loss_con"), strict=True):
        assert mine.item() == pytest.approx(case[name].item(), rel=1e-4), name
    found.total.backward()
    parameters = dict(released.named_parameters())
    for name, norm in zip(case["gradnorm_names"].tolist(), case["gradnorm"], strict=True):
        gradient = parameters[name.replace("resnet50.", "backbone.")].grad
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-2), name
    np.testing.assert_allclose(released.classifier.weight.grad[:, :64, 0, 0], case["grad_classifier_8"], atol=1e-5)


def test_a_recorded_pass_while_labelling(golden, released, monkeypatch):
    case = golden("pot/network_infer")
    draw, left = recorded_draws(case)
    monkeypatch.setattr(pot_batch, "draw_members", draw)
    pixels = pixels_of(case)
    size = tuple(pixels.shape[2:])
    monkeypatch.setattr(labelling, "standardise", lambda *_: pixels)
    monkeypatch.setattr(labelling, "load_released", lambda *_: released)
    names = ("background", *(f"class{i}" for i in range(20)))
    classes = ClassSet("twenty", names, tuple((i, 0, 0) for i in range(21)))
    method = make_method("pot", classes, variant="released", checkpoint="given.pth")
    labels, earlier = torch.zeros(1, 20, dtype=torch.bool), torch.zeros(1, 20, *case["clip_highres"].shape[1:])
    labels[0, case["keys"]] = True
    earlier[0, case["keys"]] = torch.from_numpy(case["clip_highres"]).float()
    with torch.no_grad():
        image = torch.zeros(3, *size, dtype=torch.uint8)
        ours, joined = method._at(image, size, labels, earlier, torch.Generator())
    assert not left
    np.testing.assert_allclose(ours[0], case["cam_class"], atol=1e-4)
    np.testing.assert_allclose(joined[0], case["result"], atol=1e-4)


def test_what_the_released_code_stores_and_decides(weights):
    """IS_CAM1: each map over its maximum, background + 0.4, classes doubled; the decision adds IS_CAM."""
    torch.manual_seed(0)
    total, fused = torch.rand(3, 5, 6) * 7, torch.rand(3, 5, 6)
    method = make_method("pot", CLASSES, weights=weights, variant="released")
    scaled = total / (total.amax((1, 2), keepdim=True) + 1e-5)
    first = torch.cat([scaled[:1] + 0.4, 2 * scaled[1:]])
    for second, expected in ((None, first / 2), (fused, (first + fused) / 3)):
        maps, background = method._finished(total, second)
        torch.testing.assert_close(torch.cat([background[None], maps]), expected)


def small_batch(size=64, classes=3, cells=4):
    dice = torch.Generator().manual_seed(3)
    labels = torch.tensor([[True, False, True], [False, True, False]])[:, :classes]
    maps = torch.rand(2, classes, cells, cells, generator=dice) * labels[:, :, None, None]
    pictures = torch.rand(2, 3, size, size, generator=dice) * 255
    valid = torch.ones(2, 1, cells, cells, dtype=torch.bool)
    return Batch(pictures, labels, maps, valid, torch.tensor([5, 6]))


def test_the_papers_step_by_hand():
    """Seeds are the earlier maps over their maximum; the maps are held to the classifier's of the image's classes."""
    network, batch, recipe = small_network(), small_batch(), recipe_of()
    logits, features = network(standardise(batch.pictures, MEAN, STD))
    distance = []
    for image, tags in enumerate(([0, 2], [1])):
        own = F.relu(logits[image, tags])
        own = own / (own.amax((1, 2), keepdim=True) + 1e-5)
        seeds = batch.maps[image, tags]
        seeds = seeds / seeds.amax((1, 2), keepdim=True)
        dice = [torch.Generator().manual_seed(5 + image)]
        found = activate(features[image : image + 1], seeds[None], own[None], dice, recipe.prototypes).maps[0]
        for maps in (found, own):
            assert maps.max() <= 1
        background = (1 - found.amax(0)) - (1 - own.amax(0))
        distance.append((found - own).abs().sum() + background.abs().sum())
    expected = 10 * sum(distance) / (2 * 4 * 16)
    losses = pot_losses(network, batch, recipe)
    torch.testing.assert_close(losses.consistency, expected, rtol=1e-4, atol=1e-5)
    classes = F.multilabel_soft_margin_loss(logits.mean((2, 3)), batch.labels.float())
    torch.testing.assert_close(losses.classes, classes)
    torch.testing.assert_close(losses.total, classes + expected, rtol=1e-4, atol=1e-5)


def test_noise_for_a_plan_changes_the_papers_losses_and_not_the_released(monkeypatch):
    network, batch = small_network(), small_batch()
    recipes = recipe_of(), recipe_of(variant="released")
    before = [pot_losses(network, batch, recipe).consistency.item() for recipe in recipes]
    dice = torch.Generator().manual_seed(9)
    monkeypatch.setattr(maps_of_pot, "transport_plan", lambda cost, *_, **__: torch.rand(cost.shape, generator=dice))
    after = [pot_losses(network, batch, recipe).consistency.item() for recipe in recipes]
    assert after[1] == before[1]
    assert abs(after[0] - before[0]) > 1e-3


CHANGES = [
    {},
    {"adaptive": True},
    {"absent": True},
    {"consistency": "fused"},
    {"seeds": "classifier"},
    {"clusters": 1},
    {"variant": "released"},
    {"variant": "released", "seeds": "classifier"},
    {"variant": "released", "clusters": 3},
    {"variant": "released", "absent": False},
]


def test_every_choice_of_the_step_changes_its_loss_and_gradients_reach_what_learns():
    found = []
    for change in CHANGES:
        network = small_network()
        losses = pot_losses(network, small_batch(), recipe_of(**change))
        losses.total.backward()
        learns = [parameter for parameter in network.parameters() if parameter.requires_grad]
        assert all(each.grad is not None and each.grad.isfinite().all() for each in learns), change
        assert network.side2.weight.grad.abs().sum() > 0
        found.append(losses.consistency.item())
    assert len({round(value, 5) for value in found}) == len(CHANGES), found


def test_without_its_weight_the_consistency_moves_nothing():
    network = small_network()
    pot_losses(network, small_batch(), recipe_of(consistency_weight=0)).total.backward()
    assert not network.side1.weight.grad.any()
    assert network.classifier.weight.grad.any()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_padding_and_images_that_could_not_be_read_count_for_nothing(variant):
    """The same images beside one that is none, and with anything on the padding."""
    network, batch, recipe = small_network(), small_batch(), recipe_of(variant=variant)
    alone = pot_losses(network, batch, recipe)
    more = Batch(
        torch.cat([batch.pictures, torch.zeros(2, 3, 64, 64)]),
        torch.cat([batch.labels, torch.zeros(2, 3, dtype=torch.bool)]),
        torch.cat([batch.maps, torch.zeros(2, 3, 4, 4)]),
        torch.cat([batch.valid, torch.zeros(2, 1, 4, 4, dtype=torch.bool)]),
        torch.arange(5, 9),
    )
    beside = pot_losses(network, more, recipe)
    torch.testing.assert_close(beside.classes, alone.classes)
    torch.testing.assert_close(2 * beside.consistency, alone.consistency)
    padded = batch.valid.clone()
    padded[:, :, :, 3] = False
    lit = batch.maps.clone()
    lit[..., 3] = 0
    results = [
        pot_losses(network, batch._replace(valid=padded, maps=maps), recipe) for maps in (lit, lit + (~padded))
    ]
    if variant == "paper":  # its seeds are scaled by their maximum before; the padding of real batches is 0
        assert results[0].consistency.isfinite()
    else:
        torch.testing.assert_close(results[0].consistency, results[1].consistency)


def test_padding_takes_no_part_in_the_maps():
    features = torch.randn(1, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    seeds = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(1, 1, 4, 5, dtype=torch.bool)
    valid[..., 4] = False
    seeds = max_scaled(seeds * valid)

    def found(features):
        return activate(
            features, seeds, seeds, [torch.Generator().manual_seed(2)], Prototypes(population="all"), valid
        )

    other = features.clone()
    other[..., 4] = 50
    first, second = found(features), found(other)
    torch.testing.assert_close(first.maps, second.maps)
    assert not first.maps[..., 4].any()
    assert not first.plan.unflatten(2, (4, 5))[:, :, :, 4].any()
    cut = activate(
        features[..., :4],
        seeds[..., :4],
        seeds[..., :4],
        [torch.Generator().manual_seed(2)],
        Prototypes(population="all"),
    )
    if torch.equal(first.clusters.unflatten(2, (4, 5))[..., :4].flatten(2), cut.clusters):  # their draws differ
        torch.testing.assert_close(first.maps[..., :4], cut.maps, rtol=1e-4, atol=1e-5)


def test_groups_put_each_class_back_where_it_was():
    labels = torch.tensor([[False, True, False, True], [False, False, False, False], [True, True, True, False]])
    groups = Groups.of(labels)
    assert groups.index.shape == (3, 3)
    maps = torch.rand(3, 4, 2, 2) * labels[:, :, None, None]
    assert torch.equal(groups.place(groups.pick(maps), 4), maps)
    assert torch.equal(groups.pick(maps)[0, :2], maps[0, [1, 3]])
    assert not groups.pick(torch.ones(3, 4, 2, 2))[1].any()


def test_classes_of_a_batch_are_as_one_image_at_a_time():
    dice = torch.Generator().manual_seed(4)
    features, seeds = torch.randn(3, 8, 5, 5, generator=dice), torch.rand(3, 4, 5, 5, generator=dice)
    labels = torch.tensor([[True, False, False, True], [False, True, False, False], [True, True, True, True]])
    generators = lambda: [torch.Generator().manual_seed(i) for i in range(3)]  # noqa: E731
    together = transported_maps(features, seeds, seeds, labels, generators(), Prototypes())[0]
    norm = classifier_maps(torch.randn(3, 4, 5, 5, generator=dice), labels, absent=True)
    means = mean_prototype_maps(features, norm, labels, generators(), 2)
    for i in range(3):
        one = slice(i, i + 1)
        alone = transported_maps(features[one], seeds[one], seeds[one], labels[one], generators()[one], Prototypes())[
            0
        ]
        torch.testing.assert_close(together[one], alone)
        torch.testing.assert_close(
            means[one], mean_prototype_maps(features[one], norm[one], labels[one], generators()[one], 2)
        )


def test_absent_classes_lower_the_background_as_in_the_released_code_alone():
    logits = torch.tensor([[[[4.0, 1.0]], [[0.001, 0.1]]]])
    labels = torch.tensor([[True, False]])
    with_them, without = (classifier_maps(logits, labels, absent=absent) for absent in (True, False))
    torch.testing.assert_close(without[0, 0, 0], torch.tensor([0.0, 0.75]), atol=1e-4, rtol=0)
    torch.testing.assert_close(with_them[0, 0, 0], torch.tensor([0.0, 0.0]), atol=1e-3, rtol=0)
    assert torch.equal(with_them[:, 1:], without[:, 1:])


def test_how_sure_the_plan_is():
    features, seeds = torch.randn(1, 8, 4, 4), torch.rand(1, 3, 4, 4)
    labels = torch.tensor([[True, False, True]])
    maps, how, groups = transported_maps(features, seeds, seeds, labels, [torch.Generator()], Prototypes())
    sure = certainty(how, groups, maps)
    assert (sure[:, 0] == 1).all()
    assert not sure[:, 2].any()
    share = how.plan[0, 1] / how.plan[0, 1].sum(-1, keepdim=True)
    torch.testing.assert_close(sure[0, 3].flatten(), share.amax(-1))
