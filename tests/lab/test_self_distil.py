"""storybook-dino's training: its views, its targets, what learns and what follows, and that it may be stopped."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lab.distil_cases import TINY
from tag2mask.lab.cache import Rendered, render_cache
from tag2mask.lab.self_distil import (
    Learner,
    Pictures,
    SelfDistilled,
    crowding,
    even_shares,
    hidden_patches,
    make_learner,
    sample_targets,
)
from tag2mask.lab.self_distil_recipe import check
from tag2mask.lab.views import find, look, window
from tag2mask.models.average import follow
from tag2mask.run.sampling import Draw
from tag2mask.run.training import fit
from tag2mask.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return render_cache(tmp_path_factory.mktemp("scenes"), Rendered(8, (32, 48)), workers=1).images


def batch_of(images, recipe, step=0):
    pictures = Pictures(images, recipe)
    return pictures.collate([pictures[Draw(step, i % len(pictures))] for i in range(recipe.batch)])


def quiet(recipe=TINY):
    module = SelfDistilled(recipe)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


# --- views


def test_a_batch_holds_pictures_and_views_alone(images) -> None:
    batch = batch_of(images, TINY)
    assert sorted(batch) == ["image", "step", "views"]
    assert batch["views"].shape == (4, 3, 9)
    assert np.array_equal(batch["image"][1].numpy(), images[1])


def test_views_lie_in_the_picture_and_show_much_of_the_same(images) -> None:
    recipe = dataclasses.replace(TINY, few=2)
    pictures = Pictures(images, recipe)
    views = torch.stack([pictures[Draw(i, i % 8)].views for i in range(200)])  # (200, 4, 9)
    height, width, top, left = views[..., :4].unbind(-1)
    assert bool((top >= 0).all() and (left >= 0).all())
    assert bool((top + height <= 1 + 1e-6).all() and (left + width <= 1 + 1e-6).all())
    areas = height * width
    assert bool((areas[:, :2] <= recipe.place[1] * recipe.large_share[1] + 1e-6).all())
    assert bool((areas[:, :2] >= recipe.place[0] * recipe.large_share[0] * 0.8).all())  # sides may be cut
    assert float(areas[:, 2:].mean()) < float(areas[:, :2].mean())
    places = find(window(views[:, 0], (4, 4)), views[:, 1])
    assert float((places.abs() <= 1).all(-1).float().mean()) > 0.5
    assert {0.0, 1.0} == set(views[..., 4].flatten().tolist())
    assert torch.equal(pictures[Draw(3, 5)].views, pictures[Draw(3, 5)].views)
    assert not torch.equal(pictures[Draw(3, 5)].views, pictures[Draw(4, 5)].views)


def test_finding_undoes_a_window() -> None:
    views = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    views[:, 4] = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    whole = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0, 0]]).expand(5, 9)
    torch.testing.assert_close(find(window(views, (3, 4)), views), window(whole, (3, 4)), atol=1e-5, rtol=0)


def test_a_patch_is_taught_by_the_same_place_of_the_other_view() -> None:
    """In a picture whose colours say where one is, mirrored and unlike windows agree."""
    rows, columns = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 128), indexing="ij")
    image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    recipe = dataclasses.replace(TINY, side=64, patch=4, colour=0.0, batch=8)
    views = batch_of(np.stack([image] * 8), recipe)["views"]
    assert len(set(views[:, 0, 4].tolist()) | set(views[:, 1, 4].tolist())) == 2
    images = torch.from_numpy(image).expand(8, -1, -1, -1)
    first, second = (
        F.avg_pool2d(look(images, views[:, v], (64, 64)), 4).flatten(2).transpose(1, 2) for v in (0, 1)
    )  # (B, N, 3)
    told, shown = sample_targets(first, (16, 16), views[:, 0], views[:, 1], (16, 16))
    assert 0.3 < float(shown.mean()) < 1
    assert float(((told - second).abs() * shown[..., None]).max()) < 0.02
    assert float((told - second).abs().max()) > 0.04  # what the first does not show


# --- targets


def test_codes_are_taken_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 8, generator=generator) + 6 * torch.eye(8)[0]
    assert float(logits.softmax(-1).mean(0)[0]) > 0.6  # one code takes most
    shares = even_shares(logits, rounds=20)
    torch.testing.assert_close(shares.sum(1), torch.ones(400))
    torch.testing.assert_close(shares.mean(0), torch.full((8,), 1 / 8), atol=1e-3, rtol=0)
    assert float(shares.max(1).values.mean()) > 0.5  # and rows still have opinions
    assert not even_shares(logits.requires_grad_()).requires_grad


def test_crowding_is_of_all_pairs() -> None:
    features = F.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    squares = (features @ features.T).square().mean()  # over all pairs, each with itself, too
    torch.testing.assert_close(crowding(features), (6 * squares).log())
    torch.testing.assert_close(crowding(torch.eye(6).repeat(3, 1)), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(crowding(features[:1].expand(9, -1)), torch.tensor(math.log(6)))


def test_hidden_patches_are_many_and_lie_together() -> None:
    hidden = hidden_patches(3, 0, 64, (12, 12), 0.3)
    assert hidden.sum(1).tolist() == [43] * 64
    assert torch.equal(hidden, hidden_patches(3, 0, 64, (12, 12), 0.3))
    assert not torch.equal(hidden, hidden_patches(4, 0, 64, (12, 12), 0.3))
    square = hidden.unflatten(1, (12, 12)).float()
    beside = (square[:, :, 1:] * square[:, :, :-1]).sum() / square[:, :, 1:].sum()
    assert float(beside) > 0.5  # 0.3 where they were strewn
    assert hidden_patches(3, 0, 4, (12, 12), 0.0) is None


# --- the network


def test_a_hidden_patch_is_not_seen() -> None:
    learner = make_learner(TINY).eval()
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 5] = True  # rows 4..7, columns 4..7
    other = pixels.clone()
    other[..., 4:8, 4:8] += 1
    with torch.no_grad():
        assert torch.equal(learner(pixels, hidden), learner(other, hidden))
        assert not torch.equal(learner(pixels), learner(other))
        torch.testing.assert_close(learner(pixels).norm(dim=-1), torch.ones(1, 17))
        assert learner.cosines(learner(pixels)).shape == (1, 17, TINY.codes)
        assert float(learner.cosines(learner(pixels)).abs().max()) <= 1 + 1e-5


def test_weights_depend_on_the_recipe_alone() -> None:
    torch.manual_seed(1)
    first = make_learner(TINY).state_dict()
    torch.manual_seed(2)
    again, other = make_learner(TINY).state_dict(), make_learner(dataclasses.replace(TINY, seed=1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["codes"], other["codes"])


# --- the training


def test_losses_by_hand(images) -> None:
    """What a batch costs, once more, view by view and without a batch."""
    recipe = dataclasses.replace(TINY, whole_weight=0.5, aligned_weight=2.0, hidden_weight=0.25, spread_weight=0.75)
    module, batch = quiet(recipe), batch_of(images, recipe, step=2)
    found = module.losses(batch)
    views = batch["views"]

    def pixels(v, side):
        return (look(batch["image"], views[:, v], (side, side)) - module.mean) / module.std

    hidden = hidden_patches(2, recipe.seed, 8, (4, 4), recipe.hidden)
    with torch.no_grad():
        large = [pixels(v, 16) for v in (0, 1)]
        features = torch.cat([module.teacher(each) for each in large])
        logits = module.teacher.cosines(features) / recipe.teacher_temperature
        whole = even_shares(logits[:, 0]).split(4)
        patches = even_shares(logits[:, 1:].reshape(-1, 12)).view(8, 16, 12).split(4)
        seen = [module.student(each, hidden[4 * v : 4 * v + 4]) for v, each in enumerate(large)]
        seen.append(module.student(pixels(2, 8)))
        logs = [(module.student.cosines(each) / recipe.student_temperature).log_softmax(-1) for each in seen]
        pairs = [(v, t) for v in (0, 1, 2) for t in (0, 1) if v != t]
        wholes = [-(whole[t] * logs[v][:, 0]).sum(-1).mean() for v, t in pairs]
        torch.testing.assert_close(found["whole"], 0.5 * torch.stack(wholes).mean())
        aligned = []
        for v, t in pairs:
            own = (4, 4) if v < 2 else (2, 2)
            told, shown = sample_targets(patches[t], (4, 4), views[:, t], views[:, v], own)
            aligned.append((-(told * logs[v][:, 1:]).sum(-1) * shown).sum() / shown.sum())
        torch.testing.assert_close(found["aligned"], 2 * torch.stack(aligned).mean())
        each = [-(patches[v] * logs[v][:, 1:]).sum(-1)[hidden[4 * v : 4 * v + 4]] for v in (0, 1)]
        torch.testing.assert_close(found["hidden"], 0.25 * torch.cat(each).mean())
        large_ones = torch.cat(seen[:2])[:, 1:].reshape(-1, 16)
        torch.testing.assert_close(found["spread"], 0.75 * crowding(large_ones))


def test_the_teacher_gets_no_gradient(images) -> None:
    module = quiet()
    module.training_step(batch_of(images, TINY), 0).backward()
    assert all(parameter.grad is None for parameter in module.teacher.parameters())
    left = [name for name, own in module.student.named_parameters() if own.numel() and not own.grad.any()]
    assert left == []
    optimised = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert optimised == {id(parameter) for parameter in module.student.parameters()}


class Watched(SelfDistilled):
    """Keeps the teacher and the student after every step."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.kept = [self._now()]

    def _now(self):
        return [[p.detach().clone() for p in net.parameters()] for net in (self.teacher, self.student)]

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.kept.append(self._now())


