"""docs/from_paddlemix.md, block by block: the commands as they stand there, on small models and drawn data.

Models lie in ANYMIX_MODELS under the names of the page, data where the commands look for it. What is too much for two
cores is cut down by `--set`: steps, sizes, previews.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from anymix.cli import app
from anymix.paddlemix import FINDINGS, scripts
from drawn import rows
from paddlemix_table import PAGE, findings, page

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "from_paddlemix.md").read_text(encoding="utf-8")
SMALL = ["train.steps=1", "data.resolution=64", "data.bucket_step=8", "previews.steps=1", "previews.count=1",
         "previews.checks=false", "cache.path=cache", "device=cpu"]  # fmt: skip


def commands(heading: str) -> list[list[str]]:
    """The commands under a heading, as words; variables as the page exports them."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").strip().splitlines()
    said = {}
    found = []
    for line in lines:
        if line.startswith("export "):
            said.update([shlex.split(line)[1].split("=", 1)])
        else:
            found.append(shlex.split(string.Template(line).substitute(said)))
    assert found and all(words[0] == "anymix" for words in found)
    return [words[1:] for words in found]


def run(words: list[str], *sets: str) -> None:
    assert not app([*words, *(f"--set={key}" for key in sets)], standalone_mode=False), words


def same_by_recipe(words: list[str], *sets: str, out: str, weights: str) -> None:
    """The recipe that a command writes gives, to the bit, the weights that the command gave."""
    run([*words, "--write", "again.yaml"], *sets, "train.out=again")
    assert not app(["train", "again.yaml"], standalone_mode=False)
    first, second = load_file(f"{out}/{weights}"), load_file(f"again/{weights}")
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    shutil.rmtree("again")
    Path("again.yaml").unlink()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """An empty folder to type in, with a folder of models; `place(starter, id)` puts one there."""
    import anymix.starter

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYMIX_MODELS", str(tmp_path / "models"))
    for variable in ("GPUS", "BATCH_SIZE", "PER_DEVICE_BATCH_SIZE"):
        monkeypatch.delenv(variable, raising=False)

    def place(starter: str, name: str) -> Path:
        shelf = Path(anymix.starter.__file__).parent / "models" / starter
        return Path(shutil.copytree(shelf, tmp_path / "models" / name))

    return place


Place = Callable[[str, str], Path]


def changed(folder: Path, tensor: str) -> None:
    """Weights of another model: one tensor moved."""
    (file,) = folder.glob("*.safetensors")
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    tensors[tensor] += 0.05
    save_file(tensors, file, {"format": "pt"})


def film(path: Path) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for n in range(8):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (30 * n, 20, 20)))
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def test_the_tables_of_the_pages_are_those_of_the_package() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
    assert TEXT.endswith(findings())
    chinese = (ROOT / "docs" / "zh" / "from_paddlemix.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| F(\d+) \|", chinese, re.MULTILINE) == [str(number) for number in FINDINGS]


def test_every_key_a_flag_names_is_a_key_of_a_recipe() -> None:
    from anymix import config

    known = {row[0] for row in config.keys()} | {"train.checkpointing"}
    sections = "|".join({key.partition(".")[0] for key in known if "." in key})
    flags = [flag for script in scripts().values() for flag in script.listed.values()]
    named = {key for flag in flags for key in re.findall(rf"\b(?:{sections})\.[a-z_0-9]+", f"{flag.to} {flag.sets}")}
    assert len(named) > 40 and named <= known, named - known


