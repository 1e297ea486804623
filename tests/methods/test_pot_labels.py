"""What POT labels with, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from methods.pot_cases import SMALL, examples_of, fitted, learned, method_of, small_network
from methods.toys import CLASSES, make_data
from tag2mask.methods import make_method, make_options
from tag2mask.methods import pot as labelling
from tag2mask.methods.fitting import pot as subject
from tag2mask.methods.fitting.pot_recipe import maps_of
from tag2mask.methods.pot import POT_FILE
from tag2mask.methods.pot_options import POTOptions
from tag2mask.methods.protocol import EarlierRun
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.masks import class_probabilities
from tag2mask.ops.pot import Prototypes, activate, max_scaled
from tag2mask.run.folder import Run
from tag2mask.run.sampling import Draw
from tag2mask.run.scores import encode_scores
from tag2mask.stages.label import label
from tag2mask.types import Item, Own, Prior, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


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
