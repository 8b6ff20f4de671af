"""Checks as a run has them: what they say of a net that learns, that they leave the run alone, and outlive a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anymix
from anymix.adapters import lora
from anymix.adapters.switch import only_adapters_train, switched_off
from anymix.config import Adapter
from anymix.device import pick
from anymix.evaluate import drawn, during
from anymix.evaluate.drift import drift
from anymix.evaluate.grid import ROWS, TIMES, grid_loss
from anymix.evaluate.looking import Setting, looking
from anymix.evaluate.previews import judged
from anymix.families.contract import ImageFamily
from anymix.train import checkpoint, prepare
from anymix.train.beats import counting
from anymix.train.checks import Checked, spaced
from anymix.train.metrics import Picture
from evaluate.painting import OBJECTIVE, Look, Painted, Painting, installed, paint, painted

Heard = list[str]


@pytest.fixture
def rows(tmp_path: Path) -> Painted:
    return painted(tmp_path / "pictures", 4)


@pytest.fixture
def setting(rows: Painted) -> Setting:
    return setting_of(rows, [])


def setting_of(rows: Painted, heard: Heard) -> Setting:
    return Setting(pick("cpu"), torch.float32, rows, None, Look(64), 100, heard.append)


def learn(family: Painting, rows: Painted, steps: int = 80) -> None:
    """Plain descent on all rows at all times; places of dropout and noise as the loop draws them."""
    family.net.train()
    trained = [p for p in family.net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    torch.manual_seed(1)
    for step in range(steps):
        batch = family.codec.collate([family.codec.encode(row, 1000 * step + n) for n, row in enumerate(rows)])
        optimizer.zero_grad()
        (family.loss(batch) / batch.weight).backward()
        optimizer.step()


@pytest.fixture
def family(tmp_path: Path) -> Painting:
    made = Painting(tmp_path)
    assert isinstance(made, ImageFamily)
    made.net.train()
    return made


# ------------------------------------------------------------------------------------------------- grid


def test_a_net_that_learns_gains_on_the_grid_and_the_start_stays(
    family: Painting, rows: Painted, setting: Setting, tmp_path: Path
) -> None:
    check = grid_loss(setting)
    before = check(family, tmp_path, 0).values
    start = (tmp_path / "grid_base.json").read_text()
    assert before["grid_gain"] == 0 == before["grid_gain_se"]
    learn(family, rows)
    after = check(family, tmp_path, 80).values
    assert after["grid"] < 0.8 * before["grid"]
    assert after["grid_gain"] == pytest.approx(before["grid"] - after["grid"])
    assert after["grid_gain"] > 4 * after["grid_gain_se"] > 0
    assert (tmp_path / "grid_base.json").read_text() == start
    assert [name for name in after if name.startswith("grid/")] == [f"grid/{time:.2f}" for time in TIMES]
    assert set(after) == {*before}


def test_the_grid_is_the_plain_error_at_each_time(family: Painting, rows: Painted, setting: Setting,
                                                  tmp_path: Path) -> None:  # fmt: skip
    """A net that says nothing is wrong by the noise itself: mean square 1 at every time, whatever the weighting."""
    for parameter in family.net.parameters():
        torch.nn.init.zeros_(parameter)
    values = grid_loss(setting)(family, tmp_path, 0).values
    assert all(values[f"grid/{time:.2f}"] == pytest.approx(1.0, abs=0.15) for time in TIMES)
    weighted = Painting(tmp_path)
    weighted.net = family.net
    weighted.objective = OBJECTIVE.__class__(OBJECTIVE.alphas_cumprod, snr_gamma=5.0)
    assert grid_loss(setting)(weighted, tmp_path / "other", 0).values == values


def test_the_standard_error_is_that_of_the_pairs(family: Painting, rows: Painted, setting: Setting,
                                                 tmp_path: Path) -> None:  # fmt: skip
    check = grid_loss(setting)
    check(family, tmp_path, 0)
    path = tmp_path / "grid_base.json"
    kept = json.loads(path.read_text())
    gains = dict(zip(kept["rows"], (0.1, 0.2, 0.3, 0.4), strict=True))
    kept["rows"] = {key: [value + gains[key] for value in errors] for key, errors in kept["rows"].items()}
    path.write_text(json.dumps(kept))
    values = check(family, tmp_path, 1).values
    assert values["grid_gain"] == pytest.approx(0.25)
    assert values["grid_gain_se"] == pytest.approx(math.sqrt(0.05 / 3) / 2)  # std of .1 .2 .3 .4, over root 4


def test_a_resume_keeps_the_start_and_a_lost_one_is_said_once(family: Painting, rows: Painted, tmp_path: Path) -> None:
    heard: Heard = []
    first = grid_loss(setting_of(rows, heard))(family, tmp_path, 0).values
    learn(family, rows, 20)
    again = grid_loss(setting_of(rows, heard))(family, tmp_path, 20).values  # another process
    assert again["grid_gain"] == pytest.approx(first["grid"] - again["grid"]) and not heard
    (tmp_path / "grid_base.json").unlink()
    check = grid_loss(setting_of(rows, heard))
    lost = [check(family, tmp_path, step).values for step in (40, 60)]
    assert all("grid" in values and "grid_gain" not in values for values in lost)
    assert len(heard) == 1 and "has no start to compare with" in heard[0]
    assert not (tmp_path / "grid_base.json").exists()


def test_a_start_left_by_a_run_before_is_not_taken_for_this_ones(
    family: Painting, rows: Painted, tmp_path: Path
) -> None:
    """A run that was cut off before its first save leaves its start behind, of a model that may be another."""
    for make in (grid_loss, drift):
        make(setting_of(rows, []))(family, tmp_path, 0)
    learn(family, rows, 20)
    anew = {}
    for make in (grid_loss, drift):
        anew |= make(setting_of(rows, []))(family, tmp_path, 0).values
    assert anew["grid_gain"] == anew["drift"] == anew["drift_weights"] == 0


def test_other_rows_have_no_start_in_common(family: Painting, rows: Painted, tmp_path: Path) -> None:
    grid_loss(setting_of(rows, []))(family, tmp_path, 0)
    heard: Heard = []
    fewer = Painted(rows[:3])
    assert "grid_gain" not in grid_loss(setting_of(fewer, heard))(family, tmp_path, 5).values and heard


def test_held_out_rows_are_what_the_grid_is_of(family: Painting, rows: Painted, tmp_path: Path) -> None:
    held = Painted(rows[2:])
    setting = Setting(pick("cpu"), torch.float32, rows, held, Look(64), 100, print)
    grid_loss(setting)(family, tmp_path, 0)
    assert set(json.loads((tmp_path / "grid_base.json").read_text())["rows"]) == {"rows:2", "rows:3"}


def test_pictures_and_words_are_encoded_once_a_run_and_forwards_are_bounded(family: Painting, tmp_path: Path) -> None:
    rows = painted(tmp_path / "many", 40)
    check = grid_loss(setting_of(rows, []))
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    family.net["unet"].register_forward_hook(count)
    for step in (0, 1, 2):
        check(family, tmp_path, step)
    assert family.encoded == family.embedded == ROWS
    assert calls == (3 + 1) * ROWS * len(TIMES)


def test_an_infinite_loss_is_said_and_not_logged(family: Painting, rows: Painted, tmp_path: Path) -> None:
    heard: Heard = []
    check = grid_loss(setting_of(rows, heard))
    check(family, tmp_path, 0)
    with torch.no_grad():
        family.net["unet"].last.bias[0] = math.nan
    assert check(family, tmp_path, 9).values == {}
    assert heard[0].startswith("step 9: grid/0.05 and 12 more came out nan")


# ------------------------------------------------------------------------------------------- adapters


def adapted(tmp_path: Path, **more: Any) -> Painting:
    made = Painting(tmp_path)
    lora.attach(made.net, Adapter(rank=2, **more), made.lora_targets)
    made.net.train()
    return made


@pytest.mark.parametrize("dora", [False, True])
def test_a_lora_is_measured_against_the_model_under_it_even_when_it_begins_in_the_middle(
    rows: Painted, tmp_path: Path, dora: bool
) -> None:
    plain = grid_loss(setting_of(rows, []))(Painting(tmp_path), tmp_path / "plain", 0).values["grid"]
    family = adapted(tmp_path, dora=dora)
    checks = [grid_loss(setting_of(rows, [])), drift(setting_of(rows, []))]
    start = {name: value for check in checks for name, value in check(family, tmp_path, 0).values.items()}
    assert start["grid_gain"] == pytest.approx(0, abs=1e-6) and start["drift"] == pytest.approx(0, abs=1e-6)
    assert start["drift_weights"] == pytest.approx(0, abs=1e-6)
    learn(family, rows, 40)
    late = {name: value for check in checks for name, value in check(family, tmp_path, 40).values.items()}
    assert late["grid_gain"] > 0.1 and late["drift"] > 0.05
    for check in (grid_loss, drift):  # switched on at step 40: nothing is kept, and nothing need be
        found = check(setting_of(rows, []))(family, tmp_path / "new", 40).values
        assert found == pytest.approx({name: late[name] for name in found}, rel=1e-6)
    assert late["grid"] + late["grid_gain"] == pytest.approx(plain)


@pytest.mark.parametrize("more", [{}, {"dora": True}])
def test_the_change_of_adapted_weights_is_that_of_merging_them(rows: Painted, tmp_path: Path, more: Any) -> None:
    family = adapted(tmp_path, **more)
    before = Painting(tmp_path).net.state_dict()
    learn(family, rows, 20)
    check = drift(setting_of(rows, []))
    found = check(family, tmp_path, 20).values["drift_weights/unet"]
    lora.merge(family.net)
    after = family.net.state_dict()
    names = [name for name in after if name.endswith("weight")]
    apart = sum(float((after[name] - before[name]).square().sum()) for name in names)
    whole = sum(float(before[name].square().sum()) for name in names)
    assert found == pytest.approx(math.sqrt(apart / whole), rel=1e-4)


def test_switching_off_gives_the_model_under_the_adapter_and_changes_nothing_else(
    rows: Painted, tmp_path: Path
) -> None:
    family = adapted(tmp_path)
    batch = family.codec.collate([family.codec.encode(rows[0], 1)])
    with looking(family, pick("cpu"), torch.float32):
        plain = float(family.loss(batch))
    learn(family, rows, 20)
    trains = {name for name, p in family.net.named_parameters() if p.requires_grad}
    assert only_adapters_train(family.net)
    with looking(family, pick("cpu"), torch.float32):
        with switched_off(family.net):
            assert float(family.loss(batch)) == plain
        assert float(family.loss(batch)) != plain
    assert {name for name, p in family.net.named_parameters() if p.requires_grad} == trains
    family.net["unet"].last.base_layer.bias.requires_grad_(True)
    assert not only_adapters_train(family.net) and not only_adapters_train(Painting(tmp_path).net)


# ---------------------------------------------------------------------------------------------- drift


def test_drift_is_0_at_the_start_and_grows_also_after_a_resume(family: Painting, rows: Painted, tmp_path: Path) -> None:
    heard: Heard = []
    start = drift(setting_of(rows, heard), ["a photo of a dog"])(family, tmp_path, 0).values
    assert set(start.values()) == {0.0} and set(start) == {"drift", "drift_weights", "drift_weights/unet"}
    learn(family, rows, 20)
    later = drift(setting_of(rows, heard), ["a photo of a dog"])(family, tmp_path, 20).values
    assert later["drift"] > 0.05 and later["drift_weights"] > 0.01 and not heard
    other = drift(setting_of(rows, heard), ["a photo of a cat"])(family, tmp_path, 20).values
    assert other == {} and "drift has no start to be measured from" in heard[0]


def test_drift_of_predictions_by_hand(family: Painting, rows: Painted, tmp_path: Path) -> None:
    """Twice the last layer says twice as much: |2p - p| / |p| = 1; all weights doubled: the same of the weights."""
    check = drift(setting_of(rows, []))
    check(family, tmp_path, 0)
    with torch.no_grad():
        family.net["unet"].last.weight.mul_(2)
        family.net["unet"].last.bias.mul_(2)
    found = check(family, tmp_path, 1).values
    assert found["drift"] == pytest.approx(1.0, abs=1e-5) and 0 < found["drift_weights"] < 1
    with torch.no_grad():
        for name in ("first", "second"):
            for parameter in family.net["unet"].get_submodule(name).parameters():
                parameter.mul_(2)
    assert check(family, tmp_path, 2).values["drift_weights"] == pytest.approx(1.0, abs=1e-5)


def test_the_norm_of_a_large_tensor_follows_from_its_sample(family: Painting, rows: Painted, tmp_path: Path) -> None:
    big = torch.nn.Linear(1500, 700, bias=False)
    family.net["unet"].extra = big
    check = drift(setting_of(rows, []))
    check(family, tmp_path, 0)
    before = {name: p.detach().clone() for name, p in family.net.named_parameters()}
    with torch.no_grad():
        big.weight += 0.1 * torch.randn(700, 1500, generator=torch.Generator().manual_seed(3)) * big.weight.std()
    apart = float((big.weight - before["unet.extra.weight"]).detach().norm())
    whole = math.sqrt(sum(float(p.square().sum()) for p in before.values()))
    assert check(family, tmp_path, 1).values["drift_weights"] == pytest.approx(apart / whole, rel=0.03)
    assert (tmp_path / "drift_base.safetensors").stat().st_size < 200_000  # of a tensor of 4 MB


# ------------------------------------------------------------------------------------- left as found


def test_modes_places_and_generators_are_left_as_found(family: Painting, rows: Painted, tmp_path: Path) -> None:
    family.net["unet"].second.eval()  # frozen in a mode of its own
    family.frozen["text_encoder"].train()
    modules = [m for part in (family.net, *family.frozen.values()) for m in part.modules()]
    modes, state = [m.training for m in modules], torch.get_rng_state()
    numpy = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    grads = [p.requires_grad for p in family.net.parameters()]
    for check in (grid_loss(setting_of(rows, [])), drift(setting_of(rows, []))):
        check(family, tmp_path, 0)
    assert [m.training for m in modules] == modes and torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy  # type: ignore[union-attr]
    assert [p.requires_grad for p in family.net.parameters()] == grads
    assert all(p.grad is None for p in family.net.parameters())


def test_parts_that_were_away_go_back(family: Painting) -> None:
    family.frozen["text_encoder"].to("meta")
    with looking(family, pick("cpu"), torch.float32):
        family.frozen["text_encoder"] = family.frozen["text_encoder"].to_empty(device="cpu")
    assert family.frozen["text_encoder"].weight.device.type == "meta"


def test_it_computes_in_the_type_the_run_does(family: Painting, rows: Painted, tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()
    family.net["unet"].first.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    setting = Setting(pick("cpu"), torch.bfloat16, rows, None, Look(64), 100, print)
    values = grid_loss(setting)(family, tmp_path, 0).values
    assert seen == {torch.bfloat16} and all(math.isfinite(value) for value in values.values())


# ------------------------------------------------------------------------------------------- previews


def shows(folder: Path, images: dict[str, tuple[Image.Image, str]]) -> Callable[..., Checked]:
    """A check that draws these."""

    def check(family: Any, out: Path, step: int) -> Checked:
        folder.mkdir(parents=True, exist_ok=True)
        shown = {}
        for name, (image, caption) in images.items():
            image.save(folder / f"{name}.png")
            shown[f"previews/{name}"] = Picture(folder / f"{name}.png", caption)
        return Checked({"seconds": 1.5}, shown)

    return check


def test_previews_are_judged_and_what_is_broken_or_copied_is_said(
    family: Painting, rows: Painted, tmp_path: Path
) -> None:
    heard: Heard = []
    black, grey = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), "gray")
    images = {"0": (paint(2), "a"), "1": (paint(100), "b"), "2": (paint(101), "b"), "3": (black, "b"), "4": (grey, "c")}
    found = judged(shows(tmp_path / "p", images), setting_of(rows, heard))(family, tmp_path, 7)
    assert found.values["previews/broken"] == 2 and found.values["seconds"] == 1.5
    assert found.values["previews/copies"] == pytest.approx(1 / 3)
    assert found.values["previews/nearest"] == 0.0
    assert found.values["previews/diversity"] > 0.1
    assert set(found.pictures) == {f"previews/{n}" for n in range(5)}
    assert [line.split(" is ")[1].split(" (")[0] for line in heard] == ["black", "of one colour", "a copy of rows:2"]
    assert all(math.isfinite(value) for value in found.values.values())


def test_previews_that_are_all_black_leave_finite_numbers(family: Painting, rows: Painted, tmp_path: Path) -> None:
    heard: Heard = []
    images = {str(n): (Image.new("RGB", (64, 64)), "a") for n in range(2)}
    found = judged(shows(tmp_path / "p", images), setting_of(rows, heard))(family, tmp_path, 7)
    assert found.values == {"seconds": 1.5, "previews/broken": 2.0} and len(heard) == 2


def test_a_copy_of_what_was_cropped_in_training_is_one_of_the_crop(family: Painting, tmp_path: Path) -> None:
    """A wide picture is trained on as the square in its middle: that is what a net remembers, mirrored or not."""
    rows = painted(tmp_path / "pictures", 1)
    wide = paint(5, (160, 64))
    wide.save(rows[0].image.path)
    middle = wide.crop((48, 0, 112, 64)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    setting = Setting(pick("cpu"), torch.float32, rows, None, Look(64, buckets=False), 100, print)
    found = judged(shows(tmp_path / "p", {"0": (middle, "a")}), setting)(family, tmp_path, 1)
    assert found.values["previews/copies"] == 1.0


def test_a_training_picture_that_went_away_is_a_sentence(family: Painting, rows: Painted, tmp_path: Path) -> None:
    heard: Heard = []
    check = judged(shows(tmp_path / "p", {"0": (paint(2), "a")}), setting_of(rows, heard))
    Path(rows[1].image.path).unlink()
    found = [check(family, tmp_path, step).values for step in (1, 2)]
    assert all("previews/copies" not in values and "previews/sharpness" in values for values in found)
    assert len(heard) == 1 and heard[0].startswith("copies of training pictures are not looked for: rows:1")


# ------------------------------------------------------------------------------------------ in the loop


def run_of(tmp_path: Path, *overrides: str, **sections: Any) -> anymix.Run:
    tree = {
        "model": {"path": str(tmp_path / "model")},
        "data": {"path": str(tmp_path / "pictures"), "workers": 0, "resolution": 64},
        "cache": {"use": False},
        "train": {"out": str(tmp_path / "out"), "batch": 2, "steps": 6, "lr": 1e-2, "warmup": 0, "save_every": 2,
                  "checkpointing": {"denoiser": False}},
        "device": "cpu",
        **sections,
    }  # fmt: skip
    return anymix.load(tree, overrides)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "blobs", "seed": 1, "steps": 2}, {"prompt": "blobs", "seed": 2, "steps": 2},
             {"prompt": "blobs number 1", "steps": 2}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return f"previews.prompts={path}"


def journal(out: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def everything(ready: prepare.Prepared, say: Any) -> list[Any]:
    return during.checks(ready, say, drawn.checks(ready, say))


def losses(out: Path | str) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in journal(out) if "loss" in line]


@pytest.mark.parametrize("adapter", [None, {"rank": 2, "dropout": 0.3}])
def test_training_is_the_same_to_the_last_bit_with_checks_and_without(
    rows: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: str, adapter: Any
) -> None:
    installed(monkeypatch, tmp_path / "model")
    more = {"adapter": adapter} if adapter else {}
    heard: Heard = []
    plain, looked = (
        run_of(tmp_path, f"train.out={tmp_path / name}", "train.ema=0.9", prompts, **more) for name in "ab"
    )
    anymix.train(plain, say=heard.append)
    anymix.train(looked, say=heard.append, checks=everything)
    assert losses(plain.train.out) == losses(looked.train.out)
    at = [checkpoint.steps(Path(run.train.out))[-1] / "trained.safetensors" for run in (plain, looked)]
    assert at[0].read_bytes() == at[1].read_bytes()
    lines = journal(looked.train.out)
    assert [line["step"] for line in lines if "grid" in line] == [0, 2, 4, 6]
    assert [line["step"] for line in lines if "pictures" in line] == [0, 2, 4, 6]
    assert [line["drift"] for line in lines if "drift" in line][0] == 0.0
    assert [line["previews/broken"] for line in lines if "previews/broken" in line] == [0.0] * 4
    assert all(line["previews/diversity"] > 0 for line in lines if "previews/broken" in line)
    assert not any("failed" in line for line in heard), heard
    page = (Path(looked.train.out) / "report.html").read_text()
    assert "Loss by time, on noise that never changes" in page and "data:image/" in page


def test_a_run_that_goes_on_is_measured_from_its_first_start(
    rows: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path / "model")
    whole = run_of(tmp_path, f"train.out={tmp_path / 'whole'}", "train.schedule=constant")
    anymix.train(whole, say=str, checks=everything)
    for steps in (2, 6):
        cut = run_of(tmp_path, f"train.out={tmp_path / 'cut'}", f"train.steps={steps}", "train.schedule=constant")
        anymix.train(cut, say=str, checks=everything)
    one, two = ([line for line in journal(run.train.out) if "grid" in line] for run in (whole, cut))
    assert one == two and one[-1]["grid_gain"] != 0
    assert losses(whole.train.out) == losses(cut.train.out)


def test_checks_can_be_switched_off_and_previews_stay(
    rows: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: str
) -> None:
    installed(monkeypatch, tmp_path / "model")
    run = run_of(tmp_path, "previews.checks=false", "previews.every=4", prompts)
    anymix.train(run, say=str, checks=everything)
    lines = journal(run.train.out)
    assert not [line for line in lines if "grid" in line or "drift" in line or "previews/copies" in line]
    assert [line["step"] for line in lines if "pictures" in line] == [0, 4, 6]


def test_previews_that_come_out_nan_are_said_and_training_goes_on(
    rows: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: str
) -> None:
    """A VAE that overflows: every picture is broken from the start, the weights are not."""
    installed(monkeypatch, tmp_path / "model")
    monkeypatch.setattr(Painting, "decode", lambda self, latents: torch.full((len(latents), 3, 64, 64), math.nan))
    heard: Heard = []
    outcome = anymix.train(run_of(tmp_path, prompts), say=heard.append, checks=everything)
    assert (outcome.status, outcome.step) == ("finished", 6)
    said = [line for line in heard if "the previews were not drawn" in line]
    assert len(said) == 4 and said[0].startswith("step 0: ")
    assert [line["previews/failed"] for line in journal(outcome.out) if "previews/failed" in line] == [1.0] * 4
    assert len([line for line in journal(outcome.out) if "grid" in line]) == 4


def test_a_check_that_breaks_is_said_and_leaves_modes_and_weights(
    rows: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = installed(monkeypatch, tmp_path / "model")
    plain, broken = (run_of(tmp_path, f"train.out={tmp_path / name}") for name in "ab")
    anymix.train(plain, say=str)
    monkeypatch.setattr(Painting, "predict", _breaks_outside_training(Painting.predict))
    heard: Heard = []
    outcome = anymix.train(broken, say=heard.append, checks=everything)
    assert outcome.status == "finished" and opened[1].net.training
    assert [line for line in heard if "a check of the run failed (out of memory); training goes on" in line]
    assert losses(plain.train.out) == losses(broken.train.out)


def _breaks_outside_training(predict: Any) -> Any:
    def broken(self: Painting, *inputs: Any) -> Any:
        if not self.net.training:
            raise RuntimeError("out of memory")
        return predict(self, *inputs)

    return broken


def test_a_prompt_file_that_cannot_be_read_stops_the_run_before_step_1(
    rows: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path / "model")
    with pytest.raises(ValueError, match="the prompt file nowhere.txt cannot be read"):
        anymix.train(run_of(tmp_path, "previews.prompts=nowhere.txt"), say=str, checks=everything)


def test_a_family_that_does_not_draw_is_left_alone() -> None:
    class Ready:
        run, family, steps = anymix.load({}), object(), 3

    assert during.checks(Ready(), str) == []  # type: ignore[arg-type]


def test_a_spaced_check_is_due_once_in_every_so_many_steps() -> None:
    def called(steps: list[int], every: int | str | None, last: int = 1000) -> list[int]:
        seen: list[int] = []

        def check(family: Any, out: Path, step: int) -> Checked:
            seen.append(step)
            return Checked()

        due = spaced(check, every and counting(every, 5, 1), last)
        for step in steps:
            due(None, Path(), step)  # type: ignore[arg-type]
        return seen

    assert called([0, 100, 200, 300, 400], 200) == [0, 200, 400]
    assert called([0, 100, 200, 300, 400], 150) == [0, 200, 300]
    assert called([0, 500, 1000], 200) == [0, 500, 1000]
    assert called([300, 400, 450], 200) == [400]  # after a resume
    assert called([0, 90, 95], 200, last=95) == [0, 95]
    assert called([0, 1, 2], None) == [0, 1, 2]
    assert called([0, 5, 9, 10, 20], "2 epochs") == [0, 10, 20]


def test_the_setting_is_that_of_the_run(rows: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, tmp_path / "model")
    run = run_of(tmp_path, "data.resolution=128", "model.dtype=bf16")
    ready = prepare.prepare(run, pick("cpu"), prepare.ranks.Ranks(), str)
    ready.run = run_of(tmp_path, "data.resolution=128", dreambooth={"class_prompt": "a photo of a dog"})
    setting = during.setting_of(ready, str)
    assert (setting.dtype, setting.look.resolution, setting.steps) == (torch.bfloat16, 128, 6)
    found = during.checks(ready, str)
    assert len(found) == 2
    found[1](ready.family, tmp_path, 0)
    assert "a photo of a dog" in (tmp_path / "drift_base.safetensors").read_bytes().decode("latin-1")
