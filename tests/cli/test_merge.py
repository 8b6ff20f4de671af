"""`anymix merge`: the base folder's own files and tensor names, never written over what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import safe_open
from typer.testing import CliRunner

from anymix.adapters import files, lora
from anymix.adapters.opening import open_family
from anymix.cli.merge import merge
from anymix.config import Adapter
from tiny import tiny_internvl2

app = typer.Typer()
app.command()(merge)


def run(*words: object) -> str:
    """The command's output; what it raises for people comes through as ValueError."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, ValueError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_internvl2(tmp_path / "base", dtype=torch.bfloat16, shards=2)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)  # A is drawn from the global generator, and with it how much rounding to bf16 moves
    family = open_family(base, "cpu", "fp32")
    lora.attach(family.net, Adapter(rank=2, parts=["language", "vision"]), family.lora_targets)
    family.net.get_parameter("model.multi_modal_projector.linear_1.weight").requires_grad_(True)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora.trainable(family.net).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    lora.save(family.net, tmp_path / "adapter", base)
    return tmp_path / "adapter"


def contents(folder: Path) -> dict[str, Any]:
    """File -> its bytes, or the names, shapes and dtypes of its tensors."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        key = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found[key] = {n: (file.get_slice(n).get_shape(), file.get_slice(n).get_dtype()) for n in file.keys()}
        else:
            found[key] = path.read_bytes()
    return found


@torch.no_grad()
def answer(folder: Path, dtype: str | None = None) -> torch.Tensor:
    family: Any = open_family(folder, "cpu", dtype)
    return family.net(input_ids=torch.tensor([[1, 5, 9, 20]])).logits  # type: ignore[no-any-return]


def test_files_and_names_are_those_of_the_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    before = contents(base)
    told = run(adapter, "-o", tmp_path / "out")
    assert contents(tmp_path / "out") == before == contents(base)
    assert "merged 26 layers" in told and "multi_modal_projector.linear_1" in told
    assert f"next: anymix chat {tmp_path / 'out'}" in told
    exact = answer(adapter, "fp32")
    assert torch.allclose(answer(tmp_path / "out", "fp32"), exact, atol=0.1)  # weights rounded to bf16
    assert not torch.allclose(answer(base, "fp32"), exact, atol=0.5)


def test_dtype_and_native_layout(adapter: Path, tmp_path: Path) -> None:
    run(adapter, "-o", tmp_path / "fp32", "--dtype", "fp32")
    for file, tensors in contents(tmp_path / "fp32").items():
        assert not file.endswith(".safetensors") or {kind for _, kind in tensors.values()} == {"F32"}
    assert torch.allclose(answer(tmp_path / "fp32"), answer(adapter, "fp32"), atol=5e-5)
    run(adapter, "-o", tmp_path / "native", "--layout", "native", "--dtype", "fp32")
    assert json.loads((tmp_path / "native" / "config.json").read_text())["model_type"] == "internvl"
    assert torch.allclose(answer(tmp_path / "native", "fp32"), answer(adapter, "fp32"), atol=5e-5)


def test_as_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    told = run(adapter, "-o", tmp_path / "out", "--as-adapter")
    config = json.loads((tmp_path / "out" / files.CONFIG).read_text())
    assert "language_model.model.layers.0.attention.wqkv" in config["target_modules"]
    assert config["base_model_name_or_path"] == str(base) and config["modules_to_save"] == ["mlp1.1"]
    assert "18 layers" in told and "linear_1 whole; a server that takes LoRA only" in told
    for option in (("--dtype", "fp16"), ("--layout", "native")):
        with pytest.raises(ValueError, match=f"{option[0]} is for merged weights, and --as-adapter writes an adapter"):
            run(adapter, "-o", tmp_path / "else", "--as-adapter", *option)
    run(adapter, "-o", tmp_path / "native", "--layout", "native")
    with pytest.raises(ValueError, match="native layout; pass --base"):
        run(adapter, "-o", tmp_path / "again", "--as-adapter", "--base", tmp_path / "native")


def test_never_over_something_unasked(base: Path, adapter: Path, tmp_path: Path) -> None:
    before = contents(base)
    with pytest.raises(ValueError, match="is the base model itself; give another folder, or add --overwrite"):
        run(adapter, "-o", base)
    assert contents(base) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="has files in it already"):
        run(adapter, "-o", tmp_path / "full")
    with pytest.raises(ValueError, match="is the adapter folder itself"):
        run(adapter, "-o", adapter, "--overwrite")
    with pytest.raises(ValueError, match="is a file"):
        run(adapter, "-o", tmp_path / "full" / "notes.txt")
    exact = answer(adapter, "fp32")
    run(adapter, "-o", base, "--overwrite")
    assert contents(base) == before
    assert torch.allclose(answer(base, "fp32"), exact, atol=0.1)


def test_what_is_no_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an adapter folder"):
        run(base, "-o", tmp_path / "out")
    with pytest.raises(ValueError, match="--layout is original or native, found 'hf'"):
        run(base, "-o", tmp_path / "out", "--layout", "hf")
