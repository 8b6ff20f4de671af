"""kohya's folders and dataset files: every setting followed, answered or refused, none passed over."""

from __future__ import annotations

import json

import pytest

from anymix.data.caption_grammar import Reading
from anymix.data.captions import read
from anymix.data.check_pictures import check_pictures
from anymix.data.dreambooth import class_rows
from anymix.data.kohya import numbered, open_config
from anymix.data.views import Look
from anymix.samples import SampleError
from painted import folder, picture


def _count(rows):
    """Captions and how often each comes."""
    texts = [rows[i].texts for i in range(len(rows))]
    return {text: texts.count(text) for text in dict.fromkeys(texts)}


def _toml(tmp_path, text):
    path = tmp_path / "set.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("10_sks dog", (10, "sks dog")),
        ("1_a_b", (1, "a_b")),
        ("5_", (5, "")),
        ("2024_summer", None),  # a year, not repeats
        ("001_first", None),
        ("dog", None),
        ("10", None),
    ],
)
def test_what_a_folders_name_asks_for(name, found):
    assert numbered(f"set/{name}/") == found


def test_numbered_folders_and_a_regularisation_folder(tmp_path):
    """The layout of kohya's own interface: img, reg, log and model."""
    folder(tmp_path / "img" / "10_sks dog", a=None, b="sks dog on grass")
    folder(tmp_path / "img" / "2_sks cat", c=None)
    folder(tmp_path / "img" / "drafts", d="x")
    folder(tmp_path / "reg" / "1_dog", r=None, s="two dogs")
    folder(tmp_path / "log", e=None)
    rows = read(str(tmp_path))
    assert _count(rows) == {("sks dog",): 10, ("sks dog on grass",): 10, ("sks cat",): 2}
    assert {rows.origin(i) for i in range(len(rows))} == {(0, 0), (0, 1), (1, 0)}
    assert len({rows.key(i) for i in range(len(rows))}) == 3  # repeats fall on one side of a held-out share together
    assert _count(rows.classes) == {("dog",): 1, ("two dogs",): 1}
    said = "\n".join(rows.notes)
    assert "2 pictures, each 10 times an epoch, called 'sks dog' where they have no caption" in said
    assert "2 class pictures" in said
    assert [rows.origin(i) for i in (0, 2)] == [(0, 0), (0, 0)]


def test_a_folder_without_a_number_is_named(tmp_path):
    folder(tmp_path / "3_x", a=None)
    folder(tmp_path / "0_y", a=None)
    folder(tmp_path / "drafts", d="x")
    rows = read(str(tmp_path))
    assert len(rows) == 3
    assert "folders without a number of repeats are not read (drafts)" in "\n".join(rows.notes)
    assert "0_y is left out: its name asks for 0 repeats" in "\n".join(rows.notes)


def test_class_pictures_are_never_called_as_the_subject(tmp_path):
    folder(tmp_path / "3_", a=None)
    folder(tmp_path / "reg", r=None)
    rows = read(str(tmp_path), caption="sks dog")
    assert _count(rows) == {("sks dog",): 3}
    with pytest.raises(SampleError, match="no caption"):
        rows.classes[0]
    assert _count(class_rows(rows, None, "a dog")) == {("a dog",): 1}


TOML = """
[general]
shuffle_caption = true
keep_tokens = 1
caption_extension = ".txt"

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 2
enable_bucket = true
min_bucket_reso = 256
max_bucket_reso = 768

  [[datasets.subsets]]
  image_dir = "hoge"
  num_repeats = 3
  class_tokens = "hoge girl"
  flip_aug = true
  random_crop = true
  caption_dropout_rate = 0.25
  caption_prefix = "best,"

  [[datasets.subsets]]
  image_dir = "reg"
  is_reg = true
  class_tokens = "human"

[[datasets]]
resolution = [768, 768]

  [[datasets.subsets]]
  image_dir = "piyo"
  metadata_file = "piyo.json"
"""


@pytest.fixture
def whole(tmp_path):
    """The example of kohya's own documentation, with more in it."""
    folder(tmp_path / "hoge", a="x, y", b=None)
    folder(tmp_path / "reg", r=None)
    picture(tmp_path / "piyo" / "p.png", (300, 200))
    (tmp_path / "piyo.json").write_text(json.dumps({"p": {"caption": "a p", "tags": "q"}}))
    return _toml(tmp_path, TOML)


