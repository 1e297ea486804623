"""Untagged classes that win, from the command to masks, figures and the next run; earlier names of settings."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from methods.toys import CLASSES, Refiner, TinyData, TrainingFree, make_data, pooled
from stages.networks import tiny_network
from tag2mask.cli import app
from tag2mask.config import parse_config
from tag2mask.data.image import read_image
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.methods import METHODS
from tag2mask.methods.fitting.affinity import PriorMaps
from tag2mask.ops.masks import best_others, full_maps, pseudo_mask
from tag2mask.run.folder import Run
from tag2mask.run.renamed import as_before, as_today
from tag2mask.run.settings import plain
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.label import label
from tag2mask.stages.predict import predict
from tag2mask.types import IGNORE, Constant, MaskRule, Own, Power, UserError

KEPT = MaskRule(background=Constant(0.3), others="keep")
CHOICES = ["never", "ignore", "keep"]


class SeesAll(TrainingFree):
    """The red, green or blue of each cell, and which of the untagged ones is strongest."""

    scores_others = True

    def scores(self, items):
        found = zip(super().scores(items), items, strict=True)
        return [replace(each, others=best_others(pooled(item.image), item.tags)) for each, item in found]


class Promises(TrainingFree):
    """Says that it scores untagged classes, and does not."""

    scores_others = True


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path) -> TinyData:
    """Every second image is tagged with a class that is not the one in it; the last is known to hold none."""
    found = make_data(tmp_path / "images", 6)
    samples = [replace(each, tags=tuple(t % 3 + 1 for t in each.tags)) for each in found.samples[::2]]
    found.samples = [*samples, found.samples[1], replace(found.samples[3], tags=())]
    return found


def quiet(data, out, kind=SeesAll, **more):
    return label(data, kind(data.classes, kind.Options()), out, progress=False, **more)


def image_of(sample):
    return torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)


def with_truth(data):
    """Every pixel is the strongest colour's: no background."""
    found = []
    for sample in data:
        mask = (image_of(sample).argmax(0) + 1).byte().numpy()
        found.append(replace(sample, truth=partial(np.copy, mask)))
    return TinyData(found, data.root)


def masks_of(folder, data):
    run = Run.open(folder)
    return {sample.id: read_mask(run.mask_path(sample.id)) for sample in data}


# --- label and what reads its scores -----------------------------------------------------------------------------


def test_label_makes_of_untagged_classes_what_the_rule_says(data, tmp_path):
    found = {}
    for others in CHOICES:
        assert quiet(data, tmp_path / others, rule=replace(KEPT, others=others)).done == len(data)
        found[others] = masks_of(tmp_path / others, data)
    for sample in data:
        known = [0, *sample.tags]
        never, ignore, keep = (found[others][sample.id] for others in CHOICES)
        assert set(np.unique(never)) <= set(known)
        assert (ignore == np.where(np.isin(keep, known), keep, IGNORE)).all()
        if not sample.tags:
            assert not keep.any()
    assert any((mask == IGNORE).mean() > 0.1 for mask in found["ignore"].values())
    assert Run.open(tmp_path / "ignore").settings["mask_rule"]["others"] == "ignore"


@pytest.mark.parametrize("others", ["ignore", "keep"])
@pytest.mark.parametrize("background", [Constant(0.3), Power(1.5)])
def test_masks_can_be_made_again_from_the_stored_scores(data, tmp_path, others, background):
    """Which is what the sweep does: with the run's own rule it finds what the masks score."""
    rule = MaskRule(background=background, others=others)
    quiet(data, tmp_path / "run", rule=rule)
    run = Run.open(tmp_path / "run")
    for sample in data:
        mask, _ = pseudo_mask(run.scores(sample.id), image_of(sample), rule)
        assert (mask.numpy() != read_mask(run.mask_path(sample.id))).mean() < 0.01  # stored as float16
    truth = with_truth(data)
    result = evaluate(run, truth, check_truth=False, progress=False)
    curve = next(each for each in result.curves if each.source == "maps")
    assert curve.at_used == pytest.approx(result.miou, abs=0.01)
    assert curve.others == others
    before = next(each for each in result.curves if each.source == "initial")
    assert before.others == "never"
    stored = json.loads((run.path / "metrics.json").read_text())["thresholds"]
    assert (stored["maps"]["others"], stored["initial"]["others"]) == (others, "never")
    word = {"ignore": "ignored", "keep": "kept"}[others]
    assert f"refined maps, without refiner, untagged classes {word}: mIoU" in result.text()
    assert "initial CAM, without refiner: mIoU" in result.text()
    if others == "keep":  # ignored or wrong, a missed pixel is missed
        quiet(data, tmp_path / "never", rule=MaskRule(background=background))
        assert (
            evaluate(tmp_path / "never", truth, check_truth=False, progress=False).curves[0].at_used < curve.at_used
        )


