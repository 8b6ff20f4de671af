"""Round trips through every form, and the names of real models: what a program that reads them must find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from anymix.adapters import formats, kinds, loading, lora, names, reading
from drawing_nets import FAMILIES, answer, net, trained

THREE = ("sd1", "sdxl", "sd3")  # the second differs from the first in its text encoder's name only
ROUND = [("lora", form) for form in names.FORMS] + [
    (kind, form) for kind in ("loha", "lokr") for form in names.FORMS[1:]
]


@pytest.mark.parametrize("family", THREE)
@pytest.mark.parametrize(("kind", "form"), ROUND)
def test_there_and_back_gives_the_same_outputs(family: str, kind: str, form: str, tmp_path: Path) -> None:
    made = trained(family, kind=kind)
    if (family, kind, form) == ("sd3", "lokr", "kohya"):
        with pytest.raises(ValueError, match="q, k and v as one layer.* write comfyui"):
            formats.write(made, tmp_path / "a.safetensors", form)
        assert not list(tmp_path.iterdir())
        return
    count = formats.write(made, tmp_path / "a.safetensors", form)
    fresh = net(family)
    plain, wanted = answer(fresh), answer(made)
    found = loading.load_file(fresh, tmp_path / "a.safetensors")
    assert found.tensors == count == len(load_file(tmp_path / "a.safetensors"))
    assert set(found.updates) == set(lora.adapted(made)) == set(lora.adapted(fresh))
    assert (wanted - plain).abs().max() > 0.5
    assert torch.allclose(answer(fresh), wanted, rtol=0, atol=1e-5)
    assert not lora.trainable(fresh)


@pytest.mark.parametrize(("family", "dora"), [*((family, False) for family in FAMILIES), ("sd1", True), ("sd3", True)])
def test_diffusers_to_kohya_to_comfyui_and_back(family: str, dora: bool, tmp_path: Path) -> None:
    made, blank = trained(family, dora=dora), net(family)
    if dora and family == "sd3":  # to_k of the context is not adapted there, and a DoRA fuses all three or none
        with pytest.raises(ValueError, match="a DoRA of some of q, k and v"):
            formats.write(made, tmp_path / "k.safetensors", "kohya")
        return
    formats.write(made, tmp_path / "a.safetensors", "diffusers")
    first = reading.read(blank, tmp_path / "a.safetensors")
    formats.write(blank, tmp_path / "b.safetensors", "kohya", found=first.updates)
    second = reading.read(blank, tmp_path / "b.safetensors")
    formats.write(blank, tmp_path / "c.safetensors", "comfyui", found=second.updates)
    third = reading.read(blank, tmp_path / "c.safetensors")
    formats.write(blank, tmp_path / "d.safetensors", "diffusers", found=third.updates)
    again, start = load_file(tmp_path / "d.safetensors"), load_file(tmp_path / "a.safetensors")
    assert again.keys() == start.keys()
    assert all(torch.allclose(again[name], start[name], atol=1e-6) for name in start)
    assert _entry(tmp_path / "d.safetensors") == _entry(tmp_path / "a.safetensors")
    kinds.put_in(blank, third.updates)
    assert torch.allclose(answer(blank), answer(made), rtol=0, atol=1e-5)


def _entry(path: Path) -> Any:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[reading.METADATA])


@pytest.mark.parametrize("family", ["sd1", "sd3"])
@pytest.mark.parametrize("form", names.FORMS)
def test_ranks_and_alphas_of_every_layer_are_kept(family: str, form: str, tmp_path: Path) -> None:
    one, two = kinds.updates(trained(family)), kinds.updates(trained(family, rank=5, alpha=2.0))
    mixed = {name: (one if number % 2 else two)[name] for number, name in enumerate(one)}
    made, fresh = net(family), net(family)
    kinds.put_in(made, mixed)
    formats.write(fresh, tmp_path / "a.safetensors", form, found=mixed)
    found = loading.load_file(fresh, tmp_path / "a.safetensors").updates
    assert {name: u.rank for name, u in found.items()} == {name: u.rank for name, u in mixed.items()}
    fused = {m for place in names.written(made, form).values() if len(place.modules) > 1 for m in place.modules}
    for name, update in mixed.items():  # one layer for q, k and v has one scale; what is left of it stands in B
        assert name in fused or found[name].alpha == pytest.approx(update.alpha)
    assert torch.allclose(answer(fresh), answer(made), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------- the names of real models


def _sdxl() -> nn.Module:
    made: Any = nn.Module()
    with torch.device("meta"):
        made.unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=2048,
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
            attention_head_dim=(5, 10, 20), addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    return made


def test_names_of_sdxl_are_those_of_its_checkpoint() -> None:
    """Known from files that are about; 722 layers of attention are what kohya's scripts train in this UNet."""
    made = _sdxl()
    kohya, comfyui = names.written(made, "kohya"), names.written(made, "comfyui")
    assert len(kohya) == len(comfyui) == len(kinds.plain(made)) == 794
    deep = "attentions.0.transformer_blocks"
    known = {
        "input_blocks.0.0": "conv_in",
        "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
        "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "input_blocks.4.1.transformer_blocks.1.attn2.to_k": f"down_blocks.1.{deep}.1.attn2.to_k",
        "input_blocks.8.1.proj_in": "down_blocks.2.attentions.1.proj_in",
        "middle_block.0.emb_layers.1": "mid_block.resnets.0.time_emb_proj",
        "middle_block.1.transformer_blocks.9.ff.net.0.proj": f"mid_block.{deep}.9.ff.net.0.proj",
        "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
        "output_blocks.2.2.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.5.1.transformer_blocks.0.attn1.to_out.0": (
            "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0"
        ),
        "output_blocks.8.0.in_layers.2": "up_blocks.2.resnets.2.conv1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "out.2": "conv_out",
    }
    for theirs, ours in known.items():
        assert comfyui[f"diffusion_model.{theirs}"] == names.Place((f"unet.{ours}",))
        assert kohya["lora_unet_" + theirs.replace(".", "_")] == names.Place((f"unet.{ours}",))
    inside = [n for n in kohya if "transformer_blocks" in n or n.endswith(("proj_in", "proj_out"))]
    assert len(inside) == 722


