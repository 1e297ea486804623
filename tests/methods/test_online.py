"""WeCLIP and CD-CLIP: their labels and steps, what is frozen, what is open, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from golden_models import golden_clip
from methods.toys import CLASSES, make_data
from tag2mask.classes import load_classes
from tag2mask.config import read_config
from tag2mask.methods import make_method, method_class
from tag2mask.methods.cd_clip import CDCLIP, SETTINGS, CDCLIPOptions
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.online.boundaries import boundary_loss
from tag2mask.methods.online.method import Online
from tag2mask.methods.online.teacher import Teacher, Texts
from tag2mask.methods.online.training import OnlineTraining
from tag2mask.models.clip import VisionTransformer
from tag2mask.models.dino import load_dino
from tag2mask.models.state import state_sha256
from tag2mask.models.tower import Positions
from tag2mask.models.weights import load_clip
from tag2mask.ops.affinity import AFFINITIES
from tag2mask.segment.losses import balanced_cross_entropy
from tag2mask.segment.network import load_network
from tag2mask.stages.label import label
from tag2mask.types import IGNORE, Item, TextSet, UserError
from tiny_clips import oracle, shake, write_tokenizer

WORDS = TextSet(names=("red", "cat", "dog"), templates=("a photo of the {}.",), background=("photo", "the"))
GROUPS = {"kind": {"cat": ("red",), "dog": ("green", "blue")}}
WORLD = replace(CLASSES, texts={"clip-es": WORDS}, superclasses=GROUPS)
SMALL = {"steps": 4, "batch": 2, "crop": 32, "width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    oracle().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder, cache=None)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28, "patch_size": 7}
    folder = tmp_path_factory.mktemp("dino")
    shake(Dinov2Model(Dinov2Config(**sizes))).save_pretrained(folder)
    return load_dino(folder)


def weclip(clip, **options):
    return make_method("weclip", WORLD, clip=clip, **{**SMALL, **options})


def cd_clip(clip, **options):
    taught = SETTINGS[options.get("setting", 6)][1] and options.get("boundary_gate") != "never"
    return make_method(
        "cd-clip", WORLD, clip=clip, **{**SMALL, **({"structure": "clip"} if taught else {}), **options}
    )


def batch(tags=((1,), (2, 3)), seed=0):
    pictures = torch.rand(len(tags), 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 255
    pictures[0, :, 24:] = float("nan")  # what the crop has beyond its picture
    return pictures, [torch.tensor(own, dtype=torch.int64) for own in tags]


def training(method, at=0, folder=None):
    """The module of a fit, at a step, without a Trainer."""
    net = method.new_network()

    class Alone(OnlineTraining):
        global_step = at

        def log_dict(self, values, **how):
            self.terms = {name: float(value) for name, value in values.items()}

    settings = FitSettings.of(method, steps=method.recipe.steps, batch=2, lr=method.recipe.lr)
    lessons, weight = method.lessons(net.network, folder)
    return Alone(net.network, lessons, method.recipe, settings, weight)


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


# --- WeCLIP+ ------------------------------------------------------------------------------------------------------

PLUS = {
    "setting": 2,
    "decoder": "clip+dino",
    "boxes": False,
    "choose": "signed",
    "feedback": True,
    "dice_weight": 1.0,
}


def plus(clip, dino, **options):
    return make_method("cd-clip", WORLD, clip=clip, dino=dino, **{**SMALL, **PLUS, **options})


def test_two_outputs_agree_and_their_mean_counts(clip, dino, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tag2mask.methods.online.training.balanced_cross_entropy",
        lambda logits, labels: seen.append((logits, labels)) or logits.mean(),
    )
    module = training(plus(clip, dino))
    module.training_step(batch(), 0)
    (mean, labels), (first, of_second), (second, of_first) = seen
    torch.testing.assert_close(mean, (first + second) / 2)
    known = labels != IGNORE
    assert torch.equal(of_second[known].long(), second.argmax(1)[known])
    assert torch.equal(of_first[known].long(), first.argmax(1)[known])
    assert (of_first[~known] == IGNORE).all()
    assert (~known).any()
    wanted = 0.1 * float(first.mean() + second.mean())
    assert module.terms["mutual"] == pytest.approx(wanted, rel=1e-4)


def test_feedback_multiplies_initial_maps_by_the_decoders_probabilities(clip):
    method = cd_clip(clip, setting=0, feedback=True)
    pictures, tags = batch(((1, 3), (2,)))
    seen = method.teacher.look(method.teacher.pixels(pictures.nan_to_num(0)))
    probs = torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    plain, fed = (method.teacher.maps(seen, tags, method.recipe.early, None, each) for each in (None, probs))
    for i, own in enumerate(tags):
        torch.testing.assert_close(fed[i].initial, plain[i].initial * probs[i, own])
    module = training(method)
    given = []
    lessons = module.lessons
    module.lessons = lambda *of: replace(found := lessons(*of), teach=lambda *x: given.append(x) or found.teach(*x))
    module.training_step(batch(), 0)
    assert given[0][2].shape == (2, 4, 4, 4)
    torch.testing.assert_close(given[0][2].sum(1), torch.ones(2, 4, 4))


def test_what_weclip_plus_adds_can_be_left_out(clip, dino):
    method = plus(clip, dino, mutual_weight=0, dice_weight=0.0)
    module = training(method)
    loss = module.training_step(batch(), 0)
    loss.backward()
    assert set(module.terms) == {"loss", "affinity", "segmentation"}
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    assert method.recipe.late.boxes is None
    assert plus(clip, dino, boxes=True).recipe.late.boxes == 0.4
    assert "mutual" not in training(cd_clip(clip, setting=1)).__dict__


def test_a_dino_sees_its_own_statistics(clip, dino):
    with pytest.raises(UserError, match="a DINO knows ImageNet's; leave statistics out"):
        plus(clip, dino, statistics="clip")


def test_without_boundaries_a_decoder_still_needs_its_dino(clip):
    kind = method_class("cd-clip")
    assert kind.towers_of(kind.Options(setting=2, decoder="clip+dino")) == ("clip", "dino")
    with pytest.raises(UserError, match="cd-clip needs a DINO"):
        make_method("cd-clip", WORLD, clip=clip, **SMALL, **PLUS)


@pytest.fixture(scope="module")
def fitted_plus(clip, dino, tmp_path_factory):
    where = tmp_path_factory.mktemp("plus")
    plus(clip, dino).fit(make_data(where / "images", count=4), where / "fit")
    return where / "fit"


def test_a_network_beside_a_dino_is_saved_without_it_and_finds_it(fitted_plus, clip, dino, tmp_path):
    method = plus(clip, dino)
    method.load(fitted_plus)
    net = load_network(fitted_plus, "cpu")
    assert net.towers == ("network.tower.", "network.dino.")
    image = torch.randint(0, 256, (1, 3, 32, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(image), method.net(image))
    assert method.scores([Item("a", image[0].to(torch.uint8), torch.tensor([1, 3]))])[0].maps.shape == (2, 4, 5)
    state = torch.load(fitted_plus / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"fuse", "decoder", "dino_fuse"}
    with pytest.raises(UserError, match=r"stands on a DINO of sha256 .*, and this method's on CLIP alone"):
        cd_clip(clip, setting=2).load(fitted_plus)
    for about, said in (
        ({"dino": str(tmp_path / "gone")}, "not saved with it and not at hand"),
        ({"dino_sha256": "0" * 64}, "with sha256 000000000000"),
    ):
        with pytest.raises(UserError, match=f"{said}.*`dino` under `options`"):
            load_network(changed(fitted_plus / "network", tmp_path / next(iter(about)), about), "cpu")


def changed(network, copy, about):
    """A copy of a network's folder with other options in it."""
    copy.mkdir()
    for file in network.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["options"] |= about
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(("name", "late"), [("voc12_weclip_plus", (None, 6)), ("coco14_weclip_plus", (0.7, 8))])
def test_weclip_plus_has_rules_for_each_data_set(dino, name, late):
    vision = VisionTransformer(width=48, layers=12, heads=3, patch=8, native_grid=(4, 4), embed=24)
    config = read_config(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    known = load_classes(config.data.classes)
    world = replace(known, texts={"weclip": replace(WORDS, names=("cat",) * len(known.foreground))})
    deep = oracle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Online, "say", lambda self, phrases: torch.ones(len(phrases), 24) / 24**0.5)
        clip = SimpleNamespace(model=SimpleNamespace(vision=vision, logit_scale=deep.logit_scale.detach()), patch=8,
                               name="a", sha256="0", device=torch.device("cpu"), dtype=torch.float32)  # fmt: skip
        method = CDCLIP(world, CDCLIPOptions(**config.options), clip=clip, dino=dino)
    recipe = method.recipe
    assert (recipe.late.boxes, recipe.late.layers) == late
    assert (recipe.late.choose, recipe.late.decoder, recipe.feedback) == ("signed", True, True)
    assert recipe.replace_at / recipe.steps == pytest.approx({30_000: 0.6, 80_000: 0.5}[recipe.steps], abs=1e-4)
    assert recipe.batch == (4 if recipe.steps == 30_000 else 8)
    assert recipe.lr == pytest.approx(2e-4)


