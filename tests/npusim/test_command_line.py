"""`anymix` as typed on a host with simulated NPUs: train, chat, generate, diagnose, doctor, the words of `device`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drawn import rows
from npusim.conftest import Process
from painted import folder

pytestmark = pytest.mark.slow
TYPED = Path(__file__).with_name("typed.py")
Line = tuple[dict[str, str], list[str]]
Said = dict[str, Any]


def lines(npu: Process, at: Path, typed: dict[str, Line]) -> dict[str, Said]:
    """What each of some command lines said, in one process."""
    (at / "lines.json").write_text(json.dumps(list(typed.values())))
    ended = npu(str(TYPED), str(at / "lines.json"), COLUMNS="400", ANYMIX_TRACEBACK="")
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr[-3000:]
    return dict(zip(typed, map(json.loads, ended.stdout.splitlines()), strict=True))


def train(at: Path, name: str, *more: str) -> list[str]:
    """One step of a LoRA of the smallest model that talks."""
    words = ["model.path=starter:qwen2_vl", f"data.path={at / 'rows' / 'rows.jsonl'}", "data.workers=0"]
    return ["train", *words, "train.steps=1", "train.batch=2", "adapter.rank=2", f"train.out={at / name}", *more]


def chat(at: Path, device: str) -> list[str]:
    question = ["What colour is the card?", "--image", str(at / "rows" / "0.png")]
    return ["chat", str(at / "talks"), *question, "--device", device, "--dtype", "fp32", "--max-new-tokens", "8"]


def generate(at: Path, device: str) -> list[str]:
    size = ["--width", "32", "--height", "32", "--steps", "2", "--seed", "3"]
    out = ["-o", str(at / f"{device.partition(':')[0]}.png")]
    return ["generate", str(at / "draws"), "a red circle", *out, "--device", device, "--dtype", "fp32", *size]


@pytest.fixture(scope="module")
def talked(npu: Process, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    at = tmp_path_factory.mktemp("talked")
    rows(at / "rows", 4)
    first = {"NPUSIM_SOC": "Ascend910A"}
    said = lines(
        npu,
        at,
        {
            "train": ({}, train(at, "talks", "device=npu")),
            "chat cpu": ({}, chat(at, "cpu")),
            "chat npu": ({}, chat(at, "npu")),
            "second card": ({}, train(at, "second", "device=npu:1")),
            "eighth card": ({}, train(at, "eighth", "device=npu:7")),
            "first generation": (first, train(at, "first", "device=npu")),
            "plain": ({}, train(at, "plain", "device=npu", "device.fused=off")),
            "dry": ({}, train(at, "dry", "device=auto", "--dry-run", "--json")),
            "parity": ({}, ["diagnose", *train(at, "same", "device=npu")[1:], "--parity", "cpu", "--json"]),
            "doctor": ({}, ["doctor", "--json"]),
        },
    )
    return {**said, "scaler": json.loads((at / "first" / "run.json").read_text())["progress"]["scaler"]}


@pytest.fixture(scope="module")
def drew(npu: Process, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    at = tmp_path_factory.mktemp("drew")
    pictures = folder(at / "pictures", one="a red card", two="a blue card")
    words = ["model.path=starter:sd15", f"data.path={pictures}", "data.workers=0", "data.resolution=32", "device=npu"]
    more = ["data.bucket_step=8", "train.steps=1", "adapter.rank=2", f"train.out={at / 'draws'}"]
    said = lines(
        npu,
        at,
        {
            "train": ({}, ["train", *words, *more, f"cache.path={at / 'cache'}"]),
            "cpu": ({}, generate(at, "cpu")),
            "npu": ({}, generate(at, "npu:1")),
        },
    )
    return {**said, "pictures": [np.asarray(Image.open(at / f"{kind}.png")).astype(int) for kind in ("cpu", "npu")]}


def quiet(said: Said) -> bool:
    """Whether nothing warned."""
    return not [line for line in said["err"].splitlines() if "warn" in line.lower() or "Traceback" in line]


def test_a_lora_is_trained_on_a_card_and_says_so(talked: dict[str, Said]) -> None:
    said = talked["train"]
    assert said["code"] == 0 and "finished at step 1 of 1" in said["out"] and quiet(said)
    assert said["err"].splitlines()[0] == "device: npu:0 (Ascend910B2), as asked"
    assert "  jit_compile = False: ready-made kernels" in said["err"]
    assert "attention: of all sequences in one kernel (npu_fusion_attention)" in said["err"]
    assert said["devices"] == ["npu:0"]
    assert said["calls"].keys() == {"npu_fusion_attention", "npu_rms_norm", "npu_rotary_mul", "npu_swiglu"}


def test_the_lora_answers_as_it_does_on_the_cpu(talked: dict[str, Said]) -> None:
    cpu, npu = talked["chat cpu"], talked["chat npu"]
    assert npu["code"] == 0 and npu["out"].strip() and npu["out"] == cpu["out"] and quiet(npu)
    assert "qwen2_vl on npu:0, float32" in npu["err"]
    assert (cpu["devices"], npu["devices"]) == (["cpu"], ["npu:0"])
    assert npu["calls"]["npu_rms_norm"] and not cpu["calls"]


def test_a_card_by_its_number(talked: dict[str, Said]) -> None:
    said = talked["second card"]
    assert said["code"] == 0 and said["devices"] == ["npu:1"]
    assert said["err"].splitlines()[0] == "device: npu:1 (Ascend910B2), as asked"


def test_a_card_that_is_not_there_is_one_sentence(talked: dict[str, Said]) -> None:
    said = talked["eighth card"]
    sentence = "anymix: device = npu:7 is beyond the npu cards there are: 2 visible"
    assert said["code"] == 2 and said["out"] == "" and said["devices"] == []
    assert said["err"].strip().startswith(sentence) and said["err"].strip().count("\n") == 0


def test_a_card_without_bf16_trains_in_fp16_with_a_scaled_loss_and_no_fused_kernel(talked: dict[str, Said]) -> None:
    said, scaler = talked["first generation"], talked["scaler"]
    assert said["code"] == 0 and said["err"].startswith("device: npu:0 (Ascend910A), as asked")
    assert scaler is not None and scaler["scale"] >= 2.0**14
    assert said["calls"] == {} and "(fused kernels want an Atlas A2 (910B) or newer)" in said["err"]


def test_without_fused_kernels_none_is_called(talked: dict[str, Said]) -> None:
    said = talked["plain"]
    assert said["code"] == 0 and said["calls"] == {} and said["devices"] == ["npu:0"]
    assert "attention: sequence by sequence (device.fused is off)" in said["err"]


def test_a_dry_run_on_the_card_auto_chooses(talked: dict[str, Said]) -> None:
    said = talked["dry"]
    forecast = json.loads(said["out"])
    assert said["code"] == 0 and said["devices"] == ["npu:0"] and "npu:0 (Ascend910B2), the first choice" in said["err"]
    assert forecast["steps"] == 1 and forecast["peak_bytes"] > 1e6 and forecast["peak_is_of_the_step"]


def test_the_card_agrees_with_the_cpu_layer_by_layer(talked: dict[str, Said]) -> None:
    said = talked["parity"]
    report = json.loads(said["out"])
    assert said["code"] == 0 and report["ok"] and report["first"] is None
    assert (report["tested"], report["reference"]) == ("npu:0 in bf16", "cpu in fp32")
    assert not any(layer["fault"] for layer in report["layers"]) and len(report["layers"]) > 100
    assert max(layer["error"] for layer in report["layers"]) > 0  # bf16 and fp32 are never the same: it did compare


def test_the_doctor_sees_both_cards_and_what_a_run_sets(talked: dict[str, Said]) -> None:
    found = json.loads(talked["doctor"]["out"])["findings"]
    cards = [finding for finding in found if finding["topic"] == "npu"]
    assert [card["level"] for card in cards] == ["ok", "ok"]
    assert all(f"npu:{n} Ascend910B2" in card["what"] and "computes" in card["what"] for n, card in enumerate(cards))
    settings = " ".join(finding["what"] for finding in found if finding["topic"] == "settings")
    for name in ("PYTORCH_NPU_ALLOC_CONF", "TASK_QUEUE_ENABLE", "allow_internal_format", "jit_compile", "allow_hf32"):
        assert f"a run sets {name} = " in settings
    assert "OMP_NUM_THREADS=1 is yours and stays" in settings
    assert talked["doctor"]["code"] == 1  # there is no driver


def test_pictures_of_a_lora_are_those_of_the_cpu(drew: dict[str, Any]) -> None:
    assert drew["train"]["code"] == 0 and drew["train"]["devices"] == ["npu:0"] and quiet(drew["train"])
    assert drew["npu"]["code"] == 0 and drew["npu"]["devices"] == ["npu:1"] and quiet(drew["npu"])
    assert drew["npu"]["calls"].keys() == {"npu_geglu"} and not drew["cpu"]["calls"]
    cpu, npu = drew["pictures"]
    assert npu.std() > 1 and abs(cpu - npu).max() <= 1
