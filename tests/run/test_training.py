"""Samples by step, and a training that may be stopped anywhere."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from itertools import chain

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from torch import nn

from tag2mask.run import training as subject
from tag2mask.run.checkpoint import LAST, steps_done
from tag2mask.run.sampling import Draw, StepSampler, Training, sample_generator, sample_indices
from tag2mask.run.training import fit
from tag2mask.types import UserError


class Numbers:
    """Sample i is i, with noise of its own."""

    def __init__(self, count=10, seed=0):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, draw: Draw):
        return draw.sample, draw.step, sample_generator(self.seed, draw).normal(size=3)

    def collate(self, samples):
        index, step, noise = zip(*samples, strict=True)
        return torch.tensor(index), torch.tensor(step), torch.tensor(np.stack(noise), dtype=torch.float32)


class Killed(BaseException):
    """As good as kill -9: nothing of this package cleans up after it."""


class Line(lightning.LightningModule):
    """A regression that writes down what it saw."""

    def __init__(self, at=None, action=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.at, self.action, self.seen = at, action, []

    def training_step(self, batch, batch_idx):
        index, step, noise = batch
        self.seen.append((step[0].item(), *index.tolist()))
        if self.at == len(self.seen):
            self.action()
        loss = (self.net(noise)[:, 0] - index).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


HOW = Training(steps=6, batch=4, accumulate=3, seed=5, device="cpu", save_steps=2, log_steps=1)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    module = Line()
    fit(module, Numbers(), HOW, tmp_path_factory.mktemp("whole"), show=False)
    return module


def test_the_bar_counts_steps_also_of_several_batches_and_after_a_stop(tmp_path, capsys):
    how = Training(**{**vars(HOW), "steps": 2, "accumulate": 3})
    fit(Line(), Numbers(), how, tmp_path, unit="images", show=True)
    assert re.fullmatch(r"train: 2/2 steps, [\d.,e+]+ images/s\n", capsys.readouterr().err)
    fit(Line(), Numbers(), Training(**{**vars(how), "steps": 3}), tmp_path, unit="images", show=True)
    assert capsys.readouterr().err.startswith("train: 3/3 steps, ")


def test_ctrl_c_saves_also_where_nobody_reads_the_messages(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    module = Line(at=13, action=lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(sys, "stderr", Gone())
    with pytest.raises(KeyboardInterrupt, match="stopped at step 5 of 6"):
        fit(module, Numbers(), HOW, tmp_path, show=False)
    assert steps_done(tmp_path) == 5


def test_a_second_ctrl_c_stops_at_once_and_says_what_is_saved(tmp_path, request):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    module = Line(at=14, action=twice)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at once; .* holds all up to step 4 of 6") as stop:
        fit(module, Numbers(), HOW, tmp_path, show=False)
    assert not isinstance(stop.value, subject.Stopped)
    assert steps_done(tmp_path) == 4
    module = Line(at=3, action=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(subject.Stopped, match="stopped at step 5 of 6; all of it is saved"):
        fit(module, Numbers(), HOW, tmp_path, show=False)


def test_the_bar_ends_with_the_training_however_it_ends(tmp_path, monkeypatch):
    """A bar that goes on hides the terminal's cursor."""
    ends = []

    class Noted(subject.Bar):
        def __exit__(self, error=None, *rest):
            ends.append(type(error))
            super().__exit__(error, *rest)

    monkeypatch.setattr(subject, "progress", lambda work, label, unit, **_: Noted(work, label, unit, False))

    def broken():
        raise UserError("no such luck")

    with pytest.raises(UserError, match="no such luck"):
        fit(Line(at=3, action=broken), Numbers(), HOW, tmp_path, show=False)
    assert ends == [UserError]
    fit(Line(), Numbers(), HOW, tmp_path, show=False)
    assert ends == [UserError, type(None)]


