"""The code on the pages of the docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest


def import_modules_of(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the modules of a page, blocks of Python that begin with ``# NAME.py``, and make them importable."""
    for name, code in re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        (folder / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
