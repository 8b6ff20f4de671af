"""The loop on models that draw: what peers' scripts get wrong, each as a test on tiny models of the real classes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import anymix
from anymix.families.sdxl.family import StableDiffusionXL as SDXL
from anymix.train import checkpoint, optim
from anymix.train.checks import Checked
from anymix.train.dry_run import forecast
from anymix.train.ema import Ema
from anymix.train.prepare import prepare
from sketches import pictures_opened

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion"
LINE = "import sys, anymix; anymix.train(anymix.load(sys.argv[1], sys.argv[2:]), say=lambda _: None)"
DESCENT = ("train.optimizer=sgd", "train.lr=0.1", "train.clip=0")
SIZES = ((32, 32), (48, 32), (64, 32), (32, 48), (40, 40), (32, 64), (36, 32), (64, 40))
Draw = Callable[..., anymix.Run]


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of several shapes, each with a caption of its own."""
    folder = tmp_path_factory.mktemp("album")
    lines = []
    for number, size in enumerate(SIZES):
        shades = torch.randint(0, 256, (3,), generator=torch.Generator().manual_seed(number)).tolist()
        picture = Image.new("RGB", size, tuple(shades))
        picture.paste((255 - shades[0], shades[1], 40), (number, 2, number + 12, 20))
        picture.save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"picture number {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def draw(album: Path, tmp_path: Path) -> Draw:
    """A run of a tiny SDXL with `key=value` overrides: four pictures a step, two steps, all that is random on."""

    def make(*overrides: str, **sections: Any) -> anymix.Run:
        tree: dict[str, Any] = {
            "model": {"path": str(GOLDEN / "sdxl-tiny")},
            "data": {"path": str(album), "workers": 0, "resolution": 32, "bucket_step": 8, "crop": "random",
                     "flip": True, "caption_dropout": 0.3},
            "cache": {"path": str(tmp_path / "cache")},
            "train": {"out": str(tmp_path / "out"), "batch": 2, "accumulate": 2, "steps": 2, "lr": 1e-3, "warmup": 0},
            "device": "cpu",
            **sections,
        }  # fmt: skip
        return anymix.load(tree, overrides)

    return make


def train(run: anymix.Run, said: list[str] | None = None, **options: Any) -> Any:
    return anymix.train(run, say=(said if said is not None else []).append, **options)


