"""`Run`: one frozen description of a training run, from a YAML (or JSON) recipe and `key=value` overrides.

A handful of flat sections, no inheritance, no interpolation, no class paths. Every field carries the sentence
`anymix train --help-keys` prints for it. There is no `family:` key: the model folder says what it is.
Imports no torch, so the command line can check a recipe before anything slow happens.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator


class Section(BaseModel):
    """A part of a recipe: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _key(default: Any, meaning: str, **bounds: Any) -> Any:
    return Field(default, description=meaning, **bounds)


def _beat(every: object) -> object:
    steps = isinstance(every, int) and not isinstance(every, bool) and every > 0
    if steps or isinstance(every, str) and PASSES.fullmatch(every):
        return every
    raise ValueError('give optimizer steps, such as 500, or passes over the data, such as "1 epoch"')


PASSES = re.compile(r"(0*\.0*[1-9]\d*|0*[1-9]\d*(\.\d+)?) epochs?")
Positive = Annotated[int, Field(gt=0)]
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
    max_length: Positive = _key(4096, "longest row in tokens, pictures included; a longer one is an error")
    on_error: Literal["raise", "skip"] = _key(
        "raise", "a row that cannot be used stops the run before step 1, or is skipped, counted and listed"
    )
    workers: Annotated[int, Field(ge=0)] = _key(2, "processes that read and tile pictures; 0 reads in the main one")
    shuffle: bool = _key(True, "new order each epoch, drawn from train.seed")
    limit: Positive | None = _key(None, "use only the first so many rows")


class DreamBooth(Section):
    class_prompt: str = _key("", "what any member of the subject's class is called, such as: a photo of a dog")
    class_path: str | None = _key(
        None, "folder of class pictures; those missing are drawn into it; default: train.out/class"
    )
    class_images: Positive = _key(100, "how many class pictures there should be")
    prior_weight: float = _key(1.0, "weight of a class picture against the subject's", ge=0)


