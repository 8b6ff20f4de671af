"""Installing: the torch that is there stays, the oldest versions are tested, pins fit, nothing is missing."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import floors
import keep_torch
import wheelhouse
from house.source import ROOT, modules


def _project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _make(*words: str) -> str:
    run = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _wheel(folder, name, version, requires=()):
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines + [f"Requires-Dist: {r}" for r in requires]) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_what_is_there_is_pinned_exactly():
    there = {"torch": "2.7.1+cpu", "torch-npu": "2.7.1.post4", "numpy": "1.26.4"}
    assert keep_torch.lines(there.get) == [
        "torch==2.7.1+cpu",
        "torch-npu==2.7.1.post4",
        "numpy<2",
        "pyarrow<26",
    ]
    assert keep_torch.lines({"torch": "2.13.0", "numpy": "2.4.6"}.get) == ["torch==2.13.0"]
    assert keep_torch.lines({}.get) == []


def test_a_torch_pip_knows_nothing_of_is_not_installed_over(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('no CANN')")
    script = ROOT / "scripts" / "keep_torch.py"
    run = subprocess.run(
        [sys.executable, "-S", script],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "no record of" in run.stderr and "--no-deps" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "installs"), [("torch>=2.7.1", True), ("torch>=99", False)])
def test_pip_fails_rather_than_replace_torch(tmp_path, wanted, installs):
    _wheel(tmp_path, "torch", "99.0")
    _wheel(tmp_path, "wants", "1.0", [wanted])
    keep = tmp_path / "keep.txt"
    keep.write_text("\n".join(line for line in keep_torch.lines(keep_torch.installed) if line.startswith("torch==")))
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--upgrade",
            "--no-index",
            "--find-links",
            tmp_path,
        ]
        + ["-c", keep, "wants"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode == 0) is installs, run.stdout + run.stderr
    assert "torch-99" not in run.stdout.partition("Would install")[2]


def test_every_dependency_has_a_floor_that_is_tested_and_torch_is_left_out(capsys):
    dependencies = _project()["dependencies"]
    floors.main()
    printed = capsys.readouterr().out.split()
    for name, version in floors.floors(dependencies).items():
        assert (f"{name}=={version}" in printed) is (name != "torch")
    assert not [line for line in printed if line.startswith("torch==2.7")]


def test_a_dependency_without_a_floor_is_refused():
    with pytest.raises(ValueError, match="no lower bound"):
        floors.floors(["numpy"])


def test_every_direct_dependency_is_pinned_within_its_range():
    project = _project()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    pins = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        assert pins[canonicalize_name(wanted.name)] in wanted.specifier, line


def test_whatever_is_imported_is_declared():
    project = _project()
    lines = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    # names that are not the package's own, and what a machine has or has not: guarded, never asked for
    named = {"yaml": "pyyaml", "PIL": "pillow", "torch_npu": "torch", "modelscope": "torch", "pip": "torch"}
    tops = {name.split(".")[0] for module in modules() for _, name in module.imports()}
    foreign = tops - set(sys.stdlib_module_names) - {"anymix"}
    assert {top for top in foreign if canonicalize_name(named.get(top, top)) not in declared} == set()


def test_no_extra_brings_torch():
    extras = _project()["optional-dependencies"]
    names = {Requirement(line).name for lines in extras.values() for line in lines}
    assert not names & {"torch", "torch-npu", "torchvision"}


def test_make_test_installs_torch_by_itself_first():
    lines = [line for line in _make("test", "--always-make").splitlines() if "pip install" in line]
    torch = next(i for i, line in enumerate(lines) if re.search(r"'torch==[\d.]+'", line))
    rest = next(i for i, line in enumerate(lines) if "[dev]" in line)
    assert torch < rest
    assert "--index-url" not in lines[torch]
    assert "--index-url HERE" in _make("test", "--always-make", "TORCH_INDEX=HERE")


def test_make_install_always_keeps_torch_and_can_do_without_a_network():
    for words in (["install"], ["install", "WHEELS=wheels", "EXTRAS=npu"]):
        commands = _make(*words)
        assert "keep_torch.py" in commands and 'pip install -c "$keep"' in commands
    assert "--no-index --find-links 'wheels' 'anymix[npu]'" in commands


def test_markers_are_answered_for_the_target_not_for_this_machine(tmp_path):
    _wheel(tmp_path, "anymix", "1", ["old; python_version < '3.11'", "arm; platform_machine == 'aarch64'"])
    wheels = wheelhouse.by_name(tmp_path)
    asked = {
        (arch, python): wheelhouse.missing(wheels, wheelhouse.Target(arch, python), frozenset())
        for arch in ("aarch64", "x86_64")
        for python in ("3.10", "3.12")
    }
    assert asked == {
        ("aarch64", "3.10"): ["arm", "old"],
        ("aarch64", "3.12"): ["arm"],
        ("x86_64", "3.10"): ["old"],
        ("x86_64", "3.12"): [],
    }


def test_extras_are_followed_through_the_wheels(tmp_path):
    _wheel(tmp_path, "anymix", "1", ["hub[fast]", "sci; extra == 'npu'", "web; extra == 'serve'"])
    _wheel(tmp_path, "hub", "1", ["speed; extra == 'fast'", "slow; extra == 'other'"])
    wheels, target = wheelhouse.by_name(tmp_path), wheelhouse.Target("aarch64", "3.11")
    assert wheelhouse.missing(wheels, target, frozenset({"npu"})) == ["sci", "speed"]


def test_the_stand_in_for_torch_is_never_mistaken_for_it():
    assert wheelhouse.local("2.7.1") == "2.7.1+stub"
    assert Version(wheelhouse.local("2.7.1+cpu")) > Version("2.7.1+cpu")
    assert Version("2.7.1+stub") in Requirement("torch==2.7.1").specifier
