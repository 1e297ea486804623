"""Measuring a CLIP on scenes: the figures are those of the stages, and the tables say what was found."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torchmetrics.classification import MultilabelAveragePrecision

from tag2mask.classes import load_classes
from tag2mask.data import read_voc
from tag2mask.lab.bench import WATCH_SEED, Bench
from tag2mask.lab.measure import _INITIAL, CLAIMS, ROWS, Claim, markdown, measure_clip
from tag2mask.lab.pretrain import in_training
from tag2mask.lab.pretrain_recipe import Pretrain
from tag2mask.lab.towers import build_clip
from tag2mask.methods.clip_es import ClipES, ClipESOptions
from tag2mask.models.untrained import untrained
from tag2mask.models.weights import load_clip
from tag2mask.ops.metrics import average_precision
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.label import label
from tag2mask.storybook import draw_scene, render, scene_seed

TINY = Pretrain(width=16, layers=2, heads=2, side=32, embed=16, text_width=16, text_layers=1, text_heads=2, patch=8)


@pytest.fixture(scope="module")
def clip():
    return in_training(build_clip(TINY).eval().requires_grad_(False), torch.device("cpu"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Eight small scenes on disk, and the weights that ship."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
        clip = load_clip("storybook-clip")
    return render(tmp_path_factory.mktemp("scenes"), 8, size=(96, 128)), clip


@pytest.fixture(scope="module")
def found(clip):
    return measure_clip(clip, 4, sizes=((48, 64), (64, 48)), progress=False)


def test_average_precision_against_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 5, generator=generator)
    present = torch.rand(40, 5, generator=generator) < 0.3
    oracle = MultilabelAveragePrecision(num_labels=5, average="none")(scores, present.int())
    torch.testing.assert_close(average_precision(scores, present).float(), oracle)
    present[:, 2] = False
    assert average_precision(scores, present).isnan().tolist() == [False, False, True, False, False]
    by_hand = average_precision(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[True], [False], [True]]))
    assert by_hand.item() == pytest.approx((1 + 2 / 3) / 2)


def test_every_figure_is_there(found):
    assert set(ROWS) <= set(found)
    assert {"caa@64x48", "initial@48x64"} <= set(found)
    assert all(0 <= value <= 100 for value in found.values())
    assert found["initial"] == found["initial@64x48"]
    assert found["floor_everything"] < found["initial"]


@pytest.mark.parametrize("key", ["caa", "mhsa", *_INITIAL])
def test_figures_are_those_of_label_and_eval(embedded, key, tmp_path):
    """The same options, by way of files: pictures, tags, run folder, score maps, masks."""
    folder, clip = embedded
    options = {"affinity": "none", **_INITIAL[key]} if key in _INITIAL else {"affinity": key}
    bench = Bench.read(read_voc(folder, split="val", classes="voc12"), clip)
    found = bench.measure(crf=True, **options)
    data = read_voc(folder, split="val", classes="voc12")
    method = ClipES(data.classes, ClipESOptions.model_validate(options), clip=clip)
    label(data, method, tmp_path / "own", rule=replace(method.mask_rule, mu=None), progress=False)
    other = evaluate(tmp_path / "own", data, boundary=False, progress=False)
    best = {curve.source: curve.best for curve in other.curves}
    assert found.maps == pytest.approx(100 * best["maps"][1], abs=0.3)  # score maps are kept in half precision
    if "initial" in best:
        assert found.initial == pytest.approx(100 * best["initial"][1], abs=0.3)
    assert found.masks_own == pytest.approx(100 * other.miou, abs=0.3)
    bests = replace(method.mask_rule, mu=None, background=best["maps"][0])
    for name, rule in {"best": bests, "raw": replace(method.mask_rule, mu=None, refiner=None)}.items():
        label(data, method, tmp_path / name, rule=rule, progress=False)
    refined, raw = (evaluate(tmp_path / name, data, boundary=False, progress=False).miou for name in ("best", "raw"))
    assert found.masks == pytest.approx(100 * refined, abs=0.3)
    assert found.maps_own == pytest.approx(100 * raw, abs=0.3)


def test_every_row_is_of_options_of_its_own(embedded, clip):
    """A row whose options were lost would equal another; floors are of other weights."""
    found = measure_clip(embedded[1], 6, sizes=((64, 96), (96, 64)), progress=False)
    own = [key for key in found if "map_" not in key and "@96x64" not in key]  # of so few scenes mAPs may be alike
    assert [pair for pair in combinations(own, 2) if found[pair[0]] == pytest.approx(found[pair[1]])] == []
    blank = Bench.draw(clip, 8, size=(48, 64))
    assert blank.tag_map() != blank.tag_map(readout="patches")
    assert found["map_class"] > found["floor_map_class"]
    assert found["initial"] > found["floor_initial"]
    assert len({found[key] for key in ("caa", "caa_crf", "caa_own", "caa_crf_own")}) == 4


def test_every_row_is_of_what_it_says(embedded):
    clip = embedded[1]
    found = measure_clip(clip, 5, sizes=((64, 96), (96, 64)), progress=False)
    bench = Bench.draw(clip, 5, size=(64, 96))
    whole, blank = bench.measure(crf=True), bench.measure(crf=True, clip=untrained(clip, seed=0))
    initial = {
        "logits": {"score": "logits"},
        "no_background": {"background": False},
        "class_token": {"readout": "class"},
        "plain_names": {"synonyms": "none"},
    }
    expected = {
        "map_class": bench.tag_map(readout="class"),
        "map_patches": bench.tag_map(readout="patches"),
        "initial": whole.initial,
        "mhsa": bench.measure(affinity="mhsa").maps,
        "caa": whole.maps,
        "caa_crf": whole.masks,
        "caa_own": whole.maps_own,
        "caa_crf_own": whole.masks_own,
        **{key: bench.measure(affinity="none", **options).maps for key, options in initial.items()},
        "floor_map_class": bench.tag_map(clip=untrained(clip, seed=0)),
        "floor_initial": blank.initial,
        "floor_caa": blank.maps,
        "floor_caa_crf": blank.masks,
        "floor_caa_own": blank.maps_own,
        "floor_caa_crf_own": blank.masks_own,
        "floor_everything": bench.everything_foreground(),
    }
    assert expected.keys() == ROWS.keys()
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert (found["initial@96x64"], found["caa@96x64"]) == pytest.approx((whole.initial, whole.maps))
    other = Bench.draw(clip, 5, size=(96, 64)).measure()
    assert (found["initial@64x96"], found["caa@64x96"]) == pytest.approx((other.initial, other.maps))


def test_the_floor_is_the_first_tag_everywhere(clip):
    bench = Bench.draw(clip, 6, size=(32, 32))
    counts = torch.zeros(21, 21, dtype=torch.int64)
    for item, truth in zip(bench.items, bench.truths, strict=True):
        for value in truth.unique().tolist():
            if value < 21:
                counts[value, item.tags[0]] += (truth == value).sum()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    there = counts.sum(1) > 0
    assert any(len(item.tags) > 1 for item in bench.items)
    assert bench.everything_foreground() == pytest.approx(100 * float((counts.diagonal() / union)[there].mean()))


def test_scenes_to_choose_weights_by_are_not_those_of_the_card(clip):
    card, watch = (Bench.draw(clip, 3, size=(32, 32), seed=seed) for seed in (0, WATCH_SEED))
    assert not {item.id for item in card.items} & {item.id for item in watch.items}
    assert not any(torch.equal(a.image, b.image) for a in card.items for b in watch.items)
    scene = draw_scene(scene_seed("val", 0, 0), (32, 32), load_classes("voc12").foreground)
    assert torch.equal(card.truths[0], torch.from_numpy(scene.mask))
    assert card.items[0].tags.tolist() == list(scene.tags)


def test_tag_map_follows_the_truth(clip, monkeypatch):
    bench = Bench.draw(clip, 6, size=(32, 32))
    method = ClipES(bench.classes, clip=clip)
    rows = {item.id: method.class_features[0][item.tags - 1].sum(0, keepdim=True) for item in bench.items}
    monkeypatch.setattr(ClipES, "embeddings", lambda self, items: torch.cat([rows[item.id] for item in items]))
    right = bench.tag_map()
    longer = {item.id: 10.0**index for index, item in enumerate(bench.items)}  # a picture's length says nothing
    monkeypatch.setattr(
        ClipES, "embeddings", lambda self, items: torch.cat([longer[item.id] * rows[item.id] for item in items])
    )
    assert bench.tag_map() == pytest.approx(right)
    monkeypatch.setattr(ClipES, "embeddings", lambda self, items: -torch.cat([rows[item.id] for item in items]))
    assert bench.tag_map() < right


def test_tables_say_what_was_found(found, clip):
    few = markdown(found, clip, 4, "tag2mask storybook measure x -n 4")
    assert "Of 4 scenes" in few
    assert "reached |" not in few
    text = markdown(found, clip, 500, "tag2mask storybook measure x -n 500")
    for key, name in ROWS.items():
        assert f"| {name} | {found[key]:.1f} |" in text
    for claim in CLAIMS:
        assert claim.better in ROWS
        verdict = "yes" if claim.margin(found) >= claim.least else "no"
        assert f"| {claim.text} | {claim.margin(found):+.1f} | {verdict} |" in text
    assert "| 48x64 |" in text
    for apart, verdict in ((2.9, "yes"), (3.1, "no")):
        moved = {**found, "caa@64x48": 40.0, "caa@48x64": 40.0 - apart}
        assert f"| sizes within 3 points (CAA) | {apart} | {verdict} |" in markdown(moved, clip, 500, "x")
    assert Claim("", "a", "b", 3.0).margin({"a": 10.0, "b": 4.0}) == 6.0
    assert Claim("", "a", 12.0).margin({"a": 10.0}) == -2.0
