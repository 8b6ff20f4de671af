"""Prompt files: lines and objects, and every way to get them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from anymix.engines.prompts import Wanted, read_prompts


def _file(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_lines_are_prompts(tmp_path):
    path = _file(tmp_path, "p.txt", "a cat\n\n# not this one\n  一只猫, #1 \r\n")
    assert read_prompts(path) == [Wanted("a cat"), Wanted("一只猫, #1")]


def test_objects_name_what_they_want(tmp_path):
    text = '{"prompt": "a", "negative": "b", "width": 64, "height": 32, "seed": 0, "steps": 3, "guidance": 1}\n'
    path = _file(tmp_path, "p.jsonl", "\ufeff" + text + '{"prompt": ""}\n')
    assert read_prompts(path) == [Wanted("a", "b", 64, 32, 0, 3, 1), Wanted("")]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a cat", r"p\.jsonl:2: no JSON object"),
        ("[1]", r"p\.jsonl:2: expected an object with a prompt"),
        ('{"seed": 1}', r"p\.jsonl:2: expected an object with a prompt"),
        ('{"prompt": null}', r"p\.jsonl:2: prompt is null"),
        ('{"prompt": "a", "cfg": 3}', r"p\.jsonl:2: the key 'cfg' is not known; use prompt, negative, width"),
        ('{"prompt": "a", "steps": "30"}', r"p\.jsonl:2: steps = '30', expected int"),
        ('{"prompt": "a", "steps": true}', r"p\.jsonl:2: steps = True, expected int"),
        ('{"prompt": "a", "seed": -1}', r"p\.jsonl:2: seed = -1, expected 0 or more"),
        ('{"prompt": "a", "guidance": NaN}', r"p\.jsonl:2: guidance = nan, expected a number"),
        ('{"prompt": "a", "width": 0}', r"p\.jsonl:2: width = 0, expected at least 1"),
    ],
)
def test_a_wrong_row_is_a_sentence_with_its_line(tmp_path, line, sentence):
    path = _file(tmp_path, "p.jsonl", f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=sentence):
        read_prompts(path)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="cannot be read .*check the path"):
        read_prompts(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(_file(tmp_path, "g.txt", "红色的圆", "gbk"))
    with pytest.raises(ValueError, match="no prompt in it"):
        read_prompts(_file(tmp_path, "e.txt", "# nothing\n\n"))


def test_what_kohyas_scripts_let_follow_a_prompt_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat --n blurry, dark --w 768 --h 512 --d 1 --s 20 --l 7\na well-known dog -- asleep\n")
    first, second = read_prompts(file)
    assert first == Wanted("a cat", "blurry, dark", 768, 512, 1, 20, 7.0)
    assert second == Wanted("a well-known dog -- asleep")
    file.write_text("a cat --q 3\n")
    with pytest.raises(ValueError, match=r"prompts.txt:1: --q is no setting of a prompt; expected --n, --w"):
        read_prompts(file)
    file.write_text("a cat --w wide\n")
    with pytest.raises(ValueError, match="--w wide is no number, which width must be"):
        read_prompts(file)


def test_a_list_in_another_format_is_no_file_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text('["a cat"]')
    with pytest.raises(ValueError, match="is a .json, expected lines of text or .jsonl"):
        read_prompts(file)
