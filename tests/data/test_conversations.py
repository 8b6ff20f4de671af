"""Files of every format become lazy, small, picklable rows with keys; wrong files are one sentence."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anymix.data.conversations import Rows, missing_images, read
from anymix.samples import SampleError


def row(n: int, image: str | None = None) -> dict[str, object]:
    turns = [{"from": "human", "value": f"question {n}"}, {"from": "gpt", "value": f"answer {n}"}]
    return {"id": n, **({"image": image} if image else {}), "conversations": turns}


def write_lines(path: Path, rows: list[object], *, between: str = "\n", head: bytes = b"") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = between.join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in rows)
    path.write_bytes(head + text.encode())
    return str(path)


def numbers(rows: Rows) -> list[int]:
    return [int(conversation.turns[0].text.split()[-1]) for conversation in rows]


def error(*paths: object, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        read(*paths, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@settings(max_examples=15, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 2), min_size=1, max_size=8),
    ending=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    head=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    words=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
def test_every_line_of_a_jsonl_has_its_own_number(tmp_path_factory, gaps, ending, last, head, words):
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    lines, expected = [], []
    for n, gap in enumerate(gaps):
        lines += [" "] * gap + [json.dumps({**row(n), "note": words}, ensure_ascii=False)]
        expected.append(f"{path}:{len(lines)}")
    write_lines(path, [*lines, *([""] if last else [])], between=ending, head=head)
    rows = read(str(path))
    assert [rows.key(n) for n in range(len(rows))] == expected == [c.key for c in rows]
    assert numbers(rows) == list(range(len(gaps)))


def test_jsonl_is_recognised_by_its_content(tmp_path):
    assert numbers(read(write_lines(tmp_path / "a.json", [row(0), row(1)]))) == [0, 1]
    assert numbers(read(write_lines(tmp_path / "one.json", [row(5)]))) == [5]
    assert numbers(read(write_lines(tmp_path / "list.jsonl", [[row(0), row(1)]]))) == [0, 1]


def test_a_json_list_is_read_with_row_numbers(tmp_path):
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([row(0, "a.png"), 7, row(2)], indent=1))
    rows = read(str(path))
    assert [rows.key(n) for n in range(3)] == [f"{path}:row {n}" for n in (1, 2, 3)]
    assert rows[0].images[0].path == str(tmp_path / "a.png")
    with pytest.raises(SampleError, match="row 2: the row is a number"):
        rows[1]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"conversations": [', "no JSON"),
        (b"hello", "no JSON"),
        (b'{"a": 1} {"b": 2}', "no JSON"),
        (b'{"id": "\xb2\xe2"}', "no UTF-8"),
        (b"[" * 100_000, "no JSON"),
        (b"3", "the row is a number"),
    ],
)
def test_an_unreadable_line_raises_only_when_it_is_read(tmp_path, line, found):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([json.dumps(row(0)).encode(), b"", line, json.dumps(row(2)).encode()]))
    rows = read(str(path))
    assert len(rows) == 3 and rows[0].turns and rows[2].turns
    with pytest.raises(SampleError) as caught:
        rows[1]
    assert str(caught.value).startswith(f"{path}:3: ") and found in str(caught.value)


def test_a_file_changed_under_the_reader_is_noticed(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [row(0), row(1)])
    rows = read(path)
    write_lines(tmp_path / "rows.jsonl", [row(7777777), row(1)])
    with pytest.raises(SampleError, match="changed since it was opened"):
        rows[1]
    os.remove(path)
    with pytest.raises(SampleError, match="cannot be read"):
        rows[1]


def test_reading_is_lazy_and_keys_cost_no_parsing(tmp_path, monkeypatch):
    rows = read(write_lines(tmp_path / "rows.jsonl", [row(n) for n in range(50)]))
    asked = []
    monkeypatch.setattr(builtins, "open", lambda *a, **k: asked.append(a) or pytest.fail("opened a file"))
    assert len(rows) == 50 and rows.key(49).endswith(":50") and rows.take([3, 1]).key(1).endswith(":2")
    assert asked == []


def test_many_rows_stay_small_and_pickle_for_workers(tmp_path):
    count = 30_000
    path = write_lines(tmp_path / "rows.jsonl", [row(n) for n in range(count)])
    rows = read(path)
    packed = pickle.dumps(rows)
    assert len(packed) < 20 * count < os.path.getsize(path) / 4
    (tmp_path / "rows.pickle").write_bytes(packed)
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))[-1].turns[1].text)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows.pickle")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"answer {count - 1}"


def test_slices_limits_and_picks_are_rows_of_the_same_keys(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [row(n) for n in range(10)])
    rows = read(path)
    assert numbers(rows[2:5]) == [2, 3, 4] and numbers(rows[::-4]) == [9, 5, 1]
    assert numbers(rows[2:8].take([5, 0])[1:]) == [2]
    assert rows[-1].key == rows.key(9) == f"{path}:10"
    assert rows[2:5].key(-1) == f"{path}:5"
    assert numbers(pickle.loads(pickle.dumps(rows.take([4, 4, 1])))) == [4, 4, 1]
    assert numbers(read(path, limit=3)) == [0, 1, 2] and len(read(path, limit=99)) == 10
    for index in (10, -11):
        with pytest.raises(IndexError):
            rows[index]
    with pytest.raises(IndexError):
        rows.take([10])[0]


def test_several_files_follow_each_other_with_their_own_roots(tmp_path):
    one = write_lines(tmp_path / "a" / "x.jsonl", [row(0, "i.png")])
    two = write_lines(tmp_path / "b" / "y.jsonl", [row(1, "i.png"), row(2, "/abs/i.png")])
    rows = read([one, two])
    assert [c.images[0].path for c in rows] == [f"{tmp_path}/a/i.png", f"{tmp_path}/b/i.png", "/abs/i.png"]
    assert [c.images[0].path for c in read([one, two], root="pics")] == [
        "pics/i.png",
        "pics/i.png",
        "/abs/i.png",
    ]


def test_missing_images_are_found_without_opening_any(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    path = write_lines(tmp_path / "rows.jsonl", [row(0, "a.png"), row(1, "b.png")])
    assert [[Path(ref.path).name for ref in missing_images(c)] for c in read(path)] == [[], ["b.png"]]


# InternVL meta


def meta(tmp_path: Path, rows: int = 5, **fields: object) -> str:
    write_lines(tmp_path / "data" / "a.jsonl", [row(n, "i.png") for n in range(rows)])
    (tmp_path / "data" / "pics").mkdir(exist_ok=True)
    path = tmp_path / "meta.json"
    entry = {"root": "data/pics", "annotation": "data/a.jsonl", **fields}
    path.write_text(json.dumps({"set": {name: value for name, value in entry.items() if value is not ...}}))
    return str(path)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (1, [0, 1, 2, 3, 4]),
        (2, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
        (3.0, [0, 1, 2, 3, 4] * 3),
        (0.5, [0, 1]),
        (0.99, [0, 1, 2, 3]),
        (0.1, []),
        (0, []),
    ],
)
def test_repeat_time_repeats_or_keeps_the_first_share(tmp_path, times, expected):
    rows = read(meta(tmp_path, repeat_time=times))
    assert numbers(rows) == expected
    assert bool(rows.notes) == (not expected)
    assert len({rows.key(n) for n in range(len(rows))}) == len(set(expected))


def test_meta_settings_reach_the_rows_and_paths_start_beside_the_meta_file(tmp_path, monkeypatch):
    path = meta(tmp_path, data_augment=True, max_dynamic_patch=3, length=5)
    monkeypatch.chdir("/")
    conversation = read(path)[0]
    assert conversation.degrade and conversation.max_tiles == 3
    assert conversation.images[0].path == f"{tmp_path}/data/pics/i.png"
    assert read(path).notes == ()


def test_meta_paths_fall_back_to_the_working_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    write_lines(here / "data" / "a.jsonl", [row(0, "i.png")])
    (here / "pics").mkdir()
    (tmp_path / "metas").mkdir()
    path = tmp_path / "metas" / "meta.json"
    path.write_text(json.dumps({"s": {"root": "pics", "annotation": "data/a.jsonl"}}))
    monkeypatch.chdir(here)
    assert read(str(path))[0].images[0].path == "pics/i.png"
    assert "there is no root nothere" in error(meta(tmp_path, root="nothere"))
    assert "there is no annotation data/b.jsonl" in error(meta(tmp_path, annotation="data/b.jsonl"))


def test_a_wrong_length_is_noted_not_obeyed(tmp_path):
    rows = read(meta(tmp_path, length=18_317))
    assert len(rows) == 5
    assert rows.notes == (
        f"{tmp_path}/meta.json: set says length 18317, {tmp_path}/data/a.jsonl has 5 rows: all are used",
    )


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"repeat_times": 2}, "unknown field repeat_times; did you mean repeat_time?"),
        ({"qqq": 2}, "unknown field qqq; known are root"),
        ({"repeat_time": 1.5}, "repeat_time is 1.5"),
        ({"repeat_time": -1}, "repeat_time is -1"),
        ({"repeat_time": True}, "repeat_time is True"),
        ({"repeat_time": "2"}, "repeat_time is '2', expected int or float"),
        ({"data_augment": "false"}, "data_augment is 'false', expected bool"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0"),
        ({"root": ...}, "has no root"),
        ({"annotation": ...}, "has no annotation"),
        ({"annotation": "meta.json"}, "is a meta file itself"),
    ],
)
def test_meta_mistakes_are_named(tmp_path, fields, found):
    assert found in error(meta(tmp_path, **fields))


def test_a_meta_of_several_sets_keeps_their_order_and_origins(tmp_path):
    write_lines(tmp_path / "b.jsonl", [row(8), row(9)])
    tree = json.loads(Path(meta(tmp_path, rows=2, repeat_time=2)).read_text())
    tree["other"] = {"root": ".", "annotation": "b.jsonl", "repeat_time": 1}
    (tmp_path / "meta.json").write_text(json.dumps(tree))
    rows = read(str(tmp_path / "meta.json"))
    assert numbers(rows) == [0, 1, 0, 1, 8, 9]
    assert [rows.origin(n) for n in range(6)] == [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert numbers(rows.take([4, 2, 0])) == [8, 0, 0]


# Tables, parquet, data set folders


def test_csv_with_question_and_answer_columns(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text('image,question,answer\na.png,"Two\nlines?",yes\nb.png,Total?,007\n,No picture?,no\n')
    rows = read(str(path))
    assert [c.key for c in rows] == [f"{path}:line {n}" for n in (2, 4, 5)]
    assert rows[1].turns[1].parts == ("007",)
    assert [len(c.images) for c in rows] == [1, 1, 0] and rows[0].images[0].path == str(tmp_path / "a.png")
    other = tmp_path / "other.csv"
    other.write_text("image,questions,answer\na,b,c\n")
    assert "did you mean questions?" in error(str(other)) and "anymix data convert" in error(str(other))
    assert "no column scan" in error(str(path), image_column="scan")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Arrow caches of `datasets` stay in the test's own folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def pictures(datasets, folder: Path):
    Image.new("RGB", (3, 2), (9, 8, 7)).save(folder / "a.png")
    data = (folder / "a.png").read_bytes()
    turns = [
        [{"from": "human", "value": f"<image>\nquestion {n}"}, {"from": "gpt", "value": f"answer {n}"}]
        for n in range(3)
    ]
    features = datasets.Features(
        {
            "scan": datasets.Image(),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        }
    )
    scans = [{"bytes": data, "path": "a.png"}] * 3
    return datasets.Dataset.from_dict({"scan": scans, "conversations": turns}, features=features), data


def test_parquet_keeps_pictures_encoded_and_pickles(home, tmp_path):
    dataset, data = pictures(home, tmp_path)
    path = str(tmp_path / "rows.parquet")
    dataset.to_parquet(path)
    rows = read(path, image_column="scan")
    assert numbers(rows) == [0, 1, 2] and rows.key(2) == f"{path}:row 3"
    ref = pickle.loads(pickle.dumps(rows))[1].images[0]
    assert ref.data == data and ref.path == "a.png"
    with pytest.raises(SampleError, match="keeps a picture in scan; set data.image_column=scan"):
        read(path)[0]


def test_saved_data_set_folders_and_their_splits(home, tmp_path):
    dataset, data = pictures(home, tmp_path)
    home.DatasetDict({"train": dataset, "val": dataset.select([2, 0])}).save_to_disk(str(tmp_path / "both"))
    rows = read(str(tmp_path / "both"), split="val", image_column="scan")
    assert numbers(rows) == [2, 0] and rows[0].images[0].data == data
    assert "has no split test" in error(str(tmp_path / "both"), split="test")
    dataset.save_to_disk(str(tmp_path / "one"))
    assert numbers(read(str(tmp_path / "one"), image_column="scan")) == [0, 1, 2]


def test_a_downloaded_data_set_folder_with_plain_parquet(home, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [[{"role": "user", "content": "question 4"}, {"role": "assistant", "content": "a"}]]
    (tmp_path / "repo" / "data").mkdir(parents=True)
    table = pa.table({"messages": turns, "images": [[b"GIF89a"]]})
    pq.write_table(table, tmp_path / "repo" / "data" / "train-00000-of-00001.parquet")
    (conversation,) = read(str(tmp_path / "repo"))
    assert conversation.images[0].data == b"GIF89a"
    assert conversation.key == f"{tmp_path}/repo[train]:row 1"


def test_a_hub_id_that_cannot_be_had_is_a_sentence(home, monkeypatch):
    monkeypatch.setattr(home, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no\nnetwork")))
    text = error("someone/some-data")
    assert "someone/some-data cannot be opened (no network)" in text and "download it first" in text


# Files that are no data


def test_files_that_cannot_be_data_are_one_sentence(tmp_path):
    good = write_lines(tmp_path / "rows.jsonl", [row(0)])
    assert f"did you mean {good}?" in error(str(tmp_path / "row.jsonl"))
    assert "check data.path" in error(str(tmp_path / "none" / "x.jsonl"))
    for name, content, found in [
        ("empty.jsonl", b"", "is empty (0 bytes)"),
        ("lfs.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("lfs.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("broken.json", b'[{"a": 1},', "is no JSON"),
        ("value.json", b"3", "a single value"),
        ("utf16.jsonl", "\ufeff{}".encode("utf-16-le"), "UTF-16"),
        ("gbk.json", '[{"a": "发票"}]'.encode("gb18030"), "no UTF-8"),
        ("rows.zip", b"PK", "no format anymix trains on"),
        ("flat.json", b'{"a":\n 1}', "a is no object"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert found in error(str(tmp_path / name)), name
