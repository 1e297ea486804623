"""storybook-deit: what its targets are, the whole way of its training, and that MCTformer starts from it."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from torchmetrics.classification import MultilabelAveragePrecision
from transformers import ViTForImageClassification
from typer.testing import CliRunner

from small_pretraining import small_classifier
from tag2mask.cli import app
from tag2mask.lab import pretrain_deit as stage
from tag2mask.lab.cache import Rendered, render_cache
from tag2mask.lab.pretrain_deit import (
    DeitRecipe,
    check,
    deit_training,
    make_vit,
    pretrain_deit,
    soft_tags,
    tag_precision,
)
from tag2mask.lab.running import Running
from tag2mask.lab.train_classifier import TaggedPictures
from tag2mask.models.classifier import load_classifier, save_classifier
from tag2mask.models.mctformer_files import build_mctformer, read_start
from tag2mask.models.save import save_vit
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.run.sampling import Draw, Training
from tag2mask.run.training import fit
from tag2mask.storybook import CLASSES, draw_scene, scene_seed
from tag2mask.types import UserError

TINY = DeitRecipe(
    width=32, layers=2, heads=2, side=32, scenes=8, size=(32, 48), crop=(24, 32), batch=4, steps=3, warmup=1
)
QUIET = Running(device="cpu", progress=False)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_classifier(small_classifier(CLASSES[::-1]), folder, "")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return TaggedPictures.of(render_cache(tmp_path_factory.mktemp("s"), Rendered(8, (32, 48)), workers=1), CLASSES, 0)


@pytest.fixture(scope="module")
def trained(teacher, tmp_path_factory):
    folder, recipe = tmp_path_factory.mktemp("deit"), dataclasses.replace(TINY, teacher=str(teacher))
    assert pretrain_deit(folder, recipe, dataclasses.replace(QUIET, minutes=0), scenes=3, workers=1) is None
    assert not (folder / "model.safetensors").exists()
    return folder, recipe, pretrain_deit(folder, recipe, QUIET, scenes=3, workers=1)


def test_targets_are_tags_and_the_teachers_answers(teacher) -> None:
    classifier, _ = load_classifier(teacher)
    pixels = torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    tags = (torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    with torch.no_grad():
        said = classifier(pixels).sigmoid().flip(1)  # it knows the classes in the other order
    torch.testing.assert_close(soft_tags(classifier, pixels, tags, 0.25), 0.75 * tags + 0.25 * said)
    assert torch.equal(soft_tags(classifier, pixels, tags, 0.0), tags)


def test_a_step_lowers_the_loss_and_leaves_the_teacher_alone(teacher, pictures) -> None:
    recipe = dataclasses.replace(TINY, steps=60, lr=3e-3, warmup=3, batch=8, soft=0.1)
    classifier, _ = load_classifier(teacher)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    module = deit_training(recipe, make_vit(recipe), classifier)
    module.log = lambda *args, **kwargs: None
    optimizer = module.configure_optimizers()["optimizer"]
    batch = pictures.collate([pictures[Draw(0, i)] for i in range(8)])
    costs = []
    for _ in range(recipe.steps):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        costs.append(float(loss.detach()))
    assert costs[-1] < 0.6 * costs[0]
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_stopped_and_gone_on_is_as_never_stopped(teacher, pictures, tmp_path) -> None:
    def train(folder: str, *legs: int | None) -> dict[str, torch.Tensor]:
        for minutes in legs:
            module = deit_training(TINY, make_vit(TINY), load_classifier(teacher)[0])
            training = Training(TINY.steps, TINY.batch, device="cpu", minutes=minutes)
            fit(module, pictures, training, tmp_path / folder, show=False)
        return module.network.state_dict()

    whole, stopped = train("whole", None), train("stopped", 0, 0, None)
    assert [name for name in whole if not torch.equal(whole[name], stopped[name])] == []
    assert not torch.equal(whole["head.weight"], make_vit(TINY).head.weight)


def test_transformers_sees_the_same(trained) -> None:
    folder, recipe, _ = trained
    state = torch.load(folder / "training" / "last.ckpt", weights_only=True)["state_dict"]
    network = make_vit(recipe).eval()
    network.load_state_dict({name.removeprefix("network."): value.half().float() for name, value in state.items()})
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = ViTForImageClassification.from_pretrained(folder).float().eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels).logits, network(pixels), atol=1e-5, rtol=1e-4)
    assert [theirs.config.id2label[i] for i in range(20)] == list(CLASSES)


@pytest.mark.parametrize("version", ["v1", "v2", "plus"])
def test_mctformer_starts_from_it(trained, version) -> None:
    folder, recipe, _ = trained
    start = read_start(folder)
    assert (start.version, start.mean, start.std) == (None, MEAN, STD)
    assert (start.shape.width, start.shape.heads, start.shape.patch, start.shape.grid) == (32, 2, 8, (4, 4))
    network = build_mctformer(start, CLASSES, version)
    state = torch.load(folder / "training" / "last.ckpt", weights_only=True)["state_dict"]
    own = network.state_dict()
    block = "transformer.resblocks.1.mlp.c_fc.weight"
    assert torch.equal(own[block], state[f"network.tower.{block}"].half().float())
    assert torch.equal(own["class_embedding"][7], state["network.tower.class_embedding"][0].half().float())
    assert not torch.equal(own[block], make_vit(recipe).tower.state_dict()[block])


def test_only_what_the_layout_holds_is_written(tmp_path) -> None:
    network = make_vit(TINY)
    network.tower.classes = 2
    with pytest.raises(ValueError, match="expected one"):
        save_vit(tmp_path, network.tower, network.norm, network.head, CLASSES)
    assert not list(tmp_path.iterdir())


def test_precision_against_torchmetrics() -> None:
    network = make_vit(TINY).eval()
    seen, shown = [], torch.zeros(12, 20, dtype=torch.long)
    for i in range(12):
        scene = draw_scene(scene_seed("val", 0, i), (24, 32))
        shown[i, [tag - 1 for tag in scene.tags]] = 1
        image = torch.from_numpy(np.array(scene.image)).permute(2, 0, 1)[None]
        with torch.no_grad():
            seen.append(network(standardise(image, MEAN, STD)))
    each = MultilabelAveragePrecision(num_labels=20, average="none")(torch.cat(seen), shown)
    there = shown.any(0)
    assert tag_precision(network, 12, size=(24, 32)) == pytest.approx(100 * float(each[there].mean()), abs=1e-3)


def test_figures_stand_beside_teacher_and_floor(trained, monkeypatch) -> None:
    folder, recipe, found = trained
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| this network | {found.network:.1f} |" in card
    assert f"| its teacher | {found.teacher:.1f} |" in card
    assert f"| random weights of the same shape | {found.untrained:.1f} |" in card
    assert "| pictures seen | 12 |" in card
    assert found.network != found.untrained
    monkeypatch.setattr(stage, "tag_precision", lambda *args, **kwargs: pytest.fail("measured again"))
    assert pretrain_deit(folder, recipe, QUIET, scenes=3) == found


def test_what_is_saved_is_what_is_measured(trained, tmp_path, monkeypatch) -> None:
    _, recipe, found = trained
    folder = shutil.copytree(trained[0], tmp_path / "deit")
    seen = []
    monkeypatch.setattr(stage, "tag_precision", lambda network, *args, **kwargs: seen.append(network) or 1.0)
    for file in (folder / "training").glob("measured-*.json"):
        file.rename(file.with_name("measured-3.json"))  # as figures of other weights were called
    assert pretrain_deit(folder, recipe, QUIET, scenes=3) != found
    own = torch.load(folder / "training" / "last.ckpt", weights_only=True)["state_dict"]
    looked_at = seen[0].state_dict()
    assert {f"network.{name}" for name in looked_at} == own.keys()
    assert all(torch.equal(value, own[f"network.{name}"].half().float()) for name, value in looked_at.items())
    assert any(not torch.equal(value, own[f"network.{name}"]) for name, value in looked_at.items())
    assert (folder / "training" / "measured-3.json").exists()


def test_a_training_may_begin_where_another_ended(trained, tmp_path) -> None:
    folder, recipe, _ = trained
    network, begun = stage.started(dataclasses.replace(recipe, init=str(folder)))
    saved, digest = stage.load_vit(folder, recipe)
    assert begun == digest
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in saved.state_dict().items())
    assert not torch.equal(network.head.weight, stage.make_vit(recipe).head.weight)
    assert stage.started(recipe)[1] is None
    other = dataclasses.replace(recipe, init=str(folder), layers=recipe.layers + 1)
    with pytest.raises(UserError, match=r"init: .*expected that of the recipe"):
        pretrain_deit(tmp_path / "new", other, QUIET)
    tower = stage.make_vit(recipe)
    head = torch.nn.Linear(recipe.width, 2)
    save_vit(tmp_path / "two", tower.tower, tower.norm, head, ("cat", "dog"))
    with pytest.raises(UserError, match="does not score 20 classes"):
        stage.started(dataclasses.replace(recipe, init=str(tmp_path / "two")))


def test_another_training_is_refused(trained, tmp_path) -> None:
    folder, recipe, _ = trained
    with pytest.raises(UserError, match=r"another training: soft is 0\.5 there and 0\.1 now"):
        pretrain_deit(folder, dataclasses.replace(recipe, soft=0.1), QUIET)
    save_classifier(small_classifier(CLASSES[:3]), tmp_path / "small", "")
    with pytest.raises(UserError, match="does not know"):
        pretrain_deit(tmp_path / "new", dataclasses.replace(recipe, teacher=str(tmp_path / "small")), QUIET)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"heads": 5}, "a width in multiples of heads"),
        ({"crop": (20, 32)}, "both sides of crop in multiples of patch"),
        ({"side": 36}, "side and both sides"),
        ({"soft": 1.5}, "0 <= soft <= 1"),
        ({"patch": 0}, "patch 0: expected at least 1"),
        ({"batch": 1}, "a batch of at least 2"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said) -> None:
    with pytest.raises(UserError, match=said):
        check(dataclasses.replace(TINY, **wrong))
    check(TINY)


def test_the_command(tmp_path) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["storybook", "pretrain-deit", "--list"])
    assert listed.exit_code == 0
    assert "soft=" in listed.output
    given = ["width=32", "layers=1", "heads=2", "side=32", "scenes=4", "size=[32,48]", "crop=[24,32]", "batch=2"]
    command = ["storybook", "pretrain-deit", "-o", str(tmp_path / "out"), "--device", "cpu", "--measure", "2"]
    command += [part for each in [*given, "steps=2"] for part in ("--set", each)]
    late = runner.invoke(app, [*command, "--minutes", "0"])
    assert "time is up" in late.output, late.output
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "tag mAP" in done.output
    assert read_start(tmp_path / "out").shape.layers == 1
