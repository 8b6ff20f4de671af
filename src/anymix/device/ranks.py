"""Several processes as one: start them, agree on numbers, average gradients, fall together.

Torch only: torchrun starts the processes, DDP averages gradients over hccl, nccl or gloo. Numbers of the host
(token counts, losses, sample names) never touch a device: the process group is opened with gloo beside the
device's own backend, so a CPU tensor travels over gloo, in float64 (which NPUs lack) and without waiting for
the device's queue. Every function is the identity in a single process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from anymix.device.choose import Device
from anymix.device.settings import export, share

T = TypeVar("T")

# How long a rank may wait for the others. The longest lawful wait is rank 0 writing tens of GB to a slow NAS;
# a rank that dies is noticed at once and not by this clock (see `session`).
TIMEOUT = timedelta(minutes=30)
FAILED = "anymix/failed"  # key in the rendezvous store: the first rank that raised


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def here() -> Ranks:
    """What torchrun's environment says, before anything is started: `pick` needs `local_rank`.

    Raises ValueError when only a part of that environment is there."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    absent = [name for name in names if name not in os.environ]
    if not {"RANK", "WORLD_SIZE"} & os.environ.keys():
        return Ranks()
    if absent:
        raise ValueError(
            f"{', '.join(absent)} not set although RANK or WORLD_SIZE is; start with nproc=N or torchrun, "
            "or `unset RANK WORLD_SIZE`"
        )
    return Ranks(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


def init(device: Device) -> Ranks:
    """Join the other processes. `pick` has made the card current before: the backend binds to it."""
    ranks = here()
    if ranks.world == 1:
        return ranks
    backend = device.backend if device.kind == "cpu" else f"cpu:gloo,{device.kind}:{device.backend}"
    store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    return Ranks(ranks.rank, ranks.local_rank, ranks.world, store)


def shutdown() -> None:
    """Leave the others in good order, after the last collective of all of them."""
    if dist.is_initialized():
        barrier()
        _let_workers_finish()
        dist.destroy_process_group()


def _let_workers_finish() -> None:
    """Give gloo's threads the interpreter lock before anything may destroy the process group.

    A worker thread drops the tensors of a collective after it has reported it done, and needs the lock for that.
    The group's destructor, run by Python with the lock held, joins the worker: seen to hang every second run of two
    ranks (torch 2.13: ~AsyncAllreduceWork in take_gil, ~ProcessGroupGloo in join). Nothing tells when a worker is
    idle; sleeping releases the lock, and a worker needs microseconds of it."""
    if _many():
        time.sleep(0.2)


@contextmanager
def session(device: Device) -> Iterator[Ranks]:
    """`init` ... `shutdown`. A rank that raises brings the others down, and its error is the one shown.

    The first to raise signs the store and its error goes on to the caller; nothing is waited for, so the
    process exits, its sockets close and torchrun stops the rest. Ranks that fail because of that say so in a
    line and exit 1 instead of printing a second error.
    """
    ranks = init(device)
    try:
        yield ranks
    except Exception:
        _let_workers_finish()
        first = _first_to_fail(ranks)
        if first == ranks.rank:
            raise
        sys.stderr.write(f"rank {ranks.rank} stops because rank {first} failed\n")
        raise SystemExit(1) from None
    shutdown()


def _first_to_fail(ranks: Ranks) -> int:
    if ranks.store is None:
        return ranks.rank
    try:
        return int(ranks.store.compare_set(FAILED, "", str(ranks.rank)))
    except RuntimeError:  # the store went down with the rank that kept it
        return ranks.rank if ranks.is_main else 0


def _many() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def sum_float(value: float) -> float:
    """Sum of a host number over all ranks, in float64."""
    if not _many():
        return float(value)
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def barrier() -> None:
    """Wait for all ranks, on the host: dist.barrier would go through the device's backend."""
    sum_float(0.0)


def gather_objects(value: T) -> list[T]:
    """One value from each rank, by rank, on every rank. Small picklable things: names, counts, timings."""
    if not _many():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T, source: int = 0) -> T:
    """The value rank `source` has, on every rank."""
    if not _many():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]  # type: ignore[no-any-return]


