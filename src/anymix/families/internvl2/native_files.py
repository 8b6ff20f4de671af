"""What lies beside an InternVL2's weights in transformers' native layout: config, processor, tokenizer, template.

`AutoTokenizer`, `GotOcr2ImageProcessorPil` and `InternVLForConditionalGeneration` open the folder as it is; a test
holds their ids and pixels against the codec's. The original config goes along inside the new one, so the way back is
open.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import AddedToken, Tokenizer, processors
from transformers import GenerationConfig, LlamaTokenizer, PreTrainedTokenizerFast

from anymix.families.common import shards
from anymix.families.common.origin import Origin, as_opened, carry, origin_of
from anymix.families.common.pieces import Pieces
from anymix.families.common.quiet import quiet
from anymix.families.common.words import Fast, Words
from anymix.families.internvl2 import configs
from anymix.families.internvl2.codec import InternVL2Codec

GENERATION = "generation_config.json"

# spellings on which two tokenizers that differ at all are likely to differ: spaces, marks, bytes, CJK, digits
PROBES = (
    "Hello, world",
    " two  spaces ",
    "a\n\nb\n",
    "书生多模态 InternVL2 0123 3.14",
    "naïve 🚀 \u200b",
    "\t{}[]|\\",
)


def save_native(net: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Weights in transformers' own names and the dtype they came in, and everything its classes ask for.

    Raises ValueError where the native layout has no place for the model (ps_version v1), or its tokenizer cannot be
    written exactly, both before a weight is converted."""
    origin = origin_of(net)
    config = origin.config if origin else configs.original(net.config)
    if {**configs.CHAT_DEFAULTS, **config}["ps_version"] == "v1":
        raise ValueError("transformers has no ps_version v1: it would see every tile transposed; keep layout=original")
    with shards.saving(folder) as beside:
        if origin is not None and origin.layout == "native":
            carry(origin, beside, folder)
        stops: tuple[int, ...] = ()
        if origin is not None and origin.layout == "original":
            with as_opened(origin) as source:
                stops = _processor(source, config, beside)
        _generation(net, beside, stops)
        _weights(net, origin, config, beside, dtype)


def _generation(net: Any, folder: Path, stops: tuple[int, ...]) -> None:
    """generation_config.json as the source had it, with an eos; the original asks its template for one.

    Written past transformers' own check, which refuses what many a released folder says (do_sample false beside a
    temperature) and only warns when it reads it."""
    path = folder / GENERATION
    if not path.exists():
        net.generation_config.to_json_file(path)
    if stops:
        _write(path, {"eos_token_id": list(stops), **shards.read_json(path)})


def _weights(net: Any, origin: Origin | None, config: dict[str, Any], folder: Path, dtype: torch.dtype | None) -> None:
    dtypes = origin.dtypes if origin else {}
    tensors = {name: t.detach().to("cpu", dtype or dtypes.get(name)) for name, t in net.state_dict().items()}
    setattr(net.config, configs.ORIGIN_KEY, config)
    generation, said = net.generation_config, (folder / GENERATION).read_bytes()
    net.generation_config = GenerationConfig()  # a valid one for save_pretrained, which writes it
    try:
        with quiet():
            net.save_pretrained(folder, state_dict=tensors, max_shard_size=shards.SHARD_BYTES)
    finally:
        net.generation_config = generation
    (folder / GENERATION).write_bytes(said)


def _processor(source: Path, config: dict[str, Any], folder: Path) -> tuple[int, ...]:
    """The files of transformers' processor, from the original folder `source`; the ids that end an answer."""
    codec = InternVL2Codec.from_folder(source, config)
    size = {"height": codec.image_size, "width": codec.image_size}
    settings = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "do_resize": True, "size": size, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(codec.mean), "image_std": list(codec.std), "do_convert_rgb": True,
        "crop_to_patches": True, "min_patches": codec.min_tiles, "max_patches": codec.max_tiles,
    }  # fmt: skip
    _write(folder / "preprocessor_config.json", settings)
    facts = {"processor_class": "InternVLProcessor", "image_seq_length": codec.tokens_per_tile}
    _write(folder / "processor_config.json", facts)
    tokenizer(codec.words, source, folder)
    shards.write_text(folder / "chat_template.jinja", chat_template(codec))
    return tuple(codec.stop_ids)


