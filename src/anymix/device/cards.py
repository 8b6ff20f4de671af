"""The checks of `doctor` about torch and cards: builds that fit, drivers, CANN, one product on each card.

What belongs together is in pairs.py, what breaks is in faults.py. torch runs only in processes of its own
(probe.py), so a crash, an undefined symbol or a hang becomes a finding. Places of CANN and of the driver: the
installation guides of CANN 8 and 9.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anymix.device import faults, pairs
from anymix.device.checks import GIB, IMPORT_SECONDS, broken_imports, ended
from anymix.device.findings import Finding, Host

PROBE = Path(__file__).with_name("probe.py")
VISIBLE = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
PRODUCT = 64.0**3  # sum of the product of two 64 x 64 matrices of ones
CANN_NEEDS = {
    "attr": "attrs",
    "decorator": "decorator",
    "psutil": "psutil",
    "scipy": "scipy",
    "yaml": "PyYAML",
}
ASCEND = "/usr/local/Ascend"
CPU_INDEX = "   # +cpu wheels: the CPU line of PyTorch's own install page"


@dataclass(frozen=True)
class Probed:
    """What probe.py said before it ended, and the error if it did not end well."""

    facts: dict[str, Any]
    cards: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    warned: str = ""


def probe(host: Host, kind: str, autoload: bool = True) -> Probed:
    """Run probe.py for one kind of device. Without `autoload` torch leaves torch_npu alone."""
    command = [sys.executable, "-c", PROBE.read_text(), kind]
    if not autoload:
        command = ["env", "TORCH_DEVICE_BACKEND_AUTOLOAD=0", *command]
    ran = host.run(command, IMPORT_SECONDS)
    facts: dict[str, Any] = {}
    cards: dict[int, dict[str, Any]] = {}
    for line in ran.out.splitlines():
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if "card" in said:
            cards.setdefault(said["card"], {}).update(said)
        else:
            facts.update(said)
    return Probed(facts, list(cards.values()), "" if ran.code == 0 else ended(ran.code, ran.err), ran.err)


# ---- what kind of machine this is


def cann_home(host: Host) -> Path | None:
    """Where CANN lies: what set_env.sh exported, else the usual places, for root and for one user."""
    said = [host.environ[n] for n in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH") if host.environ.get(n)]
    home = f"{host.environ.get('HOME', '/root')}/Ascend"
    usual = [f"{top}/{name}" for top in (ASCEND, home) for name in ("ascend-toolkit/latest", "cann")]
    found = [host.path(folder) for folder in (*said, *usual)] + host.any_of(ASCEND, "cann-*")[::-1]
    return next((folder for folder in found if folder.is_dir()), None)


def cann_version(host: Host, home: Path) -> str | None:
    """The version written beside CANN, such as 8.3.RC1."""
    texts = (
        (home / f"{host.machine}-linux/ascend_toolkit_install.info", r"(?m)^version=(\S+)"),
        (home / "version.cfg", r"_version=\[[^:\]]*:([^\]\s]+)\]"),
        (home / "compiler/version.info", r"(?m)^Version=(\S+)"),
    )
    found = (re.search(pattern, host.read(path)) for path, pattern in texts)
    return next((match[1] for match in found if match), None)


def driver_version(host: Host) -> str | None:
    found = re.search(r"(?m)^Version=(\S+)", host.read(host.path(f"{ASCEND}/driver/version.info")))
    if not found and host.which("npu-smi"):
        found = re.search(r"npu-smi\s+v?(\d\S+)", host.run(["npu-smi", "info"], 20.0).out)
    return found[1] if found else None


def has_ascend(host: Host) -> bool:
    """Does anything here belong to an Ascend card? Then all of it is looked at."""
    return bool(
        host.any_of("/dev", "davinci[0-9]*")
        or host.which("npu-smi")
        or host.installed("torch_npu")
        or cann_home(host)
        or host.path(f"{ASCEND}/driver").exists()
    )


def has_nvidia(host: Host) -> bool:
    if not host.which("nvidia-smi"):
        return bool(host.any_of("/dev", "nvidia[0-9]*"))
    return host.run(["nvidia-smi", "-L"], 20.0).out.startswith("GPU ")


# ---- torch


def torch(host: Host) -> list[Finding]:
    version = host.installed("torch")
    if version is None:
        return [Finding("wrong", "torch", "torch is not installed", _torch_to_install(host))]
    probed = probe(host, "cpu")
    if not probed.error:
        return _build(host, version, probed.facts)
    alone = probe(host, "cpu", autoload=False) if host.installed("torch_npu") else probed
    if alone.error:
        what, fix = _explained(host, alone.error, _torch_to_install(host, version))
        return [Finding("wrong", "torch", f"import torch {version} fails: {what}", fix)]
    what, fix = _explained(host, probed.error, "pip uninstall torch_npu")
    without = "export TORCH_DEVICE_BACKEND_AUTOLOAD=0   # torch without the NPU"
    return [
        Finding("wrong", "torch", f"import torch {version} fails because of torch_npu: {what}", fix),
        Finding("note", "torch", "torch itself works", without),
    ]


def _explained(host: Host, text: str, otherwise: str) -> tuple[str, str]:
    """What an error text means and what to type, with the set_env.sh that is really here."""
    what, fix = faults.explain(text) or (faults.sentence(text), otherwise)
    home = cann_home(host)
    return what, _set_env(host, home) if home and "ascend-toolkit/set_env.sh" in fix else fix


def _set_env(host: Host, home: Path) -> str:
    """The line that puts CANN's libraries on the path."""
    places = (home / "set_env.sh", home.parent / "set_env.sh")
    script = next((place for place in places if place.exists()), places[0])
    return f"source /{script.relative_to(host.root)}"


