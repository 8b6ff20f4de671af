"""The README's commands for models that draw, typed as they stand there, on a tiny SDXL."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
LESS = [
    "device=cpu", "data.resolution=32", "data.bucket_step=8", "dreambooth.class_images=2",
    "train.steps=1", "train.accumulate=1", "data.workers=0", "previews.steps=1", "previews.count=1", "train.lr=0.1",
    "cache.path=cache",
]  # fmt: skip


def commands(readme: str) -> list[str]:
    found = re.search(r"<!-- draw -->\n```bash\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1].strip().splitlines()


def python(readme: str) -> str:
    (found,) = [b.split("```")[0] for b in (ROOT / readme).read_text().split("```python\n") if "open_image" in b]
    return found


def test_both_languages_type_the_same() -> None:
    assert commands("README.md") == commands("README.zh.md")
    assert python("README.md") == python("README.zh.md")


@pytest.mark.slow
def test_the_python_lines_draw_with_parts_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from diffusers import DiffusionPipeline

    from families.tiny_pictures import tiny_sdxl

    monkeypatch.chdir(tmp_path)
    tiny_sdxl(tmp_path / "models" / "sdxl")
    own = DiffusionPipeline.from_pretrained("models/sdxl")
    with torch.no_grad():
        own.unet.conv_in.weight.mul_(2)
        own.vae.decoder.conv_out.weight.mul_(2)
    own.unet.save_pretrained("runs/mine/unet")
    own.vae.save_pretrained("models/sdxl-vae-fp16-fix")
    lines = python("README.md")
    assert "steps=30" in lines
    exec(lines.replace("steps=30", "steps=2"), {})
    assert Image.open("pokemon.png").getextrema() != ((0, 0),) * 3


@pytest.mark.slow
def test_they_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anymix.cli import app
    from families.tiny_pictures import tiny_sdxl

    monkeypatch.chdir(tmp_path)
    tiny_sdxl(tmp_path / "models" / "sdxl")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40 + 8 * number, 36), (70 * number, 120, 30)).save(f"photos/{number}.jpg")
    for line in commands("README.md"):
        words = ["32" if word == "1024" else word for word in shlex.split(line)[1:]]
        words += {"train": LESS, "generate": ["--steps", "1"], "data": ["--bucket-step", "8"]}.get(words[0], [])
        assert not app(words, standalone_mode=False), line
    assert (tmp_path / "mug.png").exists() and (tmp_path / "mug.safetensors").exists()
