"""POT as a method: a recorded training step, its fit stopped anywhere, what it labels, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image

from golden_models import recorded_pot
from methods.toys import CLASSES, TinyData, TrainingFree, make_data
from tag2mask.methods import make_method, make_options
from tag2mask.methods import pot as labelling
from tag2mask.methods.fitting import pot as subject
from tag2mask.methods.fitting import settings as fitting
from tag2mask.methods.fitting.pot import Batch, POTExamples, POTTraining, certainty, pot_losses
from tag2mask.methods.fitting.pot_recipe import maps_of
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.pot import POT_FILE
from tag2mask.methods.pot_options import POTOptions, make_recipe
from tag2mask.methods.protocol import EarlierRun
from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.classifier import Classifier, load_classifier, save_classifier
from tag2mask.models.pot import POTNetwork, build_pot
from tag2mask.ops import pot as maps_of_pot
from tag2mask.ops import pot_batch
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.masks import class_probabilities
from tag2mask.ops.pot import Prototypes, activate, max_scaled
from tag2mask.ops.pot_batch import Groups, classifier_maps, mean_prototype_maps, transported_maps
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.folder import Run
from tag2mask.run.sampling import Draw
from tag2mask.run.scores import encode_scores
from tag2mask.stages.label import label
from tag2mask.types import ClassSet, Item, Own, Prior, UserError

STRIDES = (1, 2, 2, 1)
LAYOUT = Layout(blocks=(1, 1, 1, 1), width=4, strides=STRIDES)
SMALL = {"steps": 2, "batch": 3, "size": 48, "lr": 0.01}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A classifier of two of the toys' classes and of one more; its norms have seen pictures."""
    torch.manual_seed(1)
    model = Classifier(("blue", "emu", "red"), LAYOUT)
    for _ in range(5):
        model(torch.randn(8, 3, 48, 64))
    folder = tmp_path_factory.mktemp("classifier")
    save_classifier(model, folder, "")
    return str(folder)


@pytest.fixture
def data(tmp_path) -> TinyData:
    """Seven images with a truth that raises when it is read."""
    return make_data(tmp_path / "images", count=7)


@pytest.fixture
def earlier(data, tmp_path) -> Run:
    label(data, TrainingFree(CLASSES, TrainingFree.Options()), tmp_path / "earlier", progress=False)
    return Run.open(tmp_path / "earlier")


def method_of(weights, **options):
    """Quick: one scale where nothing else is asked."""
    return make_method("pot", CLASSES, weights=weights, **{**SMALL, "scales": (1.0,), **options})


def learned(run: Run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.checkpoints / POT_FILE)


def fitted(weights, data, out, earlier=None, **options) -> Run:
    label(data, method_of(weights, **options), out, prior=earlier, fit_only=True, progress=False)
    return Run.open(out)


def recipe_of(**options):
    return make_recipe(POTOptions(weights="resnet50.pth", **options))


# --- the recorded step of the released code


@pytest.fixture(scope="module")
def released(golden):
    network = POTNetwork(ResNet(Layout(strides=STRIDES, frozen_norm=True)), 20)
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


# --- the training step of the paper


def small_network(classes=3):
    torch.manual_seed(0)
    return POTNetwork(ResNet(replace(LAYOUT, frozen_norm=True)), classes)


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


# --- what is learned from


def examples_of(data, earlier, **options):
    recipe = recipe_of(size=32, **options)
    return POTExamples.of(data, earlier, recipe, 0)


