"""WeakCLIP as a method: its variants, seeds, masks under Eq. 14, and input that it cannot work with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from methods.test_conformance import FITS, random_clip
from methods.toys import CLASSES, TrainingFree, make_data
from tag2mask.classes import load_classes
from tag2mask.config import read_config
from tag2mask.data.png import read_mask
from tag2mask.methods import make_method
from tag2mask.methods.weakclip import WeakCLIP, WeakCLIPOptions
from tag2mask.models.weakclip_files import released_name
from tag2mask.run.folder import Run
from tag2mask.segment.network import load_network, read_saved
from tag2mask.segment.supervised import make_optimizer
from tag2mask.segment.test_time import PRESETS, TestTime
from tag2mask.stages.label import label
from tag2mask.stages.machinery.predictor import Predictor
from tag2mask.types import Item, MaskRule, TextSet, UserError

RECIPES = Path(__file__).parents[2] / "recipes"
KNOWN = replace(CLASSES, texts={"weakclip": TextSet(("red", "cat", "dog"), ("{}",), ("photo",))})


def weakclip(classes=KNOWN, **options) -> WeakCLIP:
    small = FITS["weakclip"]
    if "checkpoint" in options:  # which learns nothing and brings its sizes
        small = {name: small[name] for name in ("heads", "view", "window", "stride", "scales", "flip")}
    return make_method("weakclip", classes, clip=random_clip(), **{**small, **options})


@pytest.fixture
def data(tmp_path):
    made = make_data(tmp_path / "images", count=6)
    made.classes = KNOWN
    return made


def seed_folder(data, folder, count=None, value=None) -> Path:
    """Label maps of the first ``count`` images: each one's first tag in its upper half."""
    for sample in list(data)[:count]:
        with Image.open(sample.image) as image:
            mask = np.zeros(image.size[::-1], np.uint8)
        mask[: len(mask) // 2] = sample.tags[0] if value is None else value
        path = folder / f"{sample.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return folder


# --- variants and recipes -----------------------------------------------------------------------------------


def test_every_difference_of_the_variants_is_an_option():
    paper, released = (weakclip(variant=variant) for variant in ("paper", "released"))
    names = {name for name, value in paper.recipe.options.items() if released.recipe.options[name] != value}
    assert names == {
        "variant",
        "encoders",
        "adapter",
        "class_twice",
        "drop_path",
        "edges",
        "layers",
        "chained",
        "pixels",
    }
    assert (paper.recipe.auxiliary, released.recipe.auxiliary) == (0, 0.4)
    assert (paper.mask_rule.others, released.mask_rule.others) == ("ignore", "keep")
    one_by_one = {name: released.recipe.options[name] for name in names - {"variant"}} | {"auxiliary": 0.4}
    turned = weakclip(**one_by_one)
    assert turned.recipe == replace(released.recipe, options={**released.recipe.options, "variant": "paper"})


@pytest.mark.parametrize(
    ("name", "steps", "batch", "stop", "others", "auxiliary"),
    [
        ("voc12_weakclip", 20_000, 16, None, "ignore", 0.0),
        ("voc12_weakclip_released", 20_000, 16, 8000, "keep", 0.4),
        ("coco14_weakclip", 40_000, 24, None, "ignore", 0.0),
    ],
)
def test_recipes_have_the_published_numbers(name, steps, batch, stop, others, auxiliary):
    """And say nothing but what a run without a recipe has."""
    config = read_config(RECIPES / f"{name}.yaml")
    classes = load_classes(config.data.classes)
    method = make_method("weakclip", classes, clip=random_clip(), **config.options)
    recipe = method.recipe
    assert (recipe.schedule_steps, recipe.steps, recipe.batch) == (steps, stop or steps, batch)
    assert (recipe.lr, recipe.weight_decay, recipe.lr_floor, recipe.warmup) == (1e-4, 3e-5, 1e-6, 1500)
    assert (recipe.crop, recipe.scale, recipe.share, recipe.colour) == (512, "fit:2048,512,0.5,2", 0.75, "distort")
    assert (recipe.loss, recipe.loss_stride, recipe.auxiliary) == ("seed+boundary", 8, auxiliary)
    assert method.test == PRESETS["weakclip"].test
    rule = config.masks.rule(MaskRule())
    assert (rule.refiner, rule.others) == (method.mask_rule.refiner, method.mask_rule.others)
    assert rule.others == others
    bare = make_method("weakclip", classes, clip=random_clip(), variant=config.options["variant"], stop=stop)
    assert (bare.recipe, bare.test) == (recipe, method.test)


def test_a_small_world_has_settings_of_its_own():
    clip = SimpleNamespace(patch=16, name="storybook-clip", device=torch.device("cpu"))
    method = WeakCLIP(load_classes("voc12"), WeakCLIPOptions(batch=3), clip=clip)
    assert (method.recipe.crop, method.recipe.batch, method.recipe.options["resolution"]) == (128, 3, None)
    assert (method.test.scales, method.test.fit, method.test.window) == ((0.75, 1, 1.25), None, None)


def test_cocos_names_are_its_own():
    recipe = make_method("weakclip", load_classes("coco14"), clip=random_clip()).recipe
    assert recipe.options["texts"][:6] == ["background", "person", "bicycle", "car", "motorcycle", "airplane"]


# --- seeds --------------------------------------------------------------------------------------------------


def test_direct_matching_has_nothing_to_learn_and_labels(data, tmp_path):
    seeds = seed_folder(data, tmp_path / "seeds")
    small = {name: value for name, value in FITS["weakclip"].items() if name not in ("heads", "width", "channels")}
    direct = {**small, "match": "direct", "decoder": "none", "prompts": 0}
    method = make_method("weakclip", KNOWN, clip=random_clip(), **direct)
    with pytest.raises(UserError, match="nothing of this weakclip learns"):
        make_optimizer(method.start(), method.recipe)
    summary = label(data, method, tmp_path / "run", prior=seeds, progress=False)
    assert (summary.done, summary.failed) == (len(data), 0)


def test_a_folder_of_seeds_and_then_labels_without_any(data, tmp_path):
    seeds = seed_folder(data, tmp_path / "seeds")
    label(data, weakclip(), tmp_path / "fit", prior=seeds, fit_only=True, progress=False)
    assert read_saved(tmp_path / "fit").supervision == "tags+masks(seeds)"
    summary = label(data, weakclip(), tmp_path / "run", fitted=tmp_path / "fit", progress=False)
    assert (summary.done, summary.failed) == (len(data), 0)
    run = Run.open(tmp_path / "run")
    assert run.settings["supervision"] == "tags+masks(seeds)"  # the fit's, which this run took
    said = data.classes.texts["weakclip"]
    for texts in (replace(said, names=("dog", "cat", "red")), replace(said, templates=("a {}",))):
        data.classes = others = replace(KNOWN, texts={"weakclip": texts})
        with pytest.raises(UserError, match=r"was fitted with other settings: .*(names|templates|texts)"):
            label(data, weakclip(others), tmp_path / "others", fitted=tmp_path / "fit", progress=False)
    data.classes = KNOWN
    with pytest.raises(UserError, match=r"starts from an earlier run's masks"):
        label(data, weakclip(), tmp_path / "none", progress=False)


def test_half_of_the_seeds_are_missing(data, tmp_path):
    """The others teach, all are labelled, and it is said."""
    seeds = seed_folder(data, tmp_path / "seeds", count=3)
    with pytest.warns(UserWarning, match=r"learns from 3 of 6 images; the others have no mask in .*3 not labelled"):
        summary = label(data, weakclip(), tmp_path / "run", prior=seeds, progress=False)
    assert summary.done == 6


@pytest.mark.parametrize(
    ("value", "message"), [(7, r"got mask value 7, expected 0\.\.3 or 255"), (254, "got mask value 254")]
)
def test_seeds_with_values_outside_the_classes(data, tmp_path, value, message):
    seeds = seed_folder(data, tmp_path / "seeds", value=value)
    with pytest.raises(UserError, match=message):
        label(data, weakclip(), tmp_path / "run", prior=seeds, progress=False)
    seed_folder(data, tmp_path / "seeds")  # corrected, the same command goes on
    with pytest.warns(UserWarning, match="it starts over"):
        assert label(data, weakclip(), tmp_path / "run", prior=tmp_path / "seeds", progress=False).done == 6


def test_seeds_of_another_size(data, tmp_path):
    seeds = seed_folder(data, tmp_path / "seeds")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(seeds / f"{data[0].id}.png")
    with pytest.raises(UserError, match=r"1 mask is not of the size .*5x5, image 24x32"):
        label(data, weakclip(), tmp_path / "run", prior=seeds, progress=False)


def test_images_that_are_drawn_twice(data, tmp_path):
    from tag2mask.methods.fitting.weakclip import repeated
    from tag2mask.run.mask_folder import MaskFolder
    from tag2mask.segment.targets import find_targets

    targets = find_targets(data, MaskFolder(seed_folder(data, tmp_path / "seeds"), KNOWN))
    (tmp_path / "list.txt").write_text(f"{data[1].id}\n{data[4].id}\n")
    found = repeated(targets, tmp_path / "list.txt")
    assert found.indices.tolist() == [0, 1, 1, 2, 3, 4, 4, 5]
    assert len(found.pixels) == 8
    (tmp_path / "list.txt").write_text("elsewhere\n")
    with pytest.raises(
        UserError, match=r"1 images are not among those with seeds \(elsewhere\); ids look like 'part0/"
    ):
        repeated(targets, tmp_path / "list.txt")


# --- words --------------------------------------------------------------------------------------------------


def test_words_that_clip_does_not_know(data, tmp_path):
    seeds = seed_folder(data, tmp_path / "seeds")
    data.classes = CLASSES  # green is no word of this CLIP's
    with pytest.raises(UserError, match=r"does not know 'background'.*allow_unknown=true"):
        label(data, weakclip(CLASSES), tmp_path / "run", prior=seeds, progress=False)
    with pytest.warns(UserWarning, match="read as the unknown token"):
        weakclip(CLASSES, allow_unknown=True).start()


def test_prompts_that_are_too_long_for_the_clip():
    with pytest.raises(UserError, match=r"with 6 prompts it is 9; this CLIP reads at most 8"):
        weakclip(prompts=6).start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": (1, 2, 3, 9)}, "expected four blocks from 1 to 4"),
        ({"width": 9, "heads": 2}, "width 9 for 2 heads"),
        ({"stop": 9}, "stop 9 is beyond the 2 steps"),
        ({"stride": 64}, "expected 1 <= stride <= window"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(UserError, match=message):
        weakclip(**options).start()


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
    from methods.test_conformance import clip_folder
    from tag2mask.segment.network import NetworkConfig, build_network

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
    monkeypatch.setattr(stage, "load_network", lambda path, device: Full())
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
