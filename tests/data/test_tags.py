"""Tag lists in the spellings of other programs: one meaning is read, two stop and ask."""

from __future__ import annotations

import json
import os
import pickle
import unicodedata

import numpy as np
import pytest

from tag2mask.classes import plain_classes
from tag2mask.data import TagReading, read_dataset, read_folder
from tag_folders import CLASSES, WANTED, folder, named, refusal

SPELLINGS = {
    "tabs": ("tags.tsv", "image\tlabels\na.jpg\towl;pine\nb.jpg\tfox;owl\n"),
    "semicolons": ("tags.csv", 'image;labels\r\na.jpg;"owl;pine"\r\nb.jpg;"fox;owl"\r\n'),
    "sep": ("tags.csv", "sep=;\nimage;labels\na.jpg;\"owl;pine\"\nb.jpg;'fox';\n".replace("'fox';", '"fox;owl"')),
    "synonyms": ("tags.csv", '"File Name",TAGS\na.jpg,owl;pine\nb.jpg,fox;owl\n'),
    "bare names": ("labels.csv", "image_id,Categories\na,owl;pine\nb,fox;owl\n"),
    "more columns": ("tags.csv", ",image_id,path,class,w\n0,7,a.jpg,owl;pine,9\n1,8,b.jpg,fox;owl,9\n"),
    "rows": ("tags.csv", "img,label\na.jpg,owl\na.jpg,pine\nb.jpg,owl\nb.jpg,fox\n"),
    "Python": ("tags.csv", "image,labels\na.jpg,\"['owl', 'pine']\"\nb.jpg,\"('fox', 'owl')\"\n"),
    "JSON": ("tags.csv", 'image,labels\na.jpg,"[""owl"", ""pine""]"\nb.jpg,"[""fox"",""owl""]"\n'),
    "numpy": ("tags.csv", "image,labels\na.jpg,['owl' 'pine']\nb.jpg,['fox' 'owl']\n"),
    "brackets": ("tags.csv", 'a.jpg,"[owl,pine]"\nb.jpg,"[fox, owl]"\n'),
    "no header": ("tags.csv", "a.jpg,owl;pine\nb.jpg,fox;owl\n"),
    "choices": ("tags.csv", 'image,choice\na.jpg,"{""choices"": [""owl"", ""pine""]}"\nb.jpg,fox;owl\n'),
    "0 and 1": ("_classes.csv", "filename, fox, owl, pine\na.jpg, 0, 1, 1\nb.jpg, 1, 1, 0\n"),
    "truths": ("tags.csv", "file,fox,owl,pine,who\na.jpg,False,True,True,me\nb.jpg,True,True,False,you\n"),
    "-1 and 1": ("tags.csv", "file,fox,owl,pine\na.jpg,-1,1,1\nb.jpg,1,1,-1\n"),
    "dict": ("tags.json", '{"a.jpg": ["owl", "pine"], "b.jpg": "fox;owl"}'),
    "dict of rows": ("tags.json", '{"a.jpg": {"tags": ["owl", "pine"]}, "b.jpg": {"tags": ["fox", "owl"]}}'),
    "by class": ("tags.json", '{"owl": ["a.jpg", "b.jpg"], "pine": ["a.jpg"], "fox": ["b.jpg"]}'),
    "list": ("tags.json", '[{"file": "a.jpg", "tags": ["owl", "pine"]}, {"file": "b.jpg", "tags": ["fox", "owl"]}]'),
    "pairs": ("tags.json", '[["a.jpg", ["owl", "pine"]], ["b.jpg", ["fox", "owl"]]]'),
    "pandas": ("tags.json", '{"image": {"0": "a.jpg", "1": "b.jpg"}, "labels": {"0": "owl;pine", "1": "fox;owl"}}'),
    "lines in .json": ("tags.json", '{"image": "a", "labels": "owl;pine"}\n{"image": "b", "labels": "fox;owl"}\n'),
    "Hugging Face": (
        "metadata.jsonl",
        '{"file_name": "a.jpg", "labels": ["owl", "pine"]}\n{"file_name": "b.jpg", "labels": "fox;owl", "x": 1}\n',
    ),
    "rows of 0 and 1": (
        "tags.json",
        '[{"file": "a.jpg", "fox": 0, "owl": 1, "pine": true}, {"file": "b.jpg", "fox": 1, "owl": 1, "pine": false}]',
    ),
    "lines in a cell": ("tags.csv", 'image,labels\na.jpg,"owl\npine"\nb.jpg,"fox\nowl"\n'),
    "quotes": ("tags.csv", "image,labels\n'a.jpg',\"'owl';'pine'\"\n'b.jpg','fox;owl'\n"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_meaning_is_read_in_any_spelling(tmp_path, spelling):
    name, text = SPELLINGS[spelling]
    dataset = read_folder(folder(tmp_path, text, name))
    assert named(dataset) == WANTED
    assert any("'fox' (1), 'owl' (2), 'pine' (1)" in note for note in dataset.notes)
    assert named(read_folder(tmp_path, classes=CLASSES)) == WANTED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(tmp_path, encoding):
    text = "image,labels\na.jpg,büffel;pine\nb.jpg,pine\n"
    assert named(read_folder(folder(tmp_path, text, encoding=encoding))) == {"a": ("büffel", "pine"), "b": ("pine",)}


def test_windows_1252_is_said_and_other_code_pages_are_refused(tmp_path):
    dataset = read_folder(folder(tmp_path, "image,labels\na.jpg,büffel\nb.jpg,owl\n", encoding="cp1252"))
    assert named(dataset)["a"] == ("büffel",)
    assert any("Windows-1252" in note and "'büffel'" in note for note in dataset.notes)
    for word, encoding in (("自行车", "gbk"), ("велосипед", "cp1251")):
        folder(tmp_path, f"image,labels\na.jpg,{word}\n", encoding=encoding)
        assert "save it as CSV UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize("word", ["Bär", "Köter", "Café", "Niño", "Avión", "Forêt"])
def test_mac_roman_is_asked(tmp_path, word):
    message = refusal(folder(tmp_path, f"image,labels\na.jpg,{word}\nb.jpg,owl\n", encoding="mac-roman"))
    assert "ave it as CSV UTF-8" in message
    if word != "Forêt":  # of which Windows-1252 has no reading
        assert f"{word!r} (Mac Roman)" in message
    folder(tmp_path, f"image,labels\na.jpg,{word}\nb.jpg,owl\n", encoding="cp1252")
    assert named(read_folder(tmp_path))["a"] == (word,)


@pytest.mark.parametrize("sign", [",", "|", "/", "&", " + ", "、", " and "])
def test_a_sign_inside_labels_is_asked_unless_its_parts_recur(tmp_path, sign):
    folder(tmp_path, f'image,labels\na.jpg,"owl{sign}pine"\nb.jpg,"owl{sign}fox"\n')
    message = refusal(tmp_path)
    shown = " and " if sign == " and " else sign.strip()
    assert f"--separator {shown!r} splits" in message
    assert "--separator none" in message
    assert named(read_folder(tmp_path, classes=CLASSES)) == WANTED
    assert named(read_folder(tmp_path, reading=TagReading(separator=sign))) == WANTED
    whole = read_folder(tmp_path, reading=TagReading(separator="none"))
    assert whole.classes.foreground == tuple(sorted((f"owl{sign}pine", f"owl{sign}fox")))
    folder(tmp_path, "image,labels\nc.jpg,fox\nd.jpg,pine\n", images=("c.jpg", "d.jpg"))
    with (tmp_path / "tags.csv").open("a") as file:
        file.write(f'a.jpg,"owl{sign}pine"\nb.jpg,"owl{sign}fox"\n')
    assert named(read_folder(tmp_path)) == {**WANTED, "c": ("fox",), "d": ("pine",)}


def test_synonyms_with_commas_are_not_split_in_silence(tmp_path):
    phrase = "person with clothes,people,human"
    folder(tmp_path, f'image,labels\na.jpg,"{phrase}";owl\nb.jpg,"{phrase}"\n'.replace('";owl', ';owl"'))
    assert phrase in refusal(tmp_path)


def test_spaces(tmp_path):
    ask = folder(tmp_path / "1", "image_name,tags\na,owl pine\nb,owl fox\n")
    assert "--separator ' '" in refusal(ask)
    assert named(read_folder(ask, classes=CLASSES)) == WANTED
    usual = folder(tmp_path / "2", "image_name,tags\na,bicycle pottedplant;car\nb,cow\n")
    assert "'bicycle pottedplant'" in refusal(usual)
    known = folder(tmp_path / "4", "image,labels\na.jpg,hot dog;dog\nb.jpg,hot\n")
    assert read_folder(known).classes.foreground == ("dog", "hot", "hot dog")
    names = folder(tmp_path / "3", "image,labels\na.jpg,traffic light;blue sky;sky\nb.jpg,dining table\n")
    dataset = read_folder(names)
    assert dataset.classes.foreground == ("blue sky", "dining table", "sky", "traffic light")
    assert any("recur in longer ones" in note and "'sky' in 'blue sky'" in note for note in dataset.notes)


def test_a_class_as_a_whole_stays_whole_and_half_known_parts_are_asked(tmp_path):
    classes = plain_classes(["salt, pepper", "salt", "owl"], "c")
    folder(tmp_path, 'image,labels\na.jpg,"salt, pepper"\nb.jpg,"salt,owl"\n')
    assert named(read_folder(tmp_path, classes=classes)) == {"a": ("salt, pepper",), "b": ("salt", "owl")}
    folder(tmp_path, 'image,labels\na.jpg,"salt,unicorn"\n')
    assert "--separator ','" in refusal(tmp_path, classes=classes, unknown="skip")


@pytest.mark.parametrize("word", ["None", "nan", "N/A", "-", "nothing", "no", "void", "Unlabeled", "keine", "Kein",
                                  "nichts", "leer", "k.A.", "Hintergrund", "aucun", "rien", "ninguno", "vacío",
                                  "geen", "#N/A", "#NV", "#NAME?", "#REF!", "#WERT!", "#DIV/0!", "todo"])  # fmt: skip
def test_words_for_nothing_are_no_class(tmp_path, word):
    folder(tmp_path, f"image,labels\na.jpg,owl\nb.jpg,{word}\n")
    message = refusal(tmp_path)
    assert repr(word) in message
    assert "'background'" in message
    assert named(read_folder(tmp_path, unknown="skip")) == {"a": ("owl",), "b": None}


@pytest.mark.parametrize(
    "word", ["owl 0.93", "owl:0.93", "owl (93%)", "owl 93 %", "0.5 owl", "owl=2", "owl_.7", "0.4"]
)
def test_figures_are_no_names(tmp_path, word):
    folder(tmp_path, f"image,labels\na.jpg,{word};fox\nb.jpg,owl\n")
    message = refusal(tmp_path)
    assert repr(word) in message
    assert "figures" in message


def test_names_with_numbers_in_them_are_names(tmp_path):
    folder(tmp_path, "image,labels\na.jpg,boeing 737;7up\nb.jpg,route 66\n")
    assert read_folder(tmp_path).classes.foreground == ("7up", "boeing 737", "route 66")


@pytest.mark.parametrize(
    ("one", "other"),
    [("tree", "trees"), ("bus", "buses"), ("berry", "berries"), ("man", "men"), ("owl", "owl."), ("velo", "vélo")],
)
def test_names_that_look_alike_are_asked(tmp_path, one, other):
    folder(
        tmp_path, f"image,labels\na.jpg,{one}\nb.jpg,{other};fox\nc.jpg,{other}\n", images=("a.jpg", "b.jpg", "c.jpg")
    )
    message = refusal(tmp_path)
    assert f"{other!r} (2) and {one!r} (1)" in message
    assert "--twins merge" in message
    assert "--twins keep" in message
    assert len(read_folder(tmp_path, reading=TagReading(twins="keep")).classes.foreground) == 3
    merged = read_folder(tmp_path, reading=TagReading(twins="merge"))
    assert named(merged) == {"a": (other,), "b": tuple(sorted(("fox", other))), "c": (other,)}
    assert any(f"{other!r} (3)" in note for note in merged.notes)


def test_spellings_of_one_name_are_merged_and_named(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café")
    folder(tmp_path, f"image,labels\na.jpg,T-shirt;café\nb.jpg,t shirt;{decomposed}\n")
    dataset = read_folder(tmp_path)
    assert len(dataset.classes.foreground) == 2
    note = next(note for note in dataset.notes if "one class" in note)
    assert "'t shirt' = 'T-shirt'" in note
    assert "another Unicode form" in note


def test_invisible_characters_are_taken_out(tmp_path):
    folder(tmp_path, "image,labels\na.jpg,owl\x00\nb.jpg,\u200bowl\n")
    dataset = read_folder(tmp_path)
    assert dataset.classes.foreground == ("owl",)
    assert any("invisible" in note for note in dataset.notes)


def test_empty_is_not_tagged_and_background_is_a_word(tmp_path):
    images = tuple(f"{name}.jpg" for name in "abcdef")
    rows = "a.jpg,\nb.jpg,background\nc.jpg,owl;Background\nd.jpg,[]\ne.jpg, ; ;\nf.jpg,_background_\n"
    dataset = read_folder(folder(tmp_path, f"image,labels\n{rows}", images=images))
    assert named(dataset) == {"a": None, "b": (), "c": ("owl",), "d": None, "e": None, "f": ()}
    assert dataset.classes.foreground == ("owl",)
    notes = "\n".join(dataset.notes)
    assert "not tagged yet: 3 (a.jpg, d.jpg, e.jpg)" in notes
    assert "background only: 2 (b.jpg, f.jpg)" in notes
    assert "beside other labels, left out: 1 image" in notes


def test_a_row_of_zeros_is_not_tagged(tmp_path):
    folder(tmp_path, "filename,owl,background\na.jpg,0,0\nb.jpg,0,1\n")
    assert named(read_folder(tmp_path)) == {"a": None, "b": ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,file_name,labels\na.jpg,b.jpg,owl\n", "'image' and 'file_name' could both be the image"),
        ("image,label,class\na.jpg,owl,fox\n", "'label' and 'class' could both be the labels"),
        ("file,owl,fox\na.jpg,1,0\nb.jpg,-1,0\n", "line 3: 'owl' is -1"),
        ("file,owl,fox\na.jpg,1,0\nb.jpg,,0\n", "line 3: 'owl' is an empty cell"),
        ("file,owl,fox\na.jpg,1,2\nb.jpg,0,0\n", "'fox' (2)"),
        ('image,labels\na.jpg,"owl\nb.jpg,fox\n', "not readable CSV"),
        ("image,labels\na.jpg,\"{'owl': 0.9}\"\n", "expected names alone"),
        ("image,labels\na.jpg,\"[('owl', 0.9)]\"\n", "expected names alone"),
        ("image,labels\na.jpg,1;fox\n", "numbers for labels"),
        ("image,labels\na.jpg,1;2\n", "--classes"),
    ],
)
def test_two_meanings_stop(tmp_path, text, message):
    assert message in refusal(folder(tmp_path, text))


def test_json_keys_that_are_there_twice(tmp_path):
    assert "'a.jpg' is there twice" in refusal(folder(tmp_path, '{"a.jpg": ["owl"], "a.jpg": ["fox"]}', "tags.json"))


def test_several_tag_files(tmp_path):
    folder(tmp_path, "image,labels\na.jpg,owl\n")
    folder(tmp_path, "image,labels\na.jpg,fox\n", "labels.csv")
    message = refusal(tmp_path)
    assert "tags.csv, labels.csv" in message
    assert "--tags" in message
    assert named(read_folder(tmp_path, tmp_path / "labels.csv"))["a"] == ("fox",)


@pytest.mark.parametrize(
    ("rows", "first", "wanted"),
    [
        ("a 0 2\nb 1\n", None, 0),
        ("a 3 1\nb 2\n", None, 1),
        ("a 1\nb 2\n", None, None),
        ("a 0 1\nb 0 2\n", None, None),
        ("a 1\nb 2\n", 1, 1),
    ],
)
def test_numbers_with_classes(tmp_path, rows, first, wanted):
    folder(tmp_path, rows, "tags.txt")
    if wanted is None:
        message = refusal(tmp_path, classes=CLASSES)
        assert "--count-from 0" in message
        assert "--count-from 1" in message
        return
    dataset = read_folder(tmp_path, classes=CLASSES, reading=TagReading(count_from=first))
    numbers = {line[0]: {int(number) for number in line.split()[1:]} for line in rows.splitlines()}
    assert {s.id: set(s.tags) for s in dataset} == {
        name: {number - wanted + 1 for number in held} for name, held in numbers.items()
    }
    assert any(f"counted from {wanted}" in note for note in dataset.notes)


def test_more_numbers_than_classes(tmp_path):
    assert "from 0 to 3" in refusal(folder(tmp_path, "a 0 3\n", "tags.txt"), classes=CLASSES)
    assert "from 1 to 4" in refusal(folder(tmp_path, "a 1 4\n", "tags.txt"), classes=CLASSES, reading=TagReading())


def test_vectors_of_the_field(tmp_path):
    folder(tmp_path, images=("2007_000032.jpg", "b.jpg"))
    vectors = {2007000032: np.array([0, 1, 1], np.float32), "b": np.array([1, 1, 0], np.float32)}
    np.save(tmp_path / "cls_labels.npy", vectors, allow_pickle=True)
    assert "3 classes" in refusal(tmp_path)
    assert named(read_folder(tmp_path, classes=CLASSES)) == {"2007_000032": ("owl", "pine"), "b": ("fox", "owl")}
    assert "vectors of 3 classes, but voc12 has 20" in refusal(tmp_path, classes="voc12")


def test_a_pickle_that_runs_something_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder(tmp_path)
    np.save(tmp_path / "cls_labels.npy", np.array(Evil(), dtype=object), allow_pickle=True)
    assert "was not read" in refusal(tmp_path, classes=CLASSES)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "ran").exists()  # the file would have


def test_a_folder_for_each_class(tmp_path):
    images = ("train/owl/1.jpg", "train/red fox/2.jpg", "val/owl/3.jpg", "val/background/4.jpg")
    folder(tmp_path, images=images)
    assert "--tags folders" in refusal(tmp_path)
    dataset = read_folder(tmp_path, "folders")
    assert set(named(dataset).values()) == {("owl",), ("red fox",), ()}
    assert named(dataset)["val/owl/3"] == ("owl",)
    folder(tmp_path, images=("train/owl/deep/5.jpg",))
    assert "folders of folders" in refusal(tmp_path, tags="folders")


def test_settings_reach_the_reader(tmp_path):
    folder(tmp_path, 'image,labels\na.jpg,"owl,pine"\nb.jpg,"fox,owl"\n')
    assert named(read_dataset(tmp_path, reading=TagReading(separator=","))) == WANTED


@pytest.mark.parametrize("sign", ["-", "!", "~", "no ", "not ", "no-", "NOT_", "- ", "\u2212", "without ", "kein "])
@pytest.mark.parametrize("cell", ["{}owl", "fox;{}owl"])
@pytest.mark.parametrize("name", ["tags.csv", "tags.json"])
def test_what_is_absent_never_becomes_present(tmp_path, sign, cell, name):
    said = cell.format(sign)
    text = f"image,labels\na.jpg,owl\nb.jpg,{said}\n"
    folder(tmp_path, text if name == "tags.csv" else json.dumps({"a.jpg": ["owl"], "b.jpg": said}), name)
    word = said.rpartition(";")[2]
    for how in ({}, {"classes": CLASSES}):
        message = refusal(tmp_path, **how)
        assert repr(word) in message
        assert "write only what is there" in message
        left = ("fox",) if ";" in cell else None
        assert named(read_folder(tmp_path, unknown="skip", **how)) == {"a": ("owl",), "b": left}
    dataset = read_folder(tmp_path, classes=plain_classes(["owl", "fox", word], "c"))
    assert word in named(dataset)["b"]


@pytest.mark.parametrize("cell", ["fox -owl", "fox, -owl", "fox !owl", "fox,!owl"])
def test_parts_of_what_is_absent_are_no_labels(tmp_path, cell):
    folder(tmp_path, f'image,labels\na.jpg,owl\nb.jpg,"{cell}"\nc.jpg,fox\n', images=("a.jpg", "b.jpg", "c.jpg"))
    assert repr(cell) in refusal(tmp_path)
    assert repr(cell) in refusal(tmp_path, classes=CLASSES)
    assert "may say that something is absent: '" in refusal(tmp_path, reading=TagReading(separator=cell[3]))


def test_the_grouping_of_digits_is_part_of_a_name(tmp_path):
    text = "image,labels\na.jpg,h1-1;type 1 12\nb.jpg,h11;type 11 2\n"
    dataset = read_folder(folder(tmp_path, text), reading=TagReading(separator="none"))
    assert named(dataset) == {"a": ("h1-1", "type 1 12"), "b": ("h11", "type 11 2")}
    classes = plain_classes(["h1-1", "type 1 12"], "c")
    assert "'h11' (1x" in refusal(tmp_path, classes=classes)


@pytest.mark.parametrize(
    ("yes", "no"), [("WAHR", "FALSCH"), ("vrai", "faux"), ("oui", "non"), ("yes", "no"), ("✓", "✗")]
)
@pytest.mark.parametrize("form", ["csv", "json"])
def test_marks_alone_are_no_classes(tmp_path, yes, no, form):
    if form == "csv":
        folder(tmp_path, f"image,labels\na.jpg,{yes}\nb.jpg,{no}\n")
    else:
        folder(tmp_path, json.dumps({"a.jpg": [yes], "b.jpg": no}), "tags.json")
    for unknown in ("error", "skip"):
        message = refusal(tmp_path, unknown=unknown)
        assert f"marks for labels: {yes!r} (1x), {no!r} (1x)" in message or f"{no!r} (1x), {yes!r} (1x)" in message
        assert "'image,cat'" in message
    assert len(read_folder(tmp_path, classes=plain_classes([yes, no], "c")).classes.foreground) == 2


@pytest.mark.parametrize("sign", [" ", "", ", ", ";", "  "])
def test_hashtags_are_labels_one_by_one(tmp_path, sign):
    folder(tmp_path, f'image,labels\na.jpg,"#owl{sign}#pine"\nb.jpg,"#fox{sign}#owl"\n')
    dataset = read_folder(tmp_path)
    assert named(dataset) == WANTED
    assert any("hashtags" in note and "'owl'" in note for note in dataset.notes)
    assert named(read_folder(tmp_path, classes=CLASSES)) == WANTED
    own = plain_classes(["#owl", "#pine", "#fox"], "c")
    if sign == ";":
        assert named(read_folder(tmp_path, classes=own))["a"] == ("#owl", "#pine")


@pytest.mark.parametrize(
    "spellings", [("owl", "Owl", "owl"), ("OWL", "Owl", "Owl"), ("snow_owl", "Snow owl", "snow_owl")]
)
def test_the_commonest_spelling_is_the_name(tmp_path, spellings):
    images = ("a.jpg", "b.jpg", "c.jpg")
    rows = "".join(f"{image},{spelled}\n" for image, spelled in zip(images, spellings, strict=True))
    dataset = read_folder(folder(tmp_path, f"image,labels\n{rows}", images=images))
    assert dataset.classes.foreground == (spellings[2],)
