"""`anymix data check`: what is wrong is told by kind with the first of each, and the exit code says whether it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image


def talk(*texts: str, **more: object) -> str:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return json.dumps({"conversations": turns, **more}, ensure_ascii=False)


@pytest.fixture
def good(tmp_path):
    """Two rows nothing is wrong with."""
    Image.new("RGB", (120, 60), (9, 9, 200)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(talk("What?", "Blue.", image="a.png") + "\n" + talk("Hi", "Hello") + "\n")
    return tmp_path / "rows.jsonl"


@pytest.fixture
def bad(good):
    """One row of each kind of problem beside two good ones; the third line is a copy of the first."""
    folder = good.parent
    (folder / "empty.png").write_bytes(b"")
    long = [
        text for n in range(6) for text in ("<image>\nWhat is this? " if n in (0, 5) else f"And {n}?", f"It is {n}.")
    ]
    rows = [talk("What?", "Blue.", image="a.png"), talk("A", "b", image="gone.png"), talk("A", "b", image="empty.png"),
            talk("<image><image>", "two", image="a.png"), talk("Nothing", " "), "{broken",
            talk(*long, image=["a.png", "a.png"])]  # fmt: skip
    good.write_text(good.read_text() + "\n".join(rows) + "\n")
    return good


def test_nothing_wrong_is_exit_code_0_and_tokens_in_a_histogram(anymix, good, model):
    done = anymix("data", "check", good, "--model", model, "--max-length", "400", "--workers", "0")
    assert done.exit_code == 0, done.output
    assert "2 of 2 rows can be used\nno problems\n" in done.stdout
    assert "tokens of a row: shortest" in done.stdout and "packed to 400 tokens: 1 forwards a pass" in done.stdout
    assert "how long a pass takes is not known: --rate N" in done.stdout


def inside_the_last_picture(bad: Path, model: Path) -> int:
    """So many tokens of the long row end inside its second picture."""
    from anymix import families
    from anymix.data.conversations import read

    begin = 0
    for stretch in families.codec_of(model).outline(read(str(bad))[8]):
        if stretch.picture == 1:
            return begin + 1
        begin += stretch.tokens
    raise AssertionError("the long row has two pictures")


def test_every_kind_of_problem_is_counted_and_exit_code_is_1(anymix, bad, model):
    words = ("data", "check", bad, "--model", model, "--workers", "0")
    words = (*words, "--max-length", inside_the_last_picture(bad, model))
    done = anymix(*words)
    assert done.exit_code == 1, done.output
    for kind in ("missing pictures", "unreadable pictures", "marks that do not match pictures", "empty answers",
                 "rows that cannot be read", "copies of other rows", "too long"):  # fmt: skip
        assert f"  {kind} " in done.stdout, done.stdout
    assert "rows.jsonl:4: picture" in done.stdout and "does not exist" in done.stdout
    assert "nothing is ever cut" in done.stdout and "inside picture 2 of 2, question 6" in done.stdout
    said = json.loads(anymix(*words, "--json").stdout)
    assert said["kinds"]["missing pictures"] == 1 and said["good"] == 3 and said["rows"] == 9
    assert [one["key"].rpartition(":")[2] for one in said["problems"]] == ["4", "5", "6", "7", "8", "9"]
    dropped = json.loads(anymix(*words, "--json", "--too-long", "drop_turns").stdout)
    assert dropped["good"] == 4 and len(dropped["shortened"]) == 1 and "too long" not in dropped["kinds"]


def test_fix_writes_what_is_good_as_it_was_read_and_never_over_the_source(anymix, bad, tmp_path):
    source = bad.read_bytes()
    done = anymix("data", "check", bad, "--fix", bad, "--workers", "0")
    assert isinstance(done.exception, ValueError) and "is there already" in str(done.exception)
    done = anymix("data", "check", bad, "--fix", tmp_path / "ok.jsonl", "--workers", "0")
    assert done.exit_code == 1 and "3 rows written" in done.stderr and "1 copies" in done.stderr, done.output
    assert bad.read_bytes() == source
    lines = bad.read_text().splitlines()
    assert [json.loads(line) for line in (tmp_path / "ok.jsonl").read_text().splitlines()] == [
        json.loads(lines[n]) for n in (0, 1, 8)
    ]
    assert anymix("data", "check", tmp_path / "ok.jsonl", "--workers", "0").exit_code == 0


def test_what_is_fixed_finds_its_pictures_from_another_folder_and_words_are_left_alone(anymix, tmp_path):
    (tmp_path / "in" / "p").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "p" / "a.png")
    parts = [{"type": "image_url", "image_url": {"url": "p/a.png"}}, {"type": "text", "text": "p/a.png"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "p/a.png"}]
    rows = [talk("p/a.png", "p/a.png", image="p/a.png"), talk("x", "y", image=str(tmp_path / "in" / "p" / "a.png")),
            json.dumps({"messages": messages})]  # fmt: skip
    (tmp_path / "in" / "rows.json").write_text(f"[{','.join(rows)}]")
    done = anymix(
        "data", "check", tmp_path / "in" / "rows.json", "--fix", tmp_path / "out" / "r.json", "--workers", "0"
    )
    assert done.exit_code == 0, done.output
    first, second, third = json.loads((tmp_path / "out" / "r.json").read_text())
    assert first["image"] == os.path.join("..", "in", "p", "a.png")
    assert [turn["value"] for turn in first["conversations"]] == ["p/a.png"] * 2
    assert second == json.loads(rows[1])
    assert third["messages"][0]["content"][0]["image_url"]["url"] == first["image"]
    assert third["messages"][0]["content"][1]["text"] == third["messages"][1]["content"] == "p/a.png"
    assert anymix("data", "check", tmp_path / "out" / "r.json", "--workers", "0").exit_code == 0


def test_a_meta_file_is_fixed_as_a_meta_file_with_its_settings(anymix, bad, tmp_path):
    entry = {"root": ".", "annotation": "rows.jsonl", "repeat_time": 2, "max_dynamic_patch": 3, "data_augment": True}
    (tmp_path / "meta.json").write_text(json.dumps({"set": entry}))
    done = anymix("data", "check", tmp_path / "meta.json", "--fix", tmp_path / "ok.jsonl", "--workers", "0")
    assert isinstance(done.exception, ValueError) and "end it in .json" in str(done.exception)
    anymix("data", "check", tmp_path / "meta.json", "--fix", tmp_path / "ok.json", "--workers", "0")
    [fixed] = json.loads((tmp_path / "ok.json").read_text()).values()
    assert (fixed["repeat_time"], fixed["max_dynamic_patch"], fixed["data_augment"], fixed["length"]) == (2, 3, True, 3)
    said = json.loads(anymix("data", "check", tmp_path / "ok.json", "--json", "--workers", "0").stdout)
    assert said["rows"] == said["good"] == 6


def test_parquet_with_pictures_inside_is_fixed_as_parquet(anymix, tmp_path, picture):
    import pyarrow
    import pyarrow.parquet

    whole = {"bytes": picture.read_bytes(), "path": "a.png"}
    rows = [
        {"question": "What?", "answer": "Red.", "image": whole},
        {"question": "What?", "answer": "", "image": whole},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    done = anymix("data", "check", tmp_path / "rows.parquet", "--fix", tmp_path / "ok.jsonl", "--workers", "0")
    assert isinstance(done.exception, ValueError) and "ends in .parquet" in str(done.exception)
    done = anymix("data", "check", tmp_path / "rows.parquet", "--fix", tmp_path / "ok.parquet", "--workers", "0")
    assert "1 rows written" in done.stderr, done.output
    assert pyarrow.parquet.read_table(tmp_path / "ok.parquet").to_pylist() == rows[:1]


def test_the_page_shows_problems_and_both_histograms_and_spares_a_run(anymix, bad, model, tmp_path):
    words = ("data", "check", bad, "--model", model, "--max-length", "500", "--workers", "0", "--report")
    done = anymix(*words, tmp_path / "page")
    page = (tmp_path / "page" / "report.html").read_text()
    assert "report: " in done.stderr and page.count("<svg") == 2 and "missing pictures" in page
    assert "Content-Security-Policy" in page and "<script" not in page
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for folder, found in (
        (tmp_path / "run", "holds a run"),
        (bad, "is a file"),
        (tmp_path / "a.html", "names a folder"),
    ):
        done = anymix(*words, folder)
        assert found in str(done.exception) and not done.stdout  # before a row is looked at


def test_how_long_a_pass_is_comes_from_a_number_or_a_run_and_from_nowhere_else(anymix, good, model, tmp_path):
    words = ("data", "check", good, "--model", model, "--json", "--workers", "0")
    tokens = json.loads(anymix(*words).stdout)["spreads"][0]["total"]
    assert json.loads(anymix(*words).stdout)["seconds"] is None
    assert json.loads(anymix(*words, "--rate", "50").stdout)["seconds"] == tokens / 50
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"tokens_per_s": n}) + "\n" for n in (1, 10, 100)))
    said = json.loads(anymix(*words, "--rate", tmp_path).stdout)
    assert said["seconds"] == tokens / 10 and "median of 3 steps" in said["rate_from"]
    for wrong in ("0", "nan", str(tmp_path / "none")):
        assert isinstance(anymix(*words, "--rate", wrong).exception, ValueError)


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: path.write_text("\n \n"), "there are no rows"),
        (lambda path: None, "there is no data file"),
        (lambda path: path.write_bytes("{}".encode("utf-16")), "is UTF-16"),
    ],
)
def test_what_cannot_be_read_at_all_is_one_sentence(anymix, tmp_path, write, found):
    write(tmp_path / "rows.jsonl")
    error = anymix("data", "check", tmp_path / "rows.jsonl").exception
    assert isinstance(error, ValueError) and found in str(error) and "\n" not in str(error)


def test_marks_of_notepad_and_line_ends_of_windows_lose_nothing(anymix, good, tmp_path):
    (tmp_path / "dos.jsonl").write_bytes(b"\xef\xbb\xbf" + good.read_bytes().replace(b"\n", b"\r\n"))
    said = json.loads(anymix("data", "check", tmp_path / "dos.jsonl", "--json", "--workers", "0").stdout)
    assert (said["rows"], said["good"]) == (2, 2)


def test_several_files_and_a_table_are_checked_in_one_go(anymix, good, tmp_path):
    (tmp_path / "t.csv").write_text("question,answer,image\nWhat?,Red,a.png\nWho?,,a.png\n")
    said = json.loads(anymix("data", "check", good, tmp_path / "t.csv", "--json", "--workers", "0").stdout)
    assert (said["rows"], said["good"]) == (4, 3) and said["problems"][0]["key"].endswith("t.csv:line 3")


def test_options_that_make_no_sense_together_are_refused(anymix, good, model):
    for words, found in (
        (("--max-length", "10"), "--model"),
        (("--too-long", "cut", "--model", model), "error, drop_turns or skip"),
        (("--resolution", "64", "--fix", "x.jsonl"), "are pictures"),
        (("--max-tiles", "2"), "--model"),
    ):
        error = anymix("data", "check", good, *words).exception
        assert isinstance(error, ValueError) and found in str(error)
