"""Captions: one sentence about a scene, in varied words, never naming what is not there.

As in captions of the web, things may be left out, called by another name, or named by their kind.
``says`` reads a caption back into what it claims, so that every one of them can be checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar
from zlib import crc32

import numpy as np

from tag2mask.storybook.phrases import (
    BACKDROPS,
    CLIP_ES_SENTENCE,
    KINDS,
    MANY,
    NUMBERS,
    OWN_SENTENCES,
    PAPER_WORDS,
    THINGS,
    Word,
    class_words,
    imagenet_sentences,
    kinds_of,
    thing_words,
)
from tag2mask.storybook.scenes import Scene

T = TypeVar("T")

SAME_THING = {"railroad": "railway"}
"""Other names that a scene may give to one of ``THINGS``."""

MOST_NAMED = 6
"""Things named in one caption, at the most: a caption has to fit the context of a small CLIP."""

_KEEP_CLASS, _KEEP_THING, _BY_KIND, _OWN_NAME, _PAPER_NAME = 0.9, 0.35, 0.12, 0.4, 0.6
_BARE, _OWN_SENTENCE, _CLIP_ES = 0.15, 0.25, 0.1  # shares of sentence; the rest are ImageNet's
_JOINTS = (" and ", ", ", " with ", " next to ")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ARTICLE = re.compile(
    r"(^|\bof )\b(a|an|the|my) ((?:(?!of |with |shows )[\w-]+ )*)$"
)  # the one that goes with the slot


class Claim(NamedTuple):
    """What one phrase says: at least ``least`` and, where given, at most ``most`` instances of ``any_of``."""

    any_of: frozenset[str]
    least: int = 1
    most: int | None = None


@dataclass(frozen=True)
class Caption:
    """A sentence, and a number that is equal for captions that claim the same in other words or order."""

    text: str
    meaning: int


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence naming some of what ``scene`` shows; see ``describe``."""
    return describe(scene.names, scene.things, rng, scene.counts).text


def describe(
    names: Sequence[str],
    things: Sequence[str],
    rng: np.random.Generator,
    counts: Sequence[int] | None = None,
) -> Caption:
    """One sentence naming some classes and things of a picture.

    A class is named nine times in ten, a thing of the background one time in three; at least one is always named.

    Args:
        names: the classes in the picture, VOC's names.
        things: what else it shows, of ``THINGS``.
        rng: the source of every choice.
        counts: instances of each class; None says one of each.
    """
    number = dict(zip(names, counts or [1] * len(names), strict=True))
    shown = list(dict.fromkeys(SAME_THING.get(thing, thing) for thing in things))
    # one draw for all that is decided each time: single draws are the greater part of a caption's time
    dice = rng.random(2 * (len(names) + len(shown)) + 6).tolist()
    roll = iter(dice).__next__
    named = [name for name in names if roll() < _KEEP_CLASS]
    named += [thing for thing in shown if roll() < _KEEP_THING]
    named = named or list(names) or shown
    order = rng.permutation(len(named)).tolist()[:MOST_NAMED]
    phrases: list[str] = []
    plurals: list[bool] = []
    meanings: list[str] = []
    for i in order:
        words, meaning, plural = _phrase(named[i], number, shown, rng)
        if meaning not in meanings:  # two animals are "an animal" but once
            phrases.append(words)
            plurals.append(plural)
            meanings.append(meaning)
    kind = roll()
    if kind < _BARE:
        sentence = "{}"
    elif kind < _BARE + _OWN_SENTENCE:
        sentence = _one(OWN_SENTENCES, roll())
    elif kind < _BARE + _OWN_SENTENCE + _CLIP_ES:
        sentence = CLIP_ES_SENTENCE
    else:
        sentence = _one(_imagenet(), roll())
    key = crc32(";".join(sorted(meanings)).encode())
    return Caption(_join(sentence, phrases, plurals[0], _one(_JOINTS, roll()), roll()), key)


