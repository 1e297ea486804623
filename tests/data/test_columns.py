from __future__ import annotations

import gc
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tag2mask.classes import load_classes
from tag2mask.data.columns import Columns, ColumnsBuilder
from tag2mask.data.png import encode_mask
from tag2mask.data.truth import MaskFolders
from tag2mask.types import Dataset, UserError
from tag2mask.words import listing

VOC = load_classes("voc12")
ROOT = Path("/data")


def zeros(name):
    return np.zeros((2, 2), np.uint8)


def build(rows, **options):
    builder = ColumnsBuilder()
    for row in rows:
        builder.add(*row)
    return builder.build(VOC, ROOT, **options)


part = st.text(st.characters(exclude_characters="/\0\\", exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda s: s not in (".", "..")
)
rows = st.lists(
    st.tuples(
        st.lists(part, min_size=1, max_size=3).map("/".join),
        part,
        st.none() | st.sets(st.integers(1, 20), max_size=4).map(tuple),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda row: row[0],
)


@settings(deadline=None)
@given(rows, st.data())
def test_what_goes_in_comes_out(rows, data):
    dataset = build(rows, truth=zeros)
    assert len(dataset) == len(rows)
    for sample, (name, image, tags, has_truth) in zip(dataset, rows, strict=True):
        assert sample.id == name
        assert sample.image == ROOT / image
        assert sample.tags == (None if tags is None else tuple(sorted(tags)))
        assert (sample.truth is not None) == has_truth
    which = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=10)) if rows else []
    assert [s.id for s in dataset.subset(which)] == [rows[i][0] for i in which]
    assert [s.tags for s in dataset.subset(which)] == [dataset[i].tags for i in which]
    assert [str(s.image) for s in dataset.subset(which)] == [str(dataset[i].image) for i in which]
    back = pickle.loads(pickle.dumps(dataset))
    assert [s.tags for s in back] == [s.tags for s in dataset]


def test_it_is_a_dataset():
    assert isinstance(build([("a", "a.jpg", None)]), Dataset)


def test_truth_is_read_when_asked_for_and_not_before():
    asked = []

    def truth(name):
        asked.append(name)
        return np.full((1, 1), 7, np.uint8)

    dataset = build([("a", "a.jpg", (1,), True), ("b", "b.jpg", (1,), False)], truth=truth)
    samples = list(dataset)
    assert asked == []
    assert samples[0].truth()[0, 0] == 7
    assert asked == ["a"]
    assert samples[1].truth is None


def test_indices():
    dataset = build([("a", "a.jpg", (1,)), ("b", "b.jpg", ()), ("c", "c.jpg", None)])
    assert dataset[-1].id == "c"
    assert dataset[np.int64(1)].tags == ()
    for index in (3, -4):
        with pytest.raises(IndexError):
            dataset[index]
    assert [s.id for s in dataset.subset(np.array([2, 0]))] == ["c", "a"]
    assert [s.id for s in dataset.subset(range(1, 3))] == ["b", "c"]
    assert [s.id for s in dataset.subset(["c", "b"])] == ["c", "b"]
    assert len(dataset.subset([])) == 0
    assert len(dataset.subset(i for i in (0, 0, 1))) == 3
    with pytest.raises(IndexError):
        dataset.subset([3])
    with pytest.raises(UserError, match="1 of 2 ids are not in"):
        dataset.subset(["a", "x"])


def test_tags_are_sorted_and_without_repeats():
    assert build([("a", "a.jpg", [15, 3, 15])])[0].tags == (3, 15)


@pytest.mark.parametrize("name", ["/a", "../a", "a/../b", "", "a//b", "./a", "a/"])
def test_ids_stay_inside_their_folder(name):
    with pytest.raises(UserError, match="does not stay inside"):
        ColumnsBuilder().add(name, "a.jpg", None)


def test_faults_of_a_reader_are_noticed():
    with pytest.raises(ValueError, match="share an id"):
        build([("a", "a.jpg", None), ("a", "b.jpg", None)])
    for tag in (0, 21):
        with pytest.raises(ValueError, match="1 to 20"):
            build([("a", "a.jpg", (tag,))])


def test_names_that_are_not_utf8():
    dataset = build([("caf\udce9", "caf\udce9.jpg", None)])
    assert dataset[0].id == "caf%E9"
    assert dataset[0].id.encode()
    assert dataset[0].image.name == "caf\udce9.jpg"  # the file itself is still found


def coco_like(count):
    builder = ColumnsBuilder()
    for n in range(count):
        builder.add(f"train2014/COCO_train2014_{n:012d}", f"train2014/COCO_train2014_{n:012d}.jpg", (1, 15, 20))
    return builder.build(VOC, ROOT, MaskFolders((ROOT,)))


def test_a_million_samples_take_at_most_200_bytes_each():
    dataset = coco_like(10_000).subset(np.tile(np.arange(10_000), 100))
    assert len(dataset) == 1_000_000
    assert dataset.nbytes < 200 * len(dataset)
    assert dataset[999_999].image == ROOT / "train2014/COCO_train2014_000000009999.jpg"


def test_nothing_is_held_beside_the_columns():
    coco_like(10)  # what is imported or cached at the first call is not the columns'
    gc.collect()
    tracemalloc.start()
    try:
        dataset = coco_like(5_000)
        held, _ = tracemalloc.get_traced_memory()
        assert held < 1.1 * dataset.nbytes + 20_000
        grown = []
        for _ in range(4):
            before, _ = tracemalloc.get_traced_memory()
            for _ in dataset:
                pass
            grown.append(tracemalloc.get_traced_memory()[0] - before)
        # samples are made, not kept; Python's own table of path parts may grow in one round, hence the least
        assert min(grown) < 20_000
    finally:
        tracemalloc.stop()


def test_ground_truth_folders(tmp_path):
    for folder, name, value in [("one", "a", 1), ("two", "a", 2), ("two", "sub/b", 3), ("two", "c", 4)]:
        path = tmp_path / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_mask(np.full((2, 3), value, np.uint8), VOC.palette))
    masks = MaskFolders((tmp_path / "one", tmp_path / "two"))
    assert masks("a").mask[0, 0] == 1
    assert masks("sub/b").mask[0, 0] == 3
    assert masks("c.jpg").mask[0, 0] == 4
    assert (masks.has("a"), masks.has("sub/b"), masks.has("c.jpg"), masks.has("b")) == (True, True, True, False)


def test_listing():
    assert listing(["a", "b"]) == "a, b"
    assert listing(list("abcdefg"), most=3) == "a, b, c and 4 more"


def test_a_subset_keeps_what_belongs_to_the_whole():
    dataset = build([("a", "a.jpg", (1,), True)], truth=zeros, notes=["said"])
    part = dataset.subset([0])
    assert isinstance(part, Columns)
    assert (part.notes, part.truth, part.classes, part.root) == (("said",), zeros, VOC, ROOT)