class _Attach(torch.autograd.Function):
    """The loss unchanged, with every parameter as a further input whose gradient is undefined."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (grads[0], *(None,) * ctx.count)


class Whole(nn.Module):
    """A step whose loss depends on every trainable parameter, whatever the batch left out.

    DDP waits for a bucket until each parameter in it has reported. A rank whose batch has no picture never
    reports the vision tower and all hang. Here such a parameter is reached by backward with an undefined
    gradient, which costs nothing and which DDP counts as zeros.
    """

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = self.step(*args, **kwargs)
        trained = [p for p in self.step.parameters() if p.requires_grad]
        attached: Tensor = _Attach.apply(loss, *trained)  # type: ignore[no-untyped-call]
        return attached


# Newer torch renamed the argument and warns of the old name.
_NAMES = signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


def wrap(step: nn.Module, device: Device) -> nn.Module:
    """The step as the ranks share it: same weights everywhere, gradients averaged in backward.

    Gradients are the mean over ranks, so the loop scales its summed loss by world / total weight. The step
    returns the loss alone, shape (). In a single process it comes back as it is.
    """
    if not _many():
        return step
    barrier()  # ranks open models minutes apart; the device's own backend waits two for the first contact
    for parameter in step.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(_usual_strides)  # type: ignore[no-untyped-call]
    # Buffers are tables (rotary, positions), equal everywhere.
    no_buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(
        Whole(step),
        device_ids=None,  # the loop moves batches; a module on one device needs no ids
        find_unused_parameters=False,  # `Whole` has the unused ones report too
        gradient_as_bucket_view=True,
        **no_buffers,
    )


def _usual_strides(grad: Tensor) -> Tensor:
    """A gradient with the strides a new tensor has: those of a dimension of size 1 say nothing, but DDP holds them
    against its bucket and warns (a class token of shape (1, 1, C) is a slice of the sequence it began).

    Copied, as autograd would for such strides: with the usual ones it keeps what it is given, and the slice shares its
    memory with a gradient that is still added to."""
    usual = torch.empty(grad.shape, device="meta").stride()
    return (
        grad
        if grad.stride() == usual or not grad.is_contiguous()
        else grad.clone(memory_format=torch.contiguous_format)
    )


def zero_missing(parameters: Iterable[nn.Parameter]) -> None:
    """Zeros for trainable parameters no batch of this step reached, after its last backward.

    DDP leaves zeros there. Without this a single process would leave None, its optimizer would skip their
    weight decay, and one process would train otherwise than two.
    """
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def no_sync(step: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around forward AND backward of a micro-batch: gradients travel with the last one only."""
    if last or not isinstance(step, DistributedDataParallel):
        return nullcontext()
    return step.no_sync()


def launch(argv: Sequence[str], nproc: int) -> int:
    """Run `python ARGV` ("-m", "package", ... or "script.py", ...) in `nproc` processes on this machine.

    -> 0 when all of them exited 0, else the exit code of the first that failed; torchrun stops the others.
    SIGTERM, and Ctrl-C as SIGTERM, go to the processes themselves, so that they may take their time to save and
    exit 0; torchrun would give them 30 s and exit 1.
    """
    environ = dict(os.environ)
    if "OMP_NUM_THREADS" not in environ:  # torchrun would set 1, and warn
        export(environ, "OMP_NUM_THREADS", str(share(_cores(), nproc)))
    torchrun = [sys.executable, "-m", "anymix.device.agent", "--standalone", f"--nproc-per-node={nproc}"]
    agent = subprocess.Popen([*torchrun, *argv], env=environ, start_new_session=True)  # Ctrl-C reaches us alone

    def pass_on(number: int, _: FrameType | None) -> None:
        for pid in _children(agent.pid) or [agent.pid]:
            os.kill(pid, number)

    def interrupted(_: int, frame: FrameType | None) -> None:
        pass_on(signal.SIGTERM, frame)

    before = signal.signal(signal.SIGTERM, pass_on), signal.signal(signal.SIGINT, interrupted)
    try:
        return agent.wait()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def _children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:  # macOS
        listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listed.split()]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