def journal(out: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def losses(run: anymix.Run) -> list[float]:
    return [line["loss"] for line in journal(run.train.out) if "loss" in line]


def weights(run: anymix.Run) -> dict[str, Tensor]:
    return load_file(checkpoint.steps(Path(run.train.out))[-1] / "trained.safetensors")


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def near(one: list[float], other: list[float], to: float = 1e-6) -> bool:
    return len(one) == len(other) and all(abs(a - b) <= to * max(1.0, abs(a)) for a, b in zip(one, other, strict=True))


def test_the_split_of_a_step_does_not_matter(draw: Draw, tmp_path: Path) -> None:
    """1x4 = 4x1, with pictures of several shapes in one step and everything random switched on. (By plain descent:
    Adam makes steps of full size of gradients that are nothing but rounding, such as those of biases before a norm.)"""
    one, four = (
        draw(f"train.batch={b}", f"train.accumulate={4 // b}", f"train.out={tmp_path / str(b)}", *DESCENT)
        for b in (1, 4)
    )
    train(one)
    train(four)
    assert near(losses(one), losses(four))
    assert apart(weights(one), weights(four)) < 5e-6


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_are_one_process(draw: Draw, tmp_path: Path) -> None:
    one = draw(f"train.out={tmp_path / 'one'}", *DESCENT)
    train(one)
    recipe, script = tmp_path / "run.json", tmp_path / "go.py"
    recipe.write_text(json.dumps(one.model_dump(mode="json")))
    script.write_text(LINE)
    words = [str(recipe), f"train.out={tmp_path / 'two'}", "train.batch=1", f"cache.path={tmp_path / 'cold'}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*command, *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    two = anymix.load(one.model_dump(), [f"train.out={tmp_path / 'two'}"])
    assert near(losses(one), losses(two))
    assert apart(weights(one), weights(two)) < 5e-6


class _Cut(Exception):
    pass


@pytest.mark.parametrize("adapter", [None, {"rank": 2}])
def test_resume_is_bitwise_with_a_mean(draw: Draw, tmp_path: Path, adapter: Any) -> None:
    more = {"adapter": adapter} if adapter else {}
    options = ("train.steps=3", "train.save_every=1", "train.ema=0.9", "train.accumulate=1")
    whole, cut = (draw(*options, f"train.out={tmp_path / name}", **more) for name in ("whole", "cut"))
    train(whole)

    def show(step: int, steps: int, values: Mapping[str, float]) -> None:
        if step == 2:
            raise _Cut

    with pytest.raises(_Cut):
        train(cut, show=show)
    shutil.rmtree(tmp_path / "cache")  # `anymix cache clear` in between: all is made anew, and is the same
    train(cut)
    assert losses(whole) == losses(cut)
    assert apart(weights(whole), weights(cut)) == 0
    means = [checkpoint.load(checkpoint.steps(Path(run.train.out))[-1]).mean for run in (whole, cut)]
    assert means[0] is not None and means[1] is not None and apart(means[0], means[1]) == 0


def test_kept_and_made_each_time_are_the_same(draw: Draw, tmp_path: Path) -> None:
    kept = draw(*DESCENT, f"train.out={tmp_path / 'kept'}")
    made = draw(*DESCENT, "cache.use=false", f"train.out={tmp_path / 'made'}")
    train(kept)
    train(made)
    assert near(losses(kept), losses(made))
    assert apart(weights(kept), weights(made)) < 5e-6


def test_a_warm_cache_opens_no_picture_and_runs_no_encoder(draw: Draw, tmp_path: Path, monkeypatch: Any) -> None:
    train(draw(f"train.out={tmp_path / 'first'}"))
    calls: list[str] = []
    for name in ("encode", "embed"):
        monkeypatch.setattr(SDXL, name, lambda *a, name=name, **k: calls.append(name))
    with pictures_opened() as opened:

        def say(line: str) -> None:
            if "rows to train on" in line:  # headers are looked at before a run, and training begins here
                opened.clear()

        anymix.train(draw(f"train.out={tmp_path / 'second'}", "train.steps=4", "train.seed=5"), say=say)
    assert calls == [] and opened == []


def test_one_changed_caption_is_one_text_encoded(draw: Draw, album: Path, tmp_path: Path, monkeypatch: Any) -> None:
    copy = tmp_path / "album"
    copy.mkdir()
    for path in album.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    train(draw(f"data.path={copy}"))
    lines = (copy / "metadata.jsonl").read_text()
    (copy / "metadata.jsonl").write_text(lines.replace("picture number 3", "another thing"))
    encoded: list[int] = []
    pixels: list[int] = []
    embed, encode = SDXL.embed, SDXL.encode

    def counted(self: Any, ids: Any) -> Any:
        encoded.append(len(next(iter(ids.values()))))
        return embed(self, ids)

    def seen(self: Any, batch: Any) -> Any:
        pixels.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(SDXL, "embed", counted)
    monkeypatch.setattr(SDXL, "encode", seen)
    train(draw(f"data.path={copy}", f"train.out={tmp_path / 'second'}"))
    assert sum(encoded) == 1 and not pixels


def test_a_rate_falls_by_updates_however_they_are_gathered(draw: Draw, tmp_path: Path) -> None:
    """Peers stretch the schedule by the accumulation and never reach its end."""
    rates = []
    for accumulate in (1, 2):
        run = draw("train.steps=4", "train.schedule=linear", "train.warmup=2", f"train.accumulate={accumulate}",
                   f"train.out={tmp_path / str(accumulate)}")  # fmt: skip
        train(run)
        rates.append([line["lr"] for line in journal(run.train.out) if "lr" in line])
    assert rates[0] == rates[1] == [5e-4, 1e-3, 1e-3, 5e-4]
    assert optim.factor(4, 4, run.train) == 0


def test_a_rate_that_never_arrives_is_said(draw: Draw) -> None:
    said: list[str] = []
    train(draw("train.warmup=10"), said)
    assert any("train.warmup is 10 steps" in line for line in said)


def _ready(run: anymix.Run) -> Any:
    from anymix.device import pick, ranks

    return prepare(run, pick("cpu"), ranks.Ranks(), lambda _: None)


def test_a_lora_is_fp32_under_bf16(draw: Draw) -> None:
    net = _ready(draw("model.dtype=bf16", adapter={"rank": 2})).family.net
    kinds = {"lora": set(), "base": set()}  # type: ignore[var-annotated]
    for name, parameter in net.named_parameters():
        kinds["lora" if "lora_" in name else "base"].add(parameter.dtype)
    assert kinds == {"lora": {torch.float32}, "base": {torch.bfloat16}}


def test_only_what_is_asked_for_trains(draw: Draw) -> None:
    ready = _ready(draw())
    assert {name.partition(".")[0] for name, p in ready.family.net.named_parameters() if p.requires_grad} == {"unet"}
    assert {"vae", "text_encoder", "text_encoder_2"} <= set(ready.family.frozen)


def test_text_encoders_train_where_they_are_asked_to(draw: Draw) -> None:
    run = draw("train.unfreeze=['text_encoder*']", "cache.use=true")
    train(run)
    assert any(name.startswith("text_encoder.") for name in weights(run))
    assert any(name.startswith("text_encoder_2.") for name in weights(run))


@pytest.mark.parametrize("parts", ["text_encoder.*", "text_encoder*"])
def test_text_encoders_train_in_half_precision(draw: Draw, parts: str) -> None:
    """The first encoder's last block, which nobody reads, gets fp32 from the blocks that train."""
    run = draw(f"train.unfreeze=['{parts}']", "model.dtype=bf16")
    train(run)
    assert all(torch.isfinite(value).all() for value in weights(run).values()) and len(losses(run)) == 2


def test_what_it_writes_diffusers_opens(draw: Draw) -> None:
    from diffusers import StableDiffusionXLPipeline

    run = draw("objective.prediction=v", "objective.zero_terminal_snr=true")
    train(run)
    pipeline = StableDiffusionXLPipeline.from_pretrained(run.train.out)
    trained = weights(run)
    own = pipeline.unet.state_dict()
    assert all(torch.equal(own[name.removeprefix("unet.")], value) for name, value in trained.items())
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("red", num_inference_steps=2, height=32, width=32).images[0].size == (32, 32)


def test_every_picture_is_trained_on_once_a_pass(draw: Draw) -> None:
    """Buckets of one picture are no reason to leave it out; no step mixes shapes it need not mix."""
    ready = _ready(draw("train.batch=2", "train.accumulate=1", "data.crop=center", "data.flip=false"))
    rows = [ready.order[place][0] for place in range(16)]
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(8))


def test_class_pictures_travel_with_the_subject(draw: Draw, album: Path, tmp_path: Path) -> None:
    """Prior preservation with four in a batch: peers broadcast or crash."""
    prior = {"class_prompt": "a thing", "class_path": str(album), "class_images": 8, "prior_weight": 0.5}
    run = draw("train.batch=4", "data.caption=a photo of sks thing", dreambooth=prior)
    train(run)
    alone = draw("train.batch=4", "data.caption=a photo of sks thing", f"train.out={tmp_path / 'alone'}")
    train(alone)
    assert losses(run)[0] > losses(alone)[0] * 1.2


def test_too_few_class_pictures_are_said(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 of the 100 class pictures"):
        train(draw(dreambooth={"class_prompt": "a thing", "class_path": str(tmp_path / "none")}))


@pytest.mark.parametrize("key", ["objective.density=mode", "objective.shift=1.0", "objective.precondition=true"])
def test_a_key_of_another_objective_is_refused(draw: Draw, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key.partition('=')[0]} is of rectified flow"):
        train(draw(key))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["objective.shift=1.0"], "objective.shift is of rectified flow"),
        (["data.resolution=100", "data.buckets=false"], "data.resolution = 100 is no multiple of .* 8; give 96"),
        (["data.bucket_step=3"], "data.bucket_step = 3 is no multiple"),
        (["adapter.targets=[unet.*.to_qq]"], r"adapter target unet\.\*\.to_qq matches no module"),
        (["train.lr_by={vae.*: 1}"], r"train.lr_by: vae\.\* matches no parameter"),
        (["train.optimizer_args={beta: 1}"], "correct train.optimizer_args"),
    ],
)
def test_what_a_model_cannot_do_is_told_before_anything_is_drawn_or_encoded(
    words: list[str], sentence: str, draw: Draw, monkeypatch: Any
) -> None:
    from anymix.train import pictures

    monkeypatch.setattr(pictures.encode, "fill", lambda *_: pytest.fail("it is late"))
    prior = {} if words[0].startswith("train") else {"dreambooth": {"class_prompt": "a thing"}}
    with pytest.raises(ValueError, match=sentence):
        train(draw(*words, **prior), draw_class=lambda *_: pytest.fail("it is late"))