def _phrase(
    name: str, number: dict[str, int], shown: Sequence[str], rng: np.random.Generator
) -> tuple[str, str, bool]:
    """A noun phrase for a class or thing; what it means; whether it refuses an article before it."""
    first, second, third, fourth = rng.random(4).tolist()
    if name not in number:
        return (*_thing_phrase(name, first, second, third), False)
    count, meaning = number[name], name
    kinds = kinds_of(name)
    if kinds and first < _BY_KIND:
        word: Word = _one(kinds, second)
        # "two animals" counts them all; things are not counted, so where one is of the kind no number is said
        count = 0 if set(shown) & set(KINDS[word]) else sum(number.get(member, 0) for member in KINDS[word])
        meaning = word[0]
    elif first < _BY_KIND + _OWN_NAME:
        word = PAPER_WORDS[name][0]
    else:
        word = _one(PAPER_WORDS[name] if second < _PAPER_NAME else class_words(name), fourth)
    if count > 1 and third < 0.7 and word[0] != word[1]:
        return (*_plural_phrase(word[1], count, fourth, meaning), True)
    if count == 1 and third < 0.05:
        return f"one {word[0]}", f"{meaning} 1", True  # takes no other article, as a plural takes none
    return _with_article(word[0], third), meaning, False


def _plural_phrase(plural: str, count: int, choice: float, meaning: str) -> tuple[str, str]:
    if count in NUMBERS and choice < 0.5:
        return f"{NUMBERS[count]} {plural}", f"{meaning} {count}"
    if count >= MANY and choice < 0.7:
        return f"{'many' if choice < 0.6 else 'several'} {plural}", f"{meaning} many"
    return plural, f"{meaning} plural"


def _thing_phrase(name: str, first: float, second: float, third: float) -> tuple[str, str]:
    words, kinds = thing_words(name), kinds_of(name)
    if kinds and (first < _BY_KIND or not words):
        kind = _one(kinds, second)[0]
        return kind, kind
    word = _one(words, second)
    if third < 0.1:
        return _one(BACKDROPS, 10 * third).format(word), f"{name} behind"
    return word, name


def _with_article(word: str, choice: float) -> str:
    if choice < 0.6 or word in ("cattle", "furniture", "kitchenware"):
        return word
    if choice < 0.7:
        return f"the {word}"
    return f"{'an' if word[0] in 'aeio' else 'a'} {word}"


def _join(sentence: str, phrases: list[str], plural: bool, joint: str, choice: float) -> str:
    """The sentence around the phrases; the first phrase's article gives way to the sentence's own."""
    head, _, tail = sentence.partition("{}")
    own = _ARTICLE.search(head)
    if own:
        first = phrases[0].split(" ", 1)
        phrases = [first[-1] if first[0] in ("a", "an", "the") else phrases[0], *phrases[1:]]
        if plural and own[2] in ("a", "an"):
            head = f"{head[: own.start(2)]}{own[3]}"
    if len(phrases) > 2 and choice < 0.5:
        return head + ", ".join(phrases[:-1]) + " and " + phrases[-1] + tail
    return head + joint.join(phrases) + tail


def _one(options: Sequence[T], choice: float) -> T:
    return options[int(choice * len(options))]


@cache
def _imagenet() -> tuple[str, ...]:
    return imagenet_sentences()


# --- reading back --------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    """Words and marks of a text, in lower case, as the vocabulary splits it."""
    return _TOKEN.findall(text.lower())


def says(text: str) -> set[Claim]:
    """What a caption claims to be there, read from its words alone.

    The longest phrase is taken where several begin ("tv monitor" before "tv"); words that name nothing are passed.
    """
    phrases, longest = _phrases()
    words = tokens(text)
    claims: set[Claim] = set()
    at = 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            found = phrases.get(tuple(words[at : at + length]))
            if found is not None:
                claims.add(_counted(found, words[at - 1] if at else ""))
                at += length
                break
        else:
            at += 1
    return claims


def _counted(claim: Claim, before: str) -> Claim:
    """The claim with the number that stands before it."""
    for number, word in NUMBERS.items():
        if before == word:
            return Claim(claim.any_of, number, number)
    if before == "one":
        return Claim(claim.any_of, 1, 1)
    return Claim(claim.any_of, MANY) if before in ("many", "several") else claim


@cache
def _phrases() -> tuple[dict[tuple[str, ...], Claim], int]:
    """Every phrase that names something, as tokens, with its claim; and the length of the longest."""
    out: dict[tuple[str, ...], Claim] = {}

    def add(words: Word, names: Sequence[str], plural: int) -> None:
        singular, many = (tuple(tokens(word)) for word in words)
        out.setdefault(many, Claim(frozenset(names), plural))
        out[singular] = Claim(frozenset(names))

    for name in PAPER_WORDS:
        for word in class_words(name):
            add(word, [name], 2)
    for thing in THINGS:
        for single in thing_words(thing):
            add((single, single), [thing], 1)
    for word, members in KINDS.items():
        add(word, members, 1 if set(members) <= set(THINGS) else 2)
    return out, max(map(len, out))