@pytest.mark.parametrize("wrong", ["loss", "weights"])
def test_what_is_not_finite_is_never_written_over_what_is(tmp_path, wrong):
    class Exploding(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch[1][0] == 17:  # the last; there is a checkpoint of step 4
                if wrong == "loss":
                    return loss * float("nan")
                self.net[0].weight.register_hook(lambda grad: grad * float("inf"))
            return loss

    last = tmp_path / "last.ckpt"
    named = "the loss is nan" if wrong == "loss" else "there are weights that are not finite"
    with pytest.raises(UserError, match=f"at step . {named}; .* is from before"):
        fit(Exploding(), Numbers(), HOW, tmp_path, show=False)
    assert steps_done(tmp_path) == 4
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


# --- samples


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (7, 7), (5, 13), (64, 1)])
def test_epochs_cover_every_sample_once(count, batch):
    drawn = np.concatenate([sample_indices(3, step, batch, count) for step in range(4 * count)])
    epochs = drawn[: len(drawn) // count * count].reshape(-1, count)
    assert (np.sort(epochs, 1) == np.arange(count)).all()
    if count > 5:
        assert not (epochs[0] == epochs[1]).all()


def test_samples_depend_on_seed_and_step_alone():
    forward = [sample_indices(1, step, 4, 100).tolist() for step in range(60)]
    backward = [sample_indices(1, step, 4, 100).tolist() for step in reversed(range(60))]
    assert forward == backward[::-1]
    assert forward != [sample_indices(2, step, 4, 100).tolist() for step in range(60)]
    first = sample_generator(1, Draw(3, 4)).random()
    np.random.seed(0)
    assert first == sample_generator(1, Draw(3, 4)).random()
    assert len({sample_generator(s, Draw(i, j)).random() for s in (1, 2) for i in (3, 4) for j in (3, 4)}) == 8


def test_sampler_starts_at_any_step():
    whole = list(StepSampler(HOW, [10]))
    assert len(whole) == len(StepSampler(HOW, [10])) == 18
    assert list(StepSampler(HOW, [10], lambda: 7)) == whole[7:]


def test_groups_have_epochs_of_their_own():
    how = Training(steps=12, batch=3, seed=5)
    batches = [[draw.sample for draw in draws] for draws in StepSampler(how, [6, 6, 20])]
    assert all(len(batch) == 9 for batch in batches)
    parts = np.array(batches).reshape(12, 3, 3)
    for group, (low, count) in enumerate(((0, 6), (6, 6), (12, 20))):
        drawn = parts[:, group].ravel()
        epochs = drawn[: len(drawn) // count * count].reshape(-1, count)
        assert (np.sort(epochs, 1) == np.arange(low, low + count)).all()
    # groups of one size are not paired the same in each epoch
    pairs = [set(zip(parts[e : e + 2, 0].ravel(), parts[e : e + 2, 1].ravel(), strict=True)) for e in (0, 2)]
    assert pairs[0] != pairs[1]
    assert [list(b) for b in StepSampler(how, [6, 6, 20], lambda: 7)] == list(StepSampler(how, [6, 6, 20]))[7:]


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_share_every_batch(devices):
    alone = list(StepSampler(HOW, [10], lambda: 5))
    how = Training(**{**vars(HOW), "devices": devices})
    shares = [list(StepSampler(how, [10], lambda: 5, lambda rank=rank: rank)) for rank in range(devices)]
    assert [[*chain(*batch)] for batch in zip(*shares, strict=True)] == alone
    assert all(len(batch) == 4 // devices for share in shares for batch in share)


# --- the trainer


def test_killed_in_the_middle_of_a_step_it_ends_in_the_same_bits(unbroken, tmp_path):
    def kill():
        raise Killed

    broken = Line(at=11, action=kill)  # step 3 of 6, its second batch of three
    with pytest.raises(Killed):
        fit(broken, Numbers(), HOW, tmp_path, show=False)
    assert steps_done(tmp_path) == 2
    resumed = Line()
    trainer = fit(resumed, Numbers(), HOW, tmp_path, show=False)
    assert trainer.global_step == 6
    assert broken.seen[:6] + resumed.seen == unbroken.seen
    assert len(unbroken.seen) == 18
    for name, value in weights(unbroken).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert steps_done(tmp_path) == 6


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_end_the_step_save_and_go_on(unbroken, tmp_path, sent):
    broken = Line(at=8, action=lambda: os.kill(os.getpid(), sent))
    before = signal.getsignal(sent)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 3 of 6.*same command"):
        fit(broken, Numbers(), HOW, tmp_path, show=False)
    assert signal.getsignal(sent) is before
    assert len(broken.seen) == 9
    assert steps_done(tmp_path) == 3
    resumed = Line()
    fit(resumed, Numbers(), HOW, tmp_path, show=False)
    assert broken.seen + resumed.seen == unbroken.seen
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(unbroken).items())


def test_the_clock_ends_a_leg(tmp_path):
    leg = Training(**{**vars(HOW), "minutes": 0.0})
    for done in (1, 2):
        fit(Line(), Numbers(), leg, tmp_path, show=False)
        assert steps_done(tmp_path) == done


def test_a_finished_training_is_left_alone(tmp_path):
    fit(Line(), Numbers(), HOW, tmp_path, show=False)
    again = Line()
    fit(again, Numbers(), HOW, tmp_path, show=False)
    assert again.seen == []


def test_a_checkpoint_is_whole_or_absent(tmp_path, monkeypatch):
    fit(Line(), Numbers(), Training(**{**vars(HOW), "minutes": 0.0}), tmp_path, show=False)

    def torn(self, path, *_):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", torn)
    with pytest.raises(OSError, match="no space"):
        fit(Line(), Numbers(), HOW, tmp_path, show=False)
    assert steps_done(tmp_path) == 1


@pytest.mark.parametrize("left", ["", "half", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path, left):
    fit(Line(), Numbers(), Training(**{**vars(HOW), "minutes": 0.0}), tmp_path, show=False)
    last = tmp_path / "last.ckpt"
    whole = last.read_bytes()
    last.write_bytes({"": b"", "half": whole[: len(whole) // 2], "other": b"no checkpoint"}[left])
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*delete it to start this training over"):
        fit(Line(), Numbers(), HOW, tmp_path, show=False)
    last.unlink()
    assert fit(Line(), Numbers(), HOW, tmp_path, show=False).global_step == HOW.steps


def test_checkpoints_reach_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(fsync(descriptor)))
    fit(Line(), Numbers(), HOW, tmp_path, show=False)
    assert len(synced) == 3  # every second step of six


def test_logs_and_progress_are_ours(tmp_path, capfd):
    fit(Line(), Numbers(), HOW, tmp_path, label="learn")
    said = capfd.readouterr()
    assert said.out == ""
    assert [line for line in said.err.splitlines() if line.startswith("learn: 6/6 steps, ")]
    assert "ightning" not in said.err
    rows = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 7


def test_another_network_in_the_folder_is_named(tmp_path):
    fit(Line(), Numbers(), Training(**{**vars(HOW), "minutes": 0.0}), tmp_path, show=False)
    other = Line()
    other.net[0] = nn.Linear(3, 5)
    with pytest.raises(UserError, match="another network"):
        fit(other, Numbers(), HOW, tmp_path, show=False)


@pytest.mark.parametrize("wrong", [{"device": "gpu7"}, {"precision": "int8"}, {"precision": "float16"}])
def test_impossible_devices_and_precisions_are_refused(tmp_path, wrong):
    with pytest.raises(UserError):
        fit(Line(), Numbers(), Training(**{**vars(HOW), **wrong}), tmp_path, show=False)


def test_samples_may_come_from_other_processes(unbroken, tmp_path):
    module = Line()
    fit(module, Numbers(), Training(**{**vars(HOW), "workers": 1}), tmp_path, show=False)
    assert module.seen == unbroken.seen


def test_the_command_line_does_not_load_lightning():
    code = "import sys, tag2mask.cli, tag2mask.storybook; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
    assert LAST == "last.ckpt"
