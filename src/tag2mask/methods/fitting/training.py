"""One training of a fit: started, resumed, or loaded where it has ended. Loads Lightning; import it only to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.run.checkpoint import LAST, steps_done
from tag2mask.run.training import Stopped, first_process, fit
from tag2mask.segment.network import SegmentationNet, save_network
from tag2mask.segment.saved import INSIDE, read_saved
from tag2mask.types import UserError


def keep_network(
    folder: Path, net: SegmentationNet, steps: int, *, supervision: str, noted: Mapping[str, Any]
) -> None:
    """Leave the network that a fit has trained for so many steps in ``folder``, if it is not there already."""
    if first_process() and not _is_kept(folder / INSIDE, steps):
        save_network(folder / INSIDE, net, supervision=supervision, noted={**noted, "step": steps})


def _is_kept(folder: Path, steps: int) -> bool:
    """Whether the network in a folder is the one after so many steps."""
    try:
        return read_saved(folder).noted.get("step") == steps
    except UserError:  # none yet, or half of one
        return False


def train_to_end(
    module: lightning.LightningModule, examples: Any, settings: FitSettings, folder: Path, label: str
) -> None:
    """Train ``module`` to the end, or take up what an earlier call ended with.

    Raises:
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
        SystemExit: of the processes that Lightning starts for further devices: each is there for one training.
    """
    if steps_done(folder) < settings.steps:
        done = fit(module, examples, settings.training(), folder, label=label, unit="images").global_step
        if not first_process():
            raise SystemExit(0)
        if done < settings.steps:
            raise Stopped(
                f"{label}: time is over at step {done} of {settings.steps}; all of it is saved in {folder}: give the "
                "same command again to resume"
            )
    else:
        state = torch.load(folder / LAST, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
