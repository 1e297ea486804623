"""WeakCLIP's masks, and the network behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from methods.cases import random_clip
from methods.toys import CLASSES, TrainingFree, make_data
from methods.weakclip_cases import KNOWN, seed_folder, weakclip
from tag2mask.classes import load_classes
from tag2mask.data.png import read_mask
from tag2mask.methods.weakclip import WeakCLIP, WeakCLIPOptions
from tag2mask.models.weakclip_files import released_name
from tag2mask.run.folder import Run
from tag2mask.segment.network import load_network
from tag2mask.segment.test_time import TestTime
from tag2mask.stages.label import label
from tag2mask.stages.machinery.predictor import Predictor
from tag2mask.types import Item, MaskRule, UserError


@pytest.fixture
def data(tmp_path):
    made = make_data(tmp_path / "images", count=6)
    made.classes = KNOWN
    return made


# --- masks --------------------------------------------------------------------------------------------------


class Given(torch.nn.Module):
    """A network whose logits are given: background, tagged, and two untagged classes win in a column each."""

    config = SimpleNamespace(names=CLASSES.names)

    def forward(self, images):
        columns = torch.tensor(  # red is tagged: what wins, and what comes second
            [[9.0, 1, 0, 0], [1, 9, 0, 0], [0, 8, 9, 0], [8, 0, 0, 9]]
        )
        cells = columns.T[:, None, :].expand(-1, images.shape[2], -1)  # (K, h, 4)
        return cells[None].repeat_interleave(images.shape[3] // 4, -1).expand(len(images), -1, -1, -1)


TRUTH = [("never", [0, 1, 1, 0]), ("ignore", [0, 1, 255, 255]), ("keep", [0, 1, 2, 3])]


@pytest.mark.parametrize(("others", "winners"), TRUTH)
def test_eq_14_in_label(others, winners):
    from tag2mask.ops.masks import pseudo_mask

    method = weakclip()
    method.net = Given()
    image = torch.zeros(3, 4, 8, dtype=torch.uint8)
    rule = replace(method.mask_rule, refiner=None, others=others)
    (scores,) = method.scores([Item("a", image, torch.tensor([1]))])
    mask, _ = pseudo_mask(scores, image, rule)
    assert mask[0].tolist() == [w for w in winners for _ in range(2)]
    (scores,) = method.scores([Item("a", image, torch.tensor([], dtype=torch.int64))])
    assert not pseudo_mask(scores, image, rule)[0].any()
    every = torch.tensor([1, 2, 3])
    (scores,) = method.scores([Item("a", image, every)])
    assert pseudo_mask(scores, image, rule)[0][0, ::2].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("others", "winners"), TRUTH)
def test_eq_14_in_predict_with_tags(others, winners):
    rule = MaskRule(others=others)
    predictor = Predictor(Given(), torch.device("cpu"), TestTime(), rule, None, use_tags=True)
    image = torch.zeros(3, 4, 8, dtype=torch.uint8)

    def mask(tags):
        sample = SimpleNamespace(id="a", tags=tags)
        loaded = SimpleNamespace(
            batch=SimpleNamespace(samples=[sample], todo={"a"}), images={"a": image}, errors={}, seconds={"a": 0.0}
        )
        (outcome,) = predictor(loaded)
        assert outcome.status == "ok", outcome.error
        return outcome.mask

    assert mask((1,))[0, ::2].tolist() == winners
    assert not mask(()).any()
    assert mask((1, 2, 3))[0, ::2].tolist() == [0, 1, 2, 3]
    assert mask(None)[0, ::2].tolist() == [0, 1, 2, 3]


def test_scores_are_the_probabilities_of_all_views():
    method = weakclip(scales=(1.0, 2.0), flip=True)
    method.net = method.start().eval()
    image = torch.randint(0, 255, (3, 30, 41), dtype=torch.uint8)
    (scores,) = method.scores([Item("a", image, torch.tensor([1, 3]))])
    assert scores.maps.shape == (2, 30, 41)
    assert scores.background.shape == (30, 41)
    assert set(scores.others.values.unique().tolist()) == {2}
    total = scores.maps.sum(0) + scores.background + scores.others.score
    torch.testing.assert_close(total, torch.ones(30, 41))


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 3), (20, 20), (200, 300)])
def test_pictures_of_one_pixel_of_thousands_and_smaller_than_a_window(size):
    method = weakclip(window=64, stride=48, max_pixels=8000)
    method.net = method.start().eval()
    (scores,) = method.scores([Item("a", torch.zeros(3, *size, dtype=torch.uint8), torch.tensor([2]))])
    assert tuple(scores.maps.shape[1:]) == method.grid(size)
    assert scores.size == size
    assert scores.maps.isfinite().all()
    assert scores.maps[0].numel() <= 8000


# --- the network --------------------------------------------------------------------------------------------


def test_the_frozen_clip_is_bit_equal_after_a_fit_and_kept_nowhere(data, tmp_path):
    clip = random_clip()
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    method = weakclip()
    label(data, method, tmp_path / "run", prior=seed_folder(data, tmp_path / "seeds"), progress=False)
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    assert not any(".tower." in name or ".text_encoder." in name for name in state)
    start, end = (net.network.adapter.state_dict() for net in (method.start(), method.net))
    assert not torch.equal(start["fpn1.1.weight"], end["fpn1.1.weight"])


def test_released_towers_creep_and_are_kept(data, tmp_path):
    method = weakclip(variant="released", lr=1e-3, lr_floor=1e-4)
    label(data, method, tmp_path / "run", prior=seed_folder(data, tmp_path / "seeds"), progress=False)
    loaded = load_network(tmp_path / "run", "cpu")
    own = random_clip().model
    moved = (loaded.network.tower.conv1.weight - own.vision.conv1.weight).abs().max()
    assert 0 < moved < 1e-3
    assert torch.equal(loaded.network.tower.conv1.weight, method.net.network.tower.conv1.weight)


def test_a_released_checkpoint_labels_as_it_is(data, tmp_path):
    trained = weakclip(variant="released", resolution=32).start().eval()
    state = {released_name(name): value for name, value in trained.network.state_dict().items()}
    path = tmp_path / "iter_8000.pth"
    torch.save({"state_dict": state}, path)
    method = weakclip(variant="released", checkpoint=str(path))
    assert not method.learns
    summary = label(data, method, tmp_path / "run", progress=False)
    assert (summary.done, summary.failed) == (len(data), 0)
    picture = torch.rand(1, 3, 32, 48) * 255
    with torch.no_grad():
        torch.testing.assert_close(method.net(picture), trained(picture))
    assert Run.open(tmp_path / "run").settings["supervision"] == "tags+pixels(weights: iter_8000.pth)"
    with pytest.raises(UserError, match="variant=released"):
        weakclip(checkpoint=str(path))
    for idle in ({"steps": 3}, {"seed": 0}, {"lr": 1e-4}, {"width": 8}, {"encoders": "frozen"}, {"crop": 32}):
        with pytest.raises(UserError, match=f"weakclip: {next(iter(idle))}: no effect with checkpoint"):
            weakclip(variant="released", checkpoint=str(path), **idle)


def test_runs_of_any_method_are_seeds(data, tmp_path):
    label(data, TrainingFree(CLASSES, TrainingFree.Options()), tmp_path / "seeds", progress=False)
    label(data, weakclip(), tmp_path / "run", prior=tmp_path / "seeds", progress=False)
    mask = read_mask(Run.open(tmp_path / "run").mask_path(data[0].id))
    assert set(mask.ravel().tolist()) <= {0, 255, *data[0].tags}


def test_a_crop_that_parts_cells_is_refused():
    """Labels would not lie on the pixels that the network answers for."""
    clip = SimpleNamespace(patch=16, name="storybook-clip", device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"crop 100 is no multiple of \d+, .*--set crop="):
        WeakCLIP(load_classes("voc12"), WeakCLIPOptions(crop=100), clip=clip)


def test_the_recipe_says_what_runs():
    """The optimiser goes by it, and the network that is kept says it."""
    method = weakclip()
    before = method.resolved
    method.precision = "bfloat16"
    assert method.recipe.precision == "bfloat16"
    assert method.resolved == before  # run.yaml has fit_precision for it
    assert "precision" not in before["recipe"]


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({"match": "direct", "heads": 2}, "heads, width"),
        ({"decoder": "none"}, "channels"),
        ({"drop_path": 0.1}, "drop_path"),
    ],
)
def test_choices_that_others_leave_without_effect(options, idle):
    with pytest.raises(UserError, match=f"weakclip: {idle}: no effect with"):
        weakclip(**options)


def test_train_refuses_the_crops_that_the_method_refuses(tmp_path):
    """One check for both; without it labels would not lie on the pixels that the network answers for."""
    from methods.cases import clip_folder
    from tag2mask.segment.network import build_network
    from tag2mask.segment.saved import NetworkConfig

    texts = ["photo", "red", "cat", "dog"]
    net = build_network(NetworkConfig.of("weakclip", KNOWN, clip=clip_folder().name, texts=texts, prompts=2))
    net.check_crop(32)
    with pytest.raises(UserError, match=r"crop 40 is no multiple of \d+") as refused:
        net.check_crop(40)
    with pytest.raises(UserError) as too:
        weakclip(crop=40)
    assert str(refused.value) == str(too.value)


def test_a_picture_that_is_too_large_for_a_network_names_options_of_the_command(monkeypatch):
    """``label`` has no --tile: it names the command that has."""
    from tag2mask.stages import label as stage
    from tag2mask.stages.label import LabelSettings

    class Full(Given):
        align_corners = False

        def forward(self, images):
            raise torch.OutOfMemoryError

    method = weakclip()
    monkeypatch.setattr(stage, "find_network", lambda path: path)
    monkeypatch.setattr("tag2mask.segment.network.load_network", lambda path, device: Full())
    fitted = SimpleNamespace(path=Path("runs/fit"))
    mine = stage._worker(method, method.mask_rule, None, LabelSettings(masks_of="network"), fitted)
    theirs = Predictor(Full(), torch.device("cpu"), TestTime(), MaskRule(), None, use_tags=True)
    said = []
    for predictor in (mine, theirs):
        sample = SimpleNamespace(id="a", tags=(1,))
        loaded = SimpleNamespace(
            batch=SimpleNamespace(samples=[sample], todo={"a"}),
            images={"a": torch.zeros(3, 4, 8, dtype=torch.uint8)},
            errors={},
            seconds={"a": 0.0},
        )
        said.append(next(iter(predictor(loaded))).error)
    assert "`tag2mask predict runs/fit IMAGES --use-tags` with --tile 1024" in said[0]
    assert said[1].endswith("give --tile 1024, --longest 2000 or fewer --scales")
