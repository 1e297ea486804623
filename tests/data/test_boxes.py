from __future__ import annotations

from xml.parsers import expat

import pytest

from tag2mask.data.boxes import object_names, read_boxes


def annotation(objects, head=""):
    return f"{head}<annotation><filename>x.jpg</filename>{objects}</annotation>"


def test_objects_in_other_forms():
    one = "<object><name>{}</name></object>"
    assert object_names(annotation(one.format(" \n Dog  ")).encode()) == ["Dog"]
    assert object_names(annotation("<Object><Name>dog</Name></Object>").encode()) == ["dog"]
    assert object_names(annotation(f"<objects>{one.format('dog')}</objects>").encode()) == ["dog"]
    nested = "<object><name>person</name>" + one.format("bicycle") + "</object>"
    assert sorted(object_names(annotation(nested).encode())) == ["bicycle", "person"]
    part = "<object><part><name>head</name></part><name>person</name></object>"
    assert object_names(annotation(part).encode()) == ["person"]
    assert object_names(annotation(one.format("a &amp; b")).encode()) == ["a & b"]


@pytest.mark.parametrize(
    "objects",
    [
        "<object><bndbox><xmin>1</xmin></bndbox></object>",
        "<object><name/></object>",
        "<object><name>  </name></object>",
        "<object><part><name>head</name></part></object>",
        "<object><attributes><name>colour</name></attributes></object>",
        "<object><object><name>dog</name></object></object>",
    ],
)
def test_an_object_without_a_name_shows(objects):
    assert "" in object_names(annotation(objects).encode())


@pytest.mark.parametrize(
    ("declared", "encoding", "name"),
    [
        ("gb2312", "gb2312", "\u732b"),
        ("GBK", "gbk", "\u8c93"),
        ("gb2312", "gbk", "\u8c93"),  # beyond what it declares, as Windows programs write it
        ("big5", "big5", "\u8c93"),
        ("iso-8859-1", "latin-1", "v\u00e9lo"),
        ("windows-1252", "cp1252", "v\u00e9lo"),
        ("utf-16", "utf-16", "v\u00e9lo"),
        ("utf-16", "utf-8", "v\u00e9lo"),  # as .NET writes it
        ("utf-8", "utf-8-sig", "v\u00e9lo"),
        (None, "utf-8-sig", "v\u00e9lo"),
        (None, "utf-8", "\u732b"),
    ],
)
def test_encodings(declared, encoding, name):
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    assert object_names(annotation(f"<object><name>{name}</name></object>", head).encode(encoding)) == [name]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (annotation("<object><name>v\u00e9lo</name></object>").encode("latin-1"), "no encoding and is not UTF-8"),
        (
            b'<?xml version="1.0" encoding="big5"?><annotation>\xff\xff</annotation>',
            "not in the encoding it declares",
        ),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "'klingon', which is not known"),
        (b"<annotations><image/></annotations>", "holds <annotations>"),
        (b"<!DOCTYPE annotation><annotation/>", "document type"),
    ],
)
def test_what_cannot_be_read_says_why(content, reason):
    with pytest.raises(ValueError, match=reason):
        object_names(content)


@pytest.mark.parametrize("content", [b"", b"<annotation>", annotation("a & b").encode()])
def test_what_is_no_xml(content):
    with pytest.raises(expat.ExpatError):
        object_names(content)


def test_files_by_name(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, word in {"a.XML": "old", "a.xml": "new", "ve\u0301lo.Xml": "bicycle", "sub/b.xml": "dog"}.items():
        (tmp_path / name).write_text(annotation(f"<object><name>{word}</name></object>"))
    read = read_boxes(tmp_path, ["a", "v\u00e9lo", "sub/b", "b", "other/c"], range(5))
    assert read.labels == {0: ("new",), 1: ("bicycle",), 2: ("dog",)}
    assert read.absent == {3, 4}