# --- boundaries ---------------------------------------------------------------------------------------------------


def edges(method, tags):
    pictures, tags = batch(tags)
    images = pictures.nan_to_num(0)
    seen = method.teacher.look(method.teacher.pixels(images))
    maps = method.teacher.maps(seen, tags, method.recipe.early)
    found = method.make_boundaries()
    return found.labels(images, seen, maps, tags, method.recipe.early, ~pictures.isnan().any(1))


@pytest.mark.parametrize(("gate", "images"), [("several", [1]), ("one", [0, 2]), ("all", [0, 1, 2])])
def test_the_gate_chooses_images_by_their_super_classes(clip, gate, images):
    found = edges(cd_clip(clip, boundary_gate=gate), ((2, 3), (1, 3), (1,)))
    assert [each.image for each in found] == images
    for each in found:
        assert set(each.labels.unique().tolist()) <= {*range(len(each.groups) + 1), IGNORE}
        assert (each.labels == IGNORE).any() == (each.image == 0)  # whose crop has padding


def test_where_the_gate_never_opens_no_dino_is_needed(clip):
    method = cd_clip(clip, boundary_gate="never")
    assert method.make_boundaries() is None
    assert "dino" not in type(method).towers_of(method.options)


def test_one_super_class_has_no_boundary_and_no_gradient_of_it(clip):
    losses = {}
    for weight in (0.6, 6.0):
        module = training(cd_clip(clip, boundary_weight=weight))
        loss = module.training_step(batch(((2, 3), (1,))), 0)
        loss.backward()
        losses[weight] = [p.grad for p in module.parameters()]
        assert module.terms["boundary"] == 0
    assert all(torch.equal(a, b) for a, b in zip(losses[0.6], losses[6.0], strict=True))
    logits = torch.randn(1, 4, 8, 8, requires_grad=True)
    assert boundary_loss(logits, edges(cd_clip(clip), ((2, 3), (1,)))).grad_fn is None


