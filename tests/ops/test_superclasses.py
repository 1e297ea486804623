"""Super-classes: the arrays of the formulas in float64, WeCLIP+'s Dice, and what must hold of any."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tag2mask.classes import load_classes, plain_classes
from tag2mask.ops.par import par
from tag2mask.ops.superclasses import (
    boundary_scores,
    dice_loss,
    gate_open,
    present_groups,
    prototype_maps,
    prototypes,
    superclass_dice,
    superclass_probabilities,
    superclass_values,
)
from tag2mask.types import IGNORE, UserError


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- recorded -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(golden):
    arrays = {name: torch.from_numpy(array) for name, array in golden("cdclip/sbe").items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in arrays.items()}


def test_prototypes_and_labels_are_the_arrays(case):
    features, maps = case["dino"].T, case["superclass_maps"]
    torch.testing.assert_close(prototypes(features, maps), case["prototypes"], rtol=0, atol=1e-5)
    torch.testing.assert_close(prototype_maps(features, maps), case["proto_cams"], rtol=0, atol=1e-5)
    scores = boundary_scores(features, maps)
    torch.testing.assert_close(scores[1:], case["proto_cams_minmax"], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[:1], case["background"], rtol=0, atol=1e-5)
    assert torch.equal(scores.argmax(0).view(4, 5), case["Y"])


def test_probabilities_and_dice_are_the_arrays(case):
    groups = [case[f"groups_{name}"].tolist() for name in ("person", "animal", "furniture")]
    probs = superclass_probabilities(case["logits"], groups)
    torch.testing.assert_close(probs, case["P_super"], rtol=0, atol=1e-5)
    torch.testing.assert_close(superclass_dice(probs, case["Y"]), case["dice"], rtol=0, atol=1e-5)


def test_the_groups_of_the_arrays_are_those_of_voc(case):
    groups, empty = superclass_values(load_classes("voc12"), "five")
    assert not empty
    for name in ("person", "animal", "furniture"):
        assert groups[name] == tuple(case[f"groups_{name}"].tolist())


def test_weclip_plus_dice(golden):
    arrays = {name: torch.from_numpy(array) for name, array in golden("cdclip/dice_weclip_plus").items()}
    logits = arrays["logits"].requires_grad_()
    loss = dice_loss(logits, arrays["target"])
    loss.backward()
    torch.testing.assert_close(loss, arrays["loss"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits.grad, arrays["grad"], rtol=0, atol=1e-5)


# --- the sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "grouping", "count"), [
    ("voc12", "five", 5), ("voc12", "four", 4), ("voc12", "seven-guess", 7), ("coco14", "twelve", 12),
])  # fmt: skip
def test_every_class_is_in_one_super_class(classes, grouping, count):
    groups, empty = superclass_values(load_classes(classes), grouping)
    assert (len(groups), empty) == (count, ())
    values = [value for members in groups.values() for value in members]
    assert sorted(values) == list(range(1, len(load_classes(classes))))


def test_coco_has_as_many_of_each_as_its_supercategories():
    groups, _ = superclass_values(load_classes("coco14"), "twelve")
    sizes = {name: len(members) for name, members in groups.items()}
    assert list(sizes.values()) == [10, 8, 7, 5, 6, 1, 7, 5, 5, 6, 10, 10]


def test_sets_that_do_not_fit_say_so():
    plain = plain_classes(["cat", "dog", "car"], "mine")
    with pytest.raises(UserError, match="no set of super-classes of 'mine'"):
        superclass_values(plain, "five")

    def with_groups(**groups):
        return replace(plain, superclasses={"mine": groups})

    with pytest.raises(UserError, match="cat is in animal and in pet"):
        superclass_values(with_groups(animal=("cat", "dog"), pet=("cat",), machine=("car",)), "mine")
    with pytest.raises(UserError, match="car in none of them"):
        superclass_values(with_groups(animal=("cat", "dog")), "mine")
    groups, empty = superclass_values(with_groups(animal=("cat", "dog"), tool=(), machine=("car",)), "mine")
    assert (groups, empty) == ({"animal": (1, 2), "machine": (3,)}, ("tool",))


def test_super_classes_of_an_image():
    groups, _ = superclass_values(load_classes("voc12"), "five")
    found = present_groups(groups, (13, 15, 12))  # horse, person, dog
    assert list(found) == ["animal", "person"]
    assert found["animal"] == groups["animal"]
    assert present_groups(groups, ()) == {}


@pytest.mark.parametrize(("gate", "opened"), [("never", []), ("one", [1]), ("several", [2, 3]), ("all", [1, 2, 3])])
def test_gates(gate, opened):
    assert [count for count in range(4) if gate_open(count, gate)] == opened


# --- what must hold -----------------------------------------------------------------------------------------------


def test_two_regions_are_told_apart_by_the_features_where_the_maps_leak():
    """A map that spills over a contact: the prototype's map ends at it."""
    features = F.normalize(torch.cat([torch.eye(4)[:1].expand(6, -1), torch.eye(4)[1:2].expand(6, -1)]).T, dim=0)
    maps = torch.zeros(2, 12)
    maps[0, :8], maps[1, 6:] = 1, 0.8  # the first spills over cells 6 and 7
    assert maps.argmax(0)[6:8].tolist() == [0, 0]
    scores = boundary_scores(features, maps)
    assert scores.argmax(0).tolist() == [1] * 6 + [2] * 6


