from __future__ import annotations

import unicodedata

import pytest

from tag2mask.data.lists import read_list
from tag2mask.types import UserError

IDS = ["2007_01", "2007_02", "my cat", "sub/2007_03", "v\u00e9lo", "#5", "old.name"]


def found(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_list(path, IDS)


@pytest.mark.parametrize(
    "line",
    [
        "2007_02",
        "2007_02.jpg",
        "2007_02.JPG",
        "  2007_02  ",
        '"2007_02.jpg"',
        "./JPEGImages/2007_02.jpg ./SegmentationClassAug/2007_02.png",
        "/JPEGImages/2007_02.jpg /SegmentationClassAug/2007_02.png",
        "VOC2012/JPEGImages/2007_02.jpg VOC2012/SegmentationClassAug/2007_02.png",
        "/home/u/VOC2012/JPEGImages/2007_02.jpg",
        "/home/u/my data/JPEGImages/2007_02.jpg",
        "C:\\data\\VOC2012\\JPEGImages\\2007_02.jpg",
        "JPEGImages\\2007_02.jpg,SegmentationClass\\2007_02.png",
        "2007_02.jpg, 2007_02.png",
        "2007_02.jpg;2007_02.png",
        "2007_02\t1",
        "2007_02  # a good one",
    ],
)
def test_forms_of_a_line(tmp_path, line):
    listed = found(tmp_path, f"# my list\n\n{line}\n2007_01")
    assert (listed.positions, listed.missing, listed.repeated) == ([1, 0], [], [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_unicode_forms(tmp_path, encoding):
    for form in ("NFC", "NFD"):
        listed = found(tmp_path, unicodedata.normalize(form, "v\u00e9lo.jpg\r\n2007_01\r\n"), encoding)
        assert listed.positions == [4, 0]


def test_names_that_look_like_something_else(tmp_path):
    assert found(tmp_path, "my cat\n#5\nold.name\nsub/2007_03\n/d/JPEGImages/sub/2007_03.jpg").positions == [
        2,
        5,
        6,
        3,
    ]
    listed = found(tmp_path, "2007_03\nother/my cat.jpg\nno/such.jpg")  # "2007_03" alone is in another folder
    assert (listed.positions, listed.missing) == ([2], ["2007_03", "no/such.jpg"])


def test_what_cannot_be_read_is_named_with_its_line(tmp_path):
    listed = found(tmp_path, "image,mask\n2007_01|2007_01.png\n2007_01\ngone 7\n")
    assert listed.positions == [0]
    assert listed.missing == ["image,mask", "2007_01|2007_01.png", "line 4: 'gone 7'"]


def test_flags(tmp_path):
    listed = found(tmp_path, "2007_01 -1\n2007_02  1\nmy cat  0\n")
    assert listed.positions == [0, 1, 2]
    assert dict(listed.flags) == {"-1": 1, "1": 1, "0": 1}
    assert not found(tmp_path, "2007_01 -1\n2007_02\n").flags  # not a list of that kind
    assert not found(tmp_path, "2007_01\n").flags


@pytest.mark.parametrize(
    "content", [b"2007_01\nv\xe9lo\n", b"\xff\xfe2", "2007_01".encode("utf-16-le"), b"\x89PNG\r\n\0"]
)
def test_what_is_no_text_is_said(tmp_path, content):
    with pytest.raises(UserError, match=r"list\.txt.* UTF-8"):
        found(tmp_path, content)
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path, IDS)
