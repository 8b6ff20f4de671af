"""From a family's own patterns to a file, to other programs' names, to merged weights: the noise predicted is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anymix.adapters import files, kinds, loading, lora, opening, reading, saving
from anymix.adapters.details import Details
from anymix.cli.export import export
from anymix.cli.merge import merge
from anymix.config import Adapter
from anymix.families.sd import codec as sd_codec
from drawing_nets import stir
from families.single_files import configs_of, single_file, without_weights
from families.tiny_pictures import tiny_sd3, tiny_sd15, tiny_sdxl

MADE: dict[str, Callable[[Path], Path]] = {"sd1": tiny_sd15, "sdxl": tiny_sdxl, "sd3": tiny_sd3}


@torch.no_grad()
def answer(family: Any) -> Tensor:
    """What the denoiser predicts for one prompt; it depends on the text encoders too."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(1, family.channels, 16, 16, generator=draw)
    time = torch.tensor([0.5]) if family.denoiser == "transformer" else torch.tensor([500])
    condition = family.condition(["a red fox"], (32, 32))
    return family.predict(latents, time, condition)  # type: ignore[no-any-return]


def trained(base: Path, **adapter: Any) -> Any:
    torch.manual_seed(0)
    family = opening.open_family(base, "cpu")
    lora.attach(family.net, Adapter(rank=2, parts=["denoiser", "text"], **adapter), family.lora_targets)
    saving.check(family)
    stir(family.net, 0.1)
    return family


@pytest.mark.parametrize("name", MADE)
def test_file_export_and_merge_draw_the_same(name: str, tmp_path: Path) -> None:
    base = MADE[name](tmp_path / "base")
    family = trained(base)
    plain, wanted = answer(opening.open_family(base, "cpu")), answer(family)
    assert (wanted - plain).abs().max() > 0.01
    assert any(layer.startswith("text_encoder") for layer in lora.adapted(family.net))
    path = saving.save(family, tmp_path / "out", base)
    export(str(tmp_path / "out"), "kohya", tmp_path / "k.safetensors")
    export(str(tmp_path / "k.safetensors"), "comfyui", tmp_path / "c.safetensors")
    for adapter in (tmp_path / "out", path, tmp_path / "k.safetensors", tmp_path / "c.safetensors"):
        assert torch.allclose(answer(opening.open_family(adapter, "cpu")), wanted, rtol=0, atol=1e-5), adapter
    merge(str(tmp_path / "k.safetensors"), tmp_path / "merged")
    assert torch.allclose(answer(opening.open_family(tmp_path / "merged", "cpu")), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_lycoris_on_sd3(kind: str, tmp_path: Path) -> None:
    base = tiny_sd3(tmp_path / "base")
    family = trained(base, kind=kind)
    saving.save(family, tmp_path / "out", base)
    again = opening.open_family(tmp_path / "out", "cpu")
    assert kinds.kind_of(again.net) == kind
    assert torch.allclose(answer(again), answer(family), rtol=0, atol=1e-5)


def test_several_onto_one(tmp_path: Path) -> None:
    base = tiny_sd15(tmp_path / "base")
    family = trained(base)
    saving.save(family, tmp_path / "out", base)
    other = opening.open_family(base, "cpu")
    assert len(loading.merge_files(other.net, [(tmp_path / "out", 0.5), (tmp_path / "out", 0.5)])) == 2
    assert torch.allclose(answer(other), answer(family), rtol=0, atol=1e-4)


def test_onto_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its base is known by its path and print, and its tokenizers by what the codec was opened with."""
    folder = tiny_sd15(tmp_path / "base")
    monkeypatch.setattr(sd_codec, "CONFIGS", tmp_path / "configs")
    configs_of(folder, tmp_path / "configs" / "sd15")
    words = without_weights(folder, tmp_path / "words")
    base = single_file(folder, tmp_path / "one.safetensors", "sd1")
    family = opening.open_family(base, "cpu", tokenizer=str(words))
    lora.attach(family.net, Adapter(rank=2), family.lora_targets)
    stir(family.net, 0.1)
    about = Details(more={"codec": json.dumps(family.codec.chosen())})
    path = saving.save(family, tmp_path / "out", base, about)
    assert reading.read_header(path)[files.FINGERPRINT] == files.fingerprint(base)
    assert torch.allclose(answer(opening.open_family(path, "cpu")), answer(family), rtol=0, atol=1e-5)
