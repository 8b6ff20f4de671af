"""How often answers about films are right, kind by kind: what `anymix predict` wrote against the rows it was asked.

    anymix data films runs/films
    anymix predict MODEL runs/films/test.jsonl -o answers.jsonl
    python bench/video.py runs/films/test.jsonl answers.jsonl [more answers.jsonl ...]

Prints a table with a column for each file of answers, and beside them what the best guess without the film would get.
Right is what equals the expected answer to the letter.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any


def read(path: str) -> list[dict[str, Any]]:
    lines = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "conversations" in line or "answer" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("answers", nargs="+")
    words = parser.parse_args()
    kinds = [row["kind"] for row in read(words.rows)]
    expected = [row["conversations"][1]["value"] for row in read(words.rows)]
    columns = [[line["answer"].strip() for line in read(path)] for path in words.answers]
    for path, said in zip(words.answers, columns, strict=True):
        if len(said) != len(kinds):
            raise SystemExit(f"{path} answers {len(said)} of {len(kinds)} rows; ask all of them")
    print("| kind | films | best guess |", " | ".join(Path(path).stem for path in words.answers), "|")
    print("|---|---|---|" + "---|" * len(columns))
    for kind in dict.fromkeys(kinds):
        of = [n for n, k in enumerate(kinds) if k == kind]
        guess = Counter(expected[n] for n in of).most_common(1)[0][1]
        right = [sum(said[n] == expected[n] for n in of) for said in columns]
        shares = " | ".join(f"{100 * n / len(of):.0f} %" for n in (guess, *right))
        print(f"| {kind} | {len(of)} | {shares} |")


if __name__ == "__main__":
    main()
