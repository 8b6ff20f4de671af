"""The model under a LoRA, drawn from what the file itself says: every size of SD3 has its own blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anymix.adapters import formats, outline, reading
from anymix.adapters.names import family_of


def kohya(path: Path, layer: str, rows: int, columns: int) -> Path:
    """A file of one layer in kohya's names, of which nothing says which model it is for."""
    tensors = {"lora_down.weight": torch.ones(2, columns), "lora_up.weight": torch.ones(rows, 2)}
    save_file({f"lora_unet_joint_blocks_{layer}.{leaf}": t for leaf, t in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("layer", "rows", "columns", "modules"),
    [
        ("23_x_block_attn_proj", 1536, 1536, ["transformer.transformer_blocks.23.attn.to_out.0"]),  # SD3
        ("3_x_block_attn2_proj", 1536, 1536, ["transformer.transformer_blocks.3.attn2.to_out.0"]),  # 3.5 medium
        ("3_x_block_adaLN_modulation_1", 9 * 1536, 1536, ["transformer.transformer_blocks.3.norm1.linear"]),
        ("3_x_block_attn_proj", 2432, 2432, ["transformer.transformer_blocks.3.attn.to_out.0"]),  # 3.5 large
        (
            "37_x_block_attn_qkv",
            3 * 2432,
            2432,
            [f"transformer.transformer_blocks.37.attn.to_{x}" for x in "qkv"],
        ),
    ],
)
def test_every_size_of_sd3_has_a_place_for_its_loras(
    layer: str, rows: int, columns: int, modules: list[str], tmp_path: Path
) -> None:
    source = kohya(tmp_path / "a.safetensors", layer, rows, columns)
    net, under = outline.under(source)
    assert (family_of(net), under) == ("sd3", "")
    found = reading.read(net, source)
    assert sorted(found.updates) == sorted(modules)
    formats.write(net, tmp_path / "b.safetensors", "diffusers", found=found.updates)
    assert sorted(reading.read(net, tmp_path / "b.safetensors").updates) == sorted(modules)


def test_a_checkpoint_of_sd3_tells_its_own_shape(tmp_path: Path) -> None:
    """As fine-tunes and cut-down models have others than the published ones."""
    width = 5 * 64
    block = "model.diffusion_model.joint_blocks"
    tensors = {
        f"{block}.0.x_block.attn.qkv.weight": torch.zeros(3 * width, width),
        f"{block}.1.x_block.attn2.qkv.weight": torch.zeros(3 * width, width),
        "model.diffusion_model.x_embedder.proj.weight": torch.zeros(width, 16, 2, 2),
        "model.diffusion_model.context_embedder.weight": torch.zeros(width, 4096),
        "model.diffusion_model.final_layer.linear.weight": torch.zeros(64, width),
        "model.diffusion_model.y_embedder.mlp.0.weight": torch.zeros(width, 2048),
        "model.diffusion_model.pos_embed": torch.zeros(1, 16, width),
    }
    save_file(tensors, tmp_path / "base.safetensors")
    source = kohya(tmp_path / "a.safetensors", "1_x_block_attn2_proj", width, width)
    net, under = outline.under(source, tmp_path / "base.safetensors")
    assert under == tmp_path / "base.safetensors"
    assert list(reading.read(net, source).updates) == ["transformer.transformer_blocks.1.attn2.to_out.0"]
