"""Methods that learn first: in the run itself, or in another one; killed, shared, damaged."""

from __future__ import annotations

import csv
import json

import pytest
from typer.testing import CliRunner

from methods import toys
from methods.toys import CLASSES, TOYS, FittedOnTags, TrainingFree, make_data
from tag2mask.cli import app
from tag2mask.methods import METHODS
from tag2mask.run.folder import Run
from tag2mask.run.lock import Lock
from tag2mask.run.progress import progress, silent
from tag2mask.stages.label import label
from tag2mask.stages.machinery.fit import FITTED, fit, fitted_digest
from tag2mask.types import UserError


def toy():
    return FittedOnTags(CLASSES, FittedOnTags.Options())


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "images", count=9)


def quiet(data, out, method=None, **more):
    return label(data, method or toy(), out, progress=False, **more)


class Killed(BaseException):
    """As good as kill -9: nothing of this package cleans up after it."""


def test_killed_at_any_write_it_ends_the_same(data, tmp_path, monkeypatch):
    quiet(data, tmp_path / "whole", fit_only=True)
    expected = fitted_digest(Run.open(tmp_path / "whole"))
    keep = toys.write_atomic
    for before in (True, False):
        for at in range(3):  # 9 images, one checkpoint for 4
            count = iter(range(100))

            def write(path, content, count=count, at=at, before=before):
                this = next(count)
                if this == at and before:
                    raise Killed
                keep(path, content)
                if this == at:
                    raise Killed

            monkeypatch.setattr(toys, "write_atomic", write)
            out = tmp_path / f"killed-{before}-{at}"
            with pytest.raises(Killed):
                quiet(data, out, fit_only=True)
            assert fitted_digest(Run.open(out)) is None
            monkeypatch.setattr(toys, "write_atomic", keep)
            summary = quiet(data, out)
            assert (summary.done, summary.complete) == (9, True)
            assert fitted_digest(Run.open(out)) == expected


def test_a_finished_fit_is_not_done_again(data, tmp_path, monkeypatch):
    quiet(data, tmp_path / "run", fit_only=True)
    monkeypatch.setattr(FittedOnTags, "fit", lambda *_: pytest.fail("fitted again"))
    assert quiet(data, tmp_path / "run").done == 9
    assert quiet(data, tmp_path / "run", overwrite=True).done == 9  # the same settings: what was learned stays


def test_shards_take_up_a_finished_fit_and_refuse_an_unfinished_one(data, tmp_path):
    with pytest.raises(UserError, match=r"--fit-only --shard 0/1"):
        quiet(data, tmp_path / "run", shard=(0, 2))
    assert quiet(data, tmp_path / "run", fit_only=True).done == 0
    assert sum(quiet(data, tmp_path / "run", shard=(i, 2)).done for i in (0, 1)) == 9
    quiet(data, tmp_path / "one")
    for path in (tmp_path / "one" / "masks").rglob("*.png"):
        other = tmp_path / "run" / path.relative_to(tmp_path / "one")
        assert other.read_bytes() == path.read_bytes()


def test_two_processes_do_not_fit_at_once(data, tmp_path):
    with Run.create(tmp_path / "run", {"method": "toy"}) as run:
        run.checkpoints.mkdir()
        lock = Lock(run.checkpoints / ".fit.lock", "the fit")
        with pytest.raises(UserError, match="is being written by"):
            fit(toy(), data, run, progress=False)
        lock.release()
        fit(toy(), data, run, progress=False)


def test_the_truth_is_out_of_reach(data, tmp_path):
    class Curious(FittedOnTags):
        def fit(self, data, folder, earlier=None):
            assert all(sample.truth is None for sample in data)
            assert data[3].truth is None
            assert (len(data), data.classes, data.root) == (9, CLASSES, data.root)
            super().fit(data, folder, earlier)

    assert quiet(data, tmp_path / "run", Curious(CLASSES)).done == 9


