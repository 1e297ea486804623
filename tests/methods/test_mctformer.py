"""MCTformer as a method: what is read off its network, how it learns, and what it says to odd input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mctformers import save_timm, timm_state
from methods.cases import random_classifier
from methods.toys import CLASSES, TinyData, forbidden, make_data
from tag2mask.classes import load_classes
from tag2mask.config import read_config
from tag2mask.data.image import read_image
from tag2mask.methods import make_method, make_options
from tag2mask.methods.fitting import mctformer as fitting
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.mctformer import FITTED, PUBLISHED, SCENES, VARIANTS, MCTformerOptions
from tag2mask.models.mctformer import Reading, Shape, read_maps
from tag2mask.models.mctformer_files import read_start
from tag2mask.models.weights import load_clip
from tag2mask.ops.cam_fusion import cell_means
from tag2mask.ops.image import MEAN, STD, resize_bicubic, standardise
from tag2mask.ops.masks import class_probabilities, pseudo_mask, upsample
from tag2mask.run.folder import Run
from tag2mask.run.training import steps_done
from tag2mask.stages.label import label
from tag2mask.types import ClassSet, Item, Sample, UserError

SHAPE = Shape(width=64, layers=3, heads=1, patch=8, grid=(3, 3))
RECIPES = Path(__file__).parents[2] / "recipes"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def deit(tmp_path_factory):
    return str(save_timm(tmp_path_factory.mktemp("weights") / "deit.pth", timm_state(SHAPE)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of V2, of the toys' three classes."""
    state = timm_state(SHAPE, tokens=3)
    state["head.weight"], state["head.bias"] = torch.randn(3, 64, 3, 3), torch.randn(3)
    return str(save_timm(tmp_path_factory.mktemp("trained") / "checkpoint.pth", state))


