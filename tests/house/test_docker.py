"""The Dockerfile, as far as it can be held without an engine: its sources, its commands, what it never asks for."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from house.source import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PAGES = tuple((ROOT / "docs" / folder / "ascend.md").read_text(encoding="utf-8") for folder in ("", "zh"))


def _steps() -> list[list[str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    return [line.split(None, 1) for line in joined.splitlines() if line.strip()]


def test_everything_it_copies_is_there_and_sent_to_the_engine() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for word, rest in (step for step in _steps() if step[0] == "COPY"):
        for source in shlex.split(rest)[:-1]:
            if source == "dist/${WHEELS}":
                assert word == "COPY" and "!dist/anymix-*" in ignored
                continue
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in ignored, source


def test_the_base_image_is_the_users_to_name() -> None:
    froms = [rest for word, rest in _steps() if word == "FROM"]
    assert froms == ["${BASE}"] and ["ARG", "BASE"] in _steps()
    assert not re.search(r"\b[\w-]+\.(?:io|com|cn|org)/", DOCKERFILE)


def test_neither_image_nor_page_asks_for_privileges_or_the_hosts_network() -> None:
    runs = [block for page in PAGES for block in re.findall(r"docker run .*?(?:[^\\]\n)", page, re.DOTALL)]
    assert len(runs) >= 2
    steps = "\n".join(" ".join(step) for step in _steps())
    for text in (steps, (ROOT / "docker" / "start.sh").read_text(encoding="utf-8"), *runs):
        assert not re.search(r"privileged|network|--net\b|--cap-add|--ipc|--pid", text), text
    for run in runs:
        for needed in ("davinci0", "davinci_manager", "devmm_svm", "hisi_hdc", "Ascend/driver", "npu-smi", "dcmi"):
            assert needed in run, needed


def test_what_it_runs_installs_without_a_network_and_keeps_torch() -> None:
    (run,) = [rest for word, rest in _steps() if word == "RUN" and "pip" in rest]
    assert run.count("pip install") == run.count("--no-index") == 2
    assert "keep_torch.py > /tmp/keep.txt" in run and "-c /tmp/keep.txt" in run and "sha256sum -c" in run
    assert ["CMD", '["anymix", "doctor"]'] in _steps()


def test_the_start_script_sources_cann_and_runs_what_it_is_given(tmp_path: Path) -> None:
    script = ROOT / "docker" / "start.sh"
    (tmp_path / "set_env.sh").write_text("export SOURCED=yes\n")
    (tmp_path / "latest").mkdir()
    said = subprocess.run(
        ["sh", str(script), "sh", "-c", 'echo "$SOURCED $1 $LD_LIBRARY_PATH"', "_", "a b"],
        env={"PATH": "/usr/bin:/bin", "ASCEND_TOOLKIT_HOME": str(tmp_path / "latest")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    driver = "/usr/local/Ascend/driver/lib64"
    assert said.stdout == f"yes a b {driver}/driver:{driver}/common\n", said.stderr
