"""Progress bars of every command: what is done of how much, the rate, the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Move = Callable[[int, int], None]  # done, total


def progress(console: Console, unit: str, shown: bool = True) -> Progress:
    """A display of bars that count `unit`, or whatever each of them counts."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f} {unit}".rstrip() + "/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not shown, speed_estimate_period=300)


@contextmanager
def bar(unit: str, shown: bool = True) -> Iterator[Move]:
    """One bar, on stderr."""
    from rich.console import Console

    with progress(Console(stderr=True), unit, shown) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
