"""SD3 opened, told, trained and saved, against diffusers' own pipeline and by hand; with T5 and without."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor

from anymix.adapters import lora
from anymix.config import Adapter, Train
from anymix.data.views import Look
from anymix.device import grad_scaler, pick
from anymix.families import codec_of, open_folder
from anymix.families.common.pictures import Plan, clean, to_unit
from anymix.families.contract import Batch, ImageFamily
from anymix.families.sd3 import StableDiffusion3
from anymix.samples import Caption, ImageRef
from anymix.train import freezing, optim
from anymix.train.step import Step, Stepper
from families.tiny_pictures import GOLDEN, tiny_sd3, tiny_sdxl

LONG = "a small red circle above a large blue square on a field of green grass, " * 2
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}  # what diffusers wants to be told, whatever the index says
PROMPTS = ["a red circle", "", "two blue squares"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("sd3") / "tiny")


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as SD3.5-medium: dual attention in its first blocks, norms on queries and keys."""
    return tiny_sd3(tmp_path_factory.mktemp("sd35") / "tiny", dual_attention_layers=(0, 1), qk_norm="rms_norm")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("bare") / "tiny", t5=False)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> list[Caption]:
    """Four pictures of two shapes."""
    home = tmp_path_factory.mktemp("pictures")
    drawn = np.random.default_rng(0)
    found = []
    for number, size in enumerate([(32, 32), (48, 32), (40, 40), (32, 24)]):
        path = home / f"{number}.png"
        Image.fromarray(drawn.integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)
        found.append(Caption(ImageRef(str(path)), (f"thing {number}",), f"rows:{number}"))
    return found


def training(family: StableDiffusion3, edge: int = 32) -> StableDiffusion3:
    family.codec = family.codec.training(Plan(Look(edge, step=8), family.objective))
    return family


def exact(family: StableDiffusion3) -> StableDiffusion3:
    """In float64: what is rounding stands apart from what is not, whatever weights a release of transformers draws."""
    for part in (family.net, *family.frozen.values()):
        part.double()
    return family


def batches(family: StableDiffusion3, rows: list[Caption], size: int) -> list[Batch]:
    items = [family.codec.encode(row, seed) for seed, row in enumerate(rows)]
    return [family.codec.collate(items[i : i + size]) for i in range(0, len(items), size)]


def steps(family: StableDiffusion3, micro: list[Batch], count: int, lr: float = 1e-3) -> list[tuple[float, float]]:
    device = pick("cpu")
    optimizer = optim.build(family.net, Train(lr=lr), device)
    stepper = Stepper(Step(family), optimizer, grad_scaler(device, False), device, torch.float32, 1, 1.0)
    family.net.train()
    updates = [stepper.take(micro) for _ in range(count)]
    return [(update.loss, update.norm) for update in updates]


def weights(family: StableDiffusion3) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in family.net.named_parameters()}


# ------------------------------------------------------------------------------------------------ told


