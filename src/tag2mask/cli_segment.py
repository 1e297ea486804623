"""The commands that make and use segmentation networks; they stand among the others of ``tag2mask``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tag2mask.types import UserError

segment_app = typer.Typer()

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]


@segment_app.command()
def train(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run folder that `label` wrote. None: true masks alone."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the training; made, or gone on with. `predict` takes it.")
    ] = Path("network"),
    config: Annotated[
        Path | None,
        typer.Option(help="The recipe as YAML, see recipes/train_*.yaml; default: a small network."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the recipe, NAME=VALUE, on top; see --list.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The images; default: where the run's were.")] = None,
    split: Annotated[
        str | None, typer.Option(help="VOC: a list under ImageSets/Segmentation, such as train.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Folder of true masks, read for --pixel-labels alone.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class set of --data, where it does not tell itself.")] = None,
    pixel_labels: Annotated[
        Path | None,
        typer.Option(
            help="A text file of image ids whose TRUE masks are used. This is pixel supervision: the network, its "
            "runs and their tables then say tags+pixels(n)."
        ),
    ] = None,
    semi: Annotated[
        str | None,
        typer.Option(
            help="cct: --pixel-labels teach the main decoder, all other images (with their masks in RUN) the "
            "auxiliary ones; the same as --set semi=cct. --set cct.weak=none leaves RUN's masks out."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long, saved; the same command goes on.")
    ] = None,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option(min=1, help="GPUs that share every batch (DDP).")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches; on a GPU, give some.")] = 0,
    save_steps: Annotated[int, typer.Option(min=1, help="A checkpoint every so many steps, and every 5 min.")] = 1000,
    list_: Annotated[bool, typer.Option("--list", help="List the recipe's settings and stop.")] = False,
) -> None:
    """Train a segmentation network on the masks of a run.

    Stop it whenever you like (Ctrl-C, kill, a power cut): the same command goes on, and on a processor the weights
    end up the same to the bit. Images without a mask are left out and counted; one that cannot be read is replaced
    by the next. Unsure pixels (255 in the masks) teach nothing; `--set mu=0.95` leaves out those of low confidence.

    Without RUN, `--data` and `--pixel-labels` train on true masks: the upper bound to compare with.

    Examples: `tag2mask train runs/photos -o nets/photos` · `tag2mask train runs/voc -o nets/voc
    --config recipes/train_voc12_deeplabv2_imagenet.yaml --set init=weights.pth --workers 8` ·
    `tag2mask train runs/voc -o nets/mixed --pixel-labels some_ids.txt` · the same with
    `--set architecture=cct-small --semi cct`
    """
    from tag2mask.config import DataConfig, read_recipe
    from tag2mask.run.folder import Run
    from tag2mask.run.settings import plain
    from tag2mask.run.training import first_process
    from tag2mask.segment.recipe import TrainRecipe
    from tag2mask.stages.recipe import data_for, open_data
    from tag2mask.stages.train import train as run_train

    chosen = [*(set_ or []), *([] if semi is None else [f"semi={semi}"])]
    recipe = read_recipe(TrainRecipe, chosen, config)
    if list_:
        for name, value in vars(recipe).items():
            typer.echo(f"{name}={json.dumps(plain(value))}")
        return
    opened = None if run is None else Run.open(run)
    if opened is not None:
        dataset = data_for(opened, data, split, truth, classes)
    elif data is None:
        raise UserError("nothing to train on: give a run folder, or --data and --pixel-labels for true masks alone")
    else:
        flags = {"path": data, "split": split, "truth": truth, "classes": classes}
        dataset = open_data(
            DataConfig(**{key: None if value is None else str(value) for key, value in flags.items()})
        )
    result = run_train(
        opened,
        out,
        recipe,
        data=dataset,
        pixel_labels=pixel_labels,
        device=device,
        devices=devices,
        workers=workers,
        minutes=minutes,
        save_steps=save_steps,
    )
    if first_process():
        typer.echo(result.text())
