"""What a comparison found: every layer, every step, the first that is out of tolerance, and the sentence that says so.

Order of blame: what comes forward is judged first, in the order it is computed, then the loss, then what comes back, in
its order. What is wrong early makes all after it wrong, so the first is the one to look at.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from anymix.diagnose.tolerances import Tolerance, of_loss
from anymix.diagnose.watching import Kind

WHAT = {
    "forward": "what it makes",
    "backward": "the gradient that comes back to what it makes",
    "gradient": "the gradient of this parameter",
}


@dataclass(frozen=True)
class Layer:
    """One tensor on both sides; shares of the reference. `fault` says what is out of tolerance, if anything."""

    kind: Kind
    name: str
    made_by: str  # class of the module
    cosine: float
    error: float
    largest: float
    size: float  # L2 norm on the reference
    fault: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.made_by}), {WHAT[self.kind]}"


@dataclass(frozen=True)
class Pair:
    """A step's loss per target and gradient norm before clipping, on both sides."""

    loss: tuple[float, float]  # reference, tested
    norm: tuple[float, float]

    @property
    def norm_error(self) -> float:
        """Apart, as a share of the reference."""
        apart = abs(self.norm[0] - self.norm[1])
        return apart / self.norm[0] if self.norm[0] else (math.inf if apart else 0.0)


@dataclass(frozen=True)
class Report:
    """`first` is the layer to look at; `before` the last one ahead of it that agrees."""

    reference: str
    tested: str
    tolerance: Tolerance
    layers: tuple[Layer, ...]  # forward in order, then back in order, then parameters
    steps: tuple[Pair, ...]
    notes: tuple[str, ...] = ()
    stopped: str | None = None  # why the tested side did not finish
    bytes: int = 0  # kept on the disk meanwhile

    @property
    def first(self) -> Layer | None:
        found = next((layer for layer in self.layers if layer.fault), None)
        # a loss that is off though all before it agrees is where it begins: what comes back follows from it
        begins = bool(self.steps) and self._apart(1)
        return None if found and found.kind != "forward" and begins else found

    @property
    def before(self) -> Layer | None:
        first, last = self.first, None
        for layer in self.layers:
            if first is None or layer is first:
                return last
            last = layer if layer.kind == first.kind else None
        return last

    def allowed(self, number: int) -> float:
        """What the loss of a step, counted from 1, may be off."""
        return of_loss(self.tolerance, [step.loss[0] for step in self.steps[:number]])

    def _apart(self, number: int) -> bool:
        reference, tested = self.steps[number - 1].loss
        return not abs(tested - reference) <= self.allowed(number)

    @property
    def loss_fault(self) -> str | None:
        """A sentence for a step whose loss or gradient norm is too far off."""
        for number, step in enumerate(self.steps, 1):
            if self._apart(number):
                return f"the loss of step {number} is {step.loss[1]:.6g} against {step.loss[0]:.6g}"
            if not step.norm_error <= self.tolerance.gradient:
                return f"the gradient's norm in step {number} is {step.norm[1]:.6g} against {step.norm[0]:.6g}"
        return None

    @property
    def ok(self) -> bool:
        return not (self.stopped or self.loss_fault or any(layer.fault for layer in self.layers))

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.ok:
            loss = self.steps[0].loss
            return (
                f"{self.tested} agrees with {self.reference}: {len(self.layers)} tensors within tolerance, loss "
                f"{loss[1]:.6g} against {loss[0]:.6g}"
            )
        head = f"{self.tested} differs from {self.reference}: "
        if self.first is None:
            return head + (self.loss_fault or self.stopped or "") + ", and all that comes before it is within tolerance"
        after = f"; {self.before.name} just before it agrees" if self.before else ""
        return f"{head}the first out of tolerance is {self.first}: {self.first.fault}{after}"

    def tree(self) -> dict[str, Any]:
        """All of it for machines: plain types, no NaN or infinity."""
        named = {"ok": self.ok, "verdict": self.verdict, "first": self.first and asdict(self.first)}
        return dict(_plain(named | asdict(self)))


def _plain(value: Any) -> Any:
    """JSON has no infinity: those become their names."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
