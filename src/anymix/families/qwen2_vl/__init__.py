"""Qwen2-VL of any size: codec with pictures and videos, weights, and the family itself."""

from anymix.families.qwen2_vl.family import Qwen2VL

__all__ = ["Qwen2VL"]
