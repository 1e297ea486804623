"""Tables of tags: which columns are meant where the header does not say it, and Label Studio's exports."""

from __future__ import annotations

import json

import pytest

from tag2mask.data import read_folder
from tag2mask.types import UserError
from tag_folders import CLASSES, WANTED, folder, named, refusal


def rows(header, first, second, sign):
    return "\n".join(sign.join(f'"{cell}"' for cell in line) for line in (header, first, second)) + "\n"


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "header", [("Bild", "Klassen"), ("Dateiname", "Tags"), ("Datei", "Schlagworte"), ("zdjęcie", "x")]
)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("names", [("a.jpg", "b.jpg"), ("A", "B"), ("/data/upload/3/0a1b2c3d-a.jpg", "x/b.jpg")])
def test_the_column_of_images_is_known_by_its_cells(tmp_path, sign, header, turned, names):
    table = [header, (names[0], "owl;pine"), (names[1], "fox;owl")]
    if turned:
        table = [row[::-1] for row in table]
    folder(tmp_path, rows(*table, sign), "tags.csv")
    if names[1] == "x/b.jpg":
        (tmp_path / "x").mkdir()
        (tmp_path / "b.jpg").rename(tmp_path / "x/b.jpg")
    dataset = read_folder(tmp_path)
    assert {name.rpartition("/")[2]: tags for name, tags in named(dataset).items()} == WANTED
    assert any(f"the column {header[0]!r} of" in note and "taken for the images" in note for note in dataset.notes)
    if header[1] != "Tags":
        assert any(
            f"the column {header[1]!r} of" in note and "taken for the labels" in note for note in dataset.notes
        )


def test_other_columns_beside_unknown_headers(tmp_path):
    folder(tmp_path, 'Bild;Klassen;Breite\na.jpg;"owl;pine";40\nb.jpg;"fox;owl";30\n')
    assert named(read_folder(tmp_path)) == WANTED
    folder(tmp_path, 'Nr;Bild;Tags\n1;a.jpg;"owl;pine"\n2;b.jpg;"fox;owl"\n')
    assert named(read_folder(tmp_path)) == WANTED
    folder(tmp_path, 'id;Bild;Tags\n1;a.jpg;"owl;pine"\n2;b.jpg;"fox;owl"\n')
    assert named(read_folder(tmp_path)) == WANTED
    folder(tmp_path, "Bild;eule;fuchs\na.jpg;1;0\nb.jpg;1;1\n")
    assert named(read_folder(tmp_path)) == {"a": ("eule",), "b": ("eule", "fuchs")}
    folder(tmp_path, "Bild;Klasse;Fotograf\na.jpg;owl;me\nb.jpg;fox;you\n")
    message = refusal(tmp_path)
    assert "'Klasse' and 'Fotograf' could all hold the labels" in message
    assert "call the one that is meant 'labels'" in message
    folder(tmp_path, "Bild;Maske;Klasse\na.jpg;a.png;owl\nb.jpg;b.png;fox\n")
    message = refusal(tmp_path)
    assert "'Bild' and 'Maske' both hold names of images" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Bild;Klassen\nq1;owl\nq2;fox\n", ("'Bild', 'Klassen'", "';'", "'image;labels'")),
        ("owl\tpine\tfox\n1\t2\t3\n", ("'owl', 'pine', 'fox'", "image\tlabels")),
        ("a.jpg;owl;pine\nb.jpg;fox;owl\n", ("'a.jpg;owl;pine'", "not names of columns", "image;labels")),
        ("Bild\na.jpg\n", ("'Bild'", "one column")),
        ("", ("empty",)),
    ],
)
def test_messages_fit_the_file(tmp_path, text, said):
    message = refusal(folder(tmp_path, text))
    assert all(part in message for part in said), message
    assert "its first line must be" not in message


@pytest.mark.parametrize(("yes", "no"), [("x", ""), ("X", "0"), ("yes", "no"), ("ja", "nein"), ("✓", ""), ("1", "0")])
@pytest.mark.parametrize("header", ["image", "Bild"])
def test_marks_in_columns_of_classes(tmp_path, yes, no, header):
    folder(tmp_path, f"{header};fox;owl;pine\na.jpg;{no};{yes};{yes}\nb.jpg;{yes};{yes};{no}\n")
    assert named(read_folder(tmp_path)) == WANTED


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("0;2;1", "3;1;0", ("'fox' (3)", "'owl' (2)", "counts")),
        ("0;2;2", "2;2;0", ("'fox' (2)", "counts")),
        ("0.1;0.9;0.8", "0.7;0.6;0.2", ("'fox' (0.1)", "probabilities", "threshold")),
        ("0;1;0.8", "1;0.6;0", ("'owl' (0.6)", "probabilities")),
        ("x;x;o", "x;o;x", ("'owl' ('o')", "'pine' ('o')")),
        ("x;no;no", "x;;x", ("an empty cell",)),
    ],
)
def test_cells_that_are_no_marks_are_named(tmp_path, first, second, said):
    message = refusal(folder(tmp_path, f"image;fox;owl;pine\na.jpg;{first}\nb.jpg;{second}\n"))
    assert all(part in message for part in said), message
    assert "first line" not in message


