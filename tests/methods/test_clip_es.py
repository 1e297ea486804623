"""CLIP-ES on its own: against autograd, option by option, and against a frozen case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tag2mask.classes import load_classes, plain_classes
from tag2mask.methods.clip_es import ClipES, ClipESOptions, fit_grid, scale_grid
from tag2mask.models.clip import CLIPModel, TextTransformer, VisionTransformer
from tag2mask.models.resnet import ModifiedResNet
from tag2mask.models.tower import Positions
from tag2mask.models.untrained import draw_weights
from tag2mask.ops.masks import pseudo_mask
from tag2mask.storybook import draw_scene
from tag2mask.types import Item, Scores, UserError

CLASSES = load_classes("voc12")
FROZEN = Path(__file__).parent / "regression" / "clip_es.npz"


def small_clip(vision=None, seed=0):
    """A CLIP of seeded weights; its text features are seeded by the text itself."""
    torch.manual_seed(0)
    tower = vision or VisionTransformer(width=64, layers=5, heads=2, patch=16, native_grid=(7, 7), embed=24)
    text = TextTransformer(vocabulary=8, context=4, width=8, layers=1, heads=1, embed=24)
    model = CLIPModel(tower, text)
    draw_weights(model, seed)
    model.eval().requires_grad_(False)

    def ensemble(names, templates, *, allow_unknown=False):
        rows = []
        for name in names:
            words = [torch.Generator().manual_seed(sum(map(ord, t + name))) for t in templates]
            rows.append(F.normalize(torch.stack([torch.randn(24, generator=g) for g in words]).mean(0), dim=0))
        return torch.stack(rows)

    return SimpleNamespace(
        model=model,
        name="small",
        patch=tower.patch,
        mean=(0.48, 0.46, 0.41),
        std=(0.27, 0.26, 0.28),
        device=torch.device("cpu"),
        ensemble=ensemble,
    )


def scene_item(seed, size=(96, 128)):
    scene = draw_scene(seed, size)
    tags = torch.tensor(scene.tags or (1,))
    return Item(str(seed), torch.from_numpy(scene.image).permute(2, 0, 1).contiguous(), tags)


def method(**options):
    return ClipES(CLASSES, ClipESOptions(**options), clip=small_clip())


def several_tags():
    for seed in range(50):
        item = scene_item(seed)
        if len(item.tags) >= 2:
            return item
    raise AssertionError("no scene with two tags")


def by_autograd(made, item):
    """Initial CAM from the definition: autograd through softmax, embedding and the last block, once a class."""
    vision = made.vision
    pixels = made._pixels([item], made.grid(tuple(item.image.shape[1:])))
    tokens = vision(pixels, stop_before_last=True, positions=made.positions).tokens
    block = vision.blocks[-1]
    a = block.ln_1(tokens).clone().requires_grad_(True)
    q, k, v = block.attn.qkv(a)
    x = tokens + block.attn.out_proj((block.attn.probabilities(q, k) @ v).transpose(1, 2).flatten(2))
    x = x + block.mlp(block.ln_2(x))
    embedding = F.normalize(vision.ln_post(x)[0, 1:].mean(0) @ vision.proj, dim=0)
    texts = torch.cat([made.class_features[0][item.tags - 1], made.background_features])
    probs = (made.scale * texts @ embedding).softmax(0)
    cams = []
    for score in probs[: len(item.tags)]:
        (g,) = torch.autograd.grad(score, a, retain_graph=True)
        cam = F.relu(a[0, 1:].detach() @ g[0, 1:].mean(0))
        cams.append((cam - cam.min()) / (cam.max() - cam.min()).clamp_min(1e-12))
    return torch.stack(cams)


def test_initial_maps_equal_autograd():
    made, item = method(), several_tags()
    (scores,) = made.scores([item])
    expected = by_autograd(made, item)
    torch.testing.assert_close(scores.initial.flatten(1), expected, rtol=0, atol=2e-5)
    assert scores.maps.shape == (len(item.tags), 6, 8)
    assert scores.size == (96, 128)


def test_positions_reach_the_tower():
    """Those of the released code are rounded; both readings of an image take them as the method says."""
    assert method(variant="released").positions == Positions(round_fp16=True)
    made, item = method(), several_tags()
    assert made.positions == Positions()
    initial, embedding = made.scores([item])[0].initial, made.embeddings([item])
    made.positions = Positions("bicubic")
    assert (made.scores([item])[0].initial - initial).abs().max() > 1e-4
    assert (made.embeddings([item]) - embedding).abs().max() > 1e-4


def attention_of(vision, pixels, positions):
    """Of each block, its attention between patches, a mean over heads: list of (N, N)."""
    found = []
    hooks = [
        block.ln_1.register_forward_hook(lambda _, __, out, block=block: found.append((block, out)))
        for block in vision.blocks
    ]
    vision(pixels, positions=positions)
    for hook in hooks:
        hook.remove()
    return [b.attn.probabilities(*b.attn.qkv(x)[:2])[0].mean(0)[1:, 1:].double() for b, x in found]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_last_block_has_its_share_in_the_refinement(layers):
    """By hand, in float64: the mean of the last blocks' attention, balanced, made symmetric, and spread over."""
    made, item = method(layers=layers, affinity="mhsa", steps=1), several_tags()
    (scores,) = made.scores([item])
    pixels = made._pixels([item], made.grid(tuple(item.image.shape[1:])))
    blocks = attention_of(made.vision, pixels, made.positions)
    assert len(blocks) == 5
    mean = sum(blocks[-layers:]) / layers
    for _ in range(3):
        mean = mean / mean.sum(0, keepdim=True)
        mean = mean / mean.sum(1, keepdim=True)
    mean = (mean + mean.T) / 2
    spread = scores.initial.flatten(1).double() @ mean.T
    spread = spread - spread.amin(1, keepdim=True)
    expected = spread / spread.amax(1, keepdim=True)
    torch.testing.assert_close(scores.maps.flatten(1).double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("variant", "crosses"), [("paper", True), ("released", False)])
