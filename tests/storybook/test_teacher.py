"""Pseudo masks: made from tags, kept whole whatever happens, and never of a class that is not shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from small_pretraining import few_scenes, small_classifier
from tag2mask.models.classifier import class_maps, save_classifier
from tag2mask.ops.masks import pseudo_mask
from tag2mask.storybook import CLASSES, teacher
from tag2mask.storybook.teacher import RULE, SCALES, load_teacher, pseudo, teach
from tag2mask.types import Scores, UserError


@pytest.fixture
def scenes(tmp_path):
    return few_scenes(tmp_path)


def test_a_mask_holds_the_classes_shown_by_their_numbers(scenes):
    classifier = small_classifier((*CLASSES[::-1], "zebra"))  # it counts its classes otherwise
    masks = teach(scenes, classifier, "reversed", CLASSES)
    assert (masks.shape, masks.dtype) == ((16, 32, 32), np.uint8)
    for told, image, mask in zip(scenes.told, scenes.images, masks, strict=True):
        tags = torch.tensor([CLASSES.index(name) + 1 for name in told.names])
        if not len(tags):
            assert not mask.any()
            continue
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
        with torch.no_grad():
            maps = class_maps(classifier, pixels, 20 - tags, scales=SCALES, grid=(8, 8))
        assert np.array_equal(mask, pseudo_mask(Scores(tags, maps, (32, 32)), pixels, RULE)[0].numpy())
    assert len(np.unique(masks)) > 3


def test_killed_it_goes_on_where_it_was(scenes, tmp_path, monkeypatch):
    classifier, made = small_classifier(), []
    monkeypatch.setattr(teacher, "_SAVED", 4)

    def dying(*args):
        made.append(1)
        if len(made) == 11:
            raise KeyboardInterrupt
        return pseudo(*args)

    monkeypatch.setattr(teacher, "pseudo", dying)
    with pytest.raises(KeyboardInterrupt):
        teach(scenes, classifier, "small", CLASSES)
    advanced = []
    parts = teach(scenes, classifier, "small", CLASSES, progress=advanced.append)
    assert len(made) == 11 + 16 - 8
    assert (advanced[0], sum(advanced)) == (8, 16)
    monkeypatch.setattr(teacher, "pseudo", pseudo)
    other = teach(few_scenes(tmp_path / "other"), classifier, "small", CLASSES)
    assert np.array_equal(parts, other)
    monkeypatch.delattr(teacher, "pseudo")  # what is there is not made again
    assert np.array_equal(teach(scenes, classifier, "small", CLASSES), parts)


def test_other_weights_make_other_masks(scenes):
    first = teach(scenes, small_classifier(), "one", CLASSES)
    other = small_classifier()
    torch.nn.init.normal_(other.head.weight)
    assert not np.array_equal(first, teach(scenes, other, "two", CLASSES))


def test_a_teacher_that_lacks_a_class_is_refused(tmp_path):
    save_classifier(small_classifier(CLASSES[:-1]), tmp_path, "")
    with pytest.raises(UserError, match=r"does not know tvmonitor.*pretrain-resnet"):
        load_teacher(str(tmp_path), CLASSES)
    assert load_teacher(str(tmp_path), CLASSES[:-1])[0].names == CLASSES[:-1]
