from __future__ import annotations

import pickle
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, features

from tag2mask.data.image import MAX_PIXELS, BadImage, image_size, is_image, read_image, without_suffix

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)  # H 6, W 9
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)

# What the picture must be turned by so that it is upright, by EXIF orientation, in numpy's own terms.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def save(path, image, **options):
    image.save(path, **options)
    return path


def check(path, expected):
    got = read_image(path)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_array_equal(got, expected)
    assert image_size(path) == expected.shape[:2]


def grey3(values):
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "TIFF", "webp"])
def test_lossless_formats_give_the_pixels(tmp_path, suffix):
    check(save(tmp_path / f"x.{suffix}", Image.fromarray(RGB), lossless=True), RGB)


def test_plain_jpeg_is_decoded_as_the_released_codes_do(tmp_path):
    path = save(tmp_path / "x.jpg", Image.fromarray(np.kron(RGB, np.ones((9, 9, 1), np.uint8))), quality=80)
    check(path, np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{suffix}", Image.fromarray(RGB), exif=exif, lossless=True)
    plain = save(tmp_path / f"plain.{suffix}", Image.fromarray(RGB), lossless=True)
    check(path, UPRIGHT[orientation](np.asarray(Image.open(plain).convert("RGB"))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\x00\x00rubbish", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
def test_broken_exif_does_not_spoil_the_picture(tmp_path, exif):
    path = save(tmp_path / "x.jpg", Image.fromarray(RGB), exif=exif)
    assert read_image(path).shape == (6, 9, 3)
    assert image_size(path) == (6, 9)


def test_impossible_orientation_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    check(save(tmp_path / "x.png", Image.fromarray(RGB), exif=exif), RGB)


def test_grey_and_black_and_white(tmp_path):
    check(save(tmp_path / "grey.png", Image.fromarray(GREY)), grey3(GREY))
    check(save(tmp_path / "bit.png", Image.fromarray(GREY > 127)), grey3(np.where(GREY > 127, 255, 0)))


def test_palette(tmp_path):
    image = Image.fromarray(GREY % 4).convert("L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], dtype=np.uint8)
    check(save(tmp_path / "x.png", image), colours[GREY % 4])
    colours[2] = 255  # transparent: white
    check(save(tmp_path / "clear.png", image, transparency=2), colours[GREY % 4])


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.dstack([RGB, np.full((6, 9), 255, np.uint8)])
    check(save(tmp_path / "opaque.png", Image.fromarray(rgba)), RGB)
    rgba[:, :4, 3] = 0
    expected = RGB.copy()
    expected[:, :4] = 255
    check(save(tmp_path / "half.png", Image.fromarray(rgba)), expected)
    rgba[..., 3] = 128
    blended = read_image(save(tmp_path / "veil.png", Image.fromarray(rgba))).astype(float)
    np.testing.assert_allclose(blended, RGB * (128 / 255) + 255 * (127 / 255), atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_everywhere_is_refused(tmp_path, mode):
    """Laid on white it would be a blank picture, and labelled as one."""
    image = Image.fromarray(np.dstack([RGB, np.zeros((6, 9), np.uint8)])).convert("RGBA" if mode == "RGBA" else "LA")
    options = {}
    if mode == "P":
        image, options = Image.fromarray(GREY % 2).convert("L"), {"transparency": b"\0\0"}
        image.putpalette([10, 20, 30, 40, 50, 60])
    path = save(tmp_path / "x.png", image, **options)
    with pytest.raises(BadImage, match="every pixel is transparent"):
        read_image(path)
    assert image_size(path) == (6, 9)
    seen = np.zeros((6, 9), np.uint8)
    seen[0, 0] = 1  # one pixel that shows is a picture
    read_image(save(tmp_path / "y.png", Image.fromarray(np.dstack([RGB, seen]))))


def test_grey_with_alpha(tmp_path):
    pixels = np.dstack([GREY, np.where(np.arange(9) < 3, 0, 255)[None].repeat(6, 0).astype(np.uint8)])
    check(save(tmp_path / "x.png", Image.fromarray(pixels)), grey3(np.where(np.arange(9) < 3, 255, GREY)))


def test_transparent_colour_of_rgb_and_grey(tmp_path):
    expected = RGB.copy()
    expected[0, 0] = 255
    check(save(tmp_path / "rgb.png", Image.fromarray(RGB), transparency=tuple(RGB[0, 0].tolist())), expected)
    check(save(tmp_path / "grey.png", Image.fromarray(GREY), transparency=7), grey3(np.where(GREY == 7, 255, GREY)))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    flat = Image.new("CMYK", (9, 6), (0, 255, 255, 0))  # no cyan: red
    pixels = read_image(save(tmp_path / f"x.{suffix}", flat))
    assert pixels.shape == (6, 9, 3)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 54).round().astype(np.uint16).reshape(6, 9)
    check(save(tmp_path / f"x.{suffix}", Image.fromarray(values)), grey3(np.rint(values / 257)))


def test_dark_16_bit_grey_is_not_stretched(tmp_path):
    check(save(tmp_path / "x.png", Image.fromarray(np.full((6, 9), 514, np.uint16))), grey3(np.full((6, 9), 2)))


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_grey_by_its_range(tmp_path, top):
    values = np.linspace(0, top, 54, dtype=np.float32).reshape(6, 9)
    check(save(tmp_path / "x.tif", Image.fromarray(values)), grey3(np.rint(values.astype(float) * (255 / top))))


def test_32_bit_integers(tmp_path):
    check(save(tmp_path / "byte.tif", Image.fromarray(GREY.astype(np.int32))), grey3(GREY))
    check(save(tmp_path / "one.tif", Image.fromarray(np.ones((6, 9), np.int32))), grey3(np.ones((6, 9))))


@pytest.mark.parametrize("value", [-1.0, 70000.0, np.nan])
def test_floats_without_a_known_range_are_refused(tmp_path, value):
    values = np.zeros((6, 9), np.float32)
    values[0, 0] = value
    path = save(tmp_path / "x.tif", Image.fromarray(values))
    with pytest.raises(BadImage, match="save it as 8 bit"):
        read_image(path)


def test_first_of_several_pages(tmp_path):
    pages = [Image.fromarray(255 - RGB)]
    check(save(tmp_path / "x.tif", Image.fromarray(RGB), save_all=True, append_images=pages), RGB)


@pytest.mark.parametrize("size", [(1, 1), (20000, 30)])
def test_extreme_shapes(tmp_path, size):
    path = save(tmp_path / "x.png", Image.new("RGB", size))
    assert read_image(path).shape == (size[1], size[0], 3)
    assert image_size(path) == size[::-1]


@pytest.mark.parametrize(("suffix", "keep"), [("jpg", 0.6), ("png", 0.6), ("tif", 0.6), ("jpg", 0.05)])
def test_truncated(tmp_path, suffix, keep):
    whole = save(tmp_path / f"whole.{suffix}", Image.fromarray(np.kron(RGB, np.ones((20, 20, 1), np.uint8))))
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(whole.read_bytes()[: int(keep * whole.stat().st_size)])
    with pytest.raises(BadImage) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert caught.value.reason


def test_what_is_no_image(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    reasons = {
        "folder.jpg": "is a folder",
        "empty.jpg": "is empty (0 bytes)",
        "text.jpg": "is not an image",
        "gone.jpg": "does not exist",
        "loop.jpg": "links",
    }
    for name, reason in reasons.items():
        for read in (read_image, image_size):
            with pytest.raises(BadImage) as caught:
                read(tmp_path / name)
            assert reason in caught.value.reason


def bomb(width, height):
    """A PNG of a few bytes whose header claims a huge picture."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [MAX_PIXELS // 1000 + 1, 100 * MAX_PIXELS // 1000])
def test_decompression_bombs_are_refused_unread(tmp_path, width):
    path = tmp_path / "x.png"
    path.write_bytes(bomb(width, 1000))
    for read in (read_image, image_size):
        with pytest.raises(BadImage, match="too large"):
            read(path)


def test_size_is_read_from_the_header_alone(tmp_path):
    path = save(tmp_path / "x.png", Image.fromarray(np.kron(RGB, np.ones((20, 20, 1), np.uint8))))
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (120, 180)


def test_the_error_survives_a_process_boundary(tmp_path):
    error = pickle.loads(pickle.dumps(BadImage(tmp_path / "x.jpg", "is empty")))
    assert (error.path, error.reason) == (tmp_path / "x.jpg", "is empty")


def test_real_photographs(photographs):
    for path in sorted((photographs / "voc12-mini" / "JPEGImages").glob("*.jpg"))[:10]:
        check(path, np.asarray(Image.open(path).convert("RGB")))


def test_gif_and_jpeg_by_their_other_names(tmp_path):
    """The first frame of a GIF; what the file is counts, not what it is called."""
    flat = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue")]
    gif = save(tmp_path / "x.gif", flat[0], save_all=True, append_images=flat[1:])
    check(gif, np.full((6, 9, 3), (255, 0, 0)))
    jpeg = save(tmp_path / "x.jpg", Image.fromarray(RGB))
    for name in ("x.jfif", "x.JPE", "x.png"):
        (tmp_path / name).write_bytes(jpeg.read_bytes())
        np.testing.assert_array_equal(read_image(tmp_path / name), read_image(jpeg))
    (tmp_path / "y.jpg").write_bytes(gif.read_bytes())
    np.testing.assert_array_equal(read_image(tmp_path / "y.jpg"), read_image(gif))


def test_an_orientation_after_the_pixels_of_a_png_does_not_count(tmp_path):
    """Its size is read from the header alone, and both must agree."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = save(tmp_path / "x.png", Image.fromarray(RGB), exif=exif).read_bytes()
    at = content.index(b"eXIf") - 4
    chunk = content[at : at + 12 + int.from_bytes(content[at : at + 4])]
    (tmp_path / "y.png").write_bytes(content.replace(chunk, b"").replace(content[-12:], chunk + content[-12:]))
    check(tmp_path / "x.png", UPRIGHT[6](RGB))
    check(tmp_path / "y.png", RGB)


# --- HEIC and AVIF


def box(*brands: bytes) -> bytes:
    """The first box of such a file: size, kind, major brand, version, compatible brands."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(body) + 4).to_bytes(4) + body + bytes(40)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_avif_is_read_upright(tmp_path, orientation):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20] = (250, 20, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4", exif=exif)
    upright = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1)}[orientation]
    read = read_image(tmp_path / "a.avif")
    assert image_size(tmp_path / "a.avif") == read.shape[:2] == upright.shape[:2]
    assert np.abs(read.astype(int) - upright).max() < 20
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.avif").read_bytes())  # by content, whatever it is called
    assert (read_image(tmp_path / "b.jpg") == read).all()


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "b.heif", "c.hif", "d.avif", "e.jfif", "f.GIF"])
def test_readers_take_them_for_images(name):
    assert is_image(name)
    assert without_suffix(name) == name.split(".")[0]


@pytest.mark.parametrize("brands", [(b"heic", b"mif1"), (b"mif1", b"heic"), (b"msf1", b"hevc"), (b"heix",)])
def test_heic_without_its_package_names_it(tmp_path, monkeypatch, brands):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("tag2mask.data.heif._ready", [])
    (tmp_path / "a.heic").write_bytes(box(*brands))
    with pytest.raises(BadImage, match=r'is HEIC.*pillow-heif: pip install "tag2mask\[heif\]", or save it as JPEG$'):
        read_image(tmp_path / "a.heic")


def test_avif_without_support_names_pillow_and_other_containers_are_no_images(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("tag2mask.data.heif._ready", [])
    monkeypatch.setattr("tag2mask.data.heif.features.check", lambda name: False)
    (tmp_path / "a.avif").write_bytes(box(b"mif1", b"avif"))
    with pytest.raises(BadImage, match="is AVIF, which this Pillow cannot read: pip install --upgrade pillow"):
        read_image(tmp_path / "a.avif")
    (tmp_path / "film.jpg").write_bytes(box(b"isom", b"mp42"))
    with pytest.raises(BadImage, match="is not an image"):
        read_image(tmp_path / "film.jpg")


def test_the_package_is_asked_once_and_only_for_such_files(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: asked.append(1)))
    monkeypatch.setattr("tag2mask.data.heif._ready", [])
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    read_image(tmp_path / "a.png")
    assert not asked
    (tmp_path / "a.heic").write_bytes(box(b"heic"))
    for _ in range(2):
        with pytest.raises(BadImage):  # it is but a box
            read_image(tmp_path / "a.heic")
    assert asked == [1]


def test_heic_as_the_package_reads_it(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16] = (250, 20, 20)
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", quality=100, chroma=444)
    assert np.abs(read_image(tmp_path / "a.heic").astype(int) - pixels).max() < 20
