"""WeCLIP and CD-CLIP: their labels and steps, and what is frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from golden_models import golden_clip
from methods.online_cases import SMALL, WORDS, WORLD, batch, cd_clip, changed, training, weclip
from methods.toys import make_data
from tag2mask.methods import make_method
from tag2mask.methods.online.teacher import Teacher, Texts
from tag2mask.models.state import state_sha256
from tag2mask.models.tower import Positions
from tag2mask.models.weights import load_clip
from tag2mask.ops.affinity import AFFINITIES
from tag2mask.segment.losses import balanced_cross_entropy
from tag2mask.segment.network import load_network
from tag2mask.stages.label import label
from tag2mask.types import IGNORE, Item, UserError
from tiny_clips import oracle, write_tokenizer

# --- as recorded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "name"), [("step_early", "caa"), ("step_late", "rfm")])
def test_labels_are_the_recorded_ones(golden, case, name):
    model = golden_clip(golden, "B").eval().requires_grad_(False)
    wanted = {key: torch.from_numpy(array) for key, array in golden(f"weclip/{case}").items()}
    said = golden("clip-es/text_B", "voc_fg", "voc_bg")
    classes, background = (torch.from_numpy(said[key]).float() for key in ("voc_fg", "voc_bg"))
    texts = Texts(classes, background, classes)
    how = {"layers": 8, "positions": Positions(round_fp16=True), "statistics": ((0, 0, 0), (1, 1, 1))}
    teacher = Teacher(model.vision, float(model.logit_scale.exp()), texts, **how)
    tags = [wanted["labels"][0][wanted["labels"][0] > 0]]
    settings = replace(AFFINITIES[name], keep_edges=False)
    seen = teacher.look(wanted["pixels"])
    maps = teacher.maps(seen, tags, settings, wanted["affinity"])
    torch.testing.assert_close(maps[0].initial, wanted["gradcam"], rtol=0, atol=1e-3)
    labels = teacher.labels(wanted["pixels"], [maps[0].refined], tags, None)
    assert (labels == wanted["pseudo_label"]).float().mean() >= 0.995


# --- a step -------------------------------------------------------------------------------------------------------


def test_cd_clip_without_a_rectifier_is_weclips_first_phase(clip):
    """The same losses and gradients, bit by bit."""
    modules = [training(weclip(clip)), training(cd_clip(clip, setting=1))]
    for module in modules:
        module.training_step(batch(), 0).backward()
    assert modules[0].terms == modules[1].terms
    for a, b in zip(*(module.parameters() for module in modules), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_the_switch_changes_how_maps_are_spread(clip):
    method = weclip(clip, switch=2)
    losses = []
    for at in (0, 1, 2, 3):
        module = training(method, at)
        module.training_step(batch(), 0)
        losses.append(module.terms["loss"])
    assert losses[0] == losses[1] != losses[2] == losses[3]


def test_dropout_follows_the_batch_and_leaves_other_dice_alone(clip):
    module = training(weclip(clip))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    values = [float(module.training_step(batch(), index)) for index in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(before, torch.get_rng_state())


def test_padding_is_ignored_or_labelled(clip, monkeypatch):
    seen = {}

    def kept(name):
        def record(logits, labels):
            seen[name] = labels
            return logits.sum() * 0

        return record

    for padding in ("ignored", "labelled"):
        monkeypatch.setattr("tag2mask.methods.online.training.balanced_cross_entropy", kept(padding))
        training(weclip(clip, padding=padding)).training_step(batch(), 0)
    assert (seen["ignored"][0, 24:] == IGNORE).all()
    assert (seen["ignored"][0, :24] != IGNORE).all()
    assert (seen["labelled"] != IGNORE).all()
    assert torch.equal(seen["ignored"][1], seen["labelled"][1])


@pytest.mark.parametrize("padding", ["ignored", "labelled"])
def test_a_picture_that_cannot_be_read_teaches_nothing(clip, padding):
    pictures, tags = batch()
    pictures[0], tags[0] = float("nan"), tags[0][:0]
    module = training(weclip(clip, padding=padding))
    module.fuse.eval()  # dropout is drawn for a whole batch
    module.training_step((pictures, tags), 0)
    both = module.terms
    module.training_step((pictures[1:], tags[1:]), 0)
    assert both == pytest.approx(module.terms, rel=1e-5)


@pytest.mark.parametrize("tags", [((), ()), ((1, 2, 3), ()), ((1,), (1,))])
def test_any_number_of_tags(clip, tags):
    module = training(cd_clip(clip))
    loss = module.training_step(batch(tags), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


MANY = 15


@pytest.fixture(scope="module")
def many():
    """Classes enough for an image with 15 tags, in the few words that the tiny CLIP knows."""
    names = tuple(f"thing {i}" for i in range(1, MANY + 1))
    words = ("red", "cat", "dog", "photo", "of", "the cat", "the dog", "a red", "a cat", "a dog", "cat dog",
             "dog cat", "red cat", "red dog", "cat red")  # fmt: skip
    groups = {"kind": {"cat": names[:7], "dog": names[7:]}}
    classes = replace(WORLD, names=("background", *names), palette=tuple((i, i, i) for i in range(MANY + 1)))
    return replace(classes, texts={"clip-es": replace(WORDS, names=words)}, superclasses=groups)


@pytest.mark.parametrize("name", ["weclip", "cd-clip"])
def test_an_image_with_fifteen_tags(clip, many, name):
    options = {"structure": "clip"} if name == "cd-clip" else {}
    method = make_method(name, many, clip=clip, **SMALL, **options)
    module = training(method)
    loss = module.training_step(batch((tuple(range(1, MANY + 1)), (1,))), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    method.net = method.new_network().eval()
    image = torch.randint(0, 256, (3, 32, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    maps = method.scores([Item("a", image, torch.arange(1, MANY + 1))])[0].maps
    assert maps.shape == (MANY, 4, 5)
    assert maps.isfinite().all()


@pytest.mark.parametrize("name", ["weclip", "cd-clip"])
def test_a_crop_that_shows_none_of_its_tags(clip, name, monkeypatch):
    """GradCAM is 0 everywhere: then nothing is labelled with them, and nothing is divided by 0."""
    monkeypatch.setattr(Teacher, "cams", lambda self, seen, image, texts: torch.zeros(len(texts), *seen.grid))
    labelled = []
    monkeypatch.setattr(
        "tag2mask.methods.online.training.balanced_cross_entropy",
        lambda logits, labels: labelled.append(labels) or balanced_cross_entropy(logits, labels),
    )
    method = weclip(clip) if name == "weclip" else cd_clip(clip)
    module = training(method)
    module.training_step(batch(((1, 2), (3,))), 0).backward()
    assert set(labelled[0].unique().tolist()) == {0, IGNORE}
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_labels_are_of_the_tags_and_background_without_any(clip):
    method = weclip(clip)
    pictures, tags = batch(((), (1, 3)))
    pixels = method.teacher.pixels(pictures.nan_to_num(0))
    maps = method.teacher.maps(method.teacher.look(pixels), tags, method.recipe.early)
    labels = method.teacher.labels(pixels, [each.refined for each in maps], tags, None)
    assert (labels[0] == 0).all()
    assert set(labels[1].unique().tolist()) <= {0, 1, 3}


def test_sure_predictions_replace_labels_late(clip, monkeypatch):
    method = cd_clip(clip, setting=0, replace_at=2, sure=0.0)
    labels = {}
    monkeypatch.setattr(
        "tag2mask.methods.online.training.balanced_cross_entropy",
        lambda logits, target: labels.setdefault("of", (logits, target)) and logits.sum() * 0,
    )
    for at in (1, 2):
        labels.clear()
        training(method, at).training_step(batch(), 0)
        logits, target = labels["of"]
        known = target != IGNORE
        assert bool((target == logits.argmax(1))[known].all()) == (at == 2)
        assert (target[0, 24:] == IGNORE).all()


def test_no_image_with_a_tag(clip, tmp_path):
    data = make_data(tmp_path / "images", count=3)
    data.samples = [replace(sample, tags=()) for sample in data.samples]
    with pytest.raises(UserError, match="none of the 3 images"):
        weclip(clip).fit(data, tmp_path / "fit")


# --- the fit ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(clip_folder, dino, tmp_path_factory):
    where = tmp_path_factory.mktemp("fitted")
    own = load_clip(clip_folder, cache=None)
    before = state_sha256(own.model), state_sha256(dino.model)
    method = make_method("cd-clip", WORLD, clip=own, dino=dino, **SMALL)
    method.fit(make_data(where / "images", count=4), where / "fit")
    return where / "fit", before, (state_sha256(own.model), state_sha256(dino.model))


def test_towers_are_bit_equal_after_training_and_in_no_file(fitted):
    folder, before, after = fitted
    assert before == after
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"fuse", "decoder"}


def test_the_trained_network_is_that_of_the_maps(fitted, clip, dino):
    folder = fitted[0]
    method = make_method("cd-clip", WORLD, clip=clip, dino=dino, **SMALL)
    method.load(folder)
    net = load_network(folder, "cpu")
    image = torch.randint(0, 256, (1, 3, 32, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(image), method.net(image))
    scores = method.scores([Item("a", image[0].to(torch.uint8), torch.tensor([1, 3]))])[0]
    assert scores.maps.shape == (2, 4, 5)


def test_a_network_without_its_tower_says_where_to_put_it(fitted, tmp_path):
    folder = fitted[0]
    for about, said in (
        ({"clip": str(tmp_path / "gone")}, "not saved with it and not at hand"),
        ({"sha256": "0" * 64}, "weights of sha256 000000000000"),
    ):
        copy = changed(folder / "network", tmp_path / next(iter(about)), about)
        with pytest.raises(UserError, match=f"{said}.*`clip` under `options`"):
            load_network(copy, "cpu")


def test_another_clip_is_refused(fitted, tmp_path, dino):
    other = tmp_path / "clip"
    oracle(hidden_act="gelu").save_pretrained(other)
    model = oracle()
    with torch.no_grad():
        model.logit_scale.add_(0.1)
    model.save_pretrained(other)
    write_tokenizer(Path(other))
    method = make_method("cd-clip", WORLD, clip=load_clip(other, cache=None), dino=dino, **SMALL)
    with pytest.raises(UserError, match="give that CLIP, or fit again"):
        method.load(fitted[0])


def test_features_of_clip_as_structure(clip):
    method = cd_clip(clip)
    features = method.structure()(batch()[0].nan_to_num(0))
    assert features.shape == (2, 48, 4, 4)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 4, 4))
    assert F.cosine_similarity(features[:, :, 0, 0], features[:, :, 2, 2]).abs().max() < 1


def test_another_fit_is_taken_with_its_own_words_alone(clip, tmp_path):
    """What was said to CLIP while the decoder learned is said while it labels."""
    data = make_data(tmp_path / "images", count=2)
    data.classes = WORLD
    label(data, weclip(clip, steps=1), tmp_path / "fit", fit_only=True, progress=False)
    for said in (replace(WORDS, names=("red", "dog", "cat")), replace(WORDS, background=("the", "photo"))):
        data.classes = replace(WORLD, texts={"clip-es": said})
        method = make_method("weclip", data.classes, clip=clip, **{**SMALL, "steps": 1})
        with pytest.raises(UserError, match=r"other settings: texts.clip-es.(names|background)"):
            label(data, method, tmp_path / "other", fitted=tmp_path / "fit", progress=False)
