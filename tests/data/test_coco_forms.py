"""COCO files as programs write them: ids, paths of images, categories, and what has two meanings."""

from __future__ import annotations

import json
import unicodedata

import pytest

from coco_files import BOX, content, write
from tag2mask.classes import load_classes, plain_classes
from tag2mask.data import read_coco, read_dataset
from tag2mask.types import UserError


def noted(dataset, *words):
    """Whether one of the notes has all of these words."""
    return any(all(word in note for word in words) for note in dataset.notes)


# --- ids ---


@pytest.mark.parametrize("part", ["image_id", "category_id"])
def test_ids_of_another_type_are_read_as_text(tmp_path, part):
    plain = read_coco(write(tmp_path, content()))
    assert not noted(plain, "another type")
    what = content()
    for row in what["annotations"]:
        row[part] = str(row[part])
    dataset = read_coco(write(tmp_path, what))
    assert [sample.tags for sample in dataset] == [(1,), (1,)]
    assert dataset[1].truth().any()
    assert noted(dataset, part, "another type", ": 2 (")


def test_ids_that_are_alike_are_refused(tmp_path):
    what = content()
    what["images"][1]["id"] = "1"
    with pytest.raises(UserError, match="1 and '1' stand beside each other"):
        read_coco(write(tmp_path, what))


def test_whole_floats_are_numbers(tmp_path):
    what = content()
    what["annotations"][1]["image_id"] = 2.0
    what["categories"][0]["id"] = 1.0
    dataset = read_coco(write(tmp_path, what))
    assert [sample.tags for sample in dataset] == [(1,), (1,)]
    assert not noted(dataset, "another type")


@pytest.mark.parametrize("value", ["true", "NaN", "Infinity", "1.5", "null", "[1]", "{}", "1e400", "-Infinity"])
@pytest.mark.parametrize(("part", "key"), [("images", "id"), ("annotations", "image_id"),
                                           ("annotations", "category_id"), ("categories", "id")])  # fmt: skip
def test_odd_ids_are_named(tmp_path, part, key, value):
    what = content()
    what[part][0][key] = "HERE"
    path = write(tmp_path, json.dumps(what).replace('"HERE"', value))
    with pytest.raises(UserError, match=r"instances_x\.json: .*id.* expected a whole number or text"):
        read_coco(path)


def test_huge_ids_are_exact(tmp_path):
    what = content()
    for n in (0, 1):  # one apart, and the same as floats
        what["images"][n]["id"] = what["annotations"][n]["image_id"] = 2**60 + n
    what["annotations"][1]["category_id"] = 2
    assert [sample.tags for sample in read_coco(write(tmp_path, what))] == [(1,), (2,)]


def test_two_files_under_one_id(tmp_path):
    what = content()
    what["images"][1]["id"] = 1
    with pytest.raises(UserError, match=r"id 1, 'a\.jpg' and 'b\.jpg'"):
        read_coco(write(tmp_path, what))


def test_a_row_that_is_there_twice_counts_once(tmp_path):
    what = content()
    what["images"].append(dict(what["images"][0]))
    dataset = read_coco(write(tmp_path, what))
    assert [sample.id for sample in dataset] == ["a", "b"]
    assert noted(dataset, "twice", ": 1 (a.jpg)")
    what["images"][2]["width"] = 7
    with pytest.raises(UserError, match=r"'a\.jpg', stands there twice, as 30 x 20 and as 7 x 20"):
        read_coco(write(tmp_path, what))


def test_one_file_under_two_ids_is_one_image(tmp_path):
    what = content(("a.jpg", "b.jpg", "./a.jpg"))
    what["annotations"][2] |= {"category_id": 2, "segmentation": [[20, 3, 25, 3, 25, 8, 20, 8]]}
    dataset = read_coco(write(tmp_path, what))
    assert [(sample.id, sample.tags) for sample in dataset] == [("a", (1, 2)), ("b", (1,))]
    mask = dataset[0].truth()
    assert (mask[5, 5], mask[5, 22]) == (1, 2)
    assert noted(dataset, "several ids", ": 1 (a.jpg)")
    del what["annotations"][2]["segmentation"]
    assert read_coco(write(tmp_path, what))[0].truth is None
    what["images"][2]["height"] = 21
    with pytest.raises(UserError, match=r"several ids, with different sizes .*1: 30 x 20, 3: 30 x 21"):
        read_coco(write(tmp_path, what))


