"""What every family that talks is held to, whatever language model is in it: one function per check.

A check takes a folder in its released layout and raises where what is promised does not hold. Its reference is
transformers' own class, opened from a folder in transformers' layout: it shares no code with the family but the
network's modules. `test_contract.py` runs the checks of `HERE` for all of `MADE`. `PROVED` names, of the rest, what
proves it in another room, family by family; `test_contract.py` asks that every one of `CHECKS` is proved somewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    InternVLForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

import anymix
from anymix import families
from anymix.adapters import lora
from anymix.adapters.opening import open_family
from anymix.config import Adapter
from anymix.data.images import image_size
from anymix.engines.chat import ChatEngine
from anymix.engines.sampling import Sampling
from anymix.families.common.laying import IGNORE
from anymix.families.internvl2 import tiling
from anymix.families.qwen2_vl import patches
from anymix.samples import Conversation
from anymix.train import checkpoint
from families.tiny_qwen import tiny_qwen2vl
from model_files import beside_weights
from tiny import tiny_internvl2
from tiny_llava import tiny_llava

Make = Callable[[Path], Path]
MADE: dict[str, Make] = {
    **{f"internvl2-{llm}": partial(tiny_internvl2, llm=llm) for llm in ("internlm2", "qwen2", "llama", "phi3")},
    **{f"llava_next-{kind}": partial(tiny_llava, kind=kind) for kind in ("vicuna", "mistral", "yi", "llama3")},
    "qwen2_vl-released": tiny_qwen2vl,
    "qwen2_vl-renamed": partial(tiny_qwen2vl, new_names=True),
    "qwen2_vl-tied": partial(tiny_qwen2vl, tied=True),
}
FAMILIES = ("internvl2", "llava_next", "qwen2_vl")
SPLIT = ("train.steps=3", "train.lr=1e-4")
CHECKS = (
    "original -> ours -> original, bitwise",
    "native layout and back, bitwise",
    "equal to the reference implementation",
    "ids and labels are the original's",
    "labels decode to the assistant's words only",
    "gradients are the reference's",
    "one step of the loop is plain PyTorch's",
    "one row four times = four rows once",
    "two ranks are one process",
    "resume in the middle of an epoch is bitwise",
    "learns one batch by heart",
    "trained, saved, opened, asked",
    "merged adapter = adapter",
    "engine = generate",
)
HERE = {  # check -> the function that runs for all of MADE
    "gradients are the reference's": "loss_and_gradients_are_the_references",
    "equal to the reference implementation": "loss_and_gradients_are_the_references",
    "one row four times = four rows once": "the_split_does_not_matter",
    "learns one batch by heart": "it_learns_by_heart_and_says_so",
    "trained, saved, opened, asked": "it_learns_by_heart_and_says_so",
    "merged adapter = adapter": "a_merged_adapter_is_the_adapter",
    "engine = generate": "answers_are_those_of_generate",
}
_OWN = "families/test_contract.py::"
PROVED = {  # check -> its test for InternVL2, for LLaVA-1.6, for Qwen2-VL
    "original -> ours -> original, bitwise": (
        "families/internvl2/test_weights.py::test_original_to_ours_to_original_is_bitwise",
        "families/llava_next/test_weights.py::test_original_to_original_is_the_same_folder",
        "families/qwen2_vl/test_weights.py::test_saved_in_the_layout_it_came_in_it_is_bitwise_the_same",
    ),
    "native layout and back, bitwise": (
        "families/internvl2/test_native.py::test_to_native_and_back",
        "families/llava_next/test_weights.py::test_original_to_native_to_original",
        "families/qwen2_vl/test_weights.py::test_either_names_and_back",
    ),
    "equal to the reference implementation": (  # the original's code; Qwen2-VL's is transformers'
        "families/internvl2/test_golden.py::test_logits",
        "families/llava_next/test_golden.py::test_our_own_forward",
        "families/qwen2_vl/test_family.py::test_logits_where_rounding_hides_nothing",
    ),
    "ids and labels are the original's": (
        "families/internvl2/test_codec.py::test_ids_and_labels_are_the_originals",
        "families/llava_next/test_codec.py::test_ids_and_labels",
        "families/qwen2_vl/test_codec.py::test_rows_have_the_ids_of_the_folders_template",
    ),
    "labels decode to the assistant's words only": (
        "families/common/test_laying.py::test_labels_decode_to_the_assistants_words_only",
        "families/llava_next/test_codec.py::test_ids_and_labels",
        "families/qwen2_vl/test_codec.py::test_labels_are_the_assistants_words_and_the_mark_behind_them",
    ),
    "one step of the loop is plain PyTorch's": (f"{_OWN}test_one_step_of_the_loop",) * 3,
    "two ranks are one process": (
        "train/test_loop.py::test_two_ranks_are_one_process",
        f"{_OWN}test_two_ranks_are_one",
        "families/qwen2_vl/test_commands.py::test_four_rows_are_one_step_however_they_are_split",
    ),
    "resume in the middle of an epoch is bitwise": (
        "train/test_loop.py::test_resume_is_bitwise_in_the_middle_of_an_epoch",
        f"{_OWN}test_resume_is_bitwise",
        f"{_OWN}test_resume_is_bitwise",
    ),
}
Tensors = Mapping[str, Tensor]

# ------------------------------------------------------------------------------------------- the reference


def reference(family: Any, place: Path) -> Any:
    """transformers' own class with the family's weights, from a folder in transformers' layout written at `place`."""
    classes = {
        "internvl2": InternVLForConditionalGeneration,
        "llava_next": LlavaNextForConditionalGeneration,
        "qwen2_vl": Qwen2VLForConditionalGeneration,
    }
    family.save(place, "native")
    return classes[family.name].from_pretrained(place, dtype=torch.float32).eval()


