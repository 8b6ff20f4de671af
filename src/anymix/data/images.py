"""Picture files to upright RGB, and their sizes from headers alone.

In goes an `ImageRef` (a path, or encoded bytes) and the key of its row; out comes a `PIL.Image` in mode RGB,
or a SampleError that names the row, the picture and what to do about it. A picture is read whole or not at
all: nothing is clipped to black, left sideways or half grey without a word. A page of a PDF is one too (`pages`).

For opaque pictures the pixels are those of `Image.convert("RGB")`, which is all the original InternVL2 code
does (internvl_chat/internvl/train/internvl_chat_finetune.py). It differs on purpose in three cases: EXIF
orientation is applied, transparent pictures are laid on white, and 16-bit or float greys are scaled.
"""

from __future__ import annotations

import difflib
import io
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from anymix.data import pages
from anymix.data.store import TICK
from anymix.samples import ImageRef, SampleError

TAIL = 4096  # bytes at the end of a file in which its last mark is looked for
MAX_PIXELS = 200_000_000  # a 14,000 x 14,000 scan; 600 MB once decoded

# The formats people keep pictures in. EPS (Pillow would run Ghostscript on it) and those without a
# signature (TGA takes many a file that is no picture) are left out.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "QOI", "PSD", "ICO",
)  # fmt: skip

# How the files of these formats are named: what a folder of pictures is searched for.
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".ppm",
    ".qoi", ".psd", ".ico",
)  # fmt: skip

# Exif tag 0x0112: how the stored picture must be turned to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_REDOWNLOAD = "copy or download it again"


def open_image(ref: ImageRef, key: str, *, max_pixels: int = MAX_PIXELS, page: int = 255) -> Image.Image:
    """The picture upright, in mode RGB, first frame if it is animated; what is transparent shows a `page` of that
    grey.

    Raises SampleError(key) for a file that is missing, unreadable, truncated, no picture, or larger than
    `max_pixels` (width x height).
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so damaged pictures would load half grey in silence; "
            "set it to False"
        )
    if pages.is_pdf(ref):
        return pages.draw(ref, key, max_pixels)
    with _opened(ref, key, max_pixels) as image:
        turn = _UPRIGHT.get(_orientation(image))
        image.load()
        picture = _to_rgb(image, ref, key, page)
        return picture if turn is None else picture.transpose(turn)


def image_size(ref: ImageRef, key: str, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels as `open_image` would return it, without decoding. Raises the same
    SampleErrors, but for damage that shows only in the pixels."""
    return header(ref, key, max_pixels=max_pixels).size


@dataclass(frozen=True)
class Header:
    """What a picture's header says: its size upright, and what `open_image` will do that a person should know of."""

    size: tuple[int, int]  # width, height in pixels
    traits: tuple[str, ...] = ()  # turned, animated, cmyk, deep, narrow


