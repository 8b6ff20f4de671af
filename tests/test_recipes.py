"""Every recipe loads, says how it is run and what it needs, and its globs mean what its comment says."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from anymix import config

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PROJECTOR = "model.multi_modal_projector."
VISION = "model.vision_tower."


@pytest.fixture(scope="module")
def net():
    """An InternVL2 with every parameter name of the real ones and no weights."""
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tiny, "model_type": "llama", "vocab_size": 16, "num_key_value_heads": 1}
    vision = {**tiny, "image_size": 28, "patch_size": 14}
    with torch.device("meta"):
        return InternVLForConditionalGeneration(
            InternVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        )


def _trained(net, recipe):
    from anymix.train import freezing

    run = config.load(recipe)
    net.requires_grad_(True)
    freezing.apply(net, run.train.freeze, run.train.unfreeze)
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_first_lines_say_the_command_and_the_need(recipe):
    command, need = recipe.read_text(encoding="utf-8").splitlines()[:2]
    words = shlex.split(command.removeprefix("# "))
    assert words[:3] == ["anymix", "train", f"recipes/{recipe.name}"]
    assert need.startswith("# Needs: ")
    run = config.load(recipe, words[3:])
    assert run.model.path and run.data.path
    assert run.train.out == f"runs/{recipe.stem}"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_its_rate_and_its_seed(recipe):
    run = config.load(recipe)
    assert "seed" in run.train.model_fields_set and "lr" in run.train.model_fields_set


def test_the_full_recipe_trains_all_but_the_vision_tower(net):
    trained = _trained(net, ROOT / "recipes" / "internvl2_2b_full.yaml")
    assert trained == {name for name, _ in net.named_parameters() if not name.startswith(VISION)}


def test_the_full_recipe_takes_128_rows_a_step():
    run = config.load(ROOT / "recipes" / "internvl2_2b_full.yaml")
    assert run.nproc * run.train.batch * run.train.accumulate == 128


def test_stage_1_trains_the_projector_alone(net):
    trained = _trained(net, ROOT / "recipes" / "internvl2_stage1.yaml")
    assert trained == {name for name, _ in net.named_parameters() if name.startswith(PROJECTOR)}
    assert trained


@pytest.mark.parametrize("stem", ["internvl2_8b_lora", "internvl2_lora"])
def test_the_lora_recipes_hold_rows_out(stem):
    run = config.load(ROOT / "recipes" / f"{stem}.yaml")
    assert run.adapter is not None and run.adapter.parts is None  # the usual ones: the language model
    assert run.data.val == 0.1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_first_lines_command_runs(recipe, tmp_path, monkeypatch):
    """Word for word, from ANYMIX_MODELS, but for what a tiny random model on two cores asks: one step of two rows."""
    from anymix.cli import app
    from drawn import rows
    from tiny import tiny_internvl2

    run = config.load(recipe)
    tiny_internvl2(tmp_path / "nas" / run.model.path, layers=1, vision_layers=1)
    monkeypatch.setenv("ANYMIX_MODELS", str(tmp_path / "nas"))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(recipe.read_text(encoding="utf-8").splitlines()[0].removeprefix("# anymix "))
    data = next(word for word in words if word.startswith("data.path="))
    rows(tmp_path / "rows", 4).rename(tmp_path / "rows" / "rows.jsonl")
    less = ["device=cpu", "nproc=1", "train.steps=1", "train.accumulate=2", "data.workers=0", "data.root=rows"]
    typed = [words[0], str(recipe), *(w for w in words[2:] if w != data), "data.path=rows/rows.jsonl", *less]
    assert not app(typed, standalone_mode=False)
    kept = "adapter_model.safetensors" if run.adapter else "model.safetensors"
    assert (tmp_path / run.train.out / kept).exists()
