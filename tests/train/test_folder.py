"""What may begin in an output folder, and what a resume refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import anymix
from anymix.adapters import lora
from anymix.train import checkpoint, folder, prepare
from anymix.train.dry_run import forecast


def train(run: anymix.Run, said: list[str] | None = None) -> Any:
    return anymix.train(run, say=(said if said is not None else []).append)


def test_starting_anew_sets_the_old_run_aside_whole(recipe: Any) -> None:
    """Neither its best weights, its adapter nor its newer checkpoints may pass for the new run's."""
    old = recipe("train.steps=4", "train.save_every=1", "data.val=0.25", adapter={"rank": 2})
    train(old)
    out = Path(old.train.out)
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    said: list[str] = []
    new = recipe("train.steps=1", "resume=never")
    train(new, said)
    aside = out.with_name("out.old-1")
    assert f"the run that was in {out} is now in {aside}" in said
    assert {p.relative_to(aside): p.read_bytes() for p in aside.rglob("*") if p.is_file()} == before
    assert [p.name for p in checkpoint.steps(out)] == ["step-000001"]
    assert not lora.is_attached(anymix.open_family(out, device="cpu").net)


def test_a_run_that_needs_what_lies_in_its_folder_is_not_started_anew_there(recipe: Any) -> None:
    first = recipe("train.steps=1")
    train(first)
    inside = Path(first.train.out) / "rows.jsonl"
    inside.write_text("")
    with pytest.raises(ValueError, match="which this run needs, lies in it; give another train.out"):
        train(recipe("train.steps=1", "resume=never", f"data.path={inside}"))
    assert checkpoint.steps(Path(first.train.out))


@pytest.mark.parametrize("section", [{"adapter": {"init": "{}"}}, {"dreambooth": {"class_path": "{}"}},
                                     {"previews": {"prompts": "{}"}}, {"model": {"vae": "{}"}}])  # fmt: skip
def test_nothing_a_run_reads_is_set_aside_before_it_is_read(section: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "it").mkdir(parents=True)
    (out / "run.json").write_text(json.dumps({"status": "finished"}))
    ((name, keys),) = section.items()
    asked = {"model": {"path": "m"}, "data": {"path": "d"}, "train": {"out": str(out)}, "resume": "never"}
    asked[name] = {**asked.get(name, {}), **{key: str(out / "it") for key in keys}}
    with pytest.raises(ValueError, match=f"resume=never would set {out} aside, and {out / 'it'}, which this run needs"):
        folder.begin(anymix.load(asked), print)
    assert (out / "it").is_dir()


