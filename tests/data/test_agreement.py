"""Truth against tags: other numberings are found and named, honest differences are not taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tag2mask.classes import class_index, fold, load_classes, plain_classes
from tag2mask.data.agreement import Agreement, Finding
from tag2mask.data.truth_values import COCO_IDS
from tag2mask.types import IGNORE, ClassSet

NAMES = ("ant", "bee", "cow", "dog", "elk", "fox")
SIX = plain_classes(NAMES, "six")


def scenes(count: int, classes: int = 6, seed: int = 0) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """(mask, tags) of images with one to three classes, each a rectangle with an ignored rim."""
    dice = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        tags = sorted(
            dice.choice(np.arange(1, classes + 1), dice.integers(1, min(4, classes + 1)), replace=False).tolist()
        )
        mask = np.zeros((20, 48), np.uint8)
        for place, tag in enumerate(tags):
            mask[3:17, 1 + 16 * place : 15 + 16 * place] = IGNORE
            mask[4:16, 2 + 16 * place : 14 + 16 * place] = tag
        out.append((mask, tuple(tags)))
    return out


def found(pairs, classes: ClassSet = SIX) -> Finding | None:
    agreement = Agreement(classes)
    for number, (mask, tags) in enumerate(pairs):
        agreement.add(f"im{number}", mask, tags)
    return agreement.finding()


def through(table: dict[int, int], pairs):
    """The same masks with other numbers."""
    lookup = np.arange(256, dtype=np.uint8)
    for value, number in table.items():
        lookup[value] = number
    return [(lookup[mask], tags) for mask, tags in pairs]


def test_what_fits_has_no_finding():
    assert found(scenes(30)) is None
    assert found([(mask, None) for mask, _ in scenes(30)]) is None


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("number", [1, 128, 255])
def test_masks_of_one_value_name_it(count, number):
    pairs = [((mask == 2).astype(np.uint8) * number, (2,)) for mask, tags in scenes(200) if 2 in tags][:count]
    said = found(pairs)
    assert said is not None
    assert said.refuse
    assert said.outside == (number == 128)
    assert f"--truth-values '{number}=bee'" in said.cause
    assert ("ignored, so no class" in said.cause) == (number == 255)


def test_masks_of_one_value_cannot_tell_classes_apart():
    pairs = [(np.where((mask > 0) & (mask < 255), 255, 0).astype(np.uint8), tags) for mask, tags in scenes(20)]
    said = found(pairs)
    assert said.refuse
    assert "cannot tell the 6 tagged classes apart" in said.cause
    assert "255=" not in said.cause


@pytest.mark.parametrize(
    ("table", "option"),
    [
        ({0: 255, **{value: value - 1 for value in range(1, 7)}}, "--truth-values from-0"),
        ({255: 0, 0: 1, **{value: value + 1 for value in range(1, 7)}}, "--truth-values from-2"),
    ],
)
@pytest.mark.parametrize("count", [6, 60])
def test_off_by_one_both_ways(table, option, count):
    said = found(through(table, scenes(count)))
    assert said.refuse
    assert option in said.cause


def test_another_order_is_named_in_full_where_the_tags_tell_it():
    table = {1: 3, 2: 5, 3: 1, 4: 2, 5: 4, 6: 6}
    said = found(through(table, scenes(60)))
    assert said.refuse
    assert "--truth-values '1=cow,2=dog,3=ant,4=elk,5=bee,6=fox'" in said.cause
    assert "1 is 'cow', 2 is 'dog', 3 is 'ant', 4 is 'elk', 5 is 'bee'" in said.cause


def test_no_order_is_advised_that_the_tags_do_not_tell():
    pairs = [pair for pair in scenes(200) if pair[1] == (1, 2)][:3]
    pairs += [pair for pair in scenes(200) if pair[1] == (4,)][:2]
    said = found(through({1: 2, 2: 3, 4: 1}, pairs))
    assert said.refuse
    assert "do not show what 2, 3 stand for" in said.cause
    assert "1 is 'dog'" in said.cause
    assert "=" not in said.cause.partition("Likely")[2]
    assert "--truth-values FILE" in said.cause


def test_two_classes_of_many_that_are_swapped_are_found():
    pairs = scenes(150, 20)
    voc = load_classes("voc12")
    said = found(through({8: 12, 12: 8}, pairs), voc)
    assert said.refuse
    assert "8 is 'dog', 12 is 'cat'" in said.cause


def test_cocos_ids_and_other_gaps():
    coco = load_classes("coco14")
    table = dict(enumerate(COCO_IDS, start=1))
    said = found(through(table, scenes(400, 80)), coco)
    assert said.outside
    assert "--truth-values coco-ids" in said.cause
    untagged = [(mask, None) for mask, _ in through(table, scenes(400, 80))]
    assert "--truth-values coco-ids" in found(untagged, coco).cause
    stray = np.full((8, 8), 83, np.uint8)  # between two of COCO's ids, and none of them
    assert "coco-ids" not in found([*untagged, (stray, None)], coco).cause
    assert found([(mask, None) for mask, _ in scenes(400, 80)], coco) is None
    said = found(through({1: 1, 2: 2, 3: 4, 4: 5, 5: 7, 6: 9}, scenes(60)))
    assert said.outside
    assert "with gaps" in said.cause
    assert "'1=ant,2=bee,4=cow,5=dog,7=elk,9=fox'" in said.cause


@pytest.mark.parametrize("count", [1, 3, 60])
@pytest.mark.parametrize(
    ("names", "called"),
    [(("cat", "dog", "train"), "voc12"), (("TV", "person", "sheep"), "voc12"), (("dog",), "voc12")],
)
def test_masks_in_the_numbers_of_a_public_set(names, called, count):
    classes, index = plain_classes(names, "tags"), class_index(load_classes(called))
    table = {own: index[fold(name)] for own, name in enumerate(names, start=1)}
    said = found(through(table, scenes(count, len(names))), classes)
    assert said.refuse
    assert f"give --classes {called}." in said.cause
    if count == 60:
        pairs = ",".join(f"{number}={names[own - 1]}" for own, number in sorted(table.items(), key=lambda p: p[1]))
        assert f"--truth-values '{pairs}'" in said.cause


def test_what_a_public_set_has_besides_the_tags_may_stand_in_the_masks():
    classes = plain_classes(("cat", "dog"), "tags")
    pairs = through({1: 8, 2: 12}, scenes(20, 2))
    for mask, _ in pairs:
        mask[:2] = 15  # a person, which nobody tagged
    said = found(pairs, classes)
    assert said.refuse
    assert "give --classes voc12." in said.cause
    assert "15=" not in said.cause
    for mask, _ in pairs:
        mask[:1] = 21  # no value of VOC's
    assert "voc12" not in found(pairs, classes).cause


def test_coco_ids_under_tags_of_a_few_of_its_classes():
    said = found(through({1: 17, 2: 18}, scenes(20, 2)), plain_classes(("cat", "dog"), "tags"))
    assert "give --classes coco14 --truth-values coco-ids." in said.cause
    said = found(through({1: 16, 2: 17}, scenes(20, 2)), plain_classes(("cat", "dog"), "tags"))
    assert "give --classes coco14." in said.cause


def test_a_public_set_is_no_hint_where_a_name_is_not_in_it_or_the_tags_do_not_bear_it_out():
    other = found(through({1: 8, 2: 12}, scenes(20, 2)), plain_classes(("cat", "ocelot"), "tags"))
    wrong = found(through({1: 12, 2: 8}, scenes(20, 2)), plain_classes(("cat", "dog"), "tags"))
    for said in (other, wrong):
        assert said.refuse
        assert "voc12" not in said.cause


@pytest.mark.parametrize("tagged", [True, False])
def test_interpolated_masks(tagged):
    pairs = []
    for mask, tags in scenes(20):
        smooth = ndimage.zoom(np.where(mask == IGNORE, 0, mask).astype(float), 2, order=1)
        pairs.append((smooth.round().astype(np.uint8), tags if tagged else None))
    said = found(pairs)
    assert said.refuse
    assert "interpolation" in said.cause
    assert found([(np.kron(mask, np.ones((2, 2), np.uint8)), tags) for mask, tags in scenes(20)]) is None


@pytest.mark.parametrize("seed", range(4))
def test_honest_differences_are_a_note(seed):
    dice = np.random.default_rng(seed)
    pairs = scenes(120, 20, seed)
    voc = load_classes("voc12")
    main = [(mask, tags[:1]) for mask, tags in pairs]  # the main object alone is tagged
    noisy = [
        (m, tuple({t if dice.random() < 0.85 else int(dice.integers(1, 21)) for t in tags})) for m, tags in pairs
    ]
    small = [(np.where(mask == tags[0], 0, mask) if dice.random() < 0.3 else mask, tags) for mask, tags in pairs]
    for each in (main, noisy, small):
        said = found(each, voc)
        assert said is not None
        assert not said.refuse
        assert said.cause == ""
        assert "tags are in no truth" in said.text


def test_one_wrong_tag_in_a_few_images_is_a_note():
    pairs = scenes(4)
    mask, tags = pairs[0]
    wrong = next(tag for tag in range(1, 7) if tag not in tags)
    assert not found([(mask, (*tags[1:], wrong)), *pairs[1:]]).refuse
    one = [(np.where(mask == IGNORE, 0, tag * (mask > 0)).astype(np.uint8), (tag,)) for tag in (1, 2, 3)]
    assert not found([*one[:2], (one[2][0], (4,))]).refuse
    assert found([(mask, (wrong,))]).refuse, "where nothing fits at all, the user is asked"


def test_counts_are_those_of_the_images():
    blank = np.zeros((6, 6), np.uint8)
    bee, bees = blank.copy(), blank.copy()
    bee[1:5, 1:5] = 2
    bees[1:5, 1:3], bees[1:5, 3:5] = 2, 3
    said = found([(bee, (2,)), (bees, (2,)), (bee, (1, 2)), (blank, ()), (bees, None)] + [(bee, (2,))] * 6)
    assert said.text.startswith(
        "truth and tags differ (of 10 images with known tags): 1 of 10 tags are in no truth of their image, and 1 "
        "images hold a class that is not tagged"
    )
    assert "im2 is tagged ant" in said.text
    assert "im1 holds cow, tagged bee" in said.text


def test_values_outside_are_counted_with_and_without_tags():
    agreement = Agreement(SIX)
    odd = np.zeros((8, 8), np.uint8)
    odd[:4] = 9
    assert agreement.add("good", np.full((8, 8), 6, np.uint8), None)
    assert not agreement.add("bad", odd, None)
    said = agreement.finding()
    assert said.outside
    assert "of 1 of 2 images" in said.text
    assert "9 (bad (9)), expected 0 to 6, or 255" in said.text
    assert "VALUE=ignore" in said.cause


def test_truth_that_is_ignored_as_a_whole_says_nothing():
    assert found([*scenes(3), *[(np.full((9, 9), IGNORE, np.uint8), (1, 2))] * 9]) is None


def test_memory_does_not_grow():
    agreement = Agreement(SIX)
    wrong = through({value: value % 6 + 1 for value in range(1, 7)}, scenes(300))
    sizes = []
    for number, (mask, tags) in enumerate(wrong):
        agreement.add(f"im{number}", mask, tags)
        sizes.append(sum(map(len, agreement.examples.values())))
    assert sizes[-1] == sizes[20] <= 9
