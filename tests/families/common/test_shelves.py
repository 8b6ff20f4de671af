"""Hub ids found where ModelScope and Hugging Face put their models, and where people copy them to. Only looking."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from anymix.families.common.folders import resolve

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
INTERN = "OpenGVLab/InternVL2-8B"
V25 = "OpenGVLab/InternVL2_5-8B"


def _lay(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("name", "where"),
    [
        # as `modelscope download` has laid them: before 1.9, up to 1.3x, and with its own hub client since
        (SDXL, "hub/AI-ModelScope/stable-diffusion-xl-base-1___0"),
        (SDXL, "hub/models/AI-ModelScope/stable-diffusion-xl-base-1___0"),
        (SDXL, "models/AI-ModelScope/stable-diffusion-xl-base-1___0"),
        (SDXL, "models/AI-ModelScope--stable-diffusion-xl-base-1.0/snapshots/master"),
        (SDXL, "models/stabilityai/stable-diffusion-xl-base-1___0"),
        (INTERN, "hub/models/OpenGVLab/InternVL2-8B"),
        (V25, "hub/models/OpenGVLab/InternVL2_5-8B"),
        ("Qwen/Qwen2-VL-2B-Instruct", "models/Qwen--Qwen2-VL-2B-Instruct/snapshots/v1.0"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "hub/AI-ModelScope/stable-diffusion-v1-5"),
        ("liuhaotian/llava-v1.6-vicuna-7b", "hub/AI-ModelScope/llava-v1___6-vicuna-7b"),
        ("madebyollin/sdxl-vae-fp16-fix", "hub/AI-ModelScope/sdxl-vae-fp16-fix"),
        # a recipe written with ModelScope's name finds what came from the other hub
        ("AI-ModelScope/stable-diffusion-xl-base-1.0", "hub/stabilityai/stable-diffusion-xl-base-1___0"),
    ],
)
def test_an_id_is_found_where_modelscope_lays_it(name: str, where: str, tmp_path: Path) -> None:
    folder = _lay(tmp_path / where)
    assert resolve(name, {"MODELSCOPE_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}) == folder


@pytest.mark.parametrize(
    "where",
    [
        "stabilityai/stable-diffusion-xl-base-1.0",
        "stable-diffusion-xl-base-1.0",
        "AI-ModelScope/stable-diffusion-xl-base-1___0",
        "AI-ModelScope/stable-diffusion-xl-base-1.0",
        "models--stabilityai--stable-diffusion-xl-base-1.0/snapshots/46216598",
        "AI-ModelScope--stable-diffusion-xl-base-1.0/snapshots/master",
    ],
)
def test_a_read_only_shelf_is_looked_through_first_and_never_written_to(where: str, tmp_path: Path) -> None:
    shelf = tmp_path / "nas"
    folder = _lay(shelf / where)
    elsewhere = _lay(tmp_path / "scope" / "hub" / "AI-ModelScope" / "stable-diffusion-xl-base-1___0")
    before = sorted(shelf.rglob("*"))
    for path in (*before, shelf):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o555)
    found = resolve(SDXL, {"ANYMIX_MODELS": str(shelf), "MODELSCOPE_CACHE": str(tmp_path / "scope")})
    for path in (shelf, *before):
        path.chmod(0o755)
    assert found == folder != elsewhere and sorted(shelf.rglob("*")) == before


def test_another_owners_model_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    _lay(tmp_path / "somebody" / "stable-diffusion-xl-base-1.0")
    with pytest.raises(ValueError, match=r"ANYMIX_MODELS"):
        resolve(SDXL, {"ANYMIX_MODELS": str(tmp_path), "HF_HUB_OFFLINE": "1", "MODELSCOPE_CACHE": "/nowhere"})
    _lay(tmp_path / "AI-ModelScope" / "InternVL2-8B")
    with pytest.raises(ValueError, match=r"ANYMIX_MODELS"):
        resolve(INTERN, {"ANYMIX_MODELS": str(tmp_path), "HF_HUB_OFFLINE": "1", "MODELSCOPE_CACHE": "/nowhere"})
