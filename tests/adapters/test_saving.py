"""What a run saves and opens again: LoRA files of families that draw, beside PEFT folders of those that talk."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anymix import config
from anymix.adapters import files, formats, kinds, lora, opening, reading, saving
from anymix.adapters.details import Details
from anymix.config import Adapter
from anymix.families.common import shards
from drawing_nets import ATTENTION, TARGETS, answer, net, stir, trained
from lora_nets import attached, train


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder that counts as a pipeline; what is opened from it is a tiny net."""
    folder = tmp_path / "models" / "base"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    save_file({"weight": torch.ones(3)}, folder / "unet" / "model.safetensors")
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the families: records what is opened, and gives a tiny SDXL."""
    calls: list[Any] = []

    def open_folder(path: Any, device: Any, dtype: Any = None, **options: Any) -> Any:
        calls.append((Path(path), options))
        return SimpleNamespace(net=net("sdxl"), frozen={}, folder=Path(path))

    monkeypatch.setattr(opening, "open_folder", open_folder)
    return calls


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_trained_saved_and_gone_on_from(family: str, kind: str, tmp_path: Path) -> None:
    made = trained(family, kind=kind)
    saving.check(made)
    path = saving.save(SimpleNamespace(net=made), tmp_path / "out", "base", Details(title="fox"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == [reading.WEIGHTS] == [path.name]
    again = net(family)
    names = lora.attach(again, Adapter(kind=kind, init=str(tmp_path / "out")), {"denoiser": tuple(ATTENTION[family])})
    assert names == lora.adapted(made)
    assert torch.allclose(answer(again), answer(made), rtol=0, atol=1e-5)
    assert lora.trainable(again) and all(map(kinds.of_adapter, lora.trainable(again)))
    before = {name: p.clone() for name, p in lora.trainable(again).items()}
    stir(again)  # goes on, and is saved and opened again
    assert all(not torch.equal(p, before[name]) for name, p in lora.trainable(again).items())
    saving.save(again, tmp_path / "out", "base")
    third = net(family)
    lora.attach(third, Adapter(kind=kind, init=str(path)), {"denoiser": tuple(ATTENTION[family])})
    assert torch.allclose(answer(third), answer(again), rtol=0, atol=1e-4)


def test_lora_of_a_run_is_exact_to_the_bit(tmp_path: Path) -> None:
    made = trained("sdxl")
    saving.save(made, tmp_path, "base")
    again = net("sdxl")
    lora.attach(again, Adapter(init=str(tmp_path)), {"denoiser": tuple(ATTENTION["sdxl"])})
    assert lora.trainable(again).keys() == lora.trainable(made).keys()
    for name, parameter in lora.trainable(again).items():
        assert torch.equal(parameter, made.get_parameter(name)) and parameter.dtype == torch.float32


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_init_takes_any_form(form: str, tmp_path: Path) -> None:
    made = trained("sd1", dora=False)
    formats.write(made, tmp_path / "a.safetensors", form)
    again = net("sd1").bfloat16()
    lora.attach(
        again, Adapter(init=str(tmp_path / "a.safetensors"), dropout=0.1), {"denoiser": tuple(ATTENTION["sd1"])}
    )
    assert {layer.lora_dropout["default"].p for layer in lora.layers(again).values()} == {0.1}
    assert {p.dtype for p in lora.trainable(again).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rank": 8}, "adapter.rank is 8 but .* has 3; write adapter.rank=3, or add adapter.rank=null to take it"),
        ({"alpha": 3.0}, "adapter.alpha is 3.0 but .* has 7.5"),
        ({"kind": "loha"}, "adapter.kind is loha but .* has lora"),
        ({"dora": True}, "adapter.dora is True but .* has False"),
        ({"targets": ATTENTION["sd1"]}, "adapter.targets chooses other layers .*add adapter.targets=null to take"),
        ({"parts": ["denoiser"]}, "adapter.parts chooses other layers .*add adapter.parts=null to take those"),
    ],
)
def test_init_and_recipe_must_agree(said: dict[str, Any], words: str, tmp_path: Path) -> None:
    saving.save(trained("sd1"), tmp_path, "base")
    made, agreed = net("sd1"), {"rank": 3, "alpha": 7.5, "kind": "lora", "targets": TARGETS["sd1"]}
    with pytest.raises(ValueError, match=words):
        lora.attach(made, Adapter(init=str(tmp_path), **said), {"denoiser": tuple(ATTENTION["sd1"])})
    lora.attach(made, Adapter(init=str(tmp_path), **agreed), {})


def test_null_takes_what_the_file_has_whatever_its_recipe_said(tmp_path: Path) -> None:
    """A shipped recipe has a rank of its own, which a command line can only set, not leave out."""
    saving.save(trained("sd1"), tmp_path, "base")
    tree = {"adapter": {"rank": 16, "alpha": 16, "targets": ["unet.*.to_q"], "parts": ["denoiser"]}}
    nulls = [f"adapter.{key}=null" for key in ("rank", "alpha", "targets", "parts")]
    asked = config.load(tree, [f"adapter.init={tmp_path}", *nulls]).adapter
    made = net("sd1")
    assert lora.attach(made, asked, {"denoiser": tuple(ATTENTION["sd1"])}) == lora.adapted(trained("sd1"))
    assert {(u.rank, u.alpha) for u in kinds.updates(made).values()} == {(3, 7.5)}
    fresh = net("sd1")
    lora.attach(fresh, config.load(tree, nulls).adapter, {"denoiser": tuple(ATTENTION["sd1"])})
    assert {(u.rank, u.alpha) for u in kinds.updates(fresh).values()} == {(16, 32)}


def test_init_is_found_wherever_adapters_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving.save(trained("sd1"), tmp_path / "models" / "someone" / "fox", "base")
    monkeypatch.setenv("ANYMIX_MODELS", str(tmp_path / "models"))
    asked = {"denoiser": tuple(ATTENTION["sd1"])}
    assert lora.attach(net("sd1"), Adapter(init="someone/fox"), asked) == lora.adapted(trained("sd1"))
    saved = tmp_path / "run" / "checkpoints" / "step-000004"
    saving.save(trained("sd1"), saved, "base")
    with pytest.raises(ValueError, match=f"is a run that has not finished; give its newest LoRA, {saved}"):
        lora.attach(net("sd1"), Adapter(init=str(tmp_path / "run")), asked)
    with pytest.raises(ValueError, match="there is no .*foxx, did you mean .*fox"):
        lora.attach(net("sd1"), Adapter(init=str(tmp_path / "models" / "someone" / "foxx")), asked)


def test_what_a_loha_does_not_know_is_refused_when_going_on_too(tmp_path: Path) -> None:
    saving.save(trained("sd1", kind="loha"), tmp_path, "base")
    with pytest.raises(ValueError, match="adapter.dropout is for adapter.kind=lora, and this is loha"):
        lora.attach(net("sd1"), Adapter(init=str(tmp_path), dropout=0.1), {"denoiser": tuple(ATTENTION["sd1"])})


def test_what_trains_beside_has_no_place(tmp_path: Path) -> None:
    made = trained("sd1")
    made.unet.conv_in.weight.requires_grad_(True)
    for call in (lambda: saving.check(made), lambda: saving.save(made, tmp_path / "out", "base")):
        with pytest.raises(ValueError, match=r"unet\.conv_in\.weight trains beside the adapter, and a LoRA file"):
            call()
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_the_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained("sd1")
    path = saving.save(made, tmp_path, "base")
    before = path.read_bytes()
    stir(made)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "sync", full)
    with pytest.raises(OSError, match="No space"):
        saving.save(made, tmp_path, "base")
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_families_that_talk_get_a_peft_folder(bases: Any, tmp_path: Path) -> None:
    folder = bases("internlm2")
    made = attached(folder)
    saving.check(made)
    train(made)
    path = saving.save(SimpleNamespace(net=made), tmp_path / "a", folder, Details(more={"codec": '{"template": "x"}'}))
    assert path == tmp_path / "a" / files.WEIGHTS
    assert files.read_header(tmp_path / "a")["codec"] == '{"template": "x"}'
    made = attached(folder, kind="loha", targets=["model.language_model.layers.0.self_attn.q_proj"])
    with pytest.raises(ValueError, match="holds LoRA and the net has LoHa"):
        saving.check(made)


# ---------------------------------------------------------------------------------------------------- opening


def test_open_family_opens_a_lora_folder_onto_its_base(base: Path, opened: list[Any], tmp_path: Path) -> None:
    made = trained("sdxl")
    saving.save(made, tmp_path / "out", base, Details(more={"codec": json.dumps({"resolution": 64})}))
    for path in (tmp_path / "out", tmp_path / "out" / reading.WEIGHTS):
        family: Any = opening.open_family(path, "cpu")
        assert torch.allclose(answer(family.net), answer(made), rtol=0, atol=1e-5)
    assert opened == [(base, {"resolution": 64})] * 2


def test_the_base_is_looked_for_and_compared(
    base: Path, opened: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saving.save(trained("sdxl"), tmp_path / "out", base)
    with caplog.at_level(logging.WARNING, "anymix"):
        opening.open_family(path, "cpu")
        assert not caplog.messages
        save_file({"weight": torch.zeros(3)}, base / "unet" / "model.safetensors")
        opening.open_family(path, "cpu")
    assert "trained on other weight files" in caplog.text
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"adapts .*base, which is gone; pass base="):
        opening.open_family(path, "cpu")
    opening.open_family(path, "cpu", base=moved)
    assert opened[-1][0] == moved
    tensors = load_file(path)
    save_file(tensors, path, {"ss_sd_model_name": "animefull.ckpt"})
    with pytest.raises(
        ValueError, match="does not say which model it adapts but for the name animefull.ckpt; pass base="
    ):
        opening.open_family(path, "cpu")


def test_checkpoints_of_a_run_open_like_any_lora(base: Path, opened: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = trained("sdxl")
    saving.save(made, out / "checkpoints" / "step-000100", base)
    (out / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not finished, its newest checkpoint is .*step-000100; open that"):
        opening.open_family(out, "cpu")
    opening.open_family(out / "checkpoints" / "step-000100", "cpu")
    saving.save(made, out, base)
    opening.open_family(out, "cpu")
    (tmp_path / "full").mkdir()
    for name in ("run.json", "model_index.json"):
        (tmp_path / "full" / name).write_text("{}")
    opening.open_family(tmp_path / "full", "cpu")  # a run that trained all weights: a pipeline
    assert [call[0] for call in opened][-1] == tmp_path / "full"


def test_an_untrained_lora_is_an_error(base: Path, opened: list[Any], tmp_path: Path) -> None:
    for dora in (False, True):
        made = net("sdxl")
        lora.attach(made, Adapter(rank=2, targets=ATTENTION["sdxl"], dora=dora), {})
        saving.save(made, tmp_path / "out", base)
        with pytest.raises(ValueError, match="changes nothing"):
            opening.open_family(tmp_path / "out", "cpu")
    made.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.lora_magnitude_vector[
        "default"
    ].weight.data.mul_(1.1)
    saving.save(made, tmp_path / "out", base)  # of a DoRA the lengths alone may have trained
    opening.open_family(tmp_path / "out", "cpu")
