"""What lies beside a LLaVA-1.6's weights in transformers' native layout: config, processor, tokenizer, template.

`LlavaNextProcessor` and `LlavaNextForConditionalGeneration` open the folder as it is. The original config goes along
inside the new one, so the way back is open.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import GenerationConfig

from anymix.families.common import shards
from anymix.families.common.origin import Origin, carry, origin_of
from anymix.families.common.quiet import quiet
from anymix.families.llava_next import configs, weights
from anymix.families.llava_next.codec import LlavaNextCodec
from anymix.families.llava_next.templates import PLAIN, Template

GENERATION = "generation_config.json"
MARK = "<image>"


def save_native(net: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Weights in transformers' own names and the dtype they came in, and everything its classes ask for.

    Raises ValueError where the tokenizer has no place for `<image>`, before the folder is touched."""
    origin = origin_of(net)
    config = origin.config if origin else configs.original(net.config)
    adds = origin is not None and origin.layout == "original"
    with shards.saving(folder) as beside:
        if origin is not None:  # what is added to below must lie beside, even where the folder saved to has it already
            carry(origin, beside, beside if adds else folder)
        if adds:
            assert origin is not None
            _processor(net, origin, beside)
        _generation(net, beside)
        _weights(net, origin, config, beside, dtype, adds)


def _weights(
    net: Any, origin: Origin | None, config: dict[str, Any], folder: Path, dtype: torch.dtype | None, adds: bool
) -> None:
    dtypes = origin.dtypes if origin else {}
    tensors = {name: t.detach().to("cpu", dtype or dtypes.get(name)) for name, t in net.state_dict().items()}
    text, image = net.config.text_config, net.config.image_token_id
    words, said = int(text.vocab_size), (folder / GENERATION).read_bytes()
    generation = net.generation_config
    setattr(net.config, configs.ORIGIN_KEY, config)
    if adds:
        tensors |= {name: _one_more(tensors[name]) for name in (weights.EMBEDDINGS, weights.HEAD)}
        net.config.image_token_id, text.vocab_size = words, words + 1
    net.generation_config = GenerationConfig()  # a valid one for save_pretrained, which writes it
    try:
        with quiet():
            net.save_pretrained(folder, state_dict=tensors, max_shard_size=shards.SHARD_BYTES)
    finally:
        net.generation_config, net.config.image_token_id, text.vocab_size = generation, image, words
    (folder / GENERATION).write_bytes(said)
    if dtype:  # save_pretrained says the net's own
        tree = shards.read_json(folder / "config.json")
        _write(folder / "config.json", {**tree, "dtype": str(dtype).removeprefix("torch.")})


def _one_more(rows: Tensor) -> Tensor:
    """A row for `<image>`: the mean, whose logit is the mean of all others and so never the largest."""
    return torch.cat((rows, rows.float().mean(0, keepdim=True).to(rows.dtype)))


def _generation(net: Any, folder: Path) -> None:
    if not (folder / GENERATION).exists():
        net.generation_config.to_json_file(folder / GENERATION)


def _processor(net: Any, origin: Origin, folder: Path) -> None:
    """The files of transformers' processor; `folder` has the tokenizer's own already."""
    vision = net.config.vision_config
    tokenizer = (folder / "tokenizer_config.json").exists() or (folder / "tokenizer.json").exists()
    tower = {key: getattr(vision, key) for key in ("image_size", "patch_size", "hidden_size", "num_hidden_layers")}
    canvases = [list(pair[::-1]) for pair in configs.pinpoints(origin.config)]
    mean, std = LlavaNextCodec.colours(folder)
    edge = vision.image_size
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor",
        "aspect_ratio_setting": "anyres", "image_grid_pinpoints": canvases,
        "do_resize": True, "size": {"shortest_edge": edge}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": edge, "width": edge}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(mean), "image_std": list(std), "do_convert_rgb": True, "do_pad": True,
    })  # fmt: skip
    _write(folder / "processor_config.json", {
        "processor_class": "LlavaNextProcessor", "patch_size": vision.patch_size, "image_token": MARK,
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    })  # fmt: skip
    if tokenizer:
        codec = LlavaNextCodec.from_folder(folder, origin.config, tower)
        _add_mark(folder, int(net.config.text_config.vocab_size))
        shards.write_text(folder / "chat_template.jinja", chat_template(codec.template, codec.system_message))


def _add_mark(folder: Path, id: int) -> None:
    """`<image>` as one token behind all words, in whichever files the tokenizer has."""
    token = {"content": MARK, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
             "special": True}  # fmt: skip
    path = folder / "tokenizer_config.json"
    settings = shards.read_json(path) if path.exists() else {}
    if (folder / "tokenizer.json").exists():
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        raw.add_special_tokens([AddedToken(MARK, normalized=False, special=True)])
        if raw.token_to_id(MARK) != id:
            raise ValueError(
                f"the tokenizer would give {MARK} the id {raw.token_to_id(MARK)}, and the model's next row is {id}; "
                "keep layout=original"
            )
        raw.save(str(folder / "tokenizer.json"))
    listed = dict(settings.get("added_tokens_decoder") or {})
    others = _added(folder) if not listed else {}
    settings["added_tokens_decoder"] = {**others, **listed, str(id): token}
    settings |= {"processor_class": "LlavaNextProcessor", "image_token": MARK}
    _write(path, settings)


def _added(folder: Path) -> dict[str, Any]:
    """Added tokens of older folders, which list them in added_tokens.json, as tokenizer_config.json lists them."""
    path = folder / "added_tokens.json"
    tree = shards.read_json(path) if path.exists() else {}
    return {
        str(id): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                  "special": False}
        for text, id in tree.items()
    }  # fmt: skip


def _write(path: Path, tree: dict[str, Any]) -> None:
    shards.write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def chat_template(template: Template, system_message: str | None = None) -> str:
    """The model's own template in Jinja; a picture is one `<image>`, which the processor multiplies."""
    if template is PLAIN:
        raise ValueError("template plain writes captions and no chat; set model.template for layout=native")
    message = template.system_message if system_message is None else system_message
    opening = template.opening.format(message) if template.opening else ""
    inside = template.first.format(message) if template.first and message else ""
    head = {"user": template.user, "assistant": template.assistant + template.lead}
    end = {"user": template.user_end, "assistant": template.tail + template.end}
    begin = "{{- bos_token -}}" if template.begins else ""
    own = "{%- if messages[0]['role'] != 'system' -%}{{- " + json.dumps(opening) + " -}}{%- endif -%}"
    given = json.dumps(template.opening or template.first)
    said = "{%- set ns.first = " + given + ".replace('{}', words) -%}"
    return (
        begin
        + "{%- set ns = namespace(first=" + json.dumps(inside) + ") -%}"
        + own
        + "{%- set heads = " + json.dumps(head) + " -%}{%- set ends = " + json.dumps(end) + " -%}"
        "{%- for message in messages -%}"
        "{%- if message['content'] is string -%}{%- set words = message['content'] -%}{%- else -%}"
        "{%- set words -%}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
        "{%- endfor -%}{%- endset -%}{%- endif -%}"
        "{%- if message['role'] == 'system' -%}" + said
        + ("{{- ns.first -}}{%- set ns.first = '' -%}" if template.opening else "")
        + "{%- else -%}{{- heads[message['role']] -}}"
        "{%- if message['role'] == 'user' -%}{{- ns.first -}}{%- set ns.first = '' -%}{%- endif -%}"
        "{{- words -}}{{- ends[message['role']] -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- " + json.dumps(template.assistant) + " -}}{%- endif -%}"
    )  # fmt: skip
