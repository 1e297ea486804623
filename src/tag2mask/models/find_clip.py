"""Finding a CLIP on this machine, or fetching it: a hub repository, a folder, a file, or the embedded one."""

from __future__ import annotations

from pathlib import Path

from tag2mask.models.embedded import STORYBOOK_CLIP, embedded
from tag2mask.models.hub import why_unreachable
from tag2mask.models.scenes_only import warn_of_scenes
from tag2mask.types import UserError
from tag2mask.words import did_you_mean

DEFAULT_CLIP = "openai/clip-vit-base-patch16"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # the first there is taken
OPEN_CLIP = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
TOKENIZERS = ("tokenizer.json", "merges.txt", "vocab.json")
MERGES = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's tokenizer, as it lies in their code's repository."""
SMALL_FILES = ("config.json", "preprocessor_config.json", *TOKENIZERS)
TOKENIZER_REPOSITORIES = (
    DEFAULT_CLIP,
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
)

_OTHERWISE = (
    "Set HF_ENDPOINT to a mirror of the hub that this machine reaches, or copy "
    f"{', '.join(SMALL_FILES[:2])}, {WEIGHTS[0]} and, of a CLIP, {TOKENIZERS[0]} (or vocab.json and merges.txt) of "
    "that repository into a folder by hand and name the folder (--clip FOLDER; of a DINO --dino FOLDER)"
)
"""What to do where a repository cannot be fetched."""


def fetch(repository: str, *, revision: str | None = None) -> Path:
    """Download a CLIP repository into the Hugging Face cache: settings, tokenizer and weights, nothing else.

    Weights come as safetensors where the repository has them, else as pytorch_model.bin, which is read without
    unpickling objects. Returns the folder.

    Raises:
        UserError: where the repository cannot be reached or holds no CLIP.
    """
    import huggingface_hub

    trouble = why_unreachable()
    if trouble is not None:
        raise UserError(f"{repository} could not be fetched: {trouble}. {_OTHERWISE}")
    try:
        listing = set(huggingface_hub.HfApi().list_repo_files(repository, revision=revision))
        weights = [name for name in WEIGHTS if name in listing and "config.json" in listing][:1]
        if not weights and OPEN_CLIP in listing:
            weights = [name for name in OPEN_CLIP_WEIGHTS if name in listing][:1]
            weights += [OPEN_CLIP] if weights else []
        if not weights:
            raise UserError(
                f"{repository} holds no config.json with model.safetensors or pytorch_model.bin, nor {OPEN_CLIP} "
                "with open_clip's weights; expected a CLIP repository in Hugging Face or open_clip layout"
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
            f"{repository} could not be fetched: {reason}; check the name and the network. {_OTHERWISE}"
        ) from error


def locate_clip(source: str | Path | None, revision: str | None) -> Path:
    """The folder or file that ``source`` means.

    Raises:
        UserError: there is none.
    """
    if source is None:
        found = cached_clip(DEFAULT_CLIP, revision)
        if found is None:
            raise UserError(
                f"no CLIP was named and {DEFAULT_CLIP} is not on this machine; fetch it once (about 600 MB) with "
                f"`tag2mask fetch {DEFAULT_CLIP}`, or name another; without a network, --clip {STORYBOOK_CLIP} shows "
                "how all works, but knows no photographs"
            )
        return found
    if str(source) == STORYBOOK_CLIP:
        warn_of_scenes(STORYBOOK_CLIP, DEFAULT_CLIP)
        return embedded(STORYBOOK_CLIP)
    path = Path(source).expanduser()
    if path.exists():
        return path
    found = cached_clip(str(source), revision)
    if found is None:
        hint = f"; fetch it with `tag2mask fetch {source}`" if _looks_like_repository(str(source)) else ""
        hint = did_you_mean(str(source), [STORYBOOK_CLIP]) or hint
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
    wanted = (*WEIGHTS, *OPEN_CLIP_WEIGHTS) if weights else TOKENIZERS
    return folder if any((folder / name).is_file() for name in wanted) else None


def tokenizer_beside(path: Path) -> Path:
    """Where the tokenizer of a CLIP's folder or file is.

    Of a folder, and of a file in open_clip's layout, it is there; OpenAI's merges may lie beside OpenAI's .pt; or
    else it is that of one of openai's repositories in the Hugging Face cache, all of which are the same.

    Raises:
        UserError: there is none.
    """
    folder = path if path.is_dir() else path.parent
    configured = path.is_dir() or (folder / OPEN_CLIP).is_file()
    if configured and (any((folder / name).is_file() for name in TOKENIZERS) or not (folder / OPEN_CLIP).is_file()):
        return folder
    if (folder / MERGES).is_file():
        return folder / MERGES
    for repository in TOKENIZER_REPOSITORIES:
        found = cached_clip(repository, weights=False)
        if found is not None:
            return found
    raise UserError(
        f"{path}: holds no tokenizer, and none is on this machine; run `tag2mask fetch {DEFAULT_CLIP}`, or give "
        f"OpenAI's {MERGES} with --tokenizer, or put it beside"
    )