def test_tags_are_shuffled_where_a_recipe_says_so(draw: Draw) -> None:
    ready = _ready(draw("data.shuffle_caption=true", "data.keep_tokens=1"))
    assert (ready.rows[0].shuffle, ready.rows[0].keep) == (True, 1)


def test_noise_is_not_predicted_where_there_is_nothing_else(draw: Draw) -> None:
    """epsilon with zero terminal SNR trains without a word and draws from a step that tells nothing."""
    with pytest.raises(ValueError, match="the last timestep is pure noise.*set objective.prediction=v"):
        train(draw("objective.zero_terminal_snr=true"))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[anymix.Run], Any]:
    """A dry run: -> (forecast, what was said, frames of each forward, pictures encoded); it may leave nothing."""

    def call(run: anymix.Run) -> Any:
        frames: list[int] = []
        encoded: list[int] = []
        loss, encode = SDXL.loss, SDXL.encode

        def counted(self: Any, batch: Any) -> Tensor:
            frames.append(sum(len(t) for name, t in batch.tensors.items() if name.endswith("/noise")))
            assert not any(name.endswith("/pixels") for name in batch.tensors)
            return loss(self, batch)

        def seen(self: Any, pixels: Tensor) -> Tensor:
            encoded.append(len(pixels))
            return encode(self, pixels)

        monkeypatch.setattr(SDXL, "loss", counted)
        monkeypatch.setattr(SDXL, "encode", seen)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        (tmp_path / "tmp").mkdir(exist_ok=True)
        before, said = files_in(tmp_path), []  # type: ignore[var-annotated]
        found = forecast(run, say=said.append)
        assert files_in(tmp_path) == before and not any((tmp_path / "tmp").iterdir())
        assert not (tmp_path / "cache").exists() and not Path(run.train.out).exists()
        return found, said, frames, sum(encoded)

    return call


