"""Options that several commands take, with one wording."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="Model folder, hub id or starter:internvl2, an adapter folder, or what train wrote.")
]
Device = Annotated[str, typer.Option(help="auto, npu, npu:1, cuda, cuda:0 or cpu.")]
Dtype = Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy: the same answer every time.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share of the mass.")]
TopK = Annotated[int, typer.Option(help="Draw from so many of the likeliest tokens; 0: from all.")]
RepetitionPenalty = Annotated[float, typer.Option(help="More than 1 makes words already said less likely.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same draw.")]
MaxTiles = Annotated[int | None, typer.Option(help="Most tiles all pictures may use; default: the model's.")]
MaxPixels = Annotated[
    int | None, typer.Option(help="Qwen2-VL: most pixels of a picture or frame; 784 are a token. Default: the model's.")
]
MaxFrames = Annotated[int | None, typer.Option(help="Most frames to see of a video; default: 8 (InternVL2), 768.")]
Fps = Annotated[float | None, typer.Option(help="Frames to see of a second of video; default: 2 (Qwen2-VL).")]
Template = Annotated[str | None, typer.Option(help="Conversation template; default: the model's.")]
Base = Annotated[str | None, typer.Option(help="For an adapter: the model under it, instead of the one it names.")]
