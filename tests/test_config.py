"""Recipes: what people mistype, and what they may write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymix import config
from anymix.config import Run, load


def test_a_recipe_with_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text("model: {path: m}\ntrain:\n  lr: 1e-4\n  checkpointing: false\n")
    run = load(recipe, ["train.steps=7", "device=npu:1", "data.path=[a.jsonl, b.jsonl]", "adapter.rank=4"])
    assert (run.train.lr, run.train.steps, run.device.name) == (1e-4, 7, "npu:1")
    assert run.data.path == ["a.jsonl", "b.jsonl"]
    assert run.adapter is not None and run.adapter.rank == 4
    assert not run.train.checkpointing.language and not run.train.checkpointing.vision
    assert load(recipe, ["adapter=true"]).adapter is not None
    assert load(recipe, ["adapter.rank=4", "adapter=false"]).adapter is None


def test_json_and_the_way_back(tmp_path: Path) -> None:
    run = load({"model": {"path": "m"}, "train": {"lr_by": {"lm_head.*": 1e-5}}, "data": {"val": 0.1}})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run.model_dump(mode="json")))
    assert load(path) == run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.learning_rate=1"], r"unknown key train\.learning_rate.*--help-keys"),
        (["train.bacth=2"], r"unknown key train\.bacth, did you mean train\.batch\?"),
        (["lr=1e-4"], r"unknown key lr, did you mean train\.lr\?"),
        (["modle.path=x"], r"unknown key modle, did you mean model"),
        (["train.lr=fast"], r"train\.lr = 'fast': Input should be a valid number"),
        (["train.lr=.inf"], r"train\.lr = inf: Input should be a finite number"),
        (["train.betas=[0.9,1]"], r"train\.betas\.1 = 1: Input should be less than 1"),
        (["train.seed=-1"], r"train\.seed = -1: Input should be greater than or equal to 0"),
        (["train.steps=0"], r"train\.steps = 0: Input should be greater than 0"),
        (["model.dtype=int8"], r"model\.dtype = 'int8'"),
        (["data.val=1.5"], "data.val is a path or a share between 0 and 1, not 1.5"),
        (["train.patience=2"], "train.patience needs data.val"),
        (["train"], "an override reads section.key=value, found 'train'"),
        (["data.keep_tokens=1"], "data.keep_tokens needs data.shuffle_caption=true"),
        (["device.kind=npu"], "unknown key device|device"),
        (["train.lr=[1"], r"the value of train\.lr cannot be read"),
        (["resume="], "resume"),
    ],
)
def test_mistakes_get_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load({"model": {"path": "m"}}, words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {path: [", "is not valid yaml"),
        ("- a\n- b\n", "holds list, expected sections"),
        ("", "holds NoneType"),
    ],
)
def test_broken_files_get_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="no recipe at"):
        load(tmp_path / "b.yaml")


def test_an_override_reaches_into_a_plain_value() -> None:
    with pytest.raises(ValueError, match="reaches into lr, which is a plain value"):
        load({"train": {"lr": 1e-4}}, ["train.lr.peak=1"])


def test_help_names_every_key_with_type_default_and_meaning() -> None:
    rows = list(config.keys())
    names = [name for name, *_ in rows]
    assert len(names) == len(set(names)) > 50
    assert all(kind and default and meaning for _, kind, default, meaning in rows)
    found = {name: (kind, default) for name, kind, default, _ in rows}
    assert found["train.lr"] == ("number", "0.0001")
    assert found["train.schedule"] == ("constant|linear|cosine", '"cosine"')
    assert found["adapter"] == ("section", "null")


def test_a_run_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run().device = "cpu"  # type: ignore[misc]


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text("train: {lr: 1e-4}\n")
    with pytest.raises(ValueError, match="^unknown key train.stepz"):
        load(recipe, ["train.stepz=3"])
    with pytest.raises(ValueError, match="^unknown key trian, did you mean train"):
        load(recipe, ["trian.steps=3"])
    recipe.write_text("train: {lrr: 1e-4}\n")
    with pytest.raises(ValueError, match="a.yaml: unknown key train.lrr"):
        load(recipe)


def test_a_beat_is_steps_or_passes() -> None:
    for value, expected in (("500", 500), ("1 epoch", "1 epoch"), ("0.5 epochs", "0.5 epochs"), ("", None)):
        run = load({}, [f"previews.every={value}", f"train.save_every={value}", f"train.val_every={value}"])
        assert {run.previews.every, run.train.save_every, run.train.val_every} == {expected}
    assert load(load({}, ["previews.every=2 epochs"]).model_dump(mode="json")).previews.every == "2 epochs"


@pytest.mark.parametrize("value", ["2 weeks", "0", "-3", "0 epochs", "1.5", "true", "epoch"])
def test_what_is_no_beat_is_one_sentence(value: str) -> None:
    with pytest.raises(ValueError, match=r"^previews.every = .*: give optimizer steps, such as 500, or passes .*\"$"):
        load({}, [f"previews.every={value}"])


@pytest.mark.parametrize(
    ("recipe", "typed"),
    [
        ({"device": "npu"}, ["device.fused=off"]),
        ({"device": {"fused": False}}, ["device=npu"]),
        ({}, ["device.fused=off", "device=npu"]),
        ({"device": {"name": "cuda", "fused": True}}, ["device.name=npu", "device.fused=false"]),
    ],
)
def test_a_device_is_a_word_or_a_section_in_any_order(recipe: dict[str, Any], typed: list[str], tmp_path: Path) -> None:
    run = load(recipe, typed)
    assert (run.device.name, run.device.fused, run.device.settings) == ("npu", False, {})
    config.dump(run, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == run


def test_settings_of_a_device_are_named_in_its_section() -> None:
    run = load({"device": "npu"}, ["device.settings.TASK_QUEUE_ENABLE=2", "device.settings={ACLNN_CACHE_LIMIT: null}"])
    assert run.device.settings == {"ACLNN_CACHE_LIMIT": None}
    with pytest.raises(ValueError, match=r"unknown key device.fusde, did you mean device.fused\?"):
        load({}, ["device.fusde=off"])
