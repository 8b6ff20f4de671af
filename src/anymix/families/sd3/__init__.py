"""Stable Diffusion 3 and 3.5: a transformer that reads a caption through two CLIPs and T5."""

from anymix.families.sd3.family import StableDiffusion3

__all__ = ["StableDiffusion3"]
