"""Classifier CAM as a method: classes by name, grids, frames, limits; for the maps see tests/models."""

from __future__ import annotations

import pytest
import torch

from methods.toys import make_data
from tag2mask.methods import make_method
from tag2mask.methods.classifier_cam import ClassifierCAM
from tag2mask.models.classifier import class_maps
from tag2mask.ops.masks import upsample
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tag2mask.types import ClassSet, Item, UserError
from tiny_classifiers import write_classifier

CLASSES = ClassSet("pets", ("background", "cat", "dog"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A classifier that knows more than the class set, in another order."""
    return write_classifier(tmp_path_factory.mktemp("classifier"), ("dog", "emu", "cat"), seed=0)


def item(height: int, width: int, tags: list[int]) -> Item:
    generator = torch.Generator().manual_seed(height)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return Item("a", image, torch.tensor(tags))


def test_classes_are_found_by_name(weights) -> None:
    method = make_method("classifier-cam", CLASSES, weights=weights)
    thing = item(45, 67, [1, 2])
    (found,) = method.scores([thing])
    with torch.no_grad():
        expected = class_maps(method.classifier, thing.image, torch.tensor([2, 0]), grid=(12, 20))
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-5)
    assert (found.tags.tolist(), found.size, found.frame) == ([1, 2], (45, 67), (48, 80))


def test_what_lies_beyond_the_image_does_not_count_for_the_maximum(weights, monkeypatch) -> None:
    made = torch.zeros(2, 12, 20)  # of 45 x 67 pixels: columns from 17 on are beyond
    made[0, 3, 3], made[0, 0, 19], made[1, 11, 18] = 0.5, 1.0, 1.0
    monkeypatch.setattr("tag2mask.methods.cam_reader.class_maps", lambda *_, **__: made)
    (found,) = make_method("classifier-cam", CLASSES, weights=weights).scores([item(45, 67, [1, 2])])
    assert (found.maps[0, 3, 3], found.maps[0, 0, 19]) == (1.0, 1.0)
    assert (found.maps[1] == 0).all()


def test_unknown_classes_are_named(weights) -> None:
    classes = ClassSet("zoo", ("background", "cat", "gnu"), CLASSES.palette)
    with pytest.raises(UserError, match=r"does not know gnu of zoo; it knows dog, emu, cat"):
        make_method("classifier-cam", classes, weights=weights)


def test_the_stored_grid_spans_whole_cells(weights) -> None:
    """At the network's own stride the frame is what its cells span, so a cell is at its pixels after upsampling."""
    coarse = ClassifierCAM(CLASSES, ClassifierCAM.Options(weights=weights, map_stride=16, scales=(1.0,)))
    fine = ClassifierCAM(CLASSES, ClassifierCAM.Options(weights=weights, map_stride=1, scales=(1.0,)))
    thing = item(45, 67, [1])
    (few,), (many,) = coarse.scores([thing]), fine.scores([thing])
    assert (few.maps.shape, many.maps.shape) == ((1, 3, 5), (1, 48, 80))
    full = [upsample(one.maps, one.size, one.frame) for one in (few, many)]
    torch.testing.assert_close(full[0] / full[0].max(), full[1] / full[1].max(), atol=1e-4, rtol=1e-3)


def test_large_images_are_shrunk(weights) -> None:
    method = ClassifierCAM(CLASSES, ClassifierCAM.Options(weights=weights, max_pixels=64 * 64))
    sizes = []
    method.classifier.backbone.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape[2:])))
    (found,) = method.scores([item(256, 300, [1])])
    assert max(h * w for h, w in sizes) <= 64 * 64 * 1.05
    assert found.size == (256, 300)
    assert found.maps.shape[1:] == method.grid((256, 300))
    assert found.frame[0] >= 256
    assert found.frame[1] >= 300
    assert found.frame[0] < 256 * 1.5


def test_tags_that_cannot_be(weights) -> None:
    method = make_method("classifier-cam", CLASSES, weights=weights)
    for tags in ([], [3], [0]):
        with pytest.raises(ValueError, match=r"at least one of 1\.\.2"):
            method.scores([item(20, 20, tags)])


@pytest.mark.parametrize(("option", "value"), [("scales", ()), ("scales", (float("nan"),)), ("map_stride", 3)])
def test_options_that_cannot_work(weights, option, value) -> None:
    with pytest.raises(UserError, match=option):
        make_method("classifier-cam", CLASSES, weights=weights, **{option: value})


def test_what_decides_the_result_is_on_record(weights) -> None:
    method = make_method("classifier-cam", CLASSES, weights=weights)
    assert len(method.resolved["weights_sha256"]) == 64
    assert method.device == torch.device("cpu")


def test_labels_by_name_on_the_device_that_was_asked_for(weights, tmp_path) -> None:
    data = make_data(tmp_path / "images", count=2)
    data.classes = ClassSet("pets", ("background", "cat", "dog", "emu"), CLASSES.palette * 2)
    method = make_method("classifier-cam", data.classes, weights=weights, device="cpu")
    done = label(data, method, tmp_path / "run", progress=False)
    assert done.complete
    settings = Run.open(tmp_path / "run").settings
    assert settings["resolved"]["weights_sha256"] == make_method("classifier-cam", CLASSES, weights=weights).sha256
    assert settings["clip"] is None
    with pytest.raises(UserError, match="quantum"):
        make_method("classifier-cam", data.classes, weights=weights, device="quantum")