def asked(family: Any, theirs: Any, ids: Tensor, seen: Any, row: Conversation) -> dict[str, Any]:
    """The arguments of transformers' class for one row: its (L,) ids, and its tiles or patches as bytes."""
    ids = ids.masked_fill(ids < 0, theirs.config.image_token_id)  # LLaVA's placeholder is no word of the original
    found = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    codec = family.codec
    if family.name == "qwen2_vl":
        found["mm_token_type_ids"] = (ids == theirs.config.image_token_id).long()[None]
    if seen is None:
        return found
    values = bytes_to_values(codec, seen)
    if family.name == "internvl2":
        return {**found, "pixel_values": values}
    if family.name == "llava_next":
        width, height = image_size(row.images[0], row.key)
        return {**found, "pixel_values": values[None], "image_sizes": torch.tensor([[height, width]])}
    grids = torch.tensor([codec.cut.picture(*image_size(ref, row.key)) for ref in row.images])
    return {**found, "pixel_values": values, "image_grid_thw": grids}


def bytes_to_values(codec: Any, seen: Tensor) -> Tensor:
    """Tiles or patches as a codec hands them on -> what a vision tower is given, fp32."""
    normalise = {2: patches.normalise, 4: tiling.normalise}[seen.ndim]
    return normalise(seen, codec.mean, codec.std)


def pixels_of(item: Any) -> Tensor | None:
    """An item's tiles or patches."""
    return item.patches if hasattr(item, "patches") else item.tiles  # type: ignore[no-any-return]


def summed(family: Any, theirs: Any, row: Conversation) -> tuple[Tensor, float]:
    """transformers' logits of a row by itself, torch's cross entropy over its labels: the sum, and over how many."""
    item = family.codec.encode(row)
    words = family.net.lm_head.out_features  # a native LLaVA has a row for its placeholder behind them
    logits = theirs(**asked(family, theirs, item.ids, pixels_of(item), row)).logits[0, :, :words]
    assert logits.std() > 0.5  # a net that says nothing would agree with any other
    return cross_entropy(logits[:-1], item.labels[1:], ignore_index=IGNORE, reduction="sum"), item.weight


