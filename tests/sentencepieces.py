"""Tokenizer folders with a SentencePiece model trained on the spot, laid out like published ones."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece

IMAGE_MARKS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
_TEXT = (
    "Hello Hello Hello Hello world. Describe the image shortly. What is it? A cat on a mat.",
    "A red square on a blue field.",
    "system user assistant You are a pirate. Three tiles. The first is red; the second is blue.",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型。这是一只猫。",
)


@lru_cache
def model(prefix: bool, *own: str) -> bytes:
    """A small BPE model with byte fallback; `prefix`: it puts a space in front, as Llama's does; `own`: pieces that
    are never cut."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT * 20),
        model_writer=stream,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=list(own),
        minloglevel=2,
    )
    return stream.getvalue()


def size(prefix: bool) -> int:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model(prefix))
    return int(processor.get_piece_size())


def internlm2(folder: Path, **config: Any) -> Path:
    """As InternVL2-2B and -8B: two marks stand on the model's last pieces, the image marks behind them."""
    first = size(False) - 2
    marks = {first + i: text for i, text in enumerate(("<|im_end|>", "<|im_start|>", *IMAGE_MARKS))}
    added = {str(id): _token(text) for id, text in ({0: "<unk>", 1: "<s>", 2: "</s>"} | marks).items()}
    return _write(folder, model(False), {
        "tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": added, "bos_token": "<s>",
        "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}, **config,
    })  # fmt: skip


def phi3(folder: Path, **config: Any) -> Path:
    """As InternVL2-4B: Llama's model, and marks that swallow the white space after them."""
    own = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|system|>", "<|user|>")
    added = {i: _token(text) for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    for id, text in enumerate((*own, *IMAGE_MARKS), start=size(True)):
        added[id] = _token(text, rstrip=text in own[1:])
    return _write(folder, model(True), {
        "tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>",
        "added_tokens_decoder": {str(id): token for id, token in added.items()}, **config,
    })  # fmt: skip


def llama(folder: Path, **config: Any) -> Path:
    """As LLaVA-1.6 of Vicuna and Mistral: Llama's model and nothing beside it."""
    added = {str(i): _token(text) for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    return _write(folder, model(True), {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<unk>", "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added, **config,
    })  # fmt: skip


def yi(folder: Path) -> Path:
    """As LLaVA-1.6 34B: both marks are pieces of the model, and only the second is an added token too."""
    content = model(True, "<|im_start|>", "<|im_end|>")
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    end = processor.piece_to_id("<|im_end|>")
    added = {str(i): _token(text) for i, text in ((0, "<unk>"), (1, "<s>"), (2, "</s>"), (end, "<|im_end|>"))}
    return _write(folder, content, {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>",
        "pad_token": "<unk>", "add_bos_token": False, "add_eos_token": False, "added_tokens_decoder": added,
    })  # fmt: skip


def _token(text: str, **flags: bool) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "rstrip": False, "single_word": False, "special": True} | flags


def _write(folder: Path, content: bytes, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
