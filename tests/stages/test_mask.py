"""One picture in memory gets the very bytes that ``label`` writes for its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import tag2mask
from tag2mask.classes import plain_classes
from tag2mask.data import read_folder
from tag2mask.data.png import encode_confidence, encode_mask
from tag2mask.methods import make_method
from tag2mask.models.weights import load_clip
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tag2mask.storybook import draw_scene, scene_seed
from tag2mask.types import MaskRule, UserError

CLASSES = plain_classes(["person", "dog", "boat"], "pets")
PLAIN = MaskRule(mu=0.6)


@pytest.fixture(scope="module")
def clip():
    return load_clip("storybook-clip", cache=None)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, clip):
    """A photograph that EXIF turns, and one without any tag, labelled in a folder."""
    folder = tmp_path_factory.mktemp("photos")
    scene = Image.fromarray(draw_scene(scene_seed("val", 0, 3), (64, 96)).image)
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.save(folder / "turned.jpg", exif=exif)
    scene.save(folder / "empty.png")
    (folder / "tags.csv").write_text("image,labels\nturned.jpg,person;dog\nempty.png,background\n")
    out = tmp_path_factory.mktemp("run") / "run"
    method = make_method("clip-es", CLASSES, clip=clip, allow_unknown=True)
    label(read_folder(folder, classes=CLASSES), method, out, rule=PLAIN, progress=False)
    return folder, Run.open(out)


@pytest.mark.parametrize("kind", ["pillow", "array"])
@pytest.mark.parametrize(("name", "tags"), [("turned", ["dog", "person"]), ("empty", [])])
def test_it_is_what_label_writes(labelled, clip, kind, name, tags):
    folder, run = labelled
    (path,) = folder.glob(f"{name}.*")
    with Image.open(path) as image:
        given = image if kind == "pillow" else np.array(image.transpose(Image.Transpose.ROTATE_270))
        if kind == "array" and name == "empty":
            given = np.array(image)
        found = tag2mask.mask(given, tags, clip=clip, classes=CLASSES, rule=PLAIN, allow_unknown=True)
    mask, confidence, scores = found
    assert mask.shape == ((96, 64) if name == "turned" else (64, 96))
    assert encode_mask(mask, CLASSES.palette) == run.mask_path(name).read_bytes()
    assert encode_confidence(confidence) == run.confidence_path(name).read_bytes()
    assert scores.tags.tolist() == ([1, 2] if tags else [])
    if tags:
        assert len(np.unique(mask)) > 1
        assert torch.equal(run.scores(name).maps, scores.maps.half().float())


def test_without_a_class_set_the_values_are_the_tags_in_their_order(clip):
    image = draw_scene(scene_seed("val", 0, 3), (64, 96)).image
    how = {"clip": clip, "rule": MaskRule(), "allow_unknown": True}
    one, other = (tag2mask.mask(image, tags, **how).mask for tags in (["person", "dog"], ["dog", "person"]))
    swapped = np.array([0, 2, 1], np.uint8)[one]
    assert (swapped == other).mean() > 0.99  # sums in another order
    assert set(np.unique(one)) & {1, 2}


@pytest.mark.parametrize(
    ("image", "tags", "more", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), "dog;person", {}, r"\['dog', 'person'\]"),
        (np.zeros((4, 4), np.uint8), ["dog"], {}, r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3)), ["dog"], {}, "float64"),
        (Image.new("RGBA", (4, 4), (9, 9, 9, 0)), ["dog"], {}, "transparent"),
        (np.zeros((4, 4, 3), np.uint8), ["dgo"], {"classes": CLASSES}, "did you mean 'dog'"),
        (np.zeros((4, 4, 3), np.uint8), [], {}, "name the classes"),
        (np.zeros((4, 4, 3), np.uint8), ["dog"], {"method": "irn"}, "use `label`"),
    ],
)
def test_what_cannot_be_is_named(clip, image, tags, more, message):
    with pytest.raises(UserError, match=message):
        tag2mask.mask(image, tags, clip=clip, **more)


def test_the_array_given_stays_as_it_is(clip):
    image = draw_scene(scene_seed("val", 0, 3), (64, 96)).image
    before = image.copy()
    image.setflags(write=False)
    tag2mask.mask(image, ["dog"], clip=clip, rule=MaskRule(), allow_unknown=True)
    assert (image == before).all()
