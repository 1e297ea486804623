"""The training of WeakCLIP: the segmentation room's, on another run's masks. Loads Lightning; import it to train.

checkpoints/network     the network, its CLIP by name and sha256
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tag2mask.data.lists import read_list
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.training import train_to_end
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.folder import Run
from tag2mask.run.settings import plain
from tag2mask.run.training import first_process
from tag2mask.run.warn import warn
from tag2mask.segment.examples import Examples, Targets, check_targets, find_targets
from tag2mask.segment.network import INSIDE, SegmentationNet, read_saved, save_network
from tag2mask.segment.supervised import SupervisedTraining
from tag2mask.types import Dataset, UserError

if TYPE_CHECKING:
    from tag2mask.methods.weakclip import WeakCLIP


def train(method: WeakCLIP, data: Dataset, folder: Path, seeds: Run) -> SegmentationNet:
    """Train from wherever an earlier call was stopped; leaves the network in ``folder``.

    Returns:
        it, in evaluation mode.

    Raises:
        UserError: no image has a mask among the seeds, or these do not fit the images or classes.
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
    """
    recipe = method.recipe
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
    if method.options.repeated is not None:
        targets = repeated(targets, Path(method.options.repeated))
    net = method.start()
    module = SupervisedTraining(recipe, net)
    settings = FitSettings.of(method, steps=recipe.steps, batch=recipe.batch, lr=recipe.lr)
    train_to_end(module, Examples(targets, recipe.augment, recipe.seed), settings, folder, "weakclip")
    if first_process() and not _is_kept(folder / INSIDE, recipe.steps):
        noted = {"recipe": plain(recipe), "examples": len(targets), "step": recipe.steps}
        save_network(folder / INSIDE, net, supervision=targets.supervision, noted=noted)
    return net.to(method.device).eval()


def _is_kept(folder: Path, steps: int) -> bool:
    """Whether the network in a folder is the one after so many steps."""
    try:
        return read_saved(folder).noted.get("step") == steps
    except UserError:  # none yet, or half of one
        return False


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
    indices = np.concatenate([targets.indices, targets.indices[listed.positions]])
    order = np.argsort(indices, kind="stable")
    pixels = np.concatenate([targets.pixels, targets.pixels[listed.positions]])
    return replace(targets, indices=indices[order], pixels=pixels[order])
