"""Every recipe loads, says how it is run and what it needs, and its globs mean what its comment says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from anymix import config

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
DRAWING = [path for path in RECIPES if path.stem.startswith(("sd15", "sdxl", "sd3", "starter_sdxl"))]
TALKING = [path for path in RECIPES if path not in DRAWING]
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


@pytest.mark.parametrize("recipe", DRAWING, ids=lambda path: path.stem)
def test_what_a_user_would_change_is_explained_where_it_stands(recipe):
    keys = ("path", "resolution", "caption", "rank", "alpha", "class_prompt", "steps", "epochs", "batch", "save_every")
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith(tuple(f"{key}:" for key in keys)):
            assert "  # " in line, line


@pytest.mark.parametrize("recipe", DRAWING, ids=lambda path: path.stem)
def test_the_pictures_its_steps_come_to_are_those_it_says(recipe):
    run = config.load(recipe)
    said = re.search(r"optimizer steps: ([\d,]+) pictures in all", recipe.read_text(encoding="utf-8"))
    if said:
        assert int(said[1].replace(",", "")) == run.train.steps * run.train.batch * run.train.accumulate * run.nproc


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


def test_the_full_recipe_of_qwen2vl_trains_the_language_model_on_32_rows_a_step():
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 16,
    }
    vision = {"depth": 1, "embed_dim": 8, "num_heads": 1, "hidden_size": 8}
    with torch.device("meta"):
        net = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))
    recipe = ROOT / "recipes" / "qwen2vl_2b_full.yaml"
    assert _trained(net, recipe) == {n for n, _ in net.named_parameters() if not n.startswith("model.visual.")}
    run = config.load(recipe)
    assert run.nproc * run.train.batch * run.train.accumulate == 32


@pytest.mark.parametrize(
    ("stem", "trained", "rows"),
    [
        ("llava16_7b_stage1", ("model.multi_modal_projector.",), 256),
        ("llava16_7b_full", ("model.", "lm_head."), 128),
        ("llava16_7b_lora", ("model.multi_modal_projector.",), 128),
    ],
)
def test_llavas_recipes_train_what_they_say(stem, trained, rows, tmp_path):
    """Beside the adapter, where there is one: the whole net but for what no loss reaches, or the projector."""
    from fnmatch import fnmatchcase

    from anymix import families
    from anymix.adapters import lora
    from anymix.train import freezing, optim
    from tiny_llava import tiny_llava

    run = config.load(ROOT / "recipes" / f"{stem}.yaml")
    assert run.nproc * run.train.batch * run.train.accumulate == rows
    family = families.open_folder(tiny_llava(tmp_path / "m"), **({"template": t} if (t := run.model.template) else {}))
    net, names = family.net, {name for name, _ in family.net.named_parameters()}
    if run.adapter is not None:
        lora.attach(net, run.adapter, family.lora_targets)
    freezing.apply(net, run.train.freeze, run.train.unfreeze, family.idle)
    wanted = {n for n in names if n.startswith(trained) and not any(fnmatchcase(n, glob) for glob in family.idle)}
    assert {n for n, p in net.named_parameters() if p.requires_grad and ".lora_" not in n} == wanted
    rates = {name: group["lr"] for group in optim.groups(net, run.train) for name in group["names"]}
    if stem != "llava16_7b_stage1":
        slow, rate = next(iter(run.train.lr_by.items()))
        assert slow == ("model.vision_tower.*" if stem == "llava16_7b_full" else "model.multi_modal_projector.*")
        assert {r for name, r in rates.items() if fnmatchcase(name, slow)} == {rate} and rate < run.train.lr
    assert {rate for name, rate in rates.items() if "language_model" in name} <= {run.train.lr}


@pytest.mark.parametrize("stem", ["internvl2_8b_lora", "internvl2_lora", "llava16_7b_lora", "qwen2vl_7b_lora"])
def test_the_lora_recipes_hold_rows_out(stem):
    run = config.load(ROOT / "recipes" / f"{stem}.yaml")
    assert run.adapter is not None and run.adapter.parts is None  # the usual ones: the language model
    assert run.data.val == 0.1


@pytest.mark.parametrize("recipe", TALKING, ids=lambda path: path.stem)
def test_the_first_lines_command_runs(recipe, tmp_path, monkeypatch):
    """Word for word, from ANYMIX_MODELS, but for what a tiny random model on two cores asks: one step of two rows."""
    from anymix.cli import app
    from drawn import rows
    from families.tiny_qwen import tiny_qwen2vl
    from tiny import tiny_internvl2
    from tiny_llava import tiny_llava

    run = config.load(recipe)
    if recipe.stem.startswith("llava16"):
        tiny_llava(tmp_path / "nas" / run.model.path)
    else:
        tiny = tiny_qwen2vl if recipe.stem.startswith("qwen2vl") else tiny_internvl2
        tiny(tmp_path / "nas" / run.model.path, layers=1, vision_layers=1)
    monkeypatch.setenv("ANYMIX_MODELS", str(tmp_path / "nas"))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(recipe.read_text(encoding="utf-8").splitlines()[0].removeprefix("# anymix "))
    data = next(word for word in words if word.startswith("data.path="))
    rows(tmp_path / "rows", 3 if run.model.template == "plain" else 4).rename(tmp_path / "rows" / "rows.jsonl")
    less = ["device=cpu", "nproc=1", "train.steps=1", "train.accumulate=2", "data.workers=0", "data.root=rows"]
    typed = [words[0], str(recipe), *(w for w in words[2:] if w != data), "data.path=rows/rows.jsonl", *less]
    assert not app(typed, standalone_mode=False)
    kept = "adapter_model.safetensors" if run.adapter else "model.safetensors"
    assert (tmp_path / run.train.out / kept).exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", DRAWING, ids=lambda path: path.stem)
def test_the_first_lines_command_of_a_model_that_draws_runs(recipe, tmp_path, monkeypatch):
    """Word for word, from ANYMIX_MODELS, but for sizes, steps and the number of class pictures."""
    from anymix.cli import app

    run = config.load(recipe)
    monkeypatch.chdir(tmp_path)
    if not run.model.path.startswith("starter:"):
        _tiny_models(run, recipe.stem, tmp_path / "nas")
        monkeypatch.setenv("ANYMIX_MODELS", str(tmp_path / "nas"))
    words = shlex.split(recipe.read_text(encoding="utf-8").splitlines()[0].removeprefix("# anymix "))
    _album(next(tmp_path / word.removeprefix("data.path=") for word in words if word.startswith("data.path=")))
    less = ["device=cpu", "nproc=1", "train.steps=1", "train.accumulate=1", "train.batch=2", "data.workers=0",
            "data.resolution=32", "data.bucket_step=8", "previews.steps=1", "previews.count=1", "model.dtype=fp32",
            "cache.path=cache"]  # fmt: skip
    less += ["dreambooth.class_images=2"] if run.dreambooth else []
    assert not app([words[0], str(recipe), *words[2:], *less], standalone_mode=False)
    kept = "pytorch_lora_weights.safetensors" if run.adapter else "model_index.json"
    assert (tmp_path / run.train.out / kept).exists()
    assert bool(list((tmp_path / run.train.out).glob("previews/*/sheet.png"))) == bool(run.previews.prompts)


def _tiny_models(run, stem, nas):
    """What a recipe names, tiny and random: the pipeline, and the VAE of another seed."""
    from families import tiny_pictures

    make = {"sd15": tiny_pictures.tiny_sd15, "sdxl": tiny_pictures.tiny_sdxl, "sd3": tiny_pictures.tiny_sd3}
    kind = stem.partition("_")[0]
    make[kind](nas / run.model.path)
    if run.model.vae:
        (make[kind](nas.parent / "other", seed=1) / "vae").rename(_made(nas / run.model.vae))


def _made(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _album(folder):
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32 + 8 * number, 40), (80 * number, 40, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture number {number}")
