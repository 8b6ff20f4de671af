"""The checks of `doctor` on what else happens on an Ascend host: who uses the cards, which ports HCCL finds taken,
what is preloaded, what is set for a run there.

`smi` reads what npu-smi prints. HCCL listens on 16 ports from 60000 on (HCCL_IF_BASE_PORT moves them); a second
run on the same host, or any other program, may have taken one: EJ0003 and EI0019 in CANN's words.
"""

from __future__ import annotations

import re

from anymix.device import faults, smi
from anymix.device.cards import has_ascend
from anymix.device.findings import Finding, Host
from anymix.device.settings import MARK, NPU_OPTIONS, NPU_VARIABLES

FIRST_PORT, PORTS = 60000, 16
LISTENS = "0A"  # of /proc/net/tcp
IDLE_MB = 6000  # what an idle chip holds for itself is 2.8 to 3.5 GB


def busy(host: Host) -> list[Finding]:
    """Which cards other programs use, which are ill, and why npu-smi itself cannot tell."""
    if not host.which("npu-smi"):
        return []
    ran = host.run(["npu-smi", "info"], 30.0)
    said = smi.read(f"{ran.out}\n{ran.err}")
    if not said.chips:
        what, fix = faults.explain(said.error) or (said.error or "it printed nothing", "dmesg | grep -i ascend | tail")
        return [Finding("wrong", "npu-smi", f"npu-smi shows no card: {what}", fix)]
    findings = [_ill(chip) for chip in said.chips if chip.health != "OK"]
    taken = {(process.card, process.chip) for process in said.processes}
    hidden = {(c.card, c.chip) for c in said.chips if c.total and c.used > IDLE_MB and (c.card, c.chip) not in taken}
    free = [n for n, c in enumerate(said.chips) if c.health == "OK" and (c.card, c.chip) not in taken | hidden]
    fix = f"export ASCEND_RT_VISIBLE_DEVICES={','.join(map(str, free))}" if free else "npu-smi info   # all are in use"
    findings += [_used(process, fix) for process in said.processes]
    findings += [_held(chip, fix) for chip in said.chips if (chip.card, chip.chip) in hidden]
    idle = f"{len(said.chips)} of them, driver {said.driver}, {len(free)} free"
    return findings or [Finding("ok", "npu-smi", f"{said.chips[0].name}: {idle}")]


def _ill(chip: smi.Chip) -> Finding:
    what = f"NPU {chip.card} chip {chip.chip} says Health {chip.health}"
    return Finding("wrong", "npu-smi", what, f"npu-smi info -t health -i {chip.card}   # IT may have to reset it")


def _used(process: smi.Process, fix: str) -> Finding:
    who = f"{process.name or 'a process without a name'} (pid {process.pid}, {process.memory} MB)"
    return Finding("note", "npu-smi", f"NPU {process.card} chip {process.chip} is used by {who}", fix)


def _held(chip: smi.Chip, fix: str) -> Finding:
    what = f"NPU {chip.card} chip {chip.chip} holds {chip.used} of {chip.total} MB and lists no process"
    return Finding("note", "npu-smi", f"{what}: one in another container, or one that died", fix)


def ports(host: Host) -> list[Finding]:
    """Is a port taken that HCCL will want for a run over several cards?"""
    if len(host.any_of("/dev", "davinci[0-9]*")) < 2:
        return []
    said = host.environ.get("HCCL_IF_BASE_PORT", "")
    if said and not (said.isdigit() and 1024 <= int(said) <= 65535 - PORTS + 1):
        what = f"HCCL_IF_BASE_PORT={said} is not a port from 1024 to {65535 - PORTS + 1}"
        return [Finding("wrong", "HCCL", what, "unset HCCL_IF_BASE_PORT")]
    base = int(said or FIRST_PORT)
    listening = _listening(host)
    taken = sorted(set(range(base, base + PORTS)) & listening)
    if not taken:
        return [Finding("ok", "HCCL", f"ports {base} to {base + PORTS - 1} are free")]
    other = next(b for b in range(61000, 65500, 100) if not set(range(b, b + PORTS)) & listening)
    what = f"port {taken[0]} is taken: a run over several cards ends in EJ0003, the IP port has been bound already"
    return [Finding("note", "HCCL", what, f"export HCCL_IF_BASE_PORT={other}")]


def _listening(host: Host) -> set[int]:
    """TCP ports somebody listens on here, as the kernel lists them."""
    text = "\n".join(host.read(host.path(f"/proc/net/{name}")) for name in ("tcp", "tcp6"))
    return {int(port, 16) for port, state in re.findall(r":([0-9A-F]{4}) \S+ ([0-9A-F]{2}) ", text) if state == LISTENS}


def preload(host: Host) -> list[Finding]:
    """Does everything in LD_PRELOAD exist? On Arm it is how libgomp gets its thread-local memory."""
    said = host.environ.get("LD_PRELOAD", "")
    absent = [name for name in re.split(r"[ :]+", said) if name.startswith("/") and not host.path(name).exists()]
    if absent:
        what = f"LD_PRELOAD names {absent[0]}, which is not there: it helps nothing and every program says so"
        return [Finding("wrong", "preload", what, "unset LD_PRELOAD")]
    return [Finding("ok", "preload", f"LD_PRELOAD={said}")] if said else []


def settings(host: Host) -> list[Finding]:
    """What a run on an NPU would set here and why, and what the user decided instead."""
    if not has_ascend(host):
        return []
    ours = host.environ.get(MARK, "").split(",")
    findings = []
    for setting in (*NPU_VARIABLES, *NPU_OPTIONS):
        said = [name for name in (setting.name, *setting.instead) if name in host.environ and name not in ours]
        where = "" if setting.when == "always" else f" ({setting.when})"
        what = f"{said[0]}={host.environ[said[0]]} is yours and stays" if said else f"a run sets {setting}{where}"
        findings.append(Finding("ok", "settings", what))
    return findings
