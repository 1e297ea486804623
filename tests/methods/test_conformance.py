"""What every method must do, whatever it is: one set of tests over METHODS and over a toy of each kind."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from methods.toys import CLASSES, TOYS, TrainingFree, make_data
from tag2mask.data.image import read_image
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.methods import METHODS, make_method, method_class
from tag2mask.models.backbone import Layout
from tag2mask.models.classifier import Classifier, save_classifier
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.ops.masks import upsample
from tag2mask.run.folder import Run
from tag2mask.run.training import steps_done
from tag2mask.stages.fit import FIT_DATA, FITTED, fitted_digest, learns
from tag2mask.stages.label import label
from tag2mask.types import IGNORE, ClassSet, Item, Method, Online, Prior, TextSet, Trainable
from tiny_clips import oracle, write_tokenizer


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Images this small are not worth a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


WORDS = TextSet(names=("red", "cat", "dog"), templates=("a photo of the {}.",), background=("photo", "the"))

GIVEN = "classifier-cam given"
"""The method that may label without having learned, as it does that."""

FITS = {
    "classifier-cam": {"steps": 2, "batch": 2, "crop": 32, "long_side": (24, 40)},
    "clims": {"steps": 2, "batch": 2, "crop": 32, "long_side": (24, 40)},
    "irn": {"steps": 2, "batch": 2, "crop": 36, "radius": 5, "displacement_width": 32, "walk_steps": 8},
    "psa": {"steps": 2, "batch": 2, "crop": 72, "walk_steps": 8},
}
"""Options that make a real method's fit a matter of a second."""


@dataclass
class Case:
    """A method ready for use on a small data set, with the earlier run that it starts from, if any."""

    name: str
    method: Method
    data: object
    prior: Run | None
    fitted: Run | None
    folder: Path

    def items(self) -> list[Item]:
        return [
            Item(
                sample.id,
                torch.from_numpy(read_image(sample.image)).permute(2, 0, 1).contiguous(),
                torch.tensor(sample.tags),
                self.prior
                and Prior(
                    lambda id=sample.id: self.prior.scores(id),
                    lambda id=sample.id: torch.from_numpy(read_mask(self.prior.mask_path(id))),
                ),
            )
            for sample in self.data
        ]

    def label(self, out: str, **more):
        more = {"fitted": self.fitted, **more}
        return label(self.data, self.method, self.folder / out, prior=self.prior, progress=False, **more)


@functools.cache
def random_clip() -> CLIP:
    """A tiny CLIP with random weights, which knows the words of ``WORDS``."""
    with tempfile.TemporaryDirectory() as folder:
        oracle().save_pretrained(folder)
        write_tokenizer(Path(folder))
        return load_clip(folder, cache=None)


@functools.cache
def random_classifier() -> tempfile.TemporaryDirectory:
    """The folder of a tiny classifier with random weights, of the toys' classes."""
    folder = tempfile.TemporaryDirectory()
    torch.manual_seed(0)
    layout = Layout(blocks=(1, 1, 1, 1), width=4, strides=(1, 2, 2, 1))
    save_classifier(Classifier(CLASSES.foreground, layout), folder.name, "random")
    return folder


def build(name: str, classes: ClassSet) -> Method:
    if name in TOYS:
        return TOYS[name](classes, None, TOYS[name].Options())
    kind = name.removesuffix(" given")
    made = method_class(kind)
    options = {"weights": random_classifier().name} if "weights" in made.Options.model_fields else {}
    options |= FITS.get(name, {})
    return make_method(kind, classes, clip=random_clip() if made.needs_clip else None, **options)


@pytest.fixture(scope="module", params=[*METHODS, GIVEN, *TOYS])
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    data = make_data(folder / "images", count=7)
    data.classes = replace(CLASSES, texts={request.param: WORDS})
    method = build(request.param, data.classes)
    prior = fitted = None
    if method.needs_prior:
        label(data, TrainingFree(CLASSES, None, TrainingFree.Options()), folder / "prior", progress=False)
        prior = Run.open(folder / "prior")
    if learns(method):
        label(data, method, folder / "fit", prior=prior, fit_only=True, progress=False)
        fitted = Run.open(folder / "fit")
        method = build(request.param, data.classes)
        method.load(fitted)
    return Case(request.param, method, data, prior, fitted, folder)


def test_is_a_method(case):
    assert isinstance(case.method, Method)
    assert isinstance(case.method.needs_prior, bool)
    for size in [(1, 1), (24, 32), (17, 23)]:
        height, width = case.method.grid(size)
        assert height >= 1
        assert width >= 1


def test_shapes_and_values(case):
    items = case.items()
    for item, scores in zip(items, case.method.scores(items), strict=True):
        size = tuple(item.image.shape[1:])
        grid = case.method.grid(size)
        assert scores.tags.dtype == torch.int64
        assert scores.tags.tolist() == item.tags.tolist()
        assert scores.maps.dtype == torch.float32
        assert tuple(scores.maps.shape) == (len(item.tags), *grid)
        assert tuple(scores.size) == size
        for maps in (scores.maps, scores.background, scores.initial):
            if maps is not None:
                assert torch.isfinite(maps).all()
                assert maps.min() >= 0
                at_pixels = maps if maps.ndim == 3 else maps[None]
                # a cell between pixels may be higher
                assert upsample(at_pixels, size, scores.frame).max() <= 1 + 1e-6
        if scores.background is not None:
            assert tuple(scores.background.shape) == grid
        if scores.initial is not None:
            assert scores.initial.shape == scores.maps.shape
        if scores.frame is not None:
            assert scores.frame[0] >= size[0]
            assert scores.frame[1] >= size[1]