def test_the_released_crf_sees_red_last_and_wrapped(variant, crosses):
    """A step of red over 122.675 is a false edge there; in the picture itself, or were blue last, it is none."""
    image = torch.full((3, 24, 120), 60, dtype=torch.uint8)
    image[0, :, :60], image[0, :, 60:] = 121, 124
    maps = torch.full((1, 24, 120), 0.9)
    maps[..., 60:] = 0.45  # background by a little, unless the left side speaks for it
    scores = Scores(torch.tensor([7]), maps, (24, 120))
    rule = replace(method(variant=variant).mask_rule, mu=None)
    mask, _ = pseudo_mask(scores, image, rule)
    assert mask[:, :50].eq(7).all()
    assert mask[:, 90:].eq(7 if crosses else 0).all()


def test_without_refinement_the_maps_are_the_initial_ones():
    (scores,) = method(affinity="none").scores([several_tags()])
    assert torch.equal(scores.maps, scores.initial)


def test_one_class_without_background_competes_with_all_classes():
    item = scene_item(3)
    item = Item(item.id, item.image, item.tags[:1])
    (alone,) = method(background=False).scores([item])
    assert alone.initial.max() > 0.99  # with K texts only, the softmax would be 1 and the gradient 0


def test_a_batch_equals_one_by_one():
    made = method()
    items = [scene_item(0), scene_item(1), scene_item(2, (64, 80)), scene_item(4)]
    together = made.scores(items)
    for item, scores in zip(items, together, strict=True):
        (alone,) = made.scores([item])
        torch.testing.assert_close(scores.maps, alone.maps, rtol=0, atol=2e-4)
        assert torch.equal(scores.tags, item.tags)


@pytest.mark.parametrize(
    "options",
    [
        {"score": "logits"},
        {"background": False},
        {"readout": "class"},
        {"synonyms": "none"},
        {"synonyms": "feature"},
        {"synonyms": "cam"},
        {"templates": ("a photo of a {}.",)},
        {"templates": ("a photo of a {}.", "a clean origami {}.")},
        {"affinity": "mhsa"},
        {"affinity": "none"},
        {"box_threshold": 0.0},
        {"steps": 1},
        {"layers": 2},
        {"scales": (0.5, 1.0)},
        {"flip": True},
        {"variant": "released"},
        {"max_tokens": 20},
    ],
    ids=str,
)
def test_every_option_reaches_the_maps(options):
    synonyms = {CLASSES.names.index(name) for name in ("bird", "chair", "person", "tvmonitor")}
    item = next(i for i in map(scene_item, range(60)) if synonyms & set(i.tags.tolist()))
    boxes = options.get("affinity", "caa") == "caa"
    base = {"box_threshold": 0.9} if boxes else {}  # boxes that leave something out, on maps of random weights
    (default,), (changed,) = method(**base).scores([item]), method(**{**base, **options}).scores([item])
    assert changed.maps.min() >= 0
    assert changed.maps.max() <= 1
    same = changed.maps.shape == default.maps.shape and torch.equal(changed.maps, default.maps)
    assert not same


