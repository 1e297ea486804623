"""A folder belongs to one training."""

from __future__ import annotations

import json
import re

import pytest

from tag2mask.run.settings import claim
from tag2mask.types import UserError

SETTINGS = {"lr": 0.1, "sizes": [[32, 48]], "init": None}


def test_a_claim_is_kept_and_compared(tmp_path):
    path = tmp_path / "deep" / "recipe.json"
    claim(path, SETTINGS)
    written = path.read_bytes()
    assert json.loads(written) == SETTINGS
    claim(path, SETTINGS)
    with pytest.raises(UserError, match=r"another training: lr is 0\.1 there and 0\.2 now"):
        claim(path, {**SETTINGS, "lr": 0.2})
    assert path.read_bytes() == written


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", "{", "\udcff", "[" * 100_000])
def test_what_is_no_mapping_is_damaged(tmp_path, text):
    path = tmp_path / "recipe.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"recipe\.json is damaged"):
        claim(path, SETTINGS)


@pytest.mark.parametrize("place", ["file", "file/below", "folder"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "recipe.json").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(f"--out {tmp_path / place}: cannot be written")):
        claim(tmp_path / place / "recipe.json", SETTINGS)
