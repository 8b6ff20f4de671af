"""What PaddleMIX 2.1 does wrong in these scripts and anymix does not, by number: what a plan's notes refer to.

Found by reading its sources at commit 6afaf05 (branch develop, whose code is that of release/2.1); F1 to F10 are
the gravest. docs/from_paddlemix.md says the same at length.
"""

from __future__ import annotations

FINDINGS: dict[int, str] = {
    1: "it updated the weights twice for every batch (scaler.step, then optimizer.step); here once",
    2: "its gradient accumulation did not accumulate: every small batch was a step of its own; here they are summed",
    3: "it trained pictures on one NPU only, whatever was started; here nproc=8 is eight cards with one loss",
    4: "resuming restored no weights and no optimizer; here a run goes on bitwise where it was cut off",
    5: "--use_ema overwrote the trained UNet with the one it began from; here the running mean of the training is kept",
    6: "--not_validation_final also left out saving the model; here weights are saved before anything is drawn",
    7: "the page's inference lines loaded the trained weights and drew without them; here weights that are asked for "
    "and change nothing are an error",
    8: "recompute, grad_checkpoint and flash attention were switched off in its code; here they work as they are typed",
    9: "on an NPU the loss of InternVL2 was divided by all tokens, pictures and padding too; here by those of the "
    "answers, on every device",
    10: "video rows and LoRA of InternVL2 failed behind flags that promised them; here both train",
    11: "--mixed_precision was passed over, everything computed in fp16; here it is what is typed",
    12: "--snr_gamma weighed a whole batch by its first picture; here each picture by its own time",
    13: "--gradient_checkpointing of the LoRA script was passed over; here it works",
    14: "--seed 0 left the previews without a seed; here 0 is a seed",
    15: "encoded pictures were kept under one name, whatever the size or the data; here by their content",
    16: "crop, mirror and empty captions were drawn once for the whole run; here anew each epoch",
    17: "prior preservation summed over the wrong axes; here class pictures weigh as the paper says",
    18: "a row whose picture was missing was replaced by another at random; here it is named before step 1",
    19: "a row that was too long was cut, through pictures too, and then learned nothing; here nothing is cut",
    20: "the model was told by the ending of its folder's name, so your own checkpoints would not open; here by its "
    "config.json",
    21: "its LLaVA-1.6 configs trained in fp32 without tiles; here tiles are on and what is typed decides the precision",
    22: "unknown keys of a config file were dropped in silence; here each is an error with the nearest known one",
    23: "token 0, a real one of the 1B model, was taken for padding; here there is no padding",
    24: "only the toolbox had a device setting; here every command has --device",
}


def sentence(number: int) -> str:
    return f"F{number}: {FINDINGS[number]}"
