"""What a report says of the weights that made a run's masks: which they are, and whether they know photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tag2mask.models.embedded import EMBEDDED, STORYBOOK_CLIP
from tag2mask.models.scenes_only import knows_no_photographs
from tag2mask.run.folder import Run
from tag2mask.storybook.embedded import CLIP_SHA256
from tag2mask.types import UserError


def weights_of(run: Run) -> tuple[str, ...]:
    """One sentence for each set of weights, those of the earlier run that was refined included."""
    said = [*_clip(run), *_network(run)]
    for name in EMBEDDED:
        if any(name in each for each in said):
            said.append(f"{knows_no_photographs(name)}.")
    earlier = run.noted.get("prior_path")
    if earlier is not None:
        said += _earlier(Path(str(earlier)))
    return tuple(dict.fromkeys(said))


def _clip(run: Run) -> list[str]:
    clip = run.settings.get("clip")
    if not isinstance(clip, Mapping):
        return []
    sha256 = str(clip.get("sha256", ""))
    name = str(run.noted.get("clip") or "without a name")
    if sha256 == CLIP_SHA256 and name != STORYBOOK_CLIP:
        name = f"{name}, which is {STORYBOOK_CLIP}"
    return [f"CLIP: {name} (sha256 {sha256[:12]}…)."]


def _network(run: Run) -> list[str]:
    options: Any = run.settings.get("options")
    if isinstance(options, Mapping) and options.get("weights"):
        given = run.settings.get("method") == "classifier-cam" and "fitted" not in run.settings
        what = "Classifier" if given else "Backbone"
        return [f"{what}: {options['weights']}{_digest(run)}."]
    trained: Any = run.noted.get("trained")
    recipe = trained.get("recipe") if isinstance(trained, Mapping) else None
    if isinstance(recipe, Mapping):
        from tag2mask.segment.architectures import ARCHITECTURES

        architecture = str(recipe.get("architecture"))
        usual = ARCHITECTURES[architecture].init if architecture in ARCHITECTURES else "pretrained"
        return [f"Network: {architecture}, trained from {recipe.get('init') or usual}."]
    return []


def _digest(run: Run) -> str:
    resolved: Any = run.settings.get("resolved")
    sha256 = resolved.get("weights_sha256") if isinstance(resolved, Mapping) else None
    return f" (sha256 {str(sha256)[:12]}…)" if sha256 else ""


def _earlier(path: Path) -> list[str]:
    try:
        before = Run.open(path)
    except (UserError, OSError):
        return [f"It refined the run {path}, which is no longer there."]
    return [f"It refined maps of {before.settings.get('method', 'another method')}.", *weights_of(before)]
