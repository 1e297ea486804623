"""Finding and loading a CLIP: a hub repository, a folder, OpenAI's ``.pt``, or the embedded storybook-clip."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.clip import Block, CLIPModel, VisionTransformer
from tag2mask.models.convert import TEXT_DEFAULTS, from_hf_state, from_openai_state
from tag2mask.models.openai import read_openai_pt
from tag2mask.models.resnet import ModifiedResNet
from tag2mask.models.text import FeatureCache, Tokenizer, Tokens, cache_folder, read_tokenizer
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.warn import warn
from tag2mask.types import UserError

DEFAULT_CLIP = "openai/clip-vit-base-patch16"
STORYBOOK = "storybook-clip"
MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, of red, green and blue in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # the first there is taken
TOKENIZERS = ("tokenizer.json", "merges.txt", "vocab.json")
SMALL_FILES = ("config.json", "preprocessor_config.json", *TOKENIZERS)
TEXT_BATCH, TEXT_STEP = 16, 16  # texts at a time, padded to a multiple of so many tokens
TOKENIZER_REPOSITORIES = (
    DEFAULT_CLIP,
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
)


@dataclass(frozen=True, eq=False)
class CLIP:
    """A loaded CLIP: both towers, frozen, with what is needed to feed them.

    name: what it was asked for by. sha256: of the weights' file (of several, of their digests in order of name).
    mean, std: pixel statistics of red, green and blue in 0..1. dtype: of the vision blocks before the last; the
    last block, the projections and the text tower are float32 always.
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
        parts = [(name, [getattr(part, key, None) for key in keys]) for name, part in self.model.named_modules()]
        words = (self.tokenizer.sha256, self.tokenizer.context, self.tokenizer.end)
        return hashlib.sha256(repr((self.sha256, self.mean, self.std, parts, words)).encode()).hexdigest()

    @property
    def is_vit(self) -> bool:
        """Whether the image tower is a transformer; a ResNet has no attention to refine with."""
        return isinstance(self.model.vision, VisionTransformer)

    @property
    def patch(self) -> int:
        """Pixels on a side of one cell of the grid; images must be multiples of it."""
        return cast("VisionTransformer | ModifiedResNet", self.model.vision).patch

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
        self._refuse_unknown(phrases, allow_unknown)
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

    def _refuse_unknown(self, phrases: Sequence[str], allow: bool) -> None:
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
    cache: Path | Literal["default"] | None = "default",
) -> CLIP:
    """Load a CLIP from what is on this machine; nothing is downloaded (see ``fetch``).

    source: a hub repository that is in the Hugging Face cache, a folder in Hugging Face layout, OpenAI's .pt,
        or "storybook-clip". None: openai/clip-vit-base-patch16 where it is cached.
    precision: "float32", "bfloat16" or "float16", of the vision blocks before the last.
    tokenizer: a file or folder that replaces the checkpoint's; OpenAI's .pt holds none, and takes one of
        openai's repositories from the Hugging Face cache.
    cache: folder for text features; None keeps them in memory alone.

    Raises:
        UserError: where nothing is found, or what is found cannot be read or does not fit together.
    """
    place = find_device(str(device))
    dtype = find_precision(precision, place)
    path = _locate(source, revision)
    name = DEFAULT_CLIP if source is None else str(source)
    mean, std, end = MEAN, STD, None
    if path.is_dir():
        config = _read_json(path / "config.json")
        files = _weight_files(path)
        model = _fitting(path, lambda: from_hf_state(_read_weights(files), config))
        mean, std = _statistics(path)
        eos = (TEXT_DEFAULTS | (config.get("text_config") or {}))["eos_token_id"]
        end = None if eos == 2 else eos  # transformers' own rule, for configs written before it was mended
        words = Path(tokenizer) if tokenizer else path
    else:
        files = [path]
        model = _fitting(path, lambda: from_openai_state(read_openai_pt(path)))
        words = Path(tokenizer) if tokenizer else _cached_tokenizer(path)
    rows, _ = model.text.token_embedding.weight.shape
    reader = read_tokenizer(words, context=model.text.context, vocabulary=rows, end=end)
    sha256 = _digest(files)
    _lower(model, dtype)
    model.to(place)
    where = None
    if cache is not None:
        folder = cache_folder() if cache == "default" else Path(cache)
        where = folder / f"text-{_text_fingerprint(model, sha256, place)}.npz"
    return CLIP(model, name, sha256, mean, std, place, dtype, reader, FeatureCache(where))


def fetch(repository: str, *, revision: str | None = None) -> Path:
    """Download a CLIP repository into the Hugging Face cache: settings, tokenizer and weights, nothing else.

    Weights come as safetensors where the repository has them, else as pytorch_model.bin, which is read without
    unpickling objects. Returns the folder.

    Raises:
        UserError: where the repository cannot be reached or holds no CLIP.
    """
    import huggingface_hub

    try:
        listing = set(huggingface_hub.HfApi().list_repo_files(repository, revision=revision))
        weights = [name for name in WEIGHTS if name in listing][:1]
        if not weights or "config.json" not in listing:
            raise UserError(
                f"{repository} holds no config.json with model.safetensors or pytorch_model.bin; "
                "expected a CLIP repository in Hugging Face layout"
            )
        if weights[0].endswith(".index.json"):
            weights.append("model-*.safetensors")
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=[*SMALL_FILES, *weights])
        )
    except UserError:
        raise
    except Exception as error:  # the hub client raises what its HTTP library raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{repository} could not be fetched: {reason}; check the name and the network, or copy the repository's "
            "folder to this machine and give its path"
        ) from error


