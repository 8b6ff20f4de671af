"""Parts of other folders that an adapter was trained with: found again, on this machine or another."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anymix.adapters import elsewhere


def vae(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    save_file({"conv.weight": torch.full((4,), value)}, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "lora.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"")
    return path


def test_a_relative_path_holds_from_any_folder(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae(tmp_path / "my-vae")
    monkeypatch.chdir(tmp_path)
    header = elsewhere.entries({"vae": "my-vae", "t5_tokens": "77"})
    monkeypatch.chdir("/")
    assert elsewhere.found(adapter, header, {}) == {"vae": str(tmp_path / "my-vae"), "t5_tokens": "77"}
    assert elsewhere.found(adapter, header, {"vae": "else", "unet": None}) == {"vae": "else", "t5_tokens": "77"}


def test_on_another_machine_it_is_found_by_name_and_known_by_its_weights(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    header = elsewhere.entries({"vae": str(vae(tmp_path / "there" / "my-vae"))})
    told = json.loads(header["parts"])["vae"]
    assert told["name"] == "my-vae" and len(told["print"]) == 16
    (tmp_path / "there").rename(tmp_path / "gone")
    lost = (
        f"was trained with the vae my-vae .weights {told['print']}., which is no longer at .*; put that folder beside"
    )
    with pytest.raises(ValueError, match=lost + r" it, or pass vae= .on the command line --vae."):
        elsewhere.found(adapter, header, {})
    for place in (tmp_path / "models" / "my-vae", adapter.parent / "my-vae"):  # the one beside it counts more
        vae(place)
        monkeypatch.setenv("ANYMIX_MODELS", str(tmp_path / "models"))
        options = elsewhere.found(adapter, header, {})
        assert options == {"vae": str(place)}
        elsewhere.compare(adapter, header, options)
    assert not caplog.messages
    with caplog.at_level(logging.WARNING, "anymix"):
        elsewhere.compare(adapter, header, {"vae": str(vae(tmp_path / "other", 2.0))})
    assert "was trained with other weights of vae than those in" in caplog.text


def test_names_on_a_hub_stay_as_they_are(adapter: Path) -> None:
    header = elsewhere.entries({"vae": "someone/sdxl-vae", "tokenizer": "someone/words"})
    assert elsewhere.found(adapter, header, {}) == {"vae": "someone/sdxl-vae", "tokenizer": "someone/words"}


def test_what_talks_has_no_such_parts(adapter: Path) -> None:
    header = elsewhere.entries({"template": "internvl2_5", "max_tiles": 6})
    assert header == {"codec": '{"template": "internvl2_5", "max_tiles": 6}'}
    assert elsewhere.found(adapter, header, {"max_tiles": 2}) == {"template": "internvl2_5", "max_tiles": 2}


def test_text_encoders_of_a_pipeline_are_one_print(tmp_path: Path) -> None:
    for name in ("text_encoder", "text_encoder_2", "vae"):
        vae(tmp_path / "a" / name)
    before = elsewhere.entries({"text_encoders": str(tmp_path / "a"), "vae": str(tmp_path / "a")})["parts"]
    save_file(
        {"conv.weight": torch.zeros(4)}, tmp_path / "a" / "text_encoder_2" / "diffusion_pytorch_model.safetensors"
    )
    after = elsewhere.entries({"text_encoders": str(tmp_path / "a"), "vae": str(tmp_path / "a")})["parts"]
    one, two = json.loads(before), json.loads(after)
    assert one["text_encoders"] != two["text_encoders"] and one["vae"] == two["vae"]