def test_a_dry_run_fills_no_cache(draw: Draw, rehearsed: Any) -> None:
    """Eight pictures with eight views each; only the largest is encoded, and a step is what a step will be."""
    found, said, frames, encoded = rehearsed(draw())
    assert (found.longest_size, found.steps, frames) == (32 * 32, 2, [2, 2, 2, 2])
    assert 0 < encoded <= 8 and not any("cache" in line for line in said)
    assert any(line.startswith("times from picture to noise") for line in said)


def test_a_dry_run_holds_the_running_mean_too(draw: Draw, rehearsed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    means: list[int] = []
    monkeypatch.setattr(Ema, "update", lambda self, updates: means.append(sum(t.numel() for t in self.mean.values())))
    rehearsed(draw("train.ema=0.9"))
    assert len(means) == 2 and min(means) > 10_000


@pytest.mark.parametrize("there", [True, False])
def test_a_dry_run_counts_class_pictures_and_draws_none(
    draw: Draw, rehearsed: Any, album: Path, tmp_path: Path, there: bool
) -> None:
    where = album if there else tmp_path / "none"
    prior = {"class_prompt": "a thing", "class_path": str(where), "class_images": 8}
    _, said, frames, encoded = rehearsed(draw(dreambooth=prior))
    assert frames == [4, 4, 4, 4] and encoded <= 16
    assert any("stands in" in line for line in said) is not there


def test_what_a_mask_leaves_white_is_what_is_learned(draw: Draw, tmp_path: Path) -> None:
    """White everywhere is no mask at all; a corner alone has another error than the whole."""
    found = {}
    for name, shape in (("white", (0, 0, 32, 32)), ("corner", (0, 0, 8, 8))):
        folder = tmp_path / name
        (folder / "masks").mkdir(parents=True)
        picture, mask = Image.new("RGB", (32, 32), (200, 30, 30)), Image.new("L", (32, 32), 0)
        picture.paste((20, 90, 240), (16, 16, 32, 32))
        mask.paste(255, shape)
        picture.save(folder / "0.png")
        (folder / "0.txt").write_text("red")
        mask.save(folder / "masks" / "0.png")
        for masked in (True, False):
            run = draw(f"data.path={folder}", f"objective.masked={masked}", "train.batch=1", "train.accumulate=1",
                       f"train.out={tmp_path / f'{name}-{masked}'}")  # fmt: skip
            train(run)
            found[name, masked] = losses(run)
    assert found["white", True] == pytest.approx(found["white", False], rel=1e-6)
    assert abs(found["corner", True][0] / found["corner", False][0] - 1) > 1e-3


def saved_steps(run: anymix.Run) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint.steps(Path(run.train.out))]


