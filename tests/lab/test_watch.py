"""What is watched of a training, and that the best weights and their row agree whatever happens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from small_pretraining import TINY, few_scenes, pairs_of
from tag2mask.lab.contrastive import ContrastiveCLIP
from tag2mask.lab.towers import build_clip
from tag2mask.lab.watch import Watch, read_best, read_watch
from tag2mask.run.training import fit
from tag2mask.types import UserError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return few_scenes(tmp_path_factory.mktemp("cache"))


def watch_all(folder, figures, scenes, number=60):
    """A training of four steps that are watched one by one; what was kept, and the rows (step, scenes, figure)."""
    figures, kept = iter(figures), []
    path, best = folder / "watch.csv", folder / "watch.json"
    how = {"scenes": number, "by": "initial", "best": best, "keep": lambda _: kept.append(1)}
    watch = Watch(path, 1, lambda _: {"initial": next(figures)}, **how)
    recipe = replace(TINY, accumulate=1)
    module = ContrastiveCLIP(recipe, build_clip(recipe))
    fit(module, pairs_of(scenes), recipe.training(device="cpu"), folder, callbacks=[watch], show=False)
    rows = [(row["step"], row["scenes"], row["initial"]) for row in read_watch(path)]
    top = read_best(best)
    assert top in read_watch(path)
    return len(kept), rows, top


def test_watch_forgets_what_came_after_the_checkpoint(scenes, tmp_path):
    (tmp_path / "watch.csv").write_text("step,samples,scenes,initial\n1,8,60,1\n50,400,60,99\n")
    kept, rows, top = watch_all(tmp_path, [1.0, 3.0, 2.0, 9.0], scenes)
    assert rows == [(1, 60, 1), (2, 60, 3), (3, 60, 2), (4, 60, 9)]
    assert (kept, top["step"]) == (3, 4)


def test_the_best_weights_agree_with_the_rows_after_a_resumption(scenes, tmp_path):
    """Best at step 3, killed, gone on from the start; on a GPU, the second time is not as the first."""
    first = watch_all(tmp_path, [1.0, 3.0, 9.0, 5.0], scenes)
    assert (first[0], first[2]["step"]) == (3, 3)
    (tmp_path / "last.ckpt").unlink()
    kept, rows, top = watch_all(tmp_path, [1.0, 4.0, 8.0, 6.0], scenes)
    assert (kept, top) == (0, first[2])
    assert rows == [(1, 60, 1), (2, 60, 4), (3, 60, 9), (3, 60, 8), (4, 60, 6)]
    (tmp_path / "last.ckpt").unlink()
    kept, rows, top = watch_all(tmp_path, [1.0, 4.0, 9.5, 6.0], scenes)
    assert (kept, top["initial"]) == (1, 9.5)
    assert rows == [(1, 60, 1), (2, 60, 4), (3, 60, 9.5), (4, 60, 6)]


def watched(folder, scenes, measure, *, every, keep=lambda _: None, **changes):
    """The rows of a training with one watch."""
    recipe = replace(TINY, **changes)
    path, best = folder / "watch.csv", folder / "watch.json"
    watch = Watch(path, every, measure, scenes=3, by="initial", best=best, keep=keep)
    module = ContrastiveCLIP(recipe, build_clip(recipe))
    fit(module, pairs_of(scenes), recipe.training(device="cpu"), folder, callbacks=[watch], show=False)
    return read_watch(path)


def test_a_step_is_measured_once_and_the_last_one_always(scenes, tmp_path):
    """Two batches a step, every third step of four; a third has no end in decimals, and is what it was when read."""
    rows = watched(tmp_path, scenes, lambda _: {"initial": 1 / 3}, every=3)
    assert [(row["step"], row["samples"]) for row in rows] == [(3, 48), (4, 64)]
    assert read_best(tmp_path / "watch.json") == rows[0]


def test_a_kill_while_weights_are_kept_leaves_no_row_of_others(scenes, tmp_path):
    class Killed(BaseException):
        pass

    def keep(_):
        if (tmp_path / "kept").exists():
            raise Killed
        (tmp_path / "kept").touch()

    figures = iter([1.0, 2.0])
    with pytest.raises(Killed):
        watched(tmp_path, scenes, lambda _: {"initial": next(figures)}, every=2, keep=keep)
    assert read_best(tmp_path / "watch.json") is None


def test_what_is_not_finite_is_not_measured(scenes, tmp_path):
    finite = []

    def measure(model):
        finite.append(all(bool(each.isfinite().all()) for each in model.parameters()))
        return {"initial": 1.0}

    with pytest.raises(UserError, match=r"at step 4 "):
        watched(tmp_path, scenes, measure, every=1, lr=1e30, accumulate=1)
    assert all(finite)
    assert len(finite) < 4


@pytest.mark.parametrize("text", ["step,initial\n1,much\n", "initial\n3\n", "step,initial\n1,2,3,4\n"])
def test_damaged_rows_are_named(tmp_path, text):
    (tmp_path / "watch.csv").write_text(text)
    with pytest.raises(UserError, match=r"watch.csv is damaged .*remove it"):
        read_watch(tmp_path / "watch.csv")
    assert read_watch(tmp_path / "none.csv") == []


@pytest.mark.parametrize("text", ["{", "[]", '{"step": 1}', '{"step": 1, "scenes": 3, "initial": NaN}'])
def test_a_damaged_best_is_named(tmp_path, text):
    (tmp_path / "watch.json").write_text(text)
    with pytest.raises(UserError, match=r"watch.json is damaged"):
        read_best(tmp_path / "watch.json")
    assert read_best(tmp_path / "none.json") is None


def test_columns_keep_their_order_when_the_best_row_alone_is_left(scenes, tmp_path):
    rows = watched(tmp_path, scenes, lambda _: {"initial": 1.0}, every=4)
    header = (tmp_path / "watch.csv").read_text().splitlines()[0]
    assert list(read_best(tmp_path / "watch.json")) == list(rows[0]) == header.split(",")


def test_another_number_of_scenes_is_not_compared(scenes, tmp_path):
    (tmp_path / "watch.json").write_text('{"step": 0, "samples": 0, "scenes": 3, "initial": 99}')
    kept, rows, top = watch_all(tmp_path, [1.0, 3.0, 2.0, 2.0], scenes)
    assert (kept, top["step"], rows[0]) == (2, 2, (0, 3, 99))
