"""Every image of a run on pages of small pictures beside the report, the least sure first, also class by class."""

from __future__ import annotations

import math
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from tag2mask.run.artefacts import remove_report_images
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.stages import report_parts as parts
from tag2mask.stages.pages import render
from tag2mask.stages.report_cards import overlay_thumbnail
from tag2mask.stages.report_survey import Images, Survey
from tag2mask.types import ClassSet, UserError
from tag2mask.words import listing

PAGE = 200
"""Images on a page."""

_SIDE, _BYTES = 192, 9_000
_IN_A_FOLDER = 1000


@dataclass(frozen=True)
class Shown:
    """One image of a page. photo, mask: where the files lie, from the page; they open large. photo: None if gone."""

    id: str
    confidence: float
    legend: tuple[tuple[str, str], ...]
    thumb: str
    photo: str | None
    mask: str


@dataclass(frozen=True)
class Link:
    """To the first page of a class, or of all (colour is None)."""

    name: str
    colour: str | None
    images: int
    page: str


class Gallery:
    """The folder of the pages: first the small pictures, one by one, then the pages.

    Raises:
        UserError: there is a file in its place, or something in it that no report wrote.
    """

    def __init__(self, folder: Path, run: Run, images: Images, classes: ClassSet) -> None:
        self.folder, self.run, self.images, self.classes = folder, run, images, classes
        self._count = 0
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, but the report's small pictures go there; choose another --out")
        foreign = remove_report_images(folder)
        if foreign:
            raise UserError(
                f"{folder} holds what no report wrote ({listing(foreign, 3)}), so no small pictures are put there: "
                "move that away, choose another --out, or do without these pages by --no-gallery"
            )

    def add(self, index: int, mask: NDArray[np.uint8]) -> None:
        """Write the small picture of an image of ``images``; mask: (H, W)."""
        small = overlay_thumbnail(self.images.sample(index), mask, self.classes, _SIDE)
        write_atomic(self.folder / _thumb(self._count), parts.jpeg_within(small, _BYTES))
        self._count += 1

    def write(self, found: Survey, title: str, back: Path) -> Path:
        """Write all pages and return the first.

        Args:
            found: of the images that were added, in that order.
            title: the run's.
            back: the report.
        """
        order = array("Q", found.order().astype(np.uint64).tobytes())
        by_class: dict[int, array[int]] = {}
        for place in order:
            for value in found.foreground(place):
                by_class.setdefault(value, array("Q")).append(place)
        lists = {"all": order, **{f"class{value}": by_class[value] for value in sorted(by_class)}}
        links = [Link("all classes", None, len(order), "all-1.html")]
        for value in sorted(by_class):
            colour = parts.css(self.classes.palette[value])
            links.append(Link(self.classes.names[value], colour, len(by_class[value]), f"class{value}-1.html"))
        for link, (name, places) in zip(links, lists.items(), strict=True):
            pages = math.ceil(len(places) / PAGE)
            for page in range(1, pages + 1):
                shown = [self._shown(found, place) for place in places[(page - 1) * PAGE : page * PAGE]]
                html = render(
                    "gallery.html.j2",
                    title=title,
                    link=link,
                    links=links,
                    name=name,
                    page=page,
                    pages=pages,
                    images=shown,
                    back=_url(back, self.folder),
                )
                write_atomic(self.folder / f"{name}-{page}.html", html)
        return self.folder / "all-1.html"

    def _shown(self, found: Survey, place: int) -> Shown:
        index = found.indices[place]
        id, sample = self.images.id(index), self.images.sample(index)
        legend = tuple(
            (self.classes.names[value], parts.css(self.classes.palette[value])) for value in found.foreground(place)
        )
        photo = None if sample is None else _url(sample.image, self.folder)
        mask = _url(self.run.mask_path(id), self.folder)
        return Shown(id, found.confidences[place], legend, _thumb(place), photo, mask)


def _thumb(place: int) -> str:
    return f"thumbs/{place // _IN_A_FOLDER}/{place}.jpg"


def _url(file: Path, folder: Path) -> str:
    """A file as a page in a folder names it, whatever bytes are in its name."""
    try:
        return quote(os.fsencode(Path(os.path.relpath(file.absolute(), folder.absolute())).as_posix()))
    except ValueError:  # on another drive of Windows
        return file.absolute().as_uri()
