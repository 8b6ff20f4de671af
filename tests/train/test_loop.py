"""The loop as its users know it: what it learns, writes, keeps, refuses, and how it goes on after a blow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import anymix
from anymix.train import checkpoint

LINE = "import sys, anymix; anymix.train(anymix.load(sys.argv[1], sys.argv[2:]), say=lambda _: None)"


def journal(out: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def weights(run: anymix.Run) -> dict[str, Tensor]:
    return load_file(checkpoint.steps(Path(run.train.out))[-1] / "trained.safetensors")


def quiet(_: str) -> None:
    return None


def train(run: anymix.Run, **options: Any) -> Any:
    return anymix.train(run, say=quiet, **options)


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_overfits_one_batch(recipe: Any) -> None:
    run = recipe("train.steps=30", "train.batch=4", "train.accumulate=1", "data.limit=4", "train.lr=1e-2",
                 "train.schedule=constant", "train.save_every=30")  # fmt: skip
    train(run)
    losses = [line["loss"] for line in journal(run.train.out)]
    assert losses[-1] < losses[0] / 5


def test_the_split_of_a_step_does_not_matter(recipe: Any, tmp_path: Path) -> None:
    """1x4 = 4x1: the usual mean of means is 4.7e-2 apart after three ragged steps."""
    runs = [recipe(f"train.batch={b}", f"train.accumulate={4 // b}", f"train.out={tmp_path / str(b)}") for b in (1, 4)]
    for run in runs:
        train(run)
    one, four = (journal(run.train.out) for run in runs)
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, four, strict=True)) < 1e-6 * one[0]["loss"]
    assert abs(one[0]["grad_norm"] / four[0]["grad_norm"] - 1) < 1e-6
    assert [line["targets"] for line in one] == [line["targets"] for line in four]
    assert apart(weights(runs[0]), weights(runs[1])) < 5e-6


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_are_one_process(recipe: Any, tmp_path: Path) -> None:
    """Two gloo ranks, one of which may meet text only: same losses, same first gradient, same weights."""
    one = recipe(f"train.out={tmp_path / 'one'}")
    train(one)
    recipe_file = tmp_path / "run.json"
    recipe_file.write_text(json.dumps(one.model_dump(mode="json")))
    words = [str(recipe_file), f"train.out={tmp_path / 'two'}", "train.batch=1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = tmp_path / "go.py"
    script.write_text(LINE)
    subprocess.run([*command, str(script), *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    alone, pair = journal(tmp_path / "one"), journal(tmp_path / "two")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(alone, pair, strict=True)) < 1e-6 * alone[0]["loss"]
    assert abs(alone[0]["grad_norm"] / pair[0]["grad_norm"] - 1) < 1e-6
    two = anymix.load(one.model_dump(), [f"train.out={tmp_path / 'two'}"])
    assert apart(weights(one), weights(two)) < 5e-6


@pytest.mark.parametrize("adapter", [None, {"rank": 2, "dropout": 0.5}])
def test_resume_is_bitwise_in_the_middle_of_an_epoch(recipe: Any, tmp_path: Path, adapter: Any) -> None:
    more = {"adapter": adapter} if adapter else {}
    whole = recipe("train.steps=3", "train.batch=1", "train.save_every=1", f"train.out={tmp_path / 'whole'}", **more)
    train(whole)
    cut = recipe("train.steps=3", "train.batch=1", "train.save_every=1", f"train.out={tmp_path / 'cut'}", **more)
    with pytest.raises(_Cut):
        train(cut, show=_cut_after(2))
    assert [p.name for p in checkpoint.steps(tmp_path / "cut")] == ["step-000001"]
    outcome = train(cut)
    assert (outcome.step, outcome.status) == (3, "finished")
    assert apart(weights(whole), weights(cut)) == 0
    kept = [[(line["step"], line["loss"]) for line in journal(run.train.out)] for run in (whole, cut)]
    assert kept[0] == kept[1]


class _Cut(Exception):
    pass


def _cut_after(last: int) -> Any:
    def show(step: int, steps: int, values: Mapping[str, float]) -> None:
        if step == last:
            raise _Cut

    return show


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(recipe: Any, tmp_path: Path) -> None:
    """Killed again and again, most often while writing; it always goes on, and ends where it would have."""
    options = ("train.steps=6", "train.save_every=1", "train.keep=1")
    whole = recipe(*options, f"train.out={tmp_path / 'whole'}")
    train(whole)
    cut = recipe(*options, f"train.out={tmp_path / 'cut'}")
    recipe_file, root = tmp_path / "run.json", tmp_path / "cut" / "checkpoints"
    recipe_file.write_text(json.dumps(cut.model_dump(mode="json")))
    killed = 0
    for wait in (0.0, 0.004, 0.008, 0.016):
        process = subprocess.Popen(
            [sys.executable, "-c", LINE, str(recipe_file)], env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        writing = set(root.glob(".*")) if root.exists() else set()
        while process.poll() is None and not (root.exists() and set(root.glob(".*.tmp")) - writing):
            time.sleep(0.001)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        for folder in checkpoint.steps(tmp_path / "cut"):
            checkpoint.load(folder)
    assert killed >= 2
    train(cut)
    assert apart(weights(whole), weights(cut)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_exits_0(recipe: Any, tmp_path: Path, number: signal.Signals) -> None:
    run = recipe("train.steps=100000", "train.save_every=100000")
    recipe_file = tmp_path / "run.json"
    recipe_file.write_text(json.dumps(run.model_dump(mode="json")))
    process = subprocess.Popen(
        [sys.executable, "-c", LINE, str(recipe_file)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    lines = Path(run.train.out) / "metrics.jsonl"
    while process.poll() is None and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    saved = checkpoint.load(checkpoint.steps(Path(run.train.out))[-1])
    assert saved.progress.step == journal(run.train.out)[-1]["step"]
    assert json.loads((Path(run.train.out) / "run.json").read_text())["status"] == "stopped"


def test_best_weights_are_kept_and_waiting_ends(recipe: Any) -> None:
    """A rate that ruins the model: the second validation is worse, and the output folder holds the first."""
    run = recipe("data.val=0.25", "train.steps=20", "train.val_every=1", "train.patience=1", "train.lr=0.5",
                 "train.schedule=constant", "train.clip=0")  # fmt: skip
    said: list[str] = []
    outcome = anymix.train(run, say=said.append)
    values = [line["val_loss"] for line in journal(run.train.out) if "val_loss" in line]
    assert outcome.status == "early stop" and outcome.step < 20
    assert outcome.best == min(values) and values[-1] > min(values)
    assert not (outcome.out / "best").exists() and (outcome.out / "model.safetensors").exists()
    words = [f"model.path={outcome.out}", f"train.out={outcome.out}-again", "train.lr=1e-30", "train.steps=1"]
    held = train(anymix.load(run.model_dump(), words))
    assert held.best == pytest.approx(outcome.best, rel=1e-5)


def test_a_finished_run_does_nothing_more(recipe: Any) -> None:
    run = recipe("train.steps=1")
    train(run)
    before = (Path(run.train.out) / "model.safetensors").read_bytes()
    assert train(run).step == 1
    assert (Path(run.train.out) / "model.safetensors").read_bytes() == before
    assert len(journal(run.train.out)) == 1


def test_another_recipe_in_the_same_folder_is_refused(recipe: Any) -> None:
    train(recipe("train.steps=1"))
    with pytest.raises(ValueError, match=r"train\.lr = 0\.001, this run has 0\.002; put it back, or start anew"):
        train(recipe("train.steps=2", "train.lr=2e-3"))


def test_an_early_stop_stays_stopped(recipe: Any) -> None:
    run = recipe("data.val=0.25", "train.steps=20", "train.val_every=1", "train.patience=1", "train.lr=0.5",
                 "train.schedule=constant", "train.clip=0")  # fmt: skip
    first = train(run)
    before = (Path(run.train.out) / "model.safetensors").read_bytes()
    again = train(run)
    assert (again.status, again.step, again.best) == ("early stop", first.step, first.best)
    assert (Path(run.train.out) / "model.safetensors").read_bytes() == before


def test_a_checkpoint_put_aside_by_a_kill_is_found(recipe: Any) -> None:
    run = recipe("train.steps=1")
    train(run)
    (newest,) = checkpoint.steps(Path(run.train.out))
    newest.rename(newest.parent / f".{newest.name}.old")
    assert checkpoint.find(Path(run.train.out), "auto") == newest and newest.is_dir()


def test_an_unreadable_checkpoint_is_an_error_not_a_fresh_start(recipe: Any) -> None:
    run = recipe("train.steps=1")
    train(run)
    broken = checkpoint.steps(Path(run.train.out))[-1] / "optimizer.pt"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read .*; delete it to go on from the one before"):
        train(run)


def test_a_bad_loss_names_its_rows_and_leaves_the_weights(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from anymix.families.internvl2 import InternVL2

    honest = InternVL2.loss
    run, before = recipe("train.save_every=1"), None
    for poison, steps in ((1.0, 1), (float("nan"), 2)):
        monkeypatch.setattr(InternVL2, "loss", lambda self, batch, by=poison: honest(self, batch) * by)
        run = recipe("train.save_every=1", f"train.steps={steps}")
        if steps == 1:
            train(run)
            before = weights(run)
    with pytest.raises(ValueError, match=r"the loss is nan on .*rows\.jsonl:\d"):
        train(run)
    assert before is not None and apart(weights(run), before) == 0


def test_checkpointing_lowers_memory(recipe: Any) -> None:
    """Bytes torch's autograd keeps for backward, with and without."""

    def kept(switch: bool) -> int:
        from anymix.device import pick, ranks
        from anymix.train.prepare import prepare

        run = recipe(f"train.checkpointing={str(switch).lower()}")
        ready = prepare(run, pick("cpu"), ranks.Ranks(), quiet)
        codec, seen = ready.family.codec, {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = codec.collate([codec.encode(ready.rows[i]) for i in range(2)])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ready.stepper.step(batch)
        own = {p.untyped_storage().data_ptr() for p in ready.family.net.parameters()}
        return sum(size for pointer, size in seen.items() if pointer not in own)

    assert kept(True) < 0.6 * kept(False)


def test_what_is_wrong_is_found_before_step_1(recipe: Any, tmp_path: Path) -> None:
    for words, sentence in (
        (["model.path=''"], "model.path is not set"),
        (
            ["train.freeze=[model.vison_tower.*]"],
            r"model\.vison_tower\.\* matches no parameter, did you mean model.vision_tower",
        ),
        (["train.freeze=['*']"], "everything is frozen"),
        (["train.lr_by={lm_hed.*: 1e-4}"], r"lr_by: lm_hed\.\* matches no parameter that trains"),
        (["train.optimizer=prodigy.Nope"], "neither adamw, adafactor, sgd nor a class that can be imported"),
        (["device=npu"], "device = npu cannot be used"),
        (["resume=/nowhere"], "no checkpoint there"),
        (["data.max_length=20"], "too long|longer than|more than the 20"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(recipe(*words))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_freezing_and_rates_by_glob(recipe: Any) -> None:
    run = recipe("train.steps=1", "train.freeze=['*']", "train.unfreeze=[model.multi_modal_projector.*, lm_head.*]",
                 "train.lr_by={lm_head.*: 0.01}", "train.weight_decay=0")  # fmt: skip
    train(run)
    names = weights(run).keys()
    assert {name.split(".")[0 if name.startswith("lm") else 1] for name in names} == {
        "lm_head",
        "multi_modal_projector",
    }
    start = anymix.open_family(run.model.path, device="cpu").net
    moved = {name: float((weights(run)[name] - start.get_parameter(name).detach()).abs().max()) for name in names}
    assert moved["lm_head.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["model.multi_modal_projector.linear_1.weight"] == pytest.approx(0.001, rel=1e-3)


def test_skipped_rows_are_counted_and_listed(recipe: Any, cards: Path, tmp_path: Path) -> None:
    lines = cards.read_text().splitlines()
    bad = tmp_path / "rows.jsonl"
    bad.write_text("\n".join([*lines[:4], lines[0].replace("0.png", "gone.png"), "{not json"]))
    settings = [f"data.path={bad}", f"data.root={cards.parent}", "train.steps=1"]
    with pytest.raises(ValueError, match=r"2 of 6 rows cannot be used(.|\n)*rows\.jsonl:5(.|\n)*rows\.jsonl:6"):
        train(recipe(*settings))
    said: list[str] = []
    run = recipe(*settings, "data.on_error=skip")
    anymix.train(run, say=said.append)
    assert any("2 training rows are skipped" in text for text in said)
    listed = json.loads((Path(run.train.out) / "run.json").read_text())["data"]["skipped"]
    assert [key.rpartition("/")[2] for key, _ in listed] == ["rows.jsonl:5", "rows.jsonl:6"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_computes_in_it_and_keeps_fp32_masters(recipe: Any, tmp_path: Path, dtype: str) -> None:
    """Frozen weights in the compute type, what trains in fp32; the first losses agree with fp32's to a percent."""
    exact = recipe("train.lr=1e-4", f"train.out={tmp_path / 'fp32'}")
    half = recipe("train.lr=1e-4", f"model.dtype={dtype}", "train.freeze=[model.vision_tower.*]")
    train(exact)
    train(half)
    pairs = zip(journal(exact.train.out), journal(half.train.out), strict=True)
    assert all(abs(a["loss"] / b["loss"] - 1) < 0.01 for a, b in pairs)
    assert {t.dtype for t in weights(half).values()} == {torch.float32}
    saved = checkpoint.load(checkpoint.steps(Path(half.train.out))[-1])
    assert (saved.progress.scaler is not None) == (dtype == "fp16")
    assert saved.progress.updates == saved.progress.step == 3


def test_an_overflow_in_fp16_skips_the_update_and_the_schedule(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss scale is too large on purpose: the step is counted, the weights and the schedule stay."""
    from anymix.train import prepare

    large = torch.amp.GradScaler("cpu", init_scale=2.0**60, enabled=True)
    monkeypatch.setattr(prepare, "grad_scaler", lambda device, enabled: large)
    run = recipe("model.dtype=fp16", "train.steps=2")
    train(run)
    progress = checkpoint.load(checkpoint.steps(Path(run.train.out))[-1]).progress
    assert (progress.step, progress.updates) == (2, 0)
    start = anymix.open_family(run.model.path, device="cpu").net
    assert apart(weights(run), {n: start.get_parameter(n).detach() for n in weights(run)}) == 0
