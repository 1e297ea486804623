"""What `methods NAME` and `train --list` show: every option once, in columns, beside the recipe's value."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tag2mask.cli import app
from tag2mask.methods import METHODS, method_class
from tag2mask.segment.recipe import GROUPS, TrainRecipe

RECIPES = Path(__file__).parents[1] / "recipes"


def call(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_every_setting_of_a_training_is_in_one_group():
    named = [name for names in GROUPS.values() for name in names]
    assert sorted(named) == sorted(field.name for field in fields(TrainRecipe))


def test_a_trainings_settings_stand_beside_their_defaults():
    lines = call("train", "--config", RECIPES / "train_voc12_clip_es_imagenet.yaml", "--list")
    rows = [line for line in lines if line.startswith("  ") and "  default " in line and "=" in line]
    assert len(rows) == len(fields(TrainRecipe))
    assert len({line.rindex("default ") for line in rows if "cct=" not in line}) == 1
    (steps,) = [line.split() for line in rows if line.strip().startswith("steps=")]
    assert steps == ["steps=20000", "default", "600"]
    assert {f"{heading}:" for heading in GROUPS} <= set(lines)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_is_shown_once(name):
    lines = call("methods", name)
    at = lines[0].index("default")
    model = method_class(name).Options.model_fields
    for option, info in model.items():
        (row,) = [line for line in lines if line.split("  ")[0].strip() == option and len(line) > at]
        assert row[at - 1] == " " != row[at]
        assert lines[lines.index(row) + 1] == f"    {info.description}".splitlines()[0]


def test_a_recipes_values_stand_beside_the_defaults():
    lines = call("methods", "pot", "--config", RECIPES / "voc12_pot.yaml")
    at = lines[0].index("in the recipe")
    (row,) = [line for line in lines if line.startswith("threshold ")]
    assert row[at:].startswith("0.7")
    done = CliRunner().invoke(app, ["methods", "psa", "--config", str(RECIPES / "voc12_pot.yaml")])
    assert done.exit_code == 1
    assert "not of psa" in done.output
