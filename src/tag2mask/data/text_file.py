"""Text files as other programs write them: UTF-8 with or without its mark, UTF-16, Windows-1252."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from tag2mask.types import UserError

__all__ = ["read_text"]

# What Western words hardly ever hold. Files of other code pages are full of it when they are read as Windows-1252.
_UNLIKELY = re.compile("[\u00a1-\u00bf\u00d7\u00f7\u20ac\u201a-\u2030]|[^\x00-\x7f\u2019]{3}")
# Letters of Mac Roman, such as the umlauts, are these in Windows-1252: letters of few languages, signs within a word.
_MAC = re.compile(
    "\\w*(?:[\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc]"
    "|(?<=[^\\W\\d])[\u2013\u2014\u2018\u201c\u201d\u2022\u2122\u203a](?=[^\\W\\d]))\\w*"
)


def read_text(path: Path) -> tuple[str, list[str]]:
    """The text of a file, and a note where its encoding had to be guessed.

    Raises:
        UserError: it cannot be read, is neither UTF-8, UTF-16 nor Windows-1252, or may be Mac Roman as well.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    wide = _wide(raw)
    try:
        if wide is not None:
            return raw.decode(wide).removeprefix("\ufeff"), []
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        if wide is not None:
            raise UserError(f"{path} is not whole UTF-16 ({error.reason}): save it as CSV UTF-8") from error
        return _western(raw, path, error.start)


def _wide(raw: bytes) -> str | None:
    """The byte order of UTF-16, by its mark, or without one where every second byte of a first line is zero."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = raw[: 64 if len(raw) >= 64 else len(raw) // 2 * 2]
    low, high = head[0::2], head[1::2]
    if head and not any(high) and all(low):
        return "utf-16-le"
    return "utf-16-be" if head and not any(low) and all(high) else None


def _western(raw: bytes, path: Path, start: int) -> tuple[str, list[str]]:
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    odd = _UNLIKELY.search(text)
    if not text or odd is not None:
        raise UserError(f"{path} is not UTF-8 (byte {start}), nor Windows-1252: save it as CSV UTF-8")
    either = _MAC.search(text)
    if either is not None:
        mac = either[0].encode("cp1252").decode("mac-roman")
        raise UserError(
            f"{path} is not UTF-8 (byte {start}): is a word in it {either[0]!r} (Windows-1252) or {mac!r} "
            "(Mac Roman)? Save it as CSV UTF-8"
        )
    word = re.search(r"\w*[^\x00-\x7f]\w*", text)
    shown = "" if word is None else f", in which a word is {word[0]!r}"
    return text, [f"{path.name} is not UTF-8, and was read as Windows-1252{shown}"]
