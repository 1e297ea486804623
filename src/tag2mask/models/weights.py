"""A loaded CLIP: both towers with tokenizer, pixel statistics and cached text features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.models.clip import CLIPModel, ImageTower
from tag2mask.models.clip_files import MEAN, STD, read_clip
from tag2mask.models.find_clip import DEFAULT_CLIP, cached_clip, fetch, locate_clip, tokenizer_beside
from tag2mask.models.text import FeatureCache, Tokenizer, Tokens, cache_folder, read_tokenizer
from tag2mask.models.transformer import Activation
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.files import file_sha256
from tag2mask.run.warn import warn
from tag2mask.types import UserError

__all__ = ["CLIP", "DEFAULT_CLIP", "MEAN", "STD", "cached_clip", "fetch", "load_clip", "load_vision"]

TEXT_BATCH, TEXT_STEP = 16, 16  # texts at a time, padded to a multiple of so many tokens


@dataclass(frozen=True, eq=False)
class CLIP:
    """A loaded CLIP: both towers, frozen, with what is needed to feed them.

    name: what it was asked for by. sha256: of the weights' file (of several, of their digests in order of name).
    mean, std: pixel statistics of red, green and blue in 0..1. dtype: of the vision blocks before the last; the
    last block, the projections and the text tower are float32 always, but a transformer's GradCAM has the products of
    its last block in bfloat16 where ``dtype`` is that.
    """

    model: CLIPModel
    name: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    dtype: torch.dtype
    tokenizer: Tokenizer
    cache: FeatureCache

    @property
    def fingerprint(self) -> str:
        """Of all that decides what this CLIP makes of pixels and texts, but for ``dtype`` and ``device``."""
        keys = ("heads", "activation", "eps", "patch", "native_grid")
        # what a module holds itself: a property tells again what another module holds
        parts = [(name, [vars(part).get(key) for key in keys]) for name, part in self.model.named_modules()]
        words = (self.tokenizer.sha256, self.tokenizer.context, self.tokenizer.end)
        return hashlib.sha256(repr((self.sha256, self.mean, self.std, parts, words)).encode()).hexdigest()

    @property
    def patch(self) -> int:
        """Pixels on a side of one cell of the grid; images must be multiples of it."""
        return self.model.vision.patch

    def unknown(self, text: str) -> list[str]:
        """The words of a text that this CLIP's vocabulary lacks."""
        return self.tokenizer.unknown(text)

    def text_features(self, phrases: Sequence[str], *, allow_unknown: bool = False) -> Tensor:
        """Unit rows (T, E), float32, one for each text.

        A text's feature does not depend on what else is asked for, or on what the cache happens to hold.

        allow_unknown: only warn of words that the tokenizer does not know.

        Raises:
            UserError: where a text is too long, or holds a word that is not known.
        """
        self.refuse_unknown(phrases, allow_unknown)
        tokens = [self.tokenizer.encode(text) for text in phrases]
        keys = [self.cache.key(one) for one in tokens]
        self.cache.lookup(keys)
        fresh = {key: one for key, one in zip(keys, tokens, strict=True) if key not in self.cache.memory}
        self.cache.add(self._rows(fresh))
        if not keys:
            return torch.empty(0, self.model.text.text_projection.shape[1], device=self.device)
        return torch.stack([self.cache.memory[key] for key in keys]).to(self.device)

    @torch.no_grad()
    def _rows(self, texts: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """Unit features {key: (E,)} in main memory."""
        by_length: dict[int, list[str]] = {}
        for key, one in texts.items():
            length = min(-(-len(one.ids) // TEXT_STEP) * TEXT_STEP, self.tokenizer.context)
            by_length.setdefault(length, []).append(key)
        rows: dict[str, Tensor] = {}
        for length, keys in by_length.items():
            for start in range(0, len(keys), TEXT_BATCH):
                batch = keys[start : start + TEXT_BATCH]
                # always the same shape: products of another shape may be summed in another order
                ids = torch.zeros(TEXT_BATCH, length, dtype=torch.int64)
                ends = torch.zeros(TEXT_BATCH, dtype=torch.int64)
                for i, key in enumerate(batch):
                    ids[i, : len(texts[key].ids)] = torch.tensor(texts[key].ids)
                    ends[i] = texts[key].end
                features = self.model.text(ids.to(self.device), ends.to(self.device))  # (TEXT_BATCH, E)
                units = F.normalize(features.float(), dim=-1).cpu()
                rows |= {key: row.clone() for key, row in zip(batch, units, strict=False)}
        return rows

    def refuse_unknown(self, phrases: Sequence[str], allow: bool) -> None:
        """See that the vocabulary has all words of some texts.

        Raises:
            UserError: it lacks some; where these are allowed, they are a warning.
        """
        found = [(text, words) for text in phrases if (words := self.unknown(text))]
        if not found:
            return
        text, words = found[0]
        others = f" (and words in {len(found) - 1} other texts)" if len(found) > 1 else ""
        message = f"{self.name} does not know {', '.join(map(repr, words))} in {text!r}{others}"
        if not allow:
            raise UserError(f"{message}; use words of its vocabulary, or --set allow_unknown=true")
        warn(f"{message}; they are read as the unknown token")

    def ensemble(self, names: Sequence[str], templates: Sequence[str], *, allow_unknown: bool = False) -> Tensor:
        """One unit row for each name (T, E): the mean of its unit features over the templates, normalised again.

        templates: sentences with one ``{}``.

        Raises:
            UserError: as text_features, and where a template has no ``{}``.
        """
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            got = repr(wrong[0]) if wrong else "none"
            raise UserError(f"got the template {got}; expected at least one, each with one {{}} for the class name")
        texts = [template.replace("{}", name) for name in names for template in templates]
        rows = self.text_features(texts, allow_unknown=allow_unknown)
        rows = rows.unflatten(0, (len(names), len(templates)))  # (T, templates, E)
        return F.normalize(rows.mean(1), dim=-1)


def load_clip(
    source: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    activation: Activation | None = None,
    cache: Path | Literal["default"] | None = "default",
) -> CLIP:
    """Load a CLIP from what is on this machine; nothing is downloaded (see ``fetch``).

    source: a hub repository that is in the Hugging Face cache, a folder in Hugging Face or open_clip layout, OpenAI's
        .pt, a file of weights with their names, or "storybook-clip". None: openai/clip-vit-base-patch16 where it is
        cached.
    precision: "float32", "bfloat16" or "float16", of the vision blocks before the last.
    tokenizer: a file or folder that replaces the checkpoint's; OpenAI's .pt holds none, and takes OpenAI's merges
        where these lie beside it, or else one of openai's repositories from the Hugging Face cache.
    activation: that the weights were trained with, for a bare state dict, which does not say it; see ``clip_files``.
    cache: folder for text features; None keeps them in memory alone.

    Raises:
        UserError: where nothing is found, or what is found cannot be read or does not fit together.
    """
    place = find_device(str(device))
    dtype = find_precision(precision, place)
    path = locate_clip(source, revision)
    name = DEFAULT_CLIP if source is None else str(source)
    found = read_clip(path, activation)
    model = found.model
    words = Path(tokenizer) if tokenizer else tokenizer_beside(path)
    rows, _ = model.text.token_embedding.weight.shape
    reader = read_tokenizer(words, context=model.text.context, vocabulary=rows, end=found.end)
    sha256 = _digest(found.files)
    _lower(model, dtype)
    model.to(place)
    where = None
    if cache is not None:
        folder = cache_folder() if cache == "default" else Path(cache)
        where = folder / f"text-{_text_fingerprint(model, sha256, place)}.npz"
    return CLIP(model, name, sha256, found.mean, found.std, place, dtype, reader, FeatureCache(where))


def load_vision(name: str, sha256: str, activation: Activation | None = None) -> ImageTower:
    """The frozen image tower that a network was trained on, on the processor, in float32.

    Args:
        name: what the CLIP was asked for by.
        sha256: of its weights, as ``CLIP.sha256``.
        activation: that it has; a bare state dict does not tell.

    Raises:
        UserError: nothing is found by that name, or other weights.
    """
    do = (
        "restore it under that name, or write where it lies now as `clip` under `options` in the network's "
        "config.json"
    )
    try:
        found = read_clip(locate_clip(name, None), activation)
    except UserError as error:
        raise UserError(
            f"the network stands on the frozen image tower of {name}, which is not saved with it and not at hand "
            f"({error}); {do}"
        ) from error
    digest = _digest(found.files)
    if digest != sha256:
        raise UserError(
            f"the network stands on the frozen image tower of {name} with weights of sha256 {sha256[:12]}…, and what "
            f"is there now has {digest[:12]}…; {do}"
        )
    return found.model.vision


def _digest(files: Sequence[Path]) -> str:
    digests = [file_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _text_fingerprint(model: CLIPModel, sha256: str, device: torch.device) -> str:
    # what config.json adds to the weights changes the features too, and so, in the last bits, does the device
    block = model.text.transformer.blocks[0]
    facts = (sha256, block.attn.heads, block.mlp.activation, block.ln_1.eps, device.type)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _lower(model: CLIPModel, dtype: torch.dtype) -> None:
    """Bring what comes before the last block (of a ResNet: before the pool) to ``dtype``, in place."""
    for part in model.vision.trunk:
        part.to(dtype)
