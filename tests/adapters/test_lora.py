"""LoRA and DoRA on tiny InternVL2: plain peft opens our folders and we peft's; merging; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from anymix.adapters import files, lora
from anymix.config import Adapter
from anymix.families.common import shards
from lora_nets import ATTENTION, PROJECTOR, answer, attached, opened, targets, train
from tiny import tiny_internvl2

# ------------------------------------------------------------------------------------------------- attaching


def test_fresh_adapter_changes_nothing_and_alone_trains(base: Path) -> None:
    net = opened(base)
    before = answer(net)
    names = lora.attach(net, Adapter(rank=4), targets(net), str(base))
    assert torch.equal(answer(net), before)
    assert len(names) == 2 * 7 and all(name.startswith("model.language_model.layers.") for name in names)
    assert lora.adapted(net) == names and lora.is_attached(net)
    assert all(".lora_" in name for name in lora.trainable(net))
    assert len(lora.trainable(net)) == 2 * len(names)
    assert next(iter(lora.layers(net).values())).scaling == {"default": 2.0}  # alpha is 2 r where none is given


def test_dropout_sleeps_in_a_net_that_infers(base: Path) -> None:
    net = attached(base, dropout=0.9)
    train(net)
    assert torch.equal(answer(net), answer(net))
    net.train()
    assert not torch.equal(answer(net), answer(net))


def test_bf16_base_keeps_fp32_adapters(base: Path) -> None:
    net = attached(base, torch.bfloat16)
    assert {p.dtype for p in lora.trainable(net).values()} == {torch.float32}
    train(net)
    assert net(input_ids=torch.tensor([[1, 5, 9]])).logits.dtype == torch.bfloat16


def test_parts_and_phi3_fused_names(bases: Callable[[str], Path]) -> None:
    net = opened(bases("phi3"))
    both = lora.attach(net, Adapter(rank=2, parts=["language", "vision"]), targets(net))
    leaves = {name.rpartition(".")[2] for name in both if "language" in name}
    assert leaves == {"qkv_proj", "gate_up_proj", "o_proj", "down_proj"}
    assert sum("vision_tower" in name for name in both) == 2 * 6


def test_summary_folds_layers() -> None:
    names = [f"lm.layers.{i}.{leaf}" for i in range(24) for leaf in ("attn.q", "mlp.up")]
    assert lora.summary([*names, "head", "lm.layers.3.attn.v"]) == (
        "24 x lm.layers.*: attn.q, mlp.up; head; 1 x lm.layers.*: attn.v"
    )


def test_a_summary_of_many_places_stays_one_line() -> None:
    names = [f"unet.down_blocks.{i}.part{n}.{i}.to_{leaf}" for i in range(2) for n in range(9) for leaf in "qkv"]
    said = lora.summary(names)
    assert said.endswith("; and 18 layers in 3 more places") and said.count(";") == 6


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("model.language_model.layers.*.self_attn.query", ["no module", "self_attn.q_proj"]),
        ("q_proj", ["no module", "q_proj"]),  # full match: a bare suffix means nothing
        ("model.language_model.layers.*.mlp", ["only model.language_model.layers.0.mlp", "linear"]),
        ("model?language_model.layers.*.mlp.up_proj", ["no module"]),  # nothing but * is special
    ],
)
def test_unmatched_pattern_names_the_nearest(base: Path, pattern: str, words: list[str]) -> None:
    net = opened(base)
    with pytest.raises(ValueError, match="adapter target") as error:
        lora.attach(net, Adapter(targets=[ATTENTION[0], pattern]), targets(net))
    assert all(word in str(error.value) for word in [pattern, *words])
    assert not lora.is_attached(net)


def test_a_second_adapter_is_refused(base: Path) -> None:
    net = attached(base)
    with pytest.raises(ValueError, match="has an adapter already"):
        lora.attach(net, Adapter(), targets(net))


# ---------------------------------------------------------------------------------- folders, ours and peft's


@pytest.mark.parametrize("llm", ["internlm2", "qwen2", "phi3"])
@pytest.mark.parametrize("dora", [False, True])
def test_plain_peft_opens_our_folder_to_the_same_outputs(
    bases: Callable[[str], Path], tmp_path: Path, llm: str, dora: bool
) -> None:
    base = bases(llm)
    net = attached(base, parts=["language", "vision"], dora=dora, alpha=12)
    train(net)
    lora.save(net, tmp_path / "a", base)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [files.CONFIG, files.WEIGHTS]
    theirs = PeftModel.from_pretrained(opened(base), tmp_path / "a").eval()
    assert torch.equal(answer(theirs), answer(net))
    assert not torch.allclose(answer(net), answer(opened(base)), atol=1e-2)
    ours = opened(base)
    assert lora.load(ours, tmp_path / "a", must_change=True) == lora.adapted(net)
    assert not lora.trainable(ours)
    assert torch.equal(answer(ours), answer(net))


def test_modules_trained_beside_travel_whole(base: Path, tmp_path: Path) -> None:
    net = attached(base)
    for name, parameter in net.named_parameters():
        if name.startswith((PROJECTOR, "lm_head", "model.language_model.norm")) or name.endswith("layer.0.lambda_1"):
            parameter.requires_grad_(True)
    train(net)
    lora.save(net, tmp_path / "a", base)
    config = json.loads((tmp_path / "a" / files.CONFIG).read_text())
    assert config["modules_to_save"] == [
        "lm_head", "model.language_model.norm", f"{PROJECTOR}.layer_norm", f"{PROJECTOR}.linear_1",
        f"{PROJECTOR}.linear_2", "model.vision_tower.encoder.layer.0",
    ]  # fmt: skip
    theirs = PeftModel.from_pretrained(opened(base), tmp_path / "a").eval()
    assert torch.equal(answer(theirs), answer(net))
    ours = opened(base)
    lora.load(ours, tmp_path / "a")
    assert torch.equal(answer(ours), answer(net))
    # what came with the adapter goes with it again, though nothing of it trains any more
    lora.save(ours, tmp_path / "b", base)
    assert (tmp_path / "b" / files.CONFIG).read_text() == (tmp_path / "a" / files.CONFIG).read_text()
    again, first = (load_file(tmp_path / x / files.WEIGHTS) for x in "ba")
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)


def test_an_extra_that_shares_its_module_with_lora_is_refused(base: Path, tmp_path: Path) -> None:
    net = attached(base, parts=["vision"])
    net.get_parameter("model.vision_tower.encoder.layer.1.lambda_2").requires_grad_(True)
    with pytest.raises(ValueError, match=r"layer\.1\.lambda_2 trains in a module where LoRA adapts .*freeze it"):
        lora.extras(net)
    with pytest.raises(ValueError, match="lambda_2"):
        lora.save(net, tmp_path / "a", base)
    assert not (tmp_path / "a").exists()
    net = attached(base)
    net.get_parameter("model.language_model.layers.0.mlp.up_proj.base_layer.weight").requires_grad_(True)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj\.weight trains"):
        lora.extras(net)


def test_file_tells_what_it_is(base: Path, tmp_path: Path) -> None:
    net = attached(base, rank=4, alpha=12)
    lora.save(net, tmp_path / "a", base, {"step": "7"})
    header = files.read_header(tmp_path / "a")
    expected = {"format": "pt", "rank": "4", "alpha": "12", "base_model": str(base), "step": "7"}
    assert expected.items() <= header.items()
    assert header[files.FINGERPRINT] == files.fingerprint(base)
    config = json.loads((tmp_path / "a" / files.CONFIG).read_text())
    assert config["target_modules"] == sorted(lora.adapted(net))
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 12, str(base))


def test_a_write_that_fails_leaves_the_folder_whole(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = attached(base)
    lora.save(net, tmp_path, base)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    train(net)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "sync", full)
    with pytest.raises(OSError, match="No space"):
        lora.save(net, tmp_path, base)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fingerprint_tells_weights_apart(base: Path, tmp_path: Path) -> None:
    other = tiny_internvl2(tmp_path / "other", "internlm2", seed=1)
    same = tiny_internvl2(tmp_path / "same", "internlm2")
    assert files.fingerprint(base) == files.fingerprint(same) != files.fingerprint(other)


@pytest.mark.parametrize("extra", [None, ["multi_modal_projector"]])
def test_we_open_what_plain_peft_saves(base: Path, tmp_path: Path, extra: list[str] | None) -> None:
    """Short target names, which hit the vision tower too, ranks per module, rsLoRA, modules by suffix."""
    settings = LoraConfig(
        r=4, lora_alpha=3, target_modules=["q_proj", "v_proj", "linear_1"], modules_to_save=extra,
        rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 5}, use_rslora=True, lora_dropout=0.5,
    )  # fmt: skip
    theirs = get_peft_model(opened(base), settings)
    train(theirs)
    theirs.save_pretrained(tmp_path / "a")
    net = opened(base)
    names = lora.load(net, tmp_path / "a")
    assert torch.equal(answer(net), answer(theirs.eval()))
    assert len(names) == 8 + (extra is None)  # peft leaves what is saved whole without LoRA
    lora.merge(net)
    assert torch.allclose(answer(net), answer(theirs), atol=5e-5)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "config", "truncated", "pickle", "pointer"])
def test_a_tampered_folder_is_refused_and_leaves_the_net_alone(base: Path, tmp_path: Path, fault: str) -> None:
    net = attached(base, targets=ATTENTION)
    train(net)
    lora.save(net, tmp_path, base)
    path, tensors = tmp_path / files.WEIGHTS, load_file(tmp_path / files.WEIGHTS)
    first = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    match fault:
        case "missing":
            del tensors[first]
            save_file(tensors, path)
            words = "7 tensors where its config asks this net for 8"
        case "extra":
            tensors[first.replace("q_proj", "k_proj")] = tensors[first].clone()
            save_file(tensors, path)
            words = "1 without a place; .*k_proj"
        case "shape":
            tensors[first] = tensors[first][:3].clone()
            save_file(tensors, path)
            words = r"has shape \(3, 64\), this net expects \(4, 64\)"
        case "config":
            config = json.loads((tmp_path / files.CONFIG).read_text())
            (tmp_path / files.CONFIG).write_text(json.dumps({**config, "target_modules": ["wqkv"]}))
            words = "adapts wqkv, which this net does not have"
        case "truncated":
            path.write_bytes(path.read_bytes()[:-10])
            words = "not a whole safetensors file"
        case "pickle":
            path.rename(tmp_path / "adapter_model.bin")
            words = "a pickle"
        case _:
            path.write_text("version https://git-lfs.github.com/spec/v1\n")
            words = "not a whole safetensors file"
    fresh = opened(base)
    before, keys = answer(fresh), list(fresh.state_dict())
    with pytest.raises(ValueError, match=words):
        lora.load(fresh, tmp_path)
    assert torch.equal(answer(fresh), before) and list(fresh.state_dict()) == keys
    assert not hasattr(fresh, "peft_config")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "LOHA"}, "LOHA adapter, expected LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights too"),
        ({"bias": "all"}, "bias, which anymix does not read"),
        ({"modules_to_save": ["score"]}, "brings a whole score"),
    ],
)
def test_what_we_cannot_read_whole_is_refused(base: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    lora.save(attached(base), tmp_path, base)
    config = json.loads((tmp_path / files.CONFIG).read_text())
    (tmp_path / files.CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=words):
        lora.load(opened(base), tmp_path)


def test_an_adapter_that_changes_nothing_is_told(base: Path, tmp_path: Path) -> None:
    net = attached(base)
    lora.save(net, tmp_path / "a", base)
    with pytest.raises(ValueError, match="changes nothing"):
        lora.load(opened(base), tmp_path / "a", must_change=True)
    assert lora.load(opened(base), tmp_path / "a") == lora.adapted(net)
    # the projector alone may be what trained
    net.get_parameter(f"{PROJECTOR}.linear_1.weight").requires_grad_(True).data.add_(0.1)
    lora.save(net, tmp_path / "b", base)
    lora.load(opened(base), tmp_path / "b", must_change=True)
