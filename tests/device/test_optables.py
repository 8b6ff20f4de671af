"""The operator tables: which releases, what is in them, and that a name is looked up whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from anymix.device import ops, optables
from anymix.device.pairs import PAIRS
from house.source import ROOT

EVERY = pytest.mark.parametrize("version", optables.versions())


def test_the_releases_for_todays_torch_and_for_cann_8_5_are_there_oldest_first():
    versions = optables.versions()
    assert {"2.13.0", "2.9.0"} <= set(versions)
    assert versions[-1] == "2.13.0" and versions.index("2.9.0") < versions.index("2.13.0")


@EVERY
def test_a_table_is_of_the_release_it_is_named_for(version: str):
    table = optables.table(version)
    assert table.version == version
    assert table.torch == version.split(".post")[0]
    assert table.cann == tuple(sorted({pair.cann for pair in PAIRS if pair.torch_npu == version}))


@EVERY
@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("aten::add.Tensor", "native"),
        ("aten::mm", "native"),
        ("aten::_softmax", "native"),
        ("aten::convolution_overrideable", "native"),
        ("aten::scaled_dot_product_attention", "native"),
        ("aten::native_layer_norm_backward", "native"),
        ("aten::_fused_adamw_", "native"),
        ("npu::npu_swiglu", "native"),
        ("aten::relu6", "composite"),
        ("aten::_fused_adamw_.tensor_lr", "fallback"),
        ("aten::special_bessel_j0.out", "fallback"),
        ("aten::special_bessel_j0", "fallback"),  # torch's default kernel, which calls the one above
        ("aten::linalg_inv_ex", "fallback"),  # the same, where the written form has a name of its own
        ("aten::_cudnn_rnn", "unsupported"),
        ("aten::no_such_operator", None),
        ("add.Tensor", None),
    ],
)
def test_what_is_known_of_an_operator(version: str, op: str, kind: str | None):
    assert optables.table(version).kind(op) == kind


@EVERY
def test_a_table_is_whole(version: str):
    table = optables.table(version)
    kinds = [table.kind(op) for op in table]
    assert len(table) == len(kinds) > 3000
    assert all(kinds.count(kind) > 100 for kind in ("native", "composite", "fallback", "unsupported"))
    assert {"aten::scaled_dot_product_attention", "npu::npu_rms_norm"} <= table.autograd
    assert {"aten::mm", "aten::scaled_dot_product_attention"} <= table.autocast


@EVERY
def test_the_fused_kernels_take_what_we_hand_them(version: str):
    table = optables.table(version)
    for kernel in ops.KERNELS.values():
        if kernel.name.startswith("npu_"):
            schema = table.schema(f"npu::{kernel.name}")
            named = re.findall(r"\w+(?=[,=)])", schema.partition(" -> ")[0])
            assert set(kernel.arguments) - {"self"} <= set(named), schema
        else:
            assert table.kind(f"aten::{kernel.name}") == "native"


@EVERY
def test_native_operators_that_may_still_compute_on_the_host_are_known(version: str):
    table = optables.table(version)
    assert table.may_fall_back("aten::unfold_backward")
    assert table.may_fall_back("aten::_masked_softmax")
    assert not table.may_fall_back("aten::mm")


def test_a_release_without_a_table_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"no operator table of torch_npu 1\.2\.3; there is .*2\.9\.0.*2\.13\.0"):
        optables.table("1.2.3")


def test_reading_a_table_imports_no_torch():
    code = "import sys; from anymix.device import optables; optables.table('2.9.0'); sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, timeout=60)
    assert run.returncode == 0
