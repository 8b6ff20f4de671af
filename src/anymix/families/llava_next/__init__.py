"""LLaVA-1.6 (LLaVA-NeXT), from the original checkpoint of any size: codec, weights, and the family itself."""

from anymix.families.llava_next.family import LlavaNext

__all__ = ["LlavaNext"]