def test_the_same_again(case):
    first, second = (case.method.scores(case.items()) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.maps, b.maps)


def test_mixed_sizes_at_once_are_as_one_by_one(case):
    items = case.items()
    together = case.method.scores(items)
    for item, scores in zip(items, together, strict=True):
        alone = case.method.scores([item])[0]
        torch.testing.assert_close(scores.maps, alone.maps, rtol=1e-3, atol=1e-4)


def test_leaves_its_input_alone(case):
    items, before = case.items(), case.items()
    case.method.scores(items)
    for a, b in zip(items, before, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.tags, b.tags)


def test_label_writes_what_only_the_tags_allow(case):
    summary = case.label("run")  # the data's truth raises when it is read
    assert (summary.done, summary.failed, summary.complete) == (len(case.data), 0, True), summary.errors
    run = Run.open(case.folder / "run")
    assert run.ids() == sorted(sample.id for sample in case.data)
    for sample in case.data:
        mask = read_mask(run.mask_path(sample.id))
        assert mask.shape == read_image(sample.image).shape[:2]
        assert set(mask.ravel().tolist()) <= {0, IGNORE, *sample.tags}
        assert read_confidence(run.confidence_path(sample.id)).shape == mask.shape
        assert run.scores(sample.id).tags.tolist() == list(sample.tags)


def test_stopped_and_gone_on_is_as_never_stopped(case, monkeypatch):
    case.label("whole", batch_size=2)
    found, calls = case.method.scores, []

    def interrupted(items):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return found(items)

    monkeypatch.setattr(case.method, "scores", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt, match="saved"):
        case.label("stopped", batch_size=2)
    assert case.label("stopped", batch_size=2).skipped > 0
    assert artefacts(case.folder / "stopped") == artefacts(case.folder / "whole")


def test_two_shards_are_one_run(case):
    case.label("one")
    assert sum(case.label("two", shard=(i, 2)).total for i in (0, 1)) == len(case.data)
    assert artefacts(case.folder / "two") == artefacts(case.folder / "one")


class Killed(BaseException):
    """As good as kill -9: nothing of this package cleans up after it."""


def test_fit_goes_on_where_it_stopped(case, monkeypatch):
    """A fit that is killed after every file or two that it writes leaves what an uninterrupted one leaves."""
    if case.fitted is None:
        pytest.skip("nothing to fit")
    monkeypatch.setattr("tag2mask.segment.affinity_training.SAVE_STEPS", 1)
    monkeypatch.setattr("tag2mask.methods.fitting.classifier.SAVE_STEPS", 1)
    folder, replace_file, written, left = case.folder / "fit-again", os.replace, [], []

    def breaking(source, target, **more):
        if folder / "checkpoints" in Path(target).parents and Path(target).name != FIT_DATA:
            if len(written) == 1 + len(left) % 2:
                left.append(steps_done(folder / "checkpoints"))
                raise Killed
            written.append(target)
        return replace_file(source, target, **more)

    monkeypatch.setattr(os, "replace", breaking)
    for _ in range(30):
        written.clear()
        try:
            case.label("fit-again", fitted=None, fit_only=True)
        except Killed:
            case.method = build(case.name, case.data.classes)  # another process knows nothing
            case.method.load(case.fitted)
            continue
        break
    assert learned(Run.open(folder)) == learned(case.fitted)
    if case.name in FITS:  # killed between its two steps, too
        assert 1 in left


def test_a_fit_forgets_what_the_object_learned_before(case):
    if case.fitted is None:
        pytest.skip("nothing to fit")
    case.label("fit-once-more", fitted=None, fit_only=True)  # this object has loaded a fit
    assert learned(Run.open(case.folder / "fit-once-more")) == learned(case.fitted)


def test_label_fits_first_and_another_run_may_take_the_fit(case):
    if case.fitted is None:
        pytest.skip("nothing to fit")
    method = build(case.name, case.data.classes)
    summary = label(case.data, method, case.folder / "here", prior=case.prior, progress=False)
    assert summary.done == len(case.data)
    assert learned(Run.open(case.folder / "here")) == learned(case.fitted)
    case.label("taken")
    taken = Run.open(case.folder / "taken")
    assert not taken.checkpoints.exists()
    assert taken.settings["fitted"] == {"sha256": fitted_digest(case.fitted)}
    assert artefacts(case.folder / "here") == artefacts(case.folder / "taken")


def learned(run: Run) -> dict[str, bytes]:
    """What a fit left, and its own list of it."""
    names = json.loads((run.checkpoints / FITTED).read_text())
    return {name: (run.checkpoints / name).read_bytes() for name in [*names, FITTED]}


def test_an_online_method_has_a_network(case):
    if not isinstance(case.method, Online):
        pytest.skip("no network")
    logits = case.method.network(case.fitted)(torch.rand(2, 3, 24, 32))
    assert logits.shape[:2] == (2, len(case.data.classes))
    assert logits.ndim == 4


def test_the_toys_are_of_the_kinds_they_say():
    kinds = {name: TOYS[name](CLASSES, None, TOYS[name].Options()) for name in TOYS}
    assert {name for name, method in kinds.items() if isinstance(method, Trainable)} == set(TOYS) - {
        "toy-training-free"
    }
    assert {name for name, method in kinds.items() if isinstance(method, Online)} == {"toy-online"}
    assert {name for name, method in kinds.items() if method.needs_prior} == {"toy-refiner"}


def artefacts(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for kind in ("masks", "confidence", "scores")
        for path in sorted((folder / kind).rglob("*"))
        if path.is_file()
    }
