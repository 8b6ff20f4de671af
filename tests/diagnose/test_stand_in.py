"""What stands in for a model or rows that are not here, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import anymix
from anymix.diagnose import stand_in


def filled(tmp_path: Path, **model: Any) -> tuple[anymix.Run, list[str]]:
    data = model.pop("data", {})
    return stand_in.filled(anymix.load({"model": model, "data": data}), tmp_path)


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("OpenGVLab/InternVL2-8B", "internvl2"), ("liuhaotian/llava-v1.6-vicuna-7b", "llava_next"),
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl"), ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", "sd3"), ("runwayml/stable-diffusion-v1-5", "sd15"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_here_is_stood_in_for_by_its_family(tmp_path: Path, name: str, small: str) -> None:
    run, notes = filled(tmp_path, path=name)
    assert run.model.path == f"starter:{small}"
    assert (
        notes[0].startswith(f"{name} is not on this machine: starter:{small}") and "no data.path is given" in notes[1]
    )
    assert Path(str(run.data.path)).exists()


def test_a_name_that_tells_no_family_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its name tells no family; add model.path= one of starter:internvl2, "):
        filled(tmp_path, path="someone/something")


def test_what_is_here_is_left_as_it_is(tmp_path: Path, talk: Path) -> None:
    run, notes = filled(tmp_path, path="starter:internvl2", data={"path": str(talk), "limit": 3})
    assert run.model.path == "starter:internvl2" and run.data.path == str(talk) and not notes
    run, notes = filled(tmp_path, path="starter:internvl2", data={"path": str(talk)})
    assert run.data.limit == stand_in.ROWS and "the first 64 rows" in notes[0]


def test_a_vae_that_is_not_here_is_the_model_s_own(tmp_path: Path, album: Path) -> None:
    run, notes = filled(tmp_path, path="starter:sdxl", vae="someone/vae", data={"path": str(album), "limit": 2})
    assert run.model.vae is None and notes == [
        "model.vae = someone/vae is not on this machine: the model's own is used"
    ]


def test_rows_have_what_the_family_takes(tmp_path: Path) -> None:
    def keys(path: str, **more: Any) -> list[set[str]]:
        run, _ = filled(tmp_path / path.replace(":", ""), path=path, **more)
        return [set(json.loads(line)) for line in Path(str(run.data.path)).read_text().splitlines()]

    assert {"video", "conversations"} in keys("starter:qwen2_vl") and {"conversations"} in keys("starter:internvl2")
    assert {"video", "conversations"} not in keys("starter:llava_next")
    assert all(row == {"image", "conversations"} for row in keys("starter:internvl2", template="plain"))
