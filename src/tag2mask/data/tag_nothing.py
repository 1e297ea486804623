"""Words that are no names of classes: for background, for nothing, for what is absent, and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tag2mask.classes import fold
from tag2mask.words import listing

__all__ = ["NUMBER", "is_background", "no_names", "quoted", "says_absent", "says_nothing"]

_NOTHING = frozenset(
    (
        *(
            "none",
            "nan",
            "null",
            "nil",
            "na",
            "n/a",
            "n.a.",
            "nothing",
            "no",
            "empty",
            "void",
            "undefined",
            "unknown",
        ),
        *("unlabeled", "unlabelled", "untagged", "nolabel", "nolabels", "notag", "notags", "noobject", "noobjects"),
        *("nottagged", "notlabeled", "notlabelled", "ignore", "bg", "negative", "todo", "tbd", "noclass"),
        *("kein", "keine", "keiner", "keines", "keins", "nichts", "leer", "k.a.", "k.a", "ohne", "unbekannt"),
        *("hintergrund", "aucun", "aucune", "rien", "vide", "sans", "inconnu", "arri\u00e8replan", "arriereplan"),
        *(
            "ninguno",
            "ninguna",
            "nada",
            "vac\u00edo",
            "vacio",
            "desconocido",
            "fondo",
            "nessuno",
            "nessuna",
            "niente",
        ),
        *("vuoto", "sfondo", "nenhum", "nenhuma", "vazio", "desconhecido", "geen", "niets", "leeg", "achtergrond"),
    )
)
"""Folded words that say that there is no label."""
NUMBER = re.compile(r"\d+(\.0+)?")
"""A label that is the number of a class."""
_SHEET_ERROR = re.compile(
    r"#(N/?[ADVB]|(REF|BEZUG|RIF|NAME|NOM|NOMBRE|NOME|VALUE|WERT|VALEUR|VALOR|VALORE|NUM|ZAHL|DIV/0|NULL?|NULO|CALC|"
    r"KALK|SPILL|\u00dcBERLAUF)[!?])",
    re.IGNORECASE,
)
"""What a spreadsheet shows where a formula fails: "#N/A", "#NV", "#REF!", "#NAME?"."""
_ABSENT = re.compile(
    r"[-!~\u00ac\u2212\u2013]+\s*\w.*|.*[\s,;|/&+][-!~\u00ac\u2212\u2013][^\W\d].*"
    r"|(no|not|non|without|kein|keine|keinen|ohne|sans)[\s_-]+[^\W\d].*",
    re.DOTALL | re.IGNORECASE,
)
"""What may say that a class is absent: "-cat", "dog !cat", "no cat"."""


def is_background(word: str) -> bool:
    """Whether a word says that there is background: "background", "_background_"."""
    return fold(word) == "background"


def says_nothing(word: str) -> bool:
    """Whether a word says that there is no label, such as "none", "keine", "N/A", "-" or a spreadsheet's "#REF!"."""
    folded = fold(word)
    bare = word.isascii() and not any(c.isalnum() for c in word)
    return bare or folded in _NOTHING or _SHEET_ERROR.fullmatch(word.strip()) is not None


def says_absent(word: str) -> bool:
    """Whether a word may say that something is not there, such as "-cat", "!cat", "no cat" or "not-cat"."""
    return not says_nothing(word) and _ABSENT.fullmatch(word) is not None


def no_names(words: Iterable[str]) -> set[str]:
    """The words that say that there is no label, or that a class is absent."""
    return {word for word in words if says_nothing(word) or says_absent(word)}


def quoted(words: Sequence[str], counts: Mapping[str, int]) -> str:
    """Words for a message, the most frequent first, each with its count."""
    return listing([f"{word!r} ({counts[word]}x)" for word in sorted(words, key=lambda w: (-counts[w], w))])
