"""The audit: what is planted is found and named, every shipped recipe has kernels, and pages say what the code does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import anymix
import ops_table
from anymix.device import optables
from anymix.device.placing import CARD
from anymix.device.record import Recorder
from anymix.diagnose import ops
from anymix.diagnose.ops import judge, record
from anymix.diagnose.verdicts import Report, judged
from diagnose.conftest import DRAWING

# (recipe or family, torch_npu, operation) -> why it is left, and what to do about it. Named in docs/ops.md.
EXCEPTIONS: dict[tuple[str, str, str], str] = {}


class Given:
    """A table in which all is native that is not named."""

    def __init__(self, version: str = "9.9", **kinds: str) -> None:
        self.version, self._kinds = version, {f"aten::{name.replace('__', '.')}": kind for name, kind in kinds.items()}
        self.some = False

    def __iter__(self) -> Iterator[str]:
        return iter(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))

    def kind(self, op: str) -> str | None:
        default = "composite" if op in ("aten::linear", "aten::layer_norm", "aten::conv2d") else "native"
        return self._kinds.get(op, default) if self._kinds.get(op) != "absent" else None

    def may_fall_back(self, op: str) -> bool:
        return self.some and op == "aten::embedding"


def quiet(_: str) -> None:
    return None


def audited(run: anymix.Run, *given: Any, parts: Any = ("training",)) -> Report:
    return judge(record(run, given, quiet, parts), given)


@pytest.fixture
def planted(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An audit of the small InternVL2 with something done to what one of its layers makes."""

    def put(fault: Any, *given: Any) -> Report:
        prepare = ops.prepare

        def prepared(*args: Any, **named: Any) -> Any:
            ready = prepare(*args, **named)
            layer = ready.family.net.get_submodule("model.language_model.layers.1.mlp.down_proj")
            forward = layer.forward
            layer.forward = lambda x: fault(forward(x))
            return ready

        monkeypatch.setattr(ops, "prepare", prepared)
        return audited(recipe("internvl2"), *given)

    return put


LAYER = "model.language_model.layers.1.mlp.down_proj (Linear)"


def test_a_planted_operation_without_a_kernel_is_named_with_its_module(planted: Any) -> None:
    report = planted(torch.special.i0e, Given(special_i0e="fallback", special_i1e="unsupported"))
    assert not report.ok
    found = {each.name: each for each in report.tables[0].of("cpu fallback", "unsupported")}
    assert set(found) == {"aten::special_i0e", "aten::special_i1e"}
    assert found["aten::special_i0e"].first == LAYER and found["aten::special_i0e"].verdict == "cpu fallback"
    assert found["aten::special_i1e"].phases == ("training, backward",)
    assert "torch_npu 9.9 has no kernel for aten::special_i0e (cpu fallback, " in report.verdict
    assert LAYER in report.verdict


def test_a_planted_wait_and_a_planted_float64_are_named_with_their_module(planted: Any) -> None:
    def fault(x: torch.Tensor) -> torch.Tensor:
        x.max().item()
        return (x.double() * 1.0).to(x.dtype)

    report = planted(fault, Given())
    assert report.ok
    mine = [wait for wait in report.waits if wait.module == LAYER]
    assert [(wait.how, wait.phase) for wait in mine] == [("_local_scalar_dense", "training")] and mine[0].count == 1
    assert all("test_ops.py:" in wait.line for wait in mine)
    assert {wide.module for wide in report.wide} == {LAYER}
    assert "aten::mul.Tensor" in {wide.name for wide in report.wide}


def test_one_recording_is_judged_by_every_table(recipe: Any) -> None:
    old, new, some = Given("1.0", _fused_adamw_="absent"), Given("2.0"), Given("3.0")
    some.some = True
    report = audited(recipe("internvl2"), old, new, some)
    assert report.ok and [table.version for table in report.tables] == ["1.0", "2.0", "3.0"]
    assert [each.name for each in report.tables[0].of("unknown")] == ["aten::_fused_adamw_"]
    assert not report.tables[1].of("unknown") and "1 operations are not in every table" in report.verdict
    risky = [[each.name for each in table.operations if each.may_fall_back] for table in report.tables]
    assert risky == [[], [], ["aten::embedding"]]