def test_names_of_sd3_are_those_of_its_checkpoint() -> None:
    made: Any = nn.Module()
    with torch.device("meta"):
        made.transformer = SD3Transformer2DModel(
            sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, caption_projection_dim=1536,
            pos_embed_max_size=192, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
        )  # fmt: skip
    kohya, comfyui = names.written(made, "kohya"), names.written(made, "comfyui")
    # a block: 2 qkv, 2 proj, 4 mlp, 2 modulations, and 2 more of a second attention; the last context only goes in
    assert len(kohya) == len(comfyui) == 24 * 10 + 13 * 2 - 3 + 8
    assert {m for place in kohya.values() for m in place.modules} == {
        f"transformer.{n}" for n in kinds.plain(made.transformer)
    }
    block = "transformer.transformer_blocks.0"
    qkv = tuple(f"{block}.attn.to_{letter}" for letter in "qkv")
    assert kohya["lora_unet_joint_blocks_0_x_block_attn_qkv"] == names.Place(qkv)
    assert comfyui["diffusion_model.joint_blocks.0.x_block.attn.qkv"] == names.Place(qkv)
    assert comfyui["diffusion_model.joint_blocks.0.context_block.mlp.fc1"].modules == (
        f"{block}.ff_context.net.0.proj",
    )
    swapped = {name for name, place in comfyui.items() if place.swapped}
    assert swapped == {
        "diffusion_model.final_layer.adaLN_modulation.1",
        "diffusion_model.joint_blocks.23.context_block.adaLN_modulation.1",
    }


def test_text_encoders_have_the_names_each_program_knows() -> None:
    layer = "text_model.encoder.layers.1.self_attn.q_proj"
    flat = layer.replace(".", "_")
    expected = {
        "sd1": ({f"lora_te_{flat}"}, {f"text_encoders.clip_l.transformer.{layer}"}),
        "sd2": ({f"lora_te_{flat}"}, {f"text_encoders.clip_h.transformer.{layer}"}),
        "sdxl": (
            {f"lora_te1_{flat}", f"lora_te2_{flat}"},
            {f"text_encoders.clip_{x}.transformer.{layer}" for x in "lg"},
        ),
    }
    expected["sd3"] = expected["sdxl"]
    for family, (kohya, comfyui) in expected.items():
        made = net(family)
        assert kohya == {
            n for n in names.written(made, "kohya") if n.startswith("lora_te") and n.endswith("1_self_attn_q_proj")
        }
        assert comfyui == {
            n for n in names.written(made, "comfyui") if "clip" in n and n.endswith("1.self_attn.q_proj")
        }
        assert f"text_encoder.{layer}" in names.written(made, "diffusers")


