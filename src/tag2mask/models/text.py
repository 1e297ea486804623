"""From words to token ids: CLIP's tokenizers, the words they do not know, and a cache of text features on disk."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tag2mask.run.files import file_sha256
from tag2mask.types import UserError

if TYPE_CHECKING:
    import tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2  # of the file's merges, those that CLIP's vocabulary of 49408 takes
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# quotes made straight, control characters dropped
PLAIN: dict[int, str | None] = dict.fromkeys((*range(9), 0x0B, *range(0x0E, 0x20), 0x7F))
PLAIN |= {ord(c): "'" for c in "ʼ‘’‚‛"}
PLAIN |= {ord(c): '"' for c in "“”„‟"}
# ligatures, full-width and half-width letters, and the full-width space
COMPATIBLE = re.compile("[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\u3000\ufb00-\ufb06\uff01-\uffef]")


def clean(text: str) -> str:
    """Text as CLIP was trained to see it: entities resolved, quotes straight, one space between words.

    OpenAI's code uses ftfy for this; what ftfy does beyond (guessing at wrongly decoded text) is left out.
    """
    text = COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), html.unescape(html.unescape(text)))
    return " ".join(unicodedata.normalize("NFC", text.translate(PLAIN)).split())


@dataclass(frozen=True)
class Tokens:
    """A text's token ids, start and end among them, and the position of the end, where its feature is read."""

    ids: tuple[int, ...]
    end: int


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A CLIP tokenizer.

    end: id of the end-of-text token. None takes the largest id of the text, as OpenAI's code does (and
        transformers, for the many config.json that say eos_token_id 2).
    sha256: of the files that it was read from.
    """

    backend: tokenizers.Tokenizer
    context: int
    vocabulary: int
    end: int | None = None
    sha256: str = ""

    def encode(self, text: str) -> Tokens:
        """Token ids of one text, without padding; words that are not known become the unknown token.

        Raises:
            UserError: where the text is longer than the context, or the tokenizer does not fit the weights.
        """
        ids = self.backend.encode(clean(text)).ids
        if len(ids) > self.context:
            raise UserError(
                f"the text {text!r} has {len(ids)} tokens; this CLIP reads at most {self.context}: shorten it"
            )
        end = max(ids, default=-1) if self.end is None else self.end
        if end not in ids or max(ids) >= self.vocabulary:
            raise UserError(
                f"the tokenizer gives {ids} for {text!r}; expected an end token and ids below {self.vocabulary}, "
                "the rows of the weights' table: take the tokenizer of the same checkpoint"
            )
        return Tokens(tuple(ids), ids.index(end))

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the vocabulary lacks, in order; a byte-level vocabulary lacks none."""
        text = clean(text)
        token = getattr(self.backend.model, "unk_token", None)
        if token is None:
            return []
        unknown = self.backend.token_to_id(token)
        encoded = self.backend.encode(text)
        rows = zip(encoded.ids, encoded.offsets, encoded.special_tokens_mask, strict=True)
        words = [text[a:b] for id_, (a, b), special in rows if id_ == unknown and not special]
        return [word for word in words if word != token]


def read_tokenizer(path: str | Path, *, context: int, vocabulary: int, end: int | None = None) -> Tokenizer:
    """The tokenizer in a folder or file.

    path: a folder with tokenizer.json, or with vocab.json and merges.txt; one of these files; or OpenAI's
        bpe_simple_vocab_16e6.txt.gz.

    Raises:
        UserError: where there is none, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "merges.txt") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: holds no tokenizer; expected tokenizer.json, or vocab.json and merges.txt")
        path = found[0]
    try:
        backend = _read_backend(path)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"{path}: is no tokenizer that can be read ({error}); expected tokenizer.json, merges.txt beside "
            "vocab.json, or bpe_simple_vocab_16e6.txt.gz"
        ) from error
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend, context, vocabulary, end, _digest(path))


def _alone(path: Path) -> bool:
    """Whether the file is a whole tokenizer; vocab.json and merges.txt are one together."""
    return path.suffix == ".gz" or (path.suffix == ".json" and path.name != "vocab.json")


def _digest(path: Path) -> str:
    files = [path] if _alone(path) else [path.with_name("vocab.json"), path.with_name("merges.txt")]
    return hashlib.sha256("".join(file_sha256(f) for f in files).encode()).hexdigest()


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    if _alone(path) and path.suffix == ".json":
        return tokenizers.Tokenizer.from_file(str(path))
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [line for _, line in zip(range(MERGES + 1), file, strict=False)]
        merges = _merges(lines)
        if len(merges) != MERGES:
            raise UserError(
                f"{path}: holds {len(merges)} merges, expected at least {MERGES}, CLIP's; take it from OpenAI's CLIP"
            )
        return clip_bpe(openai_vocabulary(merges), merges)
    lines = path.with_name("merges.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = json.loads(path.with_name("vocab.json").read_text(encoding="utf-8"))
    return clip_bpe(vocabulary, _merges(lines))


def _merges(lines: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]  # the first line names the version
    return [(a, b) for a, b in pairs]


def openai_vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Ids in OpenAI's order: the bytes, the bytes that end a word, the merges, start and end of text."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    return {piece: id_ for id_, piece in enumerate(pieces)}


def clip_bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's byte-level BPE: lower case, words split as OpenAI splits them, start and end added."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    bpe = models.BPE(dict(vocabulary), list(merges), end_of_word_suffix="</w>")
    backend = Tokenizer(bpe)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.add_special_tokens([START, END])
    start, end = vocabulary[START], vocabulary[END]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    return backend


def cache_folder() -> Path:
    """Where text features are kept: $TAG2MASK_CACHE, else tag2mask in $XDG_CACHE_HOME, else in ~/.cache."""
    own = os.environ.get("TAG2MASK_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tag2mask"


@dataclass(eq=False)
class FeatureCache:
    """Text features by token ids, in memory and, where ``path`` is given, in one file.

    The file is only a saving of time: one that cannot be read or written is passed over in silence, and
    processes that write at once may lose each other's rows but never see half a file.
    """

    path: Path | None
    memory: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def key(tokens: Tokens) -> str:
        """The name of a text's row."""
        return hashlib.sha256(repr((tokens.ids, tokens.end)).encode()).hexdigest()[:32]

    def lookup(self, keys: Iterable[str]) -> None:
        """Bring what the file holds into memory, if any of ``keys`` is not there."""
        if any(key not in self.memory for key in keys):
            self.memory = self._read() | self.memory

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Keep rows {key: (E,)}, in memory and in the file."""
        self.memory |= rows
        if self.path is None or not rows:
            return
        self.memory = self._read() | self.memory  # what others wrote meanwhile
        arrays: dict[str, Any] = {
            "keys": np.array(list(self.memory), dtype="S32"),
            "features": torch.stack(list(self.memory.values())).numpy(),  # (rows, E)
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".text-", suffix=".npz", dir=self.path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, **arrays)
                os.replace(name, self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError:
            self.path = None  # read-only or full: do without

    def _read(self) -> dict[str, Tensor]:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                keys, features = arrays["keys"], arrays["features"]
        except Exception:  # a damaged file raises many things; it is written again
            return {}
        if features.dtype != np.float32 or features.ndim != 2 or len(keys) != len(features):
            return {}
        rows = torch.from_numpy(features)
        return {key.decode("ascii"): row for key, row in zip(keys, rows, strict=True)}
