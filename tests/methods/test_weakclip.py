"""WeakCLIP as a method: its variants, its seeds, and words that it cannot work with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from methods.cases import FITS, random_clip
from methods.toys import CLASSES, make_data
from methods.weakclip_cases import KNOWN, seed_folder, weakclip
from tag2mask.classes import load_classes
from tag2mask.config import read_config
from tag2mask.methods import make_method
from tag2mask.methods.weakclip import WeakCLIP, WeakCLIPOptions
from tag2mask.run.folder import Run
from tag2mask.segment.saved import read_saved
from tag2mask.segment.supervised import make_optimizer
from tag2mask.segment.test_time import PRESETS
from tag2mask.stages.label import label
from tag2mask.types import MaskRule, UserError

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def data(tmp_path):
    made = make_data(tmp_path / "images", count=6)
    made.classes = KNOWN
    return made


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
