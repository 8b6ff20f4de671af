"""InternVL2, from the original checkpoint of any size: codec, weights, and the family itself."""

from anymix.families.internvl2.family import InternVL2

__all__ = ["InternVL2"]
