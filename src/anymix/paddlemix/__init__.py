"""PaddleMIX's own command lines, configs and scripts by name, run here: a leaf that only the command line imports."""

from anymix.paddlemix.commands import Flag, Plan, Script, Values
from anymix.paddlemix.findings import FINDINGS, sentence
from anymix.paddlemix.scripts import scripts, translate, variables

__all__ = ["FINDINGS", "Flag", "Plan", "Script", "Values", "scripts", "sentence", "translate", "variables"]
