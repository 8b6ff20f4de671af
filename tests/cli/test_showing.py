"""`anymix data show` for all six families: what is learned, what each picture and video became, nothing hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from families.tiny_qwen import tiny_qwen2vl
from tiny_llava import tiny_llava

LABELLED = "Image-1: <image>\nImage-2: <image>\nBoth?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows beside their pictures and frames, and models of the families that are not shipped."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "film").mkdir()
    for n in range(5):
        Image.new("RGB", (90, 60), (40 * n, 0, 0)).save(folder / "film" / f"f{n}.png")
    Image.new("RGB", (300, 100)).save(folder / "a.png")
    Image.new("RGB", (60, 90)).save(folder / "b.png")
    film = [{"type": "text", "text": "see "}, {"type": "image", "image": "b.png"},
            {"type": "video", "video": "film", "fps": 2}, {"type": "text", "text": "now"}]  # fmt: skip
    rows = [
        {"image": ["a.png", "b.png"], "question": LABELLED, "answer": "yes"},
        {"messages": [{"role": "user", "content": film}, {"role": "assistant", "content": "moves"}]},
        {"question": "2 + 2?", "answer": "4"},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "captions.jsonl").write_text(json.dumps({"image": "a.png", "text": "a black bar"}) + "\n")
    tiny_qwen2vl(folder / "qwen")
    tiny_llava(folder / "llava")
    return folder


@pytest.fixture
def shown(anymix: Any, place: Path) -> Any:
    """(table, JSON) of `anymix data show`."""
    return lambda *words, **more: (table(anymix, place, *words, **more), tree(anymix, place, *words, **more))


def table(anymix: Any, place: Path, model: str, *words: object, data: str = "rows.jsonl") -> str:
    run = anymix("data", "show", place / data, "-m", place / model if (place / model).exists() else model, *words)
    assert run.exit_code == 0, run.exception
    return str(run.stdout)


def tree(*words: Any, **more: Any) -> Any:
    """What --json says."""
    return json.loads(table(*words, "--json", **more))


def places(table: str) -> list[str]:
    """The first column of the table."""
    lines = table.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("place"))
    return [line.split()[0] for line in lines[head + 1 :]]


def complete(table: str, tree: Any) -> None:
    """Every token is in the JSON, and in one line of the table; pictures add up to their placeholders."""
    ends = [(place.split("-") * 2)[:2] for place in places(table)]
    assert [n for first, last in ends for n in range(int(first), int(last) + 1)] == list(range(len(tree["tokens"])))
    for n, sight in enumerate(tree["sights"]):
        assert sum(token["sight"] == n for token in tree["tokens"]) == sight["tokens"]
    tiles = sum(len(sight["tiles"]) for sight in tree["sights"])
    assert {t["tile"] for t in tree["tokens"] if t["tile"] is not None} <= set(range(tiles))


def learned(tree: Any) -> str:
    return "".join(token["text"] for token in tree["tokens"] if token["target"]).strip()


def test_internvl2(shown: Any, anymix: Any, place: Path) -> None:
    lines, found = shown("starter:internvl2", "--max-tiles", 6, "--thumbnail")
    complete(lines, found)
    assert learned(found) == "yes<|im_end|>"
    one, two = found["sights"]
    assert (one["label"], two["label"], one["kind"]) == ("Image-1:", "Image-2:", "picture")
    assert one["tiles"] == ["row 1, column 1", "row 1, column 2", "row 1, column 3", "thumbnail"]
    assert one["size"] == [300, 100] and one["seen"][0] == 3 * one["seen"][1]
    assert "picture 1, behind 'Image-1:': " in lines and "3: picture 1, thumbnail" in lines
    assert "<IMG_CONTEXT>  x 16" in lines
    every = table(anymix, place, "starter:internvl2", "--max-tiles", 6, "--thumbnail", "--all-tiles")
    assert len(places(every)) == len(found["tokens"])


def test_llava(shown: Any, anymix: Any, place: Path) -> None:
    lines, found = shown("llava")
    complete(lines, found)
    assert learned(found) == "yes</s>"
    assert [sight["tiles"][0] for sight in found["sights"]] == ["base", "base"]
    ends = [token for token in found["tokens"] if token["role"] == "image" and token["tile"] is None]
    assert ends and all(token["sight"] is not None for token in ends)
    assert "of them line ends" in lines
    fewer = tree(anymix, place, "llava", "--max-tiles", 2)
    assert [len(sight["tiles"]) for sight in fewer["sights"]] < [len(sight["tiles"]) for sight in found["sights"]]


def test_llava_tiles_that_take_turns_row_by_row_are_one_line() -> None:
    from anymix.cli.showing import folded
    from anymix.families.contract import Token

    tiles = [0, 0, 1, 1, 2, 2, None, 1, 1, 2, 2, None, 3, 4, None, 5]
    tokens = [Token(7, "<image>", "image", False, tile) for tile in tiles]
    lines = folded(tokens, [0] * 15 + [1], all_tiles=False)
    assert [(line.place, line.tiles) for line in lines] == [
        ("0-1", [0]), ("2-11", [1, 2]), ("12", [3]), ("13-14", [4]), ("15", [5]),
    ]  # fmt: skip
    assert lines[1].text == "<image>  x 10, 2 of them line ends"
    assert len(folded(tokens, [0] * 15 + [1], all_tiles=True)) == 16
    words = [Token(7, "a", "user", False), Token(7, "a", "user", False)]
    assert len(folded(words, [None, None], all_tiles=False)) == 2


def test_qwen2_vl_with_a_picture_and_a_video(shown: Any) -> None:
    lines, found = shown("qwen", "-r", 1, "--positions")
    complete(lines, found)
    assert learned(found) == "moves<|im_end|>"
    picture, film = found["sights"]
    assert (picture["kind"], film["kind"]) == ("picture", "video")
    assert film["frames"] == [0, 1, 3, 4] and film["seconds"] == [0, 0.5, 1.5, 2]
    assert film["tiles"][1] == "frames 3 and 4 (f3.png, f4.png, at 1.50 s and 2.00 s)"
    assert "4 frames of 140 x 112 (0, 1, 3, 4 at 0.00, 0.50, 1.50, 2.00 s): 2 tiles, 40 tokens" in lines
    header, line = (next(line.split() for line in lines.splitlines() if mark in line)
                    for mark in ("place", "video 1, frames 3 and 4"))  # fmt: skip
    first = found["tokens"][int(line[0].split("-")[0])]["place"]
    assert header[:4] == ["place", "time", "row", "column"]
    assert (
        line[1] == str(first[0]) and line[2] == f"{first[1]}-{first[1] + 3}" and line[3] == f"{first[2]}-{first[2] + 4}"
    )
    following = found["tokens"][int(line[0].split("-")[1]) + 1]["place"]
    assert following == [first[2] + 5] * 3  # behind the widest of the three


def test_qwen2_vl_under_other_bounds(anymix: Any, place: Path) -> None:
    def show(*words: object) -> Any:
        return tree(anymix, place, "qwen", *words)

    film = show("-r", 1, "--fps", 1, "--max-frames", 2, "--max-pixels", 3136)["sights"][1]
    assert film["frames"] == [0, 4] and film["seen"][0] * film["seen"][1] <= 3136
    small, large = (show("-r", 0, *words)["sights"][1]["tokens"] for words in ((), ("--min-pixels", 9408)))
    assert large > small
    assert [token["place"] for token in show("-r", 2)["tokens"]][:2] == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("model", ["starter:sd15", "starter:sdxl", "starter:sd3"])
def test_the_three_that_draw(shown: Any, model: str) -> None:
    lines, found = shown(model, "--flip", data="captions.jsonl")
    assert found["captions"] == ["a black bar"] and len(found["views"]) == 2
    names = list(found["tokens"]["a black bar"])
    assert len(names) == {"starter:sd15": 1, "starter:sdxl": 2}.get(model, len(names)) and names
    assert "300 x 100" in lines and all(f"{name} 1 x" in lines for name in names)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("-m", "qwen", "-r", "-1"), "rows.jsonl has rows 0 to 2, there is no row -1; give one of these"),
        (("-m", "qwen", "-r", "3"), "there is no row 3"),
        (("-m", "qwen", "--max-tiles", "3"), "model.max_tiles is not for Qwen2-VL"),
        (("-m", "starter:internvl2", "--min-pixels", "2"), "model.min_pixels is not for InternVL2"),
        (("-m", "llava", "--min-pixels", "2"), "min_pixels"),
        (("-m", "llava", "--positions"), "--positions shows the three positions of Qwen2-VL, and llava counts 0, 1, 2"),
        (("-m", "llava", "-r", "1"), "a video, which LLaVA-1.6 has no place for"),
        (("-m", "starter:sd15", "--positions"), "--positions shows the three positions of Qwen2-VL"),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(
    anymix: Any, place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], found: str
) -> None:
    monkeypatch.chdir(place)
    run = anymix("data", "show", "rows.jsonl", *words)
    assert isinstance(run.exception, ValueError), run.exception
    assert found in str(run.exception) and "\n" not in str(run.exception)


def test_internvl2_with_a_video(anymix: Any, place: Path) -> None:
    found = tree(anymix, place, "starter:internvl2", "-r", 1, "--max-frames", 3)
    picture, film = found["sights"]
    assert (picture["kind"], film["kind"], film["tokens"]) == ("picture", "video", 48)
    assert len(film["frames"]) == 3 and film["seconds"] == [n / 2 for n in film["frames"]]
    assert film["tiles"][0] == f"frame {film['frames'][0]} (f{film['frames'][0]}.png, at {film['seconds'][0]:.2f} s)"
    assert [token["sight"] for token in found["tokens"] if token["role"] == "image"].count(1) == 48
