"""Names of a UNet's layers in the checkpoints of Stable Diffusion 1, 2 and XL (SGM), from the diffusers ones.

There the blocks are numbered through: `input_blocks.4.1` is the attention beside the fourth residual block, counting
down-samplers. Source: the checkpoints themselves and Stability-AI/generative-models openaimodel.py.
"""

from __future__ import annotations

import re
from typing import Any

from anymix.adapters.kinds import plain

RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
BASIC = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original(unet: Any) -> dict[str, str]:
    """diffusers module -> the checkpoint's, for every linear and convolution layer it has a name for."""
    down, up = _starts(unet.down_blocks, 1), _starts(unet.up_blocks, 0)
    found = {}
    for name in plain(unet):
        there = _renamed(unet, name, down, up)
        if there is not None:
            found[name] = there
    return found


def _starts(blocks: Any, first: int) -> list[int]:
    """Number of the first layer of each block; a down-sampler has a number of its own, an up-sampler has not."""
    starts = [first]
    for block in blocks:
        starts.append(starts[-1] + len(block.resnets) + bool(getattr(block, "downsamplers", None)))
    return starts


def _renamed(unet: Any, name: str, down: list[int], up: list[int]) -> str | None:
    if name in BASIC:
        return BASIC[name]
    if middle := _MIDDLE.fullmatch(name):
        what, number, leaf = middle.groups()
        if what == "attentions":
            return f"middle_block.{2 * int(number) + 1}.{leaf}"
        place = 2 * int(number) if len(getattr(unet.mid_block, "attentions", ())) else int(number)
        return f"middle_block.{place}.{RESNET[leaf]}" if leaf in RESNET else None
    if not (found := _PLACE.fullmatch(name)):
        return None
    side, block, what, number, leaf = found[1], int(found[2]), found[3], int(found[4]), found[5]
    stem, starts = ("input_blocks", down) if side == "down" else ("output_blocks", up)
    if what == "attentions":
        return f"{stem}.{starts[block] + number}.1.{leaf}"
    if what == "resnets":
        return f"{stem}.{starts[block] + number}.0.{RESNET[leaf]}" if leaf in RESNET else None
    if what == "downsamplers":
        return f"{stem}.{starts[block + 1] - 1}.0.op" if leaf == "conv" else None
    beside = 1 + bool(getattr(unet.up_blocks[block], "attentions", None))
    return f"{stem}.{starts[block + 1] - 1}.{beside}.conv" if leaf == "conv" else None
