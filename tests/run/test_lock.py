"""A folder for one process at a time."""

from __future__ import annotations

import re

import pytest

from tag2mask.run.lock import Lock, locked
from tag2mask.types import UserError


def test_a_folder_is_made_held_and_let_go(tmp_path):
    folder = tmp_path / "a" / "b"
    with (
        locked(folder, "The work"),
        pytest.raises(UserError, match=r"The work is being written by process \d+ on "),
        locked(folder, "The work"),
    ):
        pass
    with locked(folder, "The work"):  # free again
        pass


def test_a_folder_is_let_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "The work"):
        raise ZeroDivisionError
    Lock(tmp_path / ".lock", "The work").release()


def test_a_stop_says_how_to_go_on(tmp_path):
    said = r"what is done is in .*: give the same command again to resume"
    with pytest.raises(KeyboardInterrupt, match=said), locked(tmp_path, "The work"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match=r"^said$"), locked(tmp_path, "The work"):
        raise KeyboardInterrupt("said")


def test_where_nothing_can_be_written_the_option_is_named(tmp_path):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "inside"
    with (
        pytest.raises(UserError, match=re.escape(f"--cache {place}: cannot be written (")),
        locked(place, "It", "--cache"),
    ):
        pass
