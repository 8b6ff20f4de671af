"""The README's walk, from a spreadsheet of invoices to a merged model, on drawn pictures and a tiny random model.

`make demo` runs it and shows every command; tests/test_walk.py runs it and looks at what came out. The commands are
read from README.md, so what is written there is what runs. A model of a thousandth of the size, made of noise, needs
other settings than the recipe's: they are added to the `train` lines, and printed with them.
"""

from __future__ import annotations

import csv
import random
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

HOME = Path(__file__).resolve().parents[1]
SMALL = "train.lr=5e-3 train.batch=6 train.accumulate=1 train.epochs=20 train.val_every=30 data.workers=0 device=cpu"
WRITTEN, UNSEEN = 40, 20


def commands(readme: Path = HOME / "README.md") -> list[list[str]]:
    """The lines of the README's walk as words, recipes by their place here, small settings added to `train`."""
    block = re.search(r"<!-- walk -->\n```bash\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    if block is None:
        raise ValueError(f"{readme} has no block of commands behind <!-- walk -->")
    found = []
    for line in block.group(1).strip().splitlines():
        words = [str(HOME / word) if word.startswith("recipes/") else word for word in shlex.split(line)]
        found.append(words + shlex.split(SMALL) * (words[1] == "train"))
    return found


def material(folder: Path, seed: int = 0) -> None:
    """Scans, their spreadsheet, unseen scans, and a tiny InternVL2 in the original layout."""
    sys.path.insert(0, str(HOME / "tests"))
    from tiny import tiny_internvl2  # type: ignore[import-not-found]

    tiny_internvl2(folder / "models" / "InternVL2-2B", shards=2)
    draw = random.Random(seed)
    rows = [_invoice(folder / "scans" / f"{n:02d}.png", n, draw) for n in range(WRITTEN)]
    for n in range(UNSEEN):
        _invoice(folder / "unseen" / f"{n:02d}.png", WRITTEN + n, draw)
    with open(folder / "invoices.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("scan", "number", "date", "total"), *rows])


def _invoice(path: Path, n: int, draw: random.Random) -> tuple[str, str, str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    date = f"2026-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    number, total = f"{n:04d}", f"{draw.randint(10, 999)}.{draw.randint(0, 99):02d}"
    image = Image.new("RGB", (120, 80), "white")
    for line, text in enumerate((f"No. {number}", date, f"Total {total}")):
        ImageDraw.Draw(image).text((4, 4 + 20 * line), text, fill="black")
    image.save(path)
    return path.name, number, date, total


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="anymix-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    material(folder)
    print(f"{WRITTEN} drawn invoices, {UNSEEN} unseen ones and a tiny random InternVL2 lie in {folder}")
    for words in commands():
        print(f"\n$ {shlex.join(words)}", flush=True)
        subprocess.run([sys.executable, "-m", *words], cwd=folder, check=True)
    answers = (folder / "answers.csv").read_text(encoding="utf-8-sig").splitlines()
    print("\nThe first answers. The model is noise of a thousandth the size: it has learned the form, not to read.")
    print("\n".join(answers[:4]))
    same = [sorted(p.name for p in (folder / "models" / name).iterdir()) for name in
            ("InternVL2-2B", "InternVL2-2B-invoices")]  # fmt: skip
    print(f"\nfiles of the merged model = files of the original: {same[0] == same[1]}")


if __name__ == "__main__":
    main()