def test_annotations_of_no_image_are_counted(tmp_path):
    what = content()
    what["annotations"] += [{"id": 5, "image_id": 77, "category_id": 2}, {"id": 6, "image_id": 78, "category_id": 2}]
    dataset = read_coco(write(tmp_path, what))
    assert [sample.tags for sample in dataset] == [(1,), (1,)]
    assert noted(dataset, "does not list", ": 2 (", "77, 78")
    for row in what["annotations"]:
        row["image_id"] = "00" + str(row["image_id"])
    with pytest.raises(
        UserError, match="none of its 4 annotations belongs to an image: they say image_id '001', '002'"
    ):
        read_coco(write(tmp_path, what))


def test_category_ids_with_two_names(tmp_path):
    what = content()
    what["categories"].append({"id": 1, "name": "cat"})
    assert read_coco(write(tmp_path, what)).classes.foreground == ("cat", "dog")
    what["categories"].append({"id": 1, "name": "cow"})
    with pytest.raises(UserError, match="category id 1 stands for 'cat' and for 'cow'"):
        read_coco(write(tmp_path, what))


# --- JSON ---


@pytest.mark.parametrize("odd", ["[" * 100_000, '{"images": [' + "9" * 5000 + "]}", '{"images": []', "\xff"])
def test_what_is_no_json(tmp_path, odd):
    with pytest.raises(UserError, match=r"not JSON|has no 'images'"):
        read_coco(write(tmp_path, odd))


def test_keys_that_stand_twice(tmp_path):
    text = json.dumps(content())
    with pytest.raises(UserError, match="the key 'annotations' stands twice"):
        read_coco(write(tmp_path, text[:-1] + ', "annotations": []}'))
    with pytest.raises(UserError, match="the key 'file_name' stands twice"):
        read_coco(write(tmp_path, text.replace('"file_name": "a.jpg"', '"file_name": "a.jpg", "file_name": "b.jpg"')))
    same = text.replace('"file_name": "a.jpg"', '"file_name": "a.jpg", "file_name": "a.jpg"')
    assert len(read_coco(write(tmp_path, same))) == 2


@pytest.mark.parametrize("name", [None, [], True])
def test_categories_without_a_name(tmp_path, name):
    what = content()
    what["categories"][0]["name"] = name
    with pytest.raises(UserError, match="category 1 is called"):
        read_coco(write(tmp_path, what))


# --- paths ---

ELSEWHERE = ["/data/upload/1/{}", "images/{}",
             "images\\1/{}", "..\\..\\label-studio\\media\\{}", "C:\\pictures\\{}",
             "../{}", "s3://bucket/some/{}", "http://host/data/{}?x=1",
             "1a2b3c4d-{}", "/data/7/1a2b3c4d-{}"]  # fmt: skip


@pytest.mark.parametrize("form", ELSEWHERE)
@pytest.mark.parametrize("given", [True, False])
def test_paths_from_elsewhere(tmp_path, form, given):
    path = write(tmp_path, content((form.format("a.jpg"), form.format("b.jpg"))))
    dataset = read_coco(path, tmp_path / "images" if given else None)
    inner = "" if dataset.root == tmp_path / "images" else "images/"  # from the file's own folder it is no other path
    assert [sample.id for sample in dataset] == [f"{inner}a", f"{inner}b"]
    assert [sample.image for sample in dataset] == [tmp_path / "images/a.jpg", tmp_path / "images/b.jpg"]
    assert noted(dataset, "another path", ": 2 (", "is a.jpg") != bool(inner)
    assert dataset[0].truth().any()


@pytest.mark.parametrize("form", ["./{}", ".//{}", "x/../{}", ".\\{}"])
def test_paths_that_say_the_same(tmp_path, form):
    dataset = read_coco(write(tmp_path, content((form.format("a.jpg"), form.format("b.jpg")))))
    assert [sample.id for sample in dataset] == ["a", "b"]
    assert not noted(dataset, "another path")


def test_other_case_and_unicode_forms(tmp_path):
    there = ("Ä 1.jpg", "b.JPG")
    files = (unicodedata.normalize("NFD", "ä 1.jpg"), "B.jpg")
    dataset = read_coco(write(tmp_path, content(files), there))
    assert [sample.image.name for sample in dataset] == list(there)
    assert noted(dataset, "another path", ": 2 (")
    assert dataset[1].truth().any()


def test_the_longest_end_of_a_path_counts(tmp_path):
    there = ("1/a.jpg", "2/a.jpg", "a.jpg")
    what = content(("old/2/a.jpg", "/x/1/A.jpg", "a.jpg"))
    dataset = read_coco(write(tmp_path, what, there), tmp_path / "images")
    assert [sample.id for sample in dataset] == ["2/a", "1/a", "a"]


