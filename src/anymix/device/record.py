"""Which operations a piece of code runs on a device, seen while it runs on the host.

In go code to run within `Recorder`, and names of operations that need no looking into; out come `Seen`s: an operation
with those it was asked for by, how often, on what types and dimensions, in which module; and `Sync`s, where the host
waits for the device.

What the host runs is not what a card runs, and four things make up for it:

- Composite operations are opened while they run, with `torch.library` above autograd and with a dispatch mode below
  it. `Seen.path` is the whole way, so that a table decides where on it a card stops: at `matmul`, if it has a kernel
  for that, or at the `bmm` inside. torch decides so too, by the order of its dispatch table (docs of torch.library).
- Which tensors would be on the card is followed from the parameters of modules, what `.to(device)` and `device=` make,
  and every operation they meet in. Work on the host, such as that of schedulers, is not counted.
- `STANDS_FOR` names what a card runs where torch has a path for CPUs alone.
- `as_on_a_card` has optimizers and clipping choose what they choose on a card: lists of tensors (foreach).

Backward is told apart by the autograd node that runs, and its module is that of the forward which made the node.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode

from anymix.device import placing
from anymix.device.placing import Placing, tensors_of

# What torch runs on a CPU alone -> what it runs on other devices. Of the first, inner operations say nothing.
STANDS_FOR: dict[str, tuple[str, ...]] = {
    # aten/src/ATen/native/transformers/attention.cpp: sdp::SDPBackend of a CPU. torch_npu has a kernel of its own for
    # scaled_dot_product_attention and for its autograd (torch_npu/csrc/aten, RegisterNPU: AutogradPrivateUse1)
    "aten::_scaled_dot_product_flash_attention_for_cpu": ("aten::scaled_dot_product_attention",),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": ("npu::npu_fusion_attention_grad",),
    # aten/src/ATen/native/Dropout.cpp, is_fused_kernel_acceptable: a mask is drawn and multiplied by on a CPU only
    "aten::dropout": ("aten::native_dropout", "aten::native_dropout_backward"),
}
# Handed on, never opened: what they answer decides how torch itself works.
UNTOUCHED = {"aten::_has_compatible_shallow_copy_type"}
SYNCS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::bincount", "aten::equal",
}  # fmt: skip
IMPLICIT = "CompositeImplicitAutograd"
_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_INDEXING = ("aten::index.Tensor", "aten::index_put", "aten::_index_put_impl_")


@dataclass(frozen=True)
class Place:
    """Where an operation was asked for."""

    phase: str
    module: int  # id of the innermost module, 0 outside all
    backward: bool


@dataclass
class Seen:
    """One operation at one place. `path` ends with it and begins with the one that was called."""

    path: tuple[str, ...]
    place: Place
    count: int = 0
    kinds: set[str] = field(default_factory=set)  # "bf16 4-d", of its tensors


@dataclass
class Sync:
    """The host waits for the device. `how` is the operation or the method, `line` the nearest that is not torch's."""

    how: str
    place: Place
    line: str
    count: int = 0


