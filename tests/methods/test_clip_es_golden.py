"""CLIP-ES from the photograph to the saved map, variant "released", against what the released code computed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from golden_models import golden_clip
from tag2mask.classes import load_classes
from tag2mask.methods.clip_es import ClipES, ClipESOptions, class_texts
from tag2mask.models.vjp import channel_weights, read_out, run_last_block
from tag2mask.ops.masks import pseudo_mask, upsample
from tag2mask.types import Item

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RELEASED = ClipESOptions(variant="released")


@pytest.fixture(params=["voc_small", "voc_portrait", "voc_tiny_dims", "voc_last8", "coco_wide", "coco_last8"])
def case(request, golden):
    return request.param, golden(f"clip-es/case_{request.param}")


_models: dict = {}  # reading one takes a second


def recorded(golden, name):
    if name not in _models:
        _models[name] = golden_clip(golden, name).requires_grad_(False)
    return _models[name]


def method_of(golden, name, case, **options):
    """CLIP-ES on the recorded weights; class features as recorded, looked up by the recorded phrases."""
    dataset = "coco" if name.startswith("coco") else "voc"
    texts, names = golden(f"clip-es/text_{case['model']}"), golden("clip-es/tokens")
    row = {
        str(phrase): torch.from_numpy(feature)
        for part in ("fg", "bg")
        for phrase, feature in zip(names[f"names_{dataset}_{part}"], texts[f"{dataset}_{part}"], strict=True)
    }
    clip = SimpleNamespace(
        model=recorded(golden, str(case["model"])),
        name="golden",
        patch=16,
        mean=MEAN,
        std=STD,
        device=torch.device("cpu"),
        ensemble=lambda phrases, templates, **_: torch.stack([row[phrase] for phrase in phrases]),
    )
    classes = load_classes("coco14" if dataset == "coco" else "voc12")
    return ClipES(classes, RELEASED.model_copy(update=options), clip=clip)


def item_of(case):
    tags, order = torch.sort(torch.from_numpy(case["keys"]) + 1)
    return Item("x", torch.from_numpy(case["image"]).permute(2, 0, 1).contiguous(), tags), order


def test_the_texts_are_the_released_ones(golden):
    tokens = golden("clip-es/tokens", "class_names")
    for classes, dataset in (("voc12", "voc"), ("coco14", "coco")):
        texts = class_texts(load_classes(classes), RELEASED)
        assert list(texts.names) == [str(n) for n in tokens[f"names_{dataset}_fg"]]
        assert list(texts.background) == [str(n) for n in tokens[f"names_{dataset}_bg"]]
        assert texts.templates == ("a clean origami {}.",)
    assert list(load_classes("voc12").foreground) == [str(n) for n in tokens["class_names"]]
    assert list(load_classes("coco14").foreground) == [str(n) for n in tokens["class_names_coco"]]


def test_pixels(golden, case):
    name, case = case
    method, (item, _) = method_of(golden, name, case), item_of(case)
    grid = method.grid(tuple(item.image.shape[1:]))
    assert list(grid) == case["grid"].tolist()
    expected = torch.from_numpy(case["pixel_values"])
    torch.testing.assert_close(method._pixels([item], grid)[0], expected, rtol=0, atol=2e-6)


def test_probabilities_and_channel_weights(golden, case):
    name, case = case
    method = method_of(golden, name, case)
    last = run_last_block(method.vision, torch.from_numpy(case["feat_in_last"])[None])
    embedding = read_out(method.vision, last.tokens, "patches")
    texts = torch.from_numpy(case["text_features_used"])
    probs = (method.scale * F.normalize(embedding[0], dim=-1) @ texts.T).softmax(-1)
    torch.testing.assert_close(
        probs.expand(len(case["probs"]), -1), torch.from_numpy(case["probs"]), rtol=0, atol=2e-5
    )

    cotangents = method._cotangents(embedding[0], torch.from_numpy(case["keys"]) + 1)
    weights = channel_weights(method.vision, last, 0, cotangents, "patches")
    expected = torch.from_numpy(case["grad_mean"])
    assert ((weights - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-3


def test_from_photograph_to_saved_map(golden, case):
    name, case = case
    method, (item, order) = method_of(golden, name, case), item_of(case)
    (scores,) = method.scores([item])
    torch.testing.assert_close(scores.initial, torch.from_numpy(case["gradcam"])[order], rtol=0, atol=5e-4)
    saved = upsample(scores.maps, scores.size)
    torch.testing.assert_close(saved, torch.from_numpy(case["attn_highres"]).float()[order], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["voc_small", "voc_portrait", "coco_wide"])
def test_from_photograph_to_mask(golden, name):
    """End to end with the CRF on the wrapped image; the released code rounds to float16 on the way, we do not."""
    case, crf = golden(f"clip-es/case_{name}"), golden("clip-es/crf")
    method, (item, _) = method_of(golden, name, case), item_of(case)
    mask, _ = pseudo_mask(method.scores([item])[0], item.image, method.mask_rule)
    assert (mask.numpy() == crf[f"mask_{name}"]).mean() > 0.99


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 6},
        {"steps": 1},
        {"readout": "class"},
        {"score": "logits"},
        {"variant": "paper"},
        {"affinity": "mhsa"},
    ],
    ids=str,
)
def test_every_other_choice_moves_the_map(golden, options):
    """Each option reaches the result: a choice that changed nothing would not be one."""
    case = golden("clip-es/case_voc_last8")
    method, (item, order) = method_of(golden, "voc_last8", case, **options), item_of(case)
    saved = upsample(method.scores([item])[0].maps, (case["image"].shape[0], case["image"].shape[1]))
    assert (saved - torch.from_numpy(case["attn_highres"]).float()[order]).abs().max() > 2e-3
