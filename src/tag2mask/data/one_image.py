"""One image alone; what is in it is said by ``--tags "dog;person"``."""

from __future__ import annotations

from pathlib import Path

from tag2mask.data.columns import Columns, ColumnsBuilder
from tag2mask.data.image import IMAGE_SUFFIXES, is_image, without_suffix
from tag2mask.data.protocol import Asked, Reader, Sign
from tag2mask.data.tag_cells import words_of
from tag2mask.data.tag_list import FOLDERS, TagList
from tag2mask.data.tags import Vocabulary, choose_classes, class_list, read_tags
from tag2mask.data.truth import MaskFolders
from tag2mask.types import UserError

__all__ = ["is_one_image", "names_a_file"]


def is_one_image(path: Path | str) -> bool:
    """Whether data at a path, which may be gone, is one image."""
    return is_image(Path(path).name) and not Path(path).is_dir()


def names_a_file(tags: Path | str, data: Path | str | None) -> bool:
    """Whether ``tags`` of the data at a path are a file, and not the word "folders" or the labels of one image."""
    if data is not None and is_one_image(data):
        return False
    return str(tags) != FOLDERS or Path(tags).is_file()


def _read(asked: Asked) -> Columns:
    """The image called after its file, without suffix; its folder is the data's."""
    path, root = asked.path, asked.path.parent
    if not path.is_file():
        raise UserError(f"{path} does not exist: give an image, or the folder that holds the images")
    chosen = choose_classes(asked.classes, root)
    called = None if chosen is None else class_list(asked.classes, root, chosen)
    labels: tuple[str, ...] | None = None
    notes: list[str] = []
    if asked.tags is not None:
        words = words_of(_labels(str(asked.tags), path))
        found, chosen, notes = read_tags(
            TagList({path.name: words}), Path("tags"), [path.name], root, chosen, asked.unknown, asked.reading
        )
        labels = found[0]
    if labels is None and asked.network is None:
        raise UserError(f"{path} is one image: say what is in it, as --tags 'dog;person' (or --tags background)")
    chosen = chosen or asked.network
    assert chosen is not None
    name = without_suffix(path.name)
    masks = None
    if asked.truth is not None:
        masks, said = MaskFolders((Path(asked.truth),)).read_as([name], chosen, asked.truth_values)
        masks.check_any([name])
        notes += said
    vocabulary = Vocabulary(chosen, asked.unknown, called)
    builder = ColumnsBuilder()
    builder.add(name, path.name, None if labels is None else vocabulary.tags(labels), masks is not None)
    return builder.build(chosen, root, masks, [*notes, *vocabulary.check("--tags")])


def _labels(given: str, image: Path) -> str:
    """What ``--tags`` says of an image. Raises UserError where it could also be a file of tags."""
    if Path(given).is_file():
        raise UserError(
            f"--tags {given} is a file, but of one image --tags are its labels, such as 'dog;person': to take them "
            f"from the file, give the folder of {image.name} instead of the image"
        )
    return given


def _recognise(asked: Asked) -> Sign | None:
    return Sign("it is one image") if asked.path.is_file() and is_one_image(asked.path) else None


READER = Reader(_recognise, _read, takes=("tags", "truth"), suffixes=tuple(sorted(IMAGE_SUFFIXES)))
