"""report.html as its readers have it: whole in itself, true to the journal, and there whatever the run went through."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import ExifTags, Image

import anymix
from anymix.config import Run
from anymix.samples import ImageRef
from anymix.train import loop as train_loop
from anymix.train.report import Pair, Sample, Section, curves, numbers, report, words

VOID = {"meta", "img", "br"}
EVIL = '</p></section><script>alert("1")</script><img src=x onerror=alert(2)> & \x00\x1b "\''


class Page(HTMLParser):
    """What a reader meets: texts by the element they stand in, attributes, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if not tags or tag in tags]

    @property
    def lead(self) -> str:
        return next(text for text in self.said("p") if text[-1] in ".。")


Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """A run folder: lines of metrics, and run.json with whatever is to differ."""

    def make(lines: list[dict[str, Any]], **facts: Any) -> Path:
        out = tmp_path / "my run"
        out.mkdir(exist_ok=True)
        done = max((line["step"] for line in lines), default=0)
        run = {"model": {"path": "models/InternVL2-2B"}, "adapter": {}, "train": {"out": str(out), "lr": 2e-4}}
        whole = {
            "status": "finished",
            "progress": {"step": done, "updates": done, "best": None, "best_step": 0},
            "steps": done,
            "run": Run.model_validate(run).model_dump(mode="json"),
            "device": "cpu, as asked",
            "settings": [],
            "world": 1,
            "data": {"rows": 36, "held_out": 4, "skipped": []},
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
            "command": ["/usr/bin/anymix", "train", "my recipe.yaml", "device=cpu"],
            "written": "2026-11-22 20:00:55+0000",
        }
        (out / "run.json").write_text(json.dumps(whole | facts))
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return out

    return make


def step(n: int, loss: float, **more: float) -> dict[str, float]:
    return {"step": n, "loss": loss, "lr": 1e-3 / n, "grad_norm": 2.0 + n, "targets": 40, "epoch": n / 9,
            "seconds": 0.5, "data_wait": 0.125, "tokens_per_s": 1000.0 * n, **more}  # fmt: skip


def ten() -> list[dict[str, float]]:
    lines = [step(n, 5 / n + 0.01 * (n % 3)) for n in range(1, 11)]
    return [*lines[:5], {"step": 5, "val_loss": 1.25}, *lines[5:], {"step": 10, "val_loss": 1.5}]


def best(value: float, at: int, **more: Any) -> Mapping[str, Any]:
    return {"progress": {"step": 10, "updates": 10, "best": value, "best_step": at, **more}}


def digits(page: Page) -> set[float]:
    return {float(str(data["value"])) for data in page.all("data")}


# -------------------------------------------------------------------------------------------- the page


def test_the_page_is_whole_in_itself_and_reaches_for_nothing(written: Write) -> None:
    picture = Image.new("RGB", (900, 500), "red")
    out = written(ten(), **best(1.25, 5))
    page = Page(report(out, samples=[Sample(picture, "What colour?", "red", "red", True)]))
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    reached = [value for _, attributes in page.elements for name, value in attributes.items()
               if name in ("src", "href", "srcset", "action", "data", "poster") or name.startswith("on")]  # fmt: skip
    assert len(reached) == 1 and str(reached[0]).startswith("data:image/png;base64,")
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[^\"]*", "", page.source))
    assert any("default-src 'none'" in str(meta.get("content")) for meta in page.all("meta"))
    assert any("width=device-width" in str(meta.get("content")) for meta in page.all("meta"))
    assert "prefers-color-scheme: dark" in page.source and "@media print" in page.source


