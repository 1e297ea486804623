"""Masks that a person drew of images without a made one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.import_cases import out, with_inputs
from stages.small_run import CLASSES, small_run
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.corrected import counting
from tag2mask.segment.augment import Augment
from tag2mask.segment.examples import Examples
from tag2mask.segment.targets import find_targets
from tag2mask.stages.compare import compare
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.export import export
from tag2mask.stages.import_masks import import_masks
from tag2mask.stages.report import report
from tag2mask.types import IGNORE, MaskRule, UserError


@pytest.fixture
def gappy(tmp_path, data):
    """A run whose labelling failed on one image, and left out another for want of tags."""
    data.samples[3] = replace(data.samples[3], tags=None)
    return small_run(tmp_path / "gappy", data, MaskRule(mu=0.7), leave_out=(0, 3))


def drawn_by_hand(folder, **masks):
    folder.mkdir()
    for name, mask in masks.items():
        (folder / f"{name}.png").write_bytes(encode_mask(mask, CLASSES.palette))
    return folder


def hand_masks(data):
    """Masks for the two images without one, 0 and 3, by the ends of their ids."""
    found = {}
    for at in (0, 3):
        mask = np.zeros_like(data[at].truth())
        mask[5:20, 5:25], mask[30, 30] = 2, IGNORE
        found[str(at)] = mask
    return found


def test_an_image_without_a_made_mask_gets_one(gappy, data, tmp_path):
    masks = hand_masks(data)
    folder = drawn_by_hand(tmp_path / "in", **masks)
    with pytest.raises(UserError, match=r"no mask of an image of .*; its names are 0.png, 3.png"):
        import_masks(gappy, folder, progress=False)  # without the data nothing is known of these images
    before = evaluate(gappy, data, progress=False)
    found = import_masks(gappy, folder, data=data, progress=False)
    assert found.corrected == found.added == ("toy/0", "toy/3")
    assert "2 of them are of images without a made mask" in found.text()
    assert import_masks(gappy, folder, data=data, progress=False).equal == 2
    run = counting(gappy)
    assert run.ids() == [sample.id for sample in data]
    assert gappy.ids() == ["toy/1", "toy/2", "toy/4"]

    found = evaluate(gappy, data, progress=False)
    assert (before.images, before.missing, found.images, found.missing) == (3, 2, 5, 0)
    assert found.supervision == "tags+pixels(2)"
    assert found.stale == ("2 corrected masks without score maps: not in the figures of the maps",)
    assert [curve.images for curve in found.curves] == [curve.images for curve in before.curves]

    for given in (data, None):  # with the images and without
        place = export(gappy, given, "png", tmp_path / f"out{given is None}", progress=False)
        for at, mask in masks.items():
            np.testing.assert_array_equal(read_mask(place / "toy" / f"{at}.png"), mask)

    targets = find_targets(data, run)
    assert (len(targets), targets.supervision, targets.left_out) == (5, "tags+pixels(2)", {})
    np.testing.assert_array_equal(targets.labels(3).numpy(), masks["3"])
    assert find_targets(data, gappy).left_out == {"failed": 2}

    other = small_run(tmp_path / "other", data, MaskRule(mu=0.7))
    assert compare([gappy, other], [data, data]).images == 5


def test_the_report_shows_a_corrected_mask_without_confidence(gappy, data, tmp_path):
    import_masks(gappy, drawn_by_hand(tmp_path / "in", **hand_masks(data)), data=data, progress=False)
    for given in (data, replace(data, samples=[replace(each, truth=None) for each in data.samples]), None):
        page = report(gappy, given, tmp_path / "page.html", progress=False).read_text()
        assert "5</b><span>images labelled" in page
        assert "2 corrected by a person" in page
        assert "cannot be read" not in page
        small = (tmp_path / "page-images" / "all-1.html").read_text()
        assert small.count("corrected by a person") == 2
        assert small.count('data-confidence=""') == 2


def test_a_drawing_of_a_picture_that_was_replaced_counts_no_more(gappy, data, tmp_path):
    import_masks(gappy, drawn_by_hand(tmp_path / "in", **hand_masks(data)), data=data, progress=False)
    data[3].image.write_bytes(data[0].image.read_bytes())
    targets = find_targets(data, counting(gappy))
    assert targets.left_out == {"whose picture was replaced": 1}
    assert targets.supervision == "tags+pixels(1)"
    assert evaluate(gappy, data, progress=False).images == 4


def test_where_nothing_was_drawn_an_image_stays_without_a_mask(gappy, data, tmp_path):
    """A tool lists every image of a task; an image nobody looked at is not one without any object."""
    blank = {at: np.zeros_like(mask) for at, mask in hand_masks(data).items()}
    found = import_masks(gappy, drawn_by_hand(tmp_path / "in", **blank), data=data, progress=False)
    assert (found.corrected, found.blank) == ((), ("toy/0", "toy/3"))
    assert "nothing is drawn on 2 images without a made mask" in found.text()
    assert counting(gappy).ids() == gappy.ids()


def test_an_outline_on_an_image_without_a_made_mask(gappy, data, tmp_path):
    """A format that says no size takes the picture's; ignored pixels are of masks that were made."""
    folder = out(gappy, data, "yolo-seg", tmp_path / "out", images="none")
    (folder / "labels" / "train" / "toy" / "3.txt").write_text("1 0 0 0.5 0 0.5 0.5 0 0.5\n")
    assert import_masks(gappy, folder, data=data, progress=False).added == ("toy/3",)
    mask = read_mask(counting(gappy).mask_path("toy/3"))
    expected = np.zeros((48, 64), np.uint8)
    expected[:24, :32] = 2
    np.testing.assert_array_equal(mask, expected)


def test_a_later_label_keeps_what_was_drawn(gappy, data, tmp_path):
    masks = hand_masks(data)
    import_masks(gappy, drawn_by_hand(tmp_path / "in", **masks), data=data, progress=False)
    again = small_run(gappy.path, data, MaskRule(mu=0.7))
    again = with_inputs(again, data)
    np.testing.assert_array_equal(read_mask(counting(again).mask_path("toy/0")), masks["0"])
    examples = Examples(find_targets(data, counting(again)), Augment(crop=None, flip=0), seed=0, confidence=True)
    example = examples.read(0)
    assert torch.equal(example.labels, torch.from_numpy(masks["0"]))
    assert example.confidence.min() == 1
