"""What a younger starter takes over from the first one: words, the language model, and what of its tower fits.

The first starter's weights were made from nothing by the same stages. A Llama, a Qwen2 and an InternLM2 of one shape
are one network (a Qwen2 has biases beside, here zero, and M-RoPE turns words as plain rope does), so words and all
that is done with them need not be learned again. Its patches, norms and layers fit the other towers too; what a CLIP
or a Qwen2-VL has beyond that begins as if it were not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anymix.families.common.folders import resolve
from anymix.families.common.words import Words
from anymix.families.internvl2 import InternVL2

FIRST = "starter:internvl2"
SAME_MARKS = {  # a mark -> what the first starter calls it
    "<|vision_start|>": "<img>", "<|vision_end|>": "</img>", "<|endoftext|>": "</s>",
}  # fmt: skip


def first() -> InternVL2:
    """The first starter, fp32."""
    return InternVL2.open(resolve(FIRST), dtype=torch.float32)


def language(net: Any, words: Words, source: InternVL2) -> None:
    """Give a net of the same shape the first starter's language model; entries are found by their text."""
    old, known = source.net, source.codec.words
    entries = {known.piece(id): id for id in range(len(known))}
    with torch.no_grad():
        theirs = dict(old.model.language_model.named_parameters())
        for name, parameter in net.model.language_model.named_parameters():
            if name in theirs and parameter.shape == theirs[name].shape and "embed" not in name:
                parameter.copy_(theirs[name])
        for table, other in (
            (net.get_input_embeddings(), old.get_input_embeddings()), (net.lm_head, old.lm_head),
        ):  # fmt: skip
            for id in range(len(table.weight)):
                text = words.piece(id)
                same = entries.get(SAME_MARKS.get(text, text))
                if same is not None:
                    table.weight[id] = other.weight[same]


def tower(
    source: InternVL2, mean: Sequence[float], std: Sequence[float]
) -> tuple[Mapping[str, Tensor], list[Mapping[str, Tensor]]]:
    """The first starter's tower -> what is before its layers, and each layer, with its layer scales folded in.

    Before: cls_token, position_embeddings, kernel, shift (the bias of the patches), for pixels normalised by `mean` and
    `std` instead of its own. A layer: norm1, norm2, q, k, v, out, fc1, fc2, each as .weight and .bias."""
    parts: Any = source.net.model.vision_tower
    patch = parts.embeddings.patch_embeddings.projection
    theirs = [torch.tensor(c) for c in (source.codec.mean, source.codec.std)]
    ours = [torch.tensor(tuple(c)) for c in (mean, std)]
    moved = (ours[0] - theirs[0]) / theirs[1]
    before = {
        "cls_token": parts.embeddings.cls_token.detach(),
        "position_embeddings": parts.embeddings.position_embeddings.detach(),
        "kernel": patch.weight.detach() * (ours[1] / theirs[1])[:, None, None],
        "shift": patch.bias.detach() + (patch.weight.detach().sum((2, 3)) * moved).sum(1),
    }
    return before, [_layer(layer) for layer in parts.encoder.layer]


def _layer(layer: Any) -> dict[str, Tensor]:
    own: dict[str, nn.Module] = {
        "norm1": layer.layernorm_before, "norm2": layer.layernorm_after, "q": layer.attention.q_proj,
        "k": layer.attention.k_proj, "v": layer.attention.v_proj, "out": layer.attention.projection_layer,
        "fc1": layer.mlp.fc1, "fc2": layer.mlp.fc2,
    }  # fmt: skip
    found = {f"{name}.{leaf}": p.detach() for name, part in own.items() for leaf, p in part.named_parameters()}
    for name, scale in (("out", layer.lambda_1), ("fc2", layer.lambda_2)):
        found[f"{name}.weight"] = found[f"{name}.weight"] * scale.detach()[:, None]
        found[f"{name}.bias"] = found[f"{name}.bias"] * scale.detach()
    return found


def give(module: nn.Module, values: Mapping[str, Tensor], name: str) -> None:
    """`values`' `name`.weight and .bias into a module."""
    with torch.no_grad():
        for leaf, parameter in module.named_parameters():
            parameter.copy_(values[f"{name}.{leaf}"])
