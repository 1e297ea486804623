"""The commands that make and use segmentation networks; they stand among the others of ``tag2mask``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tag2mask.cli_data import data_options
from tag2mask.cli_options import (
    SOME_FAILED,
    DeviceOption,
    DevicesOption,
    DryRunOption,
    LimitOption,
    ListOption,
    MinutesOption,
    OthersOption,
    OutOption,
    OverwriteOption,
    RecipeSetOption,
    RefinerOption,
    RemovedOption,
    ShardOption,
    list_settings,
    next_steps,
    one_of,
)
from tag2mask.formats import READERS, said
from tag2mask.types import UserError

segment_app = typer.Typer()


@segment_app.command()
@data_options(
    path="Folder or file of the images; default: where the run's were.",
    truth="Folder of true masks; read for --pixel-labels and --eval-every alone.",
    classes="Class set, where --data does not name its own.",
)
def train(
    *,
    run: Annotated[
        Path | None,
        typer.Argument(help="A run folder that `label` wrote; without one, give --data and --pixel-labels."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the training, to create or resume; give it to `predict`.")
    ] = Path("network"),
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of the recipe, such as recipes/train_*.yaml; default: a small network."),
    ] = None,
    set_: RecipeSetOption = None,
    where: dict[str, Any],
    pixel_labels: Annotated[
        Path | None,
        typer.Option(
            help="Text file of image ids whose TRUE masks are trained on. This is pixel supervision: the network, "
            "its runs and their tables then say tags+pixels(n)."
        ),
    ] = None,
    semi: Annotated[
        str | None,
        typer.Option(
            help="Semi-supervised training. cct: images of --pixel-labels train the main decoder, all others (with "
            "their masks in RUN) the auxiliary ones; the same as --set semi=cct. --set cct.weak=none leaves out "
            "RUN's masks."
        ),
    ] = None,
    minutes: MinutesOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    workers: Annotated[
        int, typer.Option(min=0, help="Number of processes that prepare batches; on a GPU, give some.")
    ] = 0,
    save_steps: Annotated[
        int, typer.Option(min=1, help="Steps between checkpoints; one is also kept every 5 minutes.")
    ] = 1000,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps between measurements of validation mIoU, on true masks that nothing is learned from."
        ),
    ] = None,
    eval_data: Annotated[
        Path | None,
        typer.Option(help="Images with true masks to measure on; default: those of the data not trained on."),
    ] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="Split to measure on, of --eval-data or of the data.")
    ] = None,
    eval_truth: Annotated[Path | None, typer.Option(help="Folder of the true masks of --eval-data.")] = None,
    hold_out: Annotated[
        int, typer.Option(min=0, help="Number of images, chosen by their ids, to measure on and not to train on.")
    ] = 0,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    list_: ListOption = False,
) -> None:
    """Train a segmentation network on the masks of a run.

    Stop it whenever you like (Ctrl-C, kill, a power cut): the same command resumes it, and on a processor the weights
    end up the same to the bit. Images without a mask are left out and counted; one that cannot be read is replaced
    by the next. Unsure pixels (255 in the masks) are not trained on; `--set mu=0.95` also leaves out pixels whose
    confidence is lower than that.

    More steps than before (`--set steps=`) continue from the last checkpoint; where the learning rate depends on how
    many there are, a warning says how the weights will differ. `--eval-every 200 --hold-out 50` shows the mIoU
    of 50 images that are not trained on. The logs are for TensorBoard, too.

    Without RUN, `--data` and `--pixel-labels` train on true masks: the upper bound to compare with.

    Examples: `tag2mask train runs/photos -o nets/photos` · `tag2mask train runs/voc -o nets/voc
    --config recipes/train_voc12_clip_es_imagenet.yaml --set init=weights.pth --workers 8` ·
    `tag2mask train runs/voc -o nets/mixed --pixel-labels some_ids.txt` · the same with
    `--set architecture=cct-small --semi cct`
    """
    from tag2mask.config import parse_data, read_recipe
    from tag2mask.run.folder import Run
    from tag2mask.run.training import first_process
    from tag2mask.segment.recipe import GROUPS, TrainRecipe
    from tag2mask.stages.machinery.watch import Validation
    from tag2mask.stages.run_data import data_for, open_data
    from tag2mask.stages.train import TrainSettings
    from tag2mask.stages.train import train as run_train

    chosen = [*(set_ or []), *([] if semi is None else [f"semi={semi}"])]
    recipe = read_recipe(TrainRecipe, chosen, config)
    if recipe.semi and recipe.architecture == TrainRecipe.architecture:
        recipe = replace(recipe, architecture="cct-small")  # the small network that has what CCT needs
    if list_:
        list_settings(recipe, GROUPS)
        return
    opened = None if run is None else Run.open(run)
    if opened is not None:
        dataset = data_for(opened, where)
    elif "path" not in where:
        raise UserError("nothing to train on: give a run folder, or --data and --pixel-labels for true masks alone")
    else:
        dataset = open_data(parse_data(where))
    if dry_run:
        from tag2mask.stages.dry_run import dry_train

        rest = (dataset, pixel_labels)
        typer.echo(dry_train(opened, out, recipe, *rest, hold_out=hold_out, afresh=overwrite, device=device).text())
        return
    validation = None
    if eval_every is not None:
        measured = _eval_data(dataset, where, opened, eval_data, eval_split, eval_truth)
        validation = Validation(eval_every, measured, hold_out)
    elif hold_out or any(given is not None for given in (eval_data, eval_split, eval_truth)):
        raise UserError(
            "--hold-out, --eval-data, --eval-split and --eval-truth say what is measured; say how often, too: "
            "--eval-every STEPS"
        )
    how = TrainSettings(
        device=device,
        devices=devices,
        workers=workers,
        minutes=minutes,
        save_steps=save_steps,
        validation=validation,
        overwrite=overwrite,
    )
    result = run_train(opened, out, recipe, how, data=dataset, pixel_labels=pixel_labels)
    if first_process():
        typer.echo(result.text())
        if result.step >= result.steps:
            images = where.get("path") or dataset.root
            next_steps(["predict", out, images, "-o", Path("runs") / f"{out.name}-predicted"])


def _eval_data(
    data: Any, where: dict[str, Any], run: Any, path: Path | None, split: str | None, truth: Path | None
) -> Any:
    """The data that --eval-data and its kind name, in the classes of the training's; None where they name none."""
    from tag2mask.config import parse_data
    from tag2mask.stages.run_data import data_of, open_data

    if path is None and split is None:
        if truth is not None:
            raise UserError("--eval-truth is the truth of --eval-data; of the training's own data it is --truth")
        return None
    given: dict[str, Any] = {"path": str(path), "unknown": "skip"}
    if path is None:
        known = {} if run is None else data_of(run).model_dump(exclude_none=True)
        given = {**known, **where}
    given |= {} if split is None else {"split": split}
    given |= {} if truth is None else {"truth": str(truth)}
    return open_data(parse_data(given), network=data.classes)


