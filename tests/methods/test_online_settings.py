"""Settings of WeCLIP and CD-CLIP, and the boundaries between super-classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods.online_cases import GROUPS, SMALL, WORDS, WORLD, batch, cd_clip, training, weclip
from tag2mask.classes import load_classes
from tag2mask.methods import make_method, method_class
from tag2mask.methods.online.boundaries import boundary_loss
from tag2mask.types import IGNORE, UserError

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