def picture(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def item(image, *tags):
    return Item("x", image, torch.tensor(tags))


def make(weights, **options):
    return make_method("mctformer", CLASSES, device="cpu", weights=weights, **options)


# --- maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", ["fit", "cut"])
def test_maps_are_those_of_the_network_at_each_scale(trained, edges):
    method = make(trained, edges=edges, scales=(1.0, 0.75), layers=2)
    image, size = picture(38, 61), (38, 61)
    sides = {"fit": [(40, 64), (32, 48)], "cut": [size, (28, 46)]}[edges]
    grid = {"fit": (5, 8), "cut": (4, 7)}[edges]
    assert method.grid(size) == grid
    total = torch.zeros(2, *grid)
    for side in sides:
        pixels = standardise(resize_bicubic(image, side)[None], MEAN, STD)
        maps = read_maps(method.network, pixels, torch.tensor([2, 0]), Reading("fused", 2))
        total += F.interpolate(maps[None], grid, mode="bilinear")[0]
    scores = method.scores([item(image, 3, 1)])[0]
    full = F.interpolate(total[None], size, mode="bilinear")[0]
    expected = (full - full.amin((1, 2), keepdim=True)) / (
        full.amax((1, 2), keepdim=True) - full.amin((1, 2), keepdim=True)
    )
    torch.testing.assert_close(class_probabilities(scores, method.mask_rule)[1:], expected, rtol=0, atol=1e-4)
    assert (scores.frame, scores.size, tuple(scores.maps.shape)) == (None, size, (2, *grid))
    assert upsample(scores.maps, size).amax((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_what_is_read_follows_the_options(trained):
    image = picture(40, 48)
    for kind in ("class-to-patch", "patchcam", "fused"):
        for affinity in (True, False):
            for flip in (True, False):
                method = make(trained, maps=kind, affinity=affinity, flip=flip)
                pixels = standardise(image[None], MEAN, STD)
                maps = read_maps(method.network, pixels, torch.tensor([1]), Reading(kind, 3, affinity, flip=flip))
                found = method.scores([item(image, 2)])[0].maps
                torch.testing.assert_close(found / found.max(), maps / maps.max(), rtol=1e-4, atol=1e-5)


def test_a_map_without_anything_is_no_class(trained):
    method = make(trained)
    with torch.no_grad():
        method.network.head.weight.zero_()
        method.network.head.bias.fill_(-1.0)
    scores = method.scores([item(picture(24, 24), 1, 2)])[0]
    assert not scores.maps.any()
    assert not pseudo_mask(scores, picture(24, 24), method.mask_rule)[0].any()


@pytest.mark.parametrize("edges", ["fit", "cut"])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (5, 7), (8, 8), (9, 17), (40, 4000), (4000, 3)])
def test_pictures_of_any_size(trained, size, edges):
    method = make(trained, edges=edges, max_cells=300, scales=(1.0, 1.25))
    scores = method.scores([item(picture(*size), 1, 3)])[0]
    assert tuple(scores.maps.shape[1:]) == method.grid(size)
    assert scores.maps.isfinite().all()
    mask, _ = pseudo_mask(scores, picture(*size), method.mask_rule)
    assert mask.shape == size
    assert set(mask.unique().tolist()) <= {0, 1, 3}


def test_a_picture_of_4000_pixels_is_looked_at_in_so_many_cells(trained):
    seen = []
    method = make(trained, max_cells=400, scales=(1.0, 1.25))
    network = method.network
    plain = network.see
    network.see = lambda pixels, layers: seen.append(pixels.shape[2:]) or plain(pixels, layers)
    scores = method.scores([item(picture(4000, 4000), 2)])[0]
    assert seen == [torch.Size((160, 160))] * 4
    assert (tuple(scores.maps.shape), tuple(scores.size)) == ((1, 20, 20), (4000, 4000))


@pytest.mark.filterwarnings("ignore:storybook-clip")
def test_pixels_are_standardised_as_the_weights_want(monkeypatch, deit):
    clip = load_clip("storybook-clip", cache=None)
    method = make("storybook-clip")
    assert method.statistics == (clip.mean, clip.std) != (MEAN, STD)
    method.ready = True
    seen = []
    monkeypatch.setattr(method.network, "see", lambda pixels, layers: seen.append(pixels) or stop())

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        method.scores([item(picture(16, 24), 1)])
    torch.testing.assert_close(seen[0], standardise(picture(16, 24)[None], clip.mean, clip.std))
    assert make(deit).statistics == (MEAN, STD)


# --- options ----------------------------------------------------------------------------------------------------


def test_what_is_open_follows_variant_and_weights():
    paper, released = MCTformerOptions(weights="deit.pth"), MCTformerOptions(weights="deit.pth", variant="released")
    plus, scenes = MCTformerOptions(weights="deit.pth", variant="plus"), MCTformerOptions()
    assert {name: paper.chosen(name) for name in PUBLISHED} == PUBLISHED
    assert (released.chosen("late"), released.chosen("edges"), released.chosen("batch")) == (True, "cut", 64)
    assert (paper.rate, plus.rate, scenes.rate) == (6.25e-5, 3.125e-5, SCENES["lr"])
    assert [plus.chosen(name) for name in ("crop", "epochs", "contrast", "layers", "late")] == [
        448,
        45,
        1.0,
        None,
        False,
    ]
    assert (scenes.chosen("crop"), scenes.chosen("late")) == (SCENES["crop"], False)
    assert (paper.kind, plus.kind, MCTformerOptions(version="v1").kind) == ("v2", "plus", "v1")
    assert (paper.notches, plus.notches, scenes.notches) == (60, 45, 60)
    own = {"crop": 64, "batch": 3, "late": True, "edges": "cut", "erase": 0.5, "contrast": 0.0, "lr": 1e-3}
    for variant in VARIANTS:
        given = MCTformerOptions(variant=variant, **own)
        assert {name: given.chosen(name) for name in own if name != "lr"} | {"lr": given.rate} == own


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"variant": "plus", "version": "v1"}, "version v1 is not of variant plus"),
        ({"version": "v1", "maps": "fused"}, "maps fused need PatchCAM, which v1 does not have"),
        ({"epochs": 2, "steps": 3}, "epochs 2 and steps 3 both say"),
        ({"area": (0.5, 0.2)}, r"area is \[0.5, 0.2\], expected two shares"),
        ({"scales": (0.0,)}, "scales are between 0.05 and 20"),
        ({"scales": (float("nan"),)}, "scales are between 0.05 and 20"),
        ({"lr": 1e-6}, "greater than or equal to 0.00001"),
        ({"drop_path": 1.0}, "less than 1"),
    ],
)
def test_options_that_do_not_fit(options, match):
    with pytest.raises(UserError, match=match):
        make_options("mctformer", options)