def test_two_super_classes_teach(clip):
    module = training(cd_clip(clip))
    module.training_step(batch(((1, 2), (1,))), 0)
    first = module.terms
    assert first["boundary"] > 0
    module = training(cd_clip(clip, boundary_weight=1.2))
    module.training_step(batch(((1, 2), (1,))), 0)
    assert module.terms["boundary"] == pytest.approx(2 * first["boundary"])


@pytest.mark.parametrize("options", [{"boundary_source": "texts"}, {"boundary_background": "none"}])
def test_readings_of_boundaries(clip, options):
    usual, other = (edges(cd_clip(clip, **how), ((1, 2), (1, 3))) for how in ({}, options))
    assert any((a.labels != b.labels).any() for a, b in zip(usual, other, strict=True))
    if options.get("boundary_background") == "none":
        assert all((each.labels != 0).all() for each in other)


def test_a_dino_of_another_patch_size(clip, dino):
    method = make_method("cd-clip", WORLD, clip=clip, dino=dino, **SMALL)
    assert dino.patch != clip.patch
    assert set(method.towers) == {"clip", "dino"}
    found = edges(method, ((1, 2), (1, 3)))
    assert [each.labels.shape for each in found] == [(32, 32)] * 2
    assert method.structure()(batch()[0].nan_to_num(0)).shape == (2, 64, 4, 4)


def test_a_dino_is_asked_for_where_boundaries_need_one(clip):
    kind = method_class("cd-clip")
    for options, needs in (
        ({}, ("clip", "dino")),
        ({"setting": 3}, ("clip",)),
        ({"structure": "clip"}, ("clip",)),
        ({"boundary_weight": 0}, ("clip",)),
    ):
        assert kind.towers_of(kind.Options(**options)) == needs
    with pytest.raises(UserError, match=r"cd-clip needs a DINO .* --dino facebook/dinov2-base"):
        make_method("cd-clip", WORLD, clip=clip, **SMALL)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "variant", "switch"),
    [
        ("voc12", "paper", 15_000),
        ("voc12", "released", 9_145),
        ("coco14", "paper", 40_000),
        ("coco14", "released", 40_000),
    ],
)
def test_when_weclip_switches(clip, classes, variant, switch):
    known = load_classes(classes)
    world = replace(known, texts={"weclip": replace(WORDS, names=("cat",) * len(known.foreground))})
    method = make_method("weclip", world, clip=clip, variant=variant)
    assert method.recipe.switch == switch
    assert method.recipe.steps == (30_000 if classes == "voc12" else 80_000)
    assert method.recipe.late.boxes == (0.4 if classes == "voc12" else 0.7)
    assert method.recipe.late.choose == ("signed" if variant == "released" else "abs")
    assert method.recipe.late.keep_edges == (variant == "paper")
    assert method.recipe.padding == ("ignored" if variant == "paper" else "labelled")
    assert method.teacher.positions.round_fp16 == (variant == "released")
    assert method.recipe.lr == pytest.approx(2e-3)


