"""Of a run that draws: its previews over the steps, and what the checks beside them measured.

What is read is the journal, and grid_base.json, where the loss by time at the start lies. Names of metrics are those
of the checks; a run without them has no such part in its page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from anymix.data.images import open_image
from anymix.families.common import shards
from anymix.samples import ImageRef, SampleError
from anymix.train.report import curves, figures
from anymix.train.report.journal import Curve, Record, Shown
from anymix.train.report.markup import Html, html, table, tag
from anymix.train.report.numbers import number
from anymix.train.report.samples import clipped, data_uri

Words = Mapping[str, str]

GRID_FILE = "grid_base.json"  # times, and their mean losses before step 1
BY_TIME = "grid/"  # what the losses by time begin with
NAMED = ("grid", "grid_gain", "drift", "drift_weights", "previews/copies", "previews/nearest", "previews/diversity",
         "previews/broken")  # fmt: skip
BESIDE = ("grid_gain_se",)  # said in a sentence
ROWS, COLUMNS = 12, 6  # of a sheet: prompts and steps
EDGES, BYTES = (200, 128, 96), 9_000  # of a picture in it; a whole sheet stays under 900 KB


def shows(name: str) -> bool:
    """Whether this part of the page has the metric."""
    return name in (*NAMED, *BESIDE) or name.startswith(BY_TIME)


def part(out: Path, record: Record, w: Words) -> Html:
    """The sheet, the loss by time, the curves and their numbers; empty where there is nothing of them."""
    found = [(name, record.curves[name]) for name in NAMED if record.curves.get(name)]
    by_time = _by_time(out, record, w)
    if not found and not by_time and not record.shown:
        return Html()
    drawn = [(f"{w['metric ' + name]}", curve) for name, curve in found if any(value for _, value in curve)]
    drawings = [by_time, *(figures.single(title, curve, w, False) for title, curve in drawn)]
    named = [(w["metric " + name], curve) for name, curve in found]
    return tag(
        "section",
        tag("h2", w["drawn"]),
        _sheet(out, record, w),
        _gain(record, w),
        tag("div", *drawings, class_="curves") if any(drawings) else "",
        figures.key_numbers(named, w) if named else "",
    )


# ---------------------------------------------------------------------------------------------- previews


def _sheet(out: Path, record: Record, w: Words) -> Html:
    """A row for each picture's name, a column for each of some steps."""
    steps = _some(sorted({shown.step for row in record.shown.values() for shown in row}))
    rows = [[_caption(row, w), *_cells(out, row, steps, w)] for row in list(record.shown.values())[:ROWS]]
    left = len(record.shown) - len(rows)
    more = tag("p", w["more samples"].format(count=left), class_="quiet") if left else ""
    header = ["", *(w["at step"].format(step=step) if step else w["untrained"] for step in steps)]
    return html([tag("div", table(header, rows), class_="sheet"), more]) if rows else Html()


def _some(steps: Sequence[int]) -> list[int]:
    """The first, the last and some between."""
    if len(steps) <= COLUMNS:
        return list(steps)
    return [steps[round(n * (len(steps) - 1) / (COLUMNS - 1))] for n in range(COLUMNS)]


def _caption(row: Sequence[Shown], w: Words) -> str:
    return clipped(row[-1].caption, w)


def _cells(out: Path, row: Sequence[Shown], steps: Sequence[int], w: Words) -> list[Html]:
    at = {shown.step: shown for shown in row}
    return [_cell(out, at[step], w) if step in at else html("–") for step in steps]


def _cell(out: Path, shown: Shown, w: Words) -> Html:
    try:
        image = open_image(ImageRef(str(out / shown.path)), w["at step"].format(step=shown.step))
    except SampleError as error:
        return tag("p", w["no picture"].format(error=error), class_="quiet")
    said = f"{shown.caption} ({w['at step'].format(step=shown.step)})"
    return tag("img", src=data_uri(image, EDGES, BYTES), alt=said)


# ------------------------------------------------------------------------------------------------ curves


def _by_time(out: Path, record: Record, w: Words) -> Html:
    """Loss by time, at the start and now."""
    now = sorted((float(name.removeprefix(BY_TIME)), curve[-1]) for name, curve in record.curves.items()
                 if name.startswith(BY_TIME) and curve)  # fmt: skip
    if not now:
        return Html()
    step = max(at for _, (at, _) in now)
    lines = [curves.Line(w["at step"].format(step=step), [(100 * t, loss) for t, (_, loss) in now], marks=True)]
    if base := _base(out):
        lines.append(curves.Line(w["at the start"], [(100 * t, loss) for t, loss in base], "second", marks=True))
    said = "; ".join(f"{line.name}: {_listed(line.points)}" for line in lines)
    return figures.figure(w["metric grid/"], said, lines, w, True, across=w["noise %"])


def _base(out: Path) -> list[tuple[float, float]]:
    try:
        found = shards.read_json(out / GRID_FILE)
        return list(zip(map(float, found["times"]), map(float, found["means"]), strict=True))
    except (ValueError, KeyError, TypeError, OSError):  # not there, or not whole: the page is drawn without it
        return []


def _listed(points: curves.Points) -> str:
    return ", ".join(f"{number(round(x, 2))} % {number(y)}" for x, y in points)


def _gain(record: Record, w: Words) -> Html:
    gain: Curve = list(record.curves.get("grid_gain", ()))
    if not gain:
        return Html()
    error = dict(record.curves.get("grid_gain_se", ())).get(gain[-1][0])
    said = w["gained" if gain[-1][1] >= 0 else "lost"].format(gain=number(abs(gain[-1][1])), step=gain[-1][0])
    return tag("p", said + (w["give or take"].format(error=number(error)) if error is not None else "") + w["end"])