def test_the_teacher_is_the_students_average(images, tmp_path) -> None:
    module = Watched(TINY)
    assert all(torch.equal(a, b) for a, b in zip(*module.kept[0], strict=True))
    fit(module, Pictures(images, TINY), TINY.training(device="cpu"), tmp_path, show=False)
    assert len(module.kept) == 5
    for done, ((before, _), (teacher, student)) in enumerate(zip(module.kept, module.kept[1:], strict=False)):
        decay = min(TINY.ema, (1 + done) / (10 + done))
        for old, new, now in zip(before, teacher, student, strict=True):
            torch.testing.assert_close(new, decay * old + (1 - decay) * now, atol=1e-6, rtol=1e-5)
    assert not all(torch.equal(a, b) for a, b in zip(*module.kept[-1], strict=True))


def test_it_learns(images) -> None:
    """On a few pictures: views agree far better than by chance, features do not crowd, and codes stay many."""
    recipe = dataclasses.replace(TINY, steps=120, warmup=5, lr=3e-3, whole_weight=0.0, hidden=0.0, batch=8)
    recipe = dataclasses.replace(recipe, few=0, teacher_temperature=0.02, spread_weight=0.3)
    module = quiet(recipe)
    optimizer = module.configure_optimizers()["optimizer"]
    costs = []
    for step in range(recipe.steps):
        losses = module.losses(batch_of(images, recipe, step))
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
        follow(module.teacher, module.student, 0.95, step)
        costs.append((float(losses["aligned"].detach()), float(losses["spread"].detach())))
    first, last = (np.mean(part, 0) for part in (costs[:10], costs[-10:]))
    assert last[0] < 0.8 * math.log(recipe.codes)
    assert last[0] < 0.8 * first[0]
    assert last[1] < 0.6 * recipe.spread_weight * math.log(recipe.width)  # all in one direction: 1 instead of 0.6
    whole = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0, 0]]).expand(8, 9)
    pixels = (look(torch.from_numpy(np.array(images)), whole, (32, 48)) - module.mean) / module.std
    with torch.no_grad():
        taken = module.teacher.cosines(module.teacher(pixels)[:, 1:]).flatten(0, 1).argmax(-1).unique()
    assert len(taken) > recipe.codes // 2


