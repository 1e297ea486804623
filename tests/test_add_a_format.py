"""The page on adding readers and exporters is true: its code runs, by name, as ours does."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pages import import_modules_of
from stages.small_run import CLASSES, small_run, toys
from tag2mask.cli import app
from tag2mask.config import DataConfig
from tag2mask.data import find_reader, read_dataset
from tag2mask.data.png import read_mask
from tag2mask.formats import EXPORTERS, READERS
from tag2mask.stages.export import export, find_exporter
from tag2mask.types import UserError

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-reader-or-exporter.md").read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page's modules, importable, and its entry points."""
    import_modules_of(PAGE, tmp_path, monkeypatch)
    points = [
        EntryPoint(name, where, group)
        for group, lines in re.findall(r'^\[project\.entry-points\."([\w.]+)"\]\n((?:[\w-]+ = .*\n)+)', PAGE, re.M)
        for name, where in re.findall(r'([\w-]+) = "(\w+:\w+)"', lines)
    ]
    assert len(points) == 3
    monkeypatch.setattr("tag2mask.tables._points", lambda group: [each for each in points if each.group == group])
    return points


@pytest.fixture
def album(tmp_path) -> Path:
    top = tmp_path / "album"
    (top / "drawn").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (6, 4), (200, 10, 10)).save(top / f"{name}.jpg")
    Image.fromarray(np.full((4, 6), 2, np.uint8)).save(top / "drawn" / "a.png")
    (top / "album.txt").write_text("a.jpg: dog, cat\nb.jpg:\n")
    return top


def test_the_reader_of_the_page_reads(page, album):
    data = read_dataset(album)
    assert data.notes == ("read as album (it has album.txt)", "album.txt names 2 images")
    assert data.classes.names == ("background", "cat", "dog")
    assert [(sample.id, sample.tags) for sample in data] == [("a", (1, 2)), ("b", ())]
    assert data[0].truth is not None
    assert data[0].truth().max() == 2
    assert data[1].truth is None
    with pytest.raises(UserError, match=r"read as album \(it has album\.txt\), which has no use for split"):
        read_dataset(album, split="train")
    (album / "album.txt").write_text("a.jpg: zebu\n")
    with pytest.raises(UserError, match=r"a\.jpg: \['zebu'\] are no classes"):
        read_dataset(album, classes="voc12")


def test_of_two_sure_signs_a_note_names_the_second(page, album):
    (album / "JPEGImages").mkdir()
    (album / "a.jpg").rename(album / "JPEGImages" / "a.jpg")
    (album / "tags.csv").write_text("image,labels\na,cat\n")
    first, second, *_ = read_dataset(album).notes
    assert first == "read as voc (it has JPEGImages)"
    assert second == "it could be album, too (it has album.txt): --kind album reads it so"


def test_a_reader_that_does_not_import_stops_no_other(page, tmp_path, album):
    (tmp_path / "album.py").write_text("import nothing_of_that_name")
    notes = read_dataset(album, classes="voc12").notes
    assert notes[0] == "read as folder (it is a folder)"
    assert 'not asked whether it can read the data: reader "album" (album:READER) does not import' in notes[1]
    with pytest.raises(UserError, match=r"does not import: No module named 'nothing_of_that_name'"):
        read_dataset(album, kind="album")


def test_the_exporters_of_the_page_write(page, tmp_path):
    data = toys(tmp_path / "data")
    run = small_run(tmp_path / "run", data)
    table = export(run, data, "areas", tmp_path / "areas.csv", {"digits": 4}, progress=False)
    rows = table.read_text().splitlines()
    assert rows[1] == f"image,{','.join(CLASSES.names)}"
    first = read_mask(run.mask_path(data[0].id))
    name, *shares = rows[2].split(",")
    assert (name, len(rows)) == ("0.png", 2 + len(data))
    assert [float(share) for share in shares] == [round(float((first == c).mean()), 4) for c in range(len(CLASSES))]
    export(run, data, "areas", table, progress=False)  # its own is replaced
    table.write_text("mine")
    with pytest.raises(UserError, match=r"is no table of areas, so it is not replaced"):
        export(run, data, "areas", table, progress=False)
    grey = export(run, None, "grey", tmp_path / "grey", progress=False)  # which needs no images
    for sample in data:
        assert np.array_equal(np.array(Image.open(grey / f"{sample.id}.pgm")), read_mask(run.mask_path(sample.id)))
    with pytest.raises(UserError, match="areas needs the images' file names; give the data set, or export to"):
        export(run, None, "areas", tmp_path / "other.csv")
    with pytest.raises(UserError, match=r"areas: unknown key 'digit' \(did you mean 'digits'\?\)"):
        export(run, data, "areas", tmp_path / "other.csv", {"digit": 4})


def test_the_command_line_knows_them(page, tmp_path):
    listed = CliRunner().invoke(app, ["formats"])
    assert listed.exit_code == 0, listed.output
    assert {line.split()[0] for line in listed.output.splitlines() if line.startswith("  ")} >= {
        *READERS,
        *EXPORTERS,
        "album",
        "areas",
        "grey",
    }
    shown = CliRunner().invoke(app, ["formats", "areas"])
    assert "digits 3 int" in " ".join(shown.output.split())
    data = toys(tmp_path / "data")
    run = small_run(tmp_path / "run", data)
    to = ["export", str(run.path), "--to", "grey", "-o", str(tmp_path / "grey")]
    assert CliRunner().invoke(app, to).exit_code == 0
    wrong = CliRunner().invoke(app, [*to[:3], "gray", *to[4:]])
    assert wrong.exit_code == 1
    assert "did you mean 'grey'?" in wrong.output


def test_every_format_stands_in_help_and_on_the_page():
    for table, options in ((READERS, ["label", "--help"]), (EXPORTERS, ["export", "--help"])):
        help = " ".join(CliRunner().invoke(app, options, env={"COLUMNS": "200"}).output.split())
        for name, entry in table.items():
            assert f"| {name} | {entry.what} |" in PAGE
            assert name in help


@pytest.mark.parametrize("name", READERS)
def test_what_a_reader_takes_is_an_option_of_data(name):
    assert set(find_reader(name).takes) <= set(DataConfig.model_fields)


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_option_of_an_exporter_is_described_and_has_a_default(name):
    for field in find_exporter(name).Options.model_fields.values():
        assert field.description
        assert not field.is_required()
