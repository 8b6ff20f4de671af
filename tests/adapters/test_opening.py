"""One door: model folders, hub ids, adapters with their base near, far or gone, and what runs leave."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from anymix.adapters import files, lora
from anymix.adapters.opening import base_of, open_family
from anymix.config import Adapter
from tiny import tiny_internvl2


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_internvl2(tmp_path / "models" / "base")


def adapter(folder: Path, base: Path, recorded: str | None = None) -> Any:
    """An adapter folder that does something, and the family it was made on."""
    family = open_family(base, "cpu")
    lora.attach(family.net, Adapter(rank=2), family.lora_targets)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora.trainable(family.net).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    lora.save(family.net, folder, recorded or base)
    return family


@torch.no_grad()
def answer(family: Any) -> torch.Tensor:
    return family.net(input_ids=torch.tensor([[1, 5, 9, 20]])).logits  # type: ignore[no-any-return]


def test_model_folder_and_hub_id(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = open_family(base, torch.device("cpu"), max_tiles=2)
    assert family.codec.max_tiles == 2 and family.folder == base
    shutil.copytree(base, base.parent / "OpenGVLab" / "InternVL2-Tiny")
    monkeypatch.setenv("ANYMIX_MODELS", str(base.parent))
    assert torch.equal(answer(open_family("OpenGVLab/InternVL2-Tiny", "cpu")), answer(family))


def test_dtype(base: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "a", base)
    for dtype, expected in (
        ("bf16", torch.bfloat16),
        (torch.float16, torch.float16),
        ("auto", torch.float32),
    ):
        net = open_family(tmp_path / "a", "cpu", dtype).net
        assert {p.dtype for name, p in net.named_parameters() if ".lora_" not in name} == {expected}
        assert {p.dtype for name, p in net.named_parameters() if ".lora_" in name} == {torch.float32}
    with pytest.raises(ValueError, match="dtype is auto, bf16, fp16, fp32, found 'half'"):
        open_family(base, "cpu", "half")


def test_adapter_finds_its_base(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter(tmp_path / "a", base)
    opened = open_family(tmp_path / "a", "cpu")
    assert torch.equal(answer(opened), answer(made)) and opened.folder == base
    assert lora.adapted(opened.net) == lora.adapted(made.net)
    # seen from the adapter's own folder
    _record(tmp_path / "a", "../models/base")
    assert torch.equal(answer(open_family(tmp_path / "a", "cpu")), answer(made))
    # a hub id, where models are kept by hand
    lora.save(made.net, tmp_path / "b", "OpenGVLab/base")
    monkeypatch.setenv("ANYMIX_MODELS", str(base.parent))
    assert json.loads((tmp_path / "b" / files.CONFIG).read_text())["base_model_name_or_path"] == "OpenGVLab/base"
    assert torch.equal(answer(open_family(tmp_path / "b", "cpu")), answer(made))


def _record(folder: Path, base: str | None) -> None:
    config = json.loads((folder / files.CONFIG).read_text())
    (folder / files.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}))


def test_base_that_is_gone(base: Path, tmp_path: Path) -> None:
    made = adapter(tmp_path / "a", base)
    elsewhere = base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=rf"adapts {base}, which is gone; pass base= .*--base"):
        open_family(tmp_path / "a", "cpu")
    assert torch.equal(answer(open_family(tmp_path / "a", "cpu", base=elsewhere)), answer(made))
    _record(tmp_path / "a", "OpenGVLab/InternVL2-Nowhere")
    with pytest.raises(ValueError, match=r"InternVL2-Nowhere, which cannot be opened .*pass base="):
        base_of(tmp_path / "a")
    _record(tmp_path / "a", None)
    with pytest.raises(ValueError, match="does not say which model it adapts; pass base="):
        base_of(tmp_path / "a")


def test_another_base_is_told(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter(tmp_path / "a", base)
    with caplog.at_level(logging.WARNING, "anymix"):
        open_family(tmp_path / "a", "cpu")
        assert not caplog.messages
        open_family(tmp_path / "a", "cpu", base=tiny_internvl2(tmp_path / "other", seed=1))
    assert "trained on other weight files" in caplog.text
    with pytest.raises(ValueError, match="shape"):
        open_family(tmp_path / "a", "cpu", base=tiny_internvl2(tmp_path / "wide", hidden=32))
    with pytest.raises(ValueError, match="base is for adapter folders"):
        open_family(base, "cpu", base=base)


def test_untrained_adapter_is_an_error(base: Path, tmp_path: Path) -> None:
    family = open_family(base, "cpu")
    lora.attach(family.net, Adapter(rank=2), family.lora_targets)
    lora.save(family.net, tmp_path / "a", base)
    with pytest.raises(ValueError, match="changes nothing"):
        open_family(tmp_path / "a", "cpu")


def test_output_folders_of_runs(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="saved nothing yet"):
        open_family(out, "cpu")
    for step in (90, 100):
        (out / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (out / "checkpoints" / ".step-000110.tmp").mkdir()
    with pytest.raises(ValueError, match=r"not finished, its newest checkpoint is .*step-000100; the same train"):
        open_family(out, "cpu")
    made = adapter(out / "checkpoints" / "step-000100", base)
    with pytest.raises(ValueError, match=r"step-000100; open that"):
        open_family(out, "cpu")
    assert torch.equal(answer(open_family(out / "checkpoints" / "step-000100", "cpu")), answer(made))
    lora.save(made.net, out, base)  # the run has ended
    assert torch.equal(answer(open_family(out, "cpu")), answer(made))
    lora.merge(made.net)
    made.save(tmp_path / "full")
    (tmp_path / "full" / "run.json").write_text("{}")
    assert torch.equal(answer(open_family(tmp_path / "full", "cpu")), answer(made))
