"""Native InternVL folders (transformers' layout): opened whole or not at all, and written so that others open them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anymix import families
from anymix.families.common import shards
from anymix.families.internvl2 import weights
from model_files import copied, same, tensors_of
from tiny import tiny_internvl2

HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"


@pytest.fixture(params=("internlm2", "qwen2", "llama", "phi3"))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_internvl2(tmp_path / "source", request.param, shards=3, dtype=torch.bfloat16)


def released(folder: Path, **config: Any) -> Path:
    """A native folder as others release it, without the original config inside; Qwen2."""
    weights.save(weights.load(tiny_internvl2(folder.with_name("made"), "qwen2")), folder, "native")
    tree = json.loads((folder / "config.json").read_text())
    del tree["internvl_chat_config"]
    rewrite(folder / "config.json", {**tree, **config})
    return folder


def tied(folder: Path) -> Path:
    released(folder, tie_word_embeddings=True)
    tensors = copied(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith(HEAD))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def rewrite(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree))


def in_shards(folder: Path) -> Path:
    tensors = copied(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{n % 2 + 1:05d}-of-00002.safetensors" for n, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file, {"format": "pt"})
    rewrite(folder / shards.INDEX, {"metadata": {}, "weight_map": files})
    return folder


def test_to_native_and_back(source: Path, tmp_path: Path) -> None:
    """The native folder opens in plain transformers to the same numbers, and the way back is bitwise."""
    from transformers import AutoTokenizer, InternVLForConditionalGeneration

    family = families.open_folder(source)
    family.save(tmp_path / "native", "native")
    theirs = InternVLForConditionalGeneration.from_pretrained(tmp_path / "native")
    assert same(dict(theirs.state_dict()), dict(family.net.state_dict()))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "native")
    words = family.codec.words
    text = "<img><IMG_CONTEXT></img>\nWas steht da?"
    opening = [words.bos_id] if words.adds_bos else []
    assert tokenizer(text)["input_ids"] == opening + words.encode(text)
    assert tokenizer.context_image_token_id == family.codec.context_id
    again = families.open_folder(tmp_path / "native")
    assert again.codec.template == family.codec.template
    again.save(tmp_path / "back")
    assert same(tensors_of(tmp_path / "back"), tensors_of(source))


def test_native_processor_sees_what_the_codec_sees(tmp_path: Path) -> None:
    from PIL import Image

    got_ocr2 = pytest.importorskip(
        "transformers.models.got_ocr2.image_processing_pil_got_ocr2", reason="newer than 5.0"
    )
    from anymix.families.internvl2.tiling import normalise
    from anymix.samples import Conversation, ImageRef, Turn

    family = families.open_folder(tiny_internvl2(tmp_path / "source"))
    family.save(tmp_path / "native", "native")
    picture = tmp_path / "a.png"
    Image.radial_gradient("L").resize((200, 90)).convert("RGB").save(picture)
    turns = (Turn("user", (ImageRef(str(picture)), "\nWhat?")),)
    prompt = family.codec.prompt(Conversation(turns, "a"))
    processor = got_ocr2.GotOcr2ImageProcessorPil.from_pretrained(tmp_path / "native")
    theirs = processor(Image.open(picture), return_tensors="pt")["pixel_values"]
    assert torch.equal(normalise(prompt.pixels, family.codec.mean, family.codec.std), theirs)


def test_a_native_folder_in_shards_is_saved_native(tmp_path: Path) -> None:
    folder = in_shards(released(tmp_path / "hf"))
    before = {name: t.clone() for name, t in tensors_of(folder).items()}
    for out in (tmp_path / "out", folder):
        weights.save(weights.load(folder), out, "native")
        assert not (out / shards.INDEX).exists()
        assert [p.name for p in out.glob("*.safetensors")] == ["model.safetensors"]
        assert same(tensors_of(out), before)
        weights.load(out)


def test_native_over_an_original_folder_in_shards(source: Path) -> None:
    before = dict(weights.load(source).state_dict())
    weights.save(weights.load(source), source, "native")
    assert not (source / shards.INDEX).exists()
    assert same(dict(weights.load(source).state_dict()), before)


def test_a_large_native_save_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 300_000)
    net = weights.load(tiny_internvl2(tmp_path / "source"))
    weights.save(net, tmp_path / "out", "native")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    assert same(dict(weights.load(tmp_path / "out").state_dict()), dict(net.state_dict()))


def test_a_native_save_can_be_read_by_others(tmp_path: Path) -> None:
    weights.save(weights.load(tiny_internvl2(tmp_path / "source")), tmp_path / "out", "native")
    alike = tmp_path / "alike"
    alike.touch()
    assert {p.stat().st_mode for p in (tmp_path / "out").iterdir()} == {alike.stat().st_mode}


# ------------------------------------------------------------------------------------------ spoilt folders


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda tensors, name: tensors.pop(name), "1 tensors are missing, the first is .*vision_tower.*; copy"),
        (
            lambda tensors, name: tensors.update({name: torch.zeros(3)}),
            "1 tensors are of another shape than its config.json expects, the first is .*vision_tower",
        ),
        (lambda tensors, name: tensors.update({"odd.weight": torch.zeros(3)}), "1 tensors are unknown, .* odd.weight"),
    ],
    ids=["missing", "mismatched", "unexpected"],
)
def test_nothing_is_made_up(spoil: Any, sentence: str, tmp_path: Path) -> None:
    folder = released(tmp_path / "hf")
    tensors = copied(folder / "model.safetensors")
    spoil(tensors, next(name for name in tensors if "vision_tower" in name and name.endswith("0.mlp.fc1.weight")))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=sentence) as caught:
        weights.load(folder)
    assert "\n" not in str(caught.value)


def test_another_language_model_gets_a_sentence(tmp_path: Path) -> None:
    folder = released(tmp_path / "hf")
    tree = json.loads((folder / "config.json").read_text())
    tree["text_config"]["model_type"] = "qwen3"
    rewrite(folder / "config.json", tree)
    for opened in (families.codec_of, weights.load):
        with pytest.raises(ValueError, match="with Llama, Qwen2 or Phi-3 language models, found qwen3"):
            opened(folder)


# ---------------------------------------------------------------------------------------------- tied heads


def test_a_tied_native_model_keeps_its_head(tmp_path: Path) -> None:
    net = weights.load(tied(tmp_path / "hf"))
    assert net.lm_head.weight is net.get_input_embeddings().weight
    weights.save(net, tmp_path / "original")
    tensors = load_file(tmp_path / "original" / "model.safetensors")
    assert torch.equal(tensors["language_model.lm_head.weight"], net.lm_head.weight)
    assert same(dict(weights.load(tmp_path / "original").state_dict()), dict(net.state_dict()))
    weights.save(net, tmp_path / "native", "native")
    again = weights.load(tmp_path / "native")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert same(dict(again.state_dict()), dict(net.state_dict()))


@pytest.mark.parametrize("layout", ["original", "native"])
def test_an_original_without_a_head_takes_its_embeddings(layout: str, tmp_path: Path) -> None:
    folder = tiny_internvl2(tmp_path / "source", "qwen2")
    tensors = copied(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 tensors are missing, the first is lm_head.weight"):
        weights.load(folder)
    tree = json.loads((folder / "config.json").read_text())
    tree["llm_config"]["tie_word_embeddings"] = True
    rewrite(folder / "config.json", tree)
    net = weights.load(folder)
    assert torch.equal(net.lm_head.weight, net.get_input_embeddings().weight)
    with torch.no_grad():
        net.lm_head.weight.add_(1)  # trained apart
    weights.save(net, tmp_path / "out", layout)
    again = weights.load(tmp_path / "out")
    assert same(dict(again.state_dict()), dict(net.state_dict()))
    weights.save(again, tmp_path / "back")
    tree = json.loads((tmp_path / "back" / "config.json").read_text())
    assert not tree["tie_word_embeddings"] and not tree["llm_config"]["tie_word_embeddings"]


# --------------------------------------------------------------------------------------- beside the weights


@pytest.mark.parametrize("nested", [False, True])
def test_tiles_are_those_of_the_image_processor(nested: bool, tmp_path: Path) -> None:
    folder = released(tmp_path / "hf")
    path = folder / "preprocessor_config.json"
    settings = {**json.loads(path.read_text()), "max_patches": 4, "min_patches": 2}
    path.unlink()
    if nested:
        rewrite(folder / "processor_config.json", {"image_processor": settings})
    else:
        rewrite(path, settings)
    codec = families.codec_of(folder)
    assert (codec.min_tiles, codec.max_tiles, codec.image_size) == (2, 4, 56)
    weights.save(weights.load(folder), tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (tree["min_dynamic_patch"], tree["max_dynamic_patch"], tree["force_image_size"]) == (2, 4, 56)


@pytest.mark.parametrize("native", [False, True])
def test_sampling_settings_transformers_refuses_are_kept(native: bool, tmp_path: Path) -> None:
    folder = released(tmp_path / "source") if native else tiny_internvl2(tmp_path / "source")
    said = {"do_sample": False, "temperature": 0.7, "eos_token_id": [2]}
    rewrite(folder / "generation_config.json", said)
    net = weights.load(folder)
    weights.save(net, tmp_path / "out", "native")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["temperature"], written["eos_token_id"]) == (0.7, [2])
    assert net.generation_config.temperature == 0.7


def test_an_original_without_an_eos_gets_its_templates(tmp_path: Path) -> None:
    folder = tiny_internvl2(tmp_path / "source")
    rewrite(folder / "generation_config.json", {"temperature": 0.7})
    family = families.open_folder(folder)
    family.save(tmp_path / "out", "native")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["temperature"], set(written["eos_token_id"])) == (0.7, set(family.stops))
