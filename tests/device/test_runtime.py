"""Precision, memory and random state as the loop uses them, on the CPU."""

from __future__ import annotations

import io
import platform
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anymix.device import (
    autocast,
    grad_scaler,
    peak_memory,
    pick,
    reset_peak_memory,
    rng_state,
    runtime,
    seed_everything,
    set_rng_state,
    settle_threads,
    slow_precision,
    supports_fused_adamw,
    synchronize,
)

CPU = pick("cpu")


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_autocast_computes_in_the_asked_type_and_fp32_is_untouched() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with autocast(CPU, torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    with autocast(CPU, torch.float32):
        assert layer(x).dtype is torch.float32
        assert not torch.is_autocast_enabled("cpu")


def test_a_type_that_is_slow_beyond_use_is_told() -> None:
    assert "model.dtype=fp32 or bf16" in str(slow_precision(CPU, torch.float16))
    card = replace(CPU, kind="cuda", handle=torch.device("cuda"))
    others = [(CPU, torch.float32), (CPU, torch.bfloat16), (card, torch.float16)]
    assert not any(slow_precision(device, dtype) for device, dtype in others)


def test_a_scaler_that_is_off_passes_through() -> None:
    loss = torch.tensor(2.0)
    assert grad_scaler(CPU, enabled=False).scale(loss) is loss
    assert grad_scaler(CPU, enabled=True).scale(loss) > loss


def test_fused_adamw_is_claimed_where_it_runs() -> None:
    assert supports_fused_adamw(CPU)
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    torch.optim.AdamW([weight], fused=True).step()
    assert (weight < 1).all()
    assert not supports_fused_adamw(replace(CPU, capabilities=frozenset()))


def test_random_state_survives_a_file_without_pickle_and_repeats_every_generator() -> None:
    seed_everything(7)
    _draw()
    file = io.BytesIO()
    torch.save(rng_state(CPU), file)
    expected = [_draw() for _ in range(3)]
    np.random.standard_normal()  # leaves a cached number behind
    file.seek(0)
    assert set_rng_state(CPU, torch.load(file, weights_only=True)) is True
    assert [_draw() for _ in range(3)] == expected
    seed_everything(7)
    first = _draw()
    seed_everything(7)
    assert _draw() == first


def test_state_of_another_kind_of_device_is_told() -> None:
    state = rng_state(CPU) | {"kind": "elsewhere"}
    expected = _draw()
    assert set_rng_state(CPU, state) is False
    assert _draw() == expected  # the host's generators are back all the same


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc gives memory back")
def test_a_peak_is_not_hidden_by_memory_that_was_freed() -> None:
    pieces, size = 4000, 15_000
    freed = [torch.ones(size) for _ in range(pieces)]
    pins = freed[::50]  # so that the heap cannot shrink by itself
    del freed
    anew = reset_peak_memory(CPU)
    before = peak_memory(CPU)
    made = [torch.ones(size) for _ in range(pieces // 2)]
    assert len(pins) + len(made) == 2080
    assert peak_memory(CPU) - before > (pieces // 2 * size * 4 * 3 // 4 if anew else -1)


def test_peak_memory_sees_a_tensor_and_forgets_it_after_a_reset() -> None:
    anew, size = reset_peak_memory(CPU), 64 << 20
    before = peak_memory(CPU)
    block = torch.ones(size, dtype=torch.uint8)
    synchronize(CPU)
    assert peak_memory(CPU) >= before + (size * 3 // 4 if anew else 0)
    del block
    if anew:
        high = peak_memory(CPU)
        reset_peak_memory(CPU)
        assert peak_memory(CPU) < high


def test_memory_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PROC", tmp_path / "absent")
    assert reset_peak_memory(CPU) is False
    assert 10 << 20 < peak_memory(CPU) < 1 << 42


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux")
def test_rusage_and_proc_count_in_the_same_unit() -> None:
    assert 0.01 < peak_memory(CPU) / runtime._peak_of_process() < 2  # a wrong unit is a factor of 1024


@pytest.mark.parametrize(("edge", "asked"), [(8, [1]), (5000, [])])
def test_only_a_small_model_is_given_one_thread(edge: int, asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    settle_threads(torch.nn.Linear(edge, edge, device="cpu"))
    assert given == asked


def test_products_of_fp32_are_whole_while_compared_and_what_was_set_comes_back(monkeypatch):
    from types import SimpleNamespace

    from anymix.device import full_precision, runtime

    matmul, conv = SimpleNamespace(allow_hf32=True), SimpleNamespace(allow_hf32=False)
    monkeypatch.setattr(runtime.torch, "get_device_module", lambda kind: SimpleNamespace(matmul=matmul, conv=conv))
    with pytest.raises(RuntimeError, match="inside"), full_precision(SimpleNamespace(kind="npu")):
        assert (matmul.allow_hf32, conv.allow_hf32) == (False, False)
        raise RuntimeError("inside")
    assert (matmul.allow_hf32, conv.allow_hf32) == (True, False)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with full_precision(SimpleNamespace(kind="cuda")):
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        with full_precision(SimpleNamespace(kind="cpu")):
            assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
