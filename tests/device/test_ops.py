"""Fused operations: value and gradient of the plain twin, called as their signatures say, in all families' networks."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import anymix
from anymix.data import loader
from anymix.device import fusing, ops, pick, ranks, varlen
from anymix.train.prepare import Prepared, prepare

CALLS: Counter[str] = Counter()


# What torch_npu's reference says of its operators, in plain words. The names of arguments are theirs.


def npu_rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    assert self.dtype == gamma.dtype and self.shape[-gamma.dim() :] == gamma.shape
    wide = self.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(self.dtype), rstd


def npu_swiglu(self: Tensor, dim: int = -1) -> Tensor:
    one, other = self.float().chunk(2, dim)
    return (F.silu(one) * other).to(self.dtype)


def npu_geglu(self: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    left, right = self.float().chunk(2, dim)
    value, gate = (right, left) if activate_left else (left, right)
    gelu = F.gelu(gate, approximate="tanh" if approximate else "none")
    return (value * gelu).to(self.dtype), gelu.to(self.dtype)


def npu_rotary_mul(self: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half") -> Tensor:
    assert self.dim() == r1.dim() == r2.dim() == 4 and self.dtype == r1.dtype == r2.dtype and self.is_contiguous()
    one, other = self.float().chunk(2, -1)
    return (self.float() * r1.float() + torch.cat((-other, one), -1) * r2.float()).to(self.dtype)


def npu_fusion_attention(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, *, atten_mask: Tensor | None = None,
    scale: float = 1.0, actual_seq_qlen: list[int] | None = None, actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    assert input_layout == "TND" and head_num == query.shape[1] and query.dtype in varlen.HALF
    assert sparse_mode == 3 and atten_mask is not None and atten_mask.shape == (2048, 2048)
    assert atten_mask[0, 1] and not atten_mask[1, 0] and not atten_mask[5, 5], "True where nothing is seen"
    assert actual_seq_qlen == actual_seq_kvlen and actual_seq_qlen and actual_seq_qlen[-1] == len(query)
    out = torch.empty_like(query)
    for start, stop in zip([0, *actual_seq_qlen], actual_seq_qlen, strict=False):
        rows = [t[start:stop].float().transpose(0, 1) for t in (query, key, value)]
        one = F.scaled_dot_product_attention(*rows, is_causal=True, scale=scale, enable_gqa=True)
        out[start:stop] = one.transpose(0, 1).to(query.dtype)
    return out, out


STAND_INS = (npu_rms_norm, npu_swiglu, npu_geglu, npu_rotary_mul, npu_fusion_attention)


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every tensor lay on an NPU, with stand-ins for its kernels."""
    CALLS.clear()
    known = {each.__name__: each for each in STAND_INS}

    def kernel(name: str) -> Callable[..., Any]:
        CALLS[name] += 1
        return known[ops.KERNELS[name].name]

    monkeypatch.setattr(ops, "native", lambda tensor: ops.used())
    monkeypatch.setattr(ops, "kernel", kernel)
    rung = varlen.rung
    monkeypatch.setattr(varlen, "rung", lambda kind, dtype, fused: rung("npu", dtype, fused))


@pytest.fixture(autouse=True)
def _switched_back() -> Iterator[None]:
    yield
    ops.use(True)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def _angles(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = drawn(1, 1, 6, 8).detach()
    return angles.cos().to(dtype), angles.sin().to(dtype)


CASES: dict[str, Callable[[torch.dtype, torch.dtype], tuple[Callable[..., Tensor], tuple[Tensor, ...]]]] = {
    "rms_norm": lambda x, w: (lambda a, b: ops.rms_norm(a, b, 1e-5), (drawn(3, 16, dtype=x), drawn(16, dtype=w))),
    "swiglu": lambda x, w: (ops.swiglu, (drawn(3, 16, dtype=x),)),
    "geglu": lambda x, w: (ops.geglu, (drawn(3, 16, dtype=x),)),
    "rotary": lambda x, w: (lambda a: ops.rotary(a, *_angles(w)), (drawn(2, 3, 6, 8, dtype=x),)),
}
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.usefixtures("npu")
@pytest.mark.parametrize(("x", "w"), [(FP32, FP32), (BF16, BF16), (BF16, FP32), (FP32, BF16)])
@pytest.mark.parametrize("name", CASES)
def test_value_type_and_gradient_are_those_of_the_twin(name: str, x: torch.dtype, w: torch.dtype) -> None:
    found = []
    for fused in (True, False):
        ops.use(fused)
        function, tensors = CASES[name](x, w)
        out = function(*tensors)
        (out.float() * drawn(*out.shape, seed=1).detach()).sum().backward()
        found.append([out.detach(), *(t.grad for t in tensors)])
    assert CALLS[name] == 1
    limit = 1e-6 if (x, w) == (FP32, FP32) else 2e-2  # of values about 1: bf16 has 8 bits
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert (one.float() - other.float()).abs().max() <= limit * other.float().abs().max()


@pytest.mark.usefixtures("npu")
def test_the_kernel_for_all_sequences_is_one_after_the_other() -> None:
    borders, found = varlen.Borders([0, 5, 6, 30]), []
    for fused in (True, False):
        ops.use(fused)
        tensors = [drawn(1, heads, 30, 8, dtype=BF16, seed=heads) for heads in (4, 2, 2)]
        out = varlen.fused(*tensors, borders, None) if fused else varlen.one_by_one(*tensors, borders, None)
        assert out is not None
        out.float().square().sum().backward()
        found.append([out.detach(), *(t.grad for t in tensors)])
    assert CALLS["attention"] == 1
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=2e-2, rtol=2e-2)