@pytest.mark.parametrize("header", ["label1,label2,label3", "Tag 1,Tag 2,Tag 3", "label,label.1,label.2",
                                    "tag,tag,tag", "Klasse1,Klasse2,Klasse3", "class_1,class_2,class_3"])  # fmt: skip
@pytest.mark.parametrize("image", ["image", "Bild"])
def test_several_columns_of_labels(tmp_path, header, image):
    folder(tmp_path, f"{image},{header}\na.jpg,owl,pine,\nb.jpg,fox,,owl\n")
    dataset = read_folder(tmp_path)
    assert named(dataset) == WANTED
    assert any("hold its labels together" in note for note in dataset.notes)


# --- Label Studio ---


def part(kind, *labels, control="tag"):
    return {"type": kind, "from_name": control, "value": {kind: list(labels), "x": 1, "y": 2}}


def tasks(first, second, place="/data/upload/1/0a1b2c3d-{}.jpg", key="image"):
    done = ({"id": 1, "result": first}, {"id": 2, "result": second})
    return [
        {"id": n, "data": {key: place.format(name)}, "annotations": [one], "predictions": []}
        for n, (name, one) in enumerate(zip("ab", done, strict=True), start=1)
    ]


@pytest.mark.parametrize("place", ["/data/upload/1/0a1b2c3d-{}.jpg", "/data/local-files/?d=some/dir/{}.jpg",
                                   "s3://bucket/{}.jpg", "{}.jpg", "https://x.org/{}.jpg?v=1"])  # fmt: skip
@pytest.mark.parametrize("kind", ["choices", "rectanglelabels", "polygonlabels", "brushlabels", "labels"])
def test_label_studio_json(tmp_path, place, kind):
    value = tasks(
        [part(kind, "owl"), part(kind, "pine"), part(kind, "owl")], [part(kind, "fox", "owl")], place, "pic"
    )
    dataset = read_folder(folder(tmp_path, json.dumps(value), "tags.json"))
    assert named(dataset) == WANTED
    assert any("Label Studio's JSON: 2 tasks" in note for note in dataset.notes)
    assert named(read_folder(tmp_path, classes=CLASSES)) == WANTED


def test_label_studio_says_what_is_odd(tmp_path):
    value = tasks([part("choices", "owl"), {"type": "rating", "value": {"rating": 3}}], [part("choices", "fox")])
    value[0]["annotations"].append({"result": [part("rectanglelabels", "pine", control="box")]})
    value[1]["annotations"][0]["was_cancelled"] = True
    value.append({"id": 9, "data": {"image": "/data/upload/1/0a1b2c3d-gone.jpg"}, "annotations": []})
    dataset = read_folder(folder(tmp_path, json.dumps(value), "tags.json"))
    assert named(dataset) == {"a": ("owl", "pine"), "b": None}
    notes = "\n".join(dataset.notes)
    assert "annotators label differently, their labels put together: 1 (" in notes
    assert "skipped in Label Studio, not tagged: 1" in notes
    assert "no labels, left out: 1 (rating: 1)" in notes
    assert "'tag': 1, 'box': 1" in notes
    assert "image is not there: 1 (/data/upload/1/0a1b2c3d-gone.jpg)" in notes


@pytest.mark.parametrize("second", [{"choice": {"choices": ["fox", "owl"]}},
                                    {"box": [{"x": 1, "rectanglelabels": ["fox"]}, {"rectanglelabels": ["owl"]}]},
                                    {"choice": "fox", "box": [{"polygonlabels": ["owl", "fox"]}]}])  # fmt: skip
def test_label_studio_json_min(tmp_path, second):
    own = {"annotator": 1, "annotation_id": 4, "created_at": "2024-01-01", "lead_time": 3.5}
    value = [
        {"id": 1, "image": "/data/upload/1/0a1b2c3d-a.jpg", "box": [{"rectanglelabels": ["owl", "pine"]}], **own},
        {"id": 2, "image": "/data/upload/1/0a1b2c3d-b.jpg", **second, **own},
    ]
    assert named(read_folder(folder(tmp_path, json.dumps(value), "tags.json"))) == WANTED


def test_label_studio_without_annotations_in_full(tmp_path):
    value = tasks([], [])
    value[0]["annotations"] = [7]
    with pytest.raises(UserError, match=r"Label Studio's JSON.*export it as JSON or JSON-MIN"):
        read_folder(folder(tmp_path, json.dumps(value), "tags.json"))
