"""Captioned pictures as people keep them: folders, lists, tables, hub layouts; nothing lost without a word."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from anymix.data import captions
from anymix.data.captions import are_pictures, read
from anymix.data.check_pictures import check_pictures
from anymix.data.images import open_image
from anymix.data.views import Look
from anymix.samples import SampleError
from painted import folder, picture

LOOK = Look(64, step=16)


def _names(rows):
    return [rows[i].image.path.rsplit("/", 1)[-1] for i in range(len(rows))]


def _texts(rows):
    return [rows[i].texts for i in range(len(rows))]


def _png(colour=(9, 9, 9)):
    file = io.BytesIO()
    Image.new("RGB", (80, 64), colour).save(file, "PNG")
    return file.getvalue()


def test_a_folder_with_a_text_for_each_picture(tmp_path):
    at = folder(tmp_path / "set", a="a red fox", b="two\nlines", c="\ufeffmarked")
    picture(at / "deep" / "er" / "d.JPG")
    (at / "deep" / "er" / "d.caption").write_text("below")
    rows = read(str(at))
    assert _names(rows) == ["a.png", "b.png", "c.png", "d.JPG"]
    assert _texts(rows) == [("a red fox",), ("two lines",), ("marked",), ("below",)]
    assert rows.notes == ()
    assert [rows.key(i) for i in (0, -1)] == [str(at / "a.png"), str(at / "deep" / "er" / "d.JPG")]


def test_files_beside_pictures_never_stand_for_pictures(tmp_path):
    at = folder(tmp_path, a="x")
    for name in ("metadata.json", "a.npz", "notes.docx", ".DS_Store", "Thumbs.db", "README.md"):
        (at / name).write_bytes(b"no picture")
    picture(at / ".ipynb_checkpoints" / "a-checkpoint.png")
    rows = read(str(at))
    assert _names(rows) == ["a.png"]
    assert len(rows.notes) == 1
    assert all(kind in rows.notes[0] for kind in (".json: 1", ".npz: 1", ".docx: 1"))
    assert ".md" not in rows.notes[0]


def test_a_caption_without_its_picture_and_a_picture_without_its_caption_are_named(tmp_path):
    at = folder(tmp_path, a="x", b=None)
    (at / "gone.txt").write_text("where is it")
    rows = read(str(at))
    assert "1 caption has no picture of that name (gone.txt)" in rows.notes[0]
    assert rows[0].texts == ("x",)
    with pytest.raises(
        SampleError, match=r"b\.png: the picture has no caption; write one in .*b\.txt, set data.caption"
    ):
        rows[1]
    assert _texts(read(str(at), caption="a photo of sks dog")) == [("x",), ("a photo of sks dog",)]


def test_a_plain_folder_is_called_what_it_is_said_to_be(tmp_path):
    at = folder(tmp_path, a=None, b=None, empty="  \n")
    assert _texts(read(str(at), caption="sks dog")) == [("sks dog",)] * 3


def test_the_hubs_image_folder(tmp_path):
    at = folder(tmp_path, a=None, b=None, c=None, own="of its own")
    lines = [{"file_name": "b.png", "text": "b is second"}, {"file_name": "a.png", "text": ["a", "also a"]}]
    (at / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows = read(str(at))
    assert list(zip(_names(rows), _texts(rows), strict=True)) == [
        ("b.png", ("b is second",)), ("a.png", ("a", "also a")), ("own.png", ("of its own",)),
    ]  # fmt: skip
    assert "1 pictures are named in no list (metadata.jsonl) and are left out (c.png)" in rows.notes[-1]
    assert rows.key(0) == f"{at / 'metadata.jsonl'}:1"
    assert _names(read(str(at), caption="else")) == ["b.png", "a.png", "c.png", "own.png"]
    assert _names(read(str(at), image_column="image", caption_column="text")) == _names(rows)
    with pytest.raises(ValueError, match="has no column picture; its columns are file_name, text"):
        read(str(at), image_column="picture")


def test_of_a_list_and_a_caption_file_the_list_is_read_and_that_is_told(tmp_path):
    at = folder(tmp_path, a="from the file", b="of its own", c=None)
    lines = [{"file_name": f"{name}.png", "text": f"{name} of the list"} for name in "ac"]
    (at / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows = read(str(at))
    assert _texts(rows) == [("a of the list",), ("c of the list",), ("of its own",)]
    said = "1 pictures have a caption in metadata.jsonl and a caption file beside them; the list is read"
    assert any(note == f"{at}: {said}, the files are not (a.png)" for note in check_pictures(rows, LOOK).notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [("text", "one\n\ntwo"), ("words", ["one\ntwo", "three"])],
)
def test_captions_of_several_lines_are_named_in_any_column(tmp_path, name, text):
    picture(tmp_path / "a.png")
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "a.png", name: text}) + "\n")
    rows = read(str(tmp_path / "list.jsonl"), caption_column=name)
    assert rows[0].texts[0] == "one two"
    said = f"1 captions have several lines, which are joined ({tmp_path / 'list.jsonl'}:1)"
    assert any(said in note for note in check_pictures(rows, LOOK).notes)


def test_tags_are_shuffled_behind_those_kept_in_plain_folders_too(tmp_path):
    at = folder(tmp_path, a="1girl, sky, sea")
    (sample,) = read(str(at), shuffle=True, keep=1)
    assert (sample.shuffle, sample.keep) == (True, 1)
    (still,) = read(str(at))
    assert (still.shuffle, still.keep) == (False, 0)


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_metadata_as_a_table_in_a_folder_below(tmp_path, column):
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "metadata.csv").write_text(f'file_name,{column},artist\na.png,"a fox, red",me\n')
    assert _texts(read(str(tmp_path))) == [("a fox, red",)]


def test_a_split_of_the_hubs_folders_is_chosen_and_the_others_named(tmp_path):
    folder(tmp_path / "train", a="learn")
    folder(tmp_path / "test", b="judge")
    rows = read(str(tmp_path))
    assert _texts(rows) == [("learn",)]
    assert "only its folder train is read" in rows.notes[0]
    assert _texts(read(str(tmp_path), split="test")) == [("judge",)]


def test_a_wrong_column_names_those_there_are(tmp_path):
    picture(tmp_path / "a.png")
    path = tmp_path / "list.csv"
    path.write_text("picture,words\na.png,a fox\n")
    with pytest.raises(
        ValueError, match="no column of pictures; its columns are picture, words: set data.image_column"
    ):
        read(str(path))
    with pytest.raises(ValueError, match="no column of captions; its columns are picture, words"):
        read(str(path), image_column="picture")
    with pytest.raises(ValueError, match="has no column word; its columns are picture, words"):
        read(str(path), image_column="picture", caption_column="word")
    rows = read(str(path), image_column="picture", caption_column="words")
    assert rows[0].texts == ("a fox",)
    assert rows[0].image.path == str(tmp_path / "a.png")


def test_of_two_columns_of_captions_the_one_taken_is_told(tmp_path):
    picture(tmp_path / "a.png")
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"image": "a.png", "text": "short", "caption": "long"}) + "\n")
    rows = read(str(path))
    assert rows[0].texts == ("short",)
    assert "the column text, not caption; data.caption_column chooses" in rows.notes[0]
    assert read(str(path), caption_column="caption")[0].texts == ("long",)


def test_parquet_with_the_pictures_inside(tmp_path):
    import pyarrow
    import pyarrow.parquet

    cells = [{"bytes": _png((n, 0, 0)), "path": f"{n}.png"} for n in range(3)]
    table = pyarrow.table({"image": cells, "caption": ["zero", "one", None]})
    pyarrow.parquet.write_table(table, tmp_path / "set.parquet")
    rows = read(str(tmp_path / "set.parquet"))
    assert open_image(rows[1].image, "k").getpixel((0, 0)) == (1, 0, 0)
    assert rows[1].texts == ("one",)
    assert rows.key(2).endswith("set.parquet:row 3")
    with pytest.raises(SampleError, match="row 3: the picture has no caption"):
        rows[2]
    verdict = check_pictures(rows, LOOK, on_error="skip")
    assert (verdict.good, len(verdict.skipped)) == ([0, 1], 1)
    with pytest.raises(ValueError, match="no column text; its columns are image, caption"):
        read(str(tmp_path / "set.parquet"), caption_column="text")


def test_lists_of_lines_and_names(tmp_path):
    folder(tmp_path, a=None, b=None)
    path = tmp_path / "list.txt"
    path.write_text("a.png#0\ta fox: red\na.png#1\tanother word\n\nb.png: a hen, brown\n", encoding="utf-8")
    rows = read(str(path))
    assert _texts(rows) == [("a fox: red", "another word"), ("a hen, brown",)]
    path.write_text("a.png\tx\nwhat is this\n")
    with pytest.raises(ValueError, match=r"list\.txt:2 names no picture"):
        read(str(path))


def test_a_json_of_names_and_kohyas_of_captions_and_tags(tmp_path):
    folder(tmp_path, a=None, b=None)
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"a.png": ["one", "two"], "b": {"caption": "line\nother", "tags": "x, y"}}))
    rows = read(str(path))
    assert _texts(rows) == [("one", "two"), ("line, x, y", "other, x, y")]
    assert rows[1].image.path == str(tmp_path / "b.png")
    path.write_text(json.dumps({"a.png": 3}))
    with pytest.raises(ValueError, match="a.png is int, expected a caption or a list"):
        read(str(path))


def test_masks_lie_beside_below_or_above_and_are_no_pictures(tmp_path):
    at = folder(tmp_path, a="1", b="2", c="3")
    picture(at / "deep" / "d.jpg")
    (at / "deep" / "d.txt").write_text("4")
    picture(at / "a.mask.png", mode="L", colour=255)
    picture(at / "b-masklabel.png", mode="L", colour=255)
    picture(at / "masks" / "deep" / "d.png", mode="L", colour=255)
    picture(at / "masks" / "nobody.png", mode="L", colour=255)
    rows = read(str(at))
    masks = {sample.texts[0]: sample.mask and sample.mask.path for sample in rows}
    assert masks == {
        "1": str(at / "a.mask.png"), "2": str(at / "b-masklabel.png"), "3": None,
        "4": str(at / "masks" / "deep" / "d.png"),
    }  # fmt: skip
    assert "1 mask has no picture of that name (masks/nobody.png)" in rows.notes[0]


def test_masks_serve_pictures_that_a_list_names_too(tmp_path):
    folder(tmp_path, a=None, b=None)
    picture(tmp_path / "masks" / "a.png", mode="L", colour=255)
    picture(tmp_path / "m.bmp", mode="L", colour=255)
    lines = [{"file_name": "a.png", "text": "x"}, {"file_name": "b.png", "text": "y", "mask": "m.bmp"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows = read(str(tmp_path))
    assert [sample.mask.path for sample in rows] == [str(tmp_path / "masks" / "a.png"), str(tmp_path / "m.bmp")]
    assert rows.notes == ()


def test_rows_are_lazy_sliced_and_pickled(tmp_path):
    at = folder(tmp_path, a="1", b="2", c="3")
    rows = read([str(at), str(at)], limit=5)
    (at / "b.txt").write_text("two")
    assert [sample.texts[0] for sample in rows] == ["1", "two", "3", "1", "two"]
    part = pickle.loads(pickle.dumps(rows[1:].take([2, 0])))
    assert [sample.texts[0] for sample in part] == ["1", "two"]
    assert part.origin(0) == (1, 0)
    assert part.record(1)["text"] == "two"
    with pytest.raises(IndexError):
        rows[5]


@pytest.mark.parametrize("what", ["empty", "texts", "nowhere", "word"])
def test_where_there_are_no_pictures_it_is_said(tmp_path, what):
    at = tmp_path / "set"
    at.mkdir()
    if what == "texts":
        (at / "a.txt").write_text("a fox")
    if what == "nowhere":
        at = tmp_path / "sett"
    if what == "word":
        at = at / "a.docx"
        at.write_text("x")
    with pytest.raises(
        ValueError, match="holds no pictures|did you mean .*set|no list of pictures anymix reads"
    ) as caught:
        read(str(at))
    assert "\n" not in str(caught.value)


def test_a_caption_that_is_no_text_is_told(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"image": "a.png", "text": 3}\n{"image": "", "text": "x"}\n[1]\n')
    rows = read(str(tmp_path / "l.jsonl"))
    for index, found in enumerate(["the caption in text is int", "the row names no picture", "the row is list"]):
        with pytest.raises(SampleError, match=rf"l\.jsonl:{index + 1}: {found}"):
            rows[index]
    folder(tmp_path / "set", a="x")
    (tmp_path / "set" / "a.txt").write_bytes("狐狸".encode("gb18030"))
    with pytest.raises(SampleError, match=r"a\.txt is no UTF-8; save it as UTF-8"):
        read(str(tmp_path / "set"))[0]


def test_two_caption_files_of_one_picture_are_told(tmp_path):
    at = folder(tmp_path, a="from the text")
    (at / "a.caption").write_text("other")
    rows = read(str(at))
    assert rows[0].texts == ("from the text",)
    assert "1 pictures have two caption files" in rows.notes[0]


def test_paths_that_hold_pictures_are_told_from_others(tmp_path):
    folder(tmp_path / "deep" / "er", a="x")
    (tmp_path / "rows.jsonl").write_text("{}")
    assert are_pictures(str(tmp_path))
    assert are_pictures("set.toml")
    assert not are_pictures(str(tmp_path / "rows.jsonl"))
    (tmp_path / "none").mkdir()
    assert not are_pictures(str(tmp_path / "none"))


def test_a_saved_data_set_of_the_datasets_library(tmp_path):
    import datasets

    made = datasets.Dataset.from_dict({"image": [_png()], "text": ["zero"]})
    made = made.cast_column("image", datasets.Image())
    made.save_to_disk(str(tmp_path / "saved"))
    rows = captions.read(str(tmp_path / "saved"))
    assert rows[0].texts == ("zero",)
    assert rows[0].image.data == _png()


def _square(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), "red").save(path)


def test_a_list_in_a_numbered_folder_is_read_and_repeated(tmp_path: Path) -> None:
    """`10_sks dog/metadata.jsonl`: its captions, ten times; the folder's words are for pictures without one."""
    for album in (tmp_path / "album" / "10_sks dog", tmp_path / "5_naruto"):
        _square(album / "a.png")
        (album / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog asleep"}\n')
    rows = read(str(tmp_path / "album"))
    assert [row.texts for row in rows] == [("a dog asleep",)] * 10
    assert [row.texts for row in read(str(tmp_path / "5_naruto"))] == [("a dog asleep",)]


def test_pictures_beside_numbered_folders_are_not_lost_in_silence(tmp_path: Path) -> None:
    _square(tmp_path / "root.png")
    _square(tmp_path / "10_extra" / "a.png")
    with pytest.raises(ValueError, match="holds pictures of its own .* beside folders with a number of repeats"):
        read(str(tmp_path))
