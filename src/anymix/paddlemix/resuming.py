"""`--resume_from_checkpoint`: their names of checkpoints, as those of here."""

from __future__ import annotations

import re
from pathlib import Path

from anymix.paddlemix.commands import Plan, Values


def resumed(values: Values, plan: Plan) -> None:
    """`latest` is `resume: auto`, and OUT/checkpoint-500 the folder that holds step 500 here."""
    asked = values["resume_from_checkpoint"]
    step = re.fullmatch(r"checkpoint-(\d+)", Path(asked).name)
    if step is not None:
        asked = f"{values['output_dir']}/checkpoints/step-{int(step[1]):06d}"
        plan.say(f"{values.dashes}resume_from_checkpoint: checkpoints are named otherwise here, this one {asked}")
    plan.put("resume", "auto" if asked == "latest" else asked)