def _torch_to_install(host: Host, version: str = "2.7.1") -> str:
    """The line that installs a torch for this machine, of this release where the CANN here allows it."""
    version = pairs.release(version)
    if has_ascend(host):
        home = cann_home(host)
        pair = pairs.pair_for(version, (home and cann_version(host, home)) or pairs.SERIES[-1])
        build = "+cpu" if host.machine == "x86_64" else ""
        if isinstance(pair, pairs.Pair):
            where = CPU_INDEX if build else ""
            return f"pip install 'torch=={pair.torch}{build}' torch_npu=={pair.torch_npu}{where}"
        return pair.partition("; ")[2]
    if has_nvidia(host) or host.system == "Darwin":
        return f"pip install 'torch>={version}'"
    return f"pip install 'torch=={version}+cpu'{CPU_INDEX}"


def _build(host: Host, version: str, facts: dict[str, Any]) -> list[Finding]:
    """Is this the build for the cards that are here?"""
    cuda = facts.get("cuda") or facts.get("hip")
    if facts.get("check") != PRODUCT:
        what = f"torch {version} computes wrongly on this CPU: {facts.get('check')} for {PRODUCT}"
        return [Finding("wrong", "torch", what, _torch_to_install(host, version))]
    if cuda and has_ascend(host):
        what = f"torch {version} is a CUDA build, which torch_npu refuses to work beside"
        return [Finding("wrong", "torch", what, _torch_to_install(host, version))]
    if cuda and not has_nvidia(host):
        what = f"torch {version} is a CUDA build and no NVIDIA card is here: gigabytes for nothing"
        return [Finding("note", "torch", what, _torch_to_install(host, version))]
    if not cuda and has_nvidia(host) and not has_ascend(host):
        what = f"torch {version} is built without CUDA and cannot use the NVIDIA card that is here"
        fix = f"pip install --force-reinstall 'torch=={pairs.release(version)}'"
        return [Finding("wrong", "torch", what, fix)]
    return [Finding("ok", "torch", f"{version}, {'CUDA ' + cuda if cuda else 'CPU'} build, works on the CPU")]


# ---- Ascend


def npu(host: Host) -> list[Finding]:
    """Everything an Ascend card needs, from the driver up to a product computed on each card."""
    if not has_ascend(host):
        return [Finding("ok", "npu", "no Ascend card, driver, CANN or torch_npu here")]
    home = cann_home(host)
    version = cann_version(host, home) if home else None
    findings = _cann(host, home, version) + _driver(host, version)
    findings += _torch_npu(host, version) + _cann_python(host)
    if host.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        what = "TORCH_DEVICE_BACKEND_AUTOLOAD=0: other programs must import torch_npu themselves; anymix does"
        findings.append(Finding("note", "npu", what, "unset TORCH_DEVICE_BACKEND_AUTOLOAD"))
    return findings + (_cards(host, "npu", "npu-smi info") if host.installed("torch_npu") else [])


