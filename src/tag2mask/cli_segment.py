"""The commands about segmentation networks, which stand beside those of ``cli``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tag2mask.cli_storybook import DeviceOption
from tag2mask.types import UserError

segment_app = typer.Typer()

SOME_FAILED = 3
"""Exit code of a run that ended, but could not do some of its images."""


@segment_app.command()
def predict(
    network: Annotated[Path, typer.Argument(help="A folder that `train` wrote; an unfinished training will do.")],
    images: Annotated[Path, typer.Argument(help="Folder of images (no tags needed), VOC devkit, or COCO JSON.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder; made, or gone on with.")] = Path(
        "predicted"
    ),
    test: Annotated[
        str,
        typer.Option(help="As a paper tests: plain, deeplabv2, cct, mctformer, seam, weakclip, weakclip-retrain."),
    ] = "plain",
    scales: Annotated[str | None, typer.Option(help="Sizes at which an image is seen, such as 0.5,1,1.5.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Its mirror image too.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Cut views into windows of this side, in pixels.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Step of the windows; default: their side.")] = None,
    crf: Annotated[
        str | None, typer.Option(help="Dense CRF preset (deeplab, ...), or none; default: of --test.")
    ] = None,
    longest: Annotated[
        int | None, typer.Option(min=1, help="Shrink images with a longer side to this first.")
    ] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Cut images with a longer side into tiles of this.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Views or windows of an image at once.")] = None,
    use_tags: Annotated[
        bool, typer.Option("--use-tags", help="Only the classes in an image's tags, for a second round of training.")
    ] = False,
    kind: Annotated[str | None, typer.Option(help="voc, coco or folder; default: seen from what is there.")] = None,
    split: Annotated[str | None, typer.Option(help="VOC: a list under ImageSets/Segmentation, such as val.")] = None,
    tags: Annotated[Path | None, typer.Option(help="tags.csv or tags.jsonl, for --use-tags.")] = None,
    coco_images: Annotated[Path | None, typer.Option("--images", help="COCO: the folder of the images.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Folder of ground-truth masks; only `eval` reads them.")] = None,
    classes: Annotated[str | None, typer.Option(help="Of the data; default: its own, else the network's.")] = None,
    device: DeviceOption = "auto",
    shard: Annotated[
        str | None, typer.Option(help="i/n: do part i of n (from 0); default: from torchrun or SLURM, else all.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Remove the run in the folder and start afresh.")] = False,
) -> None:
    """Make a mask of every image by a trained network. Tags are not needed.

    The folder is a run: `tag2mask eval`, `report` and `export` take it. Stop whenever you like, the same command goes
    on; one bad image never stops it. Better masks for more time: `--scales 0.5,1,1.5 --flip`, then `--crf deeplab`.
    Images of any size fit in memory: larger ones are cut into tiles of 2048 pixels, or shrunk by `--longest`.

    Examples: `tag2mask predict runs/net photos -o runs/predicted` · `tag2mask predict runs/net VOC2012 --split val
    --test deeplabv2 -o runs/val` and `tag2mask eval runs/val` · VOC's server: `tag2mask predict runs/net VOC2012
    --split test -o runs/test` and `tag2mask export runs/test --to voc-test -o results.tgz`
    """
    from tag2mask.run.shard import find_shard
    from tag2mask.segment.test_time import find_preset
    from tag2mask.stages.predict import images_for
    from tag2mask.stages.predict import predict as run_predict

    preset = find_preset(test)
    given: dict[str, Any] = {"flip": flip, "window": window, "stride": stride, "longest": longest}
    given |= {"tile": tile, "batch": batch, "scales": None if scales is None else _numbers(scales)}
    settings = replace(preset.test, **{name: value for name, value in given.items() if value is not None})
    described = {"path": images, "kind": kind, "split": split, "tags": tags, "images": coco_images, "truth": truth}
    described |= {"classes": classes, "unknown": "error" if use_tags else "skip"}
    data, noted = images_for(network, {key: str(value) for key, value in described.items() if value is not None})
    for note in data.notes:
        typer.echo(f"note: {note}", err=True)
    summary = run_predict(
        network,
        data,
        out,
        test=settings,
        crf=preset.crf if crf is None else None if crf == "none" else crf,
        use_tags=use_tags,
        device=device,
        noted=noted,
        shard=find_shard(shard),
        overwrite=overwrite,
    )
    typer.echo(summary.text())
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--scales {text!r}: expected numbers with commas between, such as 0.5,1,1.5") from None
