"""Measuring a CLIP on held-out scenes: does it know what and where, and does it behave as the papers say?"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tag2mask import __version__
from tag2mask.lab.bench import Bench, Figures
from tag2mask.models.untrained import untrained
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.run.progress import progress as show_progress

Size = tuple[int, int]

SIZES: tuple[Size, ...] = ((192, 256), (192, 192), (256, 192), (240, 320))
"""(H, W) of the scenes: the first for everything, the others for positions that are interpolated."""

ROWS: dict[str, str] = {
    "map_class": "zero-shot tag mAP, class token",
    "map_patches": "zero-shot tag mAP, mean of patch tokens",
    "initial": "initial CAM",
    "mhsa": "+ MHSA",
    "caa": "+ CAA",
    "caa_crf": "+ CAA + dense CRF",
    "caa_own": "+ CAA, CLIP-ES's own background rule",
    "caa_crf_own": "+ CAA + dense CRF, CLIP-ES's own background rule",
    "logits": "initial CAM, logits instead of softmax",
    "no_background": "initial CAM, no background set",
    "class_token": "initial CAM, class token instead of patch tokens",
    "plain_names": "initial CAM, plain names instead of synonyms",
    "floor_map_class": "floor, untrained: tag mAP, class token",
    "floor_initial": "floor, untrained: initial CAM",
    "floor_caa": "floor, untrained: + CAA",
    "floor_caa_crf": "floor, untrained: + CAA + dense CRF",
    "floor_caa_own": "floor, untrained: + CAA, CLIP-ES's own background rule",
    "floor_caa_crf_own": "floor, untrained: + CAA + dense CRF, CLIP-ES's own background rule",
    "floor_everything": "floor: everything foreground",
}
"""The figures of ``measure_clip``, in per cent, and what they are called."""


class Claim(NamedTuple):
    """Something that a CLIP should show: ``better`` exceeds ``worse`` (a figure or a number) by ``least`` or more."""

    text: str
    better: str
    worse: str | float
    least: float = 0.0

    def margin(self, found: Mapping[str, float]) -> float:
        """By how much, in points."""
        return found[self.better] - (found[self.worse] if isinstance(self.worse, str) else self.worse)


CLAIMS: tuple[Claim, ...] = (
    Claim("tag mAP of 97", "map_class", 97.0),
    Claim("initial CAM of 45", "initial", 45.0),
    Claim("CAA of 52", "caa", 52.0),
    Claim("CAA + CRF of 58", "caa_crf", 58.0),
    Claim("CAA + CRF of 58, own rule", "caa_crf_own", 58.0),
    Claim("softmax over logits, by 3", "initial", "logits", 3.0),
    Claim("background set over none", "initial", "no_background"),
    Claim("patch tokens over class token", "initial", "class_token"),
    Claim("CAA over MHSA", "caa", "mhsa"),
    Claim("MHSA over initial", "mhsa", "initial"),
    Claim("synonyms over plain names", "initial", "plain_names"),
    Claim("CRF over none", "caa_crf", "caa"),
    Claim("CRF over none, own rule", "caa_crf_own", "caa_own"),
)
"""What is asked of storybook-clip."""

FEWEST = 100
"""Scenes, for a verdict on the claims."""

MOST_LOST = 3.0
"""Points that a size may differ from the first one in CAA."""


def measure_clip(
    clip: CLIP,
    n: int = 500,
    *,
    sizes: Sequence[Size] = SIZES,
    progress: bool = True,
) -> dict[str, float]:
    """The figures of ``ROWS`` over ``n`` scenes of the val split, in per cent, and ``initial@WxH``, ``caa@WxH``.

    mIoU is at the best background rule, chosen with ground truth as the papers do (before the CRF: the CRF gets the
    rule that was best for the maps), and where a row says so at CLIP-ES's own. Every pixel is labelled.

    Args:
        clip: a vision transformer.
        n: scenes.
        sizes: (H, W) of the scenes; the first is for all figures, the others for initial CAM and CAA.
        progress: show it on stderr.
    """
    found: dict[str, float] = {}
    with show_progress(8 + len(sizes), "measure", unit="settings", enabled=progress) as bar:
        bench = Bench.draw(clip, n, size=sizes[0])
        blank = untrained(clip, seed=0)
        found["map_class"] = bench.tag_map()
        found["map_patches"] = bench.tag_map(readout="patches")
        found["floor_map_class"] = bench.tag_map(clip=blank)
        bar.advance(2)
        whole = bench.measure(crf=True)
        found |= {"initial": whole.initial, **_caa_rows(whole)}
        found[f"initial@{_name(sizes[0])}"], found[f"caa@{_name(sizes[0])}"] = whole.initial, whole.maps
        bar.advance()
        found["mhsa"] = bench.measure(affinity="mhsa").maps
        bar.advance()
        for name, options in _INITIAL.items():
            found[name] = bench.measure(affinity="none", **options).maps
            bar.advance()
        floor = bench.measure(clip=blank, crf=True)
        found["floor_initial"] = floor.initial
        found |= {f"floor_{key}": value for key, value in _caa_rows(floor).items()}
        found["floor_everything"] = bench.everything_foreground()
        bar.advance()
        for size in sizes[1:]:
            figures = Bench.draw(clip, n, size=size).measure()
            found[f"initial@{_name(size)}"], found[f"caa@{_name(size)}"] = figures.initial, figures.maps
            bar.advance()
    return found


_INITIAL: dict[str, dict[str, Any]] = {
    "logits": {"score": "logits"},
    "no_background": {"background": False},
    "class_token": {"readout": "class"},
    "plain_names": {"synonyms": "none"},
}


def _caa_rows(found: Figures) -> dict[str, float]:
    return {
        "caa": found.maps,
        "caa_crf": found.masks,
        "caa_own": found.maps_own,
        "caa_crf_own": found.masks_own,
    }


def _name(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def markdown(found: Mapping[str, float], clip: CLIP, n: int, command: str) -> str:
    """The figures as tables for a model card: what was measured, by size, and what is reached of what is asked."""
    name, digest = Path(clip.name).name, clip.sha256[:16]
    lines = [
        f"Made by `{command}` on {date.today()}: {n} scenes of Storybook's val split, weights {name}",
        f"(sha256 {digest}), tag2mask {__version__}, torch {torch.__version__}, {clip.device.type} of",
        f"{platform.machine()}. mIoU and mAP in %; mIoU at the best background rule, chosen with ground truth on the",
        "maps (the CRF gets that of the maps before it), or at CLIP-ES's own, 1 - max, where a row says so.",
        "",
        "| | % |",
        "| --- | --- |",
        *(f"| {text} | {found[key]:.1f} |" for key, text in ROWS.items()),
        "",
        "| size (width x height) | initial CAM | + CAA | against the first, CAA |",
        "| --- | --- | --- | --- |",
    ]
    sizes = [key.removeprefix("caa@") for key in found if key.startswith("caa@")]
    for size in sizes:
        apart = found[f"caa@{size}"] - found[f"caa@{sizes[0]}"]
        lines.append(f"| {size} | {found[f'initial@{size}']:.1f} | {found[f'caa@{size}']:.1f} | {apart:+.1f} |")
    if n < FEWEST:
        few = f"Of {n} scenes each figure may be several points off: too few to say what of the asked-for is reached."
        return "\n".join([*lines, "", few, ""])
    lines += ["", "| asked for | margin | reached |", "| --- | --- | --- |"]
    for claim in CLAIMS:
        margin = claim.margin(found)
        lines.append(f"| {claim.text} | {margin:+.1f} | {'yes' if margin >= claim.least else 'no'} |")
    apart = max(abs(found[f"caa@{size}"] - found[f"caa@{sizes[0]}"]) for size in sizes)
    lines.append(
        f"| sizes within {MOST_LOST:g} points (CAA) | {apart:.1f} | {'yes' if apart <= MOST_LOST else 'no'} |"
    )
    return "\n".join([*lines, ""])


def measure(
    source: str,
    n: int = 500,
    *,
    device: str = "auto",
    progress: bool = True,
) -> tuple[dict[str, float], str]:
    """Load a CLIP by name or folder and measure it: the figures, and their tables in Markdown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
        clip = load_clip(source, device=device)
    found = measure_clip(clip, n, progress=progress)
    command = f"tag2mask storybook measure {Path(source).name} -n {n}"
    return found, markdown(found, clip, n, command)