def _cann(host: Host, home: Path | None, version: str | None) -> list[Finding]:
    if home is None:
        return [Finding("wrong", "CANN", "CANN is not found", f"{pairs.ASK_FOR}, or source its set_env.sh")]
    what = f"CANN {version or 'of unknown version'} at /{home.relative_to(host.root)}"
    if version and pairs.too_old(version):
        return [Finding("wrong", "CANN", f"{what}: no torch_npu for torch 2.7.1 or newer", pairs.ASK_FOR)]
    if not any(host.environ.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")):
        fix = _set_env(host, home)
        return [Finding("wrong", "CANN", f"{what}, but this shell did not source its set_env.sh", fix)]
    return [Finding("ok" if version else "note", "CANN", what)]


def _driver(host: Host, cann: str | None) -> list[Finding]:
    version = driver_version(host)
    if version is None:
        what = "no driver found; a container needs the host's"
        mounts = " ".join(f"-v {path}:{path}" for path in (f"{ASCEND}/driver", "/usr/local/bin/npu-smi"))
        return [Finding("wrong", "driver", what, f"docker run {mounts} ...")]
    fault = pairs.driver_fault(version, cann)
    if fault is None:
        return [Finding("ok", "driver", f"Ascend HDK {version}")]
    what, _, fix = fault.partition("; ")
    return [Finding("wrong", "driver", what, fix)]


def _torch_npu(host: Host, cann: str | None) -> list[Finding]:
    version, beside = host.installed("torch_npu"), host.installed("torch")
    fix = _torch_to_install(host, beside or "2.7.1")
    if version is None:
        return [Finding("wrong", "torch_npu", "torch_npu is not installed", fix)]
    if beside is None:
        return []
    what = f"torch_npu {version} with torch {beside}" + (f" on CANN {cann}" if cann else "")
    if pairs.release(version) != pairs.release(beside):
        return [Finding("wrong", "torch_npu", f"{what}: not the same release", fix)]
    fits = pairs.belongs(version, beside, cann) if cann else None
    if fits is False:
        return [Finding("wrong", "torch_npu", f"{what}: built for another CANN", fix)]
    if fits is None and cann:
        return [Finding("note", "torch_npu", f"{what}: not in our table of {pairs.READ}", fix)]
    return [Finding("ok", "torch_npu", what)]


def _cann_python(host: Host) -> list[Finding]:
    broken = broken_imports(host, list(CANN_NEEDS))
    if not broken:
        return [Finding("ok", "CANN", f"its Python needs import ({', '.join(CANN_NEEDS.values())})")]
    names = [CANN_NEEDS[name] for name in broken]
    what = f"CANN's own Python needs {', '.join(names)}; without, it fails with an error that names nothing"
    return [Finding("wrong", "CANN", what, f"pip install {' '.join(names)}")]


# ---- cards


def cuda(host: Host) -> list[Finding]:
    if not has_nvidia(host):
        return [Finding("ok", "cuda", "no NVIDIA card here")]
    return _cards(host, "cuda", "nvidia-smi") if host.installed("torch") else []


def _cards(host: Host, kind: str, command: str) -> list[Finding]:
    probed = probe(host, kind)
    findings = [_card(kind, card, command) for card in probed.cards]
    if probed.error:
        at = f"on card {probed.cards[-1]['card']}" if probed.cards else "before the first card was reached"
        what, fix = _explained(host, probed.error, command)
        return [*findings[:-1], Finding("wrong", kind, f"the test stopped {at}: {what}", fix)]
    if not findings:
        unseen = ("torch sees no card", f"{command}; echo ${VISIBLE[kind]}")
        what, fix = faults.explain(probed.warned) or unseen
        return [Finding("wrong", kind, what, fix)]
    return findings


def _card(kind: str, card: dict[str, Any], command: str) -> Finding:
    free, total = card.get("free", 0) / GIB, card.get("total", 0) / GIB
    what = f"{kind}:{card['card']} {card.get('name', '')}, {free:.0f} of {total:.0f} GiB free"
    if card.get("check") != PRODUCT:
        return Finding("wrong", kind, f"{what}, computes wrongly: {card.get('check')} for {PRODUCT}", command)
    if free < total / 2:
        return Finding("note", kind, f"{what}: something else is using it", command)
    return Finding("ok", kind, f"{what}, computes")
