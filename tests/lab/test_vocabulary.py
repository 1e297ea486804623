"""The tokenizer: what it knows, what it does not, and that all readers agree."""

from __future__ import annotations

import json
import warnings
from importlib import resources

import numpy as np
import pytest
from transformers import AutoTokenizer

from tag2mask.classes import load_classes
from tag2mask.lab.vocabulary import CONTEXT, END, PAD, START, UNKNOWN, encode, vocabulary, write_tokenizer
from tag2mask.models.text import read_tokenizer
from tag2mask.storybook import CLASSES
from tag2mask.storybook.captions import describe
from tag2mask.storybook.phrases import THINGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder)
    config = {"model_type": "clip"}
    (folder / "config.json").write_text(json.dumps(config))  # where transformers looks for the kind of model
    return folder


@pytest.fixture(scope="module")
def reader(folder):
    words = vocabulary()
    return read_tokenizer(folder, context=CONTEXT, vocabulary=len(words), end=words[END])


@pytest.fixture(scope="module")
def captions():
    out = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        names = [str(name) for name in rng.permutation(CLASSES)[:4]]
        out.append(describe(names, [str(t) for t in rng.permutation(THINGS)[:5]], rng, [1, 2, 3, 6]).text)
    return out


def test_padding_unknown_and_words_are_apart():
    words = vocabulary()
    assert sorted(words.values()) == list(range(len(words)))
    assert (words[PAD], words[START], words[UNKNOWN], words[END]) == (0, 1, 2, len(words) - 1)
    assert words[END] != 2  # which readers take for a configuration that was never mended


def test_every_caption_and_prompt_is_known(reader, captions):
    templates = resources.files("tag2mask.classes").joinpath("imagenet_templates.txt").read_text("utf-8").splitlines()
    texts = load_classes("voc12").texts["clip-es"]
    phrases = [*texts.names, *texts.background, *CLASSES, "dining table", "potted plant", "tv monitor", "player"]
    phrases += ["background", "track", "stone", "rocks", "branches", "foods", "sports", "household item"]
    for text in (*captions, *(t.format("x") for t in templates), *(f"a clean origami {p}." for p in phrases)):
        assert reader.unknown(text) in ([], ["x"]), text


def test_unknown_words_show(reader):
    assert reader.unknown("a photo of a Zebra with ☃.") == ["Zebra", "☃"]
    assert reader.unknown("a photo of <unk>.") == []
    assert vocabulary()[UNKNOWN] in reader.encode("a zebra").ids


def test_case_and_space_do_not_count(reader):
    assert reader.encode("A  Bird,dog.").ids == reader.encode("a bird , dog .").ids
    assert reader.encode("bird").ids != reader.encode("bird.").ids


def test_all_readers_agree(folder, reader, captions):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*captions, "a close-up photo of a zebra, nothing else!"]
    ids, ends = encode(texts)
    padded = theirs(texts, padding=True, return_tensors="np").input_ids
    assert np.array_equal(ids, padded)
    assert theirs.unk_token_id == vocabulary()[UNKNOWN] != theirs.pad_token_id
    for text, row, end in zip(texts, ids, ends, strict=True):
        one = reader.encode(text)
        assert one.ids == tuple(row[: end + 1])
        assert one.end == end


def test_a_text_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="expected at most 48"):
        encode(["dog " * 60])
