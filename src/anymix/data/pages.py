"""PDF files as pictures: `invoice.pdf` stands for all its pages in order, `invoice.pdf#2` for the second alone,
`invoice.pdf#2-4` for some.

In goes an `ImageRef`, out come the pages it means, their sizes from the file's own words, and a page drawn at DPI
dots to the inch, filled-in forms and notes included. Needs pypdfium2 (the `pdf` extra); without it a SampleError says
what to install. The same file and the same pypdfium2 give the same pixels, but for letters whose shapes the PDF does
not bring: those come from the fonts of the machine.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from PIL import Image

from anymix.samples import Conversation, ImageRef, Part, SampleError

DPI = 150  # an A4 page is 1241 x 1754 pixels
MOST = 32  # pages of one PDF that are shown without being asked for by number
SUFFIX = ".pdf"
_PAGES = re.compile(r"(?P<file>.*\.pdf)#(?P<first>[0-9]{1,6})(?:-(?P<last>[0-9]{1,6}))?", re.IGNORECASE | re.DOTALL)
_NO_PDFIUM = "pip install 'anymix[pdf]', or export its pages as pictures (`pdftoppm -r 150 -png`) and name those"
_ONE_AT_A_TIME = threading.Lock()  # PDFium may not be called from two threads


def is_pdf(ref: ImageRef) -> bool:
    """Is this a PDF, or pages of one, by its name?"""
    return ref.data is None and file_of(ref.path).lower().endswith(SUFFIX)


def file_of(path: str) -> str:
    """The file of a path that may name pages: invoice.pdf of invoice.pdf#2."""
    named = _PAGES.fullmatch(path)
    return named["file"] if named and not os.path.exists(path) else path


def refs_of(ref: ImageRef, key: str) -> list[ImageRef]:
    """The pages a picture stands for, one by one; what is no PDF as it is.

    Raises SampleError(key) for a file that cannot be read, pages that are not there, and more than MOST pages where
    none were named."""
    if not is_pdf(ref):
        return [ref]
    named = _PAGES.fullmatch(ref.path)
    if named and not named["last"]:
        return [ref]
    file, count = file_of(ref.path), _count(ref, key)
    if named is None and count > MOST:
        found = f"{file} has {count} pages, more than the {MOST} shown unasked"
        raise SampleError(key, found, f"name the pages: {file}#1-{MOST}")
    first, last = (int(named["first"]), int(named["last"])) if named else (1, count)
    if not 1 <= first <= last <= count:
        raise _no_such_page(ref, count, key)
    return [replace(ref, path=f"{file}#{page}") for page in range(first, last + 1)]


def unfolded(conversation: Conversation) -> Conversation:
    """A conversation with every PDF taken apart into its pages, a line each. Raises SampleError."""
    if not any(is_pdf(ref) for ref in conversation.images):
        return conversation
    turns = [replace(turn, parts=tuple(apart(turn.parts, conversation.key))) for turn in conversation.turns]
    return replace(conversation, turns=tuple(turns))


def apart(parts: Iterable[Part], key: str) -> Iterator[Part]:
    """Parts of a turn with every PDF taken apart into its pages, a line each. Raises SampleError."""
    for part in parts:
        if not isinstance(part, ImageRef):
            yield part
            continue
        for n, page in enumerate(refs_of(part, key)):
            yield from ("\n", page) if n else (page,)


def size(ref: ImageRef, key: str, max_pixels: int) -> tuple[int, int]:
    """(width, height) of a page as `draw` draws it, without drawing. Raises SampleError."""
    with _page(ref, key) as page:
        return _size(page, ref, key, max_pixels)


def draw(ref: ImageRef, key: str, max_pixels: int) -> Image.Image:
    """A page on white, upright, in mode RGB. Raises SampleError."""
    with _page(ref, key) as page:
        _size(page, ref, key, max_pixels)
        image: Image.Image = page.render(scale=DPI / 72).to_pil()
        return image.convert("RGB")


def _size(page: Any, ref: ImageRef, key: str, max_pixels: int) -> tuple[int, int]:
    width, height = (math.ceil(edge * DPI / 72) for edge in page.get_size())  # points, as seen: turned where it says
    if width * height > max_pixels:
        found = f"picture {ref.path} is {width}x{height} pixels at {DPI} dots to the inch"
        raise SampleError(key, f"{found}, the limit is {max_pixels:,}", "export it as a smaller picture")
    return width, height


@contextmanager
def _page(ref: ImageRef, key: str) -> Iterator[Any]:
    """The one page a reference means."""
    named = _PAGES.fullmatch(ref.path)
    if named and named["last"] not in (None, named["first"]):
        raise SampleError(key, f"picture {ref.path} is several pages", f"name one: {named['file']}#{named['first']}")
    with _document(ref, key) as document:
        count, number = len(document), int(named["first"]) if named else 1
        if named is None and count != 1:
            raise SampleError(key, f"picture {ref.path} has {count} pages", f"name one of them: {ref.path}#1")
        if not 1 <= number <= count:
            raise _no_such_page(ref, count, key)
        page = document[number - 1]
        try:
            yield page
        finally:
            page.close()


def _no_such_page(ref: ImageRef, count: int, key: str) -> SampleError:
    have = f"{count} pages, 1 to {count}" if count > 1 else "1 page"
    return SampleError(key, f"picture {ref.path} names pages that are not there: the file has {have}", "correct it")


def _count(ref: ImageRef, key: str) -> int:
    """Pages of a file, which is asked once as long as it does not change."""
    path = file_of(ref.path)
    try:
        stat = os.stat(path)
        return _counted(path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        raise _missing(path, key) from None
    except SampleError as error:
        raise SampleError(key, error.found, error.remedy) from None


@lru_cache(maxsize=4096)
def _counted(path: str, _size: int, _changed: int) -> int:
    with _document(ImageRef(path), path) as document:
        return len(document)


@contextmanager
def _document(ref: ImageRef, key: str) -> Iterator[Any]:
    path = file_of(ref.path)
    if not os.path.isfile(path):
        raise _missing(path, key)
    try:
        import pypdfium2
    except ImportError:
        raise SampleError(key, f"picture {path} is a PDF, and pypdfium2 is not installed", _NO_PDFIUM) from None
    with _ONE_AT_A_TIME:
        try:
            document = pypdfium2.PdfDocument(path)
            document.init_forms()  # or what was filled into a form would be left out
        except (pypdfium2.PdfiumError, OSError) as error:
            raise _unreadable(path, str(error), key) from None
        try:
            yield document
        except pypdfium2.PdfiumError as error:
            raise _unreadable(path, str(error), key) from None
        finally:
            document.close()


def _missing(path: str, key: str) -> SampleError:
    return SampleError(key, f"picture {path} does not exist", "correct its name, or set the folder paths start from")


def _unreadable(path: str, reason: str, key: str) -> SampleError:
    if "assword" in reason:
        return SampleError(key, f"picture {path} is a PDF under a password", "save it without one")
    return SampleError(key, f"picture {path} is no readable PDF ({reason})", "copy or download it again")


__all__ = ["DPI", "MOST", "SUFFIX", "apart", "draw", "file_of", "is_pdf", "refs_of", "size", "unfolded"]
