"""What a network is trained on: which images, which masks, and what becomes of those that cannot be read."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.small_run import CLASSES, SIZES, small_run, toys, truth_of
from tag2mask.data.png import encode_mask
from tag2mask.run.folder import Run
from tag2mask.run.sampling import Draw
from tag2mask.segment.augment import Augment
from tag2mask.segment.examples import Examples
from tag2mask.segment.targets import Targets, check_targets, find_targets
from tag2mask.types import IGNORE, UserError

AS_IT_IS = Augment(crop=None, flip=0)
CROPS = Augment(crop=32)


class ForbiddenError(Exception):
    pass


def no_truth():
    raise ForbiddenError("ground truth was read")


def listed(tmp_path: Path, *names: str) -> Path:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def overwrite_mask(run: Run, index: int, mask: np.ndarray) -> None:
    run.mask_path(f"toy/{index}").write_bytes(encode_mask(mask, CLASSES.palette))


def test_masks_and_confidence_are_the_runs_and_truth_is_never_read(data, run):
    blind = replace(data, samples=[replace(s, truth=no_truth) for s in data.samples])
    targets = find_targets(blind, run)
    check_targets(targets)
    assert (len(targets), targets.supervision, targets.left_out) == (5, "tags", {})
    examples = Examples(targets, AS_IT_IS, seed=0, confidence=True)
    for index in range(5):
        example, pixels, _, replaced = examples[Draw(0, index)]
        assert not pixels
        assert replaced == ()
        assert torch.equal(example.labels, torch.from_numpy(np.array(Image.open(run.mask_path(f"toy/{index}")))))
        stored = np.array(Image.open(run.confidence_path(f"toy/{index}"))).astype(np.float32)
        assert torch.equal(example.confidence, torch.from_numpy(stored / 255))
        image = np.array(Image.open(data.samples[index].image).convert("RGB"))
        assert torch.equal(example.image, torch.from_numpy(image).permute(2, 0, 1).float())


def test_true_masks_are_read_for_the_list_alone(tmp_path, data, run):
    one = [replace(s, truth=s.truth if s.id == "toy/1" else no_truth) for s in data.samples]
    # as a VOC list may write it, and once more than needed
    targets = find_targets(replace(data, samples=one), run, listed(tmp_path, "toy/1 -1", "", "toy/1"))
    examples = Examples(targets, AS_IT_IS, seed=0, confidence=True)
    check_targets(targets)
    drawn = [examples[Draw(0, index)] for index in range(5)]
    assert [each.pixels for each in drawn] == [False, True, False, False, False]
    assert torch.equal(drawn[1].example.labels, torch.from_numpy(truth_of(1)))
    assert drawn[1].example.confidence.eq(1).all()
    assert targets.supervision == "tags+pixels(1)"
    assert [len(targets.part(pixels=flag)) for flag in (True, False)] == [1, 4]
    assert targets.part(pixels=True).sample(0).id == "toy/1"
    alone = find_targets(data, None, listed(tmp_path, "toy/3", "toy/1"))
    assert (len(alone), alone.supervision) == (2, "pixels(2)")
    assert [alone.sample(i).id for i in range(2)] == ["toy/1", "toy/3"]


def test_a_run_that_had_pixels_hands_that_on(data, run):
    run.settings["supervision"] = "tags+pixels(7)"
    assert find_targets(data, run).supervision == "tags+pixels(7)"


def test_what_has_no_mask_is_left_out_and_counted(tmp_path, data):
    run = small_run(tmp_path / "run", data, leave_out=(1, 3))
    run.mask_path("toy/2").unlink()
    run.mask_path("toy/4").write_bytes(b"")
    targets = find_targets(data, run)
    assert len(targets) == 1
    assert targets.left_out == {"failed": 2, "not labelled": 2}
    run.mask_path("toy/0").unlink()
    with pytest.raises(UserError, match=r"no image of .* has a mask to train on \(3 not labelled, 2 failed\)"):
        find_targets(data, run)


def test_the_fingerprint_is_of_ids_and_kinds(tmp_path, data, run):
    whole = find_targets(data, run)
    seen = {whole.fingerprint, find_targets(data, run, listed(tmp_path, "toy/1")).fingerprint}
    seen.add(replace(whole, indices=whole.indices[:-1], pixels=whole.pixels[:-1]).fingerprint)
    assert len(seen) == 3
    assert whole.fingerprint == find_targets(data, run).fingerprint


@pytest.mark.parametrize(
    ("lines", "message"),
    [(["nobody"], "1 images are not in .*nobody; its ids look like 'toy/0'"), ([], "the list is empty")],
)
def test_wrong_lists_are_named(tmp_path, data, run, lines, message):
    with pytest.raises(UserError, match=message):
        find_targets(data, run, listed(tmp_path, *lines))
    with pytest.raises(UserError, match="cannot be read"):
        find_targets(data, run, tmp_path / "none.txt")


def test_a_list_of_images_without_truth_is_named(tmp_path, run):
    blind = toys(tmp_path / "blind", truth=False)
    with pytest.raises(UserError, match=r"1 of 1 images have no true mask \(toy/1\)"):
        find_targets(blind, run, listed(tmp_path, "toy/1"))


def test_other_classes_are_named(data, run):
    run.settings["classes"]["names"] = ["background", "car"]
    with pytest.raises(UserError, match=r"masks of 2 classes .* read as toys with 4"):
        find_targets(data, run)


@pytest.mark.parametrize("checked", [1, 1000])
def test_masks_of_another_size_are_refused_before_training(data, run, monkeypatch, checked):
    monkeypatch.setattr("tag2mask.segment.targets.VALUES_CHECKED", checked)
    overwrite_mask(run, 3, np.zeros((64, 48), np.uint8))  # the image is 48 x 64: same pixels, turned
    with pytest.raises(UserError, match=r"1 mask is not of the size .* toy/3 \(64x48, image 48x64\)"):
        check_targets(find_targets(data, run))


def test_values_outside_the_classes_are_refused(data, run):
    mask = np.zeros(SIZES[2], np.uint8)
    mask[0, 0], mask[0, 1] = 4, IGNORE
    overwrite_mask(run, 2, mask)
    targets = find_targets(data, run)
    with pytest.raises(UserError, match=r"toy/2\.png: got mask value 4, expected 0\.\.3 or 255"):
        check_targets(targets)


def test_what_cannot_be_read_is_told_and_replaced_by_the_next(data, run):
    targets = find_targets(data, run)
    examples = Examples(targets, CROPS, seed=3)
    before = examples[Draw(7, 2)]
    data.samples[1].image.write_bytes(b"no picture")
    assert check_targets(targets) == ["images or masks that cannot be read, others stand in for them: 1 (toy/1)"]
    stand_in = examples[Draw(7, 1)]
    assert [name for name, _ in stand_in.replaced] == ["toy/1"]
    assert stand_in.draw == Draw(7, 1)
    again = examples[Draw(7, 1)]
    assert torch.equal(stand_in.example.image, again.example.image)
    whole = replace(examples, settings=AS_IT_IS)
    assert torch.equal(whole[Draw(0, 1)].example.labels, whole[Draw(0, 2)].example.labels)
    assert torch.equal(examples[Draw(7, 2)].example.image, before.example.image)
    run.mask_path("toy/4").write_bytes(b"no mask")  # the last one: the first stands in
    assert torch.equal(whole[Draw(0, 4)].example.labels, whole[Draw(0, 0)].example.labels)


def test_when_all_is_gone_it_stops(data, run):
    targets = find_targets(data, run)
    for sample in data:
        sample.image.unlink()
    with pytest.raises(UserError, match="5 images in a row cannot be read"):
        Examples(targets, CROPS, seed=0)[Draw(0, 3)]
    with pytest.raises(UserError, match=r"can be read together with its mask: .* does not exist"):
        check_targets(targets)


def test_a_batch_is_a_function_of_its_draws(data, run):
    examples = Examples(find_targets(data, run), CROPS, seed=1, confidence=True)
    examples = pickle.loads(pickle.dumps(examples))
    draws = [Draw(4, 0), Draw(4, 3), Draw(4, 2)]
    batch = examples.collate([examples[draw] for draw in draws])
    assert batch.images.shape == (3, 3, 32, 32)
    assert batch.labels.shape == batch.confidence.shape == (3, 32, 32)
    assert batch.labels.dtype == torch.uint8
    assert (batch.step, batch.samples.tolist(), batch.replaced) == (4, [0, 3, 2], ())
    torch.manual_seed(9)
    for place in (2, 0, 1):
        assert torch.equal(examples[draws[place]].example.image, batch.images[place])
    other = [examples[Draw(5, 0)], replace(examples, seed=2)[Draw(4, 0)]]
    assert all(not torch.equal(each.example.image, batch.images[0]) for each in other)


def test_targets_of_truth_alone_have_no_run(tmp_path, data):
    targets = find_targets(data, None, listed(tmp_path, "toy/0"))
    assert isinstance(targets, Targets)
    assert check_targets(targets) == []
