"""The archive that the evaluation server of PASCAL VOC takes; the same masks give the same bytes.

::

    results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png    indexed, VOC's palette, 0..20, size of the image

The server tells the mIoU on the test set, whose truth nobody has; of VOC2012 it wants all 1456 images of the split
"test". "comp5" is for what was trained on VOC's own data alone, "comp6" for everything else: whatever has seen CLIP
is comp6.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import BinaryIO, Literal

from pydantic import Field

from tag2mask.classes import load_classes
from tag2mask.data.image import BadImage, image_size
from tag2mask.data.png import encode_mask
from tag2mask.data.protocol import Export, ExportOptions, FileExporter, Labelled
from tag2mask.types import IGNORE, UserError

STAMP = "tag2mask-voc-test.tar"
"""The name that the archive's header holds; by it an earlier export is known."""

_SHOWN = 10


class VocTestOptions(ExportOptions):
    """What ``--set`` can change."""

    competition: Literal["comp5", "comp6"] = Field(
        "comp6", description="comp5 if nothing but VOC was used in training, else comp6"
    )


def _write(export: Export, file: BinaryIO) -> None:
    """Raises UserError naming masks of another size than their image, or with values that are no class (or 255)."""
    wrong: list[str] = []
    palette = load_classes("voc12").palette  # which a run's own class set of these names may not have
    folder = f"results/VOC2012/Segmentation/{export.options.competition}_test_cls"
    # no time stamp and a constant name, so that equal masks are equal bytes
    packed = gzip.GzipFile(STAMP, "wb", compresslevel=6, fileobj=file, mtime=0)
    with packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for image in export.images:
            if said := _wrong(image, len(export.classes)):
                wrong.append(f"{image.id} {said}")
                if len(wrong) == _SHOWN:
                    break
                continue
            png = encode_mask(image.mask, palette)
            member = tarfile.TarInfo(f"{folder}/{image.id}.png")
            member.size, member.mode = len(png), 0o644
            archive.addfile(member, io.BytesIO(png))
    if wrong:
        raise UserError(f"the server would refuse these masks: {'; '.join(wrong)}; make them again")


def _wrong(labelled: Labelled, classes: int) -> str:
    """What the server would not accept of a mask, or nothing."""
    assert labelled.image is not None  # as the exporter needs the images
    try:
        size = image_size(labelled.image)
    except BadImage as error:
        raise UserError(f"{error}; restore it") from error
    shape, most = labelled.mask.shape, int(labelled.mask.max())
    if shape != size:
        return f"is {shape[1]}x{shape[0]}, its image {size[1]}x{size[0]}"
    if most >= classes:
        what = "undecided pixels (255): keep every pixel, --mu 0" if most == IGNORE else f"the value {most}"
        return f"holds {what}; 0 to {classes - 1} were expected"
    return ""


EXPORTER = FileExporter(
    write=_write,
    called="archive for the VOC server of tag2mask",
    example="results.tgz",
    mark=STAMP,
    Options=VocTestOptions,
    needs_images=True,
    whole=True,
    only="voc12",
)