@segment_app.command()
@data_options("path", classes="Class set of the data; default: its own, else the network's.")
def predict(
    *,
    network: Annotated[Path, typer.Argument(help="A folder that `train` wrote; an unfinished training works too.")],
    data: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help=f"Give {said(READERS)}; no tags are needed."),
    ],
    out: OutOption = Path("predicted"),
    test: Annotated[
        str | None,
        typer.Option(
            help="Test settings of a paper: plain, deeplabv2, cct, mctformer, seam, weakclip, weakclip-retrain, "
            "weclip, cd-clip; default: those of the method that trained the network, else plain. The options below "
            "override parts of them."
        ),
    ] = None,
    scales: Annotated[str | None, typer.Option(help="Scales at which each image is seen, such as 0.5,1,1.5.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Also look at the mirror image.")] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Cut each view into windows with this side, in pixels.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Pixels from one window to the next; default: the window's side.")
    ] = None,
    refiner: RefinerOption = None,
    longest: Annotated[
        int | None, typer.Option(min=1, help="Shrink images whose longer side is above this, in pixels.")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=1, help="Cut images whose longer side is above this into tiles of this side.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Views or windows of an image computed at once.")] = None,
    use_tags: Annotated[
        bool,
        typer.Option(
            "--use-tags", help="Allow only the classes in an image's tags, such as for another round of training."
        ),
    ] = False,
    others: OthersOption = None,
    where: dict[str, Any],
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    removed: RemovedOption = "keep",
    overwrite: OverwriteOption = False,
) -> None:
    """Make a mask for every image with a trained network. Tags are not needed.

    The folder is a run: `tag2mask eval`, `report` and `export` take it. Stop it whenever you like: the same command
    resumes it. One bad image never stops it. For better masks in more time: `--scales 0.5,1,1.5 --flip`, then
    `--mask-refiner deeplab`. Images may have any size: large ones are cut into tiles of 2048 pixels, or shrunk
    by `--longest`.

    Examples: `tag2mask predict runs/net photos -o runs/predicted` · `tag2mask predict runs/net VOC2012 --split val
    --test deeplabv2 -o runs/val` and `tag2mask eval runs/val` · VOC's server: `tag2mask predict runs/net VOC2012
    --split test -o runs/test` and `tag2mask export runs/test --to voc-test -o results.tgz` · one image:
    `tag2mask predict runs/net dog.jpg`
    """
    from tag2mask.run.shard import find_shard
    from tag2mask.segment.saved import read_saved
    from tag2mask.segment.test_time import find_preset
    from tag2mask.stages.predict import PredictSettings, read_images
    from tag2mask.stages.predict import predict as run_predict

    preset = read_saved(network).test if test is None else find_preset(test)
    given: dict[str, Any] = {"flip": flip, "window": window, "stride": stride, "longest": longest}
    given |= {"tile": tile, "batch": batch, "scales": None if scales is None else _numbers(scales)}
    settings = replace(preset.test, **{name: value for name, value in given.items() if value is not None})
    described = {"path": str(data), "unknown": "error" if use_tags else "skip", **where}
    images, noted = read_images(network, described)
    for note in images.notes:
        typer.echo(f"note: {note}", err=True)
    how = PredictSettings(
        test=settings,
        refiner=refiner or preset.refiner or "none",
        use_tags=use_tags,
        others=one_of("--others", others or "never", "never", "ignore", "keep"),
        device=device,
        shard=find_shard(shard),
        limit=limit,
        overwrite=overwrite,
        removed=one_of("--removed", removed, "keep", "drop"),
        noted=noted,
    )
    if dry_run:
        from tag2mask.stages.dry_run import dry_predict

        typer.echo(dry_predict(network, images, out, how).text())
        return
    summary = run_predict(network, images, out, how)
    typer.echo(summary.text())
    if not summary.empty:
        next_steps(*([["eval", out]] if images.has_truth.any() else []), ["report", out])
    if summary.failed or summary.empty:
        raise typer.Exit(SOME_FAILED)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--scales {text!r}: expected numbers with commas between, such as 0.5,1,1.5") from None
