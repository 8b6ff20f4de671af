"""A native config without the original one inside, written as an original and read back: nothing is dropped."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import InternVLConfig

from anymix.families.internvl2 import configs

SHAPE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 77, "max_window_layers": 3}),
        (
            "phi3",
            {
                "original_max_position_embeddings": 1024, "max_position_embeddings": 4096, "sliding_window": 512,
                "resid_pdrop": 0.1, "embd_pdrop": 0.2, "rope_parameters": LONG,
            },
        ),
    ],
    ids=["llama", "qwen2", "phi3"],
)  # fmt: skip
def test_native_to_original_and_back(kind: str, more: dict[str, Any]) -> None:
    native = InternVLConfig(text_config={"model_type": kind, **SHAPE, **more}, tie_word_embeddings=False)
    tree = configs.original(native)
    again = configs.native(tree, native.image_token_id)
    left, right = native.text_config.to_dict(), again.text_config.to_dict()
    for rope in (left["rope_parameters"], right["rope_parameters"]):
        rope.pop("type", None)  # the older name of rope_type
    right.pop("partial_rotary_factor", None)  # of Phi-3, beside its place in rope_parameters
    assert left == right
    assert {key: tree["llm_config"][key] for key in more if key != "rope_parameters"} == {
        key: value for key, value in more.items() if key != "rope_parameters"
    }


def test_the_rope_of_phi3_is_one_its_original_class_takes() -> None:
    """Its `_rope_scaling_validation` wants exactly three keys, and a type of su or yarn."""
    more = {"rope_parameters": LONG, "original_max_position_embeddings": 1024, "max_position_embeddings": 4096}
    native = InternVLConfig(text_config={"model_type": "phi3", **SHAPE, **more}, tie_word_embeddings=False)
    scaling = configs.original(native)["llm_config"]["rope_scaling"]
    assert scaling == {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
