"""The list of what a wheelhouse lacks: every way one has been seen to be spoilt is named."""

from __future__ import annotations

import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import check_wheelhouse
import wheelhouse
from house.source import ROOT

ARM = wheelhouse.Target("aarch64", "3.11")
ANY = "py3-none-any"
BUILT = "cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64"


def _wheel(folder: Path, name: str, version: str, tag: str = ANY, requires: Sequence[str] = (), elf: int = 0) -> Path:
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        if elf:
            archive.writestr(f"{name}/_c.so", b"\x7fELF" + bytes(14) + struct.pack("<H", elf) + bytes(44))
    return path


def _seal(folder: Path) -> None:
    files = sorted(file for file in folder.iterdir() if file.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{wheelhouse.digest(file)}  {file.name}\n" for file in files))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "anymix-aarch64-py3.11-torch-2.7.1"
    folder.mkdir()
    wants = ["torch>=2.7.1", "numpy>=1.26", "scipy; extra == 'npu'", "tomli; python_version < '3.11'"]
    _wheel(folder, "anymix", "0.1.0", requires=wants)
    _wheel(folder, "torch", "2.7.1", BUILT, ["sympy>=1.13.3"], elf=183)
    _wheel(folder, "sympy", "1.14.0")
    _wheel(folder, "numpy", "2.0.0", BUILT, elf=183)
    for name in ("INSTALL.txt", "keep_torch.py"):
        (folder / name).write_text(name)
    _seal(folder)
    return folder


def test_a_whole_one_has_nothing_wrong(whole: Path) -> None:
    assert check_wheelhouse.wrong(whole) == []
    said = check_wheelhouse.summary(whole)
    assert "4 wheels, 2 of them built" in said and "checksums right" in said


def test_an_extra_it_was_not_made_for_is_missed(whole: Path) -> None:
    assert check_wheelhouse.wrong(whole, frozenset({"npu"})) == ["no wheel answers scipy"]


def test_a_requirement_of_a_requirement_is_missed(whole: Path) -> None:
    (whole / "sympy-1.14.0-py3-none-any.whl").unlink()
    _seal(whole)
    assert check_wheelhouse.wrong(whole) == ["no wheel answers sympy>=1.13.3"]


def test_a_version_that_does_not_satisfy_is_named(whole: Path) -> None:
    (whole / "sympy-1.14.0-py3-none-any.whl").unlink()
    _wheel(whole, "sympy", "1.12")
    _seal(whole)
    assert check_wheelhouse.wrong(whole) == ["torch asks for sympy>=1.13.3, and sympy-1.12-py3-none-any.whl is there"]


@pytest.mark.parametrize(
    ("tag", "elf", "said"),
    [
        ("cp311-cp311-manylinux_2_17_x86_64", 62, "is for manylinux_2_17_x86_64, not for aarch64"),
        ("cp311-cp311-macosx_11_0_arm64", 0, "is for macosx_11_0_arm64, not for aarch64"),
        ("cp312-cp312-manylinux_2_17_aarch64", 183, "is for cp312-cp312, not for Python 3.11"),
        ("cp311-cp311-manylinux_2_34_aarch64", 183, "needs glibc 2.34, newer than 2.28"),
        (BUILT, 62, "holds numpy/_c.so, which is not built for aarch64"),
    ],
)
def test_a_wheel_for_another_machine_is_named(tag: str, elf: int, said: str, whole: Path) -> None:
    next(whole.glob("numpy-*")).unlink()
    _wheel(whole, "numpy", "2.0.0", tag, elf=elf)
    _seal(whole)
    (found,) = check_wheelhouse.wrong(whole)
    assert found.startswith("numpy-2.0.0") and said in found


@pytest.mark.parametrize(
    "tag", ["cp38-abi3-manylinux_2_28_aarch64", "py2.py3-none-any", "cp311-none-any", "py310-none-any"]
)
def test_wheels_that_fit_under_another_name_are_let_be(tag: str) -> None:
    assert check_wheelhouse.misfit(f"hf_xet-1.8.0-{tag}.whl", ARM) == ""


def test_files_changed_added_or_lost_on_the_way_are_named(whole: Path) -> None:
    (whole / "INSTALL.txt").write_text("changed")
    (whole / "more.txt").write_text("added")
    (whole / "SHA256SUMS").open("a").write("00  gone.whl\n")
    assert check_wheelhouse.wrong(whole) == [
        "more.txt is not in SHA256SUMS",
        "SHA256SUMS names gone.whl, which is absent",
        "INSTALL.txt is not what SHA256SUMS says",
    ]


def test_a_copy_cut_short_is_named(whole: Path) -> None:
    wheel = next(whole.glob("torch-*"))
    wheel.write_bytes(wheel.read_bytes()[:100])
    assert check_wheelhouse.wrong(whole) == [f"{wheel.name} is cut short"]


def test_torch_promised_or_not(whole: Path) -> None:
    other = whole.with_name("anymix-aarch64-py3.11-torch-none")
    whole.rename(other)
    assert check_wheelhouse.wrong(other) == ["torch is in it, and would replace the target's own"]
    next(other.glob("torch-*")).unlink()
    _seal(other)
    assert check_wheelhouse.wrong(other) == []
    assert "does not say what it is for" in check_wheelhouse.wrong(other.parent)[0]


def test_the_command_reads_a_tar_and_its_exit_code_tells(whole: Path) -> None:
    tar = whole.with_name(f"{whole.name}.tar")
    with tarfile.open(tar, "w") as archive:
        archive.add(whole, arcname=whole.name)
    command = [sys.executable, str(ROOT / "scripts" / "check_wheelhouse.py"), str(tar)]
    good = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert good.returncode == 0 and "4 wheels" in good.stdout, good.stderr
    bad = subprocess.run([*command, "--extras", "npu"], capture_output=True, text=True, timeout=60)
    assert bad.returncode == 1 and bad.stdout == "no wheel answers scipy\n"


def test_make_checks_what_it_made() -> None:
    words = ["make", "-n", "wheelhouse", "ARCH=aarch64", "PY=3.11", "TORCH=2.7.1", "EXTRAS=npu"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert "check_wheelhouse.py dist/anymix-aarch64-py3.11-torch-2.7.1.tar --extras 'npu'" in said
