"""The words of Storybook's CLIP: a word-level tokenizer with an unknown token of its own, in Hugging Face layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tag2mask.classes import load_classes
from tag2mask.run.files import write_atomic
from tag2mask.storybook.captions import tokens
from tag2mask.storybook.phrases import (
    BACKDROPS,
    CLIP_ES_SENTENCE,
    KINDS,
    MORE_WORDS,
    NUMBERS,
    OWN_SENTENCES,
    PAPER_WORDS,
    THINGS,
    class_words,
    thing_words,
)

if TYPE_CHECKING:
    import tokenizers

PAD, START, UNKNOWN, END = "<pad>", "<s>", "<unk>", "</s>"
CONTEXT = 48
"""Tokens of the longest text, start and end among them."""

_MARKS = ".,!?-';:()"
_JOINTS = ("and", "with", "next", "to", "many", "several", "one", "in", "on", "beside")


def words_version() -> str:
    """A digest of the code that writes captions, and of the words."""
    room = resources.files("tag2mask.storybook")
    code = [(room / name).read_bytes() for name in ("captions.py", "phrases.py")]
    return hashlib.sha256(b"".join([*code, json.dumps(vocabulary()).encode()])).hexdigest()[:16]


@cache
def vocabulary() -> dict[str, int]:
    """Token -> id: padding, start and unknown first, then the words in order, the end last.

    The words are those of all captions, of the texts of VOC's class set, of all ImageNet templates, and the
    super-classes.
    """
    texts = [*OWN_SENTENCES, *BACKDROPS, CLIP_ES_SENTENCE, *_JOINTS, *NUMBERS.values(), *MORE_WORDS, *THINGS]
    texts += resources.files("tag2mask.classes").joinpath("imagenet_templates.txt").read_text("utf-8").splitlines()
    texts += [form for name in PAPER_WORDS for word in class_words(name) for form in word]
    texts += [word for thing in THINGS for word in thing_words(thing)]
    texts += [form for word in KINDS for form in word]
    voc = load_classes("voc12")
    texts += voc.foreground
    texts += [name for group in voc.superclasses.values() for name in group]
    for said in voc.texts.values():
        texts += [*said.names, *said.templates, *said.background]
        texts += [phrase for phrases in said.per_class.values() for phrase in phrases]
    words = {word for text in texts for word in tokens(text.replace("{}", " "))}
    known = [PAD, START, UNKNOWN, *sorted(words | set(_MARKS)), END]
    return {token: id for id, token in enumerate(known)}


def encode(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids (T, L) padded to the longest text, and the position of each text's end (T,).

    The same ids as the tokenizer gives, at a tenth of its time and without its threads.

    Raises:
        ValueError: a text is longer than ``CONTEXT``.
    """
    ids = vocabulary()
    rows = [[ids[START], *(ids.get(word, ids[UNKNOWN]) for word in tokens(text)), ids[END]] for text in texts]
    longest = max(map(len, rows))
    if longest > CONTEXT:
        raise ValueError(f"a caption has {longest} tokens, expected at most {CONTEXT}")
    out = np.full((len(rows), longest), ids[PAD], np.int64)  # (T, L)
    for row, each in zip(out, rows, strict=True):
        row[: len(each)] = each
    return out, np.array([len(row) - 1 for row in rows])


def build_tokenizer() -> tokenizers.Tokenizer:
    """The fast tokenizer: lower case, words and single marks, start and end added."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = vocabulary()
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    backend.add_special_tokens([PAD, START, UNKNOWN, END])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return backend


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    write_atomic(folder / "tokenizer.json", build_tokenizer().to_str(pretty=True).encode())
    write_atomic(folder / "tokenizer_config.json", (json.dumps(settings, indent=2) + "\n").encode())
