from __future__ import annotations

import re

import numpy as np
import pytest

from tag2mask.storybook import CLASSES20, caption, draw_scene
from tag2mask.storybook.captions import KINDS, SENTENCES, WORDS


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed, (64, 96), CLASSES20) for seed in range(80)]


def test_captions_never_name_an_absent_thing(scenes):
    """Every word of a caption belongs to its sentence or to the name of something that is there."""
    joints = {"and", "with", "beside"}
    of_sentences = [set(re.findall(r"\w+", sentence)) for sentence in SENTENCES]
    for index, scene in enumerate(scenes):
        present = {*scene.names, *scene.things}
        allowed = {word for name in present for phrase in WORDS[name] for word in phrase.split()}
        allowed |= {kind for kind, members in KINDS.items() if present & set(members)}
        for turn in range(4):
            said = caption(scene, np.random.default_rng([index, turn]))
            rest = set(re.findall(r"\w+", said)) - allowed - joints
            assert any(rest <= words for words in of_sentences), (said, present)
            assert set(re.findall(r"\w+", said)) & allowed, said


def test_no_sentence_names_a_thing_by_itself():
    names = {word for phrases in WORDS.values() for phrase in phrases for word in phrase.split()} - {"with"}
    for sentence in SENTENCES:
        assert sentence.count("{}") == 1
        assert not set(re.findall(r"\w+", sentence)) & (names | set(KINDS)), sentence


def test_no_word_means_two_things_that_can_be_apart():
    """Else the check above could not see a false word. Railway and railroad do share rails."""
    owners: dict[str, set[str]] = {}
    for name, phrases in WORDS.items():
        for phrase in phrases:
            owners.setdefault(phrase, set()).add(name)
    assert {phrase: names for phrase, names in owners.items() if len(names) > 1} == {}


def test_captions_vary_and_leave_things_out(scenes):
    scene = next(s for s in scenes if len(s.tags) == 2)
    said = {caption(scene, np.random.default_rng(turn)) for turn in range(200)}
    assert len(said) > 100
    first, second = (WORDS[name] for name in scene.names)
    has = [[any(word in c for word in words) for words in (first, second)] for c in said]
    assert any(a and b for a, b in has)
    assert any(a != b for a, b in has)
    assert caption(scene, np.random.default_rng(1)) == caption(scene, np.random.default_rng(1))
    assert set(WORDS) >= set(CLASSES20)
