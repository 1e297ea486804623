"""IRN and PSA as methods: their fit, their faults, the command line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from methods.cases import FITS, random_classifier
from methods.refiner_cases import item_of, make, pixels_of
from methods.test_conformance import learned
from methods.toys import CLASSES, TrainingFree, make_data
from run_folders import artefacts
from tag2mask.cli import app
from tag2mask.config import LabelConfig, RefineConfig
from tag2mask.data import read_dataset
from tag2mask.methods import make_method
from tag2mask.methods.fitting.affinity import PriorMaps, decision
from tag2mask.ops.cam_fusion import cell_means
from tag2mask.ops.masks import class_probabilities
from tag2mask.run.folder import Run
from tag2mask.run.settings import plain
from tag2mask.stages.label import label
from tag2mask.stages.recipe import Recipe, Refine
from tag2mask.stages.refine import label_refined
from tag2mask.types import Constant, Item, MaskRule, Own, Power, Prior, Scores, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = ("irn", "psa")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    data = make_data(folder / "images", count=5)
    label(data, TrainingFree(CLASSES, TrainingFree.Options()), folder / "run", progress=False)
    return data, Run.open(folder / "run")


def fitted(name, seeds, folder, **options):
    data, prior = seeds
    method = make(name, **options)
    with Run.create(folder, {"method": name}) as run:
        method.fit(data, run.checkpoints, prior)
    return method, run


# --- the earlier run's maps ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Constant(0.15), Constant(0.4), Power(1.0), Power(2.5), Own()])
def test_maps_decide_at_the_papers_threshold_whatever_the_rule(rule):
    rng = np.random.default_rng(0)
    own = torch.from_numpy(rng.random((4, 5), dtype=np.float32)) if isinstance(rule, Own) else None
    scores = Scores(torch.tensor([2]), torch.from_numpy(rng.random((1, 4, 5), dtype=np.float32)), (4, 5), own)
    before = class_probabilities(scores, MaskRule(background=rule)).argmax(0)
    read = PriorMaps(MaskRule(background=rule)).read(scores, scores.tags, (4, 5))
    assert torch.equal((read[0] > 0.15).long(), before)
    assert 0 < before.sum() < before.numel()
    assert torch.equal(PriorMaps(MaskRule(background=rule), None).read(scores, scores.tags, (4, 5)) > 0, read > 0)


def test_classifier_cams_are_taken_as_they_are():
    assert PriorMaps(MaskRule(background=Constant(0.15))).exponent == pytest.approx(1)
    assert decision(Power(1)) == pytest.approx(0.5)


def test_a_reader_survives_run_yaml():
    for rule in (Constant(0.2), Power(3.0), Own()):
        reader = PriorMaps(MaskRule(background=rule, normalise="image"))
        assert PriorMaps.from_plain(plain(reader.rule), 0.15, "x") == reader
    with pytest.raises(UserError, match="does not say how"):
        PriorMaps.from_plain({"background": "none"}, 0.15, "x")


def test_cells_that_reach_over_the_side_repeat_it():
    maps = torch.arange(30.0).view(1, 5, 6)
    whole = np.pad(maps.numpy(), ((0, 0), (0, 3), (0, 2)), mode="edge")
    np.testing.assert_allclose(cell_means(maps, 4).numpy(), whole.reshape(1, 2, 4, 2, 4).mean((2, 4)), rtol=1e-6)


@pytest.mark.parametrize(("name", "idle"), [("irn", {"beta": 3, "walk_radius": 3}), ("psa", {"beta": 3})])
def test_options_of_a_walk_that_takes_no_step_are_refused(name, idle):
    with pytest.raises(UserError, match=f"{name}: {', '.join(idle)}: no effect with walk_steps=0"):
        make(name, walk_steps=0, **idle)
    make(name, walk_steps=0)
    make(name, walk_steps=1, **idle)


# --- the fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_a_killed_fit_ends_in_the_same_bits(name, seeds, tmp_path, monkeypatch):
    from tag2mask.methods.fitting import affinity_training

    _, whole = fitted(name, seeds, tmp_path / "whole", steps=5)
    monkeypatch.setattr("tag2mask.methods.fitting.settings.SAVE_STEPS", 2)
    kind = {"irn": affinity_training.IRNTraining, "psa": affinity_training.PSATraining}[name]
    step = kind.training_step

    def dies(self, batch, index):
        if self.global_step == 3:
            raise RuntimeError("killed")
        return step(self, batch, index)

    monkeypatch.setattr(kind, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        fitted(name, seeds, tmp_path / "killed", steps=5)
    assert (tmp_path / "killed/checkpoints/last.ckpt").exists()
    monkeypatch.setattr(kind, "training_step", step)
    _, resumed = fitted(name, seeds, tmp_path / "killed", steps=5)
    file = "checkpoints/refiner.safetensors"
    assert (resumed.path / file).read_bytes() == (whole.path / file).read_bytes()


@pytest.mark.parametrize("name", BOTH)
def test_training_changes_what_it_should(name, seeds, tmp_path):
    method, _ = fitted(name, seeds, tmp_path / "run")
    new = make(name)
    if name == "irn":
        learned, before = method.net, new.net
        assert method.net.displacement.mean_shift.running_mean.abs().sum() > 0
        assert all(not p.requires_grad for p in method.backbone.parameters())
    else:
        learned, before = method.net, new.net
        first = "backbone.conv1.weight"
        assert torch.equal(learned.state_dict()[first], before.state_dict()[first])
    moved = {k for k, v in learned.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert any("edge" in key or "mix" in key for key in moved)
    assert not any("bn" in key for key in moved)


def test_the_mean_shift_is_that_of_the_training_images(seeds, tmp_path):
    """All five images, cut or padded to the crop; two batches of two, and the fifth left out."""
    data, _ = seeds
    method, _ = fitted("irn", seeds, tmp_path / "run", crop=36)
    means = []
    for start in (0, 2):
        images = []
        for sample in data.samples[start : start + 2]:
            from tag2mask.data.image import read_image

            cut = torch.zeros(1, 3, 36, 36)
            pixels = pixels_of(torch.from_numpy(read_image(sample.image)).permute(2, 0, 1))[..., :36, :36]
            cut[..., : pixels.shape[2], : pixels.shape[3]] = pixels
            images.append(cut)
        with torch.no_grad():
            method.net.train()
            _, displacement = method.net(method.backbone.features(torch.cat(images)))
            method.net.eval()
        means.append(displacement.mean((0, 2, 3)))
    torch.testing.assert_close(method.net.displacement.mean_shift.running_mean, torch.stack(means).mean(0))


@pytest.mark.parametrize("name", BOTH)
def test_a_batch_without_a_pair_has_no_loss_and_moves_nothing(name):
    from tag2mask.methods.fitting.affinity_training import IRNTraining, PSATraining
    from tag2mask.methods.fitting.settings import FitSettings

    method = make(name)
    settings = FitSettings(steps=2, batch=2, lr=0.1, weight_decay=1e-4)
    if name == "irn":
        module = IRNTraining(method.net, method.backbone, settings, 5, 1.0)
    else:
        module = PSATraining(method.net, settings, 5)
    module.log_dict = lambda *_: None
    cell = 4 if name == "irn" else 8
    labels = torch.full((2, 96 // cell, 96 // cell), 255, dtype=torch.uint8)
    loss = module.training_step((torch.rand(2, 3, 96, 96) * 255, labels), 0)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.eq(0).all() for p in module.parameters())


# --- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_what_it_cannot_learn_from_is_said(name, seeds, tmp_path):
    data, prior = seeds
    with pytest.raises(UserError, match="give its folder as the prior"):
        make(name).fit(data, tmp_path)
    blind = Run(prior.path, {**prior.settings, "keep_scores": False}, prior.noted)
    with pytest.raises(UserError, match="without score maps"):
        make(name).fit(data, tmp_path, blind)
    untagged = replace(data, samples=[replace(sample, tags=None) for sample in data.samples])
    with pytest.raises(UserError, match="none of the 5 images"):
        make(name).fit(untagged, tmp_path, prior)
    with pytest.raises(UserError, match="nothing is fitted there yet"):
        make(name).load(tmp_path / "empty", prior)
    with pytest.raises(UserError, match="not ready"):
        make(name).scores([item_of(0)])
    with pytest.raises(UserError, match="too small to compare"):
        make(name, crop=32)


@pytest.mark.parametrize("name", BOTH)
def test_one_image_without_maps_is_left_out_and_said(name, seeds, tmp_path):
    data, prior = seeds
    more = make_data(tmp_path / "more", count=1, sizes=[(30, 30)], seed=9).samples[0]
    nothing = replace(data.samples[0], id="part0/none", tags=())
    larger = replace(data, samples=[*data.samples, replace(more, id="new"), nothing])
    with pytest.warns(UserWarning, match="1 images are not learned from: new"):
        fitted(name, (larger, prior), tmp_path / "run")
    kept = {path.stem for path in (tmp_path / "run/checkpoints/labels").rglob("*.npz")}
    assert "none" in kept
    assert "new" not in kept


@pytest.mark.parametrize("name", BOTH)
def test_an_image_it_cannot_refine_is_named(name, seeds, tmp_path):
    method, _ = fitted(name, seeds, tmp_path / "run")
    item = item_of(0)
    with pytest.raises(UserError, match="at least one of"):
        method.scores([replace(item, tags=torch.tensor([], dtype=torch.int64))])
    with pytest.raises(UserError, match="has maps of tags"):
        method.scores([replace(item, tags=torch.tensor([2]))])
    with pytest.raises(UserError, match="saw x at"):
        method.scores([replace(item, image=item.image[:, :-1])])
    with pytest.raises(UserError, match="without an earlier run"):
        method.scores([replace(item, prior=None)])


@pytest.mark.parametrize("name", BOTH)
def test_a_large_image_is_worked_on_small_and_its_maps_still_lie_right(name, seeds, tmp_path):
    method, _ = fitted(name, seeds, tmp_path / "run", max_pixels=1500)
    size = (100, 140)
    maps = torch.zeros(2, *size)
    maps[0, :50], maps[1, 50:] = 1, 1
    scores = Scores(torch.tensor([1, 3]), maps, size)
    item = Item("x", torch.full((3, *size), 90, dtype=torch.uint8), scores.tags, Prior(lambda: scores, lambda: None))
    (found,) = method.scores([item])
    assert found.size == size
    assert tuple(found.maps.shape[1:]) == method.grid(size)
    full = class_probabilities(replace(found, maps=found.initial), MaskRule())[1:]
    assert (full - maps).abs().mean() < 0.1


# --- both ways to the same bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_the_command_line_and_python_give_the_same_bytes(name, seeds, tmp_path):
    data, _ = seeds
    (tmp_path / "classes.yaml").write_text(
        yaml.safe_dump({"id": "toy", "names": list(CLASSES.names), "palette": [list(c) for c in CLASSES.palette]})
    )
    rows = [f"{s.image.relative_to(data.root)},{';'.join(CLASSES.names[t] for t in s.tags)}" for s in data]
    (data.root / "tags.csv").write_text("\n".join(["image,labels", *rows]))
    sets = [f"{key}={value}" for key, value in {**FITS[name], "weights": random_classifier().name}.items()]
    common = [str(data.root), "--classes", str(tmp_path / "classes.yaml"), "--device", "cpu"]
    seeds_of = ["-m", "classifier-cam", "--set", f"weights={random_classifier().name}"]
    refine = [part for option in sets for part in ("--refine-set", option)]
    own = [part for option in sets for part in ("--set", option)]

    def tag2mask(*words):
        done = CliRunner().invoke(app, ["label", *common, *words])
        assert done.exit_code == 0, done.output

    tag2mask(*seeds_of, "--refine", name, *refine, "-o", str(tmp_path / "cli"))
    tag2mask("-m", name, "--prior", str(tmp_path / "cli/seeds"), *own, "-o", str(tmp_path / "two"))
    read = read_dataset(data.root, classes=str(tmp_path / "classes.yaml"))
    known = {"weights": random_classifier().name, "device": "cpu"}
    label(read, make_method("classifier-cam", read.classes, **known), tmp_path / "py/seeds", progress=False)
    method = make_method(name, read.classes, **FITS[name], **known)
    label(read, method, tmp_path / "py", prior=tmp_path / "py/seeds", progress=False)
    wanted = artefacts(tmp_path / "py")
    assert len(wanted) == 3 * len(data)
    for other in ("cli", "two"):
        assert artefacts(tmp_path / other) == wanted
        assert learned(Run.open(tmp_path / other)) == learned(Run.open(tmp_path / "py"))
    assert Run.open(tmp_path / "cli").scores(read[0].id).initial is not None


def test_seeds_and_refined_run_go_on_and_may_be_split(seeds, tmp_path):
    data, _ = seeds
    options = {**FITS["irn"], "weights": random_classifier().name}

    def recipe():
        seeder = TrainingFree(CLASSES, TrainingFree.Options())
        refiner = make("irn")
        config = LabelConfig(method="clip-es", refine=RefineConfig(options=options))
        return Recipe(data, seeder, seeder.mask_rule, config, Refine(refiner, refiner.mask_rule))

    first, second = label_refined(recipe(), tmp_path / "whole", progress=False)
    assert (first.done, second.done) == (5, 5)
    again = label_refined(recipe(), tmp_path / "whole", progress=False)
    assert [(summary.done, summary.skipped) for summary in again] == [(0, 5), (0, 5)]
    with pytest.raises(UserError, match="--fit-only"):
        label_refined(recipe(), tmp_path / "parts", shard=(0, 2), progress=False)
    label_refined(recipe(), tmp_path / "parts", fit_only=True, progress=False)
    for part in range(2):
        label_refined(recipe(), tmp_path / "parts", shard=(part, 2), progress=False)
    assert artefacts(tmp_path / "parts") == artefacts(tmp_path / "whole")
    with pytest.raises(UserError, match="name a refiner"):
        label_refined(replace(recipe(), refine=None), tmp_path / "none", progress=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--refine", "clip-es"], "refines nothing"),
        (["--refine-set", "steps=3"], "without --refine; name a method"),
        (["--refine", "irn", "--refine-set", "stps=3"], "did you mean 'steps'?"),
        (["--refine", "irn", "--refine-set", "masks.refiner=irm"], "did you mean 'irn'?"),
        (["--refine", "irn", "--refine-set", "steps"], "expected NAME=VALUE"),
        (["--refine", "irn", "--no-scores"], "in two commands"),
    ],
)
def test_wrong_words_about_refining_are_named(words, message, seeds, tmp_path):
    """Before any work is done."""
    data, _ = seeds
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump({"id": "toy", "names": list(CLASSES.names)}))
    weights = random_classifier().name
    more = ["-m", "classifier-cam", "--set", f"weights={weights}", "--classes", str(tmp_path / "classes.yaml")]
    done = CliRunner().invoke(app, ["label", str(data.root), *more, *words, "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert message in done.output
    assert not (tmp_path / "out").exists()
