"""`anymix caption` and `anymix data check` as they are typed."""

from __future__ import annotations

import json

import pytest

from painted import folder, picture


def _words(model, at, *more):
    return ("caption", at, "--model", model, "--device", "cpu", "--max-new-tokens", 4, *more)


@pytest.fixture
def at(tmp_path):
    return folder(tmp_path / "set", a=None, b=None, c="mine")


def test_captions_beside_pictures(anymix, model, at):
    run = anymix(*_words(model, at, "--prefix", "sks dog, "))
    assert run.exit_code == 0, run.exception
    assert f"2 of 3 captions written beside the pictures of {at}; 1 were there" in run.stdout
    assert "3/3" in run.stderr
    assert (at / "a.txt").read_text(encoding="utf-8").startswith("sks dog, ")
    assert "sks dog, ," not in (at / "a.txt").read_text(encoding="utf-8")
    assert (at / "c.txt").read_text() == "mine"
    assert "captions were cut off; raise --max-new-tokens" in run.stderr
    assert "0 of 3 captions written" in anymix(*_words(model, at)).stdout


def test_the_summary_as_json_and_exit_code_1_for_a_bad_picture(anymix, model, at, tmp_path):
    (at / "b.png").write_bytes(b"")
    out = tmp_path / "metadata.jsonl"
    run = anymix(*_words(model, at, "--json", "--out", out))
    assert run.exit_code == 1
    said = json.loads(run.stdout)
    assert (said["pictures"], said["written"], said["before"]) == (3, 2, 0)
    assert said["errors"][0]["picture"] == str(at / "b.png")
    assert "is empty (0 bytes)" in said["errors"][0]["error"]
    assert [json.loads(line)["file_name"] for line in out.read_text().splitlines()] == ["set/a.png", "set/c.png"]
    run = anymix(*_words(model, at))
    assert run.exit_code == 1
    assert "1 pictures could not be captioned; mend them and run the same command again" in run.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--prompt", " "], "the prompt is empty"), (["--batch", 0], "batch = 0"), (["-o", "x.csv"], "end it in .jsonl")],
)
def test_what_is_wrong_is_a_sentence(anymix, model, at, words, sentence):
    run = anymix(*_words(model, at, *words))
    assert isinstance(run.exception, ValueError)
    assert sentence in str(run.exception)


def test_a_wrong_folder_is_told_before_a_model_is_read(anymix, tmp_path):
    run = anymix("caption", tmp_path / "gone", "-m", tmp_path / "no model")
    assert "there is no folder" in str(run.exception)
    (tmp_path / "a.png").write_bytes(b"")
    run = anymix("caption", tmp_path / "a.png", "-m", tmp_path / "no model")
    assert f"a.png is a file, expected a folder of pictures; give {tmp_path}" in str(run.exception)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch", 0], "batch = 0, expected at least 1"),
        (["-o", "x.csv"], "end it in .jsonl"),
        (["-o", "/dev/null/x.jsonl"], "--out /dev/null/x.jsonl lies under /dev/null, which is no folder"),
        (["-o", "torn.jsonl"], "torn.jsonl:1 is no line of a metadata.jsonl"),
        ([], "set cannot be written into; write the captions elsewhere: --out metadata.jsonl"),
    ],
)
def test_where_captions_cannot_go_is_told_before_a_model_is_read(anymix, at, monkeypatch, words, sentence):
    monkeypatch.chdir(at)
    (at / "torn.jsonl").write_text("no json\n{}\n")
    monkeypatch.setattr("os.access", lambda path, mode: path != str(at))
    run = anymix("caption", at, "-m", at / "no model", *words)
    assert isinstance(run.exception, ValueError) and sentence in str(run.exception)
    assert not (at / "x.csv").exists()


def test_the_model_in_the_package_captions_without_a_network(anymix, at):
    run = anymix(
        "caption", at, "-m", "starter:internvl2", "-p", "What colour is the shape?", "--device", "cpu", "--json"
    )
    assert json.loads(run.stdout)["written"] == 2
    assert len((at / "a.txt").read_text(encoding="utf-8").split()) >= 1


def test_data_check_of_pictures(anymix, at):
    picture(at / "d.png", (1, 1))
    run = anymix("data", "check", at, "--resolution", 64, "--bucket-step", 16, "--caption", "x")
    assert run.exit_code == 1
    assert "3 of 4 rows can be used, seen at 64 x 64" in run.stdout
    assert "80 x 48" in run.stdout
    assert f"cannot be used: {at / 'd.png'}: picture {at / 'd.png'} is 1x1 pixels, too small" in run.stdout
    (at / "d.png").unlink()
    run = anymix("data", "check", at, "--resolution", 64, "--caption", "x", "--json")
    assert run.exit_code == 0, run.exception
    said = json.loads(run.stdout)
    assert (said["rows"], said["good"], said["problems"]) == (3, 3, [])
    (bucket,) = said["buckets"]
    assert (bucket["size"], bucket["pictures"], bucket["enlarged"]) == ([64, 64], 3, 0)


def test_data_check_of_rows(anymix, model, tmp_path):
    picture(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": f"{n}.png", "conversations": turns}) + "\n" for n in range(2)))
    run = anymix("data", "check", path, "--model", model, "--max-length", 9000)
    assert run.exit_code == 1
    assert "1 of 2 rows can be used" in run.stdout
    assert f"{path}:2: picture {tmp_path / '1.png'} does not exist" in run.stdout


class Words:
    """The part of a drawing model's codec that `data show` and `data check` look at."""

    resolution = 64
    latents = (4, 8)

    @staticmethod
    def words(text, key):
        import torch

        return {"clip": torch.zeros(1 + len(text) // 77, 77, dtype=torch.int64)}


def test_data_show_of_a_picture(anymix, at, monkeypatch):
    monkeypatch.setattr("anymix.families.codec_of", lambda path, **options: Words())
    (at / "a.txt").write_text("x" * 80)
    (at / "b.txt").write_text("y")
    words = ("data", "show", at, "-m", "some model", "--flip")
    run = anymix(*words)
    assert run.exit_code == 0, run.exception
    assert f"{at / 'a.png'}: 96 x 64, in the bucket 64 x 64 of 64" in run.stdout
    assert "clip 2 x 77 tokens" in run.stdout
    assert "told as (64, 96, 0, 16, 64, 64)" in run.stdout
    assert "mirrored" in run.stdout
    said = json.loads(anymix(*words, "--json", "--row", 1).stdout)
    assert said["captions"] == ["y"]
    assert [view["flip"] for view in said["views"]] == [False, True]
    assert (
        "captions of 1 of 3 pictures have more than 77 tokens" in anymix("data", "check", at, "-m", "some model").stdout
    )
