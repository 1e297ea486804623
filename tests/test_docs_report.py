"""The commands of docs/report.md run, in their order, on a run and data of five tiny images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from stages.small_run import CLASSES, SIZES, TAGS, small_run, toys, truth_of
from tag2mask.cli import app
from tag2mask.data.png import encode_mask
from tag2mask.run.document import write_document
from tag2mask.run.folder import Run
from tag2mask.types import Constant, MaskRule

PAGE = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
SHELL = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"


def commands() -> list[str]:
    """Those of the page's shell blocks."""
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    return [line.removeprefix("tag2mask ") for line in text.splitlines() if line.startswith("tag2mask ")]


def as_labelled(run: Run) -> None:
    """Note where the data are, as label does."""
    noted = {**run.noted, "config": {"data": {"path": "photos", "kind": "folder"}, "method": "clip-es"}}
    write_document(run.path, 5, run.settings, noted)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    data = toys(tmp_path / "photos" / "toy", truth=False)
    rows = [f"toy/{i}.png,{';'.join(CLASSES.names[tag] for tag in tags)}" for i, tags in enumerate(TAGS)]
    (tmp_path / "photos" / "tags.csv").write_text("\n".join(["image,labels", *rows]))
    (tmp_path / "photos-masks" / "toy").mkdir(parents=True)
    for index in range(len(SIZES)):
        png = encode_mask(truth_of(index), CLASSES.palette)
        (tmp_path / "photos-masks" / "toy" / f"{index}.png").write_bytes(png)
    (tmp_path / "drawn-masks" / "toy").mkdir(parents=True)
    Image.fromarray(np.where(truth_of(0) == 1, 255, 0).astype(np.uint8)).save(tmp_path / "drawn-masks/toy/0.png")
    rules = {"photos": None, "sharper": MaskRule(background=Constant(0.6)), "third": MaskRule(mu=0.6)}
    for name, rule in rules.items():
        as_labelled(small_run(tmp_path / "runs" / name, data, rule))
    return tmp_path


def test_every_command_of_the_page_runs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHELL, "1")  # the shell is then named, and not what happens to run the tests
    made = commands()
    assert len(made) == 8
    said = {}
    for command in made:
        words = [*shlex.split(command), *(["bash"] if command == "--show-completion" else [])]
        done = CliRunner().invoke(app, words, prog_name="tag2mask")
        assert done.exit_code == 0, f"{command}\n{done.output}"
        said[command] = done.stdout
    assert any("--truth-values 255=cat" in command and "on 1 images" in output for command, output in said.items())
    assert (photos / "runs/photos/report-images/all-1.html").is_file()
    assert not (photos / "photos-images").exists()
    assert (photos / "with-truth-images").is_dir()
    compared = json.loads((photos / "compare.json").read_text())
    assert [run["name"] for run in compared["runs"]] == ["photos", "sharper", "third"]
    for key in re.findall(r"`(\w+)`", PAGE[PAGE.index("In the JSON") : PAGE.index("Figures are")]):
        assert key in {*compared, *compared["runs"][0], *compared["agreement"][0]}, key
    found = json.loads(said["doctor --json"])
    assert set(re.findall(r"`(\w+)`", PAGE[PAGE.index("The first is") : PAGE.index("the exit code")])) < {*found}
    assert "_TAG2MASK_COMPLETE=complete_bash" in said["--show-completion"]


def test_what_the_printed_completion_asks_for_is_answered() -> None:
    asked = {"_TAG2MASK_COMPLETE": "complete_bash", "COMP_WORDS": "tag2mask re", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], env=asked, prog_name="tag2mask")
    assert done.stdout.split() == ["report"]
    asked["COMP_WORDS"], asked["COMP_CWORD"] = "tag2mask eval --ou", "2"
    assert CliRunner().invoke(app, [], env=asked, prog_name="tag2mask").stdout.split() == ["--out"]


def test_doctor_says_the_same_to_people_and_to_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tag2mask.stages import doctor as stage

    found = stage.doctor()
    told = found.as_dict()
    lines = "\n".join(found.lines())
    assert json.loads(json.dumps(told)) == json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert lines == CliRunner().invoke(app, ["doctor"]).stdout.rstrip("\n")
    assert all(f"  {name} {version}" in lines for name, version in told["packages"].items())
    assert f"device: {told['device']['name']} ({told['device']['threads']} threads)" in lines
    monkeypatch.setattr(stage, "_PACKAGES", ("torch", "no-such-package"))
    broken = CliRunner().invoke(app, ["doctor", "--json"])
    assert broken.exit_code == 1
    told = json.loads(broken.stdout)
    assert (told["healthy"], told["packages"]["no-such-package"], told["device"]) == (False, None, None)
    assert "no-such-package: missing; run: pip install no-such-package" in CliRunner().invoke(app, ["doctor"]).stdout
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr("tag2mask.models.embedded.WEIGHTS", tmp_path)
        lost = CliRunner().invoke(app, ["doctor"]).stdout
        assert "storybook-clip: missing; install tag2mask again" in lost
        done = CliRunner().invoke(app, ["doctor", "--json"])
        told = json.loads(done.stdout)
        assert (told["weights"]["storybook-clip"], told["healthy"], done.exit_code) == (False, False, 1)
    assert "storybook-clip, " in lines
    monkeypatch.setattr(stage, "broken_torchvision", lambda: "it is broken")
    broken = CliRunner().invoke(app, ["doctor"])
    assert (broken.exit_code, "PROBLEM: it is broken\ndevice: " in broken.stdout) == (1, True)
