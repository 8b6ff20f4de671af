"""Answers to a whole data set, written line by line: batched, resumable, checked against a JSON schema.

In go rows (conversations; of training rows the last question is asked and its answer kept as `reference`),
out comes a JSONL file in the order of the rows, or a csv made from it. A row that cannot be read becomes a
line with `error`; the run goes on and says so at the end.

Within a window of a few batches rows are answered longest first, so that a batch wastes little on padding;
greedy answers in fp32 do not depend on it, and a kill costs at most such a window. While one window is being
answered the pictures of the next are read in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from anymix.adapters.files import fingerprint
from anymix.engines.answers import Line, Schema, to_csv
from anymix.engines.chat import Answer, ChatEngine
from anymix.engines.ledger import Ledger
from anymix.engines.rows import Pictures, Sheet, keys_of, last_question
from anymix.engines.sampling import Sampling
from anymix.families.contract import Prompt
from anymix.samples import Conversation, SampleError

WINDOW = 4  # batches
WARM = 0.7  # temperature of another try, where the first was greedy and would only be said again
Progress = Callable[[int, int], None]  # rows done, rows in all
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Summary:
    """What became of the rows. `errors` are (key, sentence) of rows that could not be asked."""

    rows: int
    answered: int = 0
    valid: int = 0
    invalid: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    before: int = 0  # answered by an earlier run, and counted above
    tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Rows a second of this run."""
        return (self.answered - self.before) / self.seconds if self.seconds else 0.0

    def count(self, key: str, line: Mapping[str, Any]) -> None:
        if "error" in line:
            self.errors.append((key, line["error"]))
            return
        self.answered += 1
        self.valid += line.get("valid") is True
        self.invalid += line.get("valid") is False


@dataclass(frozen=True)
class _Ready:
    """A row that can be asked."""

    prompt: Prompt
    line: Line  # what its line says whatever the answer