def test_flip_of_a_mirrored_image_mirrors_the_maps():
    made, item = method(flip=True), several_tags()
    mirrored = Item(item.id, item.image.flip(-1), item.tags)
    (a,), (b,) = made.scores([item]), made.scores([mirrored])
    torch.testing.assert_close(a.initial, b.initial.flip(-1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((375, 500), 4096, (24, 32)),
        ((16, 16), 4096, (1, 1)),
        ((1, 1), 4096, (1, 1)),
        ((30, 20000), 4096, (2, 1250)),
        ((20000, 30), 100, (100, 1)),
        ((4000, 6000), 4096, (52, 78)),
    ],
)
def test_grids(size, most, grid):
    assert fit_grid(size, 16, most) == grid
    assert grid[0] * grid[1] <= most


def test_resnet_is_gradcam_at_the_last_stage():
    torch.manual_seed(0)
    tower = ModifiedResNet(layers=(1, 1, 1, 1), width=8, heads=4, native_grid=(3, 3), embed=24)
    clip = small_clip(tower)
    item = several_tags()
    made = ClipES(CLASSES, ClipESOptions(), clip=clip)
    (scores,) = made.scores([item])
    assert scores.maps.shape == (len(item.tags), *made.grid((96, 128)))
    assert torch.equal(scores.maps, scores.initial)

    pixels = made._pixels([item], made.grid((96, 128)))
    features = tower.features(pixels).clone().requires_grad_(True)
    embedding = F.normalize(tower.pool(features)[0], dim=0)
    texts = torch.cat([made.class_features[0][item.tags - 1], made.background_features])
    probs = (made.scale * texts @ embedding).softmax(0)
    (g,) = torch.autograd.grad(probs[1], features)
    cam = F.relu((features[0].detach() * g.mean((2, 3))[0, :, None, None]).sum(0))
    cam = (cam - cam.min()) / (cam.max() - cam.min()).clamp_min(1e-12)
    torch.testing.assert_close(scores.initial[1], cam, rtol=0, atol=2e-5)
    for wrong in ({"affinity": "caa"}, {"readout": "class"}):
        with pytest.raises(UserError, match="is a ResNet"):
            ClipES(CLASSES, ClipESOptions(**wrong), clip=clip)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": (0,)},
        {"scales": (float("nan"),)},
        {"scales": (float("inf"),)},
        {"scales": ()},
        {"templates": ("no slot",)},
        {"templates": ()},
        {"steps": 0},
        {"lamda": 1},
        {"score": "x"},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        ClipESOptions(**wrong)


def test_cam_fusion_counts_every_synonym_once():
    """bird has two synonyms beside person's three: its map is the mean of two, whatever person has."""
    item = scene_item(0)
    bird = Item(item.id, item.image, torch.tensor([CLASSES.names.index("bird")]))
    texts = CLASSES.texts["clip-es"].per_class
    made = method(synonyms="cam", affinity="none")
    singles = []
    for v in range(2):
        one = method(synonyms="cam", affinity="none")
        one.class_features = made.class_features[v : v + 1]
        singles.append(one.scores([bird])[0].initial)
    assert len(texts["bird"]) == 2
    expected = (singles[0] + singles[1]) / 2
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    torch.testing.assert_close(made.scores([bird])[0].initial, expected, rtol=0, atol=1e-5)


def test_a_text_without_a_rival_is_refused():
    one = plain_classes(["cat"], "one")
    with pytest.raises(UserError, match="no rival"):
        ClipES(one, ClipESOptions(background=False), clip=small_clip())
    ClipES(one, ClipESOptions(score="logits"), clip=small_clip())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"affinity": "mhsa", "box_threshold": 0.4, "steps": 2}, "box_threshold: no effect with affinity=mhsa"),
        (
            {"affinity": "none", "steps": 2, "layers": 8, "box_threshold": 0.4},
            "box_threshold, layers, steps: no effect with affinity=none",
        ),
        ({"score": "logits", "background": False}, "background: no effect with score=logits"),
    ],
)
def test_options_without_effect_are_refused(options, said):
    with pytest.raises(UserError, match=f"clip-es: {said}"):
        method(**options)
    method(**{name: value for name, value in options.items() if name in ("affinity", "score")})