def _write(path: Path, tree: dict[str, Any]) -> None:
    shards.write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def chat_template(codec: InternVL2Codec) -> str:
    """The model's own template in Jinja; a picture is one `<IMG_CONTEXT>`, which the processor multiplies."""
    template = codec.template
    message = template.system_message if codec.system_message is None else codec.system_message
    head = {"system": template.system, "user": template.user, "assistant": template.assistant}
    end = template.end + template.gap
    return (
        "{%- set heads = " + json.dumps(head, ensure_ascii=False) + " -%}"
        "{%- if messages[0]['role'] != 'system' -%}"
        "{{- " + json.dumps(template.system + message + end, ensure_ascii=False) + " -}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{{- heads[message['role']] -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}"
        "{%- else -%}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{- '<IMG_CONTEXT>\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
        "{{- " + json.dumps(end) + " -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- " + json.dumps(template.assistant) + " -}}{%- endif -%}"
    )


def tokenizer(words: Words, source: Path, folder: Path) -> None:
    """tokenizer.json and its config, checked to give the ids of `words`. ValueError when they cannot be made to."""
    engine = words.engine
    raw = engine.tokenizer if isinstance(engine, Fast) else _from_pieces(engine, source)
    named = {"bos_token": words.bos_id, "eos_token": words.eos_id, "pad_token": words.pad_id}
    texts = {name: words.piece(id) for name, id in named.items() if id is not None}
    if words.adds_bos and words.bos_id is not None:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{texts['bos_token']} $A", special_tokens=[(texts["bos_token"], words.bos_id)]
        )
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, clean_up_tokenization_spaces=False, padding_side="left", **texts
    )
    for text in (*PROBES, *("".join((mark, text)) for mark in marks.values() for text in PROBES)):
        if made.encode(text, add_special_tokens=False) != words.encode(text):
            raise ValueError(
                f"the tokenizer of {source} cannot be written as a tokenizer.json: {text!r} would become other "
                "tokens; keep layout=original"
            )
    made.save_pretrained(folder)
    settings = shards.read_json(folder / "tokenizer_config.json")
    video = {"video_token": "<video>"} if words.id_of("<video>") is not None else {"video_token": "<IMG_CONTEXT>"}
    _write(
        folder / "tokenizer_config.json",
        {**settings, **marks, **video, "extra_special_tokens": {**marks, **video}},
    )


def _from_pieces(engine: Any, source: Path) -> Tokenizer:
    """SentencePiece as a BPE of the `tokenizers` library.

    Added tokens take their ids in the vocabulary itself, in place of the pieces SentencePiece reserves there: the
    library would give them new numbers behind its end."""
    assert isinstance(engine, Pieces)
    with quiet():
        made = LlamaTokenizer(*_vocabulary(source), add_prefix_space=False, legacy=False)
    tree = json.loads(made.backend_tokenizer.to_str())
    marks = engine.mark_texts
    model = tree["model"]
    reserved = {piece for piece, id in model["vocab"].items() if id in marks and piece != marks[id]}
    model["vocab"] = {p: id for p, id in model["vocab"].items() if p not in reserved} | {t: i for i, t in marks.items()}
    model["merges"] = [pair for pair in model["merges"] if not reserved & {*pair, "".join(pair)}]
    tree["added_tokens"], tree["post_processor"] = [], None
    raw = Tokenizer.from_str(json.dumps(tree))
    raw.add_special_tokens([AddedToken(marks[id], normalized=False, special=True) for id in sorted(marks)])
    return raw


def _vocabulary(source: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges of a SentencePiece BPE model: a pair merges when its join is a piece, best score first."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    pieces = {model.id_to_piece(id): id for id in range(model.get_piece_size())}
    scored = []
    for piece, id in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                scored.append((-model.get_score(id), pieces[left], pieces[right], (left, right)))
    return pieces, [pair for *_, pair in sorted(scored)]
