"""The commands of ``tag2mask storybook``: draw the embedded world, and train and measure its networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tag2mask.cli_options import DeviceOption, ListOption, MinutesOption, RecipeSetOption, list_settings

storybook_app = typer.Typer(no_args_is_help=True, help="The embedded world: picture-book scenes with exact masks.")


CacheOption = Annotated[Path | None, typer.Option(help="Folder for the drawn scenes; default: inside --out.")]


@storybook_app.command()
def render(
    n: Annotated[int, typer.Option("-n", min=1, help="Number of scenes.")] = 200,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, or to resume.")] = Path("storybook"),
    split: Annotated[
        str,
        typer.Option(
            help="Split to draw: train, val, test, or a trap: cooccurrence, adjacency, contact, parts, small, crowds."
        ),
    ] = "val",
    width: Annotated[int, typer.Option(min=16, help="Width of every scene, in pixels.")] = 256,
    height: Annotated[int, typer.Option(min=16, help="Height of every scene, in pixels.")] = 192,
    seed: Annotated[int, typer.Option(min=0, max=999, help="Seed of the scenes; other seeds give other scenes.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; default: one for each core.")
    ] = None,
) -> None:
    """Draw a data set of scenes in VOC layout, with exact masks, tags and captions.

    FOLDER/JPEGImages holds the pictures, SegmentationClass the masks, tags.csv and captions.jsonl what is in them.
    Stop it whenever you like; the same command resumes it. Several splits may share a folder, and a larger -n adds
    scenes to a split. Scenes of another size, or fewer of them, need another folder. Files in the folder that you
    change by hand are drawn again when you give the command again.
    """
    from tag2mask.run.progress import progress
    from tag2mask.storybook import render as run_render

    with progress(n, "render", unit="scenes") as bar:
        size = (height, width)
        written = run_render(out, n, seed=seed, split=split, size=size, workers=workers, progress=bar.advance)
    typer.echo(f"written: {written}")


@storybook_app.command("pretrain-resnet")
def pretrain_resnet(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the weights, to create or resume.")],
    width: Annotated[
        int | None, typer.Option(min=1, help="Width of the ResNet-50; default 16, the public one has 64.")
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(min=1, help="Number of different scenes to draw; default 20000.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of optimiser steps; default 1600.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Pictures in each step; default 64.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=999, help="Seed of scenes and weights; default 0.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Weights to start from: a folder that this command wrote, or storybook-resnet.")
    ] = None,
    minutes: MinutesOption = None,
    measure: Annotated[int, typer.Option(min=1, help="Number of held-out scenes to measure the result on.")] = 300,
    cache: CacheOption = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network; the first step takes two minutes.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train the small ResNet on scenes and their tags: weights, settings and a model card.

    Stop it whenever you like; the same command resumes it. The defaults take about half an hour on two cores.
    """
    from tag2mask.lab.classifier import ClassifierRecipe
    from tag2mask.lab.running import Running
    from tag2mask.lab.train_classifier import pretrain_resnet as run

    given: dict[str, Any] = {"width": width, "scenes": scenes, "steps": steps, "batch": batch, "seed": seed}
    given["init"] = init
    recipe = replace(ClassifierRecipe(), **{key: value for key, value in given.items() if value is not None})
    found = run(out, recipe, Running(device, minutes, cache, compiled), scenes=measure)
    if found is None:
        typer.echo(f"time is up; the state is in {out}, and the same command resumes it")
        return
    typer.echo(found.text())
    typer.echo(f"written: {out}; name it where storybook-resnet stands (--set teacher=, --set weights=, --init)")