def test_class_pictures_are_kept_when_a_run_starts_anew(tmp_path: Path) -> None:
    """Drawing a hundred takes longer than many a run, and people put their own there."""
    out = tmp_path / "out"
    said: list[str] = []

    def begin(prompt: str) -> None:
        tree = {"model": {"path": "m"}, "train": {"out": str(out)}, "resume": "never"}
        run = anymix.load({**tree, "dreambooth": {"class_prompt": prompt}})
        folder.begin(run, said.append)
        out.mkdir(exist_ok=True)
        state = {"status": "finished", "run": run.model_dump(mode="json")}
        (out / "run.json").write_text(json.dumps(state))

    begin("a dog")
    (out / "class").mkdir()
    (out / "class" / "own.png").write_text("a dog of ours")
    begin("a dog")
    assert (out / "class" / "own.png").read_text() == "a dog of ours"
    assert said[-1] == f"but for its class pictures, which are those of this run too: {out / 'class'}"
    begin("a cat")  # of another class: they stay with the run they were drawn for
    assert not (out / "class").exists()
    assert (tmp_path / "out.old-2" / "class" / "own.png").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.path=rows/none.jsonl"], "there is no data file rows/none.jsonl"),
        (["data.val=none.jsonl"], "there is no data file none.jsonl"),
        (["data.root=/nowhere"], "data.root = /nowhere is no folder"),
        (["adapter.init=none.safetensors"], "there is no none.safetensors"),
        (["dreambooth.class_path=/dev/null/class"], "dreambooth.class_path = /dev/null/class is no folder"),
        (["train.optimizer=lion.Lyon"], "train.optimizer = lion.Lyon: neither adamw"),
        (["train.trackers=[swanlab]"], "train.trackers names swanlab, which is not installed"),
    ],
)
def test_what_is_cheap_to_tell_is_told_before_anything_is_opened(
    words: list[str], sentence: str, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before an earlier run is set aside."""
    monkeypatch.setitem(sys.modules, "swanlab", None)
    for module, name in ((prepare, "open_model"), (folder, "begin")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it is late"))
    with pytest.raises(ValueError, match=sentence) as told:
        train(recipe(*words))
    assert "\n" not in str(told.value)


def test_models_are_only_read(recipe: Any, model: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in model.rglob("*")}
    for out in (model, model / "runs" / "a"):
        with pytest.raises(ValueError, match="is the folder of model.path or lies in it, and models are only read"):
            train(recipe(f"train.out={out}"))
    assert {p: p.stat().st_mtime_ns for p in model.rglob("*")} == before


def test_a_folder_of_other_things_is_no_place_for_a_run(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "run.json").write_text("precious")
    with pytest.raises(ValueError, match="holds run.json and no run; give a folder of its own"):
        train(recipe(f"train.out={tmp_path / 'scans'}"))
    assert (tmp_path / "scans" / "run.json").read_text() == "precious"


def test_fewer_steps_than_taken_is_a_sentence(recipe: Any) -> None:
    train(recipe("train.steps=2"))
    with pytest.raises(ValueError, match="has taken 2 steps, more than the 1 asked for"):
        train(recipe("train.steps=1"))


def test_a_lora_does_not_go_on_from_a_full_run(recipe: Any) -> None:
    train(recipe("train.steps=1"))
    with pytest.raises(ValueError, match="the checkpoint trained all weights, this run trains a LoRA"):
        train(recipe("train.steps=2", adapter={"rank": 2}))


def test_a_finished_run_without_checkpoints_is_not_trained_over(recipe: Any) -> None:
    import shutil

    run = recipe("train.steps=1")
    train(run)
    shutil.rmtree(Path(run.train.out) / "checkpoints")
    with pytest.raises(ValueError, match="holds a finished run without its checkpoints"):
        train(run)


def test_a_best_of_an_earlier_start_is_not_shipped(recipe: Any) -> None:
    """Cut off before its first checkpoint, with validation; now without."""
    run = recipe("train.steps=1")
    out = Path(run.train.out)
    (out / "best").mkdir(parents=True)
    (out / "best" / "model.safetensors").write_bytes(b"old")
    (out / "run.json").write_text(json.dumps({"status": "running"}))
    train(run)
    assert (out / "model.safetensors").stat().st_size > 1000 and not (out / "best").exists()


def test_a_file_is_no_output_folder(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="is or lies under a file"):
            train(recipe(f"train.out={out}"))


def test_other_rows_a_step_are_refused_and_another_split_is_not(recipe: Any) -> None:
    train(recipe("train.steps=2", "train.save_every=1"))
    with pytest.raises(ValueError, match=r"made with 4 rows a step .*this run has 2; set train"):
        train(recipe("train.steps=4", "train.batch=1"))
    assert train(recipe("train.steps=4", "train.batch=1", "train.accumulate=4")).step == 4


def test_other_data_is_refused(recipe: Any, cards: Path, tmp_path: Path) -> None:
    train(recipe("train.steps=1"))
    fewer = tmp_path / "rows.jsonl"
    fewer.write_text("\n".join(cards.read_text().splitlines()[:6]))
    with pytest.raises(ValueError, match="checkpoint was made on 8 training rows, now there are 6"):
        train(recipe("train.steps=2", f"data.path={fewer}", f"data.root={cards.parent}"))


def test_going_back_on_purpose_keeps_the_newer_under_another_name(recipe: Any) -> None:
    run = recipe("train.steps=3", "train.save_every=1", "train.keep=3")
    train(run)
    root = Path(run.train.out) / "checkpoints"
    train(recipe("train.steps=2", "train.save_every=1", "train.keep=3", f"resume={root / 'step-000001'}"))
    assert sorted(p.name for p in root.iterdir()) == [
        "abandoned-step-000002", "abandoned-step-000003", "step-000001", "step-000002",
    ]  # fmt: skip


def test_python_does_not_pass_over_nproc(recipe: Any) -> None:
    with pytest.raises(ValueError, match="nproc = 2 needs that many processes: use `anymix train`"):
        train(recipe("nproc=2"))


def test_the_forecast_counts_the_steps_of_all_processes(recipe: Any) -> None:
    one, four = (
        forecast(recipe(f"nproc={n}", "train.steps=null", "train.epochs=2", "train.accumulate=1"), say=lambda _: None)
        for n in (1, 4)
    )
    assert (one.steps, four.steps) == (8, 2)


def test_a_validation_loss_that_is_no_number_is_an_error(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from anymix.families.internvl2 import InternVL2

    honest = InternVL2.loss
    spoilt = lambda self, batch: honest(self, batch) * (1.0 if self.net.training else float("nan"))  # noqa: E731
    monkeypatch.setattr(InternVL2, "loss", spoilt)
    with pytest.raises(ValueError, match="the validation loss is nan"):
        train(recipe("data.val=0.25", "train.steps=1"))


@pytest.mark.parametrize("adapter", [None, {"rank": 2}])
def test_the_template_it_was_trained_in_is_the_one_it_opens_with(recipe: Any, adapter: Any) -> None:
    run = recipe("train.steps=1", "model.template=internvl2_5", **({"adapter": adapter} if adapter else {}))
    if adapter:
        run = anymix.load(run.model_dump(), ["train.lr=0.1"])
    train(run)
    assert anymix.open_family(run.train.out, device="cpu").codec.template.name == "internvl2_5"
    assert anymix.open_family(run.model.path, device="cpu").codec.template.name == "internlm2-chat"


def test_a_native_folder_is_trained_into_a_native_folder(recipe: Any, model: Path, tmp_path: Path) -> None:
    anymix.open_family(model, device="cpu").save(tmp_path / "native", "native")
    run = recipe("train.steps=1", f"model.path={tmp_path / 'native'}")
    train(run)
    assert json.loads((Path(run.train.out) / "config.json").read_text())["architectures"] == [
        "InternVLForConditionalGeneration"
    ]
    assert anymix.open_family(run.train.out, device="cpu").layout == "native"


def test_rows_named_twice_in_a_meta_do_not_leak_into_validation(recipe: Any, cards: Path, tmp_path: Path) -> None:
    from anymix.device import pick, ranks
    from anymix.train.prepare import prepare

    entry = {"root": str(cards.parent), "annotation": str(cards), "length": 8}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"a": entry, "b": {**entry, "max_dynamic_patch": 2}}))
    ready = prepare(recipe(f"data.path={meta}", "data.val=0.25"), pick("cpu"), ranks.Ranks(), lambda _: None)
    held = ready.found.held
    assert held is not None
    names = [{rows.key(i) for i in range(len(rows))} for rows in (ready.rows, held)]
    assert names[0].isdisjoint(names[1]) and len(names[0]) + len(names[1]) == 8


def test_other_weights_under_the_same_name_are_refused(recipe: Any, model: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "base")
    train(recipe("train.steps=1", f"model.path={tmp_path / 'base'}"))
    moved = tmp_path / "moved"
    (tmp_path / "base").rename(moved)
    assert train(recipe("train.steps=2", f"model.path={moved}")).step == 2
    trained = Path(recipe().train.out) / "model.safetensors"
    shutil.copyfile(trained, moved / "model.safetensors")
    with pytest.raises(ValueError, match="made from other weights than those model.path names"):
        train(recipe("train.steps=3", f"model.path={moved}"))


def test_a_folder_half_deleted_by_a_kill_does_not_pass_for_a_checkpoint(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the first file it deletes: nothing under a name of ours is missing a file."""
    run = recipe("train.steps=3", "train.save_every=1", "train.keep=1")

    def killed(folder: Path, *args: Any, **more: Any) -> None:
        next((p for p in sorted(folder.rglob("state.json"))), folder / "none").unlink(missing_ok=True)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", killed)
        train(run)
    out = Path(run.train.out)
    assert [checkpoint.load(p).progress.step for p in checkpoint.steps(out)] == [3]
    train(recipe("train.steps=4", "train.save_every=1", "train.keep=1"))
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000004"]


def test_the_best_put_aside_by_a_kill_is_found(recipe: Any) -> None:
    run = recipe("train.steps=2", "train.save_every=1", "data.val=0.25", "train.val_every=1")
    train(run)
    out = Path(run.train.out)
    (out / "checkpoints" / "step-000002").rename(out / "checkpoints" / ".step-000002.tmp")
    (out / ".best.old").mkdir()
    weights = out / "model.safetensors"
    weights.rename(out / ".best.old" / weights.name)
    before = (out / ".best.old" / weights.name).read_bytes()
    train(recipe("train.steps=1", "train.save_every=1", "data.val=0.25", "train.val_every=1"))
    assert weights.read_bytes() == before
    assert not (out / ".best.old").exists()
