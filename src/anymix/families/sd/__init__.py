"""Stable Diffusion 1 and 2: codec and family."""

from anymix.families.sd.family import StableDiffusion

__all__ = ["StableDiffusion"]
