"""LLaVA-1.6 tensor names, original <-> transformers, as pure functions; no tensor is changed on the way.

Original: `LlavaLlamaForCausalLM` (llava/model, haotian-liu/LLaVA c121f043). Native: transformers'
`LlavaNextForConditionalGeneration`, whose tower lost a `vision_model.` in its names in later versions.
"""

from __future__ import annotations

from typing import Any

TOWER = "model.vision_tower.vision_tower.vision_model."
_NATIVE_TOWER = "model.vision_tower."
_LANGUAGE = "model.language_model."
_PROJECTOR = {
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
}
_SAME = ("lm_head.weight", "model.image_newline")
_COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")  # older versions saved what is computed


def tower_prefix(net: Any) -> str:
    """What stands before the names of the vision tower's parameters in this version of transformers."""
    inside = hasattr(net.model.vision_tower, "vision_model")
    return f"{_NATIVE_TOWER}vision_model." if inside else _NATIVE_TOWER


def is_computed(name: str) -> bool:
    """Whether an original tensor is a table that the net makes itself."""
    return name.endswith(_COMPUTED)


def native(name: str, tower: str) -> str | None:
    """The native name of an original one; None for one LLaVA-1.6 does not have."""
    if name in _SAME:
        return name
    if name.startswith(TOWER):
        return tower + name.removeprefix(TOWER)
    for theirs, ours in _PROJECTOR.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")):
        return _LANGUAGE + name.removeprefix("model.")
    return None


def original(name: str, tower: str) -> str:
    """The original name of a native one."""
    if name in _SAME:
        return name
    for theirs, ours in _PROJECTOR.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    if name.startswith(tower):
        return TOWER + name.removeprefix(tower)
    return "model." + name.removeprefix(_LANGUAGE)