@storybook_app.command()
def pretrain(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the training, to create or resume.")] = Path(
        "pretrain"
    ),
    set_: RecipeSetOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that prepare batches.")] = 0,
    minutes: MinutesOption = None,
    watch: Annotated[int, typer.Option(min=0, help="Steps between measurements; 0: never measure.")] = 1000,
    watch_scenes: Annotated[int, typer.Option(min=0, help="Number of scenes of the val split to measure on.")] = 60,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the image tower, for long runs on a GPU.")
    ] = False,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    list_: ListOption = False,
) -> None:
    """Train a small CLIP on Storybook's pictures, captions and tags; exact masks are not used.

    Stop it whenever you like; the same command resumes it. OUT/clip holds the last weights, OUT/best those with
    the best measured CAM; --clip takes either folder. The defaults are for a GPU and take days on two cores, where a
    short training from existing weights is a better start:

    `tag2mask storybook pretrain -o runs/leg --set init=storybook-clip --set scenes=16000 --set batch=64
    --set steps=1000 --set lr=6e-4`

    On a GPU: `tag2mask storybook pretrain -o runs/clip --set steps=20000 --set batch=1024 --set precision=bfloat16
    --workers 12 --compile --minutes 10`
    """
    from tag2mask.config import read_recipe
    from tag2mask.lab.pretrain import pretrain as run_pretrain
    from tag2mask.lab.pretrain_recipe import Pretrain
    from tag2mask.lab.running import Running

    recipe = read_recipe(Pretrain, set_ or [])
    if list_:
        list_settings(recipe)
        return
    result = run_pretrain(
        out,
        recipe,
        Running(device, minutes, cache, compiled),
        workers=workers,
        watch=watch,
        watch_scenes=watch_scenes,
        save_steps=save_steps,
    )
    typer.echo(result.text())


CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the network; the first step takes two minutes.")
]


@storybook_app.command("pretrain-dino")
def pretrain_dino(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the weights, to create or resume.")] = Path(
        "dino"
    ),
    set_: RecipeSetOption = None,
    minutes: MinutesOption = None,
    measure: Annotated[int, typer.Option(min=1, help="Number of held-out scenes to look for contacts in.")] = 60,
    cache: CacheOption = None,
    compiled: CompileOption = False,
    device: DeviceOption = "auto",
    list_: ListOption = False,
) -> None:
    """Let a small image transformer teach itself on scenes, without captions, tags or masks: a DINO for cd-clip.

    Stop it whenever you like; the same command resumes it. At the end it says whether prototypes on it are right more
    often than CLIP's maps where super-classes touch: only then do CD-CLIP's boundaries learn from it (--dino OUT).
    """
    from tag2mask.config import read_recipe
    from tag2mask.lab.pretrain_dino import pretrain_dino as run
    from tag2mask.lab.running import Running
    from tag2mask.lab.self_distil_recipe import SelfDistil

    recipe = read_recipe(SelfDistil, set_ or [])
    if list_:
        list_settings(recipe)
        return
    _tell(
        out, run(out, recipe, Running(device, minutes, cache, compiled), scenes=measure), "cd-clip takes it (--dino)"
    )


@storybook_app.command("pretrain-deit")
def pretrain_deit(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the weights, to create or resume.")] = Path(
        "deit"
    ),
    set_: RecipeSetOption = None,
    minutes: MinutesOption = None,
    measure: Annotated[int, typer.Option(min=1, help="Number of held-out scenes to measure the result on.")] = 200,
    cache: CacheOption = None,
    compiled: CompileOption = False,
    device: DeviceOption = "auto",
    list_: ListOption = False,
) -> None:
    """Train a small image transformer on scenes' tags and a classifier's answers: a DeiT for mctformer.

    Stop it whenever you like; the same command resumes it.
    """
    from tag2mask.config import read_recipe
    from tag2mask.lab.pretrain_deit import DeitRecipe
    from tag2mask.lab.pretrain_deit import pretrain_deit as run
    from tag2mask.lab.running import Running

    recipe = read_recipe(DeitRecipe, set_ or [])
    if list_:
        list_settings(recipe)
        return
    found = run(out, recipe, Running(device, minutes, cache, compiled), scenes=measure)
    _tell(out, found, "mctformer takes it (--set weights=)")


def _tell(out: Path, found: Any, use: str) -> None:
    """What a training came to: its figures, or None where time was up."""
    if found is None:
        typer.echo(f"time is up; the state is in {out}, and the same command resumes it")
        return
    typer.echo(found.text())
    typer.echo(f"written: {out}; {use}")


@storybook_app.command()
def measure(
    clip: Annotated[
        str, typer.Argument(help="The CLIP to measure: storybook-clip, or a folder in Hugging Face layout.")
    ],
    n: Annotated[
        int,
        typer.Option(
            "-n", min=1, help="Number of scenes of the val split; 500 take about twenty minutes on two cores."
        ),
    ] = 500,
    device: DeviceOption = "auto",
) -> None:
    """Measure a CLIP on held-out scenes, beside its floors: tags, CAMs, every comparison of CLIP-ES, as Markdown."""
    from tag2mask.lab.measure import measure as run_measure

    typer.echo(run_measure(clip, n, device=device)[1])
