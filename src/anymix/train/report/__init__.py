"""One page about one run: report.html, made from its run.json and metrics.jsonl, by any family's run.

The page is whole in itself (no script, no network, pictures inside; its own policy forbids all else), bends to a
phone, follows the reader's light or dark setting, and prints. The loop makes it at the end of every run; whoever has
answers or scores to show makes it again with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anymix.families.common import shards
from anymix.train.report import journal, page
from anymix.train.report.page import Section
from anymix.train.report.pairs import Pair
from anymix.train.report.samples import Sample
from anymix.train.report.words import texts

__all__ = ["Pair", "Sample", "Section", "report"]


def report(
    out: Path | str,
    *,
    samples: Sequence[Sample] = (),
    sections: Sequence[Section] = (),
    commands: Sequence[tuple[str, str]] | None = None,
    language: str = "en",
) -> Path:
    """Write `out/report.html` for the run in `out` -> its path.

    `commands` are (command, what it does) to type next, in place of those that fit any run. Raises ValueError where
    `out` holds no run, or for a language other than en and zh. A picture that cannot be read is a sentence in the page.
    """
    out = Path(out)
    text = page.whole(out, journal.read(out), texts(language), samples, sections, commands)
    shards.write_text(out / "report.html", text)
    return out / "report.html"
