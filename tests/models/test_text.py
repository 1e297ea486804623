"""Tokenizing, words that are not known, and the cache of text features."""

from __future__ import annotations

import dataclasses
import gzip
import html
import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers, processors

from tag2mask.models import text as module
from tag2mask.models.text import FeatureCache, Tokens, cache_folder, clean, read_tokenizer
from tag2mask.types import UserError
from tiny_clips import write_tokenizer

# a small byte-level vocabulary: every byte, and the pairs that make "cat" and "it's"
MERGES = [("c", "a"), ("ca", "t</w>"), ("i", "t</w>"), ("'", "s</w>")]


@pytest.fixture
def bpe_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bpe"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(module.openai_vocabulary(MERGES)), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def word_level(tmp_path: Path):
    write_tokenizer(tmp_path)
    return read_tokenizer(tmp_path, context=8, vocabulary=10, end=9)


def test_vocabulary_is_in_openai_s_order() -> None:
    vocabulary = module.openai_vocabulary(MERGES)
    assert (vocabulary["!"], vocabulary["a"], vocabulary["a</w>"]) == (0, 64, 320)  # 320: "a" in OpenAI's CLIP
    assert [vocabulary[piece] for piece in ("ca", "cat</w>", "it</w>", "'s</w>")] == [512, 513, 514, 515]
    assert (vocabulary[module.START], vocabulary[module.END]) == (516, 517)
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocabulary)


def test_byte_level_words(bpe_folder) -> None:
    tokenizer = read_tokenizer(bpe_folder, context=77, vocabulary=518)
    byte = module.openai_vocabulary(MERGES)
    assert tokenizer.encode("Cat  IT'S\n4").ids == (516, 513, 514, 515, byte["4</w>"], 517)
    assert tokenizer.encode("cat").end == 2
    assert tokenizer.encode("").ids == (516, 517)
    assert tokenizer.encode("é").ids == (516, byte["Ã"], byte["©</w>"], 517)
    # "cat4": a letter run and a digit are two words; two digits are two words
    assert tokenizer.encode("cat44").ids == (516, 513, byte["4</w>"], byte["4</w>"], 517)
    assert tokenizer.unknown("日本語 🙂 cat") == []
    # an end token within a text is where its feature is read, as in OpenAI's code
    assert tokenizer.encode("<|endoftext|> cat").end == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a&amp;amp;b", "a&b"),
        ("“it’s”", '"it\'s"'),
        ("  two \t\n words ", "two words"),
        ("ＦＵＬＬ　ﬁsh", "FULL fish"),
        ("e\u0301", "é"),
        ("bell\x07", "bell"),
    ],
)
def test_clean(text, expected) -> None:
    assert clean(text) == expected
    assert clean(html.escape(expected)) == expected


def test_openai_s_merges_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in [*MERGES, ("x", "y")]))
    with pytest.raises(UserError, match="holds 5 merges"):
        read_tokenizer(path, context=77, vocabulary=518)
    monkeypatch.setattr(module, "MERGES", 4)  # the fifth is beyond the vocabulary, as most of the real file's are
    assert read_tokenizer(path, context=77, vocabulary=518).encode("cat").ids == (516, 513, 517)


def test_unknown_words_are_named(word_level) -> None:
    assert word_level.unknown("a photo of the red dog.") == []
    assert word_level.unknown("A clean Origami of a Cat.") == ["clean", "Origami"]
    assert word_level.encode("a zebra").ids == (1, 2, 0, 9)


def test_padding_and_truncation_of_the_file_are_switched_off(word_level) -> None:
    assert word_level.encode("cat").ids == (1, 5, 9)
    assert len(word_level.encode("a photo of a cat dog").ids) == 8


def test_without_an_end_id_the_largest_id_is_the_end(word_level) -> None:
    """What follows the end (padding that a template adds) does not matter."""
    word_level.backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> <pad>", special_tokens=[("<s>", 1), ("</s>", 9), ("<pad>", 0)]
    )
    assert dataclasses.replace(word_level, end=None).encode("a cat") == Tokens((1, 2, 5, 9, 0), 3)


def test_long_texts_are_refused_by_name(word_level) -> None:
    with pytest.raises(UserError, match=r"'a photo of a cat dog red' has 9 tokens.*at most 8"):
        word_level.encode("a photo of a cat dog red")


def test_a_tokenizer_of_another_checkpoint_is_refused(tmp_path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match="same checkpoint"):
        read_tokenizer(tmp_path, context=8, vocabulary=9).encode("cat")
    with pytest.raises(UserError, match="same checkpoint"):
        read_tokenizer(tmp_path, context=8, vocabulary=10, end=7).encode("cat")


def test_damaged_tokenizers(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer"):
        read_tokenizer(tmp_path, context=8, vocabulary=10)
    for name in ("tokenizer.json", "merges.txt", "x.txt.gz"):
        (tmp_path / name).write_bytes(b"{broken")
        with pytest.raises(UserError, match="no tokenizer that can be read"):
            read_tokenizer(tmp_path / name, context=8, vocabulary=10)


def test_cache_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TAG2MASK_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("TAG2MASK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tag2mask"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tag2mask"


ROWS = {FeatureCache.key(Tokens((1, i, 9), 2)): torch.full((4,), float(i)) for i in range(3)}


def test_cache_is_kept_and_read_back(tmp_path) -> None:
    path = tmp_path / "deep" / "text.npz"
    FeatureCache(path).add(ROWS)
    other = FeatureCache(path)
    other.lookup(ROWS)
    assert all(torch.equal(other.memory[key], row) for key, row in ROWS.items())
    assert [file.name for file in path.parent.iterdir()] == ["text.npz"]
    assert len(ROWS) == 3
    assert FeatureCache.key(Tokens((1, 2, 9), 2)) != FeatureCache.key(Tokens((1, 2, 9), 1))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"\x80\x04."])
def test_a_damaged_cache_is_written_anew(tmp_path, damage) -> None:
    path = tmp_path / "text.npz"
    path.write_bytes(damage)
    cache = FeatureCache(path)
    cache.lookup(ROWS)
    assert cache.memory == {}
    cache.add(ROWS)
    assert FeatureCache(path)._read().keys() == ROWS.keys()
    np.savez(path, keys=np.array(["a"], dtype=object), features=np.zeros((2, 2)))
    assert FeatureCache(path)._read() == {}
    np.savez(path, keys=np.array([b"a"]), features=np.zeros((2, 2), np.float32))
    assert FeatureCache(path)._read() == {}


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "text.npz")
    cache.add(ROWS)
    assert cache.memory.keys() == ROWS.keys()


def test_writers_at_once_never_leave_half_a_file(tmp_path) -> None:
    path = tmp_path / "text.npz"
    torn = []

    def write(start: int) -> None:
        for i in range(start, start + 10):
            FeatureCache(path).add({f"{i:032d}": torch.full((4,), float(i))})
            rows = FeatureCache(path)._read()
            torn.extend(key for key, row in rows.items() if not (row == int(key)).all())
            if not rows:
                torn.append("empty")

    threads = [threading.Thread(target=write, args=(10 * n,)) for n in range(3)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    assert torn == []


def test_a_second_writer_keeps_the_first_one_s_rows(tmp_path) -> None:
    path = tmp_path / "text.npz"
    caches = [FeatureCache(path) for _ in ROWS]
    for cache, (key, row) in zip(caches, ROWS.items(), strict=True):
        cache.add({key: row})
    assert FeatureCache(path)._read().keys() == ROWS.keys()
    assert list(itertools.islice(FeatureCache(None).memory, 1)) == []
