"""Pseudo masks: made from tags, kept whole whatever happens, and never of a class that is not shown."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from small_pretraining import few_scenes, small_classifier
from tag2mask.lab import teacher
from tag2mask.lab.teacher import RULE, SCALES, check_teacher, pseudo_masks, teach
from tag2mask.models.classifier import Classifier, load_classifier, save_classifier
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.masks import pseudo_mask
from tag2mask.run.lock import locked
from tag2mask.storybook import CLASSES
from tag2mask.types import Scores, UserError


@pytest.fixture
def scenes(tmp_path):
    return few_scenes(tmp_path)


@pytest.fixture
def source(tmp_path):
    return saved(small_classifier(), tmp_path / "teacher")


def saved(classifier: Classifier, folder: Path) -> str:
    save_classifier(classifier, folder, "")
    return str(folder)


def test_a_mask_holds_the_classes_shown_by_their_numbers(scenes, tmp_path):
    """By loops over pictures, scales and classes; the classifier counts its classes otherwise than the masks do."""
    source = saved(small_classifier((*CLASSES[::-1], "zebra")), tmp_path / "teacher")
    classifier, _ = load_classifier(source)
    masks = teach(scenes, source, CLASSES)
    assert (masks.shape, masks.dtype) == ((16, 16, 16), np.uint8)
    for told, image, mask in zip(scenes.facts, scenes.images, masks, strict=True):
        if not told.names:
            assert not mask.any()
            continue
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]  # (1, 3, H, W)
        maps = []
        for name in told.names:
            total = torch.zeros(16, 16)
            for scale in SCALES:
                side = [round(32 * scale)] * 2
                view = standardise(F.interpolate(pixels.float(), side, mode="bilinear", antialias=True), MEAN, STD)
                with torch.no_grad():
                    channel = classifier.names.index(name)
                    plain = F.relu(classifier.maps(view))[:, channel, None]
                    mirrored = F.relu(classifier.maps(view.flip(-1)))[:, channel, None].flip(-1)
                total += sum(F.interpolate(m, (16, 16), mode="bilinear")[0, 0] for m in (plain, mirrored))
            maps.append(total / total.max().clamp_min(1e-5))
        small = F.interpolate(pixels.float(), (16, 16), mode="bilinear", antialias=True)[0].round().to(torch.uint8)
        tags = torch.tensor([CLASSES.index(name) + 1 for name in told.names])
        expected, _ = pseudo_mask(Scores(tags, torch.stack(maps), (16, 16)), small, RULE)
        assert np.mean(mask == expected.numpy()) > 0.99
    assert len(np.unique(masks)) > 3


def test_killed_it_goes_on_where_it_was(scenes, source, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(teacher, "_SAVED", 4)
    monkeypatch.setattr(teacher, "_BATCH", 2)

    def dying(*args):
        made.append(1)
        if len(made) == 6:
            raise KeyboardInterrupt
        return pseudo_masks(*args)

    monkeypatch.setattr(teacher, "pseudo_masks", dying)
    with pytest.raises(KeyboardInterrupt):
        teach(scenes, source, CLASSES, workers=1)
    advanced = []
    parts = teach(
        scenes, source, CLASSES, workers=1, progress=lambda n=1, *, worked=True: advanced.append((n, worked))
    )
    assert len(made) == 6 + 8 - 4
    assert advanced == [(8, False), (4, True), (4, True)]
    monkeypatch.setattr(teacher, "pseudo_masks", pseudo_masks)
    other = teach(few_scenes(tmp_path / "other"), source, CLASSES, workers=1)
    assert np.array_equal(parts, other)
    monkeypatch.delattr(teacher, "pseudo_masks")  # what is there is not made again
    assert np.array_equal(teach(scenes, source, CLASSES), parts)


def damage_labels(folder, how):
    file = folder / "labels.npy"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-500])
    elif how == "fewer":
        np.save(file, np.load(file)[:3])
    elif how == "smaller":
        np.save(file, np.load(file)[:, :4, :4])
    elif how == "floats":
        np.save(file, np.load(file).astype(np.float32))
    else:
        (folder / "done.json").write_text(how)


@pytest.mark.parametrize("how", ["cut", "fewer", "smaller", "floats", "", "-3", "99", "[]"])
def test_damaged_masks_are_named_not_taken(scenes, source, how):
    teach(scenes, source, CLASSES, workers=1)
    (folder,) = scenes.folder.glob("pseudo-*")
    damage_labels(folder, how)
    with pytest.raises(UserError, match=r"is damaged .* made again"):
        teach(scenes, source, CLASSES, workers=1)


def test_lost_masks_are_made_again(scenes, source):
    masks = np.array(teach(scenes, source, CLASSES, workers=1))
    (folder,) = scenes.folder.glob("pseudo-*")
    (folder / "labels.npy").unlink()
    assert masks.any()
    assert np.array_equal(teach(scenes, source, CLASSES, workers=1), masks)


def test_finished_masks_are_read_while_another_process_holds_them(scenes, source):
    masks = teach(scenes, source, CLASSES, workers=1)
    (folder,) = scenes.folder.glob("pseudo-*")
    with locked(folder, "It"):
        assert np.array_equal(teach(scenes, source, CLASSES), masks)


def test_other_weights_make_other_masks(scenes, source):
    first = teach(scenes, source, CLASSES).copy()
    other = small_classifier()
    torch.nn.init.normal_(other.head.weight)
    saved(other, Path(source))  # in the same place
    assert not np.array_equal(first, teach(scenes, source, CLASSES))


def test_several_processes_make_the_same_masks(scenes, source, tmp_path, monkeypatch):
    alone = teach(scenes, source, CLASSES, workers=1)
    monkeypatch.setattr(teacher, "_SAVED", 8)
    together = teach(few_scenes(tmp_path / "other"), source, CLASSES, workers=2)
    assert np.mean(alone == together) > 0.999


def test_weights_that_change_meanwhile_are_refused(scenes, source):
    job = teacher._Job(teacher._Teacher(source, "another", CLASSES), scenes.folder, 0, [[0]])
    with pytest.raises(UserError, match="have changed"):
        teacher._masks(job)


def test_a_teacher_that_lacks_a_class_is_refused(tmp_path):
    save_classifier(small_classifier(CLASSES[:-1]), tmp_path, "")
    with pytest.raises(UserError, match=r"does not know tvmonitor.*pretrain-resnet"):
        check_teacher(str(tmp_path), CLASSES)
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert check_teacher(str(tmp_path), CLASSES[:-1]) == hashlib.sha256(weights).hexdigest()