def test_the_methods_own_background_is_swept_with_untagged_classes(data, tmp_path):
    class Scored(SeesAll):
        def scores(self, items):
            return [replace(each, background=torch.full(each.maps.shape[1:], 0.3)) for each in super().scores(items)]

    quiet(data, tmp_path / "run", Scored, rule=replace(KEPT, background=Own()))
    truth = with_truth(data)
    curve = evaluate(tmp_path / "run", truth, check_truth=False, progress=False).curves[0]
    assert curve.at_used == pytest.approx(dict(curve.points)[Constant(0.3)], abs=1e-3)


def test_a_method_that_scores_the_tags_alone_is_refused_before_any_work(data, tmp_path):
    for others in ("ignore", "keep"):
        with pytest.raises(UserError, match=rf"scores the tags alone.*leave out others={others}"):
            quiet(data, tmp_path / "run", TrainingFree, rule=MaskRule(others=others))
        assert not (tmp_path / "run").exists()
    summary = quiet(data, tmp_path / "run", Promises, rule=MaskRule(others="ignore"))
    assert (summary.done, summary.failed) == (1, len(data) - 1)  # the image of no tags needs no scores
    assert "no score of untagged classes" in summary.errors[0][1]


def test_untagged_scores_of_another_shape_are_refused(data, tmp_path):
    class Wrong(SeesAll):
        def scores(self, items):
            found = super().scores(items)
            return [replace(each, others=replace(each.others, values=each.others.values[1:])) for each in found]

    summary = quiet(data, tmp_path / "run", Wrong)
    assert summary.failed >= len(data) - 1
    assert "untagged scores" in summary.errors[0][1]


@pytest.mark.parametrize("normalise", ["none", "image"])
def test_a_next_run_reads_the_maps_as_this_one_makes_masks_of_them(data, tmp_path, normalise):
    """With untagged classes in the normalisation, of which it gets no map."""
    rule = replace(KEPT, normalise=normalise)
    quiet(data, tmp_path / "run", rule=rule)
    run = Run.open(tmp_path / "run")
    for sample in data:
        scores = run.scores(sample.id)
        read = PriorMaps.of(run, None).read(scores, scores.tags, scores.size)
        wanted = full_maps(scores, rule)[: len(scores.tags)]
        torch.testing.assert_close(read, wanted.clamp(0, 1))
    label(data, Refiner(CLASSES), tmp_path / "next", prior=run, progress=False)
    assert len(Run.open(tmp_path / "next").ids()) == len(data)


def test_the_commands_say_it_in_the_same_words(data, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "sees-all", f"{__name__}:SeesAll")
    monkeypatch.setitem(METHODS, "toy", "methods.toys:TrainingFree")
    (data.root / "classes.yaml").write_text(yaml.safe_dump({"id": "toy", "names": list(CLASSES.names)}))
    lines = [
        f"{sample.id}.png,{' '.join(CLASSES.names[tag] for tag in sample.tags)}" for sample in data if sample.tags
    ]
    (data.root / "tags.csv").write_text("\n".join(["image,tags", *lines]) + "\n")

    def call(*more, method="sees-all"):
        return CliRunner().invoke(app, ["label", str(data.root), "-m", method, "-o", str(tmp_path / "run"), *more])

    done = call("--others", "ignore", "--mask-refiner", "irn", "--mask-refiner-on", "labels")
    assert done.exit_code == 0, done.output
    rule = Run.open(tmp_path / "run").settings["mask_rule"]
    assert (rule["others"], rule["refiner"], rule["refiner_on"]) == ("ignore", "irn", "labels")
    again = call("--others", "ignore", "--crf", "irn", "--mask-refiner-on", "labels")  # its earlier name
    assert again.exit_code == 0, again.output
    assert "5 were finished before" in again.output or "4 were finished before" in again.output
    for words, message in [
        (["--others", "drop"], "masks.others = 'drop'"),
        (["--mask-refiner-on", "maps"], "masks.refiner_on = 'maps'"),
        (["--mask-refiner-on", "labels"], "there is no refiner; name one"),
        (["--mask-refiner", "irm"], "did you mean 'irn'?"),
    ]:
        done = call(*words, "-o", str(tmp_path / "other"))
        assert done.exit_code == 1, words
        assert message in done.output
    refused = call("--others", "keep", "-o", str(tmp_path / "other"), method="toy")
    assert refused.exit_code == 1
    assert "(--others)" in refused.output
    assert not (tmp_path / "other").exists()


