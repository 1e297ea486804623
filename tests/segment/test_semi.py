"""CCT's training: what is in a batch, who learns from what, and lists that leave nothing to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segment.test_examples import listed, no_truth
from stages.small_run import CLASSES, Toys
from tag2mask.config import read_recipe
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.corrected import Corrected, counting
from tag2mask.run.folder import Run
from tag2mask.run.sampling import Draw, StepSampler, Training
from tag2mask.segment.augment import Augment
from tag2mask.segment.cct import PUBLISHED
from tag2mask.segment.network import SegmentationNet, build_network
from tag2mask.segment.recipe import CCT, TrainRecipe, check
from tag2mask.segment.saved import NetworkConfig
from tag2mask.segment.semi import CrossConsistency, Halves, Mixed
from tag2mask.segment.targets import check_targets, find_targets
from tag2mask.types import IGNORE, UserError

CROPS = Augment(crop=32)
TINY = {"blocks": (1, 1, 1, 1), "width": 4}
EACH = CCT(decoders=dict.fromkeys(PUBLISHED, 1))


def net(architecture: str = "cct-small", **options: object) -> SegmentationNet:
    return build_network(NetworkConfig.of(architecture, CLASSES, **TINY, **options), seed=3)


def module(settings: CCT = EACH, **recipe: Any) -> CrossConsistency:
    given = {
        "architecture": "cct-small",
        "options": TINY,
        "crop": 32,
        "batch": 2,
        "steps": 20,
        "seed": 5,
        "semi": "cct",
    }
    how = TrainRecipe(cct=settings, **{**given, **recipe})  # type: ignore[arg-type]
    check(how)
    return CrossConsistency(how, net())


def batches(data: Toys, run: Run, tmp_path: Path, step: int = 7, batch: int = 2) -> Halves:
    """One batch as the training draws it, of images whose true masks may not be read but for two."""
    names = ("toy/1", "toy/4")
    guarded = [replace(s, truth=s.truth if s.id in names else no_truth) for s in data.samples]
    mixed = Mixed(find_targets(replace(data, samples=guarded), run, listed(tmp_path, *names)), CROPS, seed=1)
    draws = list(StepSampler(Training(steps=20, batch=batch, seed=1), mixed.groups))[step]
    return mixed.collate([mixed[draw] for draw in draws])


def correct(run: Run, *ids: str) -> None:
    """Masks that a person corrected: hats alone."""
    for id in ids:
        mask = np.full_like(read_mask(run.mask_path(id)), 3)
        Corrected(run).store(id, encode_mask(mask, CLASSES.palette), "by hand")


@pytest.mark.parametrize("blank", [False, True])
def test_corrected_masks_are_labelled_and_made_ones_are_not(tmp_path, data, run, blank) -> None:
    """The main decoder learns from them as from true masks; with cct.weak=none no made mask is read."""
    correct(run, "toy/1", "toy/4")
    names = listed(tmp_path, "toy/4")  # where there is a true mask, it counts
    targets = find_targets(data, counting(run), names, blank=blank)
    assert targets.supervision == "tags+pixels(2)"
    mixed = Mixed(targets, Augment(crop=None, flip=0), seed=1)
    labelled, weak = ([part.targets.sample(at).id for at in range(len(part))] for part in mixed.parts)
    assert (labelled, weak) == (["toy/1", "toy/4"], ["toy/0", "toy/2", "toy/3"])
    assert mixed.parts[0].read(0).labels.eq(3).all()
    assert torch.equal(mixed.parts[0].read(1).labels, torch.from_numpy(data[4].truth()))
    made = torch.from_numpy(read_mask(run.mask_path("toy/0")).copy())
    assert torch.equal(mixed.parts[1].read(0).labels, torch.full_like(made, IGNORE) if blank else made)
    check_targets(targets, confidence=True)
    assert [mixed[Draw(0, at)].pixels for at in range(5)] == [True, True, False, False, False]
    alone = Mixed(find_targets(data, counting(run), blank=blank), CROPS, seed=1)
    assert alone.groups == (2, 3)
    halves = alone.collate([alone[Draw(0, at)] for at in (0, 1, 2, 3)])
    assert (halves.labelled.labels == 3).any()
    assert halves.labelled.labels.ge(3).all()  # 255 around it


def test_masks_that_a_person_drew_count_for_the_loss_whatever_mu(data, run) -> None:
    correct(run, "toy/1")
    mixed = Mixed(find_targets(data, counting(run)), CROPS, seed=1, confidence=True)
    halves = mixed.collate([mixed[Draw(0, at)] for at in range(5)])
    assert halves.labelled.confidence is not None
    seen = halves.labelled.labels != IGNORE
    assert halves.labelled.confidence[seen].eq(1).all()


def test_a_batch_is_half_labelled_and_half_not(tmp_path, data, run) -> None:
    seen = []
    for step in range(6):
        labelled, unlabelled = batches(data, run, tmp_path, step)
        assert labelled.images.shape == unlabelled.images.shape == (2, 3, 32, 32)
        assert labelled.pixels.all()
        assert not unlabelled.pixels.any()
        assert labelled.step == unlabelled.step == step
        assert labelled.replaced == unlabelled.replaced == ()
        seen.append((*labelled.samples.tolist(), *unlabelled.samples.tolist()))
    assert all({a, b} == {0, 1} for a, b, _, _ in seen)  # each epoch of the labelled ones is one batch
    drawn = [i for _, _, a, b in seen for i in (a, b)]
    assert all(sorted(drawn[e : e + 3]) == [0, 1, 2] for e in range(0, 12, 3))


def test_the_two_kinds_are_augmented_by_other_dice(tmp_path, data, run) -> None:
    same = replace(data, samples=[replace(s, image=data.samples[0].image) for s in data.samples])
    mixed = Mixed(find_targets(same, run, listed(tmp_path, "toy/0")), CROPS, seed=1)
    assert mixed.parts[0].seed != mixed.parts[1].seed


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [],
            "got 0 images with true or corrected masks and 5 without, expected some of each; no labelled images are "
            "left: name",
        ),
        (
            [f"toy/{i}" for i in range(5)],
            "got 5 images with true or corrected masks and 0 without.*name fewer with --pixel-labels",
        ),
    ],
)
def test_both_kinds_are_needed(tmp_path, data, run, names, message) -> None:
    targets = find_targets(data, run, listed(tmp_path, *names) if names else None)
    with pytest.raises(UserError, match=message):
        Mixed(targets, CROPS, seed=0)


def gradients(parameters: object) -> float:
    return sum(float(p.grad.abs().sum()) for p in parameters if p.grad is not None)  # type: ignore[attr-defined]


def backward(losses: dict[str, Tensor]) -> None:
    torch.stack([*losses.values()]).sum().backward()


def test_every_perturbation_learns_with_finite_losses(tmp_path, data, run) -> None:
    cct = module(replace(EACH, pairwise_weight=1.0))
    losses = cct.batch_losses(batches(data, run, tmp_path))
    assert set(losses) == {"labelled", "consistency", "weak", "pairwise"}
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    backward(losses)
    assert len(cct.auxiliary) == 7
    for decoder in cct.auxiliary:
        assert 0 < gradients(decoder.parameters()) < float("inf")
    for part in (cct.net.network.backbone.conv1, cct.net.network.psp, cct.net.network.main):
        assert 0 < gradients(part.parameters()) < float("inf")  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("weak", ["masks", "none"])
def test_unlabelled_images_teach_the_encoder_and_not_the_main_decoder(tmp_path, data, run, weak) -> None:
    cct = module(replace(EACH, weak=weak))
    labelled, unlabelled = batches(data, run, tmp_path)
    unknown = labelled._replace(labels=torch.full_like(labelled.labels, IGNORE))
    losses = cct.batch_losses(Halves(unknown, unlabelled))
    assert float(losses["labelled"].detach()) == 0
    backward(losses)
    network = cct.net.network
    assert gradients(network.main.parameters()) == 0  # type: ignore[union-attr, operator]
    assert gradients(network.backbone.conv1.parameters()) > 0  # type: ignore[union-attr, operator]
    assert gradients(network.psp.parameters()) > 0  # type: ignore[union-attr, operator]


def test_weak_masks_count_where_they_are_asked_for(tmp_path, data, run) -> None:
    labelled, unlabelled = batches(data, run, tmp_path)
    other = unlabelled._replace(labels=(unlabelled.labels + 1) % 3)
    plain, with_masks = (replace(EACH, weak=weak) for weak in ("none", "masks"))
    found = [module(plain).batch_losses(Halves(labelled, each)) for each in (unlabelled, other)]
    assert "weak" not in found[0]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    taught = [module(with_masks).batch_losses(Halves(labelled, each)) for each in (unlabelled, other)]
    assert not torch.equal(taught[0]["weak"], taught[1]["weak"])
    assert torch.equal(taught[0]["consistency"], found[0]["consistency"])


def test_losses_follow_seed_and_batch_alone(tmp_path, data, run) -> None:
    batch = batches(data, run, tmp_path)

    def consistency(seed: int, step: int) -> float:
        at = Halves(batch[0]._replace(step=step), batch[1]._replace(step=step))
        torch.manual_seed(0)
        return float(module(replace(EACH, ramp=0.0), seed=seed).batch_losses(at)["consistency"].detach())

    before = torch.get_rng_state()
    first = consistency(5, 7)
    torch.rand(9)
    assert first == consistency(5, 7)
    assert first != consistency(5, 8)
    torch.set_rng_state(before)
    torch.manual_seed(1)
    module().batch_losses(batch)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(after, torch.get_rng_state())


def test_weights_rise_over_a_share_of_the_steps(tmp_path, data, run) -> None:
    batch = batches(data, run, tmp_path)

    def at(step: int, accumulate: int) -> dict[str, Tensor]:
        cct = module(replace(EACH, ramp=0.5), accumulate=accumulate)
        return cct.batch_losses(Halves(batch[0]._replace(step=step), batch[1]._replace(step=step)))

    def weight(step: int, accumulate: int) -> float:
        found = at(step, accumulate)["weak"].detach()
        return float(found / at(step, 1000)["weak"].detach())  # that one is at step 0, with the same dice

    first = torch.exp(torch.tensor(-5.0))
    for step, accumulate, share in ((10, 1, 1.0), (19, 1, 1.0), (5, 1, 0.5), (11, 2, 0.5)):
        assert weight(step, accumulate) == pytest.approx(
            float(torch.exp(torch.tensor(-5 * (1 - share) ** 2)) / first)
        )


def test_the_bootstrapped_loss_leaves_out_what_is_sure(tmp_path, data, run) -> None:
    batch = batches(data, run, tmp_path)
    plain = module().batch_losses(batch)["labelled"]
    hard = module(loss="bootstrapped").batch_losses(batch)["labelled"]
    assert torch.isfinite(hard)
    assert float(hard.detach()) > float(plain.detach())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"architecture": "small", "options": {}}, "got architecture small, expected cct-small or cct-resnet50"),
        ({"crop": 36}, "got crop 36 and batch 2, expected a multiple of 8"),
        ({"batch": 1}, "got crop 32 and batch 1"),
        ({"cct": CCT(decoders={"vat": 0})}, "at least one decoder"),
        ({"cct": CCT(decoders={"vat": -1, "noise": 3})}, "expected numbers from 0"),
        ({"cct": CCT(ramp=2)}, "ramp 2, expected finite weights"),
        ({"cct": CCT(weak_weight=-1)}, "got weights 30.0, -1, 0.0"),
        ({"cct": CCT(sure=1.5)}, "cct.sure 1.5 with cct.agreement mse"),
        ({"cct": CCT(sure=0.5, agreement="js")}, "cct.sure 0.5 with cct.agreement js"),
    ],
)
def test_impossible_settings_are_refused(recipe, message) -> None:
    with pytest.raises(UserError, match=message):
        module(**({"settings": recipe["cct"]} if "cct" in recipe else recipe))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("cct.weka=none", "cct.weka: unexpected keyword argument"),
        ("cct.weak=some", "cct.weak: input should be 'masks' or 'none', got 'some'"),
        ("cct.decoders={rain: 1}", "cct.decoders.rain.*: input should be 'vat'"),
        ("semi=mean-teacher", "semi: input should be 'cct'"),
    ],
)
def test_unknown_settings_are_named(option, message) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(TrainRecipe, [option])


def test_settings_of_cct_are_given_one_by_one() -> None:
    recipe = read_recipe(TrainRecipe, ["semi=cct", "cct.weak=none", "cct.decoders={vat: 1, noise: 2}"])
    assert recipe.cct == CCT(decoders={"vat": 1, "noise": 2}, weak="none")
    assert read_recipe(TrainRecipe).cct == CCT()


def test_the_published_network_learns_all_but_the_backbone_at_ten_times_the_rate() -> None:
    cct = build_network(NetworkConfig.of("cct-resnet50", CLASSES, **TINY))
    groups = cct.parameter_groups(1e-3, 1e-4)
    backbone = {id(p) for p in cct.network.backbone.parameters()}  # type: ignore[union-attr, operator]
    assert {group["weight_decay"] for group in groups} == {1e-4}
    for group in groups:
        inside = {id(p) in backbone for p in group["params"]}
        assert len(inside) == 1
        assert group["lr"] == pytest.approx(1e-3 if inside.pop() else 1e-2)
    assert sum(len(group["params"]) for group in groups) == len(list(cct.parameters()))
    assert not any("auxiliary" in name for name in cct.state_dict())


def test_auxiliary_decoders_learn_at_the_main_ones_rate() -> None:
    cct = module(optimiser="sgd", lr=1e-3, weight_decay=1e-4)
    rates = {id(p): g["lr"] for g in cct.configure_optimizers().param_groups for p in g["params"]}
    assert len(rates) == len(list(cct.parameters()))
    main = cct.net.network.main.parameters()  # type: ignore[union-attr, operator]
    assert {rates[id(p)] for p in [*main, *cct.auxiliary.parameters()]} == {1e-2}
    # and they do not start as copies of the main decoder, or of each other
    first = [next(decoder.parameters()) for decoder in [cct.net.network.main, *cct.auxiliary]]  # type: ignore[list-item, union-attr]
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])


def test_cct_small_starts_from_storybook_resnet() -> None:
    from tag2mask.models.classifier import load_backbone

    built = build_network(NetworkConfig.of("cct-small", CLASSES), init="storybook-resnet")
    source = load_backbone()
    for name, value in source.state_dict().items():
        assert torch.equal(built.network.backbone.state_dict()[name], value)  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match=r"a 7x7 stem, expected width 64, .* and a 3x3 stem"):
        build_network(NetworkConfig.of("cct-resnet50", CLASSES), init="storybook-resnet")


def test_settings_of_cct_without_it_are_refused() -> None:
    with pytest.raises(UserError, match="settings of semi=cct"):
        check(TrainRecipe(cct=CCT(weak="none")))