class Cache(Section):
    use: bool = _key(
        True, "keep what the VAE and the text encoders make of pictures and captions; they then leave the card"
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
    rank: Positive = _key(16, "rank of the LoRA matrices")
    alpha: float | None = _key(None, "LoRA scale is alpha / rank; default: 2 * rank", gt=0)
    dropout: Share = _key(0.0, "dropout on the input of the LoRA matrices")
    parts: list[Literal["language", "vision", "denoiser", "text"]] | None = _key(
        None,
        "which towers get the family's usual LoRA layers; default: language, or the denoiser of a model that draws",
    )
    targets: list[str] | None = _key(
        None, "full-match patterns of module names instead of `parts`; * is any run of characters"
    )
    init: str | None = _key(None, "an existing adapter folder to go on from")
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
    betas: tuple[float, float] = _key((0.9, 0.999), "AdamW's decay rates")
    weight_decay: float = _key(0.01, "decoupled weight decay; never on biases, norms and other vectors", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = _key("cosine", "how the rate falls after warm-up")
    warmup: float = _key(0.03, "warm-up: optimizer steps, or a share of them if below 1", ge=0)
    clip: float = _key(1.0, "largest gradient norm of a step; 0 does not clip", ge=0)
    seed: int = _key(0, "order, augmentation, dropout and noise are drawn from it")
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


class Run(Section):
    model: Model = Model()
    data: Data = Data()
    adapter: Adapter | None = _key(None, "LoRA; left out: the weights themselves train")
    dreambooth: DreamBooth | None = _key(
        None, "prior preservation: pictures of the class are learned beside the subject's"
    )
    objective: Objective = Objective()
    cache: Cache = Cache()
    previews: Previews = Previews()
    train: Train = Train()
    device: str = _key("auto", "auto, npu, npu:1, cuda, cuda:0 or cpu")
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
        return self


def load(source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Run:
    """A recipe file (.yaml, .yml, .json) or mapping, with `section.key=value` overrides, as a checked `Run`.

    Raises ValueError in one sentence: an unreadable file, a line that is no mapping, an unknown key (with the
    nearest known one) or a value of the wrong type.
    """
    tree = dict(source) if isinstance(source, Mapping) else _read(source)
    for override in overrides:
        key, eq, value = override.partition("=")
        if not eq or not key:
            raise ValueError(f"an override reads section.key=value, found {override!r}")
        _place(tree, key.strip().split("."), _value(key, value))
    _expand(tree)
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        wrong = ".".join(str(part) for part in error.errors()[0]["loc"])
        typed = any(override.startswith(wrong) for override in overrides) and bool(wrong)
        where = "" if typed or not isinstance(source, (str, Path)) else f"{source}: "
        raise ValueError(where + _sentence(error)) from None


def _read(source: str | Path | None) -> dict[str, Any]:
    if source is None:
        return {}
    try:
        text = _found(Path(source)).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"no recipe at {source}; those that come with anymix are {shipped_recipes()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {source} cannot be read: {error}") from None
    try:
        tree = json.loads(text) if str(source).endswith(".json") else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ValueError(f"recipe {source} is not valid {Path(source).suffix[1:]}: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"recipe {source} holds {type(tree).__name__}, expected sections such as model: and train:")
    return tree


def shipped_recipes() -> str:
    """Names of the recipes in the package (beside the sources in a checkout), by comma."""
    return ", ".join(f"recipes/{p.name}" for p in sorted(_shelf().glob("*.yaml"))) or "not installed"


def _shelf() -> Path:
    """Where the recipes lie that come with anymix: in the package, or beside the sources it was installed from."""
    here = Path(__file__).parent
    return next((f for f in (here / "recipes", here.parents[1] / "recipes") if f.is_dir()), here)


def _found(path: Path) -> Path:
    """The recipe, or the one of its name that comes with the package: `recipes/x.yaml` works anywhere."""
    shipped = _shelf() / path.name
    return shipped if not path.exists() and path.parent.name == "recipes" and shipped.exists() else path


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {key} cannot be read: {_one_line(error)}") from None


def _place(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        child = tree.get(name)
        child = {} if child is None else dict(child) if isinstance(child, Mapping) else None
        if child is None:
            raise ValueError(f"{'.'.join(path)} reaches into {name}, which is a plain value")
        tree[name] = child
        tree = child
    tree[path[-1]] = value


def _expand(tree: dict[str, Any]) -> None:
    """`train.checkpointing: false` means both switches; `adapter: true` means its defaults."""
    train = tree.get("train")
    if isinstance(train, dict) and isinstance(train.get("checkpointing"), bool):
        both = train["checkpointing"]
        tree["train"] = {**train, "checkpointing": dict.fromkeys(Checkpointing.model_fields, both)}
    if tree.get("adapter") is True:
        tree["adapter"] = {}
    if tree.get("adapter") is False:
        tree["adapter"] = None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _sentence(error: ValidationError) -> str:
    problem = error.errors()[0]
    path = [str(p) for p in problem["loc"]]
    name = ".".join(path)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name}{_nearest(name)}{more}"
    found = problem.get("input")
    what = problem["msg"].removeprefix("Value error, ")
    return (f"{name} = {found!r}: {what}" if name else what) + more


def _nearest(name: str) -> str:
    known = [key for key, *_ in keys()]
    leaf = name.rpartition(".")[2]
    leaves = {key.rpartition(".")[2]: key for key in known}
    sections = {key.partition(".")[0] for key in known if "." in key}
    close = [key for key in known if key.rpartition(".")[2] == leaf]
    if not close and "." not in name:
        close = difflib.get_close_matches(name, sections, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    close = close or [leaves[hit] for hit in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    tail = "`anymix train --help-keys` lists all"
    return f", did you mean {close[0]}? ({tail})" if close else f" ({tail})"


def keys(section: type[Section] = Run, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every key of a recipe: (dotted name, type, default, meaning), sections first to last."""
    for name, info in section.model_fields.items():
        inner = _section_of(info.annotation)
        if inner is not None:
            if info.description and info.default is None:
                yield prefix + name, "section", "null", info.description
            yield from keys(inner, f"{prefix}{name}.")
        else:
            default = "required" if info.is_required() else json.dumps(info.default)
            yield prefix + name, _type_name(info.annotation), default, info.description or ""


def _section_of(annotation: Any) -> type[Section] | None:
    options = get_args(annotation) if _is_union(annotation) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _is_union(annotation):
        return " or ".join(_type_name(a) for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Literal:
        return "|".join(str(a) for a in get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "true|false", Any: "any"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def dump(run: Run, path: Path) -> None:
    """Write the resolved run as JSON, readable by `load`."""
    path.write_text(json.dumps(run.model_dump(mode="json"), indent=1, ensure_ascii=False), encoding="utf-8")
