"""What files say of themselves: to kohya's scripts and web UIs (ss_*), to ModelSpec readers, to us."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from anymix.adapters import details, files, formats
from anymix.adapters.details import Details
from anymix.config import Run
from drawing_nets import trained


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(content, "PNG")
    return content.getvalue()


def test_all_that_is_known_is_said(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    about = Details(
        title="pink fox", triggers=["sks", "pink"], tags={"fox": {"sks": 12, "forest": 3}}, resolution=(768, 512),
        prediction="v", description="a fox", author="me", preview=png(), steps=100, epochs=2.5, images=12,
        learning_rate=1e-4, optimizer="adamw", seed=7, more={"codec": "{}"},
    )  # fmt: skip
    formats.write(trained("sdxl"), tmp_path / "a.safetensors", "kohya", tmp_path / "base", about)
    found = header(tmp_path / "a.safetensors")
    expected = {
        "ss_base_model_version": "sdxl_base_v1-0", "ss_network_module": "networks.lora", "ss_network_dim": "3",
        "ss_network_alpha": "7.5", "ss_output_name": "pink fox", "ss_sd_model_name": "base", "ss_v2": "False",
        "ss_resolution": "(768, 512)", "ss_steps": "100", "ss_num_epochs": "2.5", "ss_num_train_images": "12",
        "ss_learning_rate": "0.0001", "ss_optimizer": "adamw", "ss_seed": "7", "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "modelspec.title": "pink fox",
        "modelspec.resolution": "768x512", "modelspec.trigger_phrase": "sks, pink", "modelspec.prediction_type": "v",
        "modelspec.description": "a fox", "modelspec.author": "me", "base_model": str(tmp_path / "base"), "codec": "{}",
        "rank": "3", "alpha": "7.5", "format": "pt",
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert json.loads(found["ss_tag_frequency"]) == {"fox": {"sks": 12, "forest": 3}}
    assert base64.b64decode(found["modelspec.thumbnail"].removeprefix("data:image/png;base64,")) == png()
    assert found[files.FINGERPRINT] == found["ss_sd_model_hash"] == files.fingerprint(tmp_path / "base")


@pytest.mark.parametrize(
    ("family", "kind", "version", "architecture", "module"),
    [
        ("sd1", "lora", "sd_v1", "stable-diffusion-v1/lora", "networks.lora"),
        ("sd2", "lora", "sd_v2", "stable-diffusion-v2-512/lora", "networks.lora"),
        ("sd3", "lora", "sd3", "stable-diffusion-3-medium/lora", "networks.lora_sd3"),
        ("sd1", "lokr", "sd_v1", "stable-diffusion-v1/lora", "lycoris.kohya"),
    ],
)
def test_the_model_a_file_is_for(
    family: str, kind: str, version: str, architecture: str, module: str, tmp_path: Path
) -> None:
    formats.write(trained(family, kind=kind), tmp_path / "a.safetensors", "comfyui")
    found = header(tmp_path / "a.safetensors")
    assert (found["ss_base_model_version"], found["modelspec.architecture"]) == (version, architecture)
    assert found["ss_network_module"] == module
    assert ("modelspec.prediction_type" in found) is (family != "sd3")
    assert not {"modelspec.thumbnail", "ss_tag_frequency", "ss_steps", "ss_sd_model_name"} & found.keys()


def test_a_linear_projection_alone_is_not_stable_diffusion_2() -> None:
    """Of SD 1.5 with linear projections too; what tells them apart is whose CLIP reads the prompt."""
    from anymix.adapters import names
    from anymix.families import open_folder

    assert names.family_of(open_folder("starter:sd15", "cpu", None).net) == "sd1"


def test_the_hash_is_that_of_the_tensors(tmp_path: Path) -> None:
    """Of all that follows the header: the same whatever the header says, so that a renamed file is known again."""
    made = trained("sd1")
    for title in ("one", "two"):
        formats.write(made, tmp_path / f"{title}.safetensors", "kohya", about=Details(title=title))
        content = (tmp_path / f"{title}.safetensors").read_bytes()
        tail = content[8 + int.from_bytes(content[:8], "little") :]
        assert (
            header(tmp_path / f"{title}.safetensors")["modelspec.hash_sha256"]
            == f"0x{hashlib.sha256(tail).hexdigest()}"
        )


def test_a_checkpoint_file_is_known_by_eight_digits(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(400_000, dtype=torch.float32)}, path)
    content = path.read_bytes()
    assert details.model_hash(path) == hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    formats.write(trained("sd1"), tmp_path / "a.safetensors", "kohya", path)
    found = header(tmp_path / "a.safetensors")
    assert found["ss_sd_model_hash"] == details.model_hash(path) and found["base_model"] == str(path)
    assert found[files.FINGERPRINT] == files.fingerprint(path)


def test_a_pipeline_is_known_by_all_of_its_parts(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    prints = set()
    for value in (1.0, 2.0):
        (tmp_path / "unet").mkdir(exist_ok=True)
        save_file({"weight": torch.full((3,), value)}, tmp_path / "unet" / "model.safetensors")
        prints.add(files.fingerprint(tmp_path))
    assert len(prints) == 2


def test_from_a_recipe() -> None:
    run = Run.model_validate({
        "train": {"out": "runs/fox", "lr": 2e-4, "seed": 3}, "data": {"caption": "a sks fox", "resolution": 512},
        "objective": {"prediction": "v"},
    })  # fmt: skip
    about = details.of_run(run, steps=50, tags={"fox": details.count_tags(["sks, red", "sks", "red , sks"])})
    assert (about.title, about.triggers, about.resolution) == ("fox", ["a sks fox"], (512, 512))
    assert (about.prediction, about.learning_rate, about.seed, about.steps) == ("v", 2e-4, 3, 50)
    assert about.tags == {"fox": {"sks": 3, "red": 2}}


def test_a_preview_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    assert details.data_url(tmp_path / "a.png").startswith("data:image/png;base64,")
    with pytest.raises(ValueError, match="PNG, JPEG or WebP"):
        details.data_url(b"GIF89a")


def test_families_are_told_by_what_files_say() -> None:
    for entries, label in (
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "sd_v1"}, "Stable Diffusion 1.5"),
        ({"ss_base_model_version": "sd_v2_v"}, "Stable Diffusion 2"),
        ({"ss_base_model_version": "sd3-5-medium"}, "SD3"),
        ({"modelspec.architecture": "Flux.1-dev/lora"}, "FLUX"),
        ({"modelspec.architecture": "stable-diffusion-3.5-large/lora"}, "SD3"),
        ({}, None),
    ):
        assert details.family_in(entries, {}) == label
    assert details.family_in({}, {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}) == "FLUX"
    assert details.family_in({}, {"model.language_model.layers.0.q_proj.lora_A.weight": (4, 64)}) == "a language model"