def predict(
    engine: ChatEngine,
    rows: Sequence[Conversation],
    out: str | Path,
    *,
    sampling: Sampling | None = None,
    batch: int = 8,
    schema: Schema | None = None,
    retries: int = 0,
    restart: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Answer `rows` into `out` (.jsonl, or .csv, which is made from `out`.jsonl at the end), going on where
    an earlier run with the same settings stopped.

    retries: how often an answer the schema refuses is drawn again. settings: what else changes answers (the
    tiles, say) and must be the same to go on. Raises ValueError in one sentence; rows that cannot be asked do
    not raise."""
    if batch < 1 or retries < 0:
        raise ValueError(f"batch = {batch} and retries = {retries}, expected at least 1 and at least 0")
    out, sampling = Path(out), sampling or Sampling()
    path = _journal(out)
    if isinstance(rows, Pictures | Sheet):
        rows = replace(rows, lead=engine.family.codec.lead)
    keys = keys_of(rows)
    job = _Job(engine, rows, keys, sampling, schema, retries)
    began = time.perf_counter()
    with Ledger(path, {**job.settings(), **(settings or {})}, restart) as ledger:
        left = ledger.left(keys)
        summary = Summary(len(keys), before=len(keys) - len(left))
        if progress is not None:
            progress(summary.before, len(keys))
        for done, line in enumerate(job.lines(left, batch), start=summary.before + 1):
            ledger.append(line)
            summary.tokens += line.get("tokens", 0)
            if progress is not None:
                progress(done, len(keys))
    for key in keys:
        summary.count(key, ledger.lines[key])
    summary.seconds = time.perf_counter() - began
    if path != out:
        to_csv(path, out, schema)
    return summary


def _journal(out: Path) -> Path:
    """The JSONL file behind `out`. Raises ValueError for an output of another kind, or a csv that is not ours."""
    kind = out.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise ValueError(f"{out} names no format predict writes; end it in .jsonl or .csv")
    path = out.with_name(out.name + ".jsonl") if kind == ".csv" else out
    if kind == ".csv" and out.exists() and not path.exists():
        raise ValueError(f"{out} exists and was not written by anymix (there is no {path.name}); name another output")
    return path


@dataclass
class _Job:
    """Everything a row needs to become a line."""

    engine: ChatEngine
    rows: Sequence[Conversation]
    keys: Sequence[str]
    sampling: Sampling
    schema: Schema | None
    retries: int

    def settings(self) -> dict[str, Any]:
        """What makes answers the same answers."""
        folders = dict.fromkeys((self.engine.source, self.engine.family.folder))
        tree = {"model": " ".join(fingerprint(folder) for folder in folders), **asdict(self.sampling)}
        return {**tree, "schema": self.schema.tree if self.schema else None, "retries": self.retries}

    def lines(self, left: Sequence[int], batch: int) -> Iterator[Line]:
        """The lines of these rows, in order."""
        for window in ahead(self._read, runs(left, batch * WINDOW)):
            yield from self._answered(window, batch)

    def _read(self, window: Sequence[int]) -> list[_Ready | Line]:
        return [self._ready(n) for n in window]

    def _ready(self, n: int) -> _Ready | Line:
        """A row made ready, or the line that says why it cannot be asked."""
        line: Line = {"key": self.keys[n], "images": []}
        try:
            conversation, reference = last_question(self.rows[n])
            line["images"] = [ref.path for ref in conversation.images]
            line |= {"videos": [ref.path for ref in conversation.videos]} if conversation.videos else {}
            line |= {} if reference is None else {"reference": reference}
            return _Ready(self.engine.prompt(conversation), line)
        except SampleError as error:
            return {**line, "error": str(error)}

    def _answered(self, window: Sequence[_Ready | Line], batch: int) -> Iterator[Line]:
        """Lines in the order of the window, each as soon as those before it are there."""
        done = {n: row for n, row in enumerate(window) if isinstance(row, dict)}
        ready = [(n, row) for n, row in enumerate(window) if isinstance(row, _Ready)]
        ready.sort(key=lambda pair: -len(pair[1].prompt.ids))
        place = 0
        for some in (*runs(ready, batch), ()):
            done.update(zip((n for n, _ in some), self._lines([row for _, row in some]), strict=True))
            while place in done:
                yield done.pop(place)
                place += 1

    def _lines(self, ready: Sequence[_Ready]) -> list[Line]:
        """The lines of one batch; what the schema refuses is drawn again."""
        answers = answer_in_halves(self.engine, [row.prompt for row in ready], self.sampling)
        lines = [self._line(row, answer) for row, answer in zip(ready, answers, strict=True)]
        for attempt in range(1, self.retries + 1):
            wrong = [n for n, line in enumerate(lines) if line.get("valid") is False]
            if not wrong:
                break
            answers = answer_in_halves(self.engine, [ready[n].prompt for n in wrong], self._another(attempt))
            for n, answer in zip(wrong, answers, strict=True):
                line = self._line(ready[n], answer)
                lines[n] = {**(line if line["valid"] else lines[n]), "retries": attempt}
        return lines

    def _another(self, attempt: int) -> Sampling:
        """How an answer is drawn again: with noise, and other noise each time."""
        return replace(
            self.sampling,
            temperature=self.sampling.temperature or WARM,
            seed=(self.sampling.seed or 0) + attempt,
        )

    def _line(self, row: _Ready, answer: Answer) -> Line:
        line = row.line | {
            "answer": answer.text,
            "finish": answer.finish,
            "tokens": len(answer.ids),
            "prompt_tokens": answer.prompt_tokens,
        }
        if self.schema is not None:
            parsed, problem = self.schema.check(answer.text)
            if problem and answer.finish == "length":
                problem += f" (the answer was cut at {answer.limit} tokens; raise max_new_tokens)"
            line |= {"parsed": parsed, "valid": problem is None}
            line |= {"problem": problem} if problem else {}
        return line


def runs(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Stretches of at most so many items, in order."""
    return [items[n : n + size] for n in range(0, len(items), size)]


def ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """work(item) for each item, the next one done in a thread while this one is used."""
    with ThreadPoolExecutor(1) as thread:
        begun: Future[R] | None = None
        for item in items:
            following = thread.submit(work, item)
            if begun is not None:
                yield begun.result()
            begun = following
        if begun is not None:
            yield begun.result()


def answer_in_halves(engine: ChatEngine, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
    """Answers to one batch; where the device has no memory for it, two of half the size, and so on."""
    if not prompts:
        return []
    try:
        return engine.answer_prompts(prompts, sampling)
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            found = f"the device has no memory for this row alone ({len(prompts[0].ids)} tokens)"
            raise ValueError(f"{prompts[0].key}: {found}; lower max_tiles or max_new_tokens") from None
    half = (len(prompts) + 1) // 2  # outside the handler: the failed batch's memory is free by now
    return [a for part in (prompts[:half], prompts[half:]) for a in answer_in_halves(engine, part, sampling)]