def test_the_whole_image_becomes_the_square_and_its_maps_follow(data, earlier):
    plain, mirrored = (examples_of(data, earlier, mirror=mirror) for mirror in (0.0, 1.0))
    for index, sample in enumerate(data):
        picture, labels, maps, valid, _ = plain[Draw(0, index)]
        with Image.open(sample.image) as file:
            expected = np.array(file.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(picture.permute(1, 2, 0), expected)
        assert valid.all()
        assert (labels.nonzero()[:, 0] + 1).tolist() == list(sample.tags)
        scores = earlier.scores(sample.id)
        full = F.interpolate(scores.maps[None], scores.size, mode="bilinear")  # as the earlier run's masks see them
        cells = torch.zeros(3, 2, 2)
        cells[torch.tensor(sample.tags) - 1] = F.interpolate(full, (2, 2), mode="bilinear")[0]
        torch.testing.assert_close(maps, cells)
        other = mirrored[Draw(0, index)]
        assert torch.equal(picture.flip(-1), other[0])
        assert torch.equal(maps.flip(-1), other[2])


def test_crops_are_valid_where_the_picture_is(data, earlier):
    examples, counts = examples_of(data, earlier, long_side=(16, 16), mirror=0.0), []
    for sample in range(7):
        picture, _, maps, valid, _ = examples[Draw(0, sample)]
        grey = torch.tensor(subject.IMAGENET_MEAN)[:, None, None]
        filled = F.adaptive_max_pool2d((picture != grey).any(0, keepdim=True).float(), 2) > 0
        assert not (valid & ~filled).any()
        assert not maps[:, ~valid[0]].ge(0.5).any()
        counts.append(int(valid.sum()))
    assert 0 in counts or min(counts) < 4
    assert max(counts) > 0


def test_what_is_drawn_is_a_function_of_seed_step_and_sample(data, earlier):
    examples = examples_of(data, earlier)
    one, same, other = (examples[Draw(step, 2)] for step in (4, 4, 5))
    assert one[4] == same[4] != other[4]
    assert torch.equal(one[0], same[0])


def test_images_without_tags_or_maps_take_no_part(data, earlier):
    earlier.discard(data[1].id)
    data.samples[2] = replace(data[2], tags=())
    data.samples[3] = replace(data[3], tags=None)
    with pytest.warns(UserWarning, match="1 images are not learned from with maps in") as said:
        examples = examples_of(data, earlier)
    assert data[1].id in str(said[0].message)
    assert list(examples.indices) == [0, 4, 5, 6]


# --- the fit


def test_it_starts_with_the_rows_of_the_classes_that_the_weights_know(weights):
    network, given = build_pot(weights, CLASSES.foreground, seed=3), load_classifier(weights)[0]
    assert torch.equal(network.classifier.weight[[0, 2]], given.head.weight[[2, 0]])
    same, other = (build_pot(weights, CLASSES.foreground, seed=seed) for seed in (3, 4))
    assert torch.equal(network.side4.weight, same.side4.weight)
    assert not torch.equal(network.side4.weight, other.side4.weight)
    for name, value in given.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], value), name


