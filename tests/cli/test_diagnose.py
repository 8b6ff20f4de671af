"""`anymix diagnose` as typed: a table, a verdict, an exit code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anymix.cli.diagnose import block_of, grouped
from anymix.device import optables
from drawn import rows


@pytest.fixture
def typed(anymix: Any, model: Path, tmp_path: Path) -> Any:
    data = rows(tmp_path / "rows", 4)
    words = (f"model.path={model}", f"data.path={data}", "data.workers=0", "device=cpu", "train.batch=2",
             "train.lr=1e-5", f"train.out={tmp_path / 'out'}")  # fmt: skip
    return lambda *more: anymix("diagnose", *words, *more)


def test_bf16_against_fp32_on_a_plain_cpu(typed: Any, tmp_path: Path) -> None:
    done = typed("model.dtype=bf16", "--parity", "cpu:fp32")
    assert done.exit_code == 0, (done.exception, done.stderr)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["layers", "cosine", "error", "allowed", "largest"]
    starts = [line.split()[:2] for line in lines[1:] if line.startswith("model.language_model.layers.0 ")]
    assert starts == [["model.language_model.layers.0", kind] for kind in ("forward", "backward", "gradient")]
    assert [line[:6] for line in lines if line.startswith("step ")] == ["step 1", "step 2"]
    assert lines[-1].startswith("cpu in bf16 agrees with cpu in fp32: ")
    assert "on cpu in fp32:" in done.stderr and not (tmp_path / "out").exists()


def test_every_layer_has_a_line_with_all(typed: Any) -> None:
    done = typed("model.dtype=bf16", "--parity", "cpu", "--steps", "1", "--all")
    assert any(line.startswith("model.language_model.layers.1.mlp.down_proj ") for line in done.stdout.splitlines())
    assert "step 2" not in done.stdout


def test_a_fault_is_exit_code_1_and_named_for_people_and_machines(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from anymix.diagnose import parity

    prepare = parity.prepare

    def prepared(run: Any, *given: Any, **named: Any) -> Any:
        ready = prepare(run, *given, **named)
        if run.model.dtype == "bf16":
            layer = ready.family.net.get_submodule("model.language_model.layers.1.mlp.down_proj")
            layer.register_forward_hook(lambda module, inputs, output: output * 1.2)
        return ready

    monkeypatch.setattr(parity, "prepare", prepared)
    name = "model.language_model.layers.1.mlp.down_proj"
    done = typed("model.dtype=bf16", "--parity", "cpu", "--steps", "1")
    assert done.exit_code == 1
    marked = [line for line in done.stdout.splitlines() if "<- out of tolerance" in line]
    assert marked and marked[0].startswith("model.language_model.layers.1 ")
    assert f"the first out of tolerance is {name} (Linear)" in done.stdout.splitlines()[-1]
    machine = typed("model.dtype=bf16", "--parity", "cpu", "--steps", "1", "--json")
    tree = json.loads(machine.stdout)
    assert machine.exit_code == 1 and tree["ok"] is False and tree["first"]["name"] == name
    assert {layer["kind"] for layer in tree["layers"]} == {"forward", "backward", "gradient"}
    assert tree["reference"] == "cpu in fp32" and tree["tolerance"]["forward"] == 0.05


def test_mistakes_are_sentences(anymix: Any, typed: Any) -> None:
    for done, sentence in (
        (anymix("diagnose"), "anymix diagnose needs a recipe"),
        (typed(), "needs to know what to look at: --ops says"),
        (typed("--parity", "gpu"), "--parity 'gpu' is not known; give a device"),
        (typed("--parity", "cpu"), "both sides are cpu in fp32, expected two that differ"),
        (typed("--parity", "cpu", "model.dtype=bf16", "adapter.targets=[nothing]"), "nothing"),
    ):
        assert isinstance(done.exception, ValueError) and sentence in str(done.exception)


def test_layers_stand_together_by_block_and_direction() -> None:
    names = ("a.layers.0.x", "a.layers.0.y.1", "a.layers.1", "a.layers.10.z", "lm_head", "vae.conv_in", "vae.conv_in#2")
    layers = [SimpleNamespace(name=name, kind="forward") for name in names]
    layers.append(SimpleNamespace(name="a.layers.0.x", kind="backward"))
    found: Any = [(name, kind, len(of)) for name, kind, of in grouped(layers, False)]  # type: ignore[arg-type]
    assert found == [
        ("a.layers.0", "forward", 2), ("a.layers.1", "forward", 1), ("a.layers.10", "forward", 1),
        ("lm_head", "forward", 1), ("vae.conv_in", "forward", 2), ("a.layers.0", "backward", 1),
    ]  # fmt: skip
    assert block_of("vae.encoder[1]#3") == "vae.encoder" and block_of("a.layers.0[1]") == "a.layers.0"


def test_ops_are_judged_by_every_table(typed: Any, tmp_path: Path) -> None:
    done = typed("--ops")
    assert done.exit_code == 0, (done.exception, done.stderr)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["torch_npu", "native", "composite", "cpu", "fallback", "unsupported", "unknown"]
    assert [line.split()[0] for line in lines[1 : 1 + len(optables.versions())]] == list(optables.versions())
    assert any(line.split()[:3] == ["training", "1", ".tolist()"] for line in lines)
    assert "No chip was asked" in done.stdout and lines[-1].startswith("every operation has a kernel by ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # two recordings
def test_an_operation_without_a_kernel_is_exit_code_1(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    real = optables.table("2.9.0")
    lacking = replace(real, kinds={**real.kinds, "aten::_fused_adamw_": "fallback"})
    monkeypatch.setattr(optables, "table", lambda version: lacking)
    done = typed("--ops", "--torch-npu", "2.9.0")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].startswith(
        "torch_npu 2.9.0 has no kernel for aten::_fused_adamw_ (cpu fallback"
    )
    machine = typed("--ops", "--torch-npu", "2.9.0", "--json")
    tree = json.loads(machine.stdout)
    assert machine.exit_code == 1 and tree["ok"] is False and tree["tables"][0]["counts"]["cpu fallback"] == 1


def test_mistakes_with_ops_are_sentences(typed: Any) -> None:
    for done, sentence in (
        (typed("--ops", "--parity", "cpu"), "they are asked one at a time"),
        (typed("--ops", "--torch-npu", "1.0"), "no operator table of torch_npu 1.0; there is 2.7.1, "),
    ):
        assert isinstance(done.exception, ValueError) and sentence in str(done.exception)
