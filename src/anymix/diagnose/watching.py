"""Hooks that see what every module of a family makes, the gradients that come back to it, and those of parameters.

In go a prepared run and a `See`; it is called with a `Place` and a tensor, in the order things are computed. Nothing of
a model is changed: hooks come and go. Only the first forward is watched: blocks that are recomputed in backward, and
further micro-batches, are not seen twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from anymix.families.contract import Family
from anymix.train.prepare import Prepared

Kind = Literal["forward", "backward", "gradient"]


@dataclass(frozen=True)
class Place:
    """Where a tensor is made: the output of a module, the gradient of that output, or of a parameter."""

    kind: Kind
    name: str  # of the module or parameter; [1] behind it for the second output, #2 for the second call
    made_by: str  # class of the module

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"


See = Callable[[Place, Tensor], bool]  # whether all of it is finite


@contextmanager
def watched(ready: Prepared, see: See) -> Iterator[None]:
    """Within it, what the next step makes is seen, once."""
    scaler = ready.stepper.scaler
    watch = _Watch(see, scaler.get_scale())
    handles = [module.register_forward_hook(watch.hook(name)) for name, module in modules(ready.family)]
    handles.append(ready.stepper.step.register_forward_pre_hook(watch.begin))
    handles.append(ready.stepper.step.register_forward_hook(watch.end))
    ready.stepper.scaler = Telling(scaler, watch.overflowed, lambda: _gradients(ready, see))
    try:
        yield
    finally:
        ready.stepper.scaler = scaler
        for handle in handles:
            handle.remove()


def modules(family: Family) -> Iterator[tuple[str, nn.Module]]:
    """Every module that may compute, in the net or frozen beside it, by name."""
    for name, module in family.net.named_modules():
        if name:
            yield name, module
    for part, frozen in family.frozen.items():
        for name, module in frozen.named_modules():
            yield f"{part}.{name}" if name else part, module


class Telling:
    """A scaler that says when the gradients of a step are whole, unscaled, and not yet clipped.

    A gradient that overflowed on its way and reached no parameter counts as one that did: the step is taken again with
    a smaller scale, or its infinity would be mistaken for a fault."""

    def __init__(self, scaler: Any, overflowed: Callable[[], bool], tell: Callable[[], None]) -> None:
        self._scaler, self._overflowed, self._tell = scaler, overflowed, tell

    def unscale_(self, optimizer: Any) -> None:
        if self._scaler.is_enabled() and self._overflowed():
            trained = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
            next(trained).grad.fill_(math.inf)
        self._scaler.unscale_(optimizer)
        self._tell()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scaler, name)


def _gradients(ready: Prepared, see: See) -> None:
    for name, parameter in ready.family.net.named_parameters():
        if parameter.grad is not None:
            owner = ready.family.net.get_submodule(name.rpartition(".")[0])
            see(Place("gradient", name, type(owner).__name__), parameter.grad)


class _Watch:
    def __init__(self, see: See, scale: float) -> None:
        self.see, self.scale = see, scale
        self.calls: Counter[str] = Counter()
        self.last: tuple[Tensor, int] | None = None  # and its version: layers may work in place
        self.on = self.over = False
        self.back_finite = True

    def overflowed(self) -> bool:
        """Whether a gradient on its way back was not finite."""
        return not self.back_finite

    def begin(self, *_: object) -> None:
        self.on = not self.over

    def end(self, *_: object) -> None:
        self.on, self.over, self.last = False, True, None

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def made(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.on and not _hands_on(module, inputs, output):
                self._saw(name, type(module).__name__, output)

        return made

    def _saw(self, name: str, kind: str, output: Any) -> None:
        self.calls[name] += 1
        call = f"#{self.calls[name]}" if self.calls[name] > 1 else ""
        for number, tensor in enumerate(tensors(output)):
            if self.last and self.last[0] is tensor and self.last[1] == tensor._version:
                continue  # a module that hands on what the one within it made
            self.last = tensor, tensor._version
            place = f"{name}[{number}]{call}" if number else f"{name}{call}"
            self.see(Place("forward", place, kind), tensor)
            if tensor.requires_grad:
                hooked: Any = tensor
                hooked.register_hook(self._back(Place("backward", place, kind)))

    def _back(self, place: Place) -> Callable[[Tensor], None]:
        def back(gradient: Tensor) -> None:
            self.back_finite &= self.see(place, gradient.float() / self.scale)

        return back


def _hands_on(module: nn.Module, inputs: Any, output: Any) -> bool:
    """Whether it gives back its input as it is. Whose gradient that gets depends on who else reads the same tensor,
    and with casts between them that is another tensor."""
    return not getattr(module, "inplace", False) and any(output is given for given in inputs)


def tensors(output: Any) -> Iterator[Tensor]:
    """Floating-point tensors of what a module returns: one, several in a row, or named ones."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors(getattr(output, field.name, None))