@pytest.mark.parametrize("which", ["folder", "bare"])
def test_condition_is_that_of_the_pipeline(
    which: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    path = request.getfixturevalue(which)
    pipeline = StableDiffusion3Pipeline.from_pretrained(path, **(NO_T5 if which == "bare" else {}))
    family = open_folder(path)
    assert isinstance(family, ImageFamily)
    said = [record.message for record in caplog.records if record.name.startswith("anymix")]
    assert (len(said) == 1 and "has no T5 (text_encoder_3): zeros stand in its place" in said[0]) == (which == "bare")
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    found = family.condition(PROMPTS, (32, 32))
    assert found["text"].shape == (3, 77 + 256, 48) and found["pooled"].shape == (3, 36)
    assert (found["text"] - text).abs().max() <= 1e-6 and (found["pooled"] - pooled).abs().max() <= 1e-6
    assert bool(found["text"][:, 77:].any()) == (which == "folder")
    assert (family.condition([None], (32, 32))["text"] - family.condition([""], (32, 32))["text"]).abs().max() == 0


def test_t5_reads_as_many_tokens_as_asked(folder: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    family = open_folder(folder, t5_tokens=77)
    with torch.no_grad():
        text, *_ = pipeline.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=77
        )
    assert (family.condition(PROMPTS, (32, 32))["text"] - text).abs().max() <= 1e-6
    assert family.codec.chosen() == {"t5_tokens": "77"}
    assert codec_of(folder, **family.codec.chosen()).words.t5_tokens == 77


def test_nothing_of_a_long_prompt_is_lost(folder: Path) -> None:
    """Chunks of 77 for the CLIPs, as many tokens as it takes for T5; the shorter prompt is filled up."""
    family = open_folder(folder, t5_tokens=77)
    ids = family.codec.words(LONG)
    chunks = len(ids["tokenizer"])
    assert chunks == len(ids["tokenizer_2"]) > 1 and len(ids["tokenizer_3"]) > 1
    plain = family.codec.words.tokenizers["tokenizer_3"].backend_tokenizer.encode(LONG).ids
    assert ids["tokenizer_3"].flatten().tolist()[: len(plain)] == plain
    both = family.condition(["a red circle", LONG], (32, 32))
    alone = family.condition([LONG], (32, 32))
    assert both["text"].shape == (2, 77 * (chunks + len(ids["tokenizer_3"])), 48)
    assert torch.allclose(both["text"][1:], alone["text"], atol=1e-5)
    cut = family.condition([LONG[: len(LONG) // 2]], (32, 32))
    assert both["text"].shape[1] > cut["text"].shape[1] or not torch.allclose(cut["text"], alone["text"], atol=1e-3)


@pytest.mark.parametrize("which", ["folder", "medium"])
def test_velocity_and_pixels_are_those_of_diffusers(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    pipeline, family = StableDiffusion3Pipeline.from_pretrained(path), open_folder(path)
    noisy, t = torch.randn(3, 16, 16, 16), torch.tensor([3.0, 500.25, 1000.0])
    told = family.condition(PROMPTS, (32, 32))
    with torch.no_grad():
        velocity = pipeline.transformer(noisy, told["text"], told["pooled"], t).sample
        found = family.predict(noisy, t, told)
        pixels = pipeline.vae.decode(noisy / 1.5305 + 0.0609).sample
        latents = pipeline.vae.encode(pixels.clamp(-1, 1)).latent_dist
    assert found.dtype == torch.float32 and torch.equal(found, velocity)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    assert torch.allclose(family.decode(noisy), pixels, atol=1e-5)
    assert torch.allclose(family.encode(pixels.clamp(-1, 1)), latents.parameters, atol=1e-5)
    assert (family.resolution, family.channels, family.scale, family.grain) == (32, 16, 2, 4)


def test_half_precision_stays_finite_and_keeps_times_and_t5(folder: Path) -> None:
    """In bf16 500.25 and 501 are one time; in fp16 T5's second layers overflow, so they stay as in the files."""
    for dtype in (torch.bfloat16, torch.float16):
        family = open_folder(folder, dtype=dtype)
        whole = open_folder(folder)
        told, exact = family.condition(PROMPTS, (32, 32)), whole.condition(PROMPTS, (32, 32))
        assert (told["text"] - exact["text"]).std() < 0.02 * exact["text"].std() and told["text"].isfinite().all()
        noisy = torch.randn(1, 16, 16, 16)
        one = type(told)({name: t[:1] for name, t in told.tensors.items()})
        near, far = (family.predict(noisy, torch.tensor([t]), one) for t in (500.25, 501.0))
        assert near.dtype == torch.float32 and not torch.equal(near, far)
    wide = {p.dtype for name, p in family.part("text_encoder_3").named_parameters() if ".wo." in name}
    assert wide == {torch.float32}
    assert family.hashes == whole.hashes


# ------------------------------------------------------------------------------------------------ opened and saved


def test_what_is_saved_unchanged_is_the_very_bytes(folder: Path, bare: Path, tmp_path: Path) -> None:
    for path in (folder, bare):
        out = tmp_path / f"{path.parent.name}-out"
        open_folder(path).save(out)
        ours, theirs = (
            {str(p.relative_to(r)): p for r in (one,) for p in r.rglob("*") if p.is_file()} for one in (out, path)
        )
        assert set(ours) == set(theirs)
        assert [name for name in ours if ours[name].read_bytes() != theirs[name].read_bytes()] == []


def test_what_was_trained_opens_in_diffusers(folder: Path, captions: list[Caption], tmp_path: Path) -> None:
    family = training(open_folder(folder))
    freezing.apply(family.net, family.resting, (), family.idle)
    family.rest()
    before = family.hashes
    steps(family, batches(family, captions, 4), 1)
    family.save(tmp_path / "out")
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")
    for name, tensor in pipeline.transformer.state_dict().items():
        assert torch.equal(tensor, family.net.transformer.state_dict()[name]), name
    again = open_folder(tmp_path / "out")
    assert again.hashes == family.hashes
    assert [part for part in before if before[part] != again.hashes[part]] == ["transformer"]
    assert again.part("text_encoder_3").config.dropout_rate == 0.0  # while it is open; its file says what it said
    said = json.loads((tmp_path / "out" / "text_encoder_3" / "config.json").read_text())
    assert said["dropout_rate"] == pipeline.text_encoder_3.config.dropout_rate == 0.1


def test_t5_whose_folder_was_left_out_is_not_missed(folder: Path, tmp_path: Path) -> None:
    """The index still names it, the folders are gone; what is saved then opens in diffusers."""
    path = tmp_path / "light"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3"))
    family = open_folder(path)
    assert "text_encoder_3" not in family.hashes and not family.condition(["x"], (32, 32))["text"][:, 77:].any()
    family.save(tmp_path / "out")
    assert not (tmp_path / "out" / "text_encoder_3").exists()
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", **NO_T5)
    assert torch.equal(pipeline.transformer.proj_out.weight, family.net.transformer.proj_out.weight)


def test_parts_from_elsewhere_are_really_used(folder: Path, medium: Path) -> None:
    own, other = open_folder(folder).hashes, open_folder(medium).hashes
    family = open_folder(folder, transformer=medium, vae=medium / "vae", text_encoders=medium)
    assert family.hashes == other and own != other
    assert family.part("transformer").config.qk_norm == "rms_norm"
    told = family.condition(PROMPTS, (32, 32))
    assert torch.equal(told["text"], open_folder(medium).condition(PROMPTS, (32, 32))["text"])


def test_text_encoders_from_a_pipeline_without_t5_are_without(folder: Path, bare: Path) -> None:
    family = open_folder(folder, text_encoders=bare)
    assert "text_encoder_3" not in family.hashes
    assert not family.condition(["x"], (32, 32))["text"][:, 77:].any()


# ------------------------------------------------------------------------------------------------ trained


def test_the_codec_pickles_and_needs_no_weights(folder: Path, captions: list[Caption]) -> None:
    codec = codec_of(folder)
    assert codec_of(folder).words("a red circle")["tokenizer_3"].shape == (1, 256)
    codec = pickle.loads(pickle.dumps(codec.training(Plan(Look(32, step=8), codec.objective))))
    item = codec.encode(captions[0], 5)
    again = codec.encode(captions[0], 5)
    assert all(torch.equal(again.frames[0].tensors[name], t) for name, t in item.frames[0].tensors.items())
    assert item.frames[0].tensors["noise"].shape == (16, 16, 16)


def test_loss_is_that_written_out_by_hand(folder: Path, captions: list[Caption]) -> None:
    family = training(open_folder(folder, t5_tokens=8))
    items = [family.codec.encode(row, seed) for seed, row in enumerate(captions)]
    vae, transformer = family.part("vae"), family.part("transformer")
    total = 0.0
    for item in items:
        of = item.frames[0].tensors
        with torch.no_grad():
            moments = vae.encode(to_unit(of["pixels"])[None]).latent_dist.parameters
            z = (clean(moments, of["eps"][None]) - 0.0609) * 1.5305
            told = family.embed({name: of[f"ids.{name}"][None] for name in ("tokenizer", "tokenizer_2", "tokenizer_3")})
            noisy = (1 - of["sigma"]) * z + of["sigma"] * of["noise"][None]
            velocity = transformer(noisy, told["text"], told["pooled"], of["sigma"][None] * 1000).sample
        total += float((velocity - (of["noise"][None] - z)).square().mean())
    batch = family.codec.collate(items)
    with torch.no_grad():
        assert float(family.loss(batch)) == pytest.approx(total, rel=1e-5)
    assert batch.weight == 4 and batch.host["groups"] > 1  # pictures of several shapes in one batch


def test_prior_preservation_with_a_batch_of_four(folder: Path, captions: list[Caption]) -> None:
    """The diffusers script fails here twice over; a class picture weighs what was asked, its picture 1."""
    family = training(open_folder(folder, t5_tokens=8))
    rows = [replace(row, prior=tuple(captions), prior_weight=0.5) for row in captions]
    items = [family.codec.encode(row, seed) for seed, row in enumerate(rows)]
    batch = family.codec.collate(items)
    assert batch.weight == 4 and sum(len(item.frames) for item in items) == 8
    by_hand = 0.0
    with torch.no_grad():
        found = float(family.loss(batch))
        for item in items:
            for frame, weight in zip(item.frames, (1.0, 0.5), strict=True):
                alone = replace(frame, tensors={**frame.tensors, "weighting": torch.tensor(1.0)})
                by_hand += weight * float(family.loss(family.codec.collate([replace(item, frames=(alone,))])))
    assert found == pytest.approx(by_hand, rel=1e-5)
    freezing.apply(family.net, family.resting, (), family.idle)
    assert steps(family, [batch], 1)[0][0] == pytest.approx(found / 4, rel=1e-5)


@pytest.mark.parametrize("which", ["folder", "medium", "bare"])
def test_idle_is_what_no_loss_reaches(which: str, captions: list[Caption], request: pytest.FixtureRequest) -> None:
    """Every other parameter of the net has a gradient that is more than rounding; in float64 rounding is 1e-15 here."""
    family = exact(training(open_folder(request.getfixturevalue(which), t5_tokens=16)))
    freezing.apply(family.net, (), ("*",))
    (batch,) = batches(family, captions, 4)
    family.loss(batch).backward()
    names = dict(family.net.named_parameters())
    idle = {name for name in names if any(fnmatchcase(name, glob) for glob in family.idle)}
    assert all(any(fnmatchcase(name, glob) for name in names) for glob in family.idle)
    largest = {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in names.items()}
    assert max(largest[n] for n in idle) < 1e-9 * min(largest[n] for n in names if n not in idle)


def test_text_encoders_train(folder: Path, captions: list[Caption]) -> None:
    """train_dreambooth_sd3.py always crashes with --train_text_encoder. What does not train rests."""
    family = training(open_folder(folder, t5_tokens=8))
    freezing.apply(family.net, family.resting, ("text_encoder.*", "text_encoder_2.*"), family.idle)
    family.rest()
    assert set(dict(family.net.named_children())) == {"transformer", "text_encoder", "text_encoder_2"}
    assert set(family.frozen) == {"vae", "text_encoder_3"}
    before = weights(family)
    losses = steps(family, batches(family, captions, 4), 3)
    assert losses[-1][0] < losses[0][0]
    moved = {name for name, p in weights(family).items() if not torch.equal(p, before[name])}
    idle = {name for name in before if any(fnmatchcase(name, glob) for glob in family.idle)}
    assert idle and moved == set(before) - idle


def test_t5_trains_too_and_is_the_same_every_time(folder: Path, captions: list[Caption]) -> None:
    """Its dropout is off: drawn on the device, it would differ between splits of the same rows."""
    family = training(open_folder(folder, t5_tokens=8))
    freezing.apply(family.net, family.resting, ("text_encoder_3.*",), family.idle)
    family.rest()
    (batch,) = batches(family, captions, 4)
    family.net.train()
    losses = [family.loss(batch) for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert all(p.grad.abs().max() > 0 for p in family.part("text_encoder_3").parameters())


def kept(family: StableDiffusion3, batch: Batch) -> Batch:
    """The batch, of one group, with what the VAE and the text encoders make of it in place of pixels and ids."""
    group = {name.removeprefix("0/"): t for name, t in batch.tensors.items()}
    told = family.embed({name.removeprefix("ids."): t for name, t in group.items() if name.startswith("ids.")})
    found = {name: t for name, t in group.items() if name != "pixels" and not name.startswith("ids.")}
    found |= {"moments": family.encode(to_unit(group["pixels"])), **{f"text.{name}": t for name, t in told.items()}}
    return replace(batch, tensors={f"0/{name}": t.detach() for name, t in found.items()})


def test_a_batch_is_learned_by_heart(folder: Path, captions: list[Caption]) -> None:
    family = training(open_folder(folder, t5_tokens=8), edge=16)
    freezing.apply(family.net, family.resting, (), family.idle)
    family.rest()
    (batch,) = batches(family, [captions[0]] * 2, 2)
    losses = [loss for loss, _ in steps(family, [kept(family, batch)], 40, lr=1e-2)]
    assert losses[-1] < 0.3 * losses[0]


def test_one_batch_of_four_is_four_of_one(folder: Path, captions: list[Caption]) -> None:
    found = []
    for size in (4, 1):
        family = exact(training(open_folder(folder, t5_tokens=8)))
        freezing.apply(family.net, family.resting, (), family.idle)
        family.rest()
        losses = steps(family, batches(family, captions, size), 3, lr=1e-4)
        found.append((losses, weights(family)))
    (one, ours), (four, theirs) = found
    assert [loss for loss, _ in one] == pytest.approx([loss for loss, _ in four], abs=1e-6)
    assert one[0][1] == pytest.approx(four[0][1], rel=1e-6)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-10


def test_kept_encodings_give_the_loss_of_pictures_and_words(folder: Path, captions: list[Caption]) -> None:
    """Moments and text made beforehand, the VAE and text encoders elsewhere."""
    family = training(open_folder(folder, t5_tokens=8))
    freezing.apply(family.net, family.resting, (), family.idle)
    family.rest()
    (batch,) = batches(family, [captions[0]] * 2, 2)
    again = kept(family, batch)
    family.leave()
    with torch.no_grad():
        assert torch.allclose(family.loss(again), family.loss(batch), rtol=1e-6)


def test_recomputed_activations_change_nothing(folder: Path, captions: list[Caption]) -> None:
    norms = []
    for parts in ((), ("denoiser", "text")):
        family = training(open_folder(folder, t5_tokens=8))
        freezing.apply(family.net, family.resting, ("text_encoder.*",), family.idle)
        family.rest()
        family.checkpoint_activations(parts)
        norms.append(steps(family, batches(family, captions, 4), 1)[0])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert family.net.transformer.gradient_checkpointing


@pytest.mark.parametrize("which", ["folder", "medium"])
def test_lora_goes_on_the_attention_of_both_sides(which: str, request: pytest.FixtureRequest) -> None:
    family = open_folder(request.getfixturevalue(which))
    names = lora.attach(family.net, Adapter(rank=2, parts=["denoiser", "text"]), family.lora_targets)
    leaves = {".".join(name.split(".")[3:]) for name in names if name.startswith("transformer.")}
    sides = {f"attn.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")}
    dual = {f"attn2.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0")} if which == "medium" else set()
    assert leaves == sides | {"attn.to_add_out"} | dual
    assert sum(name.startswith("text_encoder") for name in names) == 2 * 3 * 4
    freezing.apply(family.net, (), (), family.idle)
    assert all(
        p.requires_grad == (".lora_" in n and ".2.attn.add_q_proj" not in n)
        for n, p in family.net.named_parameters()
        if "attn" in n
    )


# ------------------------------------------------------------------------------------------------ refused


def _without(folder: Path, out: Path, name: str) -> Path:
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(name))
    return out


def test_what_is_of_another_family_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    sdxl = tiny_sdxl(tmp_path / "sdxl")
    wrong = {
        "transformer": (sdxl, r"transformer = .*sdxl is neither a transformer .* nor a folder that holds one"),
        "vae": (
            sdxl,
            r"the transformer of .* has in_channels 16, expected 4 to read the VAE; give another transformer",
        ),
        "text_encoders": (sdxl, r"text_encoder = .* is a CLIPTextModel, expected CLIPTextModelWithProjection"),
        "unet": (sdxl / "unet", r"unet is no option of this model; it has transformer, vae, text_encoders"),
        "t5_tokens": ("many", r"t5_tokens = many, expected a whole number of tokens such as 256 or 77"),
    }
    for name, (value, sentence) in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            open_folder(folder, **{name: value})
    with pytest.raises(ValueError, match=r"transformer = .* is a UNet2DConditionModel, expected SD3Transformer2DModel"):
        open_folder(folder, transformer=sdxl / "unet")
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed, ignore=shutil.ignore_patterns("transformer"))
    shutil.copytree(sdxl / "unet", mixed / "transformer")
    with pytest.raises(ValueError, match=r"has _class_name UNet2DConditionModel, expected SD3Transformer2DModel"):
        open_folder(mixed)
    with pytest.raises(ValueError, match="text_encoders = .*scheduler has no text_encoder and text_encoder_2"):
        open_folder(folder, text_encoders=folder / "scheduler")


@pytest.mark.parametrize(
    "missing, sentence",
    [
        ("transformer", "has no transformer/config.json, a part of every such pipeline"),
        ("text_encoder_2", "has no text_encoder_2/config.json"),
        ("vae", "has no vae/config.json"),
        ("tokenizer", r"has no tokenizer \(tokenizer.json"),
        ("tokenizer_3", r"has no tokenizer_3 \(tokenizer.json"),
        ("scheduler_config.json", "scheduler_config.json cannot be read"),
    ],
)
def test_what_is_missing_is_named(folder: Path, tmp_path: Path, missing: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        open_folder(_without(folder, tmp_path / "part", missing))
    assert "\n" not in str(caught.value)


def test_a_t5_of_another_width_is_refused(folder: Path, tmp_path: Path) -> None:
    mixed = _without(folder, tmp_path / "mixed", "text_encoder_3")
    shutil.copytree(GOLDEN / "sd3-tiny" / "text_encoder_3", mixed / "text_encoder_3")
    with pytest.raises(ValueError, match="has d_model 32, expected 48 to be read by the transformer"):
        open_folder(mixed)


def test_sizes_beyond_its_positions_are_refused_before_the_run(folder: Path) -> None:
    codec = codec_of(folder)
    with pytest.raises(ValueError, match=r"resolution = 64 pictures are up to 128 pixels long.* 96 .*buckets=false"):
        codec.training(Plan(Look(64, step=8), codec.objective))
    codec.training(Plan(Look(64, buckets=False), codec.objective))
