"""The transport between simulated cards: torch's `hccl`, which is gloo on copies of the host."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future


def register() -> None:
    """Make `hccl` a transport torch.distributed knows."""
    if dist.is_available() and "hccl" not in dist.Backend.backend_list:
        dist.Backend.register_backend("hccl", Copies, devices=["npu"])


def _done(result: Any) -> Any:
    future: Future[Any] = Future()
    future.set_result(result)
    return torch._C._distributed_c10d._create_work_from_future(future)


def _like(options: Any, kind: Any) -> Any:
    """Options of gloo's own, with the operation and root of those given."""
    made = kind()
    for name in ("reduceOp", "rootRank", "rootTensor"):
        if hasattr(options, name) and hasattr(made, name):
            setattr(made, name, getattr(options, name))
    return made


class Copies(dist.ProcessGroup):
    """Every collective on copies of the host, written back to the device."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self.gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:
        return "hccl"

    def allreduce(self, tensors: Any, options: Any = None) -> Any:
        tensors = tensors if isinstance(tensors, list) else [tensors]
        host = [tensor.cpu() for tensor in tensors]
        self.gloo.allreduce(host, _like(options, dist.AllreduceOptions)).wait()
        return self._back(tensors, host)

    def broadcast(self, tensors: Any, options: Any = None) -> Any:
        host = [tensor.cpu() for tensor in tensors]
        self.gloo.broadcast(host, _like(options, dist.BroadcastOptions)).wait()
        return self._back(tensors, host)

    def allgather(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        host = [[tensor.cpu() for tensor in each] for each in outputs]
        self.gloo.allgather(host, [tensor.cpu() for tensor in inputs]).wait()
        for each, copies in zip(outputs, host, strict=True):
            self._back(each, copies)
        return _done(outputs)

    def _allgather_base(self, output: Any, given: Any, options: Any = None) -> Any:
        host = [torch.empty(given.shape, dtype=given.dtype) for _ in range(self.size())]
        self.gloo.allgather([host], [given.cpu()]).wait()
        output.copy_(torch.cat([each.reshape(-1) for each in host]).view(output.shape))
        return _done([output])

    def _reduce_scatter_base(self, output: Any, given: Any, options: Any = None) -> Any:
        host = given.cpu()
        self.gloo.allreduce([host], _like(options, dist.AllreduceOptions)).wait()
        output.copy_(host.reshape(self.size(), -1)[self.rank()].view(output.shape))
        return _done([output])

    def barrier(self, options: Any = None) -> Any:
        self.gloo.barrier().wait()
        return _done([])

    def _back(self, tensors: Any, host: Any) -> Any:
        for tensor, copied in zip(tensors, host, strict=True):
            tensor.copy_(copied)
        return _done(tensors)
