"""The checks of `doctor` that need no card: Python, packages, threads, models, network, space.

Each takes a `Host` and gives findings. Nothing risky is imported here; imports are tried in a process of
their own, where a crash or a hang can be named.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from anymix.device import faults
from anymix.device.findings import Finding, Host, Level
from anymix.device.settings import THREADS_AT_MOST

GIB = 2**30
IMPORT_SECONDS = 90.0  # a first import from a network drive takes its time
OPENS = ("config.json", "model_index.json")
LAID = ("*", "*/*", "*--*/snapshots/*")  # by name, by owner and name, as a hub's cache
SHOWN = ("torch", "transformers", "peft", "datasets", "safetensors", "pillow", "sentencepiece")
COMPILED = ("numpy", "PIL", "safetensors", "sentencepiece", "tokenizers", "transformers")

# Prints each name before importing it: the last one printed is the one that crashed.
TRY_IMPORTS = """
import importlib, sys, traceback
for name in sys.argv[1:]:
    print("import", name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException:
        print("failed", name, traceback.format_exc(chain=True).replace(chr(10), chr(0)), flush=True)
"""


def broken_imports(host: Host, names: Sequence[str]) -> dict[str, str]:
    """Which of these modules do not import, each with the text of its error."""
    ran = host.run([sys.executable, "-c", TRY_IMPORTS, *names], IMPORT_SECONDS)
    broken, last = {}, ""
    for line in ran.out.splitlines():
        word, _, rest = line.partition(" ")
        if word == "import":
            last = rest
        elif word == "failed":
            name, _, text = rest.partition(" ")
            broken[name] = text.replace("\0", "\n")
    if ran.code != 0 and last not in broken:
        broken[last or names[0]] = ended(ran.code, ran.err)
    return broken


def ended(code: int | None, err: str) -> str:
    """How a process that printed no error of Python's ended."""
    if code is None:
        return f"no answer within {IMPORT_SECONDS:.0f} s"
    return f"{err.strip()}\nthe process crashed with signal {-code}" if code < 0 else err


def python(host: Host) -> list[Finding]:
    what = f"Python {'.'.join(map(str, host.python))} on {host.system} {host.machine}"
    if host.python < (3, 10):
        return [Finding("wrong", "python", f"{what}; 3.10 is the oldest that works", "python3.11 -m venv .venv")]
    if host.system == "Windows":
        return [Finding("wrong", "python", f"{what}; Linux and macOS are supported", "wsl --install")]
    if host.python >= (3, 14):
        return [Finding("note", "python", f"{what}; 3.10 to 3.13 are tested", "python3.13 -m venv .venv")]
    return [Finding("ok", "python", what)]


def packages(host: Host) -> list[Finding]:
    """Versions against the ranges in our own metadata, then whether the compiled ones import."""
    findings = _ranges(host, host.requirements())
    there = [name for name in COMPILED if host.installed("pillow" if name == "PIL" else name)]
    for name, text in broken_imports(host, there).items() if there else ():
        again = f"pip install --force-reinstall --no-deps {'pillow' if name == 'PIL' else name}"
        what, fix = faults.explain(text) or (faults.sentence(text), again)
        findings.append(Finding("wrong", name, f"import {name} fails: {what}", fix))
    return findings


def _ranges(host: Host, wanted: Sequence[str] | None) -> list[Finding]:
    if wanted is None:
        what = "anymix is run without being installed: versions not compared"
        return [Finding("note", "packages", what, "pip install -e .")]
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [Finding("wrong", "packages", "packaging is not installed", "pip install packaging")]
    absent, outside = [], []
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = host.installed(requirement.name)
        line = f"{requirement.name}{requirement.specifier}"
        if version is None and requirement.name != "torch":  # torch has a check of its own
            absent.append(line)
        elif version is not None and not requirement.specifier.contains(version, prereleases=True):
            outside.append((f"{requirement.name} {version}", line))
    findings = [Finding("wrong", "packages", f"{', '.join(absent)} not installed", _pip(absent))] if absent else []
    findings += [Finding("wrong", "packages", f"{has} is outside {line}", _pip([line])) for has, line in outside]
    shown = ", ".join(f"{name} {host.installed(name)}" for name in SHOWN if host.installed(name))
    return findings or [Finding("ok", "packages", shown)]


def _pip(lines: Sequence[str]) -> str:
    return "pip install " + " ".join(f"'{line}'" for line in lines)


def torchvision(host: Host) -> list[Finding]:
    version = host.installed("torchvision")
    if version is None:
        return [Finding("ok", "torchvision", "not installed; it is never needed")]
    broken = broken_imports(host, ["torchvision"])
    if not broken:
        return [Finding("ok", "torchvision", f"{version}, imports; it is never needed")]
    what = f"torchvision {version} does not import and takes transformers down with it: "
    fix = "pip uninstall -y torchvision"
    return [Finding("wrong", "torchvision", what + faults.sentence(broken["torchvision"]).split("; type:")[0], fix)]


def threads(host: Host) -> list[Finding]:
    said, what = host.environ.get("OMP_NUM_THREADS"), f"{host.cores} cores"
    fix = f"export OMP_NUM_THREADS={min(THREADS_AT_MOST, host.cores)}"
    if said is None:
        if host.cores > 4 * THREADS_AT_MOST:
            text = f"{what} and OMP_NUM_THREADS not set: {host.cores} threads in every process slow all of them"
            return [Finding("note", "threads", text, fix)]
        return [Finding("ok", "threads", f"{what}, OMP_NUM_THREADS not set")]
    if not said.isdigit() or int(said) < 1 or int(said) > host.cores:
        return [Finding("note", "threads", f"OMP_NUM_THREADS={said} on {what}", fix)]
    return [Finding("ok", "threads", f"{what}, OMP_NUM_THREADS={said}")]


def models(host: Host) -> list[Finding]:
    name = host.environ.get("ANYMIX_MODELS")
    if not name:
        return [Finding("ok", "models", "ANYMIX_MODELS not set: models come from the caches or the hub")]
    folder = Path(name)
    if not folder.is_dir():
        what = f"ANYMIX_MODELS={name} is not a folder" + (", is it mounted?" if not folder.exists() else "")
        return [Finding("wrong", "models", what, "export ANYMIX_MODELS=/folder/with/models")]
    if not os.access(folder, os.R_OK | os.X_OK):
        what = f"ANYMIX_MODELS={name} cannot be read by this user"
        return [Finding("wrong", "models", what, f"ls -ld {name}")]
    found = {file.parent for depth in LAID for kind in OPENS for file in folder.glob(f"{depth}/{kind}")}
    if not found:
        what = f"ANYMIX_MODELS={name} holds no model: no {' or '.join(OPENS)} one or two folders down"
        return [Finding("note", "models", what, f"ls {name}")]
    return [Finding("ok", "models", f"ANYMIX_MODELS={name}, {len(found)} model{'s' * (len(found) != 1)}")]


def network(host: Host) -> list[Finding]:
    """What the environment says; nothing is sent anywhere."""
    endpoint = host.environ.get("HF_ENDPOINT", "")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        fix = f"export HF_ENDPOINT=https://{endpoint}"
        return [Finding("wrong", "network", f"HF_ENDPOINT={endpoint} lacks https://", fix)]
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    offline = [name for name in switches if host.environ.get(name, "0") != "0"]
    said = [f"HF_ENDPOINT={endpoint}"] if endpoint else []
    said += [f"{' and '.join(offline)} set: local models only"] if offline else []
    return [Finding("ok", "network", "; ".join(said) or "HF_ENDPOINT not set, not offline")]


def space(host: Host) -> list[Finding]:
    """Free disk where runs and caches are written, free memory, and a container's shared memory."""
    home = Path(host.environ.get("HF_HOME") or Path(host.environ.get("HOME", "/")) / ".cache")
    findings = []
    for use, folder in (("here", Path.cwd()), ("cache", home)):
        while not folder.exists():
            folder = folder.parent
        free = host.free(folder) / GIB
        level: Level = "wrong" if free < 1 else "note" if free < 20 else "ok"
        fix = "" if level == "ok" else "df -h   # an 8B model takes 16 GiB, a full checkpoint of it 100"
        findings.append(Finding(level, "disk", f"{use}: {free:.0f} GiB free under {folder}", fix))
    findings += _memory(host)
    shared = host.path("/dev/shm")
    if shared.exists() and host.free(shared) < GIB:
        what = f"/dev/shm has {host.free(shared) / GIB:.1f} GiB; full, it kills data workers with a bus error"
        fix = "docker run --shm-size=16g ...   # or data.workers=0"
        findings.append(Finding("note", "memory", what, fix))
    return findings


def _memory(host: Host) -> list[Finding]:
    text = host.read(host.path("/proc/meminfo"))
    kib = {name: int(number) for name, number in re.findall(r"(?m)^(MemAvailable|MemTotal):\s+(\d+)", text)}
    if len(kib) < 2:
        return []  # macOS
    free, total = (kib[name] * 1024 / GIB for name in ("MemAvailable", "MemTotal"))
    level: Level = "note" if free < 8 else "ok"
    return [Finding(level, "memory", f"{free:.0f} of {total:.0f} GiB free", "" if level == "ok" else "free -h")]
