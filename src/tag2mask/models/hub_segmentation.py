"""Segmentation models of ``transformers`` (SegFormer, UPerNet, Mask2Former, ...) with a head for classes of ours.

Weights are read from safetensors alone, nothing is downloaded, and no code of a repository is ever run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tag2mask.run.files import read_object
from tag2mask.run.warn import warn
from tag2mask.types import UserError

QUERIES = ("maskformer", "mask2former")
"""Model types that answer with classes of queries and a mask for each, in the place of logits of pixels."""


class HubNet(nn.Module):
    """A model of transformers as a network of pixels and logits.

    model: with ``logits``, or class queries and masks, in its output. found_options: what it was built from.
    """

    def __init__(self, model: Any, found_options: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.found_options = found_options

    @property
    def backbone(self) -> nn.ModuleList:
        """What a checkpoint of other classes, or of an image classifier, also has."""
        ours = {self.model.base_model_prefix, "backbone"}
        return nn.ModuleList(part for name, part in self.model.named_children() if name in ours)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> logits (B, K, h, w)."""
        out = self.model(pixel_values=pixels)
        if self.model.config.model_type not in QUERIES:
            logits: Tensor = out.logits
            return logits
        return query_logits(out.class_queries_logits, out.masks_queries_logits)


def query_logits(classes: Tensor, masks: Tensor) -> Tensor:
    """Logits of pixels from class queries and their masks (Cheng et al. 2021, section 3.4, semantic inference).

    A pixel's score of a class is the sum over the queries of P(class | query) P(pixel | query); its logarithm is
    what a softmax turns into shares of the scores, so that cross entropy and a mean over views make sense.

    Args:
        classes: (B, Q, K + 1), the last one "no object".
        masks: (B, Q, h, w).

    Returns:
        (B, K, h, w).
    """
    shares = classes.float().softmax(-1)[..., :-1]  # (B, Q, K)
    scores = torch.einsum("bqk,bqhw->bkhw", shares, masks.float().sigmoid())
    return (scores + 1e-6).log()


def build_hub_network(
    name: str, classes: Sequence[str], config: dict[str, Any] | None, *, pretrained: bool
) -> HubNet:
    """A model by name, with a head for ``classes``.

    Args:
        name: a folder in Hugging Face layout, or a repository in the Hugging Face cache.
        classes: names, background first.
        config: the model's config.json; None: as found by its name.
        pretrained: with its weights; what does not fit (the head) gets random weights. False: all of them are random.

    Raises:
        UserError: transformers is not installed, nothing is found under that name, or it does not segment.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f'transformers:{name} needs another package: pip install "tag2mask[transformers]"') from error
    place = _locate(name) if pretrained or config is None else None
    statistics = _statistics(place) if place is not None else {}
    source = config if config is not None else _read_json(place / "config.json") if place is not None else {}
    settings = _settings(transformers, dict(source), classes, name)
    loader = _loader(transformers, settings, name)
    model = _load(loader, settings, place, name) if pretrained and place is not None else loader.from_config(settings)
    return HubNet(model.float(), {"model": settings.to_dict(), **statistics})


def learned_to_segment(name: str) -> bool:
    """Whether the weights under a name are of a model that was trained to segment, and not of a backbone alone.

    Raises:
        UserError: nothing is found under that name.
    """
    kinds = _read_json(_locate(name) / "config.json").get("architectures") or []
    return any("Segmentation" in str(kind) for kind in kinds)


def _load(loader: Any, settings: Any, place: Path, name: str) -> Any:
    """A model with the weights of a folder; a head for other classes gets random weights, with a warning."""
    from transformers.utils import logging

    said, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = loader.from_pretrained(
            place,
            config=settings,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # the library's own, of many kinds
        raise UserError(
            f"transformers:{name}: its weights were not read: {_first_line(error)}; expected model.safetensors "
            "(nothing else is read), or start from random weights"
        ) from error
    finally:
        logging.set_verbosity(said)
        if bars:
            logging.enable_progress_bar()
    fresh = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    lost = [key for key in fresh if key.split(".")[0] in (model.base_model_prefix, "backbone")]
    if lost:
        raise UserError(
            f"{place}: {len(lost)} tensors of the backbone are missing or of another shape, such as {lost[0]}; these "
            "are weights of another network than its config.json describes: fetch it again"
        )
    if fresh:
        warn(f"transformers:{name}: {len(fresh)} tensors of its head start from random weights, such as {fresh[0]}")
    return model


def _settings(transformers: Any, source: dict[str, Any], classes: Sequence[str], name: str) -> Any:
    """The model's own configuration, for our classes."""
    kind = source.pop("model_type", None)
    try:
        settings = transformers.AutoConfig.for_model(kind, **source)
    except Exception as error:  # the library's own, of many kinds
        raise UserError(
            f"transformers:{name}: its config.json is not understood: {_first_line(error)}; expected a segmentation "
            "model such as SegFormer, UPerNet or Mask2Former"
        ) from error
    settings.id2label = dict(enumerate(classes))
    settings.label2id = {label: index for index, label in enumerate(classes)}
    if hasattr(settings, "use_auxiliary_head"):
        settings.use_auxiliary_head = False  # it only serves the library's own loss
    return settings


def _loader(transformers: Any, settings: Any, name: str) -> Any:
    """The class of transformers that builds a segmentation model of these settings."""
    if type(settings) in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return transformers.AutoModelForSemanticSegmentation
    if settings.model_type in QUERIES:
        return transformers.AutoModelForUniversalSegmentation
    raise UserError(
        f"transformers:{name}: is a {settings.model_type}, which is no model for semantic segmentation; take one "
        "such as SegFormer, UPerNet or Mask2Former"
    )


def _locate(name: str) -> Path:
    """The folder that a name means; the network is not asked."""
    import huggingface_hub

    path = Path(name).expanduser()
    if not path.is_dir():
        try:
            path = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        except Exception as error:  # not in the cache, or no possible name
            raise UserError(
                f"transformers:{name}: is no folder, and no repository in the Hugging Face cache; fetch it with "
                f"`hf download {name}`, or give a folder in Hugging Face layout"
            ) from error
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: holds no config.json; expected a folder in Hugging Face layout")
    return path


def _statistics(place: Path) -> dict[str, Any]:
    """Mean and deviation of pixels as the model was trained with, where its folder says."""
    path = place / "preprocessor_config.json"
    found = _read_json(path) if path.is_file() else {}
    return {ours: found[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in found}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the model again") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
