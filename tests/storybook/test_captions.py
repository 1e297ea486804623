"""Captions: true of what they are said of, varied, and in the words of the papers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tag2mask.classes import load_classes
from tag2mask.storybook import CLASSES, caption, draw_scene
from tag2mask.storybook.captions import Claim, describe, says, tokens
from tag2mask.storybook.phrases import (
    BACKDROPS,
    CLIP_ES_SENTENCE,
    OWN_SENTENCES,
    THINGS,
    imagenet_sentences,
)

CLIMS_NAMES = ("dining table", "player", "potted plant", "tv monitor")
CLIMS_BACKGROUND = ["tree", "river", "sea", "lake", "water", "railway", "railroad", "track", "stone", "rocks"]
CLIMS_EARLIER = ("building", "branches")
SUPER_CLASSES = (
    "animal",
    "vehicle",
    "household item",
    "furniture",
    "person",
    "kitchenware",
    "appliance",
    "accessory",
)
SUPER_CLASSES_COCO = ("indoor items", "outdoor item", "electronic item")


def imagine(seed):
    """Classes with numbers and things of a scene that nobody draws."""
    rng = np.random.default_rng([seed, 7])
    names = [str(name) for name in rng.permutation(CLASSES)[: rng.integers(0, 4)]]
    things = [str(thing) for thing in rng.permutation(THINGS)[: rng.integers(1, 6)]]
    return names, things, [int(count) for count in rng.integers(1, 6, len(names))]


@pytest.fixture(scope="module")
def said():
    """2,000 scenes, each with what was said of it."""
    out = []
    for seed in range(2000):
        names, things, counts = imagine(seed)
        out.append((names, things, counts, describe(names, things, np.random.default_rng([seed, 1]), counts)))
    return out


def test_captions_never_claim_what_is_not_there(said):
    for names, things, counts, one in said:
        number = dict.fromkeys(things, 1) | dict(zip(names, counts, strict=True))
        claims = says(one.text)
        assert claims, one
        for claim in claims:
            there = sum(number.get(name, 0) for name in claim.any_of)
            assert there >= claim.least, (one, number, claim)
            assert claim.most is None or there <= claim.most, (one, number, claim)


def test_a_kind_that_holds_a_thing_is_not_counted():
    """A keyboard is an electronic item too: with one on the table, "one electronic item" would be false."""
    number = {"keyboard": 1, "tvmonitor": 1}
    kinds = 0
    for seed in range(3000):
        one = describe(["tvmonitor"], ["keyboard"], np.random.default_rng(seed), [1])
        for claim in says(one.text):
            there = sum(number.get(name, 0) for name in claim.any_of)
            assert there >= claim.least, one
            assert claim.most is None or there <= claim.most, one
            kinds += len(claim.any_of) > 1
    assert kinds > 50


def test_what_a_text_says_by_hand():
    """The reader of captions, against what a person reads in them."""

    def one(*names, least=1, most=None):
        return Claim(frozenset(names), least, most)

    assert says("A clean origami person with clothes,people,human.") == {one("person")}
    assert says("two dogs next to the sea") == {one("dog", least=2, most=2), one("water")}
    assert says("many people, one tv monitor") == {one("person", least=3), one("tvmonitor", least=1, most=1)}
    assert says("people") == {one("person", least=2)}
    assert says("a player on a potted plant") == {one("person"), one("pottedplant")}
    assert says("an animal") == {one("bird", "cat", "cow", "dog", "horse", "sheep")}
    assert says("stone by the track") == {one("rock"), one("railway")}
    assert says("a house") == {one("house")}
    assert says("the building") == {one("house", "building")}
    assert says("house plants") == {one("pottedplant", least=2)}
    assert says("ground in the background") == {one("grass", "road", "floor", "field", "snow")}
    assert says("a photo of the hard to see thing") == set()


def test_sentences_name_nothing_by_themselves():
    for sentence in (*OWN_SENTENCES, *BACKDROPS, *imagenet_sentences(), CLIP_ES_SENTENCE):
        assert sentence.count("{}") == 1
        assert says(sentence.replace("{}", "x")) == set(), sentence


def test_every_word_of_the_papers_is_said(said):
    texts = load_classes("voc12").texts["clip-es"]
    words = {*texts.names, *texts.background, *CLIMS_NAMES, *CLIMS_BACKGROUND, *CLIMS_EARLIER, "background"}
    words |= {word for phrases in texts.per_class.values() for word in phrases}
    words |= {*SUPER_CLASSES, *SUPER_CLASSES_COCO}
    everything = "\n".join(caption.text for *_, caption in said)
    assert not [word for word in words if not re.search(rf"\b{re.escape(word)}\b", everything)]
    # of ImageNet's sentences too, "many" and "one" before a noun among them
    of_sentences = {word for line in imagenet_sentences() for word in tokens(line.replace("{}", " "))}
    assert {*of_sentences, "many", "one"} <= set(tokens(everything))


def test_captions_vary_and_leave_things_out():
    told = [describe(["dog", "boat"], ["water", "sky"], np.random.default_rng(seed)) for seed in range(400)]
    assert len({caption.text for caption in told}) > 250
    named = [frozenset().union(*(claim.any_of for claim in says(caption.text))) for caption in told]
    for name, low, high in (("dog", 0.8, 0.97), ("boat", 0.8, 0.97), ("water", 0.2, 0.55), ("sky", 0.2, 0.55)):
        assert low < np.mean([name in each for each in named]) < high, name
    both = [caption.text for caption in told if re.search(r"\bdog\b.*\bboat\b|\bboat\b.*\bdog\b", caption.text)]
    assert len(both) > 50
    assert 0.35 < np.mean([text.find("dog") < text.find("boat") for text in both]) < 0.65


def test_numbers_are_said_where_they_are_known():
    texts = [describe(["dog"], [], np.random.default_rng(seed), [2]).text for seed in range(200)]
    assert any(re.search(r"\btwo (dogs|puppies|animals)\b", text) for text in texts)
    assert not any(re.search(r"\b(three|four|many|one)\b", text) for text in texts)


def test_meaning_is_equal_for_equal_claims_in_other_words():
    told = [describe(["dog"], ["sky"], np.random.default_rng(seed)) for seed in range(300)]
    by_meaning = {}
    for one in told:
        by_meaning.setdefault(one.meaning, []).append(frozenset(says(one.text)))
    assert len({c.text for c in told}) > 4 * len(by_meaning)
    for claims in by_meaning.values():
        assert len(set(claims)) == 1


def test_plurals_take_no_article(said):
    plural = re.compile(r"\ban? (?:[\w-]+ )?(dogs|cats|boats|people|sofas|buses|animals|vehicles)\b")
    assert not [caption.text for *_, caption in said if plural.search(caption.text)]


def test_the_same_generator_says_the_same_of_a_drawn_scene():
    scene = draw_scene(5, (32, 48))
    first, again, other = (caption(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