def test_the_scale_of_a_map_does_not_count():
    features, maps = F.normalize(random(5, 9), dim=0), random(2, 9, seed=1).abs()
    torch.testing.assert_close(
        prototype_maps(features, maps), prototype_maps(features, 100 * maps), rtol=1e-4, atol=1e-5
    )


def test_kinds_of_background():
    features, maps = F.normalize(random(5, 9), dim=0), random(2, 9, seed=1).abs().clamp(0, 1)
    near = boundary_scores(features, maps)[1:]
    torch.testing.assert_close(boundary_scores(features, maps, "prototypes")[0], 1 - near.amax(0))
    assert (boundary_scores(features, maps, "none").argmax(0) > 0).all()


def test_dice_of_a_perfect_answer_and_of_its_opposite():
    labels = torch.tensor([[0, 1], [2, 1]])
    right = F.one_hot(labels, 3).permute(2, 0, 1).float()
    assert superclass_dice(right, labels) < 1e-5
    assert superclass_dice(right.roll(1, 0), labels) == 1


def test_ignored_pixels_count_nowhere():
    labels = torch.tensor([[0, 1], [2, IGNORE]])
    probs = random(3, 2, 2).softmax(0)
    other = probs.clone()
    other[:, 1, 1] = torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(superclass_dice(probs, labels), superclass_dice(other, labels))


def test_dice_is_finite_where_there_is_nothing():
    labels = torch.full((2, 2), IGNORE)
    logits = random(1, 3, 2, 2).requires_grad_()
    for loss in (superclass_dice(logits[0].softmax(0), labels), dice_loss(logits, labels[None])):
        assert torch.isfinite(loss)
        (grad,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(grad).all()


def test_a_background_that_never_wins_does_not_win_after_par_nor_touch_the_others():
    """Its score, -1, is below every map, also where all are 0; PAR keeps signs and mixes no maps."""
    features, maps = F.normalize(random(5, 63), dim=0), random(3, 63, seed=1).abs()
    maps[:, :9] = 0
    scores = boundary_scores(features, maps, "none").view(1, 4, 7, 9)
    scores[:, 1:, :3] = 0
    image = random(1, 3 * 63, seed=2).view(1, 3, 7, 9)
    refined = par(image, scores)[0]
    assert (refined.argmax(0) != 0).all()
    assert (refined[0] < 0).all()
    scores[:, 0] = 7
    assert torch.equal(par(image, scores)[0, 1:], refined[1:])
