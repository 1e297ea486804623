"""storybook-dino, the whole way: stopped, gone on, measured beside floors, written, and read by others."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import Dinov2Model
from typer.testing import CliRunner

from lab import distil_cases
from tag2mask.cli import app
from tag2mask.lab import pretrain_dino as stage
from tag2mask.lab.contacts import Rightness
from tag2mask.lab.pretrain_dino import DINOFigures, pretrain_dino
from tag2mask.lab.running import Running
from tag2mask.lab.self_distil import make_learner
from tag2mask.models.dino import load_dino
from tag2mask.models.save import save_dino
from tag2mask.types import UserError

TINY = dataclasses.replace(distil_cases.TINY, steps=3)
QUIET = Running(device="cpu", progress=False)
SCENES = 5
"""Of the watched ones; one of them shows two super-classes that touch."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    first = pretrain_dino(folder, TINY, dataclasses.replace(QUIET, minutes=0), scenes=SCENES, workers=1)
    assert first is None
    assert not (folder / "model.safetensors").exists()
    return folder, pretrain_dino(folder, TINY, QUIET, scenes=SCENES, workers=1)


def test_what_is_left_is_the_teacher(trained) -> None:
    folder, _ = trained
    state = torch.load(folder / "training" / "last.ckpt", weights_only=True)["state_dict"]
    tower = load_dino(folder).model
    assert (tower.patch, tower.native_grid, tower.blocks[0].attn.heads) == (4, (4, 4), 2)
    for name, own in tower.state_dict().items():
        assert torch.equal(own, state[f"teacher.tower.{name}"].half().float()), name
    assert not torch.equal(tower.conv1.weight, state["student.tower.conv1.weight"].half().float())


def test_transformers_sees_the_same(trained) -> None:
    folder, _ = trained
    dino, theirs = load_dino(folder), Dinov2Model.from_pretrained(folder).float().eval()
    pixels = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 1:]
        torch.testing.assert_close(dino.model.patches(pixels), expected, atol=1e-4, rtol=1e-4)
    assert (folder / "model.safetensors").stat().st_size < 6_000_000


def test_only_what_the_layout_holds_is_written(tmp_path) -> None:
    tower = make_learner(TINY).tower
    tower.native_grid = (2, 8)
    with pytest.raises(ValueError, match="expected a square"):
        save_dino(tmp_path, tower)
    assert not list(tmp_path.iterdir())


def test_figures_stand_beside_the_maps_and_a_floor(trained) -> None:
    folder, found = trained
    rows = (found.network, found.maps, found.untrained)
    assert len({(row.scenes, row.pixels) for row in rows}) == 1
    assert found.maps.scenes == 1
    assert found.network != found.untrained
    card = (folder / "MODEL_CARD.md").read_text()
    for row in rows:
        assert f"{row.contacts:.1f} % | {row.everywhere:.1f} %" in card
    assert "| pictures seen | 12 |" in card
    assert "| views seen | 36 |" in card
    assert pretrain_dino(folder, TINY, QUIET, scenes=SCENES) == found


def test_figures_are_measured_once(trained, monkeypatch) -> None:
    folder, found = trained
    monkeypatch.setattr(stage, "touching_scenes", lambda *args, **kwargs: pytest.fail("measured again"))
    assert pretrain_dino(folder, TINY, QUIET, scenes=SCENES) == found


def test_boundaries_need_more_than_the_maps_know() -> None:
    rows = {"maps": Rightness(87.0, 70.4, 21, 100), "untrained": Rightness(66.0, 55.0, 21, 100)}
    better = DINOFigures(network=Rightness(80.0, 70.5, 21, 100), **rows)
    worse = DINOFigures(network=Rightness(90.0, 70.4, 21, 100), **rows)
    assert better.helps
    assert "can learn from it" in better.text()
    assert not worse.helps
    assert "cannot learn" in worse.text()
    assert "70.4 % (everywhere 87.0 %)" in worse.text()


def test_another_training_is_refused(trained, tmp_path) -> None:
    folder, _ = trained
    with pytest.raises(UserError, match=r"another training: lr is 0\.001 there and 0\.1 now"):
        pretrain_dino(folder, dataclasses.replace(TINY, lr=0.1), QUIET)
    with pytest.raises(UserError, match="at least 1"):
        pretrain_dino(tmp_path / "new", TINY, QUIET, scenes=0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other things \(notes.txt\)"):
        pretrain_dino(tmp_path, TINY, QUIET)


def test_the_command(trained, tmp_path) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["storybook", "pretrain-dino", "--list"])
    assert listed.exit_code == 0
    assert "spread_weight=" in listed.output
    settings = {**json.loads((trained[0] / "training" / "recipe.json").read_text())}
    settings.pop("drawing")
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    done = runner.invoke(
        app,
        ["storybook", "pretrain-dino", "-o", str(trained[0]), "--measure", str(SCENES), "--device", "cpu", *given],
    )
    assert done.exit_code == 0, done.output
    assert "near contacts" in done.output
    late = runner.invoke(
        app, ["storybook", "pretrain-dino", "-o", str(tmp_path / "new"), "--minutes", "0", "--device", "cpu", *given]
    )
    assert "time is up" in late.output
    wrong = runner.invoke(app, ["storybook", "pretrain-dino", "-o", str(tmp_path / "x"), "--set", "codez=3"])
    assert wrong.exit_code != 0
    assert "codes" in str(wrong.output) + str(wrong.exception)
