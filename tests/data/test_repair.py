from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from tag2mask.data.image import BadImage, image_size, read_image

RNG = np.random.default_rng(0)
COARSE = np.kron(RNG.integers(0, 256, (24, 32, 3)), np.ones((8, 8, 1), np.int64))
PICTURE = np.clip(COARSE + RNG.integers(-20, 21, COARSE.shape), 0, 255).astype(np.uint8)  # (192, 256, 3)
LARGE = b"\0" * (2 * PngImagePlugin.MAX_TEXT_CHUNK)

JPEGS = {
    "baseline": {},
    "full colour": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restart a row": {"restart_marker_rows": 1},
    "restart a few blocks": {"restart_marker_blocks": 3},
    "grey": {},
}


def jpeg(kind):
    image = Image.fromarray(PICTURE[..., 0] if kind == "grey" else PICTURE)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **JPEGS[kind])
    return buffer.getvalue()


def put(path, content):
    path.write_bytes(content)
    return path


def segment_starts(content, marker):
    return [at for at in range(len(content)) if content[at : at + 2] == bytes((0xFF, marker))]


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end_marker_is_whole(tmp_path, kind, cut):
    whole = jpeg(kind)
    path = put(tmp_path / "x.jpg", whole[:-cut])
    np.testing.assert_array_equal(read_image(path), read_image(put(tmp_path / "whole.jpg", whole)))
    assert image_size(path) == (192, 256)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("cut", [4, 12])
def test_of_a_jpeg_that_lacks_its_last_bytes_only_the_last_blocks_are_grey(tmp_path, kind, cut):
    whole = jpeg(kind)
    got = read_image(put(tmp_path / "x.jpg", whole[:-cut]))
    differs = (got != read_image(put(tmp_path / "whole.jpg", whole))).any(axis=2)
    assert differs.mean() <= 0.01
    assert not differs[:174].any()


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8, 0.95])
def test_a_jpeg_cut_further_up_fails(tmp_path, kind, keep):
    whole = jpeg(kind)
    path = put(tmp_path / "x.jpg", whole[: int(keep * len(whole))])
    with pytest.raises(BadImage, match="truncated"):
        read_image(path)


@pytest.mark.parametrize("kind", ["restart a row", "restart a few blocks"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_jpeg_cut_at_a_restart_is_not_whole(tmp_path, kind, after):
    """There the decoder has read all blocks of the piece, and grey is all that follows."""
    whole = jpeg(kind)
    restarts = sorted(at for number in range(8) for at in segment_starts(whole, 0xD0 + number))
    assert len(restarts) >= 10
    for at in restarts[3:-1:4]:
        with pytest.raises(BadImage, match="truncated"):
            read_image(put(tmp_path / "x.jpg", whole[: at + after]))


def test_a_progressive_jpeg_that_lacks_a_scan_fails(tmp_path):
    """Every pixel is there, and none is sharp."""
    whole = jpeg("progressive")
    for at in segment_starts(whole, 0xDA)[1:]:
        for stop in (at, at + 2, at + 6):
            with pytest.raises(BadImage, match="truncated"):
                read_image(put(tmp_path / "x.jpg", whole[:stop]))


@pytest.mark.parametrize("restart", [{"restart_marker_rows": 1}, {"restart_marker_blocks": 2}])
def test_wherever_a_wide_jpeg_is_cut_what_is_read_is_nearly_whole(tmp_path, restart):
    """A row that ends well says nothing of the rows below, nor a piece of it of the pieces after it."""
    buffer = io.BytesIO()
    Image.fromarray(np.tile(PICTURE[:48], (1, 24, 1))).save(buffer, "JPEG", **restart)  # 3 x 384 blocks
    whole = buffer.getvalue()
    expected = read_image(put(tmp_path / "whole.jpg", whole))
    read = 0
    restarts = sorted(at for number in range(8) for at in segment_starts(whole, 0xD0 + number))
    restarts = [*restarts[-200:-192], *restarts[-20:]]  # the end of the last row but one, and of the last
    for stop in [*range(len(whole) - 30, len(whole) - 1, 7), *(at - less for at in restarts for less in (4, 20))]:
        try:
            got = read_image(put(tmp_path / "x.jpg", whole[:stop]))
        except BadImage:
            continue
        read += 1
        assert (got != expected).any(axis=2).mean() <= 0.01
    assert read >= 4


def test_pillow_keeps_its_switches_and_threads_do_not_meet(tmp_path):
    whole = jpeg("baseline")
    short = put(tmp_path / "short.jpg", whole[:-2])
    half = put(tmp_path / "half.jpg", whole[: len(whole) // 2])
    expected = read_image(put(tmp_path / "whole.jpg", whole))

    def look(path):
        try:
            return read_image(path)
        except BadImage:
            return None

    with ThreadPoolExecutor(4) as pool:
        for path, got in zip([short, half] * 20, pool.map(look, [short, half] * 20), strict=True):
            assert (got is None) == (path == half)
            assert got is None or np.array_equal(got, expected)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_what_follows_the_end_of_a_jpeg_does_not_matter(tmp_path):
    whole = jpeg("baseline")
    expected = read_image(put(tmp_path / "whole.jpg", whole))
    np.testing.assert_array_equal(read_image(put(tmp_path / "x.jpg", whole + bytes(1000))), expected)


def png(*chunks, after=(), exif=None):
    """A PNG with further chunks before its pixels, and after them."""
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG", **({} if exif is None else {"exif": exif}))
    content = buffer.getvalue()

    def packed(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head, tail = 8 + 25, len(content) - 12
    before, behind = (b"".join(packed(*chunk) for chunk in some) for some in (chunks, after))
    return content[:head] + before + content[head:tail] + behind + content[tail:]


TEXTS = {
    "profile": (b"iCCP", b"p\0\0" + zlib.compress(LARGE)),
    "packed text": (b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
    "packed xmp": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
    "just at the limit": (b"zTXt", b"Comment\0\0" + zlib.compress(LARGE[: PngImagePlugin.MAX_TEXT_CHUNK])),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("after", [False, True])
def test_a_png_with_a_large_text_is_read(tmp_path, name, after):
    chunk = TEXTS[name]
    content = png(after=[chunk]) if after else png(chunk)
    path = put(tmp_path / "x.png", content)
    np.testing.assert_array_equal(read_image(path), PICTURE)
    assert image_size(path) == (192, 256)


def test_many_texts_that_are_too_large_together(tmp_path, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 5000)
    texts = [
        (b"tEXt", b"Comment\0" + b"x" * 2000),
        (b"iTXt", b"Comment\0\0\0\0\0" + b"x" * 2000),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2000)),
        (b"tEXt", b"Comment\0" + b"x" * 9000),
    ]
    np.testing.assert_array_equal(read_image(put(tmp_path / "x.png", png(*texts))), PICTURE)


def test_the_orientation_beside_a_large_text_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = put(tmp_path / "x.png", png(TEXTS["packed text"], exif=exif))
    np.testing.assert_array_equal(read_image(path), np.rot90(PICTURE, -1))
    assert image_size(path) == (256, 192)


def test_an_orientation_that_is_too_large_to_read_is_no_upright_picture(tmp_path):
    kept = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LARGE))
    with pytest.raises(BadImage, match="cannot be decoded"):
        read_image(put(tmp_path / "x.png", png(kept)))


def test_a_cut_png_still_fails(tmp_path):
    content = png(TEXTS["profile"])
    with pytest.raises(BadImage):
        read_image(put(tmp_path / "x.png", content[: len(content) // 2]))
