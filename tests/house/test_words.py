"""Words that belong in one room, or in none."""

from __future__ import annotations

import re

from house.source import ROOT, modules

DEVICES = re.compile(r"\b(cuda|npu|mps|hccl|nccl|torch_npu)\b")
# cli and config offer the words to people; plan, diagnose and paddlemix explain them
MAY_SAY = {"device", "cli", "config", "plan", "diagnose", "paddlemix"}


def test_only_the_device_room_names_devices():
    said = [
        f"{module.at(node)} says {word[:50]!r}"
        for module in modules()
        if module.room not in MAY_SAY
        for node, word in module.words()
        if DEVICES.search(word)
    ]
    assert not said


def test_remote_code_is_never_asked_for():
    assert not [m.at(node) for m in modules() for node, word in m.words() if "trust_remote_code" in word]


def test_the_package_names_no_network_host():
    assert not [m.at(node) for m in modules() for node, word in m.words() if re.search(r"https?://\w", word)]


def test_the_tree_speaks_of_no_machine_it_was_made_on():
    # one letter of each stands in brackets, so that this line does not find itself
    private = re.compile(
        r"(?<![\w.$)])/(wor[k]|roo[t]|op[t]/(wheels|pypi))/|\bpyp[i]\.org|pythonhoste[d]|download\.pytorc[h]|share[d]/(golden|DESIGN)"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in _texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if private.search(line)
    ]
    assert not found


def _texts():
    folders = ("src", "tests", "scripts", "docs", "recipes", ".ci")
    endings = {"", ".py", ".md", ".yaml", ".toml", ".txt", ".json", ".jsonl"}
    paths = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    # golden files are what other people's code wrote
    ours = (path for path in paths if "golden" not in path.relative_to(ROOT).parts)
    return sorted(path for path in ours if path.is_file() and path.suffix in endings and path.name[0] != ".")
