"""`doctor` on packages, threads, models, network and space, with the command that mends what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anymix.device import checks
from anymix.device.findings import Finding, Host
from device.machines import (
    GIB,
    Machine,
    host,
    only,
)


def test_packages_absent_and_out_of_range(tmp_path: Path) -> None:
    wanted = ("torch>=2.7.1", "transformers>=5.0.0,<6", "peft>=0.18.0", "wandb>=0.18; extra == 'track'")
    has = {"torch": "2.6.0", "transformers": "4.57.0"}
    findings = checks.packages(host(tmp_path, has=has, requirements=lambda: wanted))
    assert [(f.level, f.fix) for f in findings] == [
        ("wrong", "pip install 'peft>=0.18.0'"),
        ("wrong", "pip install 'torch>=2.7.1'"),
        ("wrong", "pip install 'transformers<6,>=5.0.0'"),
    ]
    assert "transformers 4.57.0 is outside" in findings[2].what


def test_a_local_build_of_torch_is_inside_its_range(tmp_path: Path) -> None:
    machine = host(tmp_path, requirements=lambda: ("torch>=2.7.1",))
    assert only(checks.packages(machine), "ok").what == "torch 2.7.1+cpu"


def test_running_from_a_folder_is_noted(tmp_path: Path) -> None:
    assert only(checks.packages(host(tmp_path, requirements=lambda: None)), "note").fix == "pip install -e ."


def test_a_compiled_package_that_does_not_import(tmp_path: Path) -> None:
    machine = Machine({}, broken={"PIL": "ImportError: cannot import name '_imaging'"})
    finding = only(checks.packages(host(tmp_path, has={"pillow": "12.0"}, run=machine)))
    assert "_imaging" in finding.what and finding.fix.endswith("--no-deps pillow")


def test_torchvision_absent_present_and_broken(tmp_path: Path) -> None:
    assert checks.torchvision(host(tmp_path))[0].level == "ok"
    has = {"torchvision": "0.22.0"}
    assert checks.torchvision(host(tmp_path, has=has))[0].level == "ok"
    machine = Machine({}, broken={"torchvision": "RuntimeError: operator torchvision::nms does not exist"})
    finding = only(checks.torchvision(host(tmp_path, has=has, run=machine)))
    assert finding.fix == "pip uninstall -y torchvision" and "transformers" in finding.what


@pytest.mark.parametrize(
    ("cores", "said", "level"),
    [(192, None, "note"), (192, "16", "ok"), (8, None, "ok"), (8, "64", "note"), (8, "x", "note")],
)
def test_threads(cores: int, said: str | None, level: str, tmp_path: Path) -> None:
    environ = {"OMP_NUM_THREADS": said} if said else {}
    (finding,) = checks.threads(host(tmp_path, cores=cores, environ=environ))
    assert finding.level == level
    assert level == "ok" or finding.fix == f"export OMP_NUM_THREADS={min(16, cores)}"


def test_the_models_folder(tmp_path: Path) -> None:
    def of(name: str) -> Finding:
        return checks.models(host(tmp_path, environ={"ANYMIX_MODELS": name}))[0]

    assert of("").level == "ok"
    assert of(str(tmp_path / "nas")).level == "wrong" and "mounted" in of(str(tmp_path / "nas")).what
    assert of(str(tmp_path)).level == "note"
    (tmp_path / "OpenGVLab/InternVL2-2B").mkdir(parents=True)
    (tmp_path / "OpenGVLab/InternVL2-2B/config.json").touch()
    assert of(str(tmp_path)).what.endswith("1 model")


def test_network_says_what_the_environment_says(tmp_path: Path) -> None:
    def of(**environ: str) -> Finding:
        return checks.network(host(tmp_path, environ=environ))[0]

    assert of(HF_ENDPOINT="mirror.example").fix == "export HF_ENDPOINT=https://mirror.example"
    assert "HF_HUB_OFFLINE set" in of(HF_HUB_OFFLINE="1").what and of(HF_HUB_OFFLINE="0").level == "ok"


def test_space_and_memory(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  16777216 kB\nMemFree: 1 kB\nMemAvailable:  2097152 kB\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    findings = checks.space(host(tmp_path, free=lambda path: GIB // 16 if path.name == "shm" else 5 * GIB))
    assert [f.level for f in findings] == ["note", "note", "note", "note"]
    assert "5 GiB free" in findings[0].what and findings[2].what == "2 of 16 GiB free"
    assert "--shm-size" in findings[3].fix


@pytest.mark.parametrize(
    ("python", "system", "level"),
    [
        ((3, 9, 1), "Linux", "wrong"),
        ((3, 12, 1), "Windows", "wrong"),
        ((3, 14, 0), "Linux", "note"),
        ((3, 13, 1), "Darwin", "ok"),
    ],
)
def test_python(python: tuple[int, int, int], system: str, level: str, tmp_path: Path) -> None:
    assert checks.python(host(tmp_path, python=python, system=system))[0].level == level


def test_imports_are_tried_for_real_and_a_crash_names_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sound_one.py").write_text("")
    (tmp_path / "raising_one.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "crashing_one.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = checks.broken_imports(Host(os.environ), ["sound_one", "raising_one", "crashing_one", "never_reached"])
    assert broken.keys() == {"raising_one", "crashing_one"}
    assert "nms does not exist" in broken["raising_one"] and "signal 6" in broken["crashing_one"]


def test_models_of_every_layout_are_counted_and_those_that_draw_too(tmp_path: Path) -> None:
    for name in ("OpenGVLab/InternVL2-2B/config.json", "AI-ModelScope/sdxl/model_index.json", "mine/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    cached = tmp_path / "models--Qwen--Qwen2-VL-2B-Instruct/snapshots/0a1b/config.json"
    cached.parent.mkdir(parents=True)
    cached.touch()
    (found,) = checks.models(host(tmp_path, environ={"ANYMIX_MODELS": str(tmp_path)}))
    assert found.level == "ok" and found.what.endswith(", 4 models")
