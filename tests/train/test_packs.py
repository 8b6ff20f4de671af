"""A run with packing, as its users know it: counted right, resumed bit for bit, the same on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

import anymix
from anymix.train import checkpoint
from anymix.train.dry_run import forecast

LINE = "import sys, anymix; anymix.train(anymix.load(sys.argv[1], sys.argv[2:]), say=lambda _: None)"
BUDGET = ("packing.tokens=220", "train.batch=1")  # the eight rows have 21 to 120 tokens


def journal(out: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def weights(run: anymix.Run) -> dict[str, Tensor]:
    return load_file(checkpoint.steps(Path(run.train.out))[-1] / "trained.safetensors")


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def train(run: anymix.Run, **options: Any) -> list[str]:
    said: list[str] = []
    anymix.train(run, say=said.append, **options)
    return said


class _Cut(Exception):
    pass


def _cut_after(last: int) -> Any:
    def show(step: int, steps: int, values: Mapping[str, float]) -> None:
        if step == last:
            raise _Cut

    return show


def without_steps(run: anymix.Run, *overrides: str) -> anymix.Run:
    return anymix.load(run.model_dump(mode="json"), ["train.steps=null", *overrides])


def test_steps_and_passes_are_counted_in_packs(recipe: Any) -> None:
    run = without_steps(recipe(*BUDGET, "train.accumulate=1"), "train.epochs=2", "train.save_every=1 epoch",
                        "data.val=0.25", "train.val_every=1 epoch")  # fmt: skip
    said = train(run)
    plan = next(line for line in said if "packs of 220 tokens at most" in line)
    lines = [line for line in journal(run.train.out) if "loss" in line]
    packs = int(plan.split("; in ")[1].split()[0])
    assert 1 < packs < 6 and len(lines) == 2 * packs
    assert [line["epoch"] for line in lines] == [(n + 1) / packs for n in range(2 * packs)]
    assert [line["step"] for line in journal(run.train.out) if "val_loss" in line] == [packs, 2 * packs]
    assert [p.name for p in checkpoint.steps(Path(run.train.out))] == [f"step-{n * packs:06d}" for n in (1, 2)]
    targets = [line["targets"] for line in lines]
    assert sum(targets[:packs]) == sum(targets[packs:])  # every row once a pass
    assert all(0 < line["fill"] <= 1 and line["tile_balance"] == 1 for line in lines)
    assert f"{sum(line['fill'] for line in lines[:packs]) / packs:.1%} of the tokens used" in plan
    assert "Share of the token budget used" in (Path(run.train.out) / "report.html").read_text()


def test_a_pass_in_packs_is_a_pass_in_rows(recipe: Any, tmp_path: Path) -> None:
    """One step over all rows, packed or not: same loss, same gradient norm, same weights, same held-out loss."""
    rows = without_steps(recipe("train.batch=1", "train.accumulate=6", "data.val=0.25"), "train.epochs=1")
    packed = without_steps(recipe(*BUDGET, "data.val=0.25", f"train.out={tmp_path / 'packed'}"), "train.epochs=1")
    count = next(n for n in range(1, 7) if _is_one_step(packed, n))
    packed = anymix.load(packed.model_dump(mode="json"), [f"train.accumulate={count}"])
    train(rows)
    train(packed)
    one, other = journal(rows.train.out), journal(packed.train.out)
    assert [set(line) - set(one[n]) for n, line in enumerate(other)] == [{"fill", "tile_balance"}, set()]
    assert other[0]["targets"] == one[0]["targets"] and count < 6
    assert other[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)
    assert other[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-6)
    assert other[1]["val_loss"] == pytest.approx(one[1]["val_loss"], rel=1e-6)
    assert apart(weights(rows), weights(packed)) < 5e-6


def _is_one_step(run: anymix.Run, accumulate: int) -> bool:
    return (
        forecast(anymix.load(run.model_dump(mode="json"), [f"train.accumulate={accumulate}"]), lambda _: None).steps
        == 1
    )


def test_resume_is_bitwise_in_the_middle_of_an_epoch(recipe: Any, tmp_path: Path) -> None:
    settings = (
        *BUDGET,
        "train.accumulate=1",
        "train.steps=5",
        "train.save_every=1",
        "adapter.rank=2",
        "adapter.dropout=0.5",
    )
    whole, cut = (recipe(*settings, f"train.out={tmp_path / name}") for name in ("whole", "cut"))
    train(whole)
    with pytest.raises(_Cut):
        train(cut, show=_cut_after(4))
    assert checkpoint.steps(tmp_path / "cut")[-1].name == "step-000003"
    train(cut)
    assert apart(weights(whole), weights(cut)) == 0
    kept = [[(line["step"], line["loss"], line["fill"]) for line in journal(run.train.out)] for run in (whole, cut)]
    assert kept[0] == kept[1] and len({fill for _, _, fill in kept[0]}) > 1


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_one_of_text_alone_and_one_of_pictures_alone_are_one_process(recipe: Any, tmp_path: Path) -> None:
    """Tiles are what the budget is of: in every step one rank has only text, the other only pictures. The tower and the
    projector train, so each rank has gradients the other lacks: they must neither wait for ever nor differ."""
    cards = recipe().data.path
    folder, lines = Path(cards).parent, Path(cards).read_text().splitlines()
    shown = [line for line in lines if ".png" in line]
    text = [line for line in lines if ".png" not in line]
    assert shown and text
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join([shown[0], text[0]] * 3))
    one = recipe(f"data.path={data}", f"data.root={folder}", "packing.tokens=150", "packing.tiles=2",
                 "data.shuffle=false", "train.batch=1", "train.accumulate=2",
                 f"train.out={tmp_path / 'one'}")  # fmt: skip
    train(one)
    recipe_file, script = tmp_path / "run.json", tmp_path / "go.py"
    recipe_file.write_text(json.dumps(one.model_dump(mode="json")))
    script.write_text(LINE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    words = [str(recipe_file), f"train.out={tmp_path / 'two'}", "train.accumulate=1"]
    subprocess.run([*command, *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    alone, pair = journal(tmp_path / "one"), journal(tmp_path / "two")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(alone, pair, strict=True)) < 1e-6 * alone[0]["loss"]
    assert abs(alone[0]["grad_norm"] / pair[0]["grad_norm"] - 1) < 1e-6
    assert [a["fill"] for a in alone] == [b["fill"] for b in pair]
    assert any(line["tile_balance"] == 0.5 for line in pair)  # all tiles on one of the two
    two = anymix.load(one.model_dump(mode="json"), [f"train.out={tmp_path / 'two'}"])
    assert apart(weights(one), weights(two)) < 5e-6


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["packing=true", "train.batch=2"], "set train.batch=1, and packs of a step by train.accumulate"),
        (
            ["packing.tokens=60", "train.batch=1"],
            r"rows\.jsonl:\d: the row has \d+ tokens, more than the 60 of packing",
        ),
        (
            ["packing.tokens=400", "packing.tiles=1", "train.batch=1"],
            r"rows\.jsonl:\d: the row has \d tiles, more than the 1 of packing\.tiles; .* or lower model\.max_tiles",
        ),
        (["packing.token=60", "train.batch=1"], r"unknown key packing\.token, did you mean packing\.tokens"),
    ],
)
def test_what_cannot_be_packed_is_a_sentence_before_step_1(recipe: Any, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(recipe(*overrides))


@pytest.mark.slow
def test_a_family_that_draws_has_nothing_to_pack(recipe: Any) -> None:
    with pytest.raises(ValueError, match="packing is for rows of text, and sdxl draws pictures; leave packing out"):
        train(recipe("packing=true", "train.batch=1", "model.path=starter:sdxl"))


def test_packing_true_means_its_defaults() -> None:
    run = anymix.load({"packing": True, "data": {"max_length": 77}})
    assert run.packing is not None and (run.packing.tokens, run.packing.tiles) == (None, None)
    assert anymix.load({"packing": False}).packing is None
    assert anymix.load({}).packing is None


def test_another_budget_or_other_sizes_are_told_on_a_resume(recipe: Any, cards: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(cards.read_text())
    settings = (*BUDGET, f"data.path={data}", f"data.root={cards.parent}", "train.steps=1")
    train(recipe(*settings))
    for change, sentence in (
        (["packing.tokens=230"], r"made with packing\.tokens = 220, this run has 230; put it back"),
        (["packing=null"], "made with packing, this run is without it; put it back"),
        (
            ["train.accumulate=3"],
            r"2 packs a step \(accumulate x processes\), this run has 3; set train\.accumulate and",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(recipe(*settings, "train.steps=2", *change))
    data.write_text(cards.read_text().replace("colour", "colour, please,", 1))  # the same rows, one of them longer
    with pytest.raises(ValueError, match="rows of other lengths or tiles, which would share other packs now"):
        train(recipe(*settings, "train.steps=2"))


def test_the_dry_run_takes_the_pack_that_costs_most(recipe: Any) -> None:
    run = recipe("train.batch=1", "train.accumulate=1")
    small, large = (
        forecast(anymix.load(run.model_dump(mode="json"), [f"packing.tokens={tokens}"]), lambda _: None)
        for tokens in (130, 600)
    )
    assert large.steps <= small.steps and large.longest_size == small.longest_size
    assert large.seconds_per_step > 0
