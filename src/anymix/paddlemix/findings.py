"""What PaddleMIX 2.1 does wrong in these scripts and anymix does not, by number: what a plan's notes refer to.

Read in its sources at commit 6afaf05 (branch develop, whose code is that of release/2.1). F1 to F10 are the gravest.
The table of docs/from_paddlemix.md is this one.
"""

from __future__ import annotations

FINDINGS: dict[int, tuple[str, str]] = {  # what theirs does, what is done here
    1: ("weights were updated twice for every batch (`scaler.step`, then `optimizer.step`)", "once"),
    2: ("gradient accumulation did not accumulate: every small batch was a step", "they are summed, then one step"),
    3: ("pictures were learned on one NPU only, whatever was started", "`nproc=8` is eight cards with one loss"),
    4: ("resuming restored neither weights nor optimizer", "a run goes on bitwise where it was cut off"),
    5: ("`--use_ema` overwrote the trained UNet with the one it began from", "the running mean of the run is saved"),
    6: ("`--not_validation_final` also left out saving the model", "weights are saved before anything is drawn"),
    7: ("the page's inference lines loaded the trained weights and drew without them",
        "weights that are named and change nothing are an error"),
    8: ("recompute, grad_checkpoint and flash attention of InternVL2 were switched off in its code",
        "they do what is typed"),
    9: ("on an NPU the loss of InternVL2 was divided by all tokens, pictures and padding too",
        "by those of the answers, on every device"),
    10: ("video rows and LoRA of InternVL2 failed behind flags that promised them", "both train"),
    11: ("`--mixed_precision` was passed over, everything computed in fp16", "it is what is typed"),
    12: ("`--snr_gamma` weighed a whole batch by its first picture", "each picture by its own time"),
    13: ("`--gradient_checkpointing` of the SDXL LoRA script was passed over", "it saves memory"),
    14: ("`--seed=0` left previews without a seed", "0 is a seed"),
    15: ("encoded pictures were kept under one name, whatever the size or the data", "by their content"),
    16: ("crop, mirror and empty captions were drawn once for the whole run", "anew each epoch"),
    17: ("prior preservation failed in its first step, on arguments that only torch's reshape takes",
         "class pictures weigh as the paper says"),
    18: ("a row that could not be read was replaced by another at random", "it is named before the first step"),
    19: ("a row that was too long was cut, through pictures too, and then taught nothing", "nothing is cut"),
    20: ("the size of a model was guessed from the end of its folder's name, so your own would not open",
         "its config.json says what it is"),
    21: ("the configs of LLaVA-1.6 trained in fp32, without its tiles", "tiles are on, the precision is what is typed"),
    22: ("keys of a config file that nobody reads were dropped in silence", "each is an error with the nearest name"),
    23: ("token 0, a real one of the 1B model, was taken for padding", "there is no padding"),
    24: ("only the toolbox had a device setting", "every command has `--device`"),
    25: ("`--weighting_scheme` logit_normal and mode multiplied the loss by a number drawn apart from its time",
         "times are drawn by them, as in the paper"),
}  # fmt: skip


def sentence(number: int) -> str:
    theirs, here = FINDINGS[number]
    return f"F{number}: {theirs}; here: {here}".replace("`", "")