def test_a_bare_name_is_found_in_a_folder(tmp_path):
    dataset = read_coco(write(tmp_path, content(), ("x/a.jpg", "y/b.jpg")), tmp_path / "images")
    assert [sample.id for sample in dataset] == ["x/a", "y/b"]
    assert noted(dataset, "another path", "a.jpg is x/a.jpg")


def test_a_bare_name_that_several_files_have(tmp_path):
    path = write(tmp_path, content(), ("x/a.jpg", "y/a.jpg", "b.jpg"))
    with pytest.raises(UserError, match=r"several files .*'a\.jpg' \(x/a\.jpg, y/a\.jpg\)"):
        read_coco(path, tmp_path / "images")


def test_a_file_that_several_names_could_mean(tmp_path):
    with pytest.raises(UserError, match=r"'train/a\.jpg', 'val/a\.jpg' could each be 'a\.jpg'"):
        read_coco(write(tmp_path, content(("train/a.jpg", "val/a.jpg")), ("a.jpg",)))


def test_a_file_belongs_to_the_row_that_names_it(tmp_path):
    for other in ("old/a.jpg", "A.jpg", "1a2b3c4d-a.jpg"):
        dataset = read_coco(write(tmp_path, content(("a.jpg", other))))
        assert [sample.image.name for sample in dataset] == ["a.jpg"]
        assert noted(dataset, "not in", f": 1 ({other})")


def test_another_folder_is_another_image(tmp_path):
    dataset = read_coco(write(tmp_path, content(("cat/a.jpg", "b.jpg")), ("dog/a.jpg", "b.jpg")))
    assert [sample.id for sample in dataset] == ["b"]
    assert noted(dataset, "not in", ": 1 (cat/a.jpg)")


def test_lvis_has_urls_only(tmp_path):
    what = content()
    for row in what["images"]:
        row["coco_url"] = "http://images.cocodataset.org/val2017/" + row.pop("file_name")
    path = write(tmp_path, what, ("val2017/a.jpg", "train2017/a.jpg", "val2017/b.jpg"))
    assert [sample.id for sample in read_coco(path, tmp_path / "images")] == ["val2017/a", "val2017/b"]
    assert [sample.id for sample in read_coco(path, tmp_path / "images/val2017")] == ["a", "b"]


@pytest.mark.parametrize("name", [None, "", "..", 7, ["a.jpg"], "./"])
def test_rows_without_a_file(tmp_path, name):
    what = content()
    what["images"][0]["file_name"] = name
    with pytest.raises(UserError, match="image 1 has"):
        read_coco(write(tmp_path, what))


# --- classes ---


def test_the_categories_are_the_classes(tmp_path):
    what = content(names=("zebu", "cat"))
    what["categories"].reverse()  # the order is that of the ids
    path = write(tmp_path, what)
    dataset = read_coco(path)
    assert dataset.classes.foreground == ("zebu", "cat")
    assert noted(dataset, "2 classes are those named in instances_x.json", "'zebu', 'cat'")
    assert noted(dataset, "no annotation", ": 1 ('cat')")
    with pytest.raises(UserError, match="'zebu' \\(2x"):
        read_coco(path, classes="coco14")
    (tmp_path / "classes.yaml").write_text("names: [cow, zebu]")
    assert read_coco(path)[0].tags == (2,)
    assert read_coco(path, classes="file")[0].tags == (1,)


def test_coco14_is_taken_where_it_fits(tmp_path):
    names = load_classes("coco14").foreground[::-1]
    path = write(tmp_path, content(names=names))
    dataset = read_coco(path)
    assert (dataset.classes.id, dataset[0].tags) == ("coco14", (80,))
    assert noted(dataset, "classes are coco14's")
    assert read_coco(path, classes="file").classes.foreground == names
    assert read_coco(write(tmp_path, content(names=names[1:]))).classes.foreground == names[1:]
    assert read_coco(write(tmp_path, content(names=(*names, "zebu")))).classes.foreground == (*names, "zebu")


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "__background__"])
@pytest.mark.parametrize("key", [0, 9])
def test_background_is_no_class(tmp_path, name, key):
    what = content()
    what["categories"].append({"id": key, "name": name})
    what["annotations"][1]["category_id"] = key
    path = write(tmp_path, what)
    for classes in (None, "file", plain_classes(["cat", "dog"], "two")):
        dataset = read_coco(path, classes=classes)
        assert dataset.classes.foreground == ("cat", "dog")
        assert [sample.tags for sample in dataset] == [(1,), ()]
        assert not dataset[1].truth().any()
        assert noted(dataset, "background", "mask value 0")
        assert noted(dataset, "annotated as background", ": 1 (b.jpg)")