Kernel = Any  # torch._C.DispatchKey


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what runs within it. `opened`: composite operations a device may have kernels of its own for;
    `whole`: operations that are not looked into, since every device in question has a kernel for them."""

    def __init__(self, opened: Collection[str] = (), whole: Collection[str] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[tuple[Place, tuple[str, ...]], Seen] = {}
        self.syncs: dict[tuple[Place, str, str], Sync] = {}
        self.wide: dict[tuple[Place, str], int] = {}  # float64 tensors of at least one dimension, by operation
        self.modules: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self.phase = "forward"
        self.placing = Placing(self._waits)
        self._opened, self._whole = opened, frozenset(whole)
        self._path: list[str] = []
        self._wide_inside: list[str] = []
        self._stack: list[nn.Module] = []
        self._made_in: dict[int, int] = {}  # autograd's sequence number -> id of the module
        self._thread = threading.get_ident()
        self._kernels: dict[str, Kernel] = {}

    @contextmanager
    def on(self, phase: str) -> Iterator[Recorder]:
        """Record what runs within the block, under this name."""
        before, self.phase = self.phase, phase
        with ExitStack() as stack:
            stack.enter_context(_opening(self._opened, self._above))
            for handle in (
                hooks.register_module_forward_pre_hook(self._enter),
                hooks.register_module_forward_hook(self._leave, always_call=True),
            ):
                stack.callback(handle.remove)
            stack.enter_context(placing.as_on_a_card())
            stack.enter_context(self.placing)
            stack.enter_context(self)
            try:
                yield self
            finally:
                self.phase, self._stack, self._path = before, [], []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name()
        kernel = self._inner(func, name)
        if name in self._path:  # torch sends some, such as detach, through the mode once more
            return func(*args, **kwargs)
        if kernel is None:
            return self._ran(name, args, kwargs, lambda: func(*args, **kwargs))
        with self:
            return self._ran(name, args, kwargs, lambda: func._op_dk(kernel, *args, **kwargs), inside=True)

    def _above(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A composite operation, above autograd."""
        if threading.get_ident() != self._thread or not _recording(self):
            return func.decompose(*args, **kwargs)
        return self._ran(func.name(), args, kwargs, lambda: func.decompose(*args, **kwargs), inside=True)

    def _ran(self, name: str, args: Any, kwargs: Any, run: Callable[[], Any], inside: bool = False) -> Any:
        given = list(tensors_of((args, kwargs)))
        on_card = self.placing.meet(name, given)
        # what the card has another operation for is noted once, by that name, and nothing of what it does here
        silent = bool(self._path) and self._path[-1] in STANDS_FOR
        if on_card and not silent:
            self._note(name, args, given)
        if inside:
            self._path.append(name)
        try:
            out = run()
        finally:
            if inside:
                self._path.pop()
        if on_card:
            made = list(tensors_of(out))
            self.placing.hold(made)
            self._widened(name, any(t.dtype == torch.float64 and t.dim() for t in made))
        return out

    def _widened(self, name: str, wide: bool) -> None:
        """Note what makes float64: the operation that was called, or those inside whose result it narrows again."""
        if wide:
            self._wide_inside.append(name)
        if self._path:
            return
        for each in [name] if wide else self._wide_inside:
            key = self._place(), each
            self.wide[key] = self.wide.get(key, 0) + 1
        self._wide_inside = []

    def _note(self, name: str, args: Any, given: list[Tensor]) -> None:
        place = self._place()
        dropping = name != "aten::dropout" or (args[1] > 0 and args[2])
        for number, known in enumerate(STANDS_FOR[name] if name in STANDS_FOR and dropping else (name,)):
            at = place if not number else Place(place.phase, place.module, True)  # the second is its gradient's
            path = (*self._path, known)
            found = self.seen.setdefault((at, path), Seen(path, at))
            found.count += 1
            found.kinds |= {f"{_SHORT.get(t.dtype) or str(t.dtype)[6:]} {t.dim()}-d" for t in given}
        waits = name in SYNCS or (name.startswith(_INDEXING) and _by_mask(args[1]))
        if waits and not any(outer in SYNCS or outer.startswith(_INDEXING) for outer in self._path):
            self._waits(name.partition("::")[2])

    def _waits(self, how: str) -> None:
        place, line = self._place(), placing.caller()
        self.syncs.setdefault((place, how, line), Sync(how, place, line)).count += 1

    def _inner(self, func: Any, name: str) -> Kernel:
        """The kernel by which an operation is made of others, where it is to be looked into; else None."""
        if name not in self._kernels:
            self._kernels[name] = None if name in self._whole or name in STANDS_FOR else _composite(name)
        return self._kernels[name]

    # ---------------------------------------------------------------------------------------- where it was asked for

    def _place(self) -> Place:
        node = torch._C._current_autograd_node()
        if node is not None and not self._stack:
            return Place(self.phase, self._made_in.get(node._sequence_nr(), 0), True)
        module = self.modules[self._stack[-1]] if self._stack else 0
        if torch.is_grad_enabled():
            self._made_in[torch._C._autograd._get_sequence_nr() - 1] = module
        return Place(self.phase, module, node is not None)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.modules.setdefault(module, len(self.modules) + 1)
        self._stack.append(module)
        self.placing.hold([t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None])

    def _leave(self, *_: Any) -> None:
        if self._stack:
            self._stack.pop()


def _recording(mode: Recorder) -> bool:
    """Whether the mode is on: within what it handles itself, it is off."""
    return torch.utils._python_dispatch._get_current_dispatch_mode() is mode


def _composite(name: str) -> Kernel:
    """The dispatch key of the kernel that makes an operation of others; None for one that is computed."""
    for key in (IMPLICIT, "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"):
        if _has(name, key):
            return getattr(torch._C.DispatchKey, key)
    return None


def _has(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def _by_mask(indices: Any) -> bool:
    return any(t.dtype in (torch.bool, torch.uint8) for t in tensors_of(indices))


@contextmanager
def _opening(names: Collection[str], see: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
    """Have composite operations told to `see` as they are called. torch forgets about it at the end of the block."""
    make: Any = torch.library.Library
    library = make("aten", "IMPL")
    try:
        for name in sorted({*names, *STANDS_FOR} - UNTOUCHED):
            func = _overload(name)
            if func is not None and _has(name, IMPLICIT) and not _has(name, "CPU"):
                library.impl(func, _told(func, see), "AutogradCPU")
        yield
    finally:
        library._destroy()


def _told(func: Any, see: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: see(func, args, kwargs)


def _overload(name: str) -> Any:
    """torch's own object for `aten::add.Tensor`; None for what this torch does not have."""
    space, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    except AttributeError:
        return None
