"""Runs in a process that has a simulated NPU: one family through training, resume, LoRA and inference, beside the CPU.

    python worker.py FAMILY FOLDER          prints one JSON object of what was found, for the tests to judge

Nothing is asserted here. `anymix` is used as its users do; what they cannot see (where an optimizer's state lies) is
read from a prepared run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_npu
from PIL import Image
from safetensors.torch import load_file

import anymix
from anymix.data import loader
from anymix.device import optables, pick, ranks
from anymix.train.prepare import prepare

TALKING = ("internvl2", "llava_next", "qwen2_vl")
DRAWING = ("sd15", "sdxl", "sd3")
Tree = dict[str, Any]


def material(folder: Path) -> None:
    """Four grainy pictures, with captions beside them and rows about them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(4):
        shades = np.random.default_rng(number).integers(0, 255, (48, 48 + 16 * number, 3)).astype(np.uint8)
        Image.fromarray(shades).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red square number {number}")
        turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "red " * (number + 1)}]
        lines.append(json.dumps({"image": f"{number}.png", "conversations": turns}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def recipe(family: str, folder: Path, device: str, name: str, *typed: str) -> anymix.Run:
    """Three steps of two rows; `typed` on top."""
    data: Tree = {"path": str(folder / "rows.jsonl"), "workers": 0}
    if family in DRAWING:
        data |= {"path": str(folder), "resolution": 32, "bucket_step": 8, "flip": True, "caption_dropout": 0.3}
    tree: Tree = {
        "model": {"path": f"starter:{family}"},
        "data": data,
        "train": {"out": str(folder / name), "batch": 2, "steps": 3, "lr": 1e-4, "warmup": 0, "save_every": 2},
        "cache": {"path": str(folder / "cache")},
        "device": device,
    }
    return anymix.load(tree, typed)


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def trained(family: str, folder: Path, device: str, name: str, *typed: str) -> Tree:
    """What a run logged, said and wrote."""
    said: list[str] = []
    outcome = anymix.train(recipe(family, folder, device, name, *typed), say=said.append)
    return {"losses": losses(Path(outcome.out)), "said": said, "out": str(outcome.out)}


def weights(out: str) -> dict[str, torch.Tensor]:
    """Every tensor a run wrote as its result, by file and name."""
    found = {}
    for file in sorted(Path(out).rglob("*.safetensors")):
        if "checkpoint" not in str(file.relative_to(out)):
            found |= {f"{file.relative_to(out)}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def same(one: str, other: str) -> bool:
    """Whether two runs wrote the same, bit for bit."""
    ours, theirs = weights(one), weights(other)
    return bool(ours) and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def strict() -> None:
    """From here on float64 is an error, and so is an operator that this torch_npu has no kernel for.

    By names without overloads: where torch_npu has `gelu_backward`, torch comes here with its `grad_input` form."""
    torch.ops.npusim.refuse_float64(True)
    table = optables.table(torch_npu.__version__)
    torch.ops.npusim.allow(sorted({name.partition(".")[0] for name in table if table.kind(name) == "native"}))


# ------------------------------------------------------------------------------------------------ what is looked at


def places(family: str, folder: Path) -> Tree:
    """Where parameters, gradients and an optimizer's state are, and whether moving a model kept its parameters."""
    kept: dict[str, int] = {}
    to = torch.nn.Module.to

    def watched(module: torch.nn.Module, *given: Any, **named: Any) -> Any:
        before = {name: id(p) for name, p in module.named_parameters()}
        moved = to(module, *given, **named)
        kept["replaced"] = kept.get("replaced", 0) + sum(id(p) != before[n] for n, p in moved.named_parameters())
        kept["moved"] = kept.get("moved", 0) + len(before)
        return moved

    torch.nn.Module.to = watched  # type: ignore[method-assign,assignment]
    try:
        run = recipe(family, folder, "npu", "places", "cache.use=false")
        ready = prepare(run, pick("npu"), ranks.Ranks(), lambda text: None)
    finally:
        torch.nn.Module.to = to  # type: ignore[method-assign]
    trained = [p for p in ready.family.net.parameters() if p.requires_grad]
    held = {id(p) for group in ready.stepper.optimizer.param_groups for p in group["params"]}
    before = [p.detach().cpu().clone() for p in trained]
    micro = next(loader.stream(ready.rows, ready.family.codec, ready.order, ready.split, range(1)))
    ready.stepper.take(micro)
    state = [t for each in ready.stepper.optimizer.state.values() for t in each.values() if torch.is_tensor(t)]
    changed = [not torch.equal(was, p.detach().cpu()) for was, p in zip(before, trained, strict=True)]
    return {
        "parameters": sorted({p.device.type for p in ready.family.net.parameters()}),
        "state": sorted({t.device.type for t in state if t.dim()}),
        "states": len(state),
        "fused": bool(ready.stepper.optimizer.defaults.get("fused")),
        "held": held == {id(p) for p in trained},
        "moved": kept["moved"],
        "replaced": kept["replaced"],
        "changed": sum(changed) / len(changed),
    }


def resumed(family: str, folder: Path, *typed: str) -> Tree:
    """A run of four steps in one go, and one that stopped after two."""
    whole = trained(family, folder, "npu", "whole", "train.steps=4", *typed)
    trained(family, folder, "npu", "parts", "train.steps=4", *typed, "train.schedule=constant")
    first = trained(family, folder, "npu", "first", "train.steps=2", "train.schedule=constant", *typed)
    rest = trained(family, folder, "npu", "first", "train.steps=4", "train.schedule=constant", *typed)
    went_on_equal = same(rest["out"], str(folder / "parts"))  # before the next run writes over it
    onward = trained(family, folder, "cpu", "first", "train.steps=5", "train.schedule=constant", *typed)
    return {
        "same": went_on_equal,
        "went_on": [line for line in rest["said"] if "step 2" in line],
        "steps": [len(first["losses"]), len(rest["losses"]), len(onward["losses"])],
        "other_schedule": not same(whole["out"], str(folder / "parts")),
    }


def answers(family: str, folder: Path, model: str) -> Tree:
    """Greedy tokens of two questions, on both devices."""
    found = {}
    for device in ("cpu", "npu"):
        engine = anymix.open_chat(model, device=device, dtype="fp32")
        asked = {"What is it?": "0.png", "How many shapes are there?": "1.png"}
        questions = [
            anymix.Conversation((anymix.Turn("user", (anymix.ImageRef(str(folder / name)), f"\n{text}")),), key=text)
            for text, name in asked.items()
        ]
        said = engine.answer(questions, anymix.Sampling(max_new_tokens=12, min_new_tokens=6))
        drawn = engine.answer(questions, anymix.Sampling(max_new_tokens=6, temperature=1.0, seed=3))
        found[device] = [answer.text for answer in (*said, *drawn)]
        found[f"{device} net"] = sorted({p.device.type for p in engine.family.net.parameters()})
    return found


def drawings(family: str, folder: Path, model: str) -> Tree:
    """The same picture on both devices: the largest difference of a shade, of 255."""
    pictures = {}
    for device in ("cpu", "npu"):
        engine = anymix.open_image(model, device=device, dtype="fp32")
        picture = engine.draw("a red circle", steps=4, guidance=4.0, seed=5, width=64, height=64)[0].image
        pictures[device] = np.asarray(picture).astype(int)
    apart = np.abs(pictures["cpu"] - pictures["npu"])
    return {"apart": int(apart.max()), "spread": float(pictures["npu"].std())}


def half(family: str, folder: Path) -> Tree:
    """A step in the type `auto` means here, with the kernels there are."""
    torch_npu.calls.clear()
    found = trained(family, folder, "npu", "half", "adapter.rank=4", "train.steps=2")
    return found | {"calls": dict(torch_npu.calls), "dtype": str(pick("npu").dtype), "fused": pick("npu").fused}


def family_of(family: str, folder: Path) -> Tree:
    """All of it for one family, with the manners of an NPU."""
    material(folder)
    strict()
    took: dict[str, float] = {}

    def timed(name: str, do: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = do()
        took[name] = round(time.perf_counter() - began, 1)
        return result

    def full(device: str) -> Tree:
        return timed(f"full {device}", lambda: trained(family, folder, device, f"full-{device}", "model.dtype=fp32"))

    more = ("model.dtype=fp32", "adapter.rank=4", "train.checkpointing=true", "train.ema=0.9")
    adapter = timed("lora", lambda: trained(family, folder, "npu", "lora", *more))
    use = answers if family in TALKING else drawings
    return {
        "full": {"cpu": full("cpu"), "npu": full("npu")},
        "lora": adapter,
        "places": timed("places", lambda: places(family, folder)),
        "resumed": timed("resumed", lambda: resumed(family, folder, "adapter.rank=2")),
        "half": timed("half", lambda: half(family, folder)),
        "used": timed("used", lambda: use(family, folder, f"starter:{family}")),
        "adapted": timed("adapted", lambda: use(family, folder, adapter["out"])),
        "called": dict(torch_npu.calls),
        "took": took,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(family_of(sys.argv[1], Path(sys.argv[2]))))
