"""LLaVA-1.6 folders opened and saved, both layouts both ways: nothing lost, nothing changed, nothing guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaNextForConditionalGeneration

from anymix import families
from anymix.engines.chat import ask
from anymix.families.common.laying import text_of
from anymix.families.llava_next import LlavaNext, anyres, configs, weights
from anymix.families.llava_next.templates import render
from anymix.samples import Conversation, ImageRef, Turn
from model_files import beside_weights, same, tensors_of
from tiny_llava import EDGE, PINPOINTS, TOWER, TOWER_ID, tiny_llava

KINDS = ("vicuna", "mistral", "yi", "llama3")


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_llava(tmp_path / "source", request.param, shards=3, dtype=torch.bfloat16)


def test_original_to_original_is_the_same_folder(source: Path, tmp_path: Path) -> None:
    weights.save(weights.load(source), tmp_path / "out")
    assert same(tensors_of(tmp_path / "out"), tensors_of(source))
    assert beside_weights(tmp_path / "out") == beside_weights(source)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in source.iterdir())


def test_original_to_native_to_original(source: Path, tmp_path: Path) -> None:
    net = weights.load(source)
    weights.save(net, tmp_path / "native", "native")
    again = families.family_of(tmp_path / "native").open(tmp_path / "native")
    assert isinstance(again, LlavaNext) and again.layout == "native"
    weights.save(again.net, tmp_path / "back")
    assert same(tensors_of(tmp_path / "back"), tensors_of(source))
    told, ours = (json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "back"))
    assert ours == told
    assert same(dict(weights.load(tmp_path / "back").named_parameters()), dict(net.named_parameters()))


def test_the_native_folder_is_transformers_own(source: Path, tmp_path: Path) -> None:
    """Its words get the logits they had, its placeholder is a row nobody would choose, its canvases are swapped."""
    net = weights.load(source, dtype=torch.float32)
    weights.save(net, tmp_path / "native", "native")
    assert net.config.text_config.vocab_size == net.lm_head.out_features  # the open one is as it was
    theirs = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "native", dtype=torch.float32)
    image = theirs.config.image_token_id
    assert image == net.lm_head.out_features == theirs.lm_head.out_features - 1
    assert [pair[::-1] for pair in theirs.config.image_grid_pinpoints] == PINPOINTS
    width, height = 200, 26
    grid = anyres.grid_of((width, height), configs.pinpoints({"image_grid_pinpoints": PINPOINTS}), EDGE)
    count = anyres.count_tokens((width, height), grid, 2)
    ids = torch.tensor([[1, 5, *[image] * count, 7, 8]])
    tiles = anyres.count_tiles(grid)
    pixels = torch.randn(1, tiles, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(1))
    size = torch.tensor([[height, width]])
    with torch.no_grad():
        logits = theirs(input_ids=ids, pixel_values=pixels, image_sizes=size).logits
        own = net(input_ids=ids.masked_fill(ids == image, -200), pixel_values=pixels, image_sizes=size).logits
    assert (logits[..., :image] - own).abs().max() < 1e-5
    assert (logits[..., image] < own.max(-1).values).all()


def test_a_native_folder_of_others(tmp_path: Path) -> None:
    """As llava-hf has them: no original config within, `<image>` and padding behind the words, fp16."""
    source = tiny_llava(tmp_path / "source", dtype=torch.float16)
    weights.save(weights.load(source), tmp_path / "native", "native")
    path = tmp_path / "native" / "config.json"
    tree = json.loads(path.read_text())
    del tree[configs.ORIGIN_KEY]
    path.write_text(json.dumps(tree))
    net = weights.load(tmp_path / "native")
    weights.save(net, tmp_path / "back")
    assert same(tensors_of(tmp_path / "back"), tensors_of(source))
    told, ours = (json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "back"))
    for key in ("vocab_size", "image_grid_pinpoints", "mm_vision_select_layer", "mm_patch_merge_type", "rope_theta"):
        assert ours[key] == told[key], key
    assert same(dict(weights.load(tmp_path / "back").named_parameters()), dict(weights.load(source).named_parameters()))


def chat(answered: bool) -> list[dict[str, Any]]:
    first = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    rest = [{"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Is it red?"}]
    return [first, *rest] if answered else [first]


@pytest.mark.parametrize("given", [False, True], ids=["own", "system"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_native_folders_chat_template_writes_our_prompt(kind: Any, given: bool, tmp_path: Path) -> None:
    """One `<image>` of the tokenizer's, of the id config.json gives it; else the text the codec encodes."""
    from transformers import AutoTokenizer

    opened = families.open_folder(tiny_llava(tmp_path / "source", kind))
    opened.save(tmp_path / "native", "native")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "native")
    image = json.loads((tmp_path / "native" / "config.json").read_text())["image_token_index"]
    assert theirs.convert_tokens_to_ids("<image>") == image
    before = [{"role": "system", "content": "Be brief."}] if given else []
    text = theirs.apply_chat_template([*before, *chat(True)], tokenize=False, add_generation_prompt=True)
    turns = (
        Turn("user", (ImageRef("a"), "\nWhat is it?")),
        Turn("assistant", ("A cat.",)),
        Turn("user", ("Is it red?",)),
    )
    turns = (Turn("system", ("Be brief.",)), *turns) if given else turns
    stretches = render(opened.codec.template, Conversation(turns, "a"), [1], answer=True)
    told = "".join("<image>" if isinstance(s, int) else text_of([s]) for s in stretches)
    begin = theirs.bos_token if opened.codec.template.begins else ""
    assert text == begin + told


