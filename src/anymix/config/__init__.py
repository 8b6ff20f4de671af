"""`Run`: one frozen description of a training run, from a YAML (or JSON) recipe and `key=value` overrides.

Imports no torch, so the command line can check a recipe before anything slow happens.
"""

from anymix.config.keys import keys
from anymix.config.reading import dump, load, shipped_recipes
from anymix.config.sections import (
    Adapter,
    Cache,
    Checkpointing,
    Data,
    Device,
    DreamBooth,
    Model,
    Objective,
    Previews,
    Run,
    Section,
    Train,
)

__all__ = [
    "Adapter",
    "Cache",
    "Checkpointing",
    "Data",
    "Device",
    "DreamBooth",
    "Model",
    "Objective",
    "Previews",
    "Run",
    "Section",
    "Train",
    "dump",
    "keys",
    "load",
    "shipped_recipes",
]
