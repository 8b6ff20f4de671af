"""The scripts that no page block runs, typed and trained on small models: what they wrote draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

import anymix.starter
from anymix.cli import app

SD15 = ["--pretrained_model_name_or_path=starter:sd15", "--train_data_dir=pictures", "--resolution=64",
        "--train_batch_size=2", "--max_train_steps=2", "--lr_warmup_steps=0", "--learning_rate=1e-3"]  # fmt: skip
SCRIPTS = {
    "train_text_to_image.py": [*SD15, "--use_ema", "--center_crop", "--snr_gamma=5.0"],
    "train_text_to_image_lora.py": [*SD15, "--train_text_encoder", "--lora_rank=2", "--noise_offset=0.05"],
    "train_dreambooth_sd3.py": [
        "--pretrained_model_name_or_path=starter:sd3", "--instance_data_dir=pictures", "--max_train_steps=1",
        "--instance_prompt=a photo of sks dog", "--with_prior_preservation", "--class_prompt=a photo of a dog",
        "--num_class_images=2", "--resolution=64", "--train_batch_size=1", "--lr_warmup_steps=0",
        "--train_text_encoder",
        "--weighting_scheme=logit_normal",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_trains_and_what_it_wrote_draws(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (70, 66), (80 * number, 90, 30)).save(f"pictures/{number}.png")
        if "dreambooth" not in script:
            Path(f"pictures/{number}.txt").write_text(f"shade {number}")
    sets = ["--set=cache.path=cache", "--set=data.workers=0", "--device=cpu"]
    app(["paddlemix", "python", script, *SCRIPTS[script], "--output_dir=out", *sets], standalone_mode=False)
    assert "finished at step" in capsys.readouterr().out
    app(["generate", "out", "a red circle", "--steps=1", "--device=cpu", "-o", "x.png"], standalone_mode=False)
    assert Image.open("x.png").size == (64, 64)
    assert (len(list(Path("out/class").glob("*.png"))) == 2) == ("dreambooth" in script)


@pytest.mark.slow
def test_llavas_first_stage_trains_the_projector_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (56, 56), (200, 30, 30)).save("a.png")
    row = {"image": "a.png", "conversations": [["<image>\nWhat is it?", "a red card"]]}
    Path("train.json").write_text(json.dumps([row, row]))
    tree = {
        "model_name_or_path": "starter:llava_next", "freeze_include": ["*llama*", "*lm_head*"],
        "freeze_exclude": ["*llama.mm_projector*"], "dataset": {"train": [{"data_files": "train.json"}]},
        "output_dir": "out", "learning_rate": 1e-3, "per_device_train_batch_size": 1, "num_train_epochs": 1,
        "do_train": True, "bf16": True, "device": "cpu",
    }  # fmt: skip
    Path("pretrain.json").write_text(json.dumps(tree))
    app(["paddlemix", "python", "pretrain.py", "pretrain.json"], standalone_mode=False)
    shelf = Path(anymix.starter.__file__).parent / "models" / "llava_next"
    before, after = load_file(shelf / "model.safetensors"), load_file("out/model.safetensors")
    moved = {name for name in after if not after[name].equal(before[name])}
    assert moved and all("multi_modal_projector" in name or "mm_projector" in name for name in moved)
