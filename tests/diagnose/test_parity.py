"""Two sides of every family agree within the table; one planted fault is found and named."""

from __future__ import annotations

import gc
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import anymix
from anymix.diagnose import parity, sides
from anymix.diagnose.findings import Report
from diagnose.conftest import DRAWING, TALKING

EVERY = (*TALKING, *DRAWING)


def held(run: anymix.Run, against: str = "cpu", steps: int = 1) -> Report:
    return parity.compare(run, sides.asked(against), sides.of(run), steps, say=lambda _: None)


ADAPTED = [pytest.param(name, "adapter.rank=4", marks=[pytest.mark.slow] * (name in DRAWING)) for name in EVERY]


@pytest.mark.parametrize(("starter", "how"), [*((name, "train.clip=1") for name in EVERY), *ADAPTED])
def test_bf16_agrees_with_fp32_for_every_family(recipe: Any, starter: str, how: str) -> None:
    report = held(recipe(starter, "model.dtype=bf16", how))
    assert report.ok, report.verdict
    found = {kind: [layer for layer in report.layers if layer.kind == kind] for kind in ("forward", "backward")}
    assert all(len(layers) > 40 for layers in found.values())
    assert 1e-3 < max(layer.error for layer in found["forward"]), "bf16 that rounds nothing was not bf16"
    assert not [note for note in report.notes if "random numbers while" in note or "alone" in note]
    parts = {layer.name.partition(".")[0] for layer in found["forward"]}
    assert starter in TALKING or {"vae", "text_encoder"} <= parts, "what the step calls is compared, frozen or not"


