"""The objects in VOC's annotations, one XML file an image."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from unicodedata import normalize
from xml.parsers import expat

from tag2mask.classes import fold
from tag2mask.words import counted

__all__ = ["Boxes", "is_annotation", "object_names", "read_boxes"]

Labels = dict[int, tuple[str, ...] | None]
"""The names in an image by its position; None where they are not known."""


@dataclass
class Boxes:
    """What the annotations say.

    labels: the names of each image's objects, None where one has no name: it could be anything. absent: images
    without a file. broken: why a file cannot be read. background: images in which "background" is called an object.
    names: in how many images each name is, also where the tags are not known.
    """

    labels: Labels = field(default_factory=dict)
    absent: set[int] = field(default_factory=set)
    broken: dict[int, str] = field(default_factory=dict)
    background: set[int] = field(default_factory=set)
    names: Counter[str] = field(default_factory=Counter)

    def notes(self, where: str, ids: Sequence[str], wanted: Iterable[int]) -> list[str]:
        """What a user should know of the wanted images."""
        wanted = list(wanted)
        broken = [self.broken[n] for n in wanted if n in self.broken]
        nameless = [ids[n] for n in wanted if n in self.labels and self.labels[n] is None]
        empty = [ids[n] for n in wanted if self.labels.get(n) == ()]
        return [
            f"tags from the boxes in {where}",
            *counted(f"images without a file in {where}, tags unknown", [ids[n] for n in wanted if n in self.absent]),
            *counted(f"unreadable files in {where}, tags unknown", broken),
            *counted(f"images with an object without a name in {where}, tags unknown", nameless),
            *counted("'background' as an object, left out", [ids[n] for n in wanted if n in self.background]),
            *counted("images without objects, taken as background only", empty),
        ]


def read_boxes(folder: Path, ids: Sequence[str], which: Iterable[int]) -> Boxes:
    """Reads the annotations of the images at ``which`` positions: ``<id>.xml`` in ``folder``.

    The suffix may be in capitals, and the name in any Unicode form.
    """
    boxes = Boxes()
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # few combinations occur: keep each once
    listed = lru_cache(maxsize=None)(_xml_files)
    for position in which:
        place = PurePosixPath(ids[position])
        path = listed(folder / place.parent).get(normalize("NFC", place.name))
        if path is None:
            boxes.absent.add(position)
            continue
        try:
            names = set(object_names(path.read_bytes()))
        except (expat.ExpatError, ValueError, OSError) as error:
            boxes.broken[position] = f"{path.name} ({error})"
            continue
        kept = tuple(sorted(name for name in names if fold(name) != "background"))
        boxes.names.update(name for name in kept if name)
        if len(kept) < len(names):
            boxes.background.add(position)
        boxes.labels[position] = None if "" in names else shared.setdefault(kept, kept)
    return boxes


def is_annotation(path: Path) -> bool:
    """Whether a file is an annotation in VOC's form."""
    try:
        object_names(path.read_bytes())
    except (expat.ExpatError, ValueError, OSError):
        return False
    return True


def _xml_files(folder: Path) -> dict[str, Path]:
    """The XML files in a folder by their names without suffix."""
    try:
        names = sorted(os.listdir(folder))  # "a.XML" before "a.xml", which is the one that counts
    except OSError:
        return {}
    return {normalize("NFC", name[:-4]): folder / name for name in names if name.lower().endswith(".xml")}


def object_names(xml: bytes) -> list[str]:
    """The names of all ``object`` elements of a VOC annotation, "" for one without a name.

    Names of parts (head, hand) are no objects. The elements may be written in capitals, and an object may stand in
    another.

    Raises:
        expat.ExpatError: not XML.
        ValueError: no VOC annotation, text that is not in the encoding it declares, or a document type is declared;
            VOC has none, and entities are how XML is abused.
    """
    names: list[str] = []
    path: list[str] = []
    named: list[bool] = []  # of the objects that are open
    text: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        tag = tag.lower()
        if not path and tag != "annotation":
            raise ValueError(f"it holds <{tag}>, and VOC's <annotation> was expected")
        path.append(tag)
        text.clear()
        if tag == "object":
            named.append(False)

    def end(tag: str) -> None:
        if path[-2:] == ["object", "name"] and "part" not in path and (name := "".join(text).strip()):
            names.append(name)
            named[-1] = True
        if path.pop() == "object" and not named.pop() and "part" not in path:
            names.append("")
        text.clear()

    def refuse(*declared: object) -> None:
        raise ValueError("it declares a document type, which no annotation needs")

    parser = expat.ParserCreate("utf-8")  # whatever the document declares: it is decoded here
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(_decoded(xml).strip().encode(), True)
    return names


_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")


def _decoded(xml: bytes) -> str:
    """The text of a document. expat knows no encoding of several bytes a character but Unicode's."""
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    marked = next((name for mark, name in marks.items() if xml.startswith(mark)), None)
    declared = _DECLARED.match(xml)
    encoding = marked or (declared[1].decode().lower() if declared else "utf-8")
    if encoding in ("gb2312", "gbk"):
        encoding = "gb18030"  # which holds both; programs say the smaller and write the larger
    if encoding.replace("_", "-").startswith("utf-16") and not marked:
        encoding = "utf-8"  # the declaration itself could not be read otherwise
    try:
        return xml.decode(encoding)
    except LookupError as error:
        raise ValueError(f"it declares the encoding {encoding!r}, which is not known") from error
    except UnicodeDecodeError as error:
        what = "it is not in the encoding it declares" if declared else "it declares no encoding and is not UTF-8"
        raise ValueError(f"{what} (byte {error.start})") from error