@pytest.mark.parametrize(
    "options",
    [{}, {"variant": "released"}, {"seeds": "classifier"}, {"long_side": (24, 40)}],
    ids=str,
)
def test_stopped_between_its_steps_it_ends_in_the_same_bytes(weights, data, earlier, tmp_path, monkeypatch, options):
    prior = None if options.get("seeds") == "classifier" else earlier
    whole = fitted(weights, data, tmp_path / "whole", prior, **options)
    monkeypatch.setattr(fitting, "SAVE_STEPS", 1)
    step = POTTraining.training_step

    def stopping(self, batch, index):
        if index == 1:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(POTTraining, "training_step", stopping)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fitted(weights, data, tmp_path / "stopped", prior, **options)
    assert steps_done(tmp_path / "stopped" / "checkpoints") == 1
    monkeypatch.setattr(POTTraining, "training_step", step)
    again = fitted(weights, data, tmp_path / "stopped", prior, **options)
    first, second = learned(whole), learned(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = method_of(weights, **options).start().state_dict()
    assert not torch.equal(first["side3.weight"], start["side3.weight"])
    assert torch.equal(first["backbone.conv1.weight"], start["backbone.conv1.weight"])


def test_rates_and_decay():
    for released, momentum, own in ((False, 0.0, 0.01), (True, 0.01, 0.01)):
        settings = FitSettings(10, 8, 0.2, 0.01, decay_as_momentum=released)
        module = POTTraining(small_network(), recipe_of(), settings)
        made = module.configure_optimizers()
        groups = made["optimizer"].param_groups
        assert [group["initial_lr"] for group in groups] == [0.2, 2.0]
        assert [group["momentum"] for group in groups] == [momentum] * 2
        assert [group["weight_decay"] for group in groups] == [own] * 2
        count = sum(len(group["params"]) for group in groups)
        assert count == sum(parameter.requires_grad for parameter in module.network.parameters())
        assert made["lr_scheduler"]["scheduler"].lr_lambdas[0](5) == pytest.approx(0.5**0.9)


def test_published_settings():
    paper, released = recipe_of(), recipe_of(variant="released")
    assert paper.prototypes == Prototypes(clusters=3, threshold=0.7, marginal="similarity", combine="plan")
    assert released.prototypes.clusters == 2
    for recipe in (paper, released):
        assert (recipe.size, recipe.batch, recipe.epochs, recipe.lr) == (512, 16, 6, 0.1)
        assert (recipe.consistency_weight, recipe.long_side, recipe.adaptive) == (10, None, False)
    assert [(r.class_weight, r.consistency, r.absent, r.mirror) for r in (paper, released)] == [
        (1.0, "classifier", False, 0.5),
        (0.5, "fused", True, 0.0),
    ]
    assert recipe_of(variant="released", seeds="classifier").consistency == "classifier"


# --- labelling


def items_of(data, earlier):
    return [
        Item(
            sample.id,
            torch.from_numpy(subject.read_image(sample.image)).permute(2, 0, 1).contiguous(),
            torch.tensor(sample.tags),
            earlier and Prior(lambda id=sample.id: earlier.scores(id), lambda: None),
        )
        for sample in data
    ]


def ready(weights, earlier, **options):
    method = method_of(weights, **options)
    method.maps, method.ready = maps_of(earlier), True
    return method


def test_the_papers_maps_of_one_scale_by_hand(weights, data, earlier):
    method = ready(weights, earlier, scales=(1.0,), flip=False, map_stride=16)
    item = items_of(data, earlier)[1]
    scores = method.scores([item])[0]
    with torch.no_grad():
        logits, features = method.net(standardise(item.image[None], MEAN, STD))
    own = F.relu(logits[0, item.tags - 1])
    own = own / (own.amax((1, 2), keepdim=True) + 1e-5)
    size = tuple(item.image.shape[1:])
    full = F.interpolate(earlier.scores(item.id).maps[None], size, mode="bilinear")
    seeds = F.interpolate(full, logits.shape[2:], mode="bilinear")[0]
    seeds = seeds / seeds.amax((1, 2), keepdim=True)
    dice = [torch.Generator().manual_seed(labelling.zlib.crc32(item.id.encode()))]
    expected = max_scaled(activate(features, seeds[None], own[None], dice, Prototypes()).maps[0])
    torch.testing.assert_close(scores.maps, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.background, 1 - expected.amax(0), rtol=1e-4, atol=1e-4)


def test_masks_are_decided_by_the_methods_own_background(weights, data, earlier):
    for variant in ("paper", "released"):
        method = ready(weights, earlier, variant=variant)
        assert method.mask_rule.background == Own()
        for scores in method.scores(items_of(data, earlier)):
            assert torch.equal(class_probabilities(scores, method.mask_rule)[0] >= 0, torch.ones(scores.size).bool())


def test_what_labelling_depends_on(weights, data, earlier):
    """Paper: on the earlier maps as seeds. Released: through their background and, with ``fuse``, fused."""
    item = items_of(data, earlier)[1]
    lit = earlier.scores(item.id)
    other = replace(item, prior=Prior(lambda: replace(lit, maps=lit.maps.flip(-1)), lambda: None))
    for options, depends in (
        ({}, True),
        ({"variant": "released"}, True),
        ({"variant": "released", "fuse": False}, True),
        ({"seeds": "classifier"}, False),
        ({"variant": "released", "seeds": "classifier"}, False),
    ):
        method = ready(weights, earlier, scales=(1.0, 4.0), **options)
        first, second = (method.scores([each])[0] for each in (item, other))
        assert torch.equal(first.maps, second.maps) != depends, options
    plain, fused = (ready(weights, earlier, fuse=fuse).scores([item])[0] for fuse in (False, True))
    assert not torch.equal(plain.maps, fused.maps)


# --- bad input


def test_an_image_without_confident_pixels_has_maps_of_zeros(weights, data, earlier):
    item = items_of(data, earlier)[1]
    found = earlier.scores(item.id)
    dark = replace(item, prior=Prior(lambda: replace(found, maps=torch.zeros_like(found.maps)), lambda: None))
    for variant in ("paper", "released"):
        scores = ready(weights, earlier, variant=variant).scores([dark])[0]
        assert scores.maps.isfinite().all()
        if variant == "paper":
            assert not scores.maps.any()
            assert (scores.background == 1).all()


def test_a_class_with_one_confident_pixel_and_more_clusters_than_pixels(weights, data, earlier):
    item = items_of(data, earlier)[0]
    found = earlier.scores(item.id)
    maps = torch.zeros_like(found.maps)
    maps[:, :3, :4] = 1  # a quarter of the image, which is one of its four cells
    one = replace(item, prior=Prior(lambda: replace(found, maps=maps), lambda: None))
    for options in ({}, {"clusters": 500}, {"variant": "released", "clusters": 500}):
        scores = ready(weights, earlier, **options).scores([one])[0]
        assert scores.maps.isfinite().all()
        assert scores.background.isfinite().all()
    assert ready(weights, earlier).scores([one])[0].maps.amax() == pytest.approx(1, abs=1e-3)


def test_an_earlier_run_of_other_images(weights, data, earlier, tmp_path):
    others = make_data(tmp_path / "others", count=3, seed=5)
    others.samples = [replace(sample, id=f"x{i}") for i, sample in enumerate(others)]
    with pytest.raises(UserError, match=r"none of the 3 images in .* has any with maps in"):
        fitted(weights, others, tmp_path / "out", earlier)


def test_an_earlier_run_of_other_classes(weights, data, earlier, tmp_path):
    data.classes = replace(CLASSES, names=("background", "red", "green", "cyan"))
    method = make_method("pot", data.classes, weights=weights, **SMALL)
    with pytest.raises(UserError, match="made for other classes"):
        label(data, method, tmp_path / "out", prior=earlier, progress=False)


def test_an_earlier_run_that_saw_images_of_another_size(weights, data, earlier, tmp_path):
    scores = earlier.scores(data[0].id)
    earlier.scores_path(data[0].id).write_bytes(encode_scores(replace(scores, size=(48, 64))))
    with pytest.warns(UserWarning, match="cannot be learned from: the earlier run saw it at"):
        examples_of(data, earlier)[Draw(0, 0)]
    method = ready(weights, earlier)
    with pytest.raises(UserError, match=r"the earlier run saw .* at .*label it again"):
        method.scores(items_of(data, earlier)[:1])


def test_an_earlier_run_that_is_unfinished_or_missing(weights, data, earlier, tmp_path):
    with pytest.raises(UserError, match="earlier run's maps"):
        fitted(weights, data, tmp_path / "out")
    (earlier.path / "manifest.0-of-1.jsonl").unlink()
    with pytest.raises(UserError, match="is unfinished"):
        fitted(weights, data, tmp_path / "out", Run.open(earlier.path))


def test_an_earlier_run_where_none_is_taken(weights, data, earlier, tmp_path):
    with pytest.raises(UserError, match="starts from no earlier run"):
        fitted(weights, data, tmp_path / "out", earlier, seeds="classifier")


def test_an_image_that_cannot_be_read_teaches_nothing(data, earlier):
    examples = examples_of(data, earlier)
    data[0].image.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="cannot be learned from"):
        _, labels, maps, valid, _ = examples[Draw(0, 0)]
    assert not labels.any()
    assert not maps.any()
    assert not valid.any()