def _locate(source: str | Path | None, revision: str | None) -> Path:
    """The folder or .pt file that ``source`` means."""
    if source is None:
        found = cached_clip(DEFAULT_CLIP, revision)
        if found is None:
            raise UserError(
                f"no CLIP was named and {DEFAULT_CLIP} is not on this machine; fetch it once (about 600 MB) with "
                f"`tag2mask fetch {DEFAULT_CLIP}`, or name another"
            )
        return found
    if str(source) == STORYBOOK:
        folder = Path(str(importlib.resources.files("tag2mask"))) / "storybook" / "weights" / "clip"
        if not (folder / "config.json").is_file():
            raise UserError(f"{STORYBOOK} is missing from this installation ({folder}); install tag2mask again")
        warn(
            f"{STORYBOOK} was trained on drawn Storybook scenes alone and knows no photographs; "
            f"for photographs take {DEFAULT_CLIP}"
        )
        return folder
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix in (".pt", ".pth")):
        return path
    if path.is_file():
        raise UserError(f"{path}: is no CLIP that can be loaded; expected a folder with config.json, or OpenAI's .pt")
    found = cached_clip(str(source), revision)
    if found is None:
        hint = f"; fetch it with `tag2mask fetch {source}`" if _looks_like_repository(str(source)) else ""
        if get_close_matches(str(source), [STORYBOOK]):
            hint = f"; did you mean {STORYBOOK}?"
        raise UserError(
            f"{source}: is no folder, .pt file or hub repository with weights in the Hugging Face cache{hint}"
        )
    return found


def _looks_like_repository(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith((".pt", ".pth"))


def cached_clip(repository: str, revision: str | None = None, *, weights: bool = True) -> Path | None:
    """The folder of a repository in the Hugging Face cache, where it holds weights (or else a tokenizer)."""
    if not _looks_like_repository(repository):
        return None
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # not cached, or no valid name: both mean that it is not here
        return None
    wanted = WEIGHTS if weights else TOKENIZERS
    return folder if any((folder / name).is_file() for name in wanted) else None


def _cached_tokenizer(path: Path) -> Path:
    for repository in TOKENIZER_REPOSITORIES:
        found = cached_clip(repository, weights=False)
        if found is not None:
            return found
    raise UserError(
        f"{path}: OpenAI's .pt holds no tokenizer, and none is on this machine; run "
        f"`tag2mask fetch {DEFAULT_CLIP}`, or give OpenAI's bpe_simple_vocab_16e6.txt.gz with --tokenizer"
    )


def _weight_files(folder: Path) -> list[Path]:
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: holds no weights; expected one of {', '.join(WEIGHTS)}")
    if found[0].suffix != ".json":
        return found[:1]
    weight_map = _read_json(found[0]).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    lost = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if lost or not names:
        raise UserError(
            f"{found[0]}: names {lost or 'no files'}, expected files beside it; fetch the checkpoint again"
        )
    return [folder / name for name in names]


def _read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    import safetensors.torch

    state: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                state |= safetensors.torch.load_file(file)
            else:
                state |= torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each library has its own exceptions for a damaged or hostile file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{file}: was not read: {reason}; expected tensors alone. Nothing in it was run; fetch it again"
            ) from error
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _fitting(path: Path, build: Any) -> CLIPModel:
    try:
        model: CLIPModel = build()
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); expected the JSON file of a Hugging Face checkpoint"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected an object; fetch the checkpoint again")
    return value


Triple = tuple[float, float, float]


def _statistics(folder: Path) -> tuple[Triple, Triple]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return MEAN, STD
    settings = _read_json(path)
    try:
        r, g, b = map(float, settings.get("image_mean", MEAN))
        sr, sg, sb = map(float, settings.get("image_std", STD))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: image_mean and image_std are not three numbers each; fetch it again") from error
    return (r, g, b), (sr, sg, sb)


def _digest(files: Sequence[Path]) -> str:
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _text_fingerprint(model: CLIPModel, sha256: str, device: torch.device) -> str:
    # what config.json adds to the weights changes the features too, and so, in the last bits, does the device
    block = cast("Block", model.text.transformer.resblocks[0])
    facts = (sha256, block.attn.heads, block.mlp.activation, block.ln_1.eps, device.type)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _lower(model: CLIPModel, dtype: torch.dtype) -> None:
    """Bring what comes before the last block (of a ResNet: before the pool) to ``dtype``, in place."""
    vision = model.vision
    parts: list[nn.Module]
    if isinstance(vision, VisionTransformer):
        parts = [vision.conv1, vision.ln_pre, *list(vision.blocks)[:-1]]
    else:
        parts = [part for name, part in vision.named_children() if name != "attnpool"]
    for part in parts:
        part.to(dtype)