def test_the_fused_layer_is_the_three_and_halves_are_turned(tmp_path: Path) -> None:
    """By hand, from the file's own tensors: what ComfyUI and kohya's scripts would add to the checkpoint's weights."""
    made = trained("sd3")
    deltas = {name: _delta(update) for name, update in kinds.updates(made).items()}
    formats.write(made, tmp_path / "a.safetensors", "kohya")
    tensors = load_file(tmp_path / "a.safetensors")

    def theirs(name: str) -> torch.Tensor:
        up, down = tensors[f"lora_unet_{name}.lora_up.weight"], tensors[f"lora_unet_{name}.lora_down.weight"]
        return up @ down * tensors[f"lora_unet_{name}.alpha"] / down.shape[0]

    block = "transformer.transformer_blocks.1.attn"
    whole = torch.cat([deltas[f"{block}.to_{letter}"] for letter in "qkv"])
    assert torch.allclose(theirs("joint_blocks_1_x_block_attn_qkv"), whole, atol=1e-6)
    parts = [deltas[f"{block}.add_q_proj"], torch.zeros(16, 16), deltas[f"{block}.add_v_proj"]]  # k is not adapted
    assert torch.allclose(theirs("joint_blocks_1_context_block_attn_qkv"), torch.cat(parts), atol=1e-6)
    for name, ours in (
        ("final_layer_adaLN_modulation_1", "norm_out.linear"),
        ("joint_blocks_2_context_block_adaLN_modulation_1", "transformer_blocks.2.norm1_context.linear"),
    ):
        scale, shift = deltas[f"transformer.{ours}"].chunk(2)
        assert torch.allclose(theirs(name), torch.cat([shift, scale]), atol=1e-6)


def _delta(update: kinds.Update) -> torch.Tensor:
    return (update.tensors["lora_B"].flatten(1) @ update.tensors["lora_A"].flatten(1)) * update.scale


def test_a_fused_file_that_shares_its_down_comes_back_as_it_was(tmp_path: Path) -> None:
    """As kohya's scripts train it: one down for q, k and v. Blocks of zeros would make it three times as large."""
    made = net("sd3")
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 16, generator=draw)
    ups = {letter: torch.randn(16, 4, generator=draw) for letter in "qkv"}
    found = {
        f"transformer.transformer_blocks.0.attn.to_{letter}": kinds.Update(
            "lora", {"lora_A": shared, "lora_B": up}, 4, 2
        )
        for letter, up in ups.items()
    }
    formats.write(made, tmp_path / "a.safetensors", "kohya", found=found)
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"].shape == (4, 16)
    assert reading.read(made, tmp_path / "a.safetensors").updates.keys() == found.keys()
    formats.write(
        made, tmp_path / "b.safetensors", "diffusers", found=reading.read(made, tmp_path / "a.safetensors").updates
    )
    assert len(load_file(tmp_path / "b.safetensors")) == 6


def test_what_a_form_has_no_place_for_is_named(tmp_path: Path) -> None:
    for kind in ("loha", "lokr"):
        with pytest.raises(
            ValueError, match=f"diffusers does not read {kinds.TITLES[kind]}; write it as kohya or comfyui"
        ):
            formats.write(trained("sd1", kind=kind), tmp_path / "a.safetensors", "diffusers")
    made: Any = net("sd1")
    made.vae = nn.Linear(3, 3)
    lora.attach(made, _adapter(["vae"]), {})
    with pytest.raises(ValueError, match="vae has no name in a file of the form kohya"):
        formats.write(made, tmp_path / "a.safetensors", "kohya")
    with pytest.raises(ValueError, match="diffusers, kohya, comfyui, found 'a1111'"):
        formats.write(trained("sd1"), tmp_path / "a.safetensors", "a1111")
    assert not list(tmp_path.iterdir())


def _adapter(targets: list[str]) -> Any:
    from anymix.config import Adapter

    return Adapter(rank=2, targets=targets)