def test_weights_that_do_not_fit(trained, deit, tmp_path):
    two = replace(CLASSES, names=CLASSES.names[:3], palette=CLASSES.palette[:3])
    with pytest.raises(
        UserError, match=r"is an MCTformer of 3 classes; expected one of these 2: red, green, in this"
    ):
        make_method("mctformer", two, weights=trained)
    with pytest.raises(UserError, match="is an MCTformer V2; for it give --set version=v2, with variant paper"):
        make(trained, version="v1")
    with pytest.raises(UserError, match="layers 4: this network has 3 blocks"):
        make(deit, layers=4)
    wrong = timm_state(SHAPE)
    wrong["blocks.1.mlp.fc1.weight"] = torch.randn(128, 64)
    with pytest.raises(UserError, match=r"c_fc.weight is \(128, 64\), expected \(256, 64\)"):
        make(str(save_timm(tmp_path / "wrong.pth", wrong)))
    with pytest.raises(UserError, match="call fit and load first"):
        make(deit).scores([item(picture(24, 24), 1)])
    for tags in ((), (4,), (0,)):
        with pytest.raises(ValueError, match="maps need at least one of"):
            make(trained).scores([item(picture(24, 24), *tags)])


def test_one_fit_serves_every_reading_of_its_maps(deit, tmp_path):
    data, steps = make_data(tmp_path / "images", 3), {"steps": 1, "batch": 2, "crop": 16}
    label(data, make(deit, **steps), tmp_path / "fit", fit_only=True, progress=False)
    masks = []
    for i, reading in enumerate(
        ({}, {"maps": "patchcam", "affinity": False}, {"layers": 1, "scales": (1.0, 0.5), "edges": "cut"})
    ):
        method = make(deit, **steps, **reading)
        label(data, method, tmp_path / f"run{i}", fitted=tmp_path / "fit", progress=False)
        masks.append(Run.open(tmp_path / f"run{i}").scores(data[0].id).maps)
    assert not torch.equal(masks[0], masks[1])
    assert masks[2].shape != masks[0].shape or not torch.equal(masks[0], masks[2])
    with pytest.raises(UserError, match="fitted with other settings"):
        label(data, make(deit, **steps, drop_path=0.3), tmp_path / "other", fitted=tmp_path / "fit", progress=False)


def test_psa_refines_its_maps_as_they_are(trained, tmp_path):
    """With MCTformer's numbers: what walks are the maps after min-max, and background at 0.39."""
    data = make_data(tmp_path / "images", 3, sizes=((24, 32), (16, 40)))  # whole cells of PSA
    method = make(trained)
    label(data, method, tmp_path / "seeds", progress=False)
    chosen = {**read_config(RECIPES / "voc12_mctformer_psa.yaml").refine.options}
    del chosen["beta"]  # of a walk, which takes no step here
    small = {"backbone": "resnet", "weights": random_classifier().name, "steps": 1, "batch": 2, "crop": 72}
    psa = make_method("psa", CLASSES, device="cpu", **{**chosen, **small, "walk_steps": 0})
    with pytest.warns(UserWarning, match="psa learns for 1 steps"):
        label(data, psa, tmp_path / "run", prior=tmp_path / "seeds", progress=False)
    for sample in data:
        before, after = (Run.open(tmp_path / name).scores(sample.id) for name in ("seeds", "run"))
        expected = cell_means(class_probabilities(before, method.mask_rule), 8)  # without a step, what walks
        np.testing.assert_allclose(after.maps, expected[1:], atol=2e-3)  # kept in 16 bits
        np.testing.assert_allclose(after.background, expected[0], atol=2e-3)
        assert expected[0].unique().item() == pytest.approx(0.39)


