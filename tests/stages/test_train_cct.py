"""``train --semi cct``: which masks are read, what is kept, and a training that is stopped at every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from segment.test_examples import listed, no_truth
from stages.small_run import CLASSES, Toys, small_run, toys
from tag2mask.cli import app
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.corrected import Corrected
from tag2mask.run.folder import Run
from tag2mask.segment.network import load_network
from tag2mask.segment.recipe import CCT, TrainRecipe
from tag2mask.segment.saved import read_saved
from tag2mask.stages.train import Trained, train
from tag2mask.types import UserError

LABELLED = ("toy/1", "toy/4")
RECIPE = TrainRecipe(
    architecture="cct-small",
    init="random",
    options={"blocks": (1, 1, 1, 1), "width": 4},
    steps=3,
    batch=2,
    accumulate=2,
    crop=24,
    optimiser="sgd",
    lr=0.01,
    warmup=0,
    semi="cct",
    cct=CCT(decoders={"vat": 1, "dropout": 1, "cutout": 1, "drop": 1, "noise": 1}),
)
PLAIN = replace(RECIPE, steps=1, cct=replace(RECIPE.cct, weak="none"))


@pytest.fixture
def data(tmp_path) -> Toys:
    """Images whose true masks may not be read, but for those that are listed."""
    whole = toys(tmp_path / "data")
    return replace(whole, samples=[s if s.id in LABELLED else replace(s, truth=no_truth) for s in whole.samples])


@pytest.fixture
def run(tmp_path, data) -> Run:
    return small_run(tmp_path / "run", data)


def trained(out: Path, data: Toys, run: Run | None, recipe: TrainRecipe = RECIPE, **how: object) -> Trained:
    names = listed(out.parent, *LABELLED)
    return train(run, out, recipe, data=data, pixel_labels=names, progress=False, device="cpu", **how)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "network" / "model.safetensors")


def test_encoder_and_main_decoder_are_kept_and_say_what_they_learned_from(tmp_path, data, run) -> None:
    result = trained(tmp_path / "net", data, run)
    assert (result.step, result.examples, result.supervision) == (3, 5, "tags+pixels(2)")
    assert read_saved(tmp_path / "net").supervision == "tags+pixels(2)"
    assert {name.split(".")[1] for name in weights(tmp_path / "net")} == {"backbone", "psp", "main"}
    net = load_network(tmp_path / "net", "cpu")
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 33, 41)).shape == (1, 4, 33, 41)


def test_stopped_after_every_step_it_ends_in_the_same_bits(tmp_path, data, run) -> None:
    trained(tmp_path / "whole", data, run)
    for step in range(1, 4):
        assert trained(tmp_path / "parts", data, run, minutes=0).step == step
    whole, parts = (weights(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    states = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts")]
    extra = [{k: v for k, v in state["state_dict"].items() if "auxiliary" in k} for state in states]
    assert extra[0]
    assert all(torch.equal(extra[0][name], extra[1][name]) for name in extra[0])


def test_plain_cct_needs_no_masks_and_reads_none(tmp_path, data, run) -> None:
    for sample in data.samples:
        run.mask_path(sample.id).unlink()
    result = trained(tmp_path / "net", data, run, PLAIN)
    assert (result.supervision, result.examples, result.left_out) == ("pixels(2)", 5, {})
    trained(tmp_path / "alone", data, None, PLAIN)
    one, two = (weights(tmp_path / name) for name in ("net", "alone"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UserError, match=r"no image of .* has a mask|expected some of each"):
        trained(tmp_path / "masks", data, run)


def test_corrected_masks_are_pixel_labels(tmp_path, data, run) -> None:
    """Without a list, and where no made mask is read, they are the labelled images."""
    mask = np.full_like(read_mask(run.mask_path("toy/2")), 3)
    Corrected(run).store("toy/2", encode_mask(mask, CLASSES.palette), "by hand")
    for place, recipe in (("net", replace(RECIPE, steps=1)), ("plain", PLAIN)):
        result = train(run, tmp_path / place, recipe, data=data, progress=False, device="cpu")
        assert (result.supervision, result.examples) == ("tags+pixels(1)", 5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["toy/9"], "--pixel-labels .*: 1 images are not in .*: toy/9"),
        ([], "--pixel-labels .*the list is empty"),
        ([f"toy/{i}" for i in range(5)], "got 5 images with true or corrected masks and 0 without"),
        (None, "got 0 images with true or corrected masks and 5 without.*name some with --pixel-labels"),
    ],
)
def test_lists_that_leave_nothing_to_do_stop_at_once(tmp_path, run, names, message) -> None:
    data = toys(tmp_path / "again")
    path = None if names is None else listed(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        train(run, tmp_path / "net", RECIPE, data=data, pixel_labels=path, progress=False)
    assert not (tmp_path / "net").exists()


def test_the_command_takes_semi_and_its_settings() -> None:
    shown = CliRunner().invoke(app, ["train", "--list", "--semi", "cct", "--set", "cct.weak=none"])
    assert shown.exit_code == 0, shown.output
    assert 'semi="cct"' in shown.output
    assert '"weak": "none"' in shown.output
    wrong = CliRunner().invoke(app, ["train", "--list", "--semi", "teacher"])
    assert wrong.exit_code != 0
    assert "semi" in wrong.output
