"""Sequences laid end to end through one kernel: chosen where it is there, called rightly, equal to one by one."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anymix.device import pick, varlen
from anymix.families.common.attention import varlen_attention

BORDERS = varlen.Borders([0, 5, 6, 30])
CALLS: list[dict[str, Any]] = []
TAKEN = {torch.float32, torch.bfloat16}


def twin(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What torch's documentation says of its kernel, in plain words: (T, H, D), causal for window_size=(-1, 0)."""
    assert query.dim() == 3 and cu_seq_q.dtype == torch.int32 and cu_seq_q is cu_seq_k and max_q == max_k
    assert window_size == (-1, 0) and cu_seq_q.diff().max() == max_q
    CALLS.append({"cu": cu_seq_q, "gqa": enable_gqa, "type": query.dtype})
    out = torch.empty_like(query)
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        rows = [t[start:stop].transpose(0, 1) for t in (query, key, value)]
        one = F.scaled_dot_product_attention(*rows, is_causal=True, scale=scale, enable_gqa=enable_gqa)
        out[start:stop] = one.transpose(0, 1)
    return out


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's twin, as if this were a card whose torch has it."""
    CALLS.clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", lambda name: SimpleNamespace(varlen_attn=twin))
        kernel = varlen._varlen()
    assert kernel is not None
    monkeypatch.setattr(varlen, "rung", lambda kind, dtype, fused: (kernel if dtype in TAKEN else None, "a twin"))


def rows(heads: int = 4, of_key: int = 2, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, count, 30, 8) for count in (heads, of_key, of_key)]
    return [torch.randn(shape, generator=draw).to(device, dtype).requires_grad_() for shape in shapes]


def both(borders: list[int], **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients with these borders, and with plain ones, which go sequence by sequence."""
    found = []
    for cu in (borders, list(borders)):
        tensors = rows()
        out, _ = varlen_attention(torch.nn.Module(), *tensors, None, anymix_cu=cu, scaling=0.3, **options)
        out.square().sum().backward()
        found.append([out.detach(), *(t.grad for t in tensors)])
    return found[0], found[1]


@pytest.mark.usefixtures("card")
def test_one_kernel_for_all_is_one_after_the_other() -> None:
    one, other = both(varlen.Borders(BORDERS))
    assert len(CALLS) == 1 and CALLS[0]["gqa"]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))


@pytest.mark.usefixtures("card")
def test_borders_are_copied_once_for_all_layers() -> None:
    borders = varlen.Borders(BORDERS)
    for _ in range(3):
        varlen_attention(torch.nn.Module(), *rows(), None, anymix_cu=borders)
    assert len(CALLS) == 3 and len({id(call["cu"]) for call in CALLS}) == 1


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("options", [{"sliding_window": 7}, {"dropout": 0.5}])
def test_what_the_kernel_cannot_do_goes_sequence_by_sequence(options: dict[str, Any]) -> None:
    varlen_attention(torch.nn.Module(), *rows(), None, anymix_cu=varlen.Borders(BORDERS), **options)
    assert not CALLS
    varlen_attention(torch.nn.Module(), *rows(), None, anymix_cu=varlen.Borders(BORDERS), sliding_window=24)
    assert len(CALLS) == 1


@pytest.mark.usefixtures("card")
def test_under_autocast_the_kernel_computes_in_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary tables in fp32 leave queries and keys in fp32 beside values in bf16, in every mixed-precision run."""
    monkeypatch.setattr("device.test_varlen.TAKEN", {torch.bfloat16})
    query, key, value = rows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = varlen_attention(torch.nn.Module(), query, key, value.bfloat16(), None, anymix_cu=BORDERS)
    assert [call["type"] for call in CALLS] == [torch.bfloat16] and out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert query.grad is not None and query.grad.dtype == torch.float32


def test_without_fused_kernels_it_goes_one_by_one() -> None:
    assert varlen.rung("npu", torch.bfloat16, False) == (None, "device.fused is off")
    said = varlen.told(pick("cpu"), torch.float32)
    assert said == "attention: sequence by sequence (torch has no other kernel on cpu)"
    kernel, why = varlen.rung("npu", torch.float16)
    assert kernel is not None and why == "npu_fusion_attention"


def test_the_rung_of_a_device_is_told_with_its_reason() -> None:
    said = varlen.told(pick("cpu"), torch.float32)
    assert said == "attention: sequence by sequence (torch has no other kernel on cpu)"
    kernel, why = varlen.rung("cuda", torch.float32)
    assert kernel is None and "bf16 and fp16 alone" in why


def test_a_card_without_kernels_is_not_told_that_its_owner_turned_them_off() -> None:
    first = replace(pick("cpu"), kind="npu", fused=False, capabilities=frozenset(["fused_adamw"]))  # Ascend910A
    said = varlen.told(first, torch.float16)
    assert said == "attention: sequence by sequence (fused kernels want an Atlas A2 (910B) or newer)"
    newer = replace(first, capabilities=frozenset(["fused_adamw", "bf16"]))
    assert varlen.told(newer, torch.float16) == "attention: sequence by sequence (device.fused is off)"


def test_a_kernel_that_lacks_what_is_asked_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of torch 2.10 has neither scale nor enable_gqa."""

    class Module:
        @staticmethod
        def varlen_attn(query: Tensor, is_causal: bool = False) -> Tensor:
            return query

    monkeypatch.setattr(importlib, "import_module", lambda name: Module)
    assert varlen._varlen() is None

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert varlen._varlen() is None


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cards_own_kernel_is_one_after_the_other(dtype: torch.dtype) -> None:
    if varlen.rung("cuda", dtype)[0] is None:
        pytest.skip(varlen.rung("cuda", dtype)[1])
    found = []
    for cu in (varlen.Borders(BORDERS), list(BORDERS)):
        tensors = rows(device="cuda", dtype=dtype)
        out, _ = varlen_attention(torch.nn.Module(), *tensors, None, anymix_cu=cu, scaling=0.3)
        out.float().square().sum().backward()
        found.append([out.detach(), *(t.grad for t in tensors)])
    assert all(torch.allclose(a, b, atol=2e-2, rtol=2e-2) for a, b in zip(*found, strict=True))