def test_the_twins_are_what_the_libraries_compute() -> None:
    """Held against the modules themselves, bit for bit."""
    from diffusers.models.activations import GEGLU
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

    norm, gated, x = LlamaRMSNorm(16, 1e-5), GEGLU(16, 8), drawn(3, 16).detach()
    assert torch.equal(ops.rms_norm(x, norm.weight, 1e-5), norm(x))
    assert torch.equal(ops.geglu(gated.proj(x)), gated(x))
    q, k, (cos, sin) = drawn(1, 2, 6, 8).detach(), drawn(1, 1, 6, 8).detach(), _angles(FP32)
    turned = apply_rotary_pos_emb(q, k, cos[0], sin[0])
    assert torch.equal(ops.rotary(q, cos, sin), turned[0]) and torch.equal(ops.rotary(k, cos, sin), turned[1])
    assert torch.equal(ops.swiglu(x), F.silu(x[:, :8]) * x[:, 8:])


# ------------------------------------------------------------------------------------------- in the families

TALKING = {"internvl2": {"rms_norm", "swiglu", "rotary", "attention"}}
TALKING |= dict.fromkeys(("llava_next", "qwen2_vl"), TALKING["internvl2"])
DRAWING = {"sd15": {"geglu"}, "sdxl": {"geglu"}, "sd3": {"rms_norm"}}


