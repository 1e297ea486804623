"""The twenty figures of Storybook.

A figure is drawn around its origin, roughly 1 to 2 units long; feet, wheels and legs stand at y = 0 (what
flies has its middle there), and the head or front is on the right. ``FIGURES[name](pen, rng, pose)`` draws
one; colours, proportions and sub-kinds are drawn from ``rng``, and from nothing else.
"""

from __future__ import annotations

from tag2mask.storybook.figures.animals import cat, cow, dog, horse, sheep
from tag2mask.storybook.figures.birds import bird
from tag2mask.storybook.figures.colors import Figure
from tag2mask.storybook.figures.crafts import aeroplane, boat
from tag2mask.storybook.figures.furniture import chair, sofa, table
from tag2mask.storybook.figures.indoors import bottle, potted_plant, television
from tag2mask.storybook.figures.people import helmet, person
from tag2mask.storybook.figures.trains import train
from tag2mask.storybook.figures.vehicles import bicycle, bus, car, motorbike

__all__ = ["FIGURES", "Figure", "helmet"]

FIGURES: dict[str, Figure] = {
    "aeroplane": aeroplane,
    "bicycle": bicycle,
    "bird": bird,
    "boat": boat,
    "bottle": bottle,
    "bus": bus,
    "car": car,
    "cat": cat,
    "chair": chair,
    "cow": cow,
    "diningtable": table,
    "dog": dog,
    "horse": horse,
    "motorbike": motorbike,
    "person": person,
    "pottedplant": potted_plant,
    "sheep": sheep,
    "sofa": sofa,
    "train": train,
    "tvmonitor": television,
}
"""Class name -> the function that draws it, in the order of VOC."""
