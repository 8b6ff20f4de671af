"""InternVL2 folders opened and saved: every language model, every spoilt folder, nothing lost, nothing run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anymix import families
from anymix.families.common.folders import resolve
from anymix.families.internvl2 import weights
from model_files import beside_weights, copied, same, tensors_of
from tiny import tiny_internvl2

LANGUAGES = ("internlm2", "qwen2", "llama", "phi3")


@pytest.fixture(params=LANGUAGES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_internvl2(tmp_path / "source", request.param, shards=3, dtype=torch.bfloat16)


def test_original_to_ours_to_original_is_bitwise(source: Path, tmp_path: Path) -> None:
    (source / "examples").mkdir()
    (source / "examples" / "image1.jpg").write_bytes(b"\xff\xd8 not read")
    weights.save(weights.load(source), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == sorted(
        p.name for p in source.glob("*.safetensors")
    )
    for path in source.glob("*.safetensors"):
        assert same(load_file(path), load_file(tmp_path / "out" / path.name))
    assert beside_weights(tmp_path / "out") == beside_weights(source)


def test_trained_in_fp32_it_is_saved_in_the_dtype_it_came_in(source: Path, tmp_path: Path) -> None:
    net = weights.load(source, dtype=torch.float32)
    weights.save(net, tmp_path / "out")
    assert same(tensors_of(tmp_path / "out"), tensors_of(source))


def test_saving_over_the_folder_it_was_opened_from(source: Path) -> None:
    before = {name: t.clone() for name, t in tensors_of(source).items()}
    net = weights.load(source)
    with torch.no_grad():
        net.lm_head.weight.add_(1)
    weights.save(net, source)
    after = tensors_of(source)
    head = next(name for name in before if name.endswith(("output.weight", "lm_head.weight")))
    assert torch.equal(after.pop(head), before.pop(head) + 1)
    assert same(after, before)
    assert torch.equal(net.model.language_model.norm.weight, after["language_model.model.norm.weight"])


def test_a_smaller_save_leaves_no_old_shards(tmp_path: Path) -> None:
    three, one = tiny_internvl2(tmp_path / "3", shards=3), tiny_internvl2(tmp_path / "1", seed=1)
    weights.save(weights.load(three), tmp_path / "out")
    weights.save(weights.load(one), tmp_path / "out")
    assert same(tensors_of(tmp_path / "out"), tensors_of(one))
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


@pytest.mark.slow
def test_no_code_of_the_folder_runs_and_nothing_is_fetched(tmp_path: Path) -> None:
    """Its .py files raise when run; a process without a working resolver opens it all the same."""
    source = tiny_internvl2(tmp_path / "source")
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('the network was asked')\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "from anymix import families\n"
        "families.open_folder(sys.argv[1]).save(sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "out")], check=True, env=os.environ)


def test_lora_marks_of_the_original_code_are_merged_and_gone(tmp_path: Path) -> None:
    """use_llm_lora: peft's names in the checkpoint, W + 2 B A its meaning (the original sets alpha = 2 r)."""
    folder = tiny_internvl2(tmp_path / "source", use_llm_lora=4)
    plain = copied(folder / "model.safetensors")
    name = "language_model.model.layers.0.attention.wo.weight"
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 64, generator=draw), torch.randn(64, 4, generator=draw)
    stem = "language_model.base_model.model.model.layers.0.attention.wo"
    tainted = {
        (
            f"{stem}.base_layer.weight"
            if key == name
            else key.replace("language_model.", "language_model.base_model.model.", 1)
        ): value
        for key, value in plain.items()
    }
    tainted |= {f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b}
    save_file(tainted, folder / "model.safetensors")
    weights.save(weights.load(folder), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == plain.keys()
    assert torch.allclose(merged[name], plain[name] + 2 * b @ a, atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_llm_lora"] == 0


def test_a_6b_tower_and_shared_keys_and_no_dynamic_rope(tmp_path: Path) -> None:
    """qk-norm, RMS norms, no qkv bias; H = KV interleaves per head; the eps of the config reaches q_norm."""
    folder = tiny_internvl2(tmp_path / "source", heads=4, kv_heads=4)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {
        "qk_normalization": True,
        "norm_type": "rms_norm",
        "qkv_bias": False,
        "layer_norm_eps": 1e-3,
    }
    config["llm_config"]["rope_scaling"] = None
    (folder / "config.json").write_text(json.dumps(config))
    tensors = copied(folder / "model.safetensors")
    for layer in range(2):
        stem = f"vision_model.encoder.layers.{layer}"
        for gone in ("attn.qkv.bias", "norm1.bias", "norm2.bias"):
            del tensors[f"{stem}.{gone}"]
        tensors |= {f"{stem}.attn.{x}_norm.weight": torch.ones(48) for x in "qk"}
    save_file(tensors, folder / "model.safetensors")
    net = weights.load(folder)
    assert net.model.vision_tower.encoder.layer[0].attention.q_norm.variance_epsilon == 1e-3
    assert net.config.text_config.rope_parameters["rope_type"] == "default"
    weights.save(net, tmp_path / "out")
    assert same(load_file(tmp_path / "out" / "model.safetensors"), tensors)


def test_ours_wins_when_transformers_knows_internvl_chat(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers is about to register `internvl_chat` itself; opening here must not go through it."""
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    class Theirs(PretrainedConfig):
        model_type = "internvl_chat"

        def __init__(self, **_: Any) -> None:
            raise AssertionError("the folder was opened by transformers' own class")

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", dict(CONFIG_MAPPING._extra_content))
    AutoConfig.register("internvl_chat", Theirs)
    net = families.open_folder(source).net
    assert type(net).__name__ == "InternVLForConditionalGeneration"
    assert net.config.text_config.hidden_size == 64


def test_never_tied_and_never_a_default_model(source: Path) -> None:
    net = weights.load(source)
    assert net.lm_head.weight is not net.get_input_embeddings().weight
    assert not net.config.tie_word_embeddings and not net.config.text_config.tie_word_embeddings
    assert sum(p.numel() for p in net.parameters()) < 10**6
    assert not any(t.is_meta for t in (*net.parameters(), *net.buffers()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc")
@pytest.mark.parametrize("case", ["convert", "train"])
def test_opening_needs_little_more_than_the_weights(case: str, tmp_path: Path) -> None:
    """Peak anonymous memory while every weight is converted (to fp32) or written to: at most 1.1 x the weights."""
    folder = tiny_internvl2(
        tmp_path / "m", hidden=1024, layers=8, heads=8, kv_heads=4, vision_hidden=512, vision_layers=4, vocab=4096,
        dtype=torch.bfloat16, shards=2,
    )  # fmt: skip
    small = tiny_internvl2(tmp_path / "small")
    script = Path(__file__).parents[3] / "bench" / "opening.py"
    how = ["--dtype", "fp32"] if case == "convert" else ["--touch"]
    environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # freed pages go back
    command = [sys.executable, str(script), str(folder), *how, "--warm", str(small)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout)
    assert found["weights"] > 100e6
    assert 0.5 < found["ratio"] < 1.1


# ------------------------------------------------------------------------------------------ spoilt folders


def _code_only(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()


def _nested_gone(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["llm_config"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_code_only, "code and configuration but no weights; copy the .safetensors files too"),
        (_nested_gone, "llm_config"),
    ],
)
def test_spoilt_folders_get_one_sentence(spoil: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    """What may be spoilt of a model of any family: tests/families/test_folders.py."""
    folder = tiny_internvl2(tmp_path / "m", shards=2)
    spoil(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        families.open_folder(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_nested_adapter_is_no_place_for_a_save(tmp_path: Path) -> None:
    net = weights.load(tiny_internvl2(tmp_path / "m"))
    net.model.language_model.layers[0].extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="the original layout has no place for"):
        weights.save(net, tmp_path / "out")


# ---------------------------------------------------------------------------------------- finding a folder


def test_hub_ids_are_looked_for_where_people_keep_them(tmp_path: Path) -> None:
    nas, home = tmp_path / "nas", tmp_path / "hf"
    for place in ("OpenGVLab/InternVL2-2B", "InternVL2___5-8B"):
        (nas / place).mkdir(parents=True)
    snapshot = home / "hub" / "models--OpenGVLab--InternVL2-1B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    environ = {"ANYMIX_MODELS": f"/nowhere:{nas}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    assert resolve("OpenGVLab/InternVL2-2B", environ) == nas / "OpenGVLab/InternVL2-2B"
    assert resolve("OpenGVLab/InternVL2.5-8B", environ) == nas / "InternVL2___5-8B"
    assert resolve("OpenGVLab/InternVL2-1B", environ) == snapshot
    with pytest.raises(
        ValueError, match="OpenGVLab/InternVL2-4B is not on this machine and HF_HUB_OFFLINE is set; copy"
    ):
        resolve("OpenGVLab/InternVL2-4B", environ)
    with pytest.raises(ValueError, match="did you mean .*InternVL2___5-8B"):
        resolve(nas / "InternVL2__5-8B", environ)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is a file, expected a model folder"):
        resolve(tmp_path / "notes.txt", environ)


@pytest.mark.slow
def test_the_endpoint_people_set_is_the_one_asked(tmp_path: Path) -> None:
    """HF_ENDPOINT is read by the client at import, so a process of its own; a port nobody serves answers at once."""
    code = "import sys; from anymix.families.common.folders import resolve; resolve('some/model')"
    environ = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environ.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert "some/model is not on this machine and cannot be fetched" in done.stderr
