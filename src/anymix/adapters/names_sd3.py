"""Names of SD3's transformer in its checkpoints (MMDiT), from the diffusers ones.

There q, k and v of a stream are one layer, and the two layers that modulate the last norms give (shift, scale) where
diffusers has (scale, shift). Source: the checkpoints, and Stability-AI/sd3-ref mmdit.py (paper: arXiv 2403.03206).
"""

from __future__ import annotations

from typing import Any

from anymix.adapters.kinds import plain

BASIC = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
BLOCK = {
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
}


def original(transformer: Any) -> dict[str, tuple[tuple[str, ...], bool]]:
    """The checkpoint's module -> (diffusers modules whose rows it stacks, whether its halves are the other way)."""
    able = plain(transformer)
    last = len(transformer.transformer_blocks) - 1
    found: dict[str, tuple[tuple[str, ...], bool]] = {}
    found |= {there: ((here,), there.startswith("final_layer.ada")) for there, here in BASIC.items() if here in able}
    for number in range(last + 1):
        ours, theirs = f"transformer_blocks.{number}.", f"joint_blocks.{number}."
        for there, parts in FUSED.items():
            if all(ours + part in able for part in parts):
                found[theirs + there] = (tuple(ours + part for part in parts), False)
        for there, here in BLOCK.items():
            if ours + here in able:
                swapped = here == "norm1_context.linear" and number == last  # the last one only shifts and scales
                found[theirs + there] = ((ours + here,), swapped)
    return found
