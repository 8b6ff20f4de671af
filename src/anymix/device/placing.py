"""Which tensors would be on the card, followed while everything is on the host.

In go the tensors of every operation, and by a function mode what is moved; out comes whether a tensor would be on the
card. `CARD` is a device equal to no tensor's own, so where code says `.to(x.device)` it is known which is meant. Known
by storage: what shares memory is in one place. Two places that meet are one: an operation on a card's and a
host's tensor of at least one dimension is an error there, so what meets a card's tensor is on the card too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from anymix.device.choose import Device

# These take tensors of two places: an index or a source may lie on the host.
MIXED = ("aten::index", "aten::_index_put", "aten::copy_", "aten::_copy_from")
TO_HOST = ("tolist", "numpy", "__array__", "cpu")
DEVICE_OF = torch.Tensor.device.__get__
_weak: Any = reductions.StorageWeakRef
CARD = torch.device("cpu", 0)  # tensors themselves say plain cpu: so code that hands a device on can be followed
# torch's own code for lists of tensors asks C++ for their device, which knows nothing of the card; it moves within it.
LISTS = ("torch/optim/", "torch/nn/utils/", "torch/amp/")
CHECKS = ("torch/utils/checkpoint.py",)
MODULES = ("torch/nn/modules/module.py",)
TORCH = str(Path(torch.__file__).parent)


def card(device: Device) -> Device:
    """A CPU to prepare a run on that is to be followed."""
    return replace(device, handle=CARD)


class Placing(TorchFunctionMode):
    """Within it tensors say where they would be: `CARD`, or the host. `waits` is told what brings one back."""

    def __init__(self, waits: Callable[[str], None]) -> None:
        super().__init__()
        self._held: dict[int, Any] = {}  # a weak reference keeps an address from being used again
        self._waits = waits
        self._making = 0

    def has(self, tensor: Tensor) -> bool:
        """Whether it would be on the card."""
        return _address(tensor) in self._held

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """These are on the card."""
        for tensor in tensors:
            address = _address(tensor)
            if address and address not in self._held:
                self._held[address] = _weak(tensor.untyped_storage())

    def meet(self, name: str, tensors: list[Tensor]) -> bool:
        """Whether an operation on these runs on the card; they are all there then."""
        if not tensors:
            return self._making > 0
        if not any(map(self.has, tensors)):
            return False
        if not name.startswith(MIXED):
            self.hold(t for t in tensors if t.dim())
        return True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func == DEVICE_OF:
            # what checkpointing notes of a tensor is compared later, where tensors may have other storages
            known = self.has(args[0]) and not _asked_by(CHECKS)
            return CARD if known else func(*args, **kwargs)
        if name in TO_HOST and args and isinstance(args[0], Tensor) and self.has(args[0]):
            return self._back(name, func, args, kwargs)
        if name == "to":
            return self._moved(func, args, kwargs)
        if kwargs.get("device") == CARD:
            return self._made(func, args, kwargs)
        return func(*args, **kwargs)

    def _back(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if not _asked_by(MODULES):  # a part that leaves the card does so once, not in every step
            self._waits(f".{name}()")
        out = func(*args, **kwargs)
        return _copied(out) if isinstance(out, Tensor) and self.has(out) else out

    def _moved(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, wanted = args[0], (*args[1:], *kwargs.values())
        on_card = {self._is_card(given) for given in wanted} - {None}
        if on_card == {False} and _asked_by(LISTS):
            on_card = {True}
        if on_card == {False} and self.has(tensor):
            return self._back("to", func, args, kwargs)
        out = func(*args, **kwargs)
        if True in on_card and not self.has(out):
            out = _copied(out) if _address(out) == _address(tensor) else out
            self.hold([out])
        return out

    def _is_card(self, given: Any) -> bool | None:
        """Whether an argument of `to` names the card; None for one that names no place."""
        if isinstance(given, Tensor):
            return self.has(given)
        return torch.device(given) == CARD if isinstance(given, (str, torch.device)) else None

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._making += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self._making -= 1
        self.hold(tensors_of(out))
        return out


def _asked_by(places: tuple[str, ...]) -> bool:
    """Whether what called into torch lies in one of these."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return any(place in Path(frame.f_code.co_filename).as_posix() for place in places)


def _copied(tensor: Tensor) -> Tensor:
    """On a card a move is a copy; on the host it would be the same tensor in two places."""
    with _disable_current_modes():
        return tensor.clone()


def _address(tensor: Tensor) -> int:
    """Of its storage; 0 where it has none (sparse, or made by a mode of someone else)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Every tensor of nested lists, tuples and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors_of(value)
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_of(value)


def caller() -> str:
    """file:line of the nearest caller outside torch and this recorder, the file from its package on."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith((TORCH, str(Path(__file__).parent / "record.py"), __file__, "<")):
            return f"{'/'.join(Path(file).parts[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Have `torch.optim` and `clip_grad_norm_` take a CPU for a card, and so the ways they take there: operations on
    lists of tensors. torch_npu's devices are on this list (torch/utils/_foreach_utils.py: the PrivateUse1 name)."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    name, before = "_get_foreach_kernels_supported_devices", {}
    for module in (_foreach_utils, optimizer):
        before[module] = getattr(module, name)
        setattr(module, name, lambda: [*before[_foreach_utils](), "cpu"])
    try:
        yield
    finally:
        for module, found in before.items():
            setattr(module, name, found)
