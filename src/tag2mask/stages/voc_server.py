"""The archive that the evaluation server of PASCAL VOC takes.

::

    results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png    indexed, VOC's palette, 0..20, size of the image

The server tells the mIoU on the test set, whose truth nobody has. "comp5" is for what was trained on VOC's own data
alone, "comp6" for everything else: whatever has seen CLIP is comp6.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Literal

from tag2mask.classes import load_classes
from tag2mask.data.image import BadImage, image_size
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.about import stored_classes
from tag2mask.run.files import atomic_path
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.stages.export import refuse_foreign_file
from tag2mask.types import IGNORE, Dataset, UserError
from tag2mask.words import listing

Competition = Literal["comp5", "comp6"]
STAMP = "tag2mask-voc-test.tar"
"""The name that the archive's header holds; by it an earlier export is known."""

_SHOWN = 10


def voc_archive(
    run: Run | Path | str,
    data: Dataset,
    out: Path | str,
    *,
    competition: Competition = "comp6",
    progress: bool = True,
) -> Path:
    """Pack a run's masks for VOC's evaluation server; the same masks give the same bytes.

    Args:
        run: the run, or its folder.
        data: the images, all of which must have a mask: VOC2012's split "test" has 1456.
        out: the .tgz file; an earlier archive of this kind is replaced, nothing else is.
        competition: "comp6", or "comp5" if nothing but VOC was used for training.
        progress: show it on stderr.

    Raises:
        UserError: classes other than VOC's 20; images without a mask; masks that are damaged, of another size than
            their image, or hold values that are no class (255 among them); ``out`` is something else.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    voc = load_classes("voc12")
    names = stored_classes(run).names
    if names != voc.names:
        raise UserError(
            f"{run.path} has {len(names)} classes ({', '.join(names[:4])}, …), expected VOC's {len(voc.names)} in "
            "their order: the server knows no others; predict with a network of the class set voc12"
        )
    if competition not in ("comp5", "comp6"):
        raise UserError(f"got competition {competition!r}, expected comp5 (VOC's data alone) or comp6")
    refuse_foreign_file(out, STAMP, "archive for the VOC server of tag2mask", "results.tgz")
    missing = [sample.id for sample in data if not run.mask_path(sample.id).exists()]
    if missing:
        raise UserError(
            f"{run.path} has no mask of {len(missing)} of the {len(data)} images of {data.root}: "
            f"{listing(missing)}; the server wants all, so predict those, or name the --split that was predicted"
        )
    wrong: list[str] = []
    folder = f"results/VOC2012/Segmentation/{competition}_test_cls"
    with atomic_path(out) as path, path.open("wb") as file:
        # no time stamp and a constant name, so that equal masks are equal bytes
        packed = gzip.GzipFile(STAMP, "wb", compresslevel=6, fileobj=file, mtime=0)
        with packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for sample in show_progress(sorted(data, key=lambda sample: sample.id), "export", enabled=progress):
                try:
                    mask, size = read_mask(run.mask_path(sample.id)), image_size(sample.image)
                except BadImage as error:
                    raise UserError(f"{error}; bring it back, or remove it and predict again") from error
                said = _wrong(mask.shape, size, int(mask.max()), len(voc.names))
                if said:
                    wrong.append(f"{sample.id} {said}")
                    if len(wrong) == _SHOWN:
                        break
                    continue
                png = encode_mask(mask, voc.palette)
                member = tarfile.TarInfo(f"{folder}/{sample.id}.png")
                member.size, member.mode = len(png), 0o644
                archive.addfile(member, io.BytesIO(png))
        if wrong:
            raise UserError(f"the server would refuse {run.path}: {'; '.join(wrong)}; make these masks anew")
    return out


def _wrong(shape: tuple[int, ...], size: tuple[int, int], most: int, classes: int) -> str:
    """What the server would not accept of a mask, or nothing."""
    if tuple(shape) != size:
        return f"is {shape[1]}x{shape[0]}, its image {size[1]}x{size[0]}"
    if most >= classes:
        what = "undecided pixels (255): keep every pixel, --mu 0" if most == IGNORE else f"the value {most}"
        return f"holds {what}; 0 to {classes - 1} were expected"
    return ""
