"""Pictures come out upright, in RGB and whole, or a sentence names the row, the picture and the remedy."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from anymix.data.images import image_size, open_image
from anymix.samples import ImageRef, SampleError

KEY = "rows.jsonl:3"


def drawn(width: int = 40, height: int = 24, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise with a red corner at the top left, so that no turn of it looks like another."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 3, : width // 3] = (255, 0, 0)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def ref(data: bytes) -> ImageRef:
    return ImageRef("scan", data)


def opened(data: bytes) -> np.ndarray:
    image = open_image(ref(data), KEY)
    assert image.mode == "RGB"
    assert image.size == image_size(ref(data), KEY)
    return np.asarray(image)


def error(target: ImageRef, **options: int) -> str:
    """The one sentence that opening gives."""
    with pytest.raises(SampleError) as caught:
        open_image(target, KEY, **options)
    text = str(caught.value)
    assert text.startswith(f"{KEY}: picture {target.path}") and "\n" not in text
    return text


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]),
    orientation=st.integers(1, 8),
    width=st.integers(3, 50),
    height=st.integers(3, 50),
)
def test_exif_orientation_turns_pixels_and_size_alike(form, orientation, width, height):
    image = drawn(width, height)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    data = saved(image, form, exif=exif, **lossless)
    stored = np.asarray(Image.open(io.BytesIO(saved(image, form, **lossless))).convert("RGB"))
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(opened(data), turned)


def png_with_late_exif(image: Image.Image, orientation: int) -> bytes:
    """A PNG as exiftool leaves it: eXIf behind the pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = saved(image, "PNG")
    end = data.rindex(b"IEND") - 4
    return data[:end] + chunk + data[end:]


def test_exif_behind_the_pixels_of_a_png_counts_too():
    data = png_with_late_exif(drawn(40, 24), 6)
    assert image_size(ref(data), KEY) == (24, 40)
    assert opened(data).shape == (40, 24, 3)


def test_broken_exif_does_not_keep_a_picture_from_opening():
    data = saved(drawn(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert image_size(ref(data), KEY) == (40, 24) and opened(data).shape == (24, 40, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA"])
def test_opaque_pictures_are_exactly_what_convert_gives(mode):
    form = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    data = saved(drawn(mode=mode), form)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(opened(data), np.asarray(expected))


def test_cmyk_is_not_read_as_a_negative():
    cmyk = Image.new("RGB", (32, 32), (200, 30, 40)).convert("CMYK")
    jpeg = saved(cmyk, "JPEG", quality=100)
    assert b"Adobe" in jpeg  # stored inverted, as Photoshop does
    for data in (jpeg, saved(cmyk, "TIFF")):
        assert np.abs(opened(data).astype(int) - (200, 30, 40)).max() <= 3


def test_transparency_shows_white_paper_not_the_colour_hidden_under_it():
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 0))  # black hidden under full transparency
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    for form in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        pixels = opened(saved(image, form, **options))[0]
        assert pixels[0].tolist() == [255, 255, 255]
        assert pixels[1].tolist() == [10, 20, 30]
        assert abs(int(pixels[2][0]) - 127) <= 1


def test_grey_with_alpha_and_colour_keys_are_laid_on_white():
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (70, 255))
    assert opened(saved(grey, "PNG"))[0].tolist() == [[255] * 3, [70] * 3]
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((1, 0), (9, 9, 9))
    assert opened(saved(rgb, "PNG", transparency=(1, 2, 3)))[0].tolist() == [[255] * 3, [9] * 3]


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 250, 10, 20])
    image.putpixel((1, 0), 1)
    assert opened(saved(image, "PNG"))[0].tolist() == [[0, 0, 0], [250, 10, 20]]
    for transparency in (0, b"\x00\xff"):  # one index, or an alpha for each
        data = saved(image, "PNG", transparency=transparency)
        assert opened(data)[0].tolist() == [[255] * 3, [250, 10, 20]]
    assert opened(saved(image, "GIF", transparency=0))[0].tolist() == [[255] * 3, [250, 10, 20]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_is_scaled_not_clipped(mode):
    values = np.array([[0, 257, 1000, 30000, 65535]])
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (5, 1), values.astype(kind).tobytes())
    data = saved(image, "PNG" if mode == "I;16" else "TIFF")
    assert opened(data)[0, :, 0].tolist() == [0, 1, 4, 117, 255]


def test_sixteen_bit_colour_keeps_its_brightness():
    samples = np.array([[0, 0x8000, 0xFFFF]], dtype=">u2")
    row = b"\0" + samples.tobytes()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    assert opened(data)[0, 0].tolist() == [0, 128, 255]


def test_integers_beyond_sixteen_bits_are_refused():
    image = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    assert "from 0 to 70000" in error(ref(saved(image, "TIFF")))


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_from_the_range_they_use(white):
    image = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32) * np.float32(white))
    assert opened(saved(image, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, float("nan")], [0.0, 1e6]])
