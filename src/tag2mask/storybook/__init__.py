"""Storybook: a small drawn world with exact masks and captions, and the CLIP that was trained on it.

Every method runs on it offline, through the very code that runs on photographs, and its result can be checked
to the pixel. Scenes are picture-book drawings of the VOC classes with the traps of
photographs: boats come with water, trains with rails, riders touch their horses, near figures hide far
ones, and one picture may hold several classes.

    draw_scene(seed)        one scene: picture, mask, tags
    caption(scene, rng)     a sentence about it
    render(folder, n)       scenes as a VOC-layout data set
    embedded_clip()         the folder of the CLIP that ships with the package

The parts are kept apart: ``canvas`` (how strokes reach pixels and mask), ``figures`` (what a cat looks like),
``places`` (the ground and what stands around), ``cast`` (who appears), ``layout`` (who stands where), ``light``
and ``grain`` (what a camera does), ``scenes`` (all of it together), ``captions`` with ``phrases``, ``render``. What
trains networks on the scenes is ``tag2mask.lab``.
"""

from __future__ import annotations

from tag2mask.storybook.captions import caption
from tag2mask.storybook.cast import TRAPS
from tag2mask.storybook.embedded import embedded_clip
from tag2mask.storybook.phrases import THINGS
from tag2mask.storybook.render import SPLITS, kind_of, render, scene_seed
from tag2mask.storybook.scenes import CLASSES, Scene, draw_scene

__all__ = [
    "CLASSES",
    "SPLITS",
    "THINGS",
    "TRAPS",
    "Scene",
    "caption",
    "draw_scene",
    "embedded_clip",
    "kind_of",
    "render",
    "scene_seed",
]
