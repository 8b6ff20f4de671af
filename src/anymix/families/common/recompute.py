"""Gradient checkpointing of a transformers model, one block at a time (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from typing import Any


def recompute_blocks(tower: Any) -> None:
    """Keep only the blocks' inputs in training and compute the rest again in backward.

    transformers 5.2x renamed the switch; the old name warns there and is the only one before."""
    how = {"use_reentrant": False}
    if hasattr(tower, "activation_checkpointing_enable"):
        tower.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
