"""JSON out of what models say, and tables that spreadsheets open."""

from __future__ import annotations

import csv
import json

import pytest

from anymix.engines.answers import Schema, find_json, to_csv

INVOICE = {
    "type": "object",
    "properties": {"number": {"type": "string"}, "total": {"type": "number"}},
    "required": ["number", "total"],
    "additionalProperties": False,
}
GOOD = '{"number": "A-1", "total": 12.5}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f" \n{GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"Here is what I read:\n```json\n{GOOD}\n```\nI hope {{this}} helps.",
        f"The result is {GOOD}. Anything else?",
        f"In the form {{number, total}}: {GOOD}",
        GOOD.replace(" ", "\n  "),
    ],
)
def test_json_is_found_in_what_surrounds_it(text):
    assert find_json(text) == {"number": "A-1", "total": 12.5}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('x {"a": "}{ \\" ["} y', {"a": '}{ " ['}),
        ('{"a": {"b": [{"c": 1}]}} {"d": 2}', {"a": {"b": [{"c": 1}]}}),
        ('{"价格": "１２"}', {"价格": "１２"}),
        ("[1, 2]", [1, 2]),
        ("12.5", 12.5),
    ],
)
def test_the_first_whole_object_is_taken(text, found):
    assert find_json(text) == found


def test_where_a_list_is_asked_for_the_first_list_is_taken():
    text = 'Items: [{"a": 1}, {"a": 2}]'
    assert find_json(text, "[") == [{"a": 1}, {"a": 2}]
    assert Schema.of({"type": "array"}).check(text) == ([{"a": 1}, {"a": 2}], None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot read it.", "no JSON in the answer"),
        ("", "no JSON in the answer"),
        ('{"items": [{"number": "A-1", "total": 1}, {"number": "B', "cut off"),
        ('{"number": "A-1", "total": 1, "number": "B-2"}', "'number' appears twice"),
        ('{"number": "A-1", "total": NaN}', "NaN is not JSON"),
        ("{'number': 'A-1'}", "no JSON in the answer"),
        ("[" * 100_000, "no JSON in the answer"),
        ('{"number": "A-1"}', "$: 'total' is a required property"),
        ('{"number": "A-1", "total": "12"}', "$.total: '12' is not of type 'number'"),
        ('{"number": "A-1", "total": 1, "tax": 2}', "'tax' was unexpected"),
        ("[1]", "$: [1] is not of type 'object'"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(text, reason):
    value, problem = Schema.of(INVOICE).check(text)
    assert reason in problem
    assert value is None or not problem.startswith("no JSON")


def test_a_good_answer_has_no_problem():
    assert Schema.of(INVOICE).check(f"Sure: {GOOD}") == ({"number": "A-1", "total": 12.5}, None)


def test_formats_are_checked():
    schema = Schema.of({"type": "object", "properties": {"day": {"type": "string", "format": "date"}}})
    assert schema.check('{"day": "2024-02-29"}')[1] is None
    assert "2024-02-30" in schema.check('{"day": "2024-02-30"}')[1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list, expected a JSON schema object"),
        ('{"type": "invoice"}', "is no JSON schema: 'invoice' is not valid"),
        (
            '{"$ref": "https://example.org/a.json"}',
            "refers to https://example.org/a.json, which is not in it",
        ),
        ('{"items": {"$ref": "other.json#/a"}}', "refers to other.json#/a"),
        ('{"allOf": [{"$ref": "#/$defs/m"}]}', "refers to #/$defs/m, which is not in it"),
    ],
)
def test_a_schema_that_is_none_is_refused_before_the_model_is_opened(tmp_path, text, sentence):
    path = tmp_path / "schema.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="schema") as error:
        Schema.load(path)
    assert sentence in str(error.value)
    with pytest.raises(ValueError, match="cannot be read"):
        Schema.load(tmp_path / "none.json")


def test_references_within_the_schema_work():
    tree = {
        "$id": "urn:invoices",
        "$defs": {"n": {"type": "number"}, "s": {"$anchor": "word", "type": "string"}},
        "properties": {
            "a": {"$ref": "#/$defs/n"},
            "b": {"$ref": "#word"},
            "c": {"$ref": "urn:invoices#/$defs/n"},
        },
    }
    schema = Schema.of(tree)
    assert schema.check('{"a": 1, "b": "x", "c": 2}')[1] is None
    assert all(schema.check(text)[1] for text in ('{"a": "x"}', '{"b": 1}', '{"c": "x"}'))


def _table(tmp_path, lines, schema=None):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert to_csv(tmp_path / "a.jsonl", tmp_path / "a.csv", schema) == len(lines)
    assert (tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    with open(tmp_path / "a.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_a_table_without_schema(tmp_path):
    rows = _table(
        tmp_path,
        [
            {"key": "1", "images": ["a.png"], "answer": '价格, "12"\n元', "reference": "12"},
            {"key": "2", "images": ["b.png", "c.png"], "error": "2: gone"},
        ],
    )
    assert rows == [
        ["key", "image", "answer", "reference", "problem"],
        ["1", "a.png", '价格, "12"\n元', "12", ""],
        ["2", "b.png; c.png", "", "", "2: gone"],
    ]


def test_a_table_has_a_column_per_property_and_loses_no_answer(tmp_path):
    tree = {"type": "object", "properties": {"key": {}, "total": {}, "lines": {}}}
    rows = _table(
        tmp_path,
        [
            {
                "key": "1",
                "images": ["a.png"],
                "answer": "{...}",
                "parsed": {"key": "001", "total": 1.50, "lines": ["a", {"b": True}]},
                "valid": True,
            },
            {
                "key": "2",
                "images": [],
                "answer": "what?",
                "parsed": None,
                "valid": False,
                "problem": "no JSON",
            },
            {
                "key": "3",
                "images": [],
                "answer": "{}",
                "parsed": {"key": 1},
                "valid": False,
                "problem": "$: bad",
            },
        ],
        Schema.of(tree),
    )
    assert rows == [
        ["_key", "image", "key", "total", "lines", "problem", "answer"],
        ["1", "a.png", "001", "1.5", '["a", {"b": true}]', "", ""],
        ["2", "", "", "", "", "no JSON", "what?"],
        ["3", "", "", "", "", "$: bad", "{}"],
    ]
