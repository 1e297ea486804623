"""Sharpness (Eq. 5) worked out in numpy, and which templates and images count."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tag2mask.classes import load_classes
from tag2mask.methods.clip_es import ClipES, ClipESOptions
from tag2mask.methods.prompts import CLIP_ES_TEMPLATE, Sharpness, imagenet_templates
from tag2mask.models.clip import CLIPModel, TextTransformer, VisionTransformer
from tag2mask.models.untrained import draw_weights
from tag2mask.types import Item, UserError

CLASSES = load_classes("voc12")
TEMPLATES = ("a {}.", "a photo of {}.", "the {} here.")


def feature(template, name):
    """A text feature seeded by the text itself, order of letters included."""
    seed = sum((i + 1) * ord(c) for i, c in enumerate(template.replace("{}", name)))
    return F.normalize(torch.randn(24, generator=torch.Generator().manual_seed(seed)), dim=0)


def small_clip(unknown=lambda text: []):
    tower = VisionTransformer(width=64, layers=2, heads=2, patch=16, native_grid=(7, 7), embed=24)
    model = CLIPModel(tower, TextTransformer(vocabulary=8, context=4, width=8, layers=1, heads=1, embed=24))
    draw_weights(model, 0)
    model.eval().requires_grad_(False)

    def ensemble(names, templates, *, allow_unknown=False):
        rows = [torch.stack([feature(t, name) for t in templates]).mean(0) for name in names]
        return F.normalize(torch.stack(rows), dim=1)

    return SimpleNamespace(
        model=model,
        name="small",
        patch=16,
        mean=(0.48, 0.46, 0.41),
        std=(0.27, 0.26, 0.28),
        device=torch.device("cpu"),
        ensemble=ensemble,
        unknown=unknown,
    )


def item(seed, *tags):
    image = torch.randint(0, 256, (3, 40, 56), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Item(str(seed), image, torch.tensor(tags))


ITEMS = (item(0, 1, 4, 9), item(1, 2, 16), item(2, 7))


def by_hand(made, template, items, background):
    """Eq. 5: the variances (over K, not K - 1) summed over images, over the summed means."""
    texts = CLASSES.texts["clip-es"]
    names = np.stack([feature(template, n).double().numpy() for n in texts.names])
    rest = np.stack([feature(template, n).double().numpy() for n in texts.background])
    scale = float(made.clip.model.logit_scale.exp())
    variances, means = 0.0, 0.0
    for one in items:
        v = made.embeddings([one])[0].double().numpy()
        v = v / np.sqrt((v**2).sum())
        tags = one.tags.numpy() - 1
        rows = np.concatenate([names[tags], rest]) if background else names
        e = np.exp(scale * rows @ v)
        p = e / e.sum()
        p = p[: len(tags)] if background else p[tags]
        variances += ((p - p.mean()) ** 2).sum() / len(p)
        means += p.mean()
    return variances / means


@pytest.mark.parametrize("background", [True, False])
def test_equation_5(background):
    made = ClipES(CLASSES, ClipESOptions(background=background), clip=small_clip())
    sharpness = Sharpness(made, CLASSES, TEMPLATES)
    sharpness.update(ITEMS[:2])
    sharpness.update(ITEMS[2:])  # one tag: no variance, but its mean counts
    expected = {t: by_hand(made, t, ITEMS, background) for t in TEMPLATES}
    ranking = sharpness.ranking()
    assert [p.template for p in ranking] == sorted(TEMPLATES, key=expected.__getitem__)
    for prompt in ranking:
        assert prompt.sharpness == pytest.approx(expected[prompt.template], rel=1e-4)
    assert len(set(expected.values())) == len(TEMPLATES)


def test_images_without_tags_do_not_count():
    made = ClipES(CLASSES, clip=small_clip())
    some, all_ = Sharpness(made, CLASSES, TEMPLATES), Sharpness(made, CLASSES, TEMPLATES)
    some.update(ITEMS)
    all_.update(
        [*ITEMS, Item("unknown", ITEMS[0].image, None), Item("none", ITEMS[0].image, torch.tensor([]).long())]
    )
    assert all_.ranking() == some.ranking()
    assert all_.images == 3


def test_no_image_is_refused():
    sharpness = Sharpness(ClipES(CLASSES, clip=small_clip()), CLASSES, TEMPLATES)
    with pytest.raises(UserError, match="no image with tags"):
        sharpness.ranking()
    sharpness.update([Item("unknown", ITEMS[0].image, None)])
    with pytest.raises(UserError, match="no image with tags"):
        sharpness.ranking()


def test_templates_with_unknown_words_are_left_out():
    made = ClipES(CLASSES, clip=small_clip(lambda text: [w for w in text.split() if w == "photo"]))
    sharpness = Sharpness(made, CLASSES, TEMPLATES)
    assert sharpness.left_out == (("a photo of {}.", ("photo",)),)
    assert sharpness.templates == ("a {}.", "the {} here.")
    sharpness.update(ITEMS)
    ranking = sharpness.ranking()
    assert {p.template for p in ranking} == {"a {}.", "the {} here."}
    for prompt in ranking:
        assert prompt.sharpness == pytest.approx(by_hand(made, prompt.template, ITEMS, True), rel=1e-4)
    with pytest.raises(UserError, match="photo"):
        Sharpness(made, CLASSES, TEMPLATES[1:2])


def test_the_templates_that_are_tried():
    templates = imagenet_templates()
    assert len(templates) == len(set(templates)) == 81
    assert templates[-1] == CLIP_ES_TEMPLATE
    assert all(t.count("{}") == 1 for t in templates)
