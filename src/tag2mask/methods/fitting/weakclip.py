"""The training of WeakCLIP: the segmentation room's, on another run's masks. Loads Lightning; import it to train.

checkpoints/network     the network, its CLIP by name and sha256
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tag2mask.data.lists import read_list
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.training import keep_network, train_to_end
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.folder import Run
from tag2mask.run.settings import plain
from tag2mask.run.warn import warn
from tag2mask.segment.examples import Examples
from tag2mask.segment.network import SegmentationNet
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.supervised import SupervisedTraining
from tag2mask.segment.targets import Targets, check_targets, find_targets
from tag2mask.segment.test_time import Preset
from tag2mask.types import Dataset, UserError


def train(
    net: SegmentationNet,
    recipe: TrainRecipe,
    settings: FitSettings,
    data: Dataset,
    folder: Path,
    seeds: Run,
    *,
    test: Preset,
    twice: Path | None = None,
) -> None:
    """Train from wherever an earlier call was stopped; leaves the network in ``folder``.

    Args:
        net: before its training; it is trained, and ends in evaluation mode.
        recipe: of the training. settings: where and how it runs.
        data: images and tags.
        folder: of the fit.
        seeds: a run, of which the made masks are taken, or a folder of label maps.
        test: how the network is tested, to be kept with it.
        twice: a list of images that are drawn twice as often.

    Raises:
        UserError: no image has a mask among the seeds, or these do not fit the images or classes.
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
    """
    targets = find_targets(data, seeds)
    if not steps_done(folder):
        for note in check_targets(targets):
            warn(note)
        if targets.left_out:
            why = ", ".join(f"{count} {reason}" for reason, count in targets.left_out.items())
            warn(
                f"weakclip learns from {len(targets)} of {len(data)} images; the others have no mask in "
                f"{seeds.path} ({why})"
            )
    if twice is not None:
        targets = repeated(targets, twice)
    if any(parameter.requires_grad for parameter in net.parameters()):  # direct matching has nothing to learn
        module = SupervisedTraining(recipe, net)
        train_to_end(module, Examples(targets, recipe.augment, recipe.seed), settings, folder, "weakclip")
    noted = {"recipe": plain(recipe), "examples": len(targets), "test": test}
    keep_network(folder, net, recipe.steps, supervision=targets.supervision, noted=noted)
    net.to(settings.device).eval()


def repeated(targets: Targets, path: Path) -> Targets:
    """The same with the images of a list twice, as the released VOC list has those of ``train``.

    Raises:
        UserError: the list cannot be read, or names images that are not among them.
    """
    ids = [targets.sample(position).id for position in range(len(targets))]
    listed = read_list(path, ids)
    if listed.missing or not listed.positions:
        some = ", ".join(listed.missing[:3]) or "it is empty"
        raise UserError(
            f"repeated={path}: {len(listed.missing)} images are not among those with seeds ({some}); ids look like "
            f"{ids[0]!r}"
        )
    places = np.concatenate([np.arange(len(targets)), listed.positions])
    order = np.argsort(targets.indices[places], kind="stable")
    return targets.take(places[order])