def ready(starter: str, folder: Path, dtype: str) -> Prepared:
    """A prepared step of a model of the package, on grainy pictures."""
    folder.mkdir()
    for number in range(2):
        shades = np.random.default_rng(number).integers(0, 255, (48, 80, 3)).astype(np.uint8)
        Image.fromarray(shades).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red square")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "red red"}]
    lines = [json.dumps({"image": f"{number}.png", "conversations": turns}) for number in range(2)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    data: dict[str, Any] = {"path": str(folder / "rows.jsonl"), "workers": 0}
    if starter in DRAWING:
        data |= {"path": str(folder), "resolution": 32, "bucket_step": 8}
    tree = {"model": {"path": f"starter:{starter}", "dtype": dtype}, "data": data, "cache": {"use": False},
            "train": {"out": str(folder / "out"), "batch": 2, "steps": 1}, "device": "cpu"}  # fmt: skip
    return prepare(anymix.load(tree), pick("cpu"), ranks.Ranks(), lambda text: None, dry=True)


def fuse(run: Prepared) -> str:
    nets = (run.family.net, *run.family.frozen.values())
    return fusing.fuse(nets, replace(pick("cpu"), kind="npu"))


def stepped(run: Prepared) -> tuple[float, dict[str, Tensor]]:
    """Summed loss and gradients of the first batch."""
    run.family.net.zero_grad()
    torch.manual_seed(0)
    batch = next(loader.stream(run.rows, run.family.codec, run.order, run.split, range(1)))[0]
    with torch.autocast("cpu", dtype=run.stepper.dtype, enabled=run.stepper.dtype != FP32):
        loss = run.stepper.step(batch)
    loss.backward()
    named = run.family.net.named_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.usefixtures("npu")
@pytest.mark.parametrize("starter", [*TALKING, *DRAWING])
def test_a_step_of_every_family_is_the_same_with_kernels_and_without(starter: str, tmp_path: Path) -> None:
    run = ready(starter, tmp_path / "data", "fp32")
    before = stepped(run)
    told = fuse(run)
    names = set(run.family.net.state_dict())
    loss, gradients = stepped(run)
    expected = (TALKING | DRAWING)[starter] - {"attention"}  # in fp32 it goes one by one
    assert set(CALLS) == expected and all(f"{name} " in told for name in expected)
    assert math.isclose(loss, before[0], rel_tol=1e-5) and gradients.keys() == before[1].keys()
    usual = max(g.norm().item() for g in before[1].values())
    for name, gradient in gradients.items():
        assert (gradient - before[1][name]).norm() <= 1e-4 * max(before[1][name].norm().item(), 1e-2 * usual), name
    ops.use(False)
    assert stepped(run)[0] == before[0], "off is what it was, bit for bit"
    assert set(run.family.net.state_dict()) == names


@pytest.mark.usefixtures("npu")
@pytest.mark.parametrize("starter", TALKING)
def test_packed_rows_take_one_kernel_in_bf16(starter: str, tmp_path: Path) -> None:
    exact = stepped(ready(starter, tmp_path / "exact", "fp32"))
    run = ready(starter, tmp_path / "data", "bf16")
    ops.use(False)
    plain = stepped(run)
    ops.use(True)
    fuse(run)
    kernels = stepped(run)
    assert set(CALLS) == TALKING[starter]
    # How far bf16 is from fp32 differs between processors (AMX or not), and which of the two is nearer is chance.
    # Measured: 0.02 to 0.07 with kernels and without; a wrong mask, a wrong gate or 10 x eps: 0.12 to 0.96.
    assert off(plain[1], exact[1]) < 0.1 and off(kernels[1], exact[1]) < 0.1
    assert math.isclose(kernels[0], exact[0], rel_tol=1e-2)


def off(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Distance of gradients, against the size of those expected."""
    assert found.keys() == expected.keys()
    apart = sum((found[name] - expected[name]).norm().item() ** 2 for name in expected)
    return math.sqrt(apart / sum(expected[name].norm().item() ** 2 for name in expected))


TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 16, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.usefixtures("npu")
@pytest.mark.parametrize("name", ["Phi3", "Mistral"])
def test_other_language_models_of_the_families_too(name: str) -> None:
    """Phi-3 turns a part of each head, and has gate and value in one."""
    import transformers

    more = {"partial_rotary_factor": 0.5} if name == "Phi3" else {}
    config = getattr(transformers, f"{name}Config")(**TINY, **more)
    torch.manual_seed(0)
    net = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    ids = torch.arange(6)[None]
    before = net(ids).logits
    fusing.fuse([net], replace(pick("cpu"), kind="npu"))
    assert torch.allclose(net(ids).logits, before, atol=1e-6)
    assert CALLS == {"rms_norm": 5, "swiglu": 2, "rotary": 4}


def test_nothing_is_changed_for_another_device_or_without_kernels(tmp_path: Path) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    net = nn.Sequential(LlamaRMSNorm(4))
    assert fusing.fuse([net], pick("cpu")) == ""
    assert fusing.fuse([net], replace(pick("cpu"), kind="npu", fused=False)) == ""
    assert "forward" not in vars(net[0])


def test_a_fused_module_elsewhere_computes_what_it_always_did_and_survives_a_copy() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class LlamaMLP(nn.Module):
        """Of another library: nobody knows what it computes."""

        def forward(self, x: Tensor) -> Tensor:
            return x

    plain, net = LlamaRMSNorm(4), nn.Sequential(LlamaRMSNorm(4), LlamaMLP())
    told = fusing.fuse([net], replace(pick("cpu"), kind="npu"))
    assert told == "fused: rms_norm 1 times" and "forward" not in vars(net[1])
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied[0].weight.fill_(3.0)
    x = drawn(2, 4).detach()
    assert torch.equal(net[0](x), plain(x)) and torch.allclose(copied[0](x), 3 * plain(x))
    assert torch.equal(net[0](hidden_states=x), plain(x))


def test_swiglu_is_for_silu_alone() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    made = {name: LlamaMLP(LlamaConfig(**TINY, hidden_act=name)) for name in ("silu", "gelu")}
    fusing.fuse(made.values(), replace(pick("cpu"), kind="npu"))
    assert "forward" in vars(made["silu"]) and "forward" not in vars(made["gelu"])


def test_a_device_asked_for_without_kernels_has_none() -> None:
    assert pick("cpu", fused=False).fused is False and not ops.used()
    assert "fused_adamw" not in pick("cpu", fused=False).capabilities
    assert pick("cpu").fused and ops.used()


# ------------------------------------------------------------------------------------------- diffusers' own choice


def test_diffusers_computes_on_the_host_where_torch_npu_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models import activations, normalization

    for library in (activations, normalization):
        monkeypatch.setattr(library, fusing.CHOICE, lambda: True)
    monkeypatch.setattr(fusing, "find_spec", lambda name: object())
    gated, norm, x = activations.GEGLU(8, 8), normalization.RMSNorm(8, 1e-6), drawn(2, 8).detach()
    with pytest.raises((NameError, ModuleNotFoundError)):  # torch_npu, which is not here
        gated(x)
    fusing.plain_diffusers()
    value, gate = gated.proj(x).chunk(2, -1)
    assert torch.equal(gated(x), value * F.gelu(gate)) and norm(x).shape == x.shape


def test_diffusers_still_chooses_by_what_is_installed() -> None:
    """When this fails, `plain_diffusers` has no more to do, and goes."""
    from diffusers.models import activations, normalization

    for made in (activations.GEGLU, normalization.RMSNorm):
        assert f"{fusing.CHOICE}()" in inspect.getsource(made.forward)
