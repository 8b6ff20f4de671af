"""Folders opened and saved: both ways to name tensors, tied heads, shards, spoilt folders, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from anymix import families
from anymix.families.qwen2_vl import weights
from families.tiny_qwen import tiny_qwen2vl
from model_files import beside_weights, copied, same, tensors_of


@pytest.fixture(params=["released", "tied", "renamed"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """7B and 72B; 2B; what transformers 4.52 and later may have written."""
    kind = request.param
    return tiny_qwen2vl(
        tmp_path / "source", tied=kind == "tied", new_names=kind == "renamed", shards=3, dtype=torch.bfloat16
    )


def _layout(folder: Path) -> str:
    return "original" if any(name.startswith("visual.") for name in tensors_of(folder)) else "native"


def test_saved_in_the_layout_it_came_in_it_is_bitwise_the_same(source: Path, tmp_path: Path) -> None:
    family = families.open_folder(source)
    assert family.layout == _layout(source)
    family.save(tmp_path / "out", family.layout)
    for path in source.glob("*.safetensors"):
        assert same(load_file(path), load_file(tmp_path / "out" / path.name))
    assert beside_weights(tmp_path / "out") == beside_weights(source)


@pytest.mark.parametrize("layout", ["original", "native"])
def test_either_names_and_back(source: Path, layout: str, tmp_path: Path) -> None:
    weights.save(weights.load(source), tmp_path / "other", layout)
    assert _layout(tmp_path / "other") == layout
    weights.save(weights.load(tmp_path / "other"), tmp_path / "back", _layout(source))
    assert same(tensors_of(tmp_path / "back"), tensors_of(source))
    index = json.loads((tmp_path / "other" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(tensors_of(tmp_path / "other"))


@pytest.mark.parametrize("layout", ["original", "native"])
def test_transformers_opens_what_is_saved(source: Path, layout: str, tmp_path: Path) -> None:
    weights.save(weights.load(source), tmp_path / "out", layout)
    ours = weights.load(source)
    theirs, info = Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(dict(theirs.named_parameters()), dict(ours.named_parameters()))
    assert {name for name, _ in theirs.named_buffers()} == {name for name, _ in ours.named_buffers()}
    for name, buffer in theirs.named_buffers():
        assert torch.equal(buffer, ours.get_buffer(name)), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_the_head_of_tied_embeddings_is_the_embeddings(tmp_path: Path) -> None:
    net = weights.load(tiny_qwen2vl(tmp_path / "m", tied=True))
    assert net.lm_head.weight is net.get_input_embeddings().weight
    assert net.config.tie_word_embeddings


def test_a_tied_folder_that_writes_its_head_too_gets_it_back(tmp_path: Path) -> None:
    folder = tiny_qwen2vl(tmp_path / "m", tied=True)
    tensors = copied(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    weights.save(weights.load(folder), tmp_path / "out")
    assert same(tensors_of(tmp_path / "out"), tensors)
    tensors["lm_head.weight"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="set tie_word_embeddings to false"):
        weights.load(folder)


def test_trained_in_fp32_it_is_saved_in_the_dtype_it_came_in(source: Path, tmp_path: Path) -> None:
    net = weights.load(source, dtype=torch.float32)
    weights.save(net, tmp_path / "out", _layout(source))
    assert same(tensors_of(tmp_path / "out"), tensors_of(source))
    weights.save(net, tmp_path / "half", _layout(source), torch.float16)
    assert {t.dtype for t in tensors_of(tmp_path / "half").values()} == {torch.float16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "float16"


def test_saving_over_the_folder_it_was_opened_from(source: Path) -> None:
    before = {name: t.clone() for name, t in tensors_of(source).items()}
    net = weights.load(source)
    with torch.no_grad():
        net.model.language_model.norm.weight.add_(1)
    weights.save(net, source, _layout(source))
    after = tensors_of(source)
    norm = next(name for name in before if name.endswith(".norm.weight"))
    assert torch.equal(after.pop(norm), before.pop(norm) + 1)
    assert same(after, before)


def test_bounds_trained_with_are_told_to_who_serves_it(tmp_path: Path) -> None:
    family = families.open_folder(tiny_qwen2vl(tmp_path / "m"), max_pixels=56 * 56)
    family.save(tmp_path / "out", family.layout)
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["max_pixels"] == 56 * 56
    assert families.codec_of(tmp_path / "out").cut == family.codec.cut


def test_spoilt_folders_are_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = tiny_qwen2vl(tmp_path / "m")
    whole = copied(folder / "model.safetensors")

    def written(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def refused(said: str) -> None:
        with pytest.raises(ValueError, match=said):
            weights.load(folder)

    written({name: t for name, t in whole.items() if name != "visual.merger.mlp.0.bias"})
    refused("1 tensors are missing, the first is model.visual.merger.mlp.0.bias")
    written({**whole, "model.layers.9.mlp.up_proj.weight": torch.zeros(2)})
    refused("no place for tensor model.language_model.layers.9")
    written({**whole, "model.norm.weight": torch.zeros(7)})
    refused(r"shape \(7,\)")
    written({**whole, "model.language_model.norm.weight": whole["model.norm.weight"].clone()})
    refused("both their old and new names")
    written(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": {}}))
    refused("has no vision_config")


def test_a_folder_is_known_by_its_type_where_it_names_no_architecture(tmp_path: Path) -> None:
    folder = tiny_qwen2vl(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    assert families.family_of(folder).__name__ == "Qwen2VL"
