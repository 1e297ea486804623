"""Dense lessons: the texts, what a patch shows, and the loss, by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from small_pretraining import TAUGHT, few_scenes, pairs_of
from tag2mask.classes import load_classes
from tag2mask.lab.contrastive import ContrastiveCLIP
from tag2mask.lab.lessons import attention_loss, balanced, class_texts, dense_loss, log_probabilities, shares
from tag2mask.lab.towers import build_clip, encode_image, kept_patches, readings
from tag2mask.lab.views import look
from tag2mask.lab.vocabulary import vocabulary
from tag2mask.run.sampling import Draw
from tag2mask.storybook import CLASSES
from tag2mask.storybook.captions import tokens
from tag2mask.storybook.phrases import CLIP_ES_SENTENCE, PAPER_WORDS


def test_texts_name_the_background_set_and_then_every_class_in_one_sentence():
    assert class_texts(CLASSES, 0, 5) == class_texts(CLASSES, 0, 5)
    sentences, called = set(), {name: set() for name in CLASSES}
    clip_es = own = 0
    background = load_classes("voc12").texts["clip-es"].background
    for step in range(60):
        texts, count = class_texts(CLASSES, 0, step)
        assert (count, len(texts)) == (len(background), len(background) + 20)
        assert all(word in vocabulary() for text in texts for word in tokens(text))
        head, tail = texts[0].split("ground")
        sentences.add(head + "{}" + tail)
        clip_es += head + "{}" + tail == CLIP_ES_SENTENCE
        words = [text.removeprefix(head).removesuffix(tail) for text in texts]
        assert words[:count] == list(background)
        for name, word in zip(CLASSES, words[count:], strict=True):
            assert word in {singular for singular, _ in PAPER_WORDS[name]}
            called[name].add(word)
            own += len(PAPER_WORDS[name]) > 1 and word == PAPER_WORDS[name][0][0]
    assert len(sentences) > 10
    assert 0.3 < clip_es / 60 < 0.7
    several = [name for name in CLASSES if len(PAPER_WORDS[name]) > 1]
    assert 0.5 < own / (60 * len(several)) < 0.8
    assert called["person"] == {singular for singular, _ in PAPER_WORDS["person"]}


def test_shares_count_the_pixels_of_each_patch():
    rng = np.random.default_rng(0)
    squares = torch.from_numpy(rng.integers(0, 4, (2, 12, 16), dtype=np.uint8))
    labels = squares.repeat_interleave(2, 1).repeat_interleave(2, 2)  # four by four squares a patch
    whole = torch.zeros(2, 9)
    whole[:, :2] = 1
    whole[1, 4] = 1  # a mirror image
    found = shares(labels, whole, (24, 32), 8, 3)
    assert found.shape == (2, 12, 4)
    for b, mask in enumerate((labels[0], labels[1].flip(1))):
        for patch in range(12):
            row, column = patch // 4 * 8, patch % 4 * 8
            seen = mask[row : row + 8, column : column + 8]
            expected = np.bincount(seen.flatten().numpy(), minlength=4) / 64
            assert np.array_equal(found[b, patch].numpy(), expected)


def test_background_texts_share_one_probability():
    similarity = torch.tensor([0.5, -0.2, 0.1, 0.9])
    e = [math.exp(3 * float(s)) for s in similarity]
    expected = [math.log((e[0] + e[1]) / sum(e)), math.log(e[2] / sum(e)), math.log(e[3] / sum(e))]
    assert log_probabilities(similarity, 2, torch.tensor(3.0)).tolist() == pytest.approx(expected, rel=1e-5)


def test_dense_loss_is_cross_entropy_of_each_patch():
    torch.manual_seed(0)
    patches, texts = torch.randn(2, 3, 5), torch.randn(4, 5)
    target = torch.rand(2, 3, 3).softmax(-1)
    each = torch.zeros(2, 3)
    for b in range(2):
        for n in range(3):
            cosines = torch.stack([torch.cosine_similarity(patches[b, n], text, dim=0) for text in texts])
            each[b, n] = -(target[b, n] * log_probabilities(cosines, 2, torch.tensor(7.0))).sum()
    found = dense_loss(patches, texts, target, 2, torch.tensor(7.0))
    assert float(found) == pytest.approx(float(balanced(each, target)), rel=1e-5)


def test_things_weigh_as_much_as_background():
    each = torch.tensor([[1.0, 2, 4, 8]])
    target = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]])
    expected = ((1 + 2 + 0.5 * 4) / 2.5 + (0.5 * 4 + 8) / 1.5) / 2
    assert float(balanced(each, target)) == pytest.approx(expected)
    empty = torch.tensor([[[1.0, 0, 0]]])
    assert float(balanced(torch.tensor([[3.0]]), empty)) == pytest.approx(1.5)


def test_affinity_loss_asks_for_attention_among_those_that_show_the_same():
    torch.manual_seed(0)
    attention, target = torch.rand(2, 4, 4), torch.rand(2, 4, 3).softmax(-1)
    each = torch.zeros(2, 4)
    for b in range(2):
        for i in range(4):
            row = attention[b, i] / attention[b, i].sum()
            each[b, i] = -math.log(sum(float(row[j] * (target[b, i] * target[b, j]).sum()) for j in range(4)))
    assert float(attention_loss(attention, target)) == pytest.approx(float(balanced(each, target)), rel=1e-5)
    hard = torch.eye(3)[[0, 0, 1, 2]][None]
    among, away = (hard @ hard.transpose(1, 2)), 1 - hard @ hard.transpose(1, 2)
    assert float(attention_loss(among, hard)) == pytest.approx(0, abs=1e-6)
    assert float(attention_loss(away, hard)) > 5


@pytest.mark.parametrize("reading", ["dense", "value", "attention"])
def test_a_step_holds_the_kept_patches_against_their_own_cells(tmp_path, reading):
    """The module's loss is that of the parts put together by hand, under dropped patches and a cropped view."""
    recipe = TAUGHT
    pairs = pairs_of(few_scenes(tmp_path), recipe)
    batch = pairs.collate([pairs[Draw(3, i)] for i in range(8)])
    module = ContrastiveCLIP(recipe, build_clip(recipe))
    logged = {}
    module.log_dict = logged.update
    module.training_step(batch, 0)
    size = recipe.sizes[3 % 2]
    keep = kept_patches(3, recipe.seed, 8, size[0] * size[1] // 64, recipe.drop)
    pixels = (look(batch["image"], batch["view"], size) - module.mean) / module.std
    with torch.no_grad():
        encoded = encode_image(module.model.vision, pixels, keep, attention=True)
        read = readings(module.model.vision, encoded)
        names, count = class_texts(CLASSES, recipe.seed, 3)
        texts = torch.cat([module.model.text(*ids_of(name)) for name in names])
        cells = shares(batch["labels"], batch["view"], size, 8, 20)
        target = torch.stack([cells[b, keep[b]] for b in range(8)])
        scale = module.model.logit_scale.exp()
        expected = {
            "dense": dense_loss(read.each, texts, target, count, scale),
            "value": 0.5 * dense_loss(read.values, texts, target, count, scale),
            "attention": 0.25 * attention_loss(encoded.attention[:, 1:, 1:], target),
        }[reading]
    torch.testing.assert_close(logged[f"loss_{reading}"], expected, rtol=1e-4, atol=1e-5)


def ids_of(text):
    ids = [vocabulary()[word] for word in ("<s>", *tokens(text), "</s>")]
    return torch.tensor([ids]), torch.tensor([len(ids) - 1])