def header(ref: ImageRef, key: str, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Size and traits without decoding; a file that has not changed since is not opened again. Raises SampleErrors as
    `image_size` does."""
    if pages.is_pdf(ref):
        return Header(pages.size(ref, key, max_pixels))
    version = _version(ref)
    known = _HEADERS.get((version, max_pixels)) if version else None
    if known is not None:
        return known
    with _opened(ref, key, max_pixels) as image:
        width, height, orientation = *image.size, _orientation(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow 11 turns its size already, 10 does not
            width, height, orientation = (image.tag_v2.get(tag, 1) for tag in (256, 257, 274))
        size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)
        found = Header(size, tuple(_traits(image, size, orientation)))
    if version:
        _remember(_HEADERS, (version, max_pixels), found)
    return found


def _traits(image: ImageFile.ImageFile, size: tuple[int, int], orientation: int) -> Iterator[str]:
    if orientation in _UPRIGHT:
        yield "turned"
    if image.format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF") and getattr(image, "is_animated", False):
        yield "animated"
    if image.mode in ("CMYK", "YCCK"):
        yield "cmyk"
    if image.mode.startswith(("I", "F")):
        yield "deep"
    if max(size) > 20 * min(size):
        yield "narrow"


Version = tuple[str, int, int, int]  # path, length, mtime and ctime in ns
_HEADERS: dict[tuple[Version, int], Header] = {}
_WHOLE: dict[Version, None] = {}
_REMEMBERED = 1 << 18  # entries; about 300 bytes each


def _version(ref: ImageRef) -> Version | None:
    """What tells this file from what it was; None for bytes, and for what was written just now."""
    if ref.data is not None:
        return None
    try:
        stat = os.stat(ref.path)
    except (OSError, ValueError):
        return None
    settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > TICK
    return (ref.path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) if settled else None


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = value


def refuse_cut_off(ref: ImageRef, key: str) -> None:
    """Look at the end of a JPEG, PNG, GIF or WebP: a copy that broke off lacks its last mark.

    Only a picture that looks so is decoded, to be sure (some cameras append a film). Raises SampleError. Damage in
    the middle shows when the picture is read for training."""
    if pages.is_pdf(ref):
        return  # its table of contents is at its end, and has been read
    version = _version(ref)
    if version in _WHOLE:
        return
    with _stream(ref, key) as stream:
        head = stream.read(12)
        stream.seek(0, os.SEEK_END)
        size = stream.tell()
        stream.seek(max(0, size - TAIL))
        tail = stream.read()
    whole = (
        (not head.startswith(b"\xff\xd8") or b"\xff\xd9" in tail)
        and (not head.startswith(b"\x89PNG") or b"IEND" in tail)
        and (not head.startswith(b"GIF8") or tail.rstrip(b"\0").endswith(b";"))
        and (head[:4] != b"RIFF" or size >= int.from_bytes(head[4:8], "little") + 8)
    )
    if not whole:
        open_image(ref, key)
    if version:
        _remember(_WHOLE, version, None)


@contextmanager
def _opened(ref: ImageRef, key: str, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """The picture with its header read; whatever goes wrong inside the block becomes a SampleError."""
    with _stream(ref, key) as stream:
        try:
            image = _identify(stream)
            if image is None:
                raise _not_a_picture(stream, ref, key)
            width, height = image.size
            if width * height > max_pixels:
                found = f"picture {ref.path} has {width}x{height} = {width * height:,} pixels"
                raise SampleError(key, f"{found}, the limit is {max_pixels:,}", "scale it down")
            yield image
        except (SampleError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            found = f"picture {ref.path} has more pixels than Pillow reads of its format ({error})"
            raise SampleError(key, found, "scale it down") from None
        except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
            raise _damaged(error, ref, key) from error


@contextmanager
def _stream(ref: ImageRef, key: str) -> Iterator[IO[bytes]]:
    if ref.data is not None:
        yield io.BytesIO(ref.data)
        return
    try:
        file = open(ref.path, "rb")
    except (OSError, ValueError) as error:
        raise _unopenable(error, ref, key) from None
    with file:
        yield file


def _identify(stream: IO[bytes]) -> ImageFile.ImageFile | None:
    """What `Image.open` does, over FORMATS and without its pixel check, which warns through a global
    filter from 89 megapixels on and refuses from 179: neither can be changed for one thread alone."""
    Image.init()
    head = stream.read(16)
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        accepted = factory is not None and (accept is None or accept(head))
        if factory is None or not accepted or isinstance(accepted, str):  # text says what the build lacks
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # how a plugin says "not mine"
            continue
    return None


def _orientation(image: ImageFile.ImageFile) -> int:
    """Exif orientation 1..8 of an image not loaded yet; unreadable metadata counts as 1, as in browsers."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns its pixels by itself when they load
    if isinstance(image, PngImagePlugin.PngImageFile) and _has_late_metadata(image):
        image.load()  # metadata behind the pixels, where exiftool puts it
    try:
        # Past PngImageFile.getexif, which decodes every PNG that has no Exif.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # Exif is parsed with struct, as TIFF and as XML, and each raises its own
        return 1


def _has_late_metadata(image: PngImagePlugin.PngImageFile) -> bool:
    """May a PNG carry orientation after its pixels? Looks at the last 128 KiB, not at every chunk: many small
    reads are slow over a network."""
    stream = image.fp
    if stream is None or "exif" in image.info:
        return False
    place = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(place, end - (1 << 17)))
    tail = stream.read()
    stream.seek(place)
    return any(mark in tail for mark in (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type"))


def _to_rgb(image: Image.Image, ref: ImageRef, key: str, page: int) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_integers(image, ref, key, page)
    if image.mode == "F":
        return _from_floats(image, ref, key)
    if image.has_transparency_data:
        return _on_page(image, page)
    try:
        return image.convert("RGB")
    except ValueError:
        found = f"picture {ref.path} has colour mode {image.mode}, which has no plain way to RGB"
        raise SampleError(key, found, "save it as RGB") from None


def _on_page(image: Image.Image, grey: int) -> Image.Image:
    """Logos, icons and exported figures are drawn for a white page, and the colour hidden under full
    transparency is arbitrary, mostly black: dropping alpha would show black words on black."""
    rgba = image.convert("RGBA")
    page = Image.new("RGBA", rgba.size, (grey, grey, grey, 255))
    return Image.alpha_composite(page, rgba).convert("RGB")


def _from_integers(image: Image.Image, ref: ImageRef, key: str, page: int) -> Image.Image:
    """16-bit grey (modes I;16*, I) to 8 bits: v / 257, rounded. `convert` clips all above 255 to white."""
    grey = np.asarray(image)  # (H, W)
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        found = f"picture {ref.path} holds integers from {low} to {high}, expected 16 bits (0 to 65535)"
        raise SampleError(key, found, "scale it to 8 or 16 bits")
    eight = ((grey.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    eight[grey == image.info.get("transparency")] = page  # the one value a 16-bit PNG may call transparent
    return Image.fromarray(eight).convert("RGB")


def _from_floats(image: Image.Image, ref: ImageRef, key: str) -> Image.Image:
    """Float grey in 0..1, 0..255 or 0..65535, whichever is the smallest that holds all its values."""
    grey = np.asarray(image).astype(np.float64)  # (H, W)
    low, high = float(grey.min()), float(grey.max())
    white = next((white for white in (1.0, 255.0, 65535.0) if high <= white), None)
    if white is None or not low >= 0:  # NaN fails every comparison
        found = f"picture {ref.path} holds floats from {low} to {high}: what is black and white is unknown"
        raise SampleError(key, found, "scale it to 0..1 or save it with 8 bits")
    return Image.fromarray(np.rint(grey * (255 / white)).astype(np.uint8)).convert("RGB")


def _damaged(error: Exception, ref: ImageRef, key: str) -> SampleError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return SampleError(key, f"picture {ref.path} is damaged or cut short ({reason})", _REDOWNLOAD)


# What is found where a picture should be: (position, bytes) -> what it is, what to do.
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (
        0,
        b"version https://git-lfs",
        "is a Git LFS pointer, not the picture",
        "run `git lfs pull` in its folder",
    ),
    (4, b"ftyphe", "is HEIC, which Pillow cannot read by itself", "save it as JPEG or PNG"),
    (4, b"ftypmif1", "is HEIF, which Pillow cannot read by itself", "save it as JPEG or PNG"),
    (4, b"ftypmsf1", "is HEIF, which Pillow cannot read by itself", "save it as JPEG or PNG"),
    (4, b"ftypavi", "is AVIF, which this Pillow was built without", "save it as JPEG or PNG"),
    (4, b"ftyp", "is a video", "extract frames and list them as images, in order"),
    (0, b"%PDF", "is a PDF", "let its name end in .pdf, or save its pages as PNG with `pdftoppm -r 150 -png`"),
    (0, b"%!PS", "is PostScript", "save it as PNG"),
    (0, b"<svg", "is an SVG drawing", "save it as PNG"),
    (0, b"<?xml", "is XML, perhaps an SVG drawing", "save it as PNG"),
    (0, b"<!doctype html", "is a web page, what a failed download leaves", "download the picture again"),
    (0, b"<html", "is a web page, what a failed download leaves", "download the picture again"),
    (0, b"pk\x03\x04", "is a zip archive", "unpack it"),
)
_OURS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def _not_a_picture(stream: IO[bytes], ref: ImageRef, key: str) -> SampleError:
    stream.seek(0)
    head = stream.read(64)
    if not head:
        return SampleError(key, f"picture {ref.path} is empty (0 bytes)", _REDOWNLOAD)
    for at, signature, what, remedy in _SIGNATURES:
        if head[at:].lower().startswith(signature.lower()):
            return SampleError(key, f"picture {ref.path} {what}", remedy)
    if head.startswith(_OURS) or head[8:12] == b"WEBP":
        return SampleError(key, f"picture {ref.path} is damaged: its header cannot be read", _REDOWNLOAD)
    found = f"picture {ref.path} is no picture anymix knows (it begins with {head[:12]!r})"
    return SampleError(key, found, "save it as JPEG or PNG")


def _unopenable(error: OSError | ValueError, ref: ImageRef, key: str) -> SampleError:
    if isinstance(error, IsADirectoryError):
        return SampleError(key, f"picture {ref.path} is a folder", "name a picture file in it")
    if isinstance(error, PermissionError):
        return SampleError(key, f"picture {ref.path} may not be read by this user", "run `chmod a+r` on it")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return SampleError(key, f"picture {ref.path} does not exist", _where_it_may_be(ref.path))
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return SampleError(key, f"picture {ref.path!r} cannot be opened ({reason})", "check its path")


def _where_it_may_be(path: str) -> str:
    slashes = path.replace("\\", "/")
    if slashes != path and os.path.exists(slashes):
        return f"write {slashes}, with forward slashes"
    folder, name = os.path.split(slashes)
    if not os.path.isdir(folder or "."):
        return f"there is no folder {folder}: set data.root to the folder image paths start from"
    if os.path.islink(path):
        return f"it links to {os.readlink(path)}, which is not there: copy the picture itself"
    hit = _nearest(name, _names(folder or ".", os.stat(folder or ".").st_mtime_ns))
    if hit is None:
        return "correct its name, or set data.root to the folder image paths start from"
    return f"did you mean {os.path.join(folder, hit)}?"


@lru_cache(maxsize=4)  # a checked data set asks again for every missing picture
def _names(folder: str, _changed: int) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(folder)))
    except OSError:
        return ()


def _nearest(name: str, names: tuple[str, ...]) -> str | None:
    """The same name in other case, then with another extension, then one spelled alike."""
    stem = os.path.splitext(name)[0].lower()
    same = [n for n in names if n.lower() == name.lower()] or [
        n for n in names if os.path.splitext(n)[0].lower() == stem
    ]
    if same or len(names) > 10_000:  # spelling is compared with each name: slow in large folders
        return same[0] if same else None
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.8)), None)
