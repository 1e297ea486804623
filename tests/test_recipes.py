"""Every recipe loads, names real options and presets, and runs dry: its settings make a method and a mask rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from tag2mask.classes import load_classes
from tag2mask.config import dump_config, parse_config, read_config
from tag2mask.methods import make_options, method_class
from tag2mask.ops.crf import preset
from tag2mask.types import MaskRule, UserError

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_dry(path):
    config = read_config(path)
    assert make_options(config.method, config.options)
    assert method_class(config.method)
    assert len(load_classes(config.data.classes)) > 1
    rule = config.masks.rule(MaskRule(crf="clip-es"))
    if rule.crf is not None:
        preset(rule.crf)
    if config.refine is not None:
        assert make_options(config.refine.method, config.refine.options)
        assert method_class(config.refine.method).needs_prior
        assert config.refine.masks.rule(method_class(config.refine.method).mask_rule)
    assert parse_config(dump_config(config)) == config


def test_there_are_recipes():
    assert len(RECIPES) >= 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metod: clip-es", "unknown key 'metod'; did you mean 'method'?"),
        ("data: {pth: x}", "unknown key 'data.pth'; did you mean 'path'?"),
        ("masks: {mu: 2}", "masks.mu = 2: input should be less than or equal to 1"),
        ("masks: {background: 'power:nan'}", "background is 'power:nan', expected"),
        ("masks: {background: 'power:-1'}", "expected"),
        ("masks: {background: 'constant:inf'}", "expected"),
        ("masks: {background: 'power:x'}", "masks.background = 'power:x': background is 'power:x', expected"),
        ("- a", "holds a list"),
        ("a: [", "not readable YAML"),
        ("precision: float8", "precision = 'float8'"),
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
    default = MaskRule(crf="clip-es", mu=0.95)
    assert parse_config({"masks": {"crf": "none"}}).masks.rule(default).mu is None
    assert parse_config({"masks": {"crf": "none", "mu": 0.8}}).masks.rule(default).mu == 0.8


def test_mask_settings_go_over_the_methods_rule():
    default = MaskRule(crf="clip-es", mu=0.95, crf_image="wrapped-bgr")
    rule = parse_config({"masks": {"crf": "none", "mu": 0, "background": "constant:0.3"}}).masks.rule(default)
    assert (rule.crf, rule.mu, rule.background.value, rule.crf_image) == (None, None, 0.3, "wrapped-bgr")
    assert parse_config({}).masks.rule(default) == default
