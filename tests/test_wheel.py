"""What the wheel holds: the package, and beside its code only what it reads while it runs."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tag2mask"
DATA = {
    "classes": {".yaml", ".txt"},
    "stages/templates": {".j2", ".css", ".js"},
    "storybook/weights/clip": {".json", ".safetensors", ".md"},
    "storybook/weights/resnet": {".json", ".safetensors", ".md"},
}
"""Folder -> the suffixes of what is no code in it."""


def test_the_package_is_all_that_the_wheel_is_made_of():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert wheel["wheel"] == {"packages": ["src/tag2mask"]}


def test_what_is_no_code_is_read_by_it():
    known = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=False)
    paths = [ROOT / line for line in known.stdout.splitlines()] or [*SOURCE.rglob("*")]
    for path in paths:
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "py.typed":
            folder = path.parent.relative_to(SOURCE).as_posix()
            assert path.suffix in DATA.get(folder, ()), f"{path.relative_to(ROOT)} would be in every wheel"
