"""SD3 without weights: what a folder or file is made of, and how a caption becomes ids for two CLIPs and T5.

T5 may be missing, as people leave it out to save 10 GB: its tokens are zeros then, as in diffusers' pipeline.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from anymix.families.common import clip, drawing, pipelines, single_file, vaes
from anymix.families.common.folders import local_candidates, resolve
from anymix.families.common.picture_codec import PictureCodec
from anymix.families.common.pipelines import Blueprint, Words
from anymix.families.common.shards import read_json
from anymix.families.sd3 import names
from anymix.objectives.flow import from_scheduler

OPTIONS = ("transformer", "vae", "text_encoders", "tokenizer", "t5_tokens")
CLIPS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}  # what they pad with
T5, T5_WORDS = "text_encoder_3", "tokenizer_3"
ENCODERS = ("text_encoder", "text_encoder_2", T5)
CONFIGS = Path(__file__).parent / "configs" / "sd3"
T5_TOKENS = 256  # as diffusers' pipeline has it; its training scripts have 77
T5_HOMES = (
    "stabilityai/stable-diffusion-3-medium-diffusers",
    "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/stable-diffusion-3.5-large",
    "google/t5-v1_1-xxl",
)


@dataclass(frozen=True)
class Reader:
    """A caption to ids: (K, 77) of each CLIP in as many chunks, (J, t5_tokens) of T5 where there is one.

    T5's rows are one text cut anywhere, of which only the last has padding; they are read in one go."""

    tokenizers: Mapping[str, Any]
    t5_tokens: int = T5_TOKENS

    def __call__(self, text: str, key: str = "", /) -> dict[str, Tensor]:
        found = {name: clip.chunks(self.tokenizers[name], text) for name in CLIPS}
        most = max(map(len, found.values()))
        found = {name: self._filled(name, ids, most) for name, ids in found.items()}
        if T5_WORDS in self.tokenizers:
            found[T5_WORDS] = self._t5_rows(text)
        return found

    def stacked(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Ids of several prompts (B, K, 77) and (B, J, t5_tokens), the shorter ones filled up."""
        each = [self(prompt) for prompt in prompts]
        most = {name: max(len(ids[name]) for ids in each) for name in each[0]}
        return {name: torch.stack([self._filled(name, ids[name], most[name]) for ids in each]) for name in most}

    def _t5_rows(self, text: str) -> Tensor:
        ids = torch.tensor(self.tokenizers[T5_WORDS].backend_tokenizer.encode(text).ids)
        missing = -len(ids) % self.t5_tokens
        return pad(ids, (0, missing), value=self._t5_pad).unflatten(0, (-1, self.t5_tokens))

    def _filled(self, name: str, ids: Tensor, rows: int) -> Tensor:
        if len(ids) == rows:
            return ids
        empty = torch.full_like(ids[:1], self._t5_pad) if name == T5_WORDS else clip.chunks(self.tokenizers[name], "")
        return torch.cat((ids, empty.expand(rows - len(ids), -1)))

    @property
    def _t5_pad(self) -> int:
        return int(self.tokenizers[T5_WORDS].pad_token_id)


# ------------------------------------------------------------------------------------------------ what it is made of


def describe(path: Path, given: Mapping[str, str]) -> Blueprint:
    """The blueprint of a folder or single file. Raises ValueError where its parts do not belong together."""
    found = _of_folder(path, given) if path.is_dir() else _of_file(path, given)
    transformer, vae = (found.parts[name].config for name in ("transformer", "vae"))
    drawing.must_be(found, "transformer", "_class_name", "SD3Transformer2DModel", "as SD3 has it")
    for name in ENCODERS[:2]:
        drawing.must_be(found, name, "architectures", ["CLIPTextModelWithProjection"], "as SD3 has it")
    drawing.must_be(found, "transformer", "in_channels", vae["latent_channels"], "to read the VAE")
    clips = [found.parts[name].config for name in ENCODERS[:2]]
    pooled = sum(config["projection_dim"] for config in clips)
    drawing.must_be(found, "transformer", "pooled_projection_dim", pooled, "to read both CLIPs")
    if T5 in found.parts:
        width = transformer["joint_attention_dim"]
        drawing.must_be(found, T5, "d_model", width, "to be read by the transformer")
    if sum(config["hidden_size"] for config in clips) > transformer["joint_attention_dim"]:
        raise ValueError(f"{found.path}: its CLIPs are wider than what its transformer reads; they are of two models")
    drawing.must_be(found, "vae", "latents_mean", None, "as this family scales latents by one number")
    return _without_dropout(found)


def _without_dropout(found: Blueprint) -> Blueprint:
    """T5 alone has dropout; drawn on the device it would differ with every split of a batch."""
    if T5 not in found.parts:
        return found
    still = replace(found.parts[T5], config={**found.parts[T5].config, "dropout_rate": 0.0})
    return replace(found, parts={**found.parts, T5: still})


def _of_folder(path: Path, given: Mapping[str, str]) -> Blueprint:
    index = read_json(path / pipelines.INDEX)
    swaps: dict[str, str | Path] = {name: given[name] for name in ("transformer", "vae") if name in given}
    swaps |= _encoders(given)
    t5 = T5 in swaps or ((index.get(T5) or [None])[0] is not None and (path / T5).is_dir())
    t5 = t5 and not ("text_encoders" in given and T5 not in swaps)
    parts = ("transformer", "vae", *ENCODERS[: 3 if t5 else 2])
    home = given.get("tokenizer") or given.get("text_encoders")
    words = (*CLIPS, T5_WORDS) if t5 else tuple(CLIPS)
    found = pipelines.describe(path, parts, words, swaps, home)
    if t5 and T5_WORDS not in found.words:
        raise ValueError(f"{path} has a T5 (text_encoder_3) but no tokenizer_3; copy it there, or give tokenizer=")
    return found


def _encoders(given: Mapping[str, str]) -> dict[str, str | Path]:
    """Text encoders taken from the folder of another pipeline, T5 where that has it."""
    if "text_encoders" not in given:
        return {}
    home = resolve(given["text_encoders"])
    held = [name for name in ENCODERS if (home / name / "config.json").is_file()]
    if not {*ENCODERS[:2]} <= {*held}:
        raise ValueError(
            f"text_encoders = {home} has no text_encoder and text_encoder_2, expected the folder of an SD3 pipeline"
        )
    return dict.fromkeys(held, home)


def _of_file(path: Path, given: Mapping[str, str]) -> Blueprint:
    namings, held = names.namings(path)
    swaps: dict[str, str | Path] = {name: given[name] for name in ("transformer", "vae") if name in given}
    swaps |= _encoders(given)
    if not {*ENCODERS[:2]} <= held | set(swaps):
        raise ValueError(
            f"{path} holds no text encoders, as many files of SD3 do not; set model.text_encoders to the folder of "
            "any SD3 pipeline"
        )
    t5 = T5 in (swaps if "text_encoders" in given else held)
    wanted = {name: naming for name, naming in namings.items() if t5 or name != T5}
    shape = names.shape(path, read_json(CONFIGS / "transformer" / "config.json")["attention_head_dim"])
    home = given.get("tokenizer") or given.get("text_encoders")
    found = single_file.describe(path, CONFIGS, wanted, CLIPS, swaps, home, said={"transformer": shape})
    return replace(found, words={**found.words, T5_WORDS: Words(_t5_words(path, home))}) if t5 else found


def _t5_words(path: Path, home: str | None) -> Path:
    """A folder with T5's vocabulary."""
    homes = [place for known in T5_HOMES for place in local_candidates(known, os.environ)]
    for folder in homes if home is None else [resolve(home)]:
        for place in (folder / T5_WORDS, folder):
            if _is_t5(place):
                return place
    here = "on this machine lies none" if home is None else f"in {home} is none"
    raise ValueError(
        f"{path} holds T5 but no vocabulary of it, and {here}; set model.tokenizer to a folder with SD3's tokenizers"
    )


def _is_t5(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    named = str(read_json(settings).get("tokenizer_class", "")) if settings.is_file() else ""
    return (folder / "spiece.model").is_file() or (named.startswith("T5") and (folder / "tokenizer.json").is_file())


# ------------------------------------------------------------------------------------------------ the codec


def open_codec(path: Path, **given: Any) -> PictureCodec:
    """The codec alone: no weights are read. `given`: transformer, vae, text_encoders, tokenizer, t5_tokens."""
    set_to = drawing.options(given, OPTIONS)
    return codec_of(describe(path, set_to), set_to)


def codec_of(blueprint: Blueprint, set_to: Mapping[str, str]) -> PictureCodec:
    """The codec of a described pipeline. Raises ValueError for tokenizers that cannot be read."""
    transformer, vae = (blueprint.parts[name].config for name in ("transformer", "vae"))
    scale = vaes.scale_of(vae)
    opened = {
        name: open_t5(words) if name == T5_WORDS else clip.open_tokenizer(words)
        for name, words in blueprint.words.items()
    }
    return PictureCodec(
        Reader(opened, _tokens(set_to)),
        (int(transformer["in_channels"]), scale),
        int(transformer["sample_size"]) * scale,
        from_scheduler(blueprint.scheduler),
        set_to,
        patch=int(transformer["patch_size"]),
        largest=int(transformer["pos_embed_max_size"]) * int(transformer["patch_size"]) * scale,
    )


def _tokens(set_to: Mapping[str, str]) -> int:
    said = set_to.get("t5_tokens", str(T5_TOKENS))
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(f"t5_tokens = {said}, expected a whole number of tokens such as {T5_TOKENS} or 77")
    return int(said)


def open_t5(words: Words) -> Any:
    """The T5 tokenizer of a folder. Raises ValueError in one sentence when it cannot be read."""
    from transformers import T5Tokenizer

    try:
        tokenizer = T5Tokenizer.from_pretrained(str(words.folder), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{words.folder} holds no T5 tokenizer that can be read ({reason}); copy it again") from None
    tokenizer.backend_tokenizer.no_truncation()  # a tokenizer.json may bring either
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer
