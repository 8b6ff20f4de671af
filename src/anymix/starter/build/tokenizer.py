"""A byte-level BPE of our own: learned from the sentences the pictures are asked and answered with.

Digits stand alone, every byte is in the alphabet, so any text encodes and comes back as it was. All starters have the
same words; what differs is the marks in front of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from anymix.starter.scenes import draw

INTERNVL2 = ("</s>", "<s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
LLAVA_NEXT = ("</s>", "<s>", "<|im_start|>", "<|im_end|>")  # saving adds <image> behind the words
QWEN2_VL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
SENTENCES = {"scene": 0.5, "writing": 0.2, "letters": 0.1, "chart": 0.1, "invoice": 0.1}
WORDS = 473  # entries that are no mark, at most


def learn(marks: Sequence[str] = INTERNVL2, pictures: int = 3000) -> Tokenizer:
    """The tokenizer. It is the same whatever is trained with it: its pictures are numbered from 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS + len(marks),
        special_tokens=list(marks),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(_sentences(pictures)), trainer)
    if "<s>" in marks:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path, marks: Sequence[str] = INTERNVL2) -> None:
    """tokenizer.json and tokenizer_config.json, as `PreTrainedTokenizerFast` opens them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    begins = {"bos_token": "<s>"} if "<s>" in marks else {}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", **begins, "eos_token": marks[0], "pad_token": marks[0],
        "additional_special_tokens": [mark for mark in marks[1:] if mark != "<s>"], "add_bos_token": bool(begins),
        "model_max_length": 2048, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _sentences(pictures: int) -> tuple[str, ...]:
    found: list[str] = []
    for seed in range(pictures):
        found += ("system\n", "user\n", "assistant\n")
        for question in draw(seed, SENTENCES).questions:
            found += ("\n" + question.ask, "assistant\n" + question.answer)
    return tuple(found)