@pytest.mark.slow
def test_the_page_on_installing(capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = commands("2 Installing")
    app(words, standalone_mode=False)
    assert "torch" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_on_internvl2_asked_trained_and_asked_again(
    house: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house("internvl2", "OpenGVLab/InternVL2-2B")
    meta = Path("paddlemix/examples/internvl2/shell/data/internvl_1_2_finetune.json")
    root, annotation = "playground/data/chartqa/", "playground/opensource/chartqa_train_18k.jsonl"
    rows(tmp_path / root, 8)
    Path(annotation).parent.mkdir(parents=True)
    shutil.move(Path(root) / "rows.jsonl", annotation)
    meta.parent.mkdir(parents=True)
    entry = {"root": root, "annotation": annotation, "data_augment": False, "repeat_time": 1, "length": 8}
    meta.write_text(json.dumps({"chartqa_train_18k": entry}))
    Path("paddlemix/demo_images").mkdir()
    shutil.copy(Path(root) / "0.png", "paddlemix/demo_images/examples_image1.jpg")
    film(Path("paddlemix/demo_images/red-panda.mp4"))
    check, train = commands("3.1 Fine-tuning InternVL2")
    run(check)
    less = ["train.steps=2", "train.accumulate=2", "model.image_size=null", "device=cpu"]  # tiles as small as the model
    run(train, *less)
    same_by_recipe(train, *less, out="work_dirs/internvl2-2B", weights="model.safetensors")
    before, after, of_a_film = commands("3.2 Asking InternVL2")
    capsys.readouterr()
    answers = []
    for words in (before, after, of_a_film):
        run([*words, "--device", "cpu"])
        said = capsys.readouterr()
        answers.append(said.out.strip())
        assert "F20" in said.err
    # the small model has no words for the film: it ends its answer at once
    assert answers[0] and answers[1] and "work_dirs/internvl2-2B: internvl2 on cpu" in said.err
    weights = load_file("work_dirs/internvl2-2B/model.safetensors")
    opened = load_file(tmp_path / "models/OpenGVLab/InternVL2-2B/model.safetensors")
    moved = {name for name in weights if not weights[name].equal(opened[name])}
    assert moved and not [name for name in moved if "vision" in name]


@pytest.mark.slow
def test_the_page_on_sdxl_full_lora_and_drawn_with_both(
    house: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = house("sdxl", "stabilityai/stable-diffusion-xl-base-1.0")
    vae = shutil.copytree(base / "vae", tmp_path / "models/madebyollin/sdxl-vae-fp16-fix")
    changed(Path(vae), "decoder.conv_out.bias")
    parquet(Path("lambdalabs/naruto-blip-captions/data/train-00000-of-00001.parquet"))
    full, lora = commands("4.1 Training SDXL")
    run(full, *SMALL)
    said = capsys.readouterr().err
    assert all(f"  F{number}: " in said for number in (1, 2, 3, 4, 15, 16)) and "F13" not in said
    assert "wandb" in json.loads(Path("sdxl-pokemon-model/run.json").read_text())["run"]["train"]["trackers"]
    assert list(Path("sdxl-pokemon-model/wandb").glob("offline-run-*/*.wandb"))
    run(lora, *SMALL)
    same_by_recipe(full, *SMALL, out="sdxl-pokemon-model", weights="unet/diffusion_pytorch_model.safetensors")
    same_by_recipe(lora, *SMALL, out="sd-pokemon-model-lora-sdxl", weights="pytorch_lora_weights.safetensors")
    capsys.readouterr()
    for words in commands("4.2 Drawing"):
        run([*words, "--device", "cpu"])
        assert Image.open(words[-1]).getextrema() != ((0, 0),) * 3
    hashes = re.findall(r"unet +([0-9a-f]{16})", capsys.readouterr().err)
    assert len(set(hashes)) == 2


def parquet(path: Path) -> None:
    """Four drawn pictures and their captions as hubs keep them."""
    import random

    import datasets

    from anymix.starter import drawn

    path.parent.mkdir(parents=True)
    entries: list[dict[str, Any]] = [
        {"image": drawn.paint(wish, random.Random(n)), "text": drawn.caption(wish)}
        for n, wish in enumerate(drawn.sheet(4, 3))
    ]
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_list(entries, features=kinds).to_parquet(os.fspath(path))


LINKED = "The pages it links"


@pytest.mark.slow
def test_the_linked_page_on_sd3_trained_and_drawn(
    house: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house("sd3", "stabilityai/stable-diffusion-3-medium-diffusers")
    Path("dog").mkdir()
    for number in range(3):
        Image.new("RGB", (80, 64 + 8 * number), (90, 60 * number, 30)).save(f"dog/{number}.jpg")
    train, draw = commands(LINKED)[:2]
    run(train, *SMALL)
    assert Path("trained-sd3-lora/pytorch_lora_weights.safetensors").exists()
    run([{"512": "64", "50": "2"}.get(word, word) for word in draw])
    assert Image.open("text_to_image_generation-stable_diffusion_3-result.png").size == (64, 64)
    capsys.readouterr()
    run(["generate", "trained-sd3-lora", "a photo of sks dog", "--steps=2", "--device=cpu", "-o", "dog.png"])
    assert "sd3 on cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_the_linked_page_on_llava_trained_merged_and_asked(
    house: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house("llava_next", "liuhaotian/llava-v1.6-vicuna-7b")
    rows(tmp_path / "cards", 8)
    pairs = [json.loads(line) for line in Path("cards/rows.jsonl").read_text().splitlines()]
    listed = [
        {"image": f"cards/{row['image']}", "conversations": [[turn["value"] for turn in row["conversations"]]]}
        for row in pairs
        if "image" in row
    ]
    for name in ("train.json", "val.json"):
        Path(name).write_text(json.dumps(listed))
    Path("chat_template.json").write_text('{"conversation": []}')
    Path("paddlemix/demo_images").mkdir(parents=True)
    shutil.copy("cards/0.png", "paddlemix/demo_images/examples_image1.jpg")
    train, merge, ask = commands(LINKED)[2:]
    argument = Path(train[-1])
    argument.parent.mkdir(parents=True)
    argument.write_text(json.dumps(LLAVA))
    run(train, "train.steps=2", "device=cpu")
    assert "is liuhaotian/llava-v1.6-vicuna-7b" in capsys.readouterr().err
    assert Path("checkpoints/llava_sft_ckpts/adapter_model.safetensors").exists()
    run(merge)
    monkeypatch.setattr("sys.stdin", io.StringIO("What colour is the card?\n"))
    run([*ask, "--device", "cpu"])
    said = capsys.readouterr()
    assert said.out.rstrip().splitlines()[-1] and "llava_merge: llava_next on cpu, float16" in said.err


# paddlemix/config/llava/v1_6/lora_sft_argument.json at commit 6afaf05, its keys and values
LLAVA = {
    "model_name_or_path": "paddlemix/llava/llava-v1.6-vicuna-7b",
    "dataset": {
        part: [{"name": "chatml_dataset", "data_files": file, "chat_template": "chat_template.json"}]
        for part, file in (("train", "train.json"), ("eval", "val.json"))
    },
    "mixtoken": False, "output_dir": "./checkpoints/llava_sft_ckpts", "overwrite_output_dir": True, "recompute": True,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "per_device_eval_batch_size": 1,
    "eval_accumulation_steps": 16, "num_train_epochs": 1, "learning_rate": 2e-04, "mm_projector_lr": 2e-5,
    "weight_decay": 0.0, "warmup_ratio": 0.03, "lr_scheduler_type": "cosine", "logging_steps": 1, "save_steps": 100,
    "evaluation_strategy": "epoch", "save_strategy": "epoch", "max_length": 2048, "bf16": False, "fp16_opt_level": "O1",
    "do_train": True, "do_eval": False, "disable_tqdm": True, "load_best_model_at_end": False,
    "eval_with_do_generation": False, "skip_memory_metrics": False, "benchmark": False, "save_total_limit": 1,
    "lora": True, "lora_rank": 128, "lora_alpha": 256, "lora_dropout": 0.0,
    "lora_target_modules": [
        f"llama.layer.*{name}_proj.*" for name in ("q", "k", "v", "gate", "up", "down", "o")
    ],
}  # fmt: skip