def test_every_drawing_has_a_title_and_says_what_it_shows(written: Write) -> None:
    page = Page(report(written(ten(), **best(1.25, 5))))
    assert len(page.all("svg")) == 5 == len(page.said("desc"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    loss = page.said("desc")[0]
    assert "From 5.01 at step 1 to 0.51 at step 10; lowest 0.51" in loss
    assert "From 1.25 at step 5 to 1.5 at step 10" in loss


def test_the_numbers_are_those_of_the_journal_to_the_last_digit(written: Write) -> None:
    lines = [step(n, 1 / 3 + 1 / n**3) for n in range(1, 8)]
    page = Page(report(written(lines)))
    for name in ("loss", "lr", "grad_norm", "tokens_per_s"):
        values = [line[name] for line in lines]
        assert {values[0], values[-1], min(values), max(values)} <= digits(page)
    assert "0.3362" in page.said("data") and "1.429e-4" in page.said("data")


def test_the_time_is_the_sum_of_the_logged_steps(written: Write) -> None:
    page = Page(report(written(ten())))
    cells = page.said("th", "td")
    where = cells.index("waiting for data")
    assert cells[where : where + 9] == ["waiting for data", "1.2 s", "25.0 %", "computing", "3.8 s", "75.0 %",
                                        "together", "5.0 s", "100.0 %"]  # fmt: skip
    assert any("data.workers (now 2) may help" in text for text in page.said())
    assert [float(str(rect["width"])) for rect in page.all("rect")] == [100.0, 300.0]


def test_what_differs_from_the_defaults_comes_first_and_the_recipe_can_be_used_again(written: Write) -> None:
    out = written(ten())
    page = Page(report(out))
    cells = page.said("th", "td")
    at = cells.index("train.lr")
    assert cells[at : at + 3] == ["train.lr", "0.0002", "0.0001"]
    assert cells[cells.index("adapter.rank") + 1] == "16"
    assert "train.batch" not in cells and "adapter.dropout" not in cells
    recipe = next(yaml.safe_load(text) for text in page.said("pre") if text.startswith("model:"))
    assert anymix.load(recipe).model_dump(mode="json") == json.loads((out / "run.json").read_text())["run"]
    assert {"cpu, as asked", "36", "4", "2.13.0"} <= set(cells)


def test_skipped_rows_are_listed_with_their_reasons_and_none_is_forgotten(written: Write) -> None:
    skipped = [[f"rows.jsonl:{n}", f"the picture {n}.png does not exist"] for n in range(1, 251)]
    page = Page(report(written(ten(), data={"rows": 9, "held_out": 0, "skipped": skipped})))
    cells = page.said("th", "td")
    assert cells[cells.index("Rows skipped") + 1] == "250"
    assert cells[cells.index("rows.jsonl:7") + 1] == "the picture 7.png does not exist"
    assert "and 50 more, all of them in run.json" in page.said()


# ------------------------------------------------------------------------------- what a run goes through


def test_a_finished_run_in_one_sentence(written: Write) -> None:
    page = Page(report(written(ten(), **best(1.25, 5))))
    assert page.lead == (
        "Finished at step 10 of 10; the loss of a step went from 5.01 to 0.51; "
        "the best validation loss is 1.25, at step 5; the weights of that step are the ones kept."
    )
    assert "best 1.25" in page.said("text")
    commands = [pre for pre in page.said("pre") if pre.startswith("anymix ")]
    assert [command.split()[1] for command in commands] == ["chat", "predict", "merge"]
    assert all("my run'" in command for command in commands)


def test_a_run_that_draws_says_how_to_draw(written: Write) -> None:
    page = Page(report(written(ten(), draws=True)))
    commands = [pre for pre in page.said("pre") if pre.startswith("anymix ")]
    assert [command.split()[1] for command in commands] == ["generate", "export", "merge"]


def test_a_stopped_run_says_how_to_go_on(written: Write) -> None:
    out = written([step(1, 3.0), step(2, 2.0)], status="stopped", steps=50)
    page = Page(report(out))
    assert page.lead.startswith("Stopped on request at step 2 of 50; the loss of a step went from 3 to 2;")
    assert page.lead.endswith("there was no validation.") and "Validation loss" not in page.said()
    assert page.said("pre")[-1] == "anymix train 'my recipe.yaml' device=cpu"
    facts = json.loads((out / "run.json").read_text())
    facts["run"]["resume"] = "never"
    (out / "run.json").write_text(json.dumps(facts))
    assert Page(report(out)).said("pre")[-1] == "anymix train 'my recipe.yaml' device=cpu resume=auto"


def test_a_killed_run_is_told_by_its_journal(written: Write) -> None:
    """run.json still has what was true when it began; the last line is torn."""
    out = written(ten(), status="running", steps=99, progress={"step": 0, "updates": 0, "best": None, "best_step": 0})
    with open(out / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 11, "lo')
    page = Page(report(out))
    assert "the last step known is 10 of 99" in page.lead
    assert "the best validation loss is 1.25, at step 5" in page.lead and "kept" not in page.lead
    assert "Steps skipped by fp16" not in page.said()


def test_steps_a_run_went_back_behind_count_once(written: Write) -> None:
    old = [step(n, 90.0 + n) for n in range(1, 9)]
    old[4:4] = [{"step": 4, "val_loss": 7.0}]
    new = [{"step": 4, "val_loss": 6.0}, *(step(n, 1.0 * n) for n in (5, 6))]
    page = Page(report(written(old + new, progress={"step": 6, "updates": 6, "best": 6.0, "best_step": 4}, steps=6)))
    assert "from 91 to 6;" in page.lead and "is 6, at step 4" in page.lead
    assert digits(page).isdisjoint({95.0, 98.0, 7.0})
    assert any("Sum of the 6 logged steps of 6" in text for text in page.said("p"))


def test_one_step_is_a_point(written: Write) -> None:
    page = Page(report(written([step(1, 2.5)])))
    assert page.lead.startswith("Finished at step 1 of 1; the loss of its one logged step was 2.5")
    assert len(page.all("circle")) == 4 and "nan" not in page.source.lower()


def test_a_run_without_a_step_says_so(written: Write) -> None:
    page = Page(report(written([], status="stopped")))
    assert "No step was logged, so there is nothing to draw." in page.said()
    assert not page.all("svg")


def test_norms_that_overflowed_are_counted_not_drawn(written: Write) -> None:
    lines = [step(1, 3.0, grad_norm=float("inf")), step(2, 2.0), step(3, 1.0, grad_norm=float("nan"))]
    page = Page(report(written(lines, progress={"step": 3, "updates": 1, "best": None, "best_step": 0})))
    assert any(text.startswith("2 values of grad_norm were not finite") for text in page.said())
    cells = page.said("th", "td")
    assert cells[cells.index("Steps skipped by fp16") + 1] == "2"
    drawn = " ".join(str(line["points"]) for line in page.all("polyline"))
    assert drawn and "inf" not in drawn and "nan" not in drawn


def test_what_a_check_measured_gets_a_curve_and_no_tokens_none(written: Write) -> None:
    lines = [step(n, 1.0, tokens_per_s=0.0) for n in (1, 2)]
    page = Page(report(written([*lines, {"step": 2, "accuracy on <words>": 0.75}])))
    assert "accuracy on <words>" in page.said("figcaption") and "Tokens per second" not in page.said()


def test_a_check_may_have_any_name(written: Write) -> None:
    """score, time and best are also words of the page itself."""
    page = Page(report(written([step(n, 1 / n, score=n / 10, time=n) for n in (1, 2, 3)])))
    assert "score" in page.said("figcaption") and "time" in page.said("figcaption") and "{right}" not in page.said()


def test_ticks_of_a_flat_curve_differ() -> None:
    axis = curves.y_axis([curves.Line("flat", [(1, 2.3456), (2, 2.3461)])], log=False)
    names = [re.sub("<.*?>", "", str(part)) for part in curves._y_ticks(axis) if str(part).startswith("<text")]
    assert len(names) == len(set(names)) > 2


def test_a_long_run_stays_a_small_page_and_keeps_its_spikes(written: Write) -> None:
    lines = [step(n, 2.0 + (n % 7) / 10) for n in range(1, 100_001)]
    lines[54_321]["loss"] = 39.0
    path = report(written(lines))
    assert path.stat().st_size < 100_000
    page = Page(path)
    assert 39.0 in digits(page)
    raw = next(str(line["points"]) for line in page.all("polyline") if line["class"] == "raw")
    heights = sorted(float(point.split(",")[1]) for point in raw.split())
    assert len(heights) <= 2 * curves.BUCKETS + 2 and heights[0] < 30 < 100 < heights[1]


def test_many_large_answers_stay_a_small_page(written: Write) -> None:
    """Noise is what compresses worst; however many answers, the page can be sent to somebody."""
    picture = Image.effect_noise((300, 300), 200).convert("RGB")
    path = report(written(ten()), samples=[Sample(picture, *["x" * 50_000] * 3) for _ in range(40)])
    assert path.stat().st_size < 2_000_000
    page = Page(path)
    assert len(page.all("img")) == 36 and "4 more are not shown." in page.said()
    assert all(text.endswith("… (48,000 more characters)") for text in page.said("dd"))


# ---------------------------------------------------------------------------------- answers and sections


def test_nothing_an_answer_holds_becomes_markup(written: Write) -> None:
    out = written(ten(), device=EVIL, data={"rows": 1, "held_out": 0, "skipped": [[EVIL, EVIL]]}, command=[EVIL],
                  versions={EVIL: EVIL}, settings=[EVIL], written=EVIL)  # fmt: skip
    samples = [Sample(ImageRef(EVIL.replace("/", "")), EVIL, EVIL, EVIL, False, EVIL)]
    sections = [Section(EVIL, [EVIL], [[EVIL, EVIL]], EVIL)]
    page = Page(report(out, samples=samples, sections=sections, commands=[(EVIL, EVIL)]))
    assert not page.all("script") and not page.all("img")
    assert "\x00" not in page.source and "\x1b" not in page.source
    shown = re.sub("[\x00\x1b]", "\N{REPLACEMENT CHARACTER}", EVIL)
    assert page.said("dd").count(shown) == 4 and shown in page.said("h2") and shown in page.said("th")


def test_answers_are_shown_with_their_verdicts(written: Write) -> None:
    samples = [Sample(None, "q1", "a1", "r1", True, "b1"), Sample(None, "q2", "", "r2", False), Sample(None, "q3")]
    page = Page(report(written(ten()), samples=samples))
    assert "1 of 2 right." in page.said("p") and {"✓ right", "✗ wrong"} <= set(page.said("p"))
    assert page.said("dd") == ["q1", "b1", "a1", "r1", "q2", "r2", "q3"]
    assert page.said("dt").count("answer") == 2  # an empty answer is shown as one, a missing one is not


def test_pictures_are_made_small_and_stand_upright(written: Write, tmp_path: Path) -> None:
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (1600, 800), "blue").save(tmp_path / "wide.jpg", exif=sideways)
    samples = [Sample(ImageRef(str(tmp_path / "wide.jpg"))), Sample(ImageRef(str(tmp_path / "gone.png")), "q")]
    page = Page(report(written(ten()), samples=samples))
    assert [img["alt"] for img in page.all("img")] == ["picture of sample 1"]
    code = str(page.all("img")[0]["src"]).partition("base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(code))).size == (240, 480)
    assert any("The picture cannot be shown" in text and "gone.png" in text for text in page.said("p"))


def test_tables_and_commands_of_the_caller(written: Write) -> None:
    table = Section("Accuracy", ("kind", "before", "after"), [("new word", "3 %", "97 %")], "150 questions a kind.")
    page = Page(report(written(ten()), sections=[table], commands=[("anymix chat out", "talk to it")]))
    assert page.said("th", "td")[:6] == ["kind", "before", "after", "new word", "3 %", "97 %"]
    assert "150 questions a kind." in page.said("p") and "talk to it" in page.said("p")
    assert page.said("pre")[-1] == "anymix chat out" and not any("merge" in pre for pre in page.said("pre"))


def test_pictures_before_stand_beside_those_after(written: Write, tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    pairs = [Pair(red, blue, "a <blue> one", False, True), Pair(ImageRef(str(tmp_path / "gone.png")), red, "red")]
    page = Page(report(written(ten()), sections=[Section("Drawn", pairs=pairs)]))
    assert [img["alt"] for img in page.all("img")] == ["before: a <blue> one", "after: a <blue> one", "after: red"]
    colours = []
    for img in page.all("img")[:2]:
        code = str(img["src"]).partition("base64,")[2]
        colours.append(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB").getpixel((32, 32)))
    assert colours == [(255, 0, 0), (0, 0, 255)]
    assert page.said("b") == ["✗", "✓"]  # nobody judged the second pair
    assert {"a <blue> one", "red"} <= set(page.said("figcaption"))
    assert any("cannot be shown" in text and "gone.png" in text for text in page.said("small"))


# ---------------------------------------------------------------------------------------------- language


def test_chinese_says_everything_in_chinese(written: Write) -> None:
    out = written(ten(), **best(1.25, 5))
    page = Page(report(out, samples=[Sample(None, "q", "a", "r", True)], language="zh"))
    assert page.all("html")[0]["lang"] == "zh-CN"
    assert page.lead.startswith("训练完成，第 10 步（共 10 步）；单步损失由 5.01 变为 0.51；")
    assert page.lead.endswith("最佳验证损失为 1.25（第 5 步）；保留的是该步的权重。")
    for kind in ("h2", "h3", "dt", "figcaption", "summary", "desc"):
        assert page.said(kind) and all(re.search(r"[\u4e00-\u9fff]", text) for text in page.said(kind))


def test_both_languages_fill_in_the_same_facts() -> None:
    for english, chinese in words.WORDS.values():
        assert sorted(re.findall(r"{\w+}", english)) == sorted(re.findall(r"{\w+}", chinese))


def test_the_language_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    for locale, expected in (("zh_CN.UTF-8", "zh"), ("de_DE.UTF-8", "en"), ("", "en")):
        monkeypatch.setenv("LANG", locale)
        assert words.spoken() == expected
    monkeypatch.setenv("LC_ALL", "zh_TW.UTF-8")
    assert words.spoken() == "zh"


def test_mistakes_are_sentences(written: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no run\.json, so it is no folder of a run"):
        report(tmp_path)
    with pytest.raises(ValueError, match="speaks en and zh, found 'fr'"):
        report(written(ten()), language="fr")


# ------------------------------------------------------------------------------------------ the drawings


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (3.0, "3"), (0.40114, "0.4011"), (4783.2, "4,783"), (1.5e-5, "1.5e-5"), (-0.25, "-0.25"),
     (12345678.5, "1.235e7"), (100000, "100,000")],
)  # fmt: skip
def test_numbers_are_short(value: float, shown: str) -> None:
    assert numbers.number(value) == shown


@pytest.mark.parametrize(("low", "high"), [(0, 120), (1, 10), (0.36, 9.96), (1e-7, 3e-7), (-5, 5), (4999.5, 5000.5)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = curves.ticks(low, high)
    assert 3 <= len(found) <= 8 and low <= found[0] and found[-1] <= high
    assert all(len(f"{abs(tick):e}".partition("e")[0].rstrip("0")) <= 6 for tick in found)


@pytest.mark.parametrize(("low", "high"), [(0.3, 11), (1e-8, 1), (0.9, 21)])
def test_logarithmic_ticks_lie_within_and_are_few(low: float, high: float) -> None:
    found = curves.log_ticks(low, high)
    assert 2 <= len(found) <= 9 and low <= min(found) and max(found) <= high


def test_the_moving_average_starts_at_the_first_value_and_follows() -> None:
    assert curves.smoothed([(1, 4.0)], 5) == [(1, 4.0)]
    level = curves.smoothed([(n, 2.0) for n in range(50)], 9)
    assert max(abs(y - 2.0) for _, y in level) < 1e-12
    assert curves.smoothed([(n, float(n >= 50)) for n in range(100)], 9)[-1][1] > 0.99


# -------------------------------------------------------------------------------------------- by the loop


def test_a_run_leaves_its_report_and_says_where(recipe: Any) -> None:
    said: list[str] = []
    run = recipe("data.val=0.25")
    done = anymix.train(run, say=said.append)
    path = Path(run.train.out) / "report.html"
    assert said[-1] == f"report: {path}"
    page = Page(report(run.train.out))
    assert page.lead.startswith("Finished at step 3 of 3") and f"is {numbers.number(done.best)}, at" in page.lead
    journal = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert {line["loss"] for line in journal if line["step"] in (1, 3) and "loss" in line} <= digits(page)


def test_a_report_that_cannot_be_drawn_does_not_fail_the_run(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise RuntimeError("no space left")

    monkeypatch.setattr(train_loop, "report", broken)
    said: list[str] = []
    run = recipe()
    assert anymix.train(run, say=said.append).status == "finished"
    assert said[-1] == f"report.html could not be made (no space left); `anymix report {run.train.out}` tries again"


def test_a_run_that_was_resumed_is_one_run(recipe: Any) -> None:
    """Its last checkpoint lost, it goes on from the one before: steps 3 and 4 are taken twice and drawn once."""
    run = recipe("train.save_every=2", "train.steps=4")
    anymix.train(run, say=lambda _: None)
    shutil.rmtree(Path(run.train.out) / "checkpoints" / "step-000004")
    anymix.train(run, say=lambda _: None)
    page = Page(Path(run.train.out) / "report.html")
    assert len(str(page.all("polyline")[0]["points"]).split()) == 4


# --------------------------------------------------------------------------------------- of a run that draws

TIMES = [n / 100 for n in range(5, 100, 10)]


def drawing(out: Path, steps: tuple[int, ...] = (0, 50, 100)) -> list[dict[str, Any]]:
    """Lines as the checks write them, with a picture of each prompt at each of the steps."""
    lines: list[dict[str, Any]] = []
    for step_ in steps:
        shown = {}
        for n, prompt in enumerate(("a fox", "a <b>bold</b> cat")):
            path = Path("previews") / f"step-{step_:06d}" / f"{n:02d}.png"
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (step_ % 256, 90 * n, 40)).save(out / path)
            shown[f"previews/{n:02d}"] = {"path": str(path), "caption": prompt}
        grid = {f"grid/{time:.2f}": 1.0 - time / 2 - step_ / 500 for time in TIMES}
        lines += [step(step_, 1.0)] if step_ else []
        lines += [{"step": step_, "previews/copies": step_ / 200, "previews/sharpness": 7.0},
                  {"step": step_, "pictures": shown},
                  {"step": step_, **grid, "grid": 0.75, "grid_gain": step_ / 500, "grid_gain_se": 0.0125},
                  {"step": step_, "drift": step_ / 1000}]  # fmt: skip
    return lines


@pytest.fixture
def drew(written: Write, tmp_path: Path) -> Path:
    out = written(drawing(tmp_path / "my run"))
    means = [1.0 - time / 2 for time in TIMES]
    (out / "grid_base.json").write_text(json.dumps({"times": TIMES, "means": means, "rows": {}}))
    return out


def test_a_run_that_draws_shows_its_previews_over_the_steps(drew: Path) -> None:
    page = Page(report(drew))
    images = page.all("img")
    assert [image["alt"] for image in images[:3]] == ["a fox (step 0)", "a fox (step 50)", "a fox (step 100)"]
    assert len(images) == 6 and all(str(image["src"]).startswith("data:image/") for image in images)
    heads = page.said("th")
    assert heads[:4] == ["before step 1", "step 50", "step 100", "a fox"]
    assert "a <b>bold</b> cat" in heads and not page.all("b")


def test_loss_by_time_stands_beside_the_start(drew: Path) -> None:
    page = Page(report(drew))
    where = page.said("figcaption").index("Loss by time, on noise that never changes")
    said = page.said("desc")[where]
    assert said.startswith("step 100: 5 % 0.775, 15 % 0.725") and "at the start: 5 % 0.975, 15 % 0.925" in said
    assert "at the start" in page.said("span")
    assert "is 0.2 lower than at the start, give or take 0.0125" in page.source
    assert not any(text.startswith("grid/") for text in page.said())
    titles = page.said("figcaption")
    assert "Drift of predictions for generic prompts" in titles and "previews/sharpness" in titles
    assert "Share of previews that copy a training picture" in titles
    assert {0.1, 0.5, 0.75} <= digits(page)


def test_without_a_start_there_is_one_curve_by_time(drew: Path) -> None:
    for text in ("{", "[]", json.dumps({"times": TIMES, "means": [1.0]})):
        (drew / "grid_base.json").write_text(text)
        assert "at the start: " not in Page(report(drew)).source
    (drew / "grid_base.json").unlink()
    assert "at the start: " not in Page(report(drew)).source


def test_a_preview_that_went_away_is_a_sentence_in_the_page(drew: Path) -> None:
    (drew / "previews" / "step-000050" / "00.png").unlink()
    page = Page(report(drew))
    assert len(page.all("img")) == 5
    assert sum("The picture cannot be shown" in text for text in page.said()) == 1


def test_of_many_previews_the_first_the_last_and_some_between_are_shown(written: Write, tmp_path: Path) -> None:
    out = written(drawing(tmp_path / "my run", tuple(range(0, 5000, 100))))
    page = Page(report(out))
    heads = page.said("th")
    assert heads[0] == "before step 1" and heads[5] == "step 4,900".replace(",", "") and len(page.all("img")) == 12
    assert len(page.source) < 400_000


def test_the_words_about_pictures_are_chinese_too(drew: Path) -> None:
    page = Page(report(drew, language="zh"))
    assert "各时刻的损失（噪声固定）" in page.said("figcaption") and "第 1 步之前" in page.said("th")


def test_a_loss_that_rose_is_called_higher(written: Write) -> None:
    out = written([step(1, 1.0), {"step": 1, "grid": 1.0, "grid_gain": -0.25}])
    assert "the loss at step 1 is 0.25 higher than at the start." in Page(report(out)).source
