"""Stable Diffusion XL: codec and family."""

from anymix.families.sdxl.family import StableDiffusionXL

__all__ = ["StableDiffusionXL"]