def test_the_project_that_roboflow_lists_is_no_class(tmp_path):
    what = content()
    for row in what["categories"]:
        row["supercategory"] = "pets"
    what["categories"].insert(0, {"id": 0, "name": "Pets", "supercategory": "none"})
    dataset = read_coco(write(tmp_path, what))
    assert dataset.classes.foreground == ("cat", "dog")
    assert noted(dataset, "category 0, 'Pets'")
    what["annotations"].append({"id": 3, "image_id": 1, "category_id": 0, "segmentation": BOX})
    assert read_coco(write(tmp_path, what)).classes.foreground == ("Pets", "cat", "dog")
    del what["annotations"][2]
    what["categories"][1]["supercategory"] = "animals"
    dataset = read_coco(write(tmp_path, what))
    assert dataset.classes.foreground == ("Pets", "cat", "dog")
    assert noted(dataset, "no annotation", "'Pets'")


def test_categories_of_one_name_are_one_class(tmp_path):
    what = content(names=("Cat", "cat"))
    what["annotations"][1]["category_id"] = 2
    dataset = read_coco(write(tmp_path, what))
    assert dataset.classes.foreground == ("Cat",)
    assert [sample.tags for sample in dataset] == [(1,), (1,)]
    assert dataset[1].truth().max() == 1


def test_images_without_objects_are_background_and_said(tmp_path):
    what = content()
    del what["annotations"][1]
    dataset = read_coco(write(tmp_path, what))
    assert dataset[1].tags == ()
    assert noted(dataset, "background only", ": 1 (b.jpg)")


def test_the_classes_of_a_network(tmp_path):
    path = write(tmp_path, content())
    same, other = plain_classes(["dog", "cat"], "net"), plain_classes(["cat", "dog", "cow"], "net")
    assert read_dataset(path, network=same).classes is same
    assert [sample.tags for sample in read_dataset(path, network=same)] == [(2,), (2,)]
    assert read_dataset(path, network=same)[0].truth().max() == 2
    assert read_dataset(path, network=other).classes.foreground == ("cat", "dog")
    assert read_dataset(path, network=same, classes="file").classes.foreground == ("cat", "dog")
    bare = content(names=())
    del bare["annotations"]
    assert read_dataset(write(tmp_path, bare), network=other).classes is other


# --- category ids and class lists ---

THREE = ("a.jpg", "b.jpg", "c.jpg")


@pytest.mark.parametrize("second", ["cat", "CAT", " cat "])
@pytest.mark.parametrize("classes", [None, "file", plain_classes(["dog", "cat"], "mine")])
def test_categories_of_one_name_are_noted_with_ids_and_counts(tmp_path, second, classes):
    what = content(THREE)
    what["categories"] = [{"id": 3, "name": "cat"}, {"id": 7, "name": second}, {"id": 9, "name": "dog"}]
    for row, category in zip(what["annotations"], (3, 7, 7), strict=True):
        row["category_id"] = category
    dataset = read_coco(write(tmp_path, what, THREE), classes=classes)
    cat = dataset.classes.names.index("cat")
    assert [sample.tags for sample in dataset] == [(cat,)] * 3
    assert noted(dataset, "one class: 1 (", "'cat' (id 3, 1 annotations)", f"{second!r} (id 7, 2 annotations)")
    what["categories"][1]["name"] = "cow"
    assert not noted(read_coco(write(tmp_path, what, THREE), classes="file"), "ids of their own")


def test_annotations_of_categories_that_the_file_does_not_list(tmp_path):
    what = content(THREE)
    for row, category in zip(what["annotations"], (1, 99, 99), strict=True):
        row["category_id"] = category
    with pytest.raises(UserError) as caught:
        read_coco(write(tmp_path, what, THREE))
    said = str(caught.value)
    assert "instances_x.json" in said
    assert "99 (2x)" in said
    assert "listed there: 1 ('" in said
    assert "no class of" not in said
    assert [s.tags for s in read_coco(write(tmp_path, what, THREE), unknown="skip")] == [(1,), None, None]


def test_a_class_list_that_does_not_fit_is_named_by_its_file(tmp_path):
    path = write(tmp_path, content())
    listed = tmp_path / "tags.yaml"
    listed.write_text("names: [oak, pine]")
    for how, name in (({"classes": listed}, str(listed)), ({}, str(tmp_path / "classes.yaml"))):
        with pytest.raises(UserError) as caught:
            read_coco(path, **how)
        assert f"instances_x.json has names that are not in the class list in {name} ('oak', 'pine')" in str(
            caught.value
        )
        listed.rename(tmp_path / "classes.yaml") if how else None
    what = content()
    what["categories"][0]["name"] = "unicorn"
    write(tmp_path, what)
    with pytest.raises(UserError, match="not in the built-in class list voc12"):
        read_coco(path, classes="voc12")
