"""POT's fit: what it learns from, and that it may be stopped anywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from methods.pot_cases import examples_of, fitted, learned, method_of, recipe_of, small_network
from methods.toys import CLASSES
from tag2mask.methods.fitting import pot as subject
from tag2mask.methods.fitting import settings as fitting
from tag2mask.methods.fitting.pot import POTTraining
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.models.classifier import load_classifier
from tag2mask.models.pot import build_pot
from tag2mask.ops.pot import Prototypes
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.sampling import Draw

pytestmark = pytest.mark.usefixtures("one_thread")


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
