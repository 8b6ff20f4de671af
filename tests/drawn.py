"""Training rows the tests draw themselves: a coloured card, and what colour it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "white": (245, 245, 245)}


def rows(folder: Path, count: int = 8, **more: Any) -> Path:
    """A JSONL of `count` rows and its pictures, of ragged lengths; some rows are text only."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        name = list(COLOURS)[i % len(COLOURS)]
        question, answer = "What colour is the card?", f"{name} " * (1 + i % 3)
        row: dict[str, Any] = {"id": i, **more}
        if i % 4 != 3:
            Image.new("RGB", (60 + 50 * (i % 3), 60), COLOURS[name]).save(folder / f"{i}.png")
            row["image"] = f"{i}.png"
            question = "<image>\n" + question
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer.strip()}]
        lines.append(json.dumps({**row, "conversations": turns}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