# ------------------------------------------------------------------------------------------------ checks


def loss_and_gradients_are_the_references(source: Path, rows: list[Conversation], place: Path) -> None:
    """Rows end to end in one forward, against each row by itself in the reference.

    In double precision, but for the sum of the loss: what is left is no rounding."""
    family: Any = families.open_folder(source)
    theirs = reference(family, place).double()
    family.net.double()
    pairs = [summed(family, theirs, row) for row in rows]
    batch = family.codec.collate([family.codec.encode(row) for row in rows])
    loss, expected = family.loss(batch), torch.stack([loss for loss, _ in pairs]).sum()
    assert batch.weight == sum(weight for _, weight in pairs)
    assert abs(loss - expected) < 1e-6 * expected
    loss.backward()
    expected.backward()
    compared = 0
    for name, parameter in theirs.named_parameters():
        ours = family.net.get_parameter(name).grad
        if parameter.grad is None:
            assert ours is None or not ours.any(), name
            continue
        assert ours is not None, name
        told = parameter.grad[: len(ours)]
        assert (ours - told).abs().max() <= 1e-5 * told.abs().max() + 1e-7, name
        compared += 1
    assert compared > 20


def one_step_of_the_loop(source: Path, data: Path, place: Path) -> None:
    """`anymix train` takes the step that plain PyTorch takes with the reference's summed loss, divided once and
    clipped once; with SGD, so that the weights show the gradient's size and not its sign alone."""
    rate, clip, decay = 0.1, 0.5, 0.01
    rows, family = _rows(data), families.open_folder(source)
    net: Any = reference(family, place / "native")
    pairs = [summed(family, net, row) for row in rows]
    total = sum(weight for _, weight in pairs)
    (torch.stack([loss for loss, _ in pairs]).sum() / total).backward()
    run = recipe(
        source, data, place / "out", "train.batch=1", f"train.accumulate={len(rows)}", "train.steps=1",
        "train.optimizer=sgd", f"train.lr={rate}", f"train.clip={clip}", f"train.weight_decay={decay}",
    )  # fmt: skip
    anymix.train(run, say=_quiet)
    (line,) = journal(run)
    trained = weights(run)
    learned = {name: p for name, p in net.named_parameters() if name in trained}
    assert learned.keys() == trained.keys() and all(p.grad is not None for p in learned.values())
    norm = float(torch.nn.utils.clip_grad_norm_(learned.values(), clip))
    assert norm > clip
    loss = sum(float(loss.detach()) for loss, _ in pairs) / total
    assert abs(line["loss"] / loss - 1) < 1e-5 and abs(line["grad_norm"] / norm - 1) < 1e-5
    for name, parameter in learned.items():
        shrunk = parameter * (1 - rate * decay) if parameter.ndim > 1 else parameter
        stepped = (shrunk - rate * parameter.grad)[: len(trained[name])]
        assert (trained[name] - stepped).abs().max() < 1e-6, name


def the_split_does_not_matter(source: Path, data: Path, place: Path) -> None:
    """One row four times = four rows once; a mean of means is 4.7e-2 off after three ragged steps."""
    once, parts = (
        recipe(source, data, place / str(n), f"train.batch={n}", f"train.accumulate={4 // n}", *SPLIT) for n in (4, 1)
    )
    for run in (once, parts):
        anymix.train(run, say=_quiet)
    same_run(once, parts)