# --- predict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refiner", [None, "deeplab"])
def test_predict_with_tags_has_the_same_three_choices(data, tmp_path, refiner):
    """Its network scores all classes: what wins there is kept, or ignored where it is not among the tags."""
    network = tiny_network(tmp_path / "net", CLASSES)
    data.samples[0] = replace(data.samples[0], tags=None)
    how = {"refiner": refiner, "device": "cpu", "progress": False}
    predict(network, data, tmp_path / "bare", **how)
    bare, found = masks_of(tmp_path / "bare", data), {}
    for others in CHOICES:
        predict(network, data, tmp_path / others, use_tags=True, others=others, **how)
        found[others] = masks_of(tmp_path / others, data)
    for sample in data:
        never, ignore, keep = (found[others][sample.id] for others in CHOICES)
        if sample.tags is None:
            assert (never == bare[sample.id]).all()
            assert (ignore == bare[sample.id]).all()
            assert (keep == bare[sample.id]).all()
        elif not sample.tags:
            assert not never.any()
            assert not ignore.any()
            assert not keep.any()
        else:
            assert (keep == bare[sample.id]).all()
            assert (ignore == np.where(np.isin(keep, [0, *sample.tags]), keep, IGNORE)).all()
            assert set(np.unique(never)) <= {0, *sample.tags}
            sure = [
                read_confidence(Run.open(tmp_path / name).confidence_path(sample.id)) for name in ("bare", "ignore")
            ]
            assert (sure[0] == sure[1]).all()
    assert any((mask == IGNORE).any() for mask in found["ignore"].values())
    assert "others" not in Run.open(tmp_path / "never").settings  # as before there was a choice
    assert Run.open(tmp_path / "ignore").settings["others"] == "ignore"
    with pytest.raises(UserError, match="give --use-tags too"):
        predict(network, data, tmp_path / "x", others="ignore", **how)
    with pytest.raises(UserError, match="others is 'ignore' there and absent now"):
        predict(network, data, tmp_path / "ignore", use_tags=True, **how)


# --- settings of earlier names -----------------------------------------------------------------------------------


def made_before(folder):
    """Give a run.yaml the names that it had before, and nothing that came later."""
    path = folder / "run.yaml"
    document = yaml.safe_load(path.read_text())
    document["settings"] = as_before(document["settings"])
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return document["settings"]


def test_a_run_of_before_is_read_resumed_and_refined(data, tmp_path):
    rule = MaskRule(background=Constant(0.3), refiner="irn")
    quiet(data, tmp_path / "run", rule=rule)
    label(data, Refiner(CLASSES), tmp_path / "next", prior=tmp_path / "run", progress=False)
    digest = Run.open(tmp_path / "run").digest
    old = made_before(tmp_path / "run")
    assert old["mask_rule"]["crf"] == "irn"
    assert old["crf_max_pixels"] == 2_000_000
    assert not {"refiner", "refiner_on", "others", "refiner_image"} & old["mask_rule"].keys()
    assert Run.open(tmp_path / "run").settings["mask_rule"] == plain(rule)
    assert Run.open(tmp_path / "run").digest == digest
    made_before(tmp_path / "next")
    assert quiet(data, tmp_path / "run", rule=rule).skipped == len(data)
    again = label(data, Refiner(CLASSES), tmp_path / "next", prior=tmp_path / "run", progress=False)
    assert (again.skipped, again.done) == (len(data), 0)
    with pytest.raises(UserError, match=r"mask_rule\.refiner is 'irn' there and 'psa' now"):
        quiet(data, tmp_path / "run", rule=replace(rule, refiner="psa"))
    quiet(data, tmp_path / "other", rule=replace(rule, others="ignore"))
    assert Run.open(tmp_path / "other").digest != digest
    quiet(data, tmp_path / "labels", rule=replace(rule, refiner_on="labels"))
    assert Run.open(tmp_path / "labels").digest != digest


def test_a_prediction_of_before_is_resumed(data, tmp_path):
    network = tiny_network(tmp_path / "net", CLASSES)
    for _ in range(2):
        summary = predict(network, data, tmp_path / "run", refiner="deeplab", device="cpu", progress=False)
        assert made_before(tmp_path / "run")["crf"] == "deeplab"
    assert summary.skipped == len(data)


def test_earlier_names_are_those_of_today():
    now = plain({"mask_rule": MaskRule(refiner="psa", others="keep"), "refine_max_pixels": 5, "options": {"crf": 1}})
    assert as_today(as_before(now)) == now
    assert as_today(now) == now
    assert as_today({"mask_rule": None}) == {"mask_rule": None}


@pytest.mark.parametrize("masks", [{"crf": "psa"}, {"refiner": "psa"}])
def test_recipes_may_say_crf(masks):
    assert parse_config({"masks": masks}).masks.refiner == "psa"
    assert parse_config({"refine": {"method": "irn", "masks": masks}}).refine.masks.refiner == "psa"


def test_both_names_at_once_are_refused():
    with pytest.raises(UserError, match="crf is an earlier name of refiner, and both are given; leave out crf"):
        parse_config({"masks": {"crf": "psa", "refiner": "irn"}})
