"""PDF files as pictures: their pages in order, one of them, and what stands in their way as sentences."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from anymix.data import pages
from anymix.data.captions import read as read_captions
from anymix.data.conversations import check, missing_images, read
from anymix.data.images import image_size, open_image, refuse_cut_off
from anymix.samples import ImageRef, SampleError

pytest.importorskip("pypdfium2")
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def pdf(path: Path, count: int = 3, size: tuple[int, int] = (301, 419)) -> Path:
    """Pages of one colour each, as a scanner writes them: so many pixels at 144 dots to the inch."""
    sheets = [Image.new("RGB", (size[0] + n, size[1]), COLOURS[n % 3]) for n in range(count)]
    ImageDraw.Draw(sheets[0]).rectangle((0, 0, 40, 40), fill=(0, 0, 0))
    sheets[0].save(path, save_all=True, append_images=sheets[1:], resolution=144)
    return path


def names(ref: ImageRef) -> list[str]:
    return [Path(page.path).name for page in pages.refs_of(ref, "k")]


def test_a_file_is_its_pages_in_order_and_a_number_one_of_them(tmp_path: Path) -> None:
    path = pdf(tmp_path / "Scan 1.PDF")
    assert names(ImageRef(str(path))) == ["Scan 1.PDF#1", "Scan 1.PDF#2", "Scan 1.PDF#3"]
    assert names(ImageRef(f"{path}#2")) == ["Scan 1.PDF#2"]
    assert names(ImageRef(f"{path}#2-3")) == ["Scan 1.PDF#2", "Scan 1.PDF#3"]
    for n, page in enumerate(pages.refs_of(ImageRef(str(path)), "k")):
        image = open_image(page, "k")
        middle = np.asarray(image)[image.height // 2, image.width // 2]
        assert np.abs(middle.astype(int) - COLOURS[n]).max() <= 3, n  # JPEG's
        refuse_cut_off(page, "k")


@pytest.mark.parametrize("size", [(301, 419), (300, 400), (1241, 1754), (7, 5)])
def test_the_size_known_without_drawing_is_the_size_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    path = pdf(tmp_path / "a.pdf", 2, size)
    for page in pages.refs_of(ImageRef(str(path)), "k"):
        image = open_image(page, "k")
        assert image_size(page, "k") == image.size and image.mode == "RGB"
    assert abs(image_size(page, "k")[1] - size[1] * 150 / 144) <= 1  # 150 dots to the inch


def test_a_page_is_the_same_each_time_upright_and_on_white(tmp_path: Path) -> None:
    import pypdfium2

    path = pdf(tmp_path / "a.pdf", 1)
    document = pypdfium2.PdfDocument(str(path))
    document[0].set_rotation(90)
    document.new_page(72, 144)
    document.save(str(tmp_path / "turned.pdf"))
    document.close()
    turned, empty = pages.refs_of(ImageRef(str(tmp_path / "turned.pdf")), "k")
    first, again = (np.asarray(open_image(turned, "k")) for _ in range(2))
    assert np.array_equal(first, again)
    assert image_size(turned, "k") == open_image(turned, "k").size == image_size(ImageRef(str(path)), "k")[::-1]
    assert first[5, -5].max() < 40 and first[5, 5, 0] > 200  # the black corner went from the left to the right
    assert open_image(empty, "k").size == (150, 300) and np.asarray(open_image(empty, "k")).min() == 255


def test_many_pages_are_asked_for_by_number(tmp_path: Path) -> None:
    path = pdf(tmp_path / "long.pdf", pages.MOST + 1, (10, 10))
    with pytest.raises(SampleError, match=r"has 33 pages, more than the 32 shown unasked; name the pages: .*#1-32"):
        pages.refs_of(ImageRef(str(path)), "k")
    assert len(pages.refs_of(ImageRef(f"{path}#1-33"), "k")) == 33


def refused(path: object) -> str:
    with pytest.raises(SampleError) as caught:
        [image_size(page, "row 3") for page in pages.refs_of(ImageRef(str(path)), "row 3")]
    assert str(caught.value).startswith("row 3: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_with_a_file_is_a_sentence(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.pdf")
    for pages_ in ("0", "4", "2-4", "3-2"):
        assert "names pages that are not there: the file has 3 pages, 1 to 3" in refused(f"{path}#{pages_}")
    assert "no.pdf does not exist" in refused(tmp_path / "no.pdf")
    (tmp_path / "cut.pdf").write_bytes(path.read_bytes()[:300])
    assert "is no readable PDF" in refused(tmp_path / "cut.pdf")
    (tmp_path / "empty.pdf").write_bytes(b"")
    assert "is no readable PDF" in refused(tmp_path / "empty.pdf")
    with pytest.raises(SampleError, match="has 3 pages; name one of them"):
        open_image(ImageRef(str(path)), "k")
    with pytest.raises(SampleError, match="pixels at 150 dots to the inch, the limit is 1,000"):
        image_size(ImageRef(f"{path}#1"), "k", max_pixels=1000)


def test_without_pypdfium2_a_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, importing = pdf(tmp_path / "a.pdf"), builtins.__import__

    def missing(name: str, *others: Any) -> Any:
        if name == "pypdfium2":
            raise ImportError(name)
        return importing(name, *others)

    monkeypatch.setattr(builtins, "__import__", missing)
    said = refused(path)
    assert "pip install 'anymix[pdf]'" in said and "pdftoppm" in said


def rows(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_rows_and_tables_show_pages_where_the_pdf_stands(tmp_path: Path) -> None:
    pdf(tmp_path / "a.pdf", 2)
    path = rows(
        tmp_path,
        {"image": "a.pdf", "question": "<image>\nRead.", "answer": "x"},
        {"image": "a.pdf#2", "question": "Read.", "answer": "x"},
        {"image": ["a.pdf", "a.pdf#1"], "question": "One <image> two <image>.", "answer": "x"},
        {"image": "b.pdf", "question": "Read.", "answer": "x"},
    )
    one, two = (ImageRef(str(tmp_path / f"a.pdf#{n}")) for n in (1, 2))
    read_ = read(str(path))
    assert read_[0].turns[0].parts == (one, "\n", two, "\nRead.")
    assert read_[1].turns[0].parts == (two, "\nRead.")
    assert read_[2].turns[0].parts == ("One ", one, "\n", two, " two ", one, ".")
    assert read_.said(0).images == (ImageRef(str(tmp_path / "a.pdf")),)
    assert not missing_images(read_[0])
    verdict = check(read_, on_error="skip")
    assert verdict.good == [0, 1, 2] and "b.pdf does not exist" in verdict.skipped[0][1]
    (tmp_path / "t.csv").write_text("image,question,answer\na.pdf,Read.,x\n")
    assert read(str(tmp_path / "t.csv"))[0].turns[0].parts == (one, "\n", two, "\nRead.")


def test_a_model_that_draws_is_shown_no_pdf(tmp_path: Path) -> None:
    pdf(tmp_path / "a.pdf", 1)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.pdf", "text": "x"}))
    with pytest.raises(ValueError, match="is a PDF, and a model that draws learns from pictures"):
        read_captions(str(tmp_path / "metadata.jsonl"), image_column="file_name", caption_column="text")[0]