def test_options_of_learning_where_nothing_is_learned(trained):
    with pytest.raises(UserError, match=r"batch, lr: no effect with weights=.* labels as it is; give epochs or"):
        make(trained, batch=3, lr=0.1)
    assert make(trained, batch=3, lr=0.1, steps=1).learns


def test_a_checkpoint_labels_as_it_is_or_learns_on(trained, tmp_path):
    data = make_data(tmp_path / "images", 4)
    method = make(trained)
    assert not method.learns
    assert label(data, method, tmp_path / "run", progress=False).done == 4
    assert "crop" not in Run.open(tmp_path / "run").settings["resolved"]
    on = make(trained, steps=1, batch=2, crop=16)
    assert on.learns
    label(data, on, tmp_path / "on", progress=False)
    before, after = (m.network.class_embedding for m in (method, on))
    assert 0 < (after - before).abs().max() < 1e-4  # one step at 1e-6


# --- the fit ----------------------------------------------------------------------------------------------------


def fitted(folder, weights, data=None, **options):
    data = data or make_data(folder / "images", 6)
    method = make(weights, **{"steps": 3, "batch": 2, "crop": 24, **options})
    with Run.create(folder / "run", {"method": "mctformer", "options": method.options}) as run:
        method.fit(data, run.checkpoints)
    method.load(run.checkpoints)
    return method, run


def test_what_a_fit_leaves_is_a_checkpoint(deit, tmp_path):
    method, run = fitted(tmp_path, deit, version="v1")
    start = read_start(run.checkpoints / FITTED)
    assert (start.names, start.version, start.shape, start.supervision) == (CLASSES.foreground, "v1", SHAPE, "tags")
    again = make(str(run.checkpoints / FITTED), version="v1")
    image = item(picture(24, 30), 1)
    assert torch.equal(again.scores([image])[0].maps, method.scores([image])[0].maps)
    other = ClassSet("x", ("background", "blue", "green", "red"), CLASSES.palette)
    with pytest.raises(UserError, match="of 3 classes: red, green, blue; expected one of these 3: blue, green, red"):
        make_method("mctformer", other, weights=str(run.checkpoints / FITTED), version="v1")


def test_a_fit_takes_the_steps_of_its_formula(deit, tmp_path):
    """Without Lightning: the same pictures, losses and rates, by hand; mirrored pictures are the same here."""
    data = make_data(tmp_path / "images", 6, sizes=((24, 12),))
    pixels, tags = [], torch.zeros(6, 3)
    for row, sample in zip(tags, data, strict=True):
        half = torch.from_numpy(read_image(sample.image))
        image = torch.cat([half, half.flip(1)], 1)  # (24, 24, 3)
        Image.fromarray(image.numpy()).save(sample.image)
        pixels.append(image.permute(2, 0, 1))
        row[torch.tensor(sample.tags) - 1] = 1
    whole = {"area": (1.0, 1.0), "rand_augment": False, "erase": 0.0, "drop_path": 0.0}
    method, _ = fitted(tmp_path, deit, data, steps=2, batch=6, lr=0.01, weight_decay=0.5, **whole)
    network = make(deit).start().train()
    course = fitting.Course(FitSettings(2, 6, 0.01, 0.5), 60, late=False)
    optimizer = course.optimizer(network)["optimizer"]
    assert course.rate(1) > 0.001
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = course.rate(step)
        found = network.logits(standardise(torch.stack(pixels), MEAN, STD))
        loss = F.multilabel_soft_margin_loss(found.classes, tags) + F.multilabel_soft_margin_loss(found.patches, tags)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ours = dict(method.network.named_parameters())
    moved = dict(make(deit).start().named_parameters())
    for name, value in network.named_parameters():
        if name.endswith("in_proj_bias"):  # of keys it has no gradient, and Adam's step has either sign
            continue
        assert (ours[name] - value).norm() <= 0.02 * (value - moved[name]).norm() + 1e-6, name