def test_a_dataset_file_is_followed(whole):
    rows = read(whole)
    assert _count(rows) == {("best, x, y",): 3, ("best, hoge girl",): 3, ("a p, q",): 1}
    first, last = rows[0], rows[6]
    assert (first.shuffle, first.keep, first.dropout) == (True, 2, 0.25)
    assert (last.shuffle, last.keep, last.dropout) == (True, 1, None)
    assert dict(first.look) == {
        "resolution": 512, "buckets": True, "flip": True, "shortest": 256, "longest": 768, "crop": "random",
    }  # fmt: skip
    assert dict(last.look) == {"resolution": 768}
    assert _count(rows.classes) == {("human",): 1}
    said = "\n".join(rows.notes)
    assert "batch_size is not followed: train.batch of the recipe is the batch" in said
    assert "its own settings win over the recipe's (resolution 512, buckets True" in said


def test_each_data_set_is_seen_at_its_own_resolution(whole):
    verdict = check_pictures(read(whole), Look(64, step=16))
    sizes = [view.size for view in verdict.views]
    assert all(max(size) <= 768 for size in sizes[:6])
    areas = [size[0] * size[1] for size in sizes]
    assert 0.7 * 512**2 < max(areas[:6]) <= 512**2 < 0.7 * 768**2 < areas[6]
    assert verdict.longest == 6


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("num_repeat = 3", "unknown setting num_repeat; did you mean num_repeats?"),
        ("color_aug = true", "color_aug = True is nothing anymix does; take it out"),
        ("caption_tag_dropout_rate = 0.1", "caption_tag_dropout_rate = 0.1 is nothing anymix does"),
        ("alpha_mask = true", "save the alpha channels as pictures in a folder `masks`"),
        ("num_repeats = '3'", "num_repeats is '3', expected int"),
        ("num_repeats = true", "num_repeats is True, expected int"),
        ("num_repeats = 0", "num_repeats is 0, expected 1 or more"),
        ("resolution = 512", r"resolution is a setting of \[general\] or \[\[datasets\]\]; move it there"),
        ("caption_dropout_rate = 2", "caption_dropout_rate is 2, expected a share"),
        ("caption_separator = ';'\nshuffle_caption = true", "tags are told apart by commas"),
    ],
)
def test_what_is_not_followed_stops_in_a_sentence(tmp_path, line, sentence):
    folder(tmp_path / "a", a="x")
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n{line}\n"
    with pytest.raises(ValueError, match=f"subset 1.*{sentence}"):
        read(_toml(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'gone'", "there is no image_dir gone"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", "has no image_dir"),
        ("[[datasets]]\nresolution = 512", r"has no \[\[datasets.subsets\]\]"),
        ("[general]\nflip_aug = true", r"has no \[\[datasets\]\]"),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "C:\\hoge"', "write Windows paths in 'single quotes'"),
        ("[[datasets]]\nresolution = [512, 768]\n[[datasets.subsets]]\nimage_dir = 'a'", "the edge of a square"),
        ("flip_aug = true", "has flip_aug at its top"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nis_reg = true\n", "all pictures are class"),
    ],
)  # fmt: skip
def test_a_dataset_file_that_cannot_be_read_is_told(tmp_path, text, sentence):
    folder(tmp_path / "a", a="x")
    with pytest.raises(ValueError, match=sentence) as caught:
        read(_toml(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_setting_that_is_off_is_no_matter(tmp_path):
    folder(tmp_path / "a", a="x")
    off = "color_aug = false\ncaption_tag_dropout_rate = 0.0\ntoken_warmup_step = 0\nsecondary_separator = ''"
    assert len(read(_toml(tmp_path, f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n{off}\n"))) == 1


def test_the_same_folder_twice_in_a_data_set_is_read_once_and_said(tmp_path):
    folder(tmp_path / "a", a="x")
    twice = "[[datasets.subsets]]\nimage_dir = 'a'\n" * 2
    rows = read(_toml(tmp_path, f"[[datasets]]\n{twice}[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"))
    assert len(rows) == 2
    assert "stands in this data set already and is read once" in "\n".join(rows.notes)


def test_masks_of_a_conditioning_folder(tmp_path):
    folder(tmp_path / "a", x="1", y="2")
    picture(tmp_path / "cond" / "x.jpg", mode="L", colour=255)
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nconditioning_data_dir = 'cond'\n"
    rows = read(_toml(tmp_path, text))
    assert [sample.mask and sample.mask.path for sample in rows] == [str(tmp_path / "cond" / "x.jpg"), None]


def test_lines_wildcards_and_the_mark_that_keeps_tags(tmp_path):
    folder(tmp_path / "a", w="a {red|blue} fox\na {{hen}}\n", k="1girl, solo ||| sky, sea", n="tree, sea")
    text = (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nenable_wildcard = true\nshuffle_caption = true\n"
        "keep_tokens = 1\nkeep_tokens_separator = '|||'\ncaption_suffix = ', best'\n"
    )
    rows = read(_toml(tmp_path, text))
    by_name = {rows.key(i).rsplit("/", 1)[-1]: rows[i] for i in range(len(rows))}
    # Each line is as likely as the other, whatever it holds.
    assert sorted(by_name["w.png"].texts) == [
        "a blue fox , best", "a red fox , best", "a {hen} , best", "a {hen} , best",
    ]  # fmt: skip
    kept = by_name["k.png"]
    assert (kept.texts, kept.keep) == (("1girl, solo, sky, sea, best",), 2)
    assert by_name["n.png"].keep == 1


def test_without_enable_wildcard_braces_are_text_and_lines_are_joined(tmp_path):
    folder(tmp_path / "a", w="a {red|blue} fox\nand a hen")
    rows = read(_toml(tmp_path, "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"))
    assert rows[0].texts == ("a {red|blue} fox and a hen",)
    said = f"1 captions have several lines, which are joined ({tmp_path / 'a' / 'w.txt'}), where kohya's scripts read"
    assert any(said in note for note in check_pictures(rows, Look(64, step=16)).notes)


def test_a_list_beside_numbered_folders_is_what_is_read(tmp_path):
    folder(tmp_path / "10_sks dog", a=None, b=None, c=None)
    lines = [{"file_name": f"10_sks dog/{name}.png", "text": f"{name} of the list"} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = read(str(tmp_path))
    assert _count(rows) == {("a of the list",): 1, ("b of the list",): 1}
    assert any("numbers of folders are no repeats (10_sks dog)" in note for note in rows.notes)
    assert any("named in no list (metadata.jsonl) and are left out (10_sks dog/c.png)" in note for note in rows.notes)


def test_what_a_recipe_says_of_tags_holds_where_the_dataset_file_does_not(tmp_path):
    folder(tmp_path / "a", x="1girl, sky, sea")
    folder(tmp_path / "b", y="1girl, hat, dog")
    text = (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nkeep_tokens = 2\n"
        "[[datasets.subsets]]\nimage_dir = 'b'\nshuffle_caption = false\n"
    )
    first, last = read(_toml(tmp_path, text), shuffle=True, keep=1)
    assert (first.shuffle, first.keep) == (True, 2)
    assert (last.shuffle, last.keep) == (False, 1)
    other = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\ncaption_separator = ';'\n"
    with pytest.raises(ValueError, match="tags are told apart by commas"):
        read(_toml(tmp_path, other), shuffle=True)


def test_caption_files_beside_a_metadata_file_are_told(tmp_path):
    folder(tmp_path / "a", x="from the file", y=None)
    listed = {str(tmp_path / "a" / f"{name}.png"): {"caption": f"{name} of the list"} for name in "xy"}
    (tmp_path / "meta.json").write_text(json.dumps(listed))
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nmetadata_file = 'meta.json'\n"
    rows = read(_toml(tmp_path, text))
    assert _count(rows) == {("x of the list",): 1, ("y of the list",): 1}
    assert any("1 pictures have a caption in meta.json and a caption file beside them" in note for note in rows.notes)


def test_a_dataset_file_in_json_and_folders_from_root(tmp_path):
    folder(tmp_path / "far" / "a", a="x")
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"datasets": [{"subsets": [{"image_dir": "a"}]}]}))
    assert len(read(str(path), str(tmp_path / "far"))) == 1
    with pytest.raises(ValueError, match="there is no image_dir a .*or set data.root"):
        read(str(path))


def test_a_caption_extension_that_leaves_captions_unread_is_told(tmp_path):
    folder(tmp_path / "a", a="x")
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\ncaption_extension = '.caption'\nclass_tokens = 'y'\n"
    rows = read(_toml(tmp_path, text))
    assert rows[0].texts == ("y",)
    assert "not read, being neither pictures nor captions: .txt: 1" in "\n".join(rows.notes)


def test_what_a_dataset_file_says_of_itself_is_found_without_pictures(whole):
    subsets, notes = open_config(whole, None, Reading())
    assert [(s.repeats, s.classes, s.suffixes) for s in subsets] == [
        (3, False, (".txt",)), (1, True, (".txt",)), (1, False, (".txt",)),
    ]  # fmt: skip
    assert len(notes) == 1
