"""Two processes that fit a decoder together: who sees what, and that it ends in the same bytes each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tag2mask.methods.online.lesson import FOLDER
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.folder import Run
from tag2mask.segment.saved import INSIDE, WEIGHTS

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from pathlib import Path
from methods.test_conformance import FITS, KNOWN, build
from methods.toys import make_data
from tag2mask.methods.online.training import OnlineTraining
from tag2mask.methods.protocol import Machine
from tag2mask.stages.label import label
def spied(self, batch, index, step=OnlineTraining.training_step):
    path = Path({out!r}) / f"{{self.global_rank}}-{{self.global_step}}"
    path.write_text(str([float(each.nan_to_num(0).sum()) for each in batch[0]]))
    return step(self, batch, index)
OnlineTraining.training_step = spied
data = make_data(Path({out!r}) / "images", count=4)
data.classes = KNOWN
method = build("cd-clip", KNOWN, **{options!r})
print(label(data, method, {run!r}, machine=Machine(devices=2), progress=False).done)
"""


def together(out: Path, **options: object) -> Run:
    """A fit and a labelling by two processes."""
    out.mkdir()
    script, tests = out / "two.py", str(Path(__file__).parents[1])
    script.write_text(SCRIPT.format(tests=tests, out=str(out), run=str(out / "run"), options=options))
    done = subprocess.run([sys.executable, str(script)], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"  # the other process ends with its part
    return Run.open(out / "run")


def test_two_processes_share_every_batch_and_end_in_the_same_bytes(tmp_path):
    """With the views that both keep in one folder."""
    first, second = (together(tmp_path / str(i), views=1) for i in range(2))
    weights = [(run.checkpoints / INSIDE / WEIGHTS).read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]
    assert not (first.checkpoints / FOLDER).exists()
    assert steps_done(first.checkpoints) == 2
    seen = {path.name: path.read_text() for path in (tmp_path / "0").glob("[01]-[01]")}
    assert set(seen) == {"0-0", "0-1", "1-0", "1-1"}
    assert all(each.count(",") == 0 for each in seen.values())  # one of the two pictures of a batch
    assert len(set(seen.values())) == 4  # and each picture once, of four
    state = torch.load(first.checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"fuse", "decoder"}