def test_what_the_network_sees(deit, tmp_path, monkeypatch):
    """Standardised squares and the tags of the batch; branches are left out as asked; the contrast counts."""
    seen = []

    def spy(network, pixels, tags, known, contrast=0.0):
        seen.append((pixels, tags, known, contrast, [block.drop_path for block in network.blocks], network.training))
        return losses(network, pixels, tags, known, contrast)

    losses = fitting.losses
    monkeypatch.setattr(fitting, "losses", spy)
    data = make_data(tmp_path / "images", 4)
    Path(data[1].image).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="cannot be learned from"):
        fitted(tmp_path, deit, data, variant="plus", steps=2, batch=4, drop_path=0.2)
    for pixels, tags, known, contrast, rates, training in seen:
        assert (tuple(pixels.shape), contrast, rates, training) == ((4, 3, 24, 24), 1.0, [0, 0.1, 0.2], True)
        assert pixels.abs().max() < 5
        assert known.sum() == 3
        assert torch.equal(known, tags.any(1))
        assert sorted(tags.sum(1).tolist()) == sorted([0, *(len(s.tags) for i, s in enumerate(data) if i != 1)])


def test_mctformer_plus_learns_on_a_grid_of_twice_the_side(deit, tmp_path):
    method, _ = fitted(tmp_path, deit, variant="plus", steps=1, crop=48)
    assert method.network.native_grid == (6, 6)
    assert (method.network.ranked, method.reading.root, method.reading.layers) == (True, True, 3)
    assert make(deit, variant="plus", crop=24).start().native_grid == (3, 3)
    assert tuple(method.scores([item(picture(30, 40), 2)])[0].maps.shape) == (1, 4, 5)


def test_dropped_branches_are_those_of_the_step(deit, tmp_path):
    """Whatever torch's dice did before; and with another seed they are others."""
    found = []
    for seed, dice in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(dice)
        method, _ = fitted(tmp_path / f"{seed}-{dice}", deit, seed=seed, drop_path=0.5, lr=0.01)
        found.append(method.network.blocks[0].mlp.c_fc.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_nothing_to_learn_from(deit, tmp_path):
    data = make_data(tmp_path, 2)
    empty = TinyData(
        [Sample(s.id, s.image, tags, forbidden) for s, tags in zip(data, [(), None], strict=True)], tmp_path
    )
    with pytest.raises(UserError, match=r"learns from tags; none of the 2 images in .* has any"):
        make(deit, steps=1).fit(empty, tmp_path / "x")


def test_random_weights_are_a_start(tmp_path, monkeypatch):
    plain = Shape
    monkeypatch.setattr("tag2mask.models.mctformer_files.Shape", lambda **given: plain(**given) if given else SHAPE)
    method, run = fitted(tmp_path, "random", steps=1)
    assert steps_done(run.checkpoints) == 1
    assert method.resolved["weights_sha256"] is None
    assert not torch.equal(make("random").network.conv1.weight, make("random", seed=1).network.conv1.weight)


@pytest.mark.parametrize(
    "name", ["voc12_mctformer", "voc12_mctformer_plus", "coco14_mctformer", "voc12_mctformer_psa"]
)
def test_recipes_make_the_published_networks(name, tmp_path, monkeypatch):
    """Dry, from DeiT-S's layout made narrow."""
    monkeypatch.chdir(tmp_path)
    save_timm(tmp_path / "deit_small_patch16_224-cd65a155.pth", timm_state(Shape(width=64, layers=3, heads=1)))
    config = read_config(RECIPES / f"{name}.yaml")
    classes = load_classes(config.data.classes)
    method = make_method("mctformer", classes, **config.options)
    options, plus = method.options, "plus" in name
    assert (options.epochs, options.chosen("batch"), options.rate) == (
        (45, 32, 3.125e-5) if plus else (60, 64, 6.25e-5)
    )
    assert method.network.native_grid == ((28, 28) if plus else (14, 14))
    assert method.network.classes == len(classes) - 1 == (80 if "coco" in name else 20)
    published = {**PUBLISHED, **VARIANTS[options.variant]}
    assert {name: options.chosen(name) for name in published} == published
    if config.refine is not None:
        chosen = make_options("psa", config.refine.options)
        assert (chosen.low, chosen.alpha_high, chosen.walk_steps, chosen.threshold) == (1, 12, 64, None)
