"""Every recipe loads, names real options and presets, and runs dry: its settings make a method and a mask rule."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tag2mask.classes import load_classes
from tag2mask.config import dump_config, parse_config, read_config, read_recipe
from tag2mask.methods import make_options, method_class
from tag2mask.ops.refiners import find_refiner
from tag2mask.segment.augment import Example, augment
from tag2mask.segment.examples import Batch
from tag2mask.segment.network import build_network
from tag2mask.segment.recipe import TrainRecipe, check
from tag2mask.segment.saved import NetworkConfig
from tag2mask.segment.supervised import make_optimizer, output_loss, rate
from tag2mask.types import MaskRule, UserError

FOLDER = Path(__file__).parents[1] / "recipes"
TRAININGS = sorted(FOLDER.glob("train_*.yaml"))
RECIPES = sorted(set(FOLDER.glob("*.yaml")) - set(TRAININGS))
NARROW = {
    "small": {"width": 4, "blocks": (1, 1, 1, 1), "channels": 8},
    "deeplabv2-resnet101": {"width": 4, "blocks": (1, 1, 1, 1)},
    "deeplabv1-resnet38": {"width": 4},
    "cct-resnet50": {"width": 4, "blocks": (1, 1, 1, 1)},
    "transformers:nvidia/mit-b5": {
        "model": {
            "model_type": "segformer",
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        }
    },
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_dry(path):
    config = read_config(path)
    assert make_options(config.method, config.options)
    assert method_class(config.method)
    assert len(load_classes(config.data.classes)) > 1
    rule = config.masks.rule(MaskRule(refiner="clip-es"))
    if rule.refiner is not None:
        find_refiner(rule.refiner)
    if config.refine is not None:
        assert make_options(config.refine.method, config.refine.options)
        refiner = method_class(config.refine.method)
        assert refiner.earlier_run(refiner.Options(**config.refine.options)).label
        assert config.refine.masks.rule(method_class(config.refine.method).mask_rule)
    assert parse_config(dump_config(config)) == config


@pytest.mark.filterwarnings("ignore:.*starts from random weights")
@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_training_runs_dry(path):
    recipe = read_recipe(TrainRecipe, [], path)
    check(recipe)
    assert ("coco" in recipe.start) == (recipe.init_pixels == "coco")
    assert all(rate(step, recipe) > 0 for step in (0, 1, recipe.steps - 1))
    classes = load_classes("coco14" if "coco14" in path.stem else "voc12")
    narrow = {**recipe.options, **NARROW[recipe.architecture]}
    net = build_network(NetworkConfig.of(recipe.architecture, classes, **narrow), init="random")
    optimizer = make_optimizer(net, recipe)
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    labels = torch.randint(0, len(classes), (60, 80), dtype=torch.uint8)
    seen = augment(Example(image, labels), replace(recipe.augment, crop=65), torch.Generator().manual_seed(0))
    batch = Batch(
        torch.stack([seen.image] * 2), torch.stack([seen.labels] * 2), None, torch.zeros(2), torch.arange(2), 0
    )
    outputs = net(batch.images)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    assert len(outputs) == (4 if recipe.architecture == "deeplabv2-resnet101" else 1)
    sum(output_loss(each, batch, recipe, align_corners=net.align_corners) for each in outputs).backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("path", [*RECIPES, *TRAININGS], ids=lambda path: path.stem)
def test_files_that_nobody_has_yet_are_said_to_come_from_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for name in set(re.findall(r"^ *\w+: (\S+\.(?:pth|params|npy|pt))$", text, re.MULTILINE)):
        assert re.search(rf"^# {re.escape(name)}: .*https://", text, re.MULTILINE), name


def test_there_are_recipes():
    assert len(RECIPES) >= 5
    assert len(TRAININGS) >= 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metod: clip-es", "unknown key 'metod' (did you mean 'method'?)"),
        ("data: {pth: x}", "unknown key 'data.pth' (did you mean 'path'?)"),
        ("masks: {mu: 2}", "masks.mu = 2: input should be less than or equal to 1"),
        ("masks: {background: 'power:nan'}", "background is 'power:nan', expected"),
        ("masks: {background: 'power:-1'}", "expected"),
        ("masks: {background: 'constant:inf'}", "expected"),
        ("masks: {background: 'power:x'}", "masks.background = 'power:x': background is 'power:x', expected"),
        ("- a", "holds a list"),
        ("a: [", "not readable YAML"),
        ("precision: float8", "precision = 'float8'"),
        ("data: small", "data is 'small', a single value: expected keys with values (path, kind,"),
        ("data: small", "such as data: {path: small}"),
        ("refine: irn", "such as refine: {method: irn}"),
        ("options: caa", "options is 'caa', a single value: expected keys with values, such as options: {NAME: caa}"),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_file_of_bytes(tmp_path):
    with pytest.raises(UserError, match="no config at"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(UserError, match="not readable YAML"):
        read_config(tmp_path / "b.yaml")


def test_yaml_cannot_make_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("method: !!python/object/apply:os.system ['touch /tmp/x']")
    with pytest.raises(UserError, match="not readable YAML"):
        read_config(path)


def test_a_few_bytes_cannot_stand_for_gigabytes(tmp_path):
    levels = [f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(["k0: &a0 [x]", *levels]))
    for read in (read_config, load_classes):
        with pytest.raises(UserError, match="aliases"):
            read(path)
    path.write_text("[" * 5000)
    with pytest.raises(UserError, match=r"bomb\.yaml"):
        read_config(path)


def test_without_a_crf_the_methods_mu_does_not_apply():
    default = MaskRule(refiner="clip-es", mu=0.95)
    assert parse_config({"masks": {"crf": "none"}}).masks.rule(default).mu is None
    assert parse_config({"masks": {"crf": "none", "mu": 0.8}}).masks.rule(default).mu == 0.8


def test_mask_settings_go_over_the_methods_rule():
    default = MaskRule(refiner="clip-es", mu=0.95, refiner_image="wrapped-bgr")
    rule = parse_config({"masks": {"crf": "none", "mu": 0, "background": "constant:0.3"}}).masks.rule(default)
    assert (rule.refiner, rule.mu, rule.background.value, rule.refiner_image) == (None, None, 0.3, "wrapped-bgr")
    assert parse_config({}).masks.rule(default) == default
