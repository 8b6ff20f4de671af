"""An adapter in the original network's own fused layers, read by something that knows only peft's formula."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from anymix.adapters import files, fused, lora
from anymix.adapters.fused import Factors
from anymix.config import Adapter
from anymix.families.internvl2 import InternVL2, weights
from anymix.families.internvl2.names import Naming
from tiny import tiny_internvl2

WQKV = "language_model.model.layers.0.attention.wqkv.weight"


def trained(base: Path, **adapter: Any) -> Any:
    """A net with an adapter that does something, on every layer of both towers unless `adapter` says less."""
    net = weights.load(base, image_token_id=300)
    family = InternVL2.__new__(InternVL2)
    family.net = net
    config = Adapter(**{"rank": 4, "alpha": 12, "parts": ["language", "vision"], **adapter})
    lora.attach(net, config, family.lora_targets, str(base))
    return moved(net)


@torch.no_grad()
def moved(net: Any) -> Any:
    draw = torch.Generator().manual_seed(1)
    for parameter in lora.trainable(net).values():
        parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return net


def original_weights(net: Any, folder: Path) -> dict[str, Tensor]:
    """What merging the net and saving it in the original layout writes."""
    lora.merge(net)
    weights.save(net, folder)
    return load_file(folder / "model.safetensors")


def by_formula(base: Path, adapter: Path) -> dict[str, Tensor]:
    """W + alpha / r B A, with ranks and alphas from the config's patterns, and whole modules replaced."""
    tensors = load_file(base / "model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name, value in load_file(adapter / "adapter_model.safetensors").items():
        plain = name.removeprefix("base_model.model.")
        if plain in tensors:
            assert plain.rpartition(".")[0] in config["modules_to_save"]
            tensors[plain] = value
        elif ".lora_A." in plain:
            module = plain.partition(".lora_A.")[0]
            assert module in config["target_modules"]
            rank = config["rank_pattern"].get(module, config["r"])
            alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
            assert value.shape[0] == rank
            b = load_file(adapter / "adapter_model.safetensors")[name.replace("lora_A", "lora_B")]
            tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + alpha / rank * b @ value
    return tensors


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("which", ["qkv", "qv", "k"])
def test_fused_update_is_the_fusion_of_the_updates(heads: int, kv_heads: int, which: str) -> None:
    """Multi-head, grouped, one key for all; all of q, k, v adapted or some, of unlike ranks and scales."""
    draw, dim, hidden = torch.Generator().manual_seed(0), 8, 24
    naming = Naming(internlm2=True, heads=heads, kv_heads=kv_heads)
    rows = [heads * dim, kv_heads * dim, kv_heads * dim]
    parts = [torch.randn(out, hidden, generator=draw) for out in rows]
    pairs = [
        Factors(torch.randn(r, hidden, generator=draw), torch.randn(out, r, generator=draw), scale)
        if x in which
        else None
        for x, out, r, scale in zip("qkv", rows, (4, 2, 3), (2.0, 2.0, 0.5), strict=True)
    ]
    whole = fused.fuse(naming, WQKV, pairs, rows)
    assert whole.rank == sum(pair.rank for pair in pairs if pair is not None)
    updated = [w if p is None else w + p.scale * p.b @ p.a for w, p in zip(parts, pairs, strict=True)]
    found = naming.fuse(WQKV, parts) + whole.scale * whole.b @ whole.a
    torch.testing.assert_close(found, naming.fuse(WQKV, updated), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("llm", "kv_heads"), [("internlm2", 2), ("internlm2", 4), ("qwen2", 2), ("phi3", 2)])
def test_the_folder_gives_the_merged_original(tmp_path: Path, llm: Any, kv_heads: int) -> None:
    base = tiny_internvl2(tmp_path / "base", llm, kv_heads=kv_heads)
    net = trained(base)
    for name, parameter in net.named_parameters():
        if name.startswith(("model.multi_modal_projector", "lm_head")):
            parameter.requires_grad_(True)
            parameter.data.add_(0.1)
    names = fused.save_original(net, tmp_path / "a", fused.naming_of(net), base)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(names)
    assert (config["r"], config["lora_alpha"]) == (
        12,
        36,
    )  # three of rank 4 in the vision tower's qkv at least
    assert all(alpha == 3 * config["rank_pattern"][name] for name, alpha in config["alpha_pattern"].items())
    wide = {re.sub(r"\d+", "*", n) for n in names if n not in config["rank_pattern"]}
    qkv = {"vision_model.encoder.layers.*.attn.qkv"}
    assert wide == (qkv | {"language_model.model.layers.*.attention.wqkv"} if llm == "internlm2" else qkv)
    assert_same(by_formula(base, tmp_path / "a"), original_weights(net, tmp_path / "merged"))


def test_some_of_q_k_v(tmp_path: Path) -> None:
    base = tiny_internvl2(tmp_path / "base")
    layers = "model.language_model.layers"
    net = trained(base, targets=[f"{layers}.0.self_attn.q_proj", f"{layers}.*.self_attn.v_proj"])
    names = fused.save_original(net, tmp_path / "a", fused.naming_of(net), base)
    assert names == [f"language_model.model.layers.{i}.attention.wqkv" for i in (0, 1)]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (
        8,
        {names[1]: 4},
        {names[1]: 12},
    )
    assert_same(by_formula(base, tmp_path / "a"), original_weights(net, tmp_path / "merged"))


def test_peft_loads_it_on_the_original_modules(tmp_path: Path) -> None:
    """On a skeleton with the original's module names, whose layers are as peft would find them there."""
    base = tiny_internvl2(tmp_path / "base")
    net = trained(base)
    net.get_parameter("model.multi_modal_projector.linear_2.weight").requires_grad_(True).data.add_(0.1)
    fused.save_original(net, tmp_path / "a", fused.naming_of(net), base)
    merged = PeftModel.from_pretrained(_skeleton(base), tmp_path / "a").merge_and_unload(safe_merge=True)
    assert_same(dict(merged.state_dict()), original_weights(net, tmp_path / "merged"))


def _skeleton(base: Path) -> nn.Module:
    """Modules in the places the original's tensor names say, the matrices as Linear layers."""
    root = nn.Module()
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        *path, leaf = name.split(".")
        module: nn.Module = root
        for depth, part in enumerate(path):
            if part not in module._modules:
                matrix = tensors.get(".".join([*path, "weight"])) if depth == len(path) - 1 else None
                child = nn.Module()
                if matrix is not None and matrix.dim() == 2:
                    child = nn.Linear(matrix.shape[1], matrix.shape[0], ".".join([*path, "bias"]) in tensors)
                module.add_module(part, child)
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(leaf, nn.Parameter(value))
    return root


def test_header_and_base(tmp_path: Path) -> None:
    base = tiny_internvl2(tmp_path / "base")
    net = trained(base, rank=6, alpha=10)  # alpha / rank has no exact binary form, 3 alpha is 30 all the same
    fused.save_original(net, tmp_path / "a", fused.naming_of(net), base, {"step": "3"})
    header = files.read_header(tmp_path / "a")
    expected = {"layout": "original", "rank": "18", "alpha": "30", "base_model": str(base), "step": "3"}
    assert expected.items() <= header.items()
    with pytest.raises(ValueError, match="which this net does not have; it was made for another network"):
        lora.load(weights.load(base, image_token_id=300), tmp_path / "a")


def test_what_cannot_be_exact_is_refused(tmp_path: Path) -> None:
    base = tiny_internvl2(tmp_path / "base")
    net = trained(base, dora=True)
    with pytest.raises(ValueError, match=r"DoRA .* merge it instead"):
        fused.save_original(net, tmp_path / "a", fused.naming_of(net), base)
    layers = "model.language_model.layers.0.self_attn"
    net = trained(base, targets=[f"{layers}.q_proj"])
    net.get_parameter(f"{layers}.k_proj.weight").requires_grad_(True)  # beside wqkv's own LoRA in the original
    lora.extras(net)
    with pytest.raises(ValueError, match=r"attention\.wqkv\.weight trains in a module where LoRA adapts"):
        fused.save_original(net, tmp_path / "a", fused.naming_of(net), base)
    assert not (tmp_path / "a").exists()
