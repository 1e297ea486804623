"""What a file is by its first bytes: weights in one of the forms that are read, or what people get in their place."""

from __future__ import annotations

import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

from tag2mask.models.openai import is_script
from tag2mask.types import UserError

Kind = Literal["safetensors", "script", "archive", "pickle"]
"""safetensors; TorchScript's and torch.save's zip archives; pickles, bare or with tensors behind them."""

AGAIN = "download it again"

_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip", "unpack it (gzip -d) and give what is inside"),
    (b"BZh", "compressed with bzip2", "unpack it (bzip2 -d) and give what is inside"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it (xz -d) and give what is inside"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it (zstd -d) and give what is inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give what is inside"),
    (b"Rar!", "a RAR archive", "unpack it and give what is inside"),
    (b"\x89HDF", "an HDF5 file, as Keras and TensorFlow write", "give PyTorch's weights (.safetensors, .pth)"),
    (b"\x93NUMPY", "one NumPy array (.npy)", "give PyTorch's weights (.safetensors, .pth)"),
    (b"GGUF", "a GGUF file of llama.cpp", "give PyTorch's weights (.safetensors, .pth)"),
    (b"\x12\x01\x00\x00\x00\x00\x00\x00", "an MXNet .params file", "only deeplabv1-resnet38 and psa read these"),
    (b"\x89PNG", "a picture (PNG)", "give the file of the weights"),
    (b"\xff\xd8\xff", "a picture (JPEG)", "give the file of the weights"),
    (b"%PDF", "a PDF", "give the file of the weights"),
)


def refuse(path: Path, what: str, do: str) -> UserError:
    """One line: what the file is, and what to do."""
    return UserError(f"{path}: was not read: it is {what}; {do}")


def kind_of(path: Path) -> Kind:
    """In which form a file holds weights.

    Raises:
        UserError: it cannot be read, or is something else, with what it is and what to do.
    """
    try:
        if path.is_dir():
            raise refuse(path, "a folder", "give the file of the weights inside")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a file of weights") from error
    if not size:
        raise refuse(path, "empty (0 bytes)", AGAIN)
    if start.startswith(b"PK"):
        return _of_zip(path, size)
    if _is_safetensors(start):
        return "safetensors"
    for head, what, do in _STARTS:
        if start.startswith(head):
            raise refuse(path, what, do)
    if _is_text(start):
        raise _text(path, start, size)
    if start[257:262] == b"ustar" or _is_tar(path):
        raise _tar(path)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    raise _unknown(path, start, size)


def _is_safetensors(start: bytes) -> bool:
    if len(start) < 9 or start[8:9] != b"{":
        return False
    (header,) = struct.unpack("<Q", start[:8])
    return header <= 100_000_000  # the format's own limit


def _of_zip(path: Path, size: int) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise refuse(path, f"cut short or damaged, a zip archive without its end ({size:,} bytes)", AGAIN) from None
    if is_script(path):
        return "script"
    if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        return "archive"
    if names and all(name.endswith(".npy") for name in names):
        raise refuse(
            path,
            f"NumPy's .npz with {len(names)} arrays, as JAX projects ship",
            "give PyTorch's weights",
        )
    shown = ", ".join(names[:3]) or "nothing in it"
    raise refuse(path, f"a zip archive ({shown})", "unpack it and give the file of the weights")


def _is_tar(path: Path) -> bool:
    # only the oldest format of torch has no magic word
    try:
        return path.suffix == ".tar" and tarfile.is_tarfile(path)
    except OSError:
        return False


def _tar(path: Path) -> UserError:
    try:
        with tarfile.open(path) as archive:
            names = [info.name for _, info in zip(range(50), archive, strict=False)]
    except (OSError, tarfile.TarError, EOFError):
        names = []
    if {"pickle", "storages", "tensors"} <= set(names):
        return refuse(
            path, "the tar archive of torch before 0.2 (2017)", "open it with an old torch and save its state_dict()"
        )
    return refuse(path, f"a tar archive ({', '.join(names[:3]) or 'damaged'})", "unpack it and give what is inside")


def _is_text(start: bytes) -> bool:
    head = start[:512]
    return all(byte in b"\t\n\r\f" or 32 <= byte < 127 or byte >= 128 for byte in head) and head[:1] != b"\x80"


def _text(path: Path, start: bytes, size: int) -> UserError:
    text = start.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if text.startswith("version https://git-lfs"):
        stated = re.search(r"^size (\d+)", text, re.MULTILINE)
        meant = f" to a file of {int(stated[1]):,} bytes" if stated else ""
        return refuse(
            path, f"a git-lfs pointer{meant}, not the weights", "run `git lfs pull` in its repository, or download it"
        )
    if re.match(r"(?i)<(!doctype|html|head|\?xml|body|script)", text):
        title = re.search(r"(?is)<title[^>]*>(.*?)</title>", text)
        called = f" ({' '.join(title[1].split())[:60]!r})" if title else ""
        return refuse(
            path,
            f"a web page{called}, not weights",
            "the link led to a page (a login, a warning, a preview): download the file itself",
        )
    return refuse(
        path,
        f"a text file of {size:,} bytes that begins {' '.join(text.split())[:40]!r}",
        AGAIN,
    )


def _unknown(path: Path, start: bytes, size: int) -> UserError:
    if path.suffix == ".onnx" or (start[:1] == b"\x08" and re.search(rb"pytorch|onnx|tf2onnx", start[:200])):
        return refuse(path, "an ONNX file", "give PyTorch's weights (.safetensors, .pth)")
    named = path.name
    if path.suffix in (".pb", ".tflite", ".index", ".meta") or ".ckpt.data-" in named or ".data-00000" in named:
        return refuse(path, "a TensorFlow file", "give PyTorch's weights (.safetensors, .pth)")
    return refuse(
        path,
        f"in no known form ({size:,} bytes that begin {start[:8].hex(' ')})",
        "expected .safetensors, or what torch.save wrote; download it again if it should be one of these",
    )
