"""The page, part by part: outcome, the caller's tables and answers, curves, time, what was run, what to type next."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anymix.config import Adapter, Run
from anymix.train.checkpoint import flat
from anymix.train.report import curves, figures, pairs, pictures, samples
from anymix.train.report.journal import Record
from anymix.train.report.markup import Html, folded, html, table, tag
from anymix.train.report.numbers import duration, number, share
from anymix.train.report.pairs import Pair
from anymix.train.report.samples import Sample

Words = Mapping[str, str]

# All else in a line of metrics gets a curve: what the checks of a run measured.
OURS = ("lr", "grad_norm", "tokens_per_s", "fill", "tile_balance")
NOT_DRAWN = {"loss", "val_loss", *OURS, "targets", "epoch", "seconds", "data_wait"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LISTED = 200  # skipped rows in the page; run.json has all
STARVED = 0.2  # share of the time spent waiting from which on it is worth a hint


@dataclass(frozen=True)
class Section:
    """A table of the caller's, such as accuracy before and after. The first column names the rows."""

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    text: str = ""  # a paragraph above the table
    pairs: Sequence[Pair] = ()  # pictures before and after, below it


def whole(out: Path, record: Record, w: Words, shown: Sequence[Sample], sections: Sequence[Section],
          commands: Sequence[tuple[str, str]] | None) -> str:  # fmt: skip
    """The page as text."""
    name = out.resolve().name
    parts = [
        *(_section(section, w) for section in sections),
        samples.cards(shown, w),
        pictures.part(out, record, w),
        _curves(record, w),
        _time(record, w),
        _what(record, w),
        _data(record, w),
        _next(_commands(out, record, w) if commands is None else commands, w),
    ]
    main = tag("main", _header(name, record, w), *(part for part in parts if part))
    style = Html(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", w["page"].format(name=name)),
        tag("style", style),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', main), lang=w['lang'])}\n"


def _part(title: str, *inside: str) -> Html:
    return tag("section", tag("h2", title), *inside)


def _section(section: Section, w: Words) -> Html:
    text = tag("p", section.text) if section.text else ""
    rows = table(section.header, section.rows) if section.rows else ""
    return _part(section.title, text, rows, pairs.sheet(section.pairs, w))


# ----------------------------------------------------------------------------------------------- outcome


def _header(name: str, record: Record, w: Words) -> Html:
    facts = record.facts
    lines = [str(facts.get("run", {}).get("model", {}).get("path", "")), str(facts.get("written", ""))]
    return tag(
        "header",
        tag("h1", name),
        tag("p", " · ".join(filter(None, lines)), class_="quiet"),
        tag("p", outcome(record, w), class_=f"lead {_status(record, w).split()[0]}"),
    )


def _status(record: Record, w: Words) -> str:
    return record.status if record.status in w else "running"


def outcome(record: Record, w: Words) -> str:
    """How the run ended, in one sentence."""
    status = _status(record, w)
    said = [w[status].format(step=record.step, steps=record.facts.get("steps", record.step))]
    loss = record.curves.get("loss", [])
    if len(loss) > 1:
        said.append(w["loss went"].format(first=number(loss[0][1]), last=number(loss[-1][1])))
    elif loss:
        said.append(w["loss was"].format(last=number(loss[0][1])))
    if record.best is None:
        said.append(w["no validation"])
    else:
        said.append(w["best was"].format(best=number(record.best[1]), step=record.best[0]))
        if status in ("finished", "early stop"):
            said.append(w["weights"])
    return w["comma"].join(said) + w["end"]


# ------------------------------------------------------------------------------------------------ curves


def _curves(record: Record, w: Words) -> Html:
    found = record.curves
    if not any(found.values()):
        return _part(w["curves"], tag("p", w["no steps"]))
    drawings = [_loss(record, w)] if found.get("loss") or found.get("val_loss") else []
    checked = {name for name in found if name not in NOT_DRAWN and not pictures.shows(name)}
    names = [*OURS, *sorted(checked)]
    drawn = [name for name in names if any(value for _, value in found.get(name, ()))]  # no tokens, no curve of them
    drawings += [figures.single(_named(name, w), found[name], w, name == "grad_norm") for name in drawn]
    notes = [w["infinite"].format(count=count, name=name) for name, count in record.infinite.items()]
    rows = [name for name in ("loss", "val_loss", *drawn) if found.get(name)]
    return _part(
        w["curves"],
        tag("div", *drawings, class_="curves"),
        *(tag("p", note, class_="quiet") for note in notes),
        figures.key_numbers([(_named(name, w), found[name]) for name in rows], w),
    )


def _named(metric: str, w: Words) -> str:
    """Our own metrics by their words; those of a run's checks by the name the check gave, whatever else has it."""
    return w[metric] if metric in NOT_DRAWN and metric in w else metric


def _loss(record: Record, w: Words) -> Html:
    raw, held = record.curves.get("loss", []), record.curves.get("val_loss", [])
    window = len(raw) // 20
    lines = []
    if raw:
        lines.append(curves.Line(w["loss raw"], raw, "raw" if window > 1 else "main"))
    if window > 1:
        lines.append(curves.Line(w["loss smooth"].format(window=window), curves.smoothed(raw, window)))
    if held:
        lines.append(curves.Line(w["val_loss"], held, "second", marks=True))
    best = record.best if record.best in held else None
    named = w["best"].format(best=number(best[1])) if best else ""
    both = ((w["loss"], raw), (w["val_loss"], held))
    described = " ".join(f"{name}: {figures.described(curve, w)}" for name, curve in both if curve)
    return figures.figure(w["loss"], described, lines, w, True, best, named)


# -------------------------------------------------------------------------------------------------- time


def _time(record: Record, w: Words) -> Html:
    seconds = [value for _, value in record.curves.get("seconds", ())]
    if not seconds:
        return Html()
    waited, total = sum(value for _, value in record.curves.get("data_wait", ())), sum(seconds)
    parts = ((w["waiting"], waited), (w["computing"], total - waited))
    rows = [(name, duration(value), share(value, total)) for name, value in (*parts, (w["together"], total))]
    note = w["time note"].format(count=len(seconds), steps=record.step, median=number(statistics.median(seconds)))
    workers = record.facts.get("run", {}).get("data", {}).get("workers", "?")
    hint = w["starved"].format(workers=workers) if waited > STARVED * total else ""
    return _part(
        w["time"],
        _bar(waited / total if total else 0.0, w),
        table((w["part"], w["seconds"], w["share"]), rows),
        tag("p", note, class_="quiet"),
        tag("p", hint) if hint else "",
    )


def _bar(waiting: float, w: Words) -> Html:
    """The share spent waiting against the rest; the table below says the same in numbers."""
    width = round(400 * waiting, 1)
    said = f"{w['waiting']} {share(waiting, 1)}, {w['computing']} {share(1 - waiting, 1)}"
    return tag(
        "svg",
        tag("title", w["time"]),
        tag("desc", said),
        tag("rect", x=0, y=0, width=width, height=14, class_="second"),
        tag("rect", x=width, y=0, width=400 - width, height=14, class_="main"),
        viewBox="0 0 400 14", role="img", aria_label=said, preserveAspectRatio="none", class_="bar",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ what was run


def _what(record: Record, w: Words) -> Html:
    facts, run = record.facts, record.facts.get("run", {})
    skipped = record.step - int(facts.get("progress", {}).get("updates", record.step))
    lines = {
        w["model"]: run.get("model", {}).get("path"),
        w["device"]: facts.get("device"),
        w["processes"]: facts.get("world"),
        w["skipped steps"]: skipped if skipped and record.status != "running" else None,
        w["written"]: facts.get("written"),
    }
    settings = [str(setting) for setting in facts.get("settings", ())]
    command = shlex.join(str(word) for word in facts.get("command", ()))
    return _part(
        w["what"],
        _pairs(lines.items()),
        tag("h3", w["changed"]),
        table((w["setting"], w["value"], w["default"]), _changed(run)),
        folded(w["recipe"], tag("pre", yaml.safe_dump(dict(run), sort_keys=False, allow_unicode=True))),
        folded(w["versions"], _pairs(facts.get("versions", {}).items())),
        folded(w["environment"], tag("ul", *(tag("li", setting) for setting in settings))) if settings else "",
        folded(w["command"], tag("pre", command, class_="command")) if command else "",
    )


def _pairs(lines: Iterable[tuple[str, Any]]) -> Html:
    return table((), [(name, str(value)) for name, value in lines if value not in (None, "")])


def _changed(run: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Settings that differ from a recipe's defaults; of an adapter, its rank always."""
    usual = flat(Run().model_dump(mode="json"))
    if run.get("adapter"):
        usual |= flat({"adapter": Adapter().model_dump(mode="json")}) | {"adapter.rank": None}
    return [(key, _said(value), _said(usual.get(key))) for key, value in flat(run).items() if value != usual.get(key)]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value in (None, "") else str(value)


def _data(record: Record, w: Words) -> Html:
    data = record.facts.get("data", {})
    skipped, shortened = data.get("skipped", []), data.get("shortened", [])
    lines = {w["rows"]: data.get("rows"), w["held_out"]: data.get("held_out"), w["skipped"]: len(skipped)}
    lines |= {w["shortened"]: len(shortened)} if shortened else {}
    lists = [_listed(w["why skipped"], skipped, w), _listed(w["why shortened"], shortened, w)]
    return _part(w["data"], _pairs(lines.items()), *lists)


def _listed(title: str, rows: Sequence[tuple[str, str]], w: Words) -> Html:
    if not rows:
        return Html()
    more = w["more rows"].format(count=len(rows) - LISTED) if len(rows) > LISTED else ""
    listed = [(samples.clipped(str(key), w), samples.clipped(str(reason), w)) for key, reason in rows[:LISTED]]
    return folded(title, table((w["row"], w["reason"]), listed), tag("p", more))


# -------------------------------------------------------------------------------------------------- next


def _next(commands: Sequence[tuple[str, str]], w: Words) -> Html:
    lines = [html([tag("p", meaning), tag("pre", command, class_="command")]) for command, meaning in commands]
    return _part(w["next"], *lines) if lines else Html()


def _commands(out: Path, record: Record, w: Words) -> list[tuple[str, str]]:
    """What fits any run: go on where it was cut off, or use what it made."""
    folder = shlex.quote(str(out))
    if record.status not in ("finished", "early stop"):
        again = _again([str(word) for word in record.facts.get("command", ())], record.facts.get("run", {}))
        return [(again, w["go on"])] if again else []
    question = shlex.quote(w["your question"])
    if record.facts.get("draws"):
        found = [(f"anymix generate {folder} {shlex.quote(w['your prompt'])} -o picture.png", w["generate"])]
    else:
        found = [
            (f"anymix chat {folder} --image a.jpg {question}", w["chat"]),
            (f"anymix predict {folder} pictures -o answers.jsonl --question {question}", w["predict"]),
        ]
    if record.facts.get("run", {}).get("adapter"):
        if record.facts.get("draws"):
            file = shlex.quote(f"{out}.safetensors")
            found.append((f"anymix export {folder} --to comfyui -o {file}", w["export"]))
        found.append((f"anymix merge {folder} -o {shlex.quote(str(out) + '-merged')}", w["merge"]))
    return found


def _again(command: Sequence[str], run: Mapping[str, Any]) -> str:
    """The command that was typed, made to go on; '' where the run was not started by a command of ours."""
    if not command or Path(command[0]).name not in ("anymix", "__main__.py"):
        return ""
    words = ["anymix", *command[1:]] + ["resume=auto"] * (run.get("resume", "auto") != "auto")
    return shlex.join(words)
