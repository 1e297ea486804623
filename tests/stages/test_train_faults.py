"""What a training refuses, and where it stops."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from stages.small_run import CLASSES, SIZES
from stages.small_training import HOW, RECIPE, weights
from tag2mask.data.png import encode_mask
from tag2mask.run.checkpoint import steps_done
from tag2mask.segment import supervised
from tag2mask.stages.train import train
from tag2mask.types import UserError


def test_what_cannot_be_read_is_replaced_told_once_and_counted(own, tmp_path):
    data, run = own
    data.samples[2].image.write_bytes(b"no picture")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(run, tmp_path / "net", replace(RECIPE, steps=8), data=data, minutes=0, **HOW)
        result = train(run, tmp_path / "net", replace(RECIPE, steps=8), data=data, **HOW)
    assert list(result.replaced) == ["toy/2"]
    assert len([each for each in told if "another image stands in for toy/2" in str(each.message)]) == 1
    assert "toy/2" in (tmp_path / "net" / "train.json").read_text()
    assert "others stood in: 1 images" in result.text()


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(made, tmp_path, monkeypatch):
    data, run = made
    train(run, tmp_path, RECIPE, data=data, minutes=0, **HOW)
    before = weights(tmp_path)
    monkeypatch.setattr(supervised, "output_loss", lambda logits, *_, **__: (logits * float("nan")).sum())
    with pytest.raises(UserError, match="at step 2 the loss is nan"):
        train(run, tmp_path, RECIPE, data=data, **HOW)
    assert steps_done(tmp_path) == 1
    assert weights(tmp_path) == before


def test_weights_that_are_no_numbers_are_not_kept(made, tmp_path, monkeypatch):
    data, run = made
    train(run, tmp_path, RECIPE, data=data, minutes=0, **HOW)
    before = weights(tmp_path)
    # a finite loss whose gradient is infinite
    monkeypatch.setattr(supervised, "output_loss", lambda logits, *_, **__: (logits * 0).sum().abs().sqrt())
    with pytest.raises(UserError, match="at step 2 there are weights that are not finite"):
        train(run, tmp_path, RECIPE, data=data, **HOW)
    assert steps_done(tmp_path) == 1
    assert weights(tmp_path) == before


# --- wrong input


def test_wrong_masks_are_named_before_training(own, tmp_path):
    data, run = own
    out = tmp_path / "net"
    run.mask_path("toy/3").write_bytes(encode_mask(np.zeros((64, 48), np.uint8), CLASSES.palette))
    with pytest.raises(UserError, match="1 mask is not of the size"):
        train(run, out, RECIPE, data=data, **HOW)
    run.mask_path("toy/3").write_bytes(encode_mask(np.full(SIZES[3], 9, np.uint8), CLASSES.palette))
    with pytest.raises(UserError, match="got mask value 9"):
        train(run, out, RECIPE, data=data, **HOW)
    run.mask_path("toy/3").write_bytes(encode_mask(np.zeros(SIZES[3], np.uint8), CLASSES.palette))
    assert train(run, out, replace(RECIPE), data=data, minutes=0, **HOW).step == 1


def test_an_empty_split_and_nothing_at_all(made, tmp_path):
    data, run = made
    with pytest.raises(UserError, match=r"no image of .* has a mask to train on \(the data set is empty\)"):
        train(run, tmp_path, RECIPE, data=replace(data, samples=[]), **HOW)
    with pytest.raises(UserError, match="no masks to train on"):
        train(None, tmp_path, RECIPE, data=data, **HOW)
    with pytest.raises(UserError, match="--data"):
        train(None, tmp_path, RECIPE, **HOW)
    assert list(tmp_path.iterdir()) == []


def test_first_weights_for_other_classes_are_refused(unbroken, own, tmp_path):
    data, run = own
    run.settings["classes"]["names"] = ["background", "cat", "dog", "cap"]
    other = replace(data, classes=replace(CLASSES, names=("background", "cat", "dog", "cap")))
    with pytest.raises(UserError, match="class 3 is 'hat' there, 'cap' here"):
        train(run, tmp_path / "net", replace(RECIPE, init=str(unbroken[0])), data=other, **HOW)


def test_a_batch_of_one_that_a_norm_cannot_use_is_named(made, tmp_path):
    data, run = made
    with pytest.raises(UserError, match="batch 1 of crops of 16: a norm of small"):
        train(run, tmp_path, replace(RECIPE, batch=1, crop=16), data=data, **HOW)


def test_a_batch_that_devices_cannot_share(made, tmp_path):
    data, run = made
    with pytest.raises(UserError, match="3 devices for batches of 2"):
        train(run, tmp_path, RECIPE, data=data, devices=3, **HOW)