def test_maps_that_are_not_finite(weights, data, earlier):
    item = items_of(data, earlier)[0]
    found = earlier.scores(item.id)
    broken = torch.full_like(found.maps, torch.nan)
    bad = replace(item, prior=Prior(lambda: replace(found, maps=broken), lambda: None))
    with pytest.raises(UserError, match="not finite"):
        ready(weights, earlier).scores([bad])


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_features_that_are_not_finite(weights, data, earlier, tmp_path, variant):
    """While labelling the image fails, with a reason; a fit stops, and says what to do."""
    method = ready(weights, earlier, variant=variant)
    method.net.side2.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        method.scores(items_of(data, earlier)[:1])
    with pytest.raises(UserError, match=r"not finite.*lower lr"):
        fitted(weights, data, tmp_path / "out", earlier, variant=variant, lr=1e30)


def test_a_checkpoint_of_other_shapes(weights, tmp_path):
    state = small_network().state_dict()
    torch.save({"net": {n.replace("backbone.", "resnet50.", 1): v for n, v in state.items()}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: .* expected .*weights of another network"):
        make_method("pot", CLASSES, checkpoint=str(tmp_path / "a.pth"))
    with pytest.raises(UserError, match="none"):
        make_method("pot", CLASSES, checkpoint=str(tmp_path / "none.pth"))


def test_a_fit_whose_network_has_other_shapes_is_refused(weights, data, earlier, tmp_path):
    run = fitted(weights, data, tmp_path / "out", earlier)
    state = learned(run)
    state["side1.weight"] = state["side1.weight"][:, :-1].contiguous()
    safetensors.torch.save_file(state, run.checkpoints / POT_FILE)
    with pytest.raises(UserError, match=r"side1\.weight is"):
        method_of(weights).load(run.checkpoints, earlier)


def test_labelling_before_a_fit(weights):
    with pytest.raises(UserError, match="call fit and load first"):
        method_of(weights).scores([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"variant": "released", "marginal": "uniform"},
            "marginal: no effect with variant=released, which has no transport",
        ),
        ({"variant": "released", "threshold": 0.6}, "threshold: no effect with variant=released"),
        ({"variant": "released", "adaptive": True}, "adaptive: no effect with variant=released"),
        ({"temperature": 0.5}, "temperature: no effect without marginal=softmax"),
        ({"checkpoint": "final.pth", "steps": 3, "size": 64}, "size, steps: no effect with checkpoint"),
        ({"seeds": "classifier", "fuse": True}, "fuse takes an earlier run's maps"),
        ({"seeds": "classifier", "consistency": "fused"}, "consistency takes an earlier run's maps"),
        ({"steps": 3, "epochs": 2}, "both say how long"),
        ({"long_side": (9, 8)}, "the smaller number first"),
        ({"fuse": True, "scales": (0.5,)}, "takes the maps of scale 1"),
        ({"variant": "released", "scales": (0.5, 2.0)}, "takes the maps of scale 1"),
        ({"clusters": 0}, "greater than or equal to 1"),
        ({"threshold": 1.0}, "less than 1"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(UserError, match=message):
        make_options("pot", options)


def test_when_an_earlier_run_is_taken():
    def use(**options):
        return labelling.POT.earlier_run(POTOptions(**options))

    assert use() == EarlierRun("maps", "maps") == use(variant="released")
    assert use(checkpoint="final.pth") == EarlierRun(None, "maps")
    assert not use(seeds="classifier").needed
    assert not use(seeds="classifier", variant="released").needed


def test_a_released_checkpoint_labels_with_the_earlier_maps(weights, data, earlier, tmp_path, monkeypatch):
    """It learns nothing here, but needs the earlier run all the same."""
    monkeypatch.setattr(labelling, "load_released", lambda *_: method_of(weights).start())
    torch.save({"classifier.weight": torch.zeros(3, 8, 1, 1)}, tmp_path / "final.pth")
    method = make_method("pot", CLASSES, checkpoint=str(tmp_path / "final.pth"), scales=(1.0,))
    summary = label(data, method, tmp_path / "out", prior=earlier, progress=False)
    assert (summary.done, summary.failed) == (len(data), 0), summary.errors