def test_the_processor_of_transformers_opens_it(tmp_path: Path) -> None:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    opened = families.open_folder(tiny_llava(tmp_path / "source"))
    opened.save(tmp_path / "native", "native")
    theirs = LlavaNextImageProcessorPil.from_pretrained(tmp_path / "native")
    image = Image.radial_gradient("L").convert("RGB").resize((100, 60))
    image.save(tmp_path / "a.png")
    tiles = opened.codec.prompt(Conversation((ask("?", [tmp_path / "a.png"]),), "a")).pixels
    ours = anyres.normalise(tiles, opened.codec.mean, opened.codec.std)
    assert torch.equal(theirs(image, return_tensors="pt")["pixel_values"][0], ours)


@pytest.mark.parametrize("how", ["folder", "dict", "models"])
def test_where_the_tower_is_found(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_llava(tmp_path / "source")
    (tmp_path / "nas" / "example").mkdir(parents=True)
    shutil.move(str(source / TOWER_ID), str(tmp_path / "nas" / TOWER_ID))
    given: Any = {"folder": tmp_path / "nas" / TOWER_ID, "dict": {"vision_config": TOWER}, "models": None}[how]
    if how == "models":
        told = r"names its vision tower 'example/clip-tiny' and nothing else .* ANYMIX_MODELS"
        with pytest.raises(ValueError, match=told):
            weights.load(source)
        monkeypatch.setenv("ANYMIX_MODELS", str(tmp_path / "nas"))
    net = weights.load(source, vision_config=given)
    assert net.config.vision_config.hidden_size == TOWER["hidden_size"]
    weights.save(net, tmp_path / "out")
    monkeypatch.delenv("ANYMIX_MODELS", raising=False)
    weights.load(tmp_path / "out")  # what was trained opens without being told again


def test_the_released_tower_is_known() -> None:
    tower = configs.tower_of({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, Path("nowhere"))
    assert (tower["image_size"], tower["num_hidden_layers"], tower["hidden_size"]) == (336, 24, 1024)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_aspect_ratio": "pad"}, r"image_aspect_ratio 'pad', expected 'anyres'.* not LLaVA-1.5"),
        ({"mm_patch_merge_type": "flat"}, r"mm_patch_merge_type 'flat', expected 'spatial_unpad'"),
        ({"mm_projector_type": "linear"}, r"mm_projector_type 'linear', expected 'mlp2x_gelu'"),
        ({"image_grid_pinpoints": None}, r"no image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[30, 60]]}, r"canvas 30x60 is no whole number of 28-pixel tiles"),
        ({"hidden_size": 32}, r"has shape .* the folder mixes two models"),
        ({"architectures": ["LlavaQwenForCausalLM"]}, r"no family opens LlavaQwenForCausalLM"),
    ],
)
def test_what_cannot_be_opened_is_said(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    source = tiny_llava(tmp_path / "source")
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=sentence):
        families.open_folder(source)


def test_pinpoints_may_be_text(tmp_path: Path) -> None:
    source = tiny_llava(tmp_path / "source", image_grid_pinpoints=str([tuple(p) for p in PINPOINTS]))
    assert [list(pair) for pair in families.codec_of(source).pinpoints] == PINPOINTS


def test_tables_older_versions_saved_are_passed_over(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = tiny_llava(tmp_path / "source")
    tensors = tensors_of(source)
    extra = {
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(5)[None],
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3),
    }
    wanted = {name: t.clone() for name, t in tensors.items()}
    save_file({**wanted, **extra}, source / "model.safetensors")
    weights.save(weights.load(source), tmp_path / "out")
    assert same(tensors_of(tmp_path / "out"), wanted)


@pytest.mark.parametrize("name", ["model.image_newline", "model.mm_projector.2.bias"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = tiny_llava(tmp_path / "source")
    tensors = {key: t.clone() for key, t in tensors_of(source).items() if key != name}
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match="1 tensors are missing"):
        weights.load(source)