def test_where_a_way_is_decided() -> None:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    recorder = Recorder(("aten::matmul",))
    with recorder.on("training"):
        x.to(CARD) @ y.to(CARD)

    def of(**kinds: str) -> dict[str, str]:
        (table,) = judged(recorder, {}, [Given(**kinds)]).tables
        return {each.name: each.verdict for each in table.operations if each.count and "mm" in each.name or
                each.name == "aten::matmul"}  # fmt: skip

    assert of() == {"aten::matmul": "native"}
    assert of(matmul="fallback", bmm="fallback") == {"aten::matmul": "cpu fallback"}
    assert of(matmul="composite") == {"aten::bmm": "native"}
    assert of(matmul="composite", bmm="unsupported") == {"aten::bmm": "unsupported"}
    assert of(matmul="absent") == {"aten::bmm": "native"}  # as the torch of that version would take it apart


def test_the_tree_for_machines_has_it_all(recipe: Any) -> None:
    import json

    tree = json.loads(json.dumps(audited(recipe("internvl2"), Given(embedding="fallback")).tree()))
    assert tree["ok"] is False and tree["tables"][0]["counts"]["cpu fallback"] == 1
    assert {"name", "verdict", "count", "kinds", "phases", "first"} <= tree["tables"][0]["operations"][0].keys()
    assert [wait["how"] for wait in tree["waits"]] == [".tolist()"]


# ------------------------------------------------------------------------------------ recipes, families, settings


def faults(name: str, report: Report) -> list[str]:
    return [
        f"torch_npu {table.version}: {each}"
        for table in report.tables
        for each in table.of("cpu fallback", "unsupported")
        if (name, table.version, each.name) not in EXCEPTIONS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [path.stem for path in ops_table.RECIPES])
def test_every_recipe_trains_without_a_fallback_by_every_table_and_waits_once_a_step(recipe: str) -> None:
    report = ops_table.trained(recipe)
    assert len(report.tables) == len(optables.versions()) > 0
    assert not faults(recipe, report)
    assert [(wait.how, wait.count) for wait in report.waits if wait.phase == "training"] == [(".tolist()", 1)]
    assert not report.wide
    backward = [each for each in report.tables[0].operations if "training, backward" in each.phases]
    assert len(backward) > 15 and any(each.name == "aten::_fused_adamw_" for each in report.tables[0].operations)


@pytest.mark.slow
@pytest.mark.parametrize("family", ops_table.FAMILIES)
def test_every_family_generates_without_a_fallback_by_every_table(family: str) -> None:
    report = ops_table.generated(family)
    assert not faults(family, report) and not report.wide
    seen = {phase for each in report.tables[0].operations for phase in each.phases}
    wanted = {"drawing", "scheduler euler", "scheduler unipc"} if family in DRAWING else {"answering"}
    assert wanted <= seen


def test_an_exception_is_still_one() -> None:
    known = {path.stem for path in ops_table.RECIPES} | set(ops_table.FAMILIES)
    assert all(name in known and version in optables.versions() for name, version, _ in EXCEPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("starter", "how"),
    [
        ("internvl2", ["train.optimizer=adafactor", "packing=true", "model.dtype=fp16"]),
        ("internvl2", ["train.optimizer=sgd", "train.optimizer_args={momentum: 0.9}", "train.ema=0.99"]),
        ("llava_next", ["adapter.dora=true"]),
        ("sdxl", ["adapter.kind=loha", "objective.snr_gamma=5", "objective.noise_offset=0.05", "cache.use=false"]),
        ("sd15", ["adapter.kind=lokr", "objective.prediction=v", "objective.zero_terminal_snr=true"]),
        (
            "sd3",
            [
                "adapter.parts=[denoiser, text]",
                "data.buckets=false",
                "objective.weighting=cosmap",
                "objective.density=mode",
            ],
        ),
    ],
)
def test_other_settings_have_kernels_too(recipe: Any, starter: str, how: list[str]) -> None:
    report = audited(recipe(starter, *how), *ops_table.all_tables())
    assert not faults(starter, report)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_the_page_has_the_tables_that_the_code_gives(folder: str) -> None:
    page = (Path(__file__).parents[2] / folder / "ops.md").read_text(encoding="utf-8")
    for table in (ops_table.steps(), ops_table.generations()):
        rows = table.splitlines()[2:]
        assert all(row in page for row in rows), f"docs/ops.md: python scripts/ops_table.py\n{table}"
    assert all(f"| {version} |" in page or f" {version} " in page for version in optables.versions())
    assert all(f"`{op}`" in page for _, _, op in EXCEPTIONS)