def test_stopped_and_gone_on_is_as_never_stopped(images, tmp_path) -> None:
    """To the bit, teacher and student."""

    def train(folder: str, *legs: int | None) -> dict[str, torch.Tensor]:
        for minutes in legs:
            module = SelfDistilled(TINY)
            training = TINY.training(device="cpu", minutes=minutes)
            trainer = fit(module, Pictures(images, TINY), training, tmp_path / folder, show=False)
        assert trainer.global_step == TINY.steps
        return module.state_dict()

    whole, stopped = train("whole", None), train("stopped", 0, 0, None)
    assert [name for name in whole if not torch.equal(whole[name], stopped[name])] == []
    assert {name.split(".")[0] for name in whole} == {"student", "teacher"}
    assert not torch.equal(whole["teacher.codes"], make_learner(TINY).state_dict()["codes"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 15}, "a width in multiples of heads"),
        ({"side": 18}, "side and small in multiples of patch"),
        ({"small": 0}, "side and small in multiples of patch"),
        ({"place": (0.5, 0.2)}, "the lower end first"),
        ({"large_share": (0.0, 1.0)}, "shares from above 0"),
        ({"hidden": 1.0}, "0 <= hidden < 1"),
        ({"ema": 1.0}, "0 <= ema < 1"),
        ({"lr": math.nan}, "finite lr"),
        ({"whole_weight": 0.0, "aligned_weight": 0.0, "hidden_weight": 0.0}, "one of the first three above"),
        ({"spread_weight": -1.0}, "spread_weight"),
        ({"codes": 0}, "codes of at least 1"),
        ({"scenes": 0}, "0"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said) -> None:
    with pytest.raises(UserError, match=said):
        check(dataclasses.replace(TINY, **wrong))
    check(TINY)


def test_a_learner_is_a_tower_and_codes() -> None:
    learner = make_learner(TINY)
    assert isinstance(learner, Learner)
    assert learner.tower.native_grid == (4, 4)
    assert learner.codes.shape == (12, 16)