def test_floats_without_a_black_and_white_are_refused(values):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert "floats from" in error(ref(saved(image, "TIFF")))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert opened(data)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("PPM", {}),
        ("JPEG2000", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_never_a_partly_grey_picture(form, options, share):
    data = saved(drawn(96, 96), form, **options)
    cut = data[: int(len(data) * share)]
    whole = opened(data)
    try:
        part = np.asarray(open_image(ref(cut), KEY))
    except SampleError as found:
        assert "damaged or cut short" in str(found) or "header cannot be read" in str(found)
        return
    np.testing.assert_array_equal(part, whole)  # only metadata was cut off


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM"]),
)
def test_no_bytes_give_anything_but_a_picture_or_a_sample_error(data, head):
    for read in (open_image, image_size):
        with contextlib.suppress(SampleError):  # any other error fails here
            assert read(ref(head + data), KEY) is not None


def test_a_global_switch_to_half_pictures_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="LOAD_TRUNCATED_IMAGES is on.*set it to False"):
        open_image(ref(saved(drawn(), "PNG")), KEY)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    idat = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + chunk + idat


def test_a_bomb_is_refused_with_its_size_and_the_limit_before_any_pixel():
    text = error(ref(bomb(20_000, 15_000)))
    assert "20000x15000 = 300,000,000 pixels" in text and "200,000,000" in text
    with pytest.raises(SampleError, match="the limit is 900"):
        image_size(ref(saved(drawn(40, 24), "PNG")), KEY, max_pixels=900)


def test_large_scans_below_the_limit_neither_warn_nor_change_pillow():
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(ref(bomb(14_000, 14_000)), KEY) == (
            14_000,
            14_000,
        )  # Pillow refuses from 179 megapixels
    assert Image.MAX_IMAGE_PIXELS == before


def test_a_text_bomb_inside_a_png_is_a_sample_error():
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    with pytest.raises(SampleError, match="picture scan"):
        image_size(ref(saved(drawn(), "PNG", pnginfo=info)), KEY)


@pytest.mark.parametrize(
    ("data", "found", "remedy"),
    [
        (b"", "empty (0 bytes)", "download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "Git LFS pointer",
            "git lfs pull",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", "save it as JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF", "save it as JPEG"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "video", "extract frames"),
        (b"%PDF-1.7\n", "PDF", "pdftoppm"),
        (b"<!DOCTYPE html><html>", "web page", "download"),
        (b"<svg xmlns='x'/>", "SVG", "save it as PNG"),
        (b"PK\x03\x04rest", "zip", "unpack"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript", "save it as PNG"),
        (b"hello, this is a text file", "no picture", "save it as JPEG or PNG"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(tmp_path, data, found, remedy):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    text = error(ImageRef(str(path)))
    assert found in text and remedy in text
    with pytest.raises(SampleError) as caught:
        image_size(ImageRef(str(path)), KEY)
    assert str(caught.value) == text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Invoice_001.JPG", "cat.png", "scan-2024.tif"):
        (tmp_path / name).write_bytes(saved(drawn(), "PNG"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "meant"),
    [("invoice_001.jpg", "Invoice_001.JPG"), ("cat.jpeg", "cat.png"), ("scan-2025.tif", "scan-2024.tif")],
)
def test_a_missing_file_is_answered_with_the_nearest_name(folder, name, meant):
    text = error(ImageRef(str(folder / name)))
    assert "does not exist" in text and f"did you mean {folder / meant}?" in text


def test_a_missing_file_or_folder_with_nothing_alike_points_to_the_root(folder):
    assert "set data.root" in error(ImageRef(str(folder / "zebra.webp")))
    assert f"there is no folder {folder / 'none'}" in error(ImageRef(str(folder / "none" / "a.png")))


def test_backslashes_links_and_folders_are_named(folder):
    (folder / "in").mkdir()
    (folder / "in" / "b.png").write_bytes(saved(drawn(), "PNG"))
    assert "forward slashes" in error(ImageRef(f"{folder}/in\\b.png"))
    os.symlink("/nowhere/c.png", folder / "c.png")
    assert "it links to /nowhere/c.png" in error(ImageRef(str(folder / "c.png")))
    assert "is a folder" in error(ImageRef(str(folder / "in")))


def test_a_file_one_may_not_read_is_named(folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("anymix.data.images.open", refuse, raising=False)
    assert "chmod a+r" in error(ImageRef(str(folder / "cat.png")))


def test_unspeakable_paths_are_sample_errors(folder):
    assert "cannot be opened" in str(pytest.raises(SampleError, open_image, ImageRef("a\0b.png"), KEY).value)
    assert "cannot be opened" in str(pytest.raises(SampleError, open_image, ImageRef("x" * 5000), KEY).value)


def test_files_are_closed_and_may_be_replaced(folder):
    path = folder / "cat.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = open_image(ImageRef(str(path)), KEY)
        image_size(ImageRef(str(path)), KEY)
    path.unlink()
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_threads_open_pictures_side_by_side(folder):
    data = [saved(drawn(seed=n), form) for n, form in enumerate(["JPEG", "PNG", "GIF", "WEBP"] * 3)]
    expected = [np.asarray(open_image(ref(one), KEY)) for one in data]
    wrong: list[int] = []

    def work() -> None:
        for n, one in enumerate(data * 3):
            if not np.array_equal(np.asarray(open_image(ref(one), KEY)), expected[n % len(data)]):
                wrong.append(n)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_size_of_a_large_file_is_read_without_decoding_it(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    drawn(600, 400).save(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(ImageRef(str(path)), KEY) == (600, 400)
