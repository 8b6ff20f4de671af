"""What is blamed, in which order, and how it is said."""

from __future__ import annotations

import json
import math
from typing import Any

from anymix.diagnose.findings import Layer, Pair, Report
from anymix.diagnose.tolerances import between

FP32 = between("fp32", "fp32")
EQUAL = Pair((2.0, 2.0), (1.0, 1.0))


def layer(name: str, kind: Any = "forward", fault: str | None = None) -> Layer:
    return Layer(kind, name, "Linear", 1.0, 1e-7, 1e-6, 3.0, fault)


def report(*layers: Layer, steps: tuple[Pair, ...] = (EQUAL,), stopped: str | None = None) -> Report:
    return Report("cpu in fp32", "npu:0 in fp32", FP32, layers, steps, stopped=stopped)


def test_agreement_is_one_sentence_with_the_loss() -> None:
    found = report(layer("a"), layer("b"))
    assert found.ok and found.first is None
    assert found.verdict == "npu:0 in fp32 agrees with cpu in fp32: 2 tensors within tolerance, loss 2 against 2"


def test_the_first_forward_is_blamed_before_all_that_follows_from_it() -> None:
    found = report(layer("a"), layer("b", fault="x"), layer("c", fault="y"), layer("a", "backward", "z"))
    assert found.first and found.first.name == "b" and found.before and found.before.name == "a"
    assert found.verdict.endswith("the first out of tolerance is b (Linear), what it makes: x; a just before it agrees")


def test_a_loss_that_is_off_alone_is_blamed_before_what_comes_back() -> None:
    found = report(layer("a"), layer("a", "backward", "z"), steps=(Pair((2.0, 2.1), (1.0, 1.0)),))
    assert found.first is None and "the loss of step 1 is 2.1 against 2" in found.verdict


def test_what_comes_back_is_blamed_before_norms_and_later_losses() -> None:
    steps = (Pair((2.0, 2.0), (1.0, 1.5)), Pair((2.0, 2.9), (1.0, 1.0)))
    found = report(layer("a"), layer("b", "backward"), layer("a", "backward", "z"), steps=steps)
    assert found.first and (found.first.kind, found.first.name) == ("backward", "a")
    assert found.before and found.before.name == "b"


def test_a_norm_that_is_off_alone_is_said() -> None:
    found = report(layer("a"), steps=(Pair((2.0, 2.0), (1.0, 1.5)),))
    assert not found.ok and "the gradient's norm in step 1 is 1.5 against 1" in found.verdict


def test_a_later_loss_may_be_off_by_a_share_of_the_way_it_has_come() -> None:
    still = report(steps=(EQUAL, Pair((2.0, 2.0 + 1e-4), (1.0, 1.0))))
    moved = report(steps=(EQUAL, Pair((1.0, 1.0 + 1e-4), (1.0, 1.0))))
    assert not still.ok and moved.ok
    assert moved.allowed(2) == 1e-5 + 5e-4


def test_nan_is_never_within_tolerance() -> None:
    assert not report(steps=(Pair((2.0, math.nan), (1.0, 1.0)),)).ok
    assert not report(steps=(Pair((2.0, 2.0), (1.0, math.nan)),)).ok


def test_a_side_that_stopped_is_no_agreement_though_all_before_agrees() -> None:
    found = report(layer("a"), steps=(), stopped="the loss is nan on rows.jsonl:1")
    assert not found.ok and "the loss is nan on rows.jsonl:1" in found.verdict


def test_json_has_no_infinity() -> None:
    bad = Layer("forward", "a", "Linear", 0.0, math.inf, math.nan, 1.0, "its shape is (2,), expected (3,)")
    text = json.dumps(report(bad).tree(), allow_nan=False)
    tree = json.loads(text)
    assert tree["ok"] is False and tree["first"]["name"] == "a" and tree["layers"][0]["error"] == "inf"
    assert tree["tolerance"] == {"forward": 5e-5, "gradient": 5e-4, "loss": 1e-5, "way": 5e-4}