def test_the_rows_of_the_table(clip):
    found = {}
    for row in range(7):
        method = cd_clip(clip, setting=row)
        a = method.recipe.early
        rows = (a.steps > 0, a.boxes is not None, a.decoder, a.distributions is not None)
        found[row] = (*rows, method.make_boundaries() is not None)
        assert method.recipe.early == method.recipe.late
    assert found == {
        0: (False, False, False, False, False),
        1: (True, True, False, False, False),
        2: (True, True, True, False, False),
        3: (True, False, False, True, False),
        4: (True, True, False, True, False),
        5: (True, True, True, True, False),
        6: (True, False, False, True, True),
    }


def test_texts_that_are_compared(clip):
    counts = {how: len(cd_clip(clip, compared=how).teacher.texts.compared) for how in
              ("classes", "classes+super", "classes+super+background")}  # fmt: skip
    assert list(counts.values()) == [3, 5, 7]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("weclip", {"crop": 30}, "no multiple of this CLIP's patch, 8"),
        ("weclip", {"scales": (2.0, 0.5)}, "expected the smaller first"),
        ("weclip", {"layers": 9}, "9 layers of attention, and .* has 4"),
        ("weclip", {"affinity": "caa", "switch": 3}, "switch: no effect with affinity=caa; leave it out"),
        ("weclip", {"affinity": "none", "layers": 2, "box_threshold": 0.3}, "box_threshold, layers: no effect with"),
        ("weclip", {"affinity": "mhsa", "late_layers": 2}, "late_layers: no effect with affinity=mhsa"),
        ("weclip", {"switch": 0, "layers": 2}, "layers: no effect with affinity=rfm and switch=0 of 4 steps"),
        ("weclip", {"switch": 4, "choose": "abs"}, "choose: no effect with affinity=rfm and switch=4 of 4 steps"),
        ("cd-clip", {"setting": 0, "spread_steps": 3, "tau": 0.5}, "spread_steps, tau: no effect with setting=0"),
        ("cd-clip", {"setting": 1, "choose": "abs"}, "choose: no effect with setting=1"),
        ("cd-clip", {"setting": 2, "layers": 2, "distance": "kl"}, "distance, layers: no effect with setting=2"),
        ("cd-clip", {"setting": 3, "box_threshold": 0.3}, "box_threshold: no effect with setting=3"),
        ("cd-clip", {"setting": 5, "structure": "clip"}, "structure: no effect with setting=5"),
        ("cd-clip", {"setting": 3, "compared": "classes", "superclasses": "kind"}, "superclasses: no effect with"),
        ("cd-clip", {"boundary_gate": "never", "boundary_source": "texts"}, "boundary_source: no effect"),
        ("cd-clip", {"distance": "cos", "temperature": 2.0}, "temperature: no effect with distance=cos"),
        ("cd-clip", {"side": "leaving"}, "side: no effect with place=before"),
        ("cd-clip", {"sure": 0.5}, "sure: no effect with no replace_at"),
        ("cd-clip", {"mutual_weight": 0.5}, "mutual_weight: no effect with decoder=clip"),
        ("cd-clip", {"setting": 0, "boxes": True}, "boxes: no effect with setting=0"),
        ("cd-clip", {"variant": "released"}, "no code of CD-CLIP was released"),
        ("cd-clip", {"distance": "jsd"}, "known: js, kl"),
        ("cd-clip", {"superclasses": "seven"}, "set of super-classes of 'toy'"),
    ],
)
def test_settings_that_cannot_work_say_so(clip, name, options, said):
    with pytest.raises(UserError, match=said):
        (weclip if name == "weclip" else cd_clip)(clip, **options)


def test_super_classes_without_a_class_are_left_out_and_named(clip):
    groups = {"kind": {**GROUPS["kind"], "photo": ()}}
    with pytest.warns(UserWarning, match="photo have no class in 'toy'; they are left out"):
        method = make_method("cd-clip", replace(WORLD, superclasses=groups), clip=clip, structure="clip", **SMALL)
    assert list(method.groups) == ["cat", "dog"]


def test_classes_without_super_classes(clip):
    bare = replace(WORLD, superclasses={})
    with pytest.raises(UserError, match="compared=classes"):
        make_method("cd-clip", bare, clip=clip, structure="clip", **SMALL)
    make_method("cd-clip", bare, clip=clip, setting=3, compared="classes", **SMALL)


def test_no_image_with_a_tag(clip, tmp_path):
    data = make_data(tmp_path / "images", count=3)
    data.samples = [replace(sample, tags=()) for sample in data.samples]
    with pytest.raises(UserError, match="none of the 3 images"):
        weclip(clip).fit(data, tmp_path / "fit")


# --- the fit ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(folder, dino, tmp_path_factory):
    where = tmp_path_factory.mktemp("fitted")
    own = load_clip(folder, cache=None)
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
    with pytest.raises(UserError, match="give that CLIP, or fit anew"):
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