def test_a_resnet_refuses_what_refines():
    clip = small_clip(ModifiedResNet(layers=(1, 1, 1, 1), width=8, heads=4, native_grid=(3, 3), embed=24))
    with pytest.raises(UserError, match=r"steps: no effect with affinity=none, the only one for .* a ResNet"):
        ClipES(CLASSES, ClipESOptions(steps=3), clip=clip)
    ClipES(CLASSES, ClipESOptions(box_threshold=None), clip=clip)  # None is no value


@pytest.mark.parametrize("tags", [[], [0], [21], [-3]])
def test_tags_out_of_range_are_refused(tags):
    item = scene_item(0)
    with pytest.raises(ValueError, match=r"each in 1\.\.20"):
        method().scores([Item("x", item.image, torch.tensor(tags, dtype=torch.int64))])


@pytest.mark.parametrize(("dtype", "low"), [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)])
def test_the_last_block_multiplies_in_bfloat16_with_the_others_but_not_in_float16(dtype, low):
    """float16 would lose small gradients."""
    tower = method().vision
    for part in tower.trunk:
        part.to(dtype)
    with tower._products(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") is low
    assert not torch.is_autocast_enabled("cpu")


def test_maps_in_bfloat16_are_near():
    exact, half, item = method(), method(), several_tags()
    for part in half.vision.trunk:
        part.to(torch.bfloat16)
    (found,), (expected,) = half.scores([item]), exact.scores([item])
    for got, wanted in ((found.initial, expected.initial), (found.maps, expected.maps)):
        assert got.dtype == torch.float32
        assert 0 < (got - wanted).abs().mean() < 0.02


def test_other_scales_stay_within_max_tokens():
    assert scale_grid((24, 32), 2.0, 4096) == (48, 64)
    assert scale_grid((24, 32), 20.0, 4096)[0] * scale_grid((24, 32), 20.0, 4096)[1] <= 4096


def test_box_threshold_follows_the_data_set():
    assert method().box_threshold == 0.4
    assert ClipES(load_classes("coco14"), clip=small_clip()).box_threshold == 0.7


def frozen_case(items):
    """What the frozen file holds: two scenes, their maps and masks, both variants, seeded weights."""
    arrays = {}
    for item in items:
        arrays[f"image_{item.id}"], arrays[f"tags_{item.id}"] = item.image.numpy(), item.tags.numpy()
    for variant in ("paper", "released"):
        made = method(variant=variant)
        for item in items:
            (scores,) = made.scores([item])
            mask, confidence = pseudo_mask(scores, item.image, made.mask_rule)
            key = f"{variant}_{item.id}"
            arrays[f"{key}_initial"] = scores.initial.numpy()
            arrays[f"{key}_maps"] = scores.maps.numpy()
            arrays[f"{key}_mask"] = mask.numpy()
            arrays[f"{key}_confidence"] = (255 * confidence).round().numpy().astype(np.uint8)
    return arrays


def test_the_frozen_case_still_holds():
    """Guards a clone without the recorded data. Made by ``python tests/methods/test_clip_es.py`` after parity."""
    with np.load(FROZEN, allow_pickle=False) as frozen:
        ids = [key.removeprefix("image_") for key in frozen.files if key.startswith("image_")]
        scenes = [(torch.from_numpy(frozen[f"image_{i}"]), torch.from_numpy(frozen[f"tags_{i}"])) for i in ids]
        now = frozen_case([Item(i, *scene) for i, scene in zip(ids, scenes, strict=True)])
        assert set(frozen.files) == set(now)
        for key in frozen.files:
            if key.endswith(("initial", "maps")):
                np.testing.assert_allclose(now[key], frozen[key], atol=5e-4, err_msg=key)
            elif key.startswith(("image", "tags")):
                assert np.array_equal(now[key], frozen[key])
            elif key.endswith("mask"):
                assert (now[key] == frozen[key]).mean() > 0.998, key
            else:
                assert np.abs(now[key].astype(int) - frozen[key]).mean() < 0.5, key


if __name__ == "__main__":
    FROZEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(FROZEN, **frozen_case([several_tags(), scene_item(7, (80, 112))]))
    print(FROZEN, FROZEN.stat().st_size)