def test_previews_come_when_asked_though_nothing_is_saved_then(draw: Draw) -> None:
    """Weights are saved first, and a step without a preview or a save is neither."""
    run, there = draw("train.steps=4", "train.save_every=4", "previews.every=2"), {}

    def check(family: Any, out: Path, step: int) -> Checked:
        there[step] = saved_steps(run)
        return Checked()

    train(run, checks=lambda ready, say: [check])
    assert there == {0: [], 2: [2], 4: [4]}


def test_what_is_saved_for_a_preview_pushes_out_nothing_that_was_asked_for(draw: Draw) -> None:
    """`keep` of `save_every` are kept, however often pictures are drawn in between."""
    run = draw("train.steps=5", "train.save_every=2", "train.keep=3", "previews.every=1", adapter={"rank": 2})
    train(run)
    assert saved_steps(run) == [2, 4, 5]
    assert all((path / "pytorch_lora_weights.safetensors").exists() for path in checkpoint.steps(Path(run.train.out)))


def test_previews_and_saves_by_passes(draw: Draw) -> None:
    """Eight pictures, two a step: a pass is four steps."""
    run, looked = draw("train.accumulate=1", "train.steps=9", "train.keep=9", "train.save_every=2 epochs",
                       "previews.every=1 epoch"), []  # fmt: skip

    def check(family: Any, out: Path, step: int) -> Checked:
        looked.append((step, saved_steps(run)))
        return Checked()

    train(run, checks=lambda ready, say: [check])
    assert looked == [(0, []), (4, [4]), (8, [8]), (9, [8, 9])]


def test_a_lora_says_how_it_was_made(draw: Draw, album: Path) -> None:
    """Of the step it was saved at, not of the whole run; words by folder."""
    from safetensors import safe_open

    run = draw("train.steps=3", "train.save_every=2", adapter={"rank": 2, "alpha": 3})
    train(run)
    headers = []
    for folder in checkpoint.steps(Path(run.train.out)):
        with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
            headers.append(dict(file.metadata()))
    assert [header["ss_steps"] for header in headers] == ["2", "3"]
    tags = json.loads(headers[1]["ss_tag_frequency"])
    assert tags == {album.name: {f"picture number {n}": 1 for n in range(8)}}
    assert (headers[1]["ss_network_dim"], headers[1]["ss_network_alpha"]) == ("2", "3")
