"""What a recipe may say: a handful of flat sections, each key with its type, its default and its sentence.

No inheritance among them, no interpolation, no class paths. There is no `family:` key: the model folder says what it
is.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A part of a recipe: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def _key(default: Any, meaning: str, **bounds: Any) -> Any:
    return Field(default, description=meaning, **bounds)


def _beat(every: object) -> object:
    steps = isinstance(every, int) and not isinstance(every, bool) and every > 0
    if steps or isinstance(every, str) and PASSES.fullmatch(every):
        return every
    raise ValueError('give optimizer steps, such as 500, or passes over the data, such as "1 epoch"')


PASSES = re.compile(r"(0*\.0*[1-9]\d*|0*[1-9]\d*(\.\d+)?) epochs?")
Positive = Annotated[int, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Beat = Annotated[int | str, BeforeValidator(_beat)]  # optimizer steps, or "N epochs"


class Model(Section):
    path: str = _key("", "folder, single-file checkpoint, hub id or starter:NAME: the model to start from")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = _key(
        "auto",
        "compute type; auto is bf16, fp16 on cards without it, fp32 on a CPU. What trains is kept in fp32 always",
    )
    template: str | None = _key(None, "conversation template; default: the one the model's config names")
    image_size: Positive | None = _key(None, "edge of a tile in pixels; default: the model's own")
    max_tiles: Positive | None = _key(None, "most tiles all pictures of one row may use; default: the model's own")
    min_tiles: Positive | None = _key(None, "fewest tiles of one picture; default: the model's own")
    thumbnail: bool | None = _key(None, "add the whole picture as one more tile; default: the model's own")
    min_pixels: Positive | None = _key(
        None, "fewest pixels of a picture, enlarged to them (Qwen2-VL); default: its own"
    )
    max_pixels: Positive | None = _key(
        None, "most pixels of a picture or frame, shrunk to them (Qwen2-VL: 784 are a token); default: the model's own"
    )
    fps: float | None = _key(
        None, "frames to see of a second of video; default: 2 (Qwen2-VL), max_frames of any video (InternVL2)", gt=0
    )
    max_frames: Positive | None = _key(
        None, "most frames to see of a video; default: 768 (Qwen2-VL), 8, a tile each, evenly spread (InternVL2)"
    )
    frame_sampling: Literal["middle", "random"] | None = _key(
        None, "which frame of a stretch of video to train on: its middle, or any, drawn each time (InternVL2)"
    )
    vision_config: str | None = _key(
        None,
        "folder, config.json or hub id of the CLIP a LLaVA's config.json names as its vision tower, where anymix does "
        "not know it by that name",
    )
    unet: str | None = _key(None, "folder or hub id of another UNet than the pipeline's own")
    transformer: str | None = _key(None, "folder or hub id of another transformer than the pipeline's own (SD3)")
    vae: str | None = _key(None, "folder or hub id of another VAE, such as the one of SDXL that is safe in fp16")
    scratch: bool = _key(False, "begin with random weights of the UNet or transformer, in the model's own shape")
    tokenizer: str | None = _key(None, "folder with the tokenizers, for a single-file checkpoint, which holds none")
    text_encoders: str | None = _key(
        None, "folder of a pipeline to take the text encoders from, for a checkpoint that holds none (SD3)"
    )
    t5_tokens: Positive | None = _key(None, "tokens of a caption T5 reads in one go (SD3); default: 256")


class Data(Section):
    path: str | list[str] = _key(
        "",
        "training rows: .json, .jsonl, .csv, .parquet, InternVL meta .json, or hub id; captioned pictures: a folder "
        "(kohya's too), a list of names and captions, a kohya dataset .toml, or hub id",
    )
    root: str | None = _key(None, "folder relative image paths start from; default: the folder of the data file")
    val: str | float | None = _key(None, "held-out rows: a path like data.path, or a share of it such as 0.1")
    split: str = _key("train", "which split of a hub data set")
    image_column: str | None = _key(None, "column holding the picture, where the data set has another name for it")
    caption_column: str | None = _key(None, "column holding the caption, where the data set has another name for it")
    caption: str | None = _key(None, "what to say of every picture that has no caption of its own (DreamBooth)")
    resolution: Positive | None = _key(
        None, "edge in pixels of a square picture of the size to train at; default: the model's own"
    )
    buckets: bool = _key(True, "keep each picture's shape, in sizes of about resolution x resolution; false: squares")
    bucket_step: Positive = _key(64, "width and height of a bucket are multiples of this")
    crop: Literal["center", "random"] = _key("center", "what is cut away where shapes do not match")
    crops: Positive = _key(4, "how many different random crops of a picture there are, one drawn each epoch")
    flip: bool = _key(False, "mirror left and right at random, drawn each epoch")
    caption_dropout: Share = _key(0.0, "how often a picture is shown without its caption, drawn each epoch")
    shuffle_caption: bool = _key(False, "tags of a caption, told apart by commas, in a new order each epoch")
    keep_tokens: Annotated[int, Field(ge=0)] = _key(0, "with shuffle_caption: so many tags keep their place in front")
    max_length: Positive = _key(4096, "longest row in tokens, pictures included; see data.too_long for longer ones")
    too_long: Literal["error", "drop_turns", "skip"] = _key(
        "error",
        "a row longer than data.max_length is one that cannot be used; drop_turns leaves out its last questions with "
        "their answers, whole, until it fits, and skip the row, counted and listed. No picture or answer is ever cut",
    )
    on_error: Literal["raise", "skip"] = _key(
        "raise", "a row that cannot be used stops the run before step 1, or is skipped, counted and listed"
    )
    workers: Annotated[int, Field(ge=0)] = _key(2, "processes that read and tile pictures; 0 reads in the main one")
    shuffle: bool = _key(True, "new order each epoch, drawn from train.seed")
    limit: Positive | None = _key(None, "use only the first so many rows")


class Packing(Section):
    tokens: Positive | None = _key(
        None, "most tokens of rows that share a forward, none seeing another; default: data.max_length"
    )
    tiles: Positive | None = _key(
        None, "most picture tiles of such rows (Qwen2-VL: patches), for memory; default: what the tokens allow"
    )


class DreamBooth(Section):
    class_prompt: str = _key("", "what any member of the subject's class is called, such as: a photo of a dog")
    class_path: str | None = _key(
        None, "folder of class pictures; those missing are drawn into it; default: train.out/class"
    )
    class_images: Positive = _key(100, "how many class pictures there should be")
    prior_weight: float = _key(1.0, "weight of a class picture against the subject's", ge=0)


class Cache(Section):
    use: bool = _key(
        True,
        "keep what the VAE and the text encoders make of pictures and captions, which then leave the card, and how "
        "long rows of text are",
    )
    path: str | None = _key(None, "folder of the cache, shared between runs; default: ~/.cache/anymix/pictures")
    limit_gb: float = _key(100.0, "largest size of the cache; what was not used for longest goes first", gt=0)


class Objective(Section):
    prediction: Literal["epsilon", "v", "sample"] | None = _key(
        None, "what the UNet predicts: the noise, the velocity or the picture; default: as the model says"
    )
    snr_gamma: float | None = _key(None, "min-SNR weighting of the loss, 5 is usual", gt=0)
    zero_terminal_snr: bool | None = _key(None, "rescale the schedule to end in pure noise; default: as the model says")
    bias: Literal["none", "earlier", "later", "range"] = _key("none", "which UNet timesteps to draw more often")
    bias_multiplier: float = _key(1.0, "how much more often", gt=0)
    bias_portion: Share = _key(0.25, "which share of the timesteps `earlier` and `later` mean")
    bias_range: tuple[int, int] = _key((0, 1000), "which timesteps `range` means, the last one left out")
    noise_offset: float = _key(
        0.0, "of noise that is one number per channel, so that dark and bright can be learned", ge=0
    )
    density: Literal["logit_normal", "mode", "cosmap", "uniform"] = _key(
        "logit_normal", "SD3: how the times of a picture are drawn, 0 being the picture and 1 noise"
    )
    logit_mean: float = _key(0.0, "of logit_normal; above 0 means more noise, as in the paper")
    logit_std: float = _key(1.0, "of logit_normal", gt=0)
    mode_scale: float = _key(1.29, "of mode")
    shift: float | None = _key(
        None, "SD3: pushes times towards noise, for large pictures; default: the model's own", gt=0
    )
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = _key("none", "SD3: weight of the loss by time")
    precondition: bool = _key(False, "SD3: judge the picture the velocity leads to, not the velocity")
    masked: bool = _key(False, "learn only what a picture's mask leaves white")


class Previews(Section):
    prompts: str | list[str] | None = _key(
        None,
        "what to draw while training: a list, or a file with a prompt a line or .jsonl rows (prompt, negative, width, "
        "height, seed, steps, guidance)",
    )
    count: Positive = _key(1, "pictures of each prompt, each of another seed")
    every: Beat | None = _key(None, 'steps between previews, or passes such as "2 epochs"; default: at every save')
    steps: Positive = _key(28, "steps of a preview whose line does not say")
    guidance: float = _key(5.0, "guidance of a preview whose line does not say", ge=0)
    checks: bool = _key(
        True, "beside them: loss by time against the start, drift, copies of training pictures, diversity"
    )


class Adapter(Section):
    kind: Literal["lora", "loha", "lokr"] = _key("lora", "LoRA, or one of its relatives for models that draw")
    rank: Positive | None = _key(16, "rank of the LoRA matrices; null: that of adapter.init, or 16")
    alpha: float | None = _key(None, "LoRA scale is alpha / rank; default: 2 * rank, or that of adapter.init", gt=0)
    dropout: Share = _key(0.0, "dropout on the input of the LoRA matrices")
    parts: list[Literal["language", "vision", "projector", "denoiser", "text"]] | None = _key(
        None,
        "which towers get the family's usual LoRA layers; default: language, or the denoiser of a model that draws",
    )
    targets: list[str] | None = _key(
        None, "full-match patterns of module names instead of `parts`; * is any run of characters"
    )
    init: str | None = _key(
        None, "an adapter to go on from, of its rank, alpha and layers: folder, LoRA file, what train wrote, hub id"
    )
    dora: bool = _key(False, "weight-decomposed LoRA (DoRA)")


class Checkpointing(Section):
    language: bool = _key(True, "recompute the language model's blocks in backward instead of keeping activations")
    vision: bool = _key(True, "the same for the vision tower, where it trains")
    denoiser: bool = _key(True, "the same for the UNet or transformer of a model that draws")
    text: bool = _key(True, "the same for text encoders, where they train")


class Train(Section):
    out: str = _key("runs/anymix", "folder for weights, checkpoints, run.json and metrics.jsonl")
    epochs: float = _key(1.0, "passes over the data, where train.steps is not given", gt=0)
    steps: Positive | None = _key(None, "optimizer steps; overrides train.epochs")
    batch: Positive = _key(1, "rows per forward on each process")
    accumulate: Positive = _key(1, "forwards per optimizer step")
    lr: float = _key(1e-4, "peak learning rate", gt=0)
    lr_by: dict[str, float] = _key({}, "learning rates by glob of parameter name, first match wins")
    freeze: list[str] = _key([], "globs of parameter names that do not train")
    unfreeze: list[str] = _key([], "globs that train after all (applied after freeze, and beside an adapter)")
    optimizer: str = _key("adamw", "adamw, adafactor, sgd, or an import path such as package.module.Class")
    optimizer_args: dict[str, Any] = _key({}, "further arguments of the optimizer")
    betas: tuple[Decay, Decay] = _key((0.9, 0.999), "AdamW's decay rates")
    weight_decay: float = _key(0.01, "decoupled weight decay; never on biases, norms and other vectors", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = _key("cosine", "how the rate falls after warm-up")
    warmup: float = _key(0.03, "warm-up: optimizer steps, or a share of them if below 1", ge=0)
    clip: float = _key(1.0, "largest gradient norm of a step; 0 does not clip", ge=0)
    seed: int = _key(0, "order, augmentation, dropout and noise are drawn from it", ge=0, lt=2**63)
    checkpointing: Checkpointing = _key(Checkpointing(), "gradient checkpointing")
    save_every: Beat | None = _key(None, 'steps between checkpoints, or passes such as "2 epochs"; default: 1 epoch')
    keep: Positive = _key(2, "how many checkpoints to keep; one that only a preview asked for goes with the next save")
    val_every: Beat | None = _key(None, 'steps between validations, or passes such as "2 epochs"; default: 1 epoch')
    patience: Positive | None = _key(None, "stop after so many validations without a better loss")
    log_every: Positive = _key(1, "optimizer steps between lines of metrics")
    trackers: list[Literal["tensorboard", "wandb", "swanlab"]] = _key([], "dashboards beside metrics.jsonl")
    ema: float | None = _key(
        None, "keep a running mean of what trains, with this decay; it is what is saved", gt=0, lt=1
    )
    deterministic: bool = _key(False, "refuse operations whose result can differ from run to run")


class Device(Section):
    name: str = _key("auto", "auto, npu, npu:1, cuda, cuda:0 or cpu; `device: npu` says no more than this")
    fused: bool = _key(
        True, "kernels that do in one what a model does in several steps, where the device has them; off: to compare"
    )
    settings: dict[str, str | int | bool | None] = _key(
        {}, "of an NPU, instead of what anymix sets (`anymix doctor` lists them); null leaves one as it is"
    )


class Run(Section):
    model: Model = Model()
    data: Data = Data()
    adapter: Adapter | None = _key(None, "LoRA; left out: the weights themselves train")
    packing: Packing | None = _key(
        None,
        "fill forwards with as many rows as fit: a step is then train.accumulate x nproc packs; true: the defaults",
    )
    dreambooth: DreamBooth | None = _key(
        None, "prior preservation: pictures of the class are learned beside the subject's"
    )
    objective: Objective = Objective()
    cache: Cache = Cache()
    previews: Previews = Previews()
    train: Train = Train()
    device: Device = Device()
    nproc: Positive = _key(1, "processes on this machine, one per card")
    resume: str = _key(
        "auto", "auto (go on from the newest checkpoint in train.out), never (set that run aside), or a folder"
    )

    @field_validator("resume")
    @classmethod
    def _some_resume(cls, value: str) -> str:
        if not value:
            raise ValueError("resume is auto, never, or a checkpoint folder")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Run:
        if isinstance(self.data.val, float) and not 0 < self.data.val < 1:
            raise ValueError(f"data.val is a path or a share between 0 and 1, not {self.data.val}")
        if self.train.patience and self.data.val is None:
            raise ValueError("train.patience needs data.val: there is no validation loss to wait for")
        if self.data.keep_tokens and not self.data.shuffle_caption:
            raise ValueError("data.keep_tokens needs data.shuffle_caption=true: without it every tag keeps its place")
        if self.packing is not None and self.train.batch != 1:
            raise ValueError(
                f"with packing a forward holds as many rows as fit, and train.batch = {self.train.batch} would be that "
                "many packs; set train.batch=1, and packs of a step by train.accumulate"
            )
        return self