@pytest.mark.parametrize("starter", ["internvl2", "sd3"])
def test_every_trained_parameter_is_compared(recipe: Any, starter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: set[str] = set()
    prepare = parity.prepare

    def prepared(*given: Any, **named: Any) -> Any:
        ready = prepare(*given, **named)
        trained.update(name for name, p in ready.family.net.named_parameters() if p.requires_grad)
        return ready

    monkeypatch.setattr(parity, "prepare", prepared)
    report = held(recipe(starter, "model.dtype=bf16", "adapter.rank=2"))
    compared = {layer.name: layer for layer in report.layers if layer.kind == "gradient"}
    assert set(compared) == trained and all(layer.size > 0 for layer in compared.values())


def test_gradients_that_overflow_in_fp16_are_taken_again_smaller(recipe: Any) -> None:
    report = held(recipe("qwen2_vl", "model.dtype=fp16", "adapter.rank=4"))
    assert report.ok, report.verdict


def test_later_steps_follow_the_optimizer(recipe: Any) -> None:
    report = held(recipe("internvl2", "model.dtype=bf16", "train.accumulate=2", "train.lr=1e-5"), steps=3)
    assert report.ok, report.verdict
    assert len({step.loss[0] for step in report.steps}) == 3
    assert not [layer for layer in report.layers if "#" in layer.name], "the first forward alone is kept"


def test_recomputed_blocks_are_seen_once(recipe: Any) -> None:
    plain = held(recipe("internvl2", "model.dtype=bf16", "train.checkpointing=false"))
    again = held(recipe("internvl2", "model.dtype=bf16", "train.checkpointing=true"))
    seen, expected = ([layer.name for layer in found.layers if layer.kind == "forward"] for found in (again, plain))
    assert seen == expected
    assert again.ok


# --------------------------------------------------------------------------------------------- planted faults


def _module(ready: Any, ending: str) -> Any:
    return next(m for name, m in ready.family.net.named_modules() if name.endswith(ending))


def _tanh(ready: Any) -> None:
    parent = _module(ready, "vision_tower.encoder.layer.1.mlp")
    parent.activation_fn = nn.GELU(approximate="tanh")


def _tanh_in_unet(ready: Any) -> None:
    geglu = _module(ready, "mid_block.attentions.0.transformer_blocks.0.ff.net.0")
    geglu.gelu = lambda gate: F.gelu(gate, approximate="tanh")


def _eps(ready: Any) -> None:
    _module(ready, "language_model.layers.0.input_layernorm").variance_epsilon = 1e-3


def _group_eps(ready: Any) -> None:
    _module(ready, "down_blocks.0.resnets.0.norm1").eps = 1e-3


def _scale(ready: Any) -> None:
    _module(ready, "language_model.layers.1.self_attn").scaling *= 1.02


PLANTED = {
    "tanh for erf": ("internvl2", _tanh, "model.vision_tower.encoder.layer.1.mlp.activation_fn"),
    "tanh for erf, UNet": ("sdxl", _tanh_in_unet, "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0"),
    "eps of a norm": ("internvl2", _eps, "model.language_model.layers.0.input_layernorm"),
    "eps of a norm, UNet": ("sd15", _group_eps, "unet.down_blocks.0.resnets.0.norm1"),
    "softmax scale": ("qwen2_vl", _scale, "model.language_model.layers.1.self_attn.o_proj"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_the_first_that_is_named(recipe: Any, plant: Any, fault: str) -> None:
    """In fp32 on both sides, as an fp32 run of a card would be held against the CPU."""
    starter, change, name = PLANTED[fault]
    plant(change)
    report = held(recipe(starter))
    assert not report.ok and report.first is not None
    assert (report.first.kind, report.first.name) == ("forward", name)
    assert name in report.verdict and report.before is not None
    before = report.layers[: report.layers.index(report.first)]
    assert before and max(layer.error for layer in before) == 0, "nothing is blamed that comes earlier"


def test_a_large_fault_shows_through_bf16(recipe: Any, plant: Any) -> None:
    plant(lambda ready: setattr(_module(ready, "layers.1.post_attention_layernorm"), "variance_epsilon", 1e3))
    report = held(recipe("internvl2", "model.dtype=bf16"))
    assert report.first and report.first.name == "model.language_model.layers.1.post_attention_layernorm"


def test_a_fault_of_the_way_back_is_told_from_one_of_the_way_forward(recipe: Any, plant: Any) -> None:
    def louder(ready: Any) -> None:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
            more = output * 0.1
            return output + (more - more.detach())

        _module(ready, "language_model.layers.1.mlp.act_fn").register_forward_hook(hook)

    plant(louder)
    report = held(recipe("internvl2"))
    assert report.first and report.first.kind == "backward" and report.steps[0].loss[0] == report.steps[0].loss[1]
    assert report.first.name == "model.language_model.layers.1.mlp.gate_proj"


def test_nan_is_named_where_it_arises_though_the_step_cannot_end(recipe: Any, plant: Any) -> None:
    def nan(ready: Any) -> None:
        _module(ready, "layers.0.mlp.down_proj").register_forward_hook(lambda m, i, out: out * float("nan"))

    plant(nan)
    report = held(recipe("llava_next"))
    assert report.first and report.first.name == "model.language_model.layers.0.mlp.down_proj"
    assert "NaN" in str(report.first.fault) and "the loss is nan" in str(report.stopped) and not report.ok


def test_one_wrong_value_is_seen_beside_a_million_right_ones(recipe: Any, plant: Any) -> None:
    def pixel(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        wrong = torch.zeros_like(output).flatten()
        wrong[7] = 2e-2 * output.abs().max()
        return output + wrong.view_as(output)

    plant(lambda ready: _module(ready, "layers.1.mlp.up_proj").register_forward_hook(pixel))
    report = held(recipe("internvl2"))
    assert report.first and report.first.name == "model.language_model.layers.1.mlp.up_proj"


def test_an_optimizer_that_does_other_than_it_should_shows_in_the_next_loss(recipe: Any, plant: Any) -> None:
    plant(lambda ready: setattr(ready.stepper.optimizer, "step", lambda *_, **__: None))
    report = held(recipe("internvl2"), steps=2)
    assert report.first is None and not report.ok
    assert "the loss of step 2 is" in report.verdict
    assert report.verdict.endswith("all that comes before it is within tolerance")


# --------------------------------------------------------------------------------------------- its manners


def test_one_model_is_held_at_a_time_and_nothing_is_left_behind(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[Any] = []
    prepare = parity.prepare

    def prepared(*given: Any, **named: Any) -> Any:
        gc.collect()
        assert all(reference() is None for reference in kept), "the first model is still there"
        ready = prepare(*given, **named)
        kept.append(weakref.ref(ready.family.net))
        return ready

    monkeypatch.setattr(parity, "prepare", prepared)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    run = recipe("internvl2", "model.dtype=bf16")
    report = held(run)
    assert len(kept) == 2 and report.bytes > 10**5
    assert set(tmp_path.iterdir()) == before and not Path(run.train.out).exists()


def test_what_a_model_draws_on_its_own_is_said(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = parity.prepare

    def prepared(*given: Any, **named: Any) -> Any:
        ready = prepare(*given, **named)
        _module(ready, "lm_head").register_forward_hook(lambda m, i, out: F.dropout(out, 0.01, training=True))
        return ready

    monkeypatch.setattr(parity, "prepare", prepared)
    assert [note for note in held(recipe("internvl2", "model.dtype=bf16")).notes if "draws random numbers" in note]


def test_dropout_is_off_and_an_adapters_zeros_are_not_zeros(recipe: Any) -> None:
    report = held(recipe("internvl2", "model.dtype=bf16", "adapter.rank=2", "adapter.dropout=0.5"))
    assert report.ok, report.verdict
    assert [note for note in report.notes if "dropout rates are 0" in note]
    assert [note for note in report.notes if "instead of zeros" in note]


def test_a_recipe_of_several_processes_is_compared_in_one_and_says_so(recipe: Any) -> None:
    report = held(recipe("internvl2", "model.dtype=bf16", "nproc=8"))
    assert report.ok and report.notes[0].startswith("nproc = 8 in the recipe; one process is compared")


def test_several_processes_are_refused(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.ranks, "here", lambda: SimpleNamespace(world=2))
    with pytest.raises(ValueError, match="one process, found several; start it without torchrun"):
        held(recipe("internvl2", "model.dtype=bf16"))
