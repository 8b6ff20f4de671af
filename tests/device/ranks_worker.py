"""What each of two processes does in test_ranks.py: `python ranks_worker.py agree|fail OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymix.device import pick, ranks


class Towers(nn.Module):
    """A vision tower only pictures reach, a word tower, and a layer nothing reaches, as CLIP's last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision, self.words, self.idle = (nn.Linear(3, 3) for _ in range(3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, words: Tensor, picture: Tensor | None) -> Tensor:
        hidden = self.words(self.frozen(words))
        if picture is not None:
            hidden = hidden + self.vision(picture)
        return hidden.square().sum()


def rows(rank: int) -> list[tuple[Tensor, Tensor | None]]:
    """Two micro-batches a rank. Only the first of rank 0 has a picture."""
    draw = torch.Generator().manual_seed(rank)
    words = [torch.randn(2, 3, generator=draw) for _ in range(2)]
    return [(words[0], torch.randn(2, 3, generator=draw) if rank == 0 else None), (words[1], None)]


def gradients(step: nn.Module, mine: list[tuple[Tensor, Tensor | None]], scale: float) -> dict[str, Any]:
    """Summed loss of all micro-batches, times scale, as the loop does it."""
    for index, (words, picture) in enumerate(mine):
        with ranks.no_sync(step, last=index == len(mine) - 1):
            (step(words, picture) * scale).backward()
    named = {name.removeprefix("module.step."): p for name, p in step.named_parameters()}
    before = {name: p.grad is None for name, p in named.items()}
    ranks.zero_missing(step.parameters())
    grads = {name: None if p.grad is None else p.grad.tolist() for name, p in named.items()}
    return {"grads": grads, "missing": [name for name, absent in before.items() if absent]}


def agree(out: Path) -> None:
    device = pick("cpu", ranks.here().local_rank)
    with ranks.session(device) as me:
        step = ranks.wrap(Towers(), device)
        said = {
            "rank": me.rank,
            "world": me.world,
            "main": me.is_main,
            "wrapped": type(step).__name__,
            # far beyond float32: a detour over it would lose the one
            "sum": ranks.sum_float(2.0**40 + me.rank),
            "all": ranks.gather_objects({"rank": me.rank}),
            "first": ranks.broadcast_object(["from", me.rank]),
            "second": ranks.broadcast_object(me.rank, source=1),
            "first_step": gradients(step, rows(me.rank), scale=2.0),
        }
        step.zero_grad(set_to_none=True)
        said["second_step"] = gradients(step, rows(me.rank), scale=2.0)
        (out / f"{me.rank}.json").write_text(json.dumps(said))


def fail(_: Path) -> None:
    with ranks.session(pick("cpu", ranks.here().local_rank)) as me:
        ranks.barrier()
        if me.rank == 1:
            raise ValueError("row 7 of data.jsonl has no answer")
        ranks.barrier()  # rank 0 would wait here for half an hour


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        {"agree": agree, "fail": fail}[sys.argv[1]](Path(sys.argv[2]))
    except ValueError as error:
        sys.exit(f"anymix: {error}")
