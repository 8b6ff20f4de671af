"""InternVL2 tensor names and fusions, original <-> transformers, both ways, as pure functions.

Original: OpenGVLab's `InternVLChatModel` (internvl_chat/internvl/model). Native: transformers'
`InternVLForConditionalGeneration`. Three things differ beyond names:

- the vision tower's `attn.qkv` holds q, k, v as three blocks of rows;
- InternLM2's `attention.wqkv` interleaves them per key/value group: viewed as (KV, H/KV + 2, D, hidden) the first
  H/KV rows of a group are its queries, then one key, then one value. So also for plain multi-head (H = KV);
- Phi-3 keeps its fused `qkv_proj` and `gate_up_proj` in both.

A checkpoint trained with the original LoRA switches carries peft's marks in its names (`base_model.model.`,
`.base_layer.`) and its `lora_A/B` beside the weights; `clean` and `lora_pairs` undo both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_VISION_LAYER = {
    "ls1": ("lambda_1",),
    "ls2": ("lambda_2",),
    "attn.qkv.weight": tuple(f"attention.{x}_proj.weight" for x in "qkv"),
    "attn.qkv.bias": tuple(f"attention.{x}_proj.bias" for x in "qkv"),
    "attn.proj.weight": ("attention.projection_layer.weight",),
    "attn.proj.bias": ("attention.projection_layer.bias",),
    "attn.q_norm.weight": ("attention.q_norm.weight",),
    "attn.k_norm.weight": ("attention.k_norm.weight",),
    "norm1.weight": ("layernorm_before.weight",),
    "norm1.bias": ("layernorm_before.bias",),
    "norm2.weight": ("layernorm_after.weight",),
    "norm2.bias": ("layernorm_after.bias",),
    "mlp.fc1.weight": ("mlp.fc1.weight",),
    "mlp.fc1.bias": ("mlp.fc1.bias",),
    "mlp.fc2.weight": ("mlp.fc2.weight",),
    "mlp.fc2.bias": ("mlp.fc2.bias",),
}
_PATCH = "model.vision_tower.embeddings.patch_embeddings.projection"
_OUTER = {
    "vision_model.embeddings.class_embedding": "model.vision_tower.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": "model.vision_tower.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.weight": f"{_PATCH}.weight",
    "vision_model.embeddings.patch_embedding.bias": f"{_PATCH}.bias",
    "mlp1.0.weight": "model.multi_modal_projector.layer_norm.weight",
    "mlp1.0.bias": "model.multi_modal_projector.layer_norm.bias",
    "mlp1.1.weight": "model.multi_modal_projector.linear_1.weight",
    "mlp1.1.bias": "model.multi_modal_projector.linear_1.bias",
    "mlp1.3.weight": "model.multi_modal_projector.linear_2.weight",
    "mlp1.3.bias": "model.multi_modal_projector.linear_2.bias",
}
_INTERNLM2_OUTER = {
    "language_model.model.tok_embeddings.weight": "model.language_model.embed_tokens.weight",
    "language_model.model.norm.weight": "model.language_model.norm.weight",
    "language_model.output.weight": "lm_head.weight",
}
_INTERNLM2_LAYER = {
    "attention.wqkv.weight": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    "attention.wqkv.bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
    "attention.wo.weight": ("self_attn.o_proj.weight",),
    "attention.wo.bias": ("self_attn.o_proj.bias",),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight",),
    "feed_forward.w3.weight": ("mlp.up_proj.weight",),
    "feed_forward.w2.weight": ("mlp.down_proj.weight",),
    "attention_norm.weight": ("input_layernorm.weight",),
    "ffn_norm.weight": ("post_attention_layernorm.weight",),
}
_LAYER = re.compile(r"(vision_model\.encoder\.layers|language_model\.model\.layers)\.(\d+)\.(.+)")
_NATIVE_STEM = {
    "vision_model.encoder.layers": "model.vision_tower.encoder.layer",
    "language_model.model.layers": "model.language_model.layers",
}
_LORA = re.compile(r"(.+)\.lora_(A|B)(?:\.\w+)?\.weight")


@dataclass(frozen=True)
class Naming:
    """What the names of one checkpoint depend on: its language model and how many heads share a key."""

    internlm2: bool
    heads: int = 1
    kv_heads: int = 1

    def native(self, name: str) -> tuple[str, ...]:
        """The native names a (clean) original tensor becomes; () when no such tensor is known."""
        if name in _OUTER:
            return (_OUTER[name],)
        if self.internlm2 and name in _INTERNLM2_OUTER:
            return (_INTERNLM2_OUTER[name],)
        layer = _LAYER.fullmatch(name)
        if layer is not None:
            stem, index, leaf = layer.groups()
            table = _VISION_LAYER if stem.startswith("vision") else _INTERNLM2_LAYER if self.internlm2 else None
            leaves = (leaf,) if table is None else table.get(leaf, ())
            return tuple(f"{_NATIVE_STEM[stem]}.{index}.{x}" for x in leaves)
        if not self.internlm2 and name == "language_model.lm_head.weight":
            return ("lm_head.weight",)
        if not self.internlm2 and name.startswith("language_model.model."):
            return ("model.language_model." + name.removeprefix("language_model.model."),)
        return ()

    def split(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """Original tensor -> the tensors named by `native(name)`, as contiguous copies where it was fused."""
        if name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
            return tuple(part.clone() for part in tensor.chunk(3))
        if ".attention.wqkv." in name:
            return tuple(
                part.reshape(-1, *tensor.shape[1:]).clone()
                if part.is_contiguous()
                else part.reshape(-1, *tensor.shape[1:])
                for part in self._groups(tensor)
            )
        return (tensor,)

    def fuse(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """The way back: tensors named by `native(name)` -> the original one. `fuse(n, split(n, t)) == t` bitwise."""
        if ".attention.wqkv." in name:
            q, k, v = parts
            rest = q.shape[1:]
            dim = k.shape[0] // self.kv_heads
            q = q.reshape(self.kv_heads, -1, dim, *rest)  # (KV, H/KV, D, hidden)
            k, v = (x.reshape(self.kv_heads, 1, dim, *rest) for x in (k, v))
            return torch.cat((q, k, v), dim=1).reshape(-1, *rest)
        if len(parts) > 1:
            return torch.cat(tuple(parts))
        return parts[0]

    def originals(self, native: Iterable[str], layers: tuple[int, int]) -> dict[str, tuple[str, ...]]:
        """Every original name, with its native ones, for a net that has the `native` tensors.

        `layers` counts the (vision, language) blocks. Raises ValueError for a native tensor without a place."""
        have = set(native)
        names = [*_OUTER, *(_INTERNLM2_OUTER if self.internlm2 else ())]
        names += [f"vision_model.encoder.layers.{i}.{leaf}" for i in range(layers[0]) for leaf in _VISION_LAYER]
        if self.internlm2:
            stem = "language_model.model.layers"
            names += [f"{stem}.{i}.{leaf}" for i in range(layers[1]) for leaf in _INTERNLM2_LAYER]
        else:
            names += ["language_model." + n if n == "lm_head.weight" else _plain(n) for n in have if _is_language(n)]
        found = {name: parts for name in names if (parts := self.native(name)) and have.issuperset(parts)}
        orphans = have - {part for parts in found.values() for part in parts}
        if orphans:
            raise ValueError(f"the original layout has no place for {sorted(orphans)[0]}")
        return found

    def _groups(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest = tensor.shape[1:]
        grouped = tensor.view(self.kv_heads, self.heads // self.kv_heads + 2, -1, *rest)  # (KV, g + 2, D, hidden)
        return grouped[:, :-2], grouped[:, -2], grouped[:, -1]


def _is_language(name: str) -> bool:
    return name == "lm_head.weight" or name.startswith("model.language_model.")


def _plain(name: str) -> str:
    return "language_model.model." + name.removeprefix("model.language_model.")


def clean(name: str) -> str:
    """A name without the marks peft leaves in it: `base_model.model.` and `.base_layer.`."""
    for tower in ("language_model.", "vision_model."):
        if name.startswith(tower + "base_model.model."):
            name = tower + name.removeprefix(tower + "base_model.model.")
    return name.replace(".base_layer.", ".")


def lora_pairs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Clean weight name -> its (lora_A, lora_B) tensor names, for checkpoints saved unmerged."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        match = _LORA.fullmatch(name)
        if match:
            found.setdefault(clean(match.group(1) + ".weight"), {})[match.group(2)] = name
    return {weight: (pair["A"], pair["B"]) for weight, pair in found.items() if len(pair) == 2}


def is_lora(name: str) -> bool:
    return _LORA.fullmatch(name) is not None