def test_changed_or_lost_weights_are_named(data, tmp_path):
    quiet(data, tmp_path / "run", fit_only=True)
    weights = tmp_path / "run" / "checkpoints" / "colours.npz"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"?")
    with pytest.raises(UserError, match=r"colours\.npz; restore a copy"):
        quiet(data, tmp_path / "run")
    weights.unlink()
    with pytest.raises(UserError, match=r"colours\.npz"):
        quiet(data, tmp_path / "other", fitted=tmp_path / "run")
    weights.write_bytes(whole)
    (tmp_path / "run" / "checkpoints" / FITTED).write_text("[")
    with pytest.raises(UserError, match="is damaged"):
        quiet(data, tmp_path / "run")


def test_a_fit_of_another_run_must_suit(data, tmp_path):
    quiet(data, tmp_path / "run", fit_only=True)
    quiet(data, tmp_path / "free", TrainingFree(CLASSES, TrainingFree.Options()))
    with pytest.raises(UserError, match="learns nothing"):
        quiet(data, tmp_path / "x", TrainingFree(CLASSES, TrainingFree.Options()), fitted=tmp_path / "run")
    with pytest.raises(UserError, match="nothing to fit here"):
        quiet(data, tmp_path / "x", fitted=tmp_path / "run", fit_only=True)
    with pytest.raises(UserError, match=r"is a run of .*, not of"):
        quiet(data, tmp_path / "x", fitted=tmp_path / "free")
    with pytest.raises(UserError, match="no run of tag2mask"):
        quiet(data, tmp_path / "x", fitted=tmp_path / "images")
    path = tmp_path / "run" / "run.yaml"
    path.write_text(path.read_text().replace("green", "grue"))
    with pytest.raises(UserError, match="other classes"):
        quiet(data, tmp_path / "x", fitted=tmp_path / "run")


def test_options_that_only_label_may_differ(data, tmp_path):
    class Tuned(FittedOnTags):
        class Options(toys.NoOptions):
            gain: float = 1.0
            look: int = 1

        label_options = ("look",)

    def tuned(**options):
        return Tuned(CLASSES, Tuned.Options(**options))

    quiet(data, tmp_path / "run", tuned(), fit_only=True)
    assert quiet(data, tmp_path / "a", tuned(look=2), fitted=tmp_path / "run").done == 9
    with pytest.raises(UserError, match=r"options\.gain is 1\.0 there and 2\.0 now"):
        quiet(data, tmp_path / "b", tuned(gain=2.0), fitted=tmp_path / "run")


def test_without_progress_nothing_is_shown(capsys):
    with silent(), progress(3, "inner") as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
    with progress(3, "inner") as bar:
        bar.advance()
    assert "inner: 1/3" in capsys.readouterr().err


def test_on_the_command_line(data, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "toy", f"{TOYS['toy-fitted-on-tags'].__module__}:FittedOnTags")
    with open(tmp_path / "images" / "tags.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels"])
        for sample in data:
            names = ";".join(CLASSES.names[tag] for tag in sample.tags)
            rows.writerow([sample.image.relative_to(tmp_path / "images").as_posix(), names])
    (tmp_path / "rgb.yaml").write_text("names: [red, green, blue]\n")

    def call(out, *more):
        words = ["label", tmp_path / "images", "-m", "toy", "--classes", tmp_path / "rgb.yaml", "-o", tmp_path / out]
        return CliRunner().invoke(app, [str(word) for word in [*words, *more]])

    refused = call("run", "--shard", "0/2")
    assert refused.exit_code == 1
    assert "--fit-only --shard 0/1" in refused.output
    first = call("run", "--fit-only")
    assert first.exit_code == 0, first.output
    assert "toy has learned" in first.output
    assert not (tmp_path / "run" / "masks").exists()
    assert call("run").exit_code == 0
    assert call("taken", "--fitted", tmp_path / "run").exit_code == 0
    taken = Run.open(tmp_path / "taken")
    (sha256,) = json.loads((tmp_path / "run" / "checkpoints" / FITTED).read_text()).values()
    assert taken.settings["fitted"]["sha256"] == sha256
    assert len(taken.ids()) == 9