def two_ranks_are_one(source: Path, data: Path, place: Path) -> None:
    """The same four rows on two gloo ranks, one of which meets a row without a picture."""
    once = recipe(source, data, place / "once", "train.batch=4", *SPLIT)
    pair = recipe(source, data, place / "pair", "train.accumulate=2", *SPLIT)
    anymix.train(once, say=_quiet)
    (place / "run.json").write_text(json.dumps(pair.model_dump(mode="json")))
    command = [sys.executable, "-m", "anymix", "train", str(place / "run.json"), "nproc=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    same_run(once, pair)


def same_run(one: anymix.Run, other: anymix.Run) -> None:
    """Losses and first gradients within 1e-6, weights within 5e-6."""
    pairs = list(zip(journal(one), journal(other), strict=True))
    assert max(abs(a["loss"] - b["loss"]) for a, b in pairs) < 1e-6 * pairs[0][0]["loss"]
    assert abs(pairs[0][0]["grad_norm"] / pairs[0][1]["grad_norm"] - 1) < 1e-6
    assert [a["targets"] for a, _ in pairs] == [b["targets"] for _, b in pairs]
    assert apart(weights(one), weights(other)) < 5e-6


def resume_is_bitwise(source: Path, data: Path, place: Path) -> None:
    """Cut off in the second of three steps, in the middle of an epoch, behind the checkpoint of the first."""
    whole, cut = (recipe(source, data, place / n, "train.steps=3", "train.save_every=1") for n in ("whole", "cut"))
    anymix.train(whole, say=_quiet)
    try:
        anymix.train(cut, say=_quiet, show=_cut_off)
    except InterruptedError:
        assert [p.name for p in checkpoint.steps(place / "cut")] == ["step-000001"]
    outcome = anymix.train(cut, say=_quiet)
    assert outcome.step == 3 and apart(weights(whole), weights(cut)) == 0
    assert [line["loss"] for line in journal(whole)] == [line["loss"] for line in journal(cut)]


def _cut_off(step: int, steps: int, values: Mapping[str, float]) -> None:
    if step == 2:
        raise InterruptedError


def it_learns_by_heart_and_says_so(source: Path, data: Path, place: Path) -> None:
    """One batch until it knows it; the folder the run leaves opens and answers in those words, and a
    picture of another colour is answered otherwise."""
    rows = _rows(data)
    run = recipe(
        source, data, place / "out", f"train.batch={len(rows)}", "train.steps=40", "train.lr=1e-2",
        "train.save_every=40", "train.warmup=5", "train.betas=[0.9, 0.95]",
        "train.checkpointing={language: false, vision: false}",
    )  # fmt: skip
    anymix.train(run, say=_quiet)
    losses = [line["loss"] for line in journal(run)]
    assert losses[-1] < losses[0] / 20
    engine = ChatEngine(open_family(run.train.out, "cpu"))
    asked_ = [Conversation(row.turns[:-1], row.key) for row in rows]
    answers = engine.answer(asked_, Sampling(max_new_tokens=16))
    assert [answer.text for answer in answers] == [row.turns[-1].text for row in rows]
    assert {answer.finish for answer in answers} == {"stop"}


def a_merged_adapter_is_the_adapter(source: Path, rows: list[Conversation], place: Path) -> None:
    """In double precision, so that what is left is no rounding: attached, saved and opened, merged, and the
    merged folder, in fp32, opened."""
    family = _double(families.open_folder(source))
    batch = family.codec.collate([family.codec.encode(row) for row in rows])
    with torch.no_grad():
        plain = family.loss(batch)
        parts: list[Any] = [part for part in ("language", "vision", "projector") if part in family.lora_targets]
        lora.attach(family.net, Adapter(rank=2, parts=parts), family.lora_targets, str(source))
        draw = torch.Generator().manual_seed(0)
        for parameter in lora.trainable(family.net).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
        unmerged = family.loss(batch)
        assert abs(unmerged - plain) > 1e-3 * plain
        lora.save(family.net, place / "adapter", source)
        assert abs(_double(open_family(place / "adapter", "cpu")).loss(batch) - unmerged) < 1e-4 * plain
        lora.merge(family.net)
        assert abs(family.loss(batch) - unmerged) < 1e-6  # the loss itself is summed in fp32
        family.save(place / "merged", family.layout)
        assert beside_weights(place / "merged") == beside_weights(source)  # its tokenizer, template and processor
        again: Any = families.open_folder(place / "merged")
        assert abs(again.loss(batch) - unmerged) < 1e-4 * plain


def _double(family: Any) -> Any:
    family.net.double()
    return family


def answers_are_those_of_generate(source: Path, rows: list[Conversation], place: Path) -> None:
    """The engine's greedy answers, alone and in a left-padded batch, against transformers' own `generate`."""
    family: Any = families.open_folder(source)
    theirs, engine, few = reference(family, place), ChatEngine(family), Sampling(max_new_tokens=12)
    questions = [Conversation(row.turns[:1], row.key) for row in rows]
    together = [list(answer.ids) for answer in engine.answer(questions, few)]
    told = []
    for question, ids in zip(questions, together, strict=True):
        assert list(engine.answer([question], few)[0].ids) == ids
        prompt = family.prompt(question)
        arguments = asked(family, theirs, prompt.ids, prompt.pixels, question)
        said = theirs.generate(
            **arguments, max_new_tokens=12, do_sample=False, temperature=None, top_p=None, top_k=None,
            eos_token_id=sorted(family.stops), pad_token_id=family.codec.pad_id,
        )  # fmt: skip
        told.append(said[0, len(prompt.ids) :].tolist()[: len(ids)])
    assert together == told
    assert len(set(map(tuple, told))) > 1 and max(map(len, told)) > 3


def nothing_waits_for_the_device(source: Path, rows: list[Conversation]) -> None:
    """A loss and its gradients on the meta device, which has no values to be asked for: no `.item()`, no `nonzero`,
    no branch on a tensor. Borders of sequences are on the host already."""
    family: Any = families.open_folder(source)
    family.net.to("meta").train()
    for some in (rows, rows[-1:]):  # the last has no picture: what stands in for one is made on the device too
        loss = family.loss(family.codec.collate([family.codec.encode(row) for row in some]).to("meta"))
        assert loss.is_meta and loss.shape == ()
        loss.backward()


def blocks_are_recomputed(source: Path, rows: list[Conversation]) -> None:
    """Where checkpointing is asked for, every block of both towers runs forward a second time, and else once."""
    for parts, times in (((), 1), (("language", "vision"), 2)):
        family: Any = families.open_folder(source)
        family.net.train()
        family.checkpoint_activations(parts)
        counts: Counter[str] = Counter()
        for name, module in family.net.named_modules():
            if isinstance(module, family.blocks):
                inner = next(child for child in module.modules() if isinstance(child, torch.nn.Linear))
                inner.register_forward_hook(partial(_count, counts, name))
        family.loss(family.codec.collate([family.codec.encode(row) for row in rows])).backward()
        idle = [name for name in counts if any(fnmatchcase(f"{name}.x", glob) for glob in family.idle)]
        assert {counts[name] for name in counts if name not in idle} == {times}
        assert len(counts) - len(idle) == 4


def _count(counts: Counter[str], name: str, *_: object) -> None:
    counts[name] += 1


# ------------------------------------------------------------------------------------------------- runs


def recipe(source: Path, data: Path, out: Path, *overrides: str) -> anymix.Run:
    """A run on the CPU over `data`, in the order of its file."""
    tree = {
        "model": {"path": str(source)},
        "data": {"path": str(data), "workers": 0, "shuffle": False},
        "train": {"out": str(out), "batch": 1, "accumulate": 1, "lr": 1e-3, "warmup": 0},
        "device": "cpu",
    }
    return anymix.load(tree, list(overrides))


def journal(run: anymix.Run) -> list[dict[str, Any]]:
    lines = (Path(run.train.out) / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def weights(run: anymix.Run) -> dict[str, Tensor]:
    """All that trained, in fp32, by the network's own names."""
    return load_file(checkpoint.steps(Path(run.train.out))[-1] / "trained.safetensors")


def apart(one: Tensors, other: Tensors) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _rows(data: Path) -> list[Conversation]:
    from anymix.data import conversations

    return list(conversations.read(str(data)))


def _quiet(_: str) -> None:
    return None
