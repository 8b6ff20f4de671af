"""SDXL against diffusers' own pipeline, and what training it must keep right."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from anymix.adapters import lora
from anymix.config import Adapter
from anymix.data.views import Look
from anymix.families import codec_of, open_folder
from anymix.families.common.pictures import Plan
from anymix.families.contract import Condition, ImageFamily
from anymix.samples import Caption, ImageRef, SampleError
from anymix.train import freezing
from families.tiny_pictures import GOLDEN, tiny_sdxl

DATA = GOLDEN / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl(tmp_path_factory.mktemp("made") / "sdxl")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(folder)


@pytest.fixture
def family(folder: Path) -> Any:
    return open_folder(folder)


def planned(family: Any, **look: Any) -> Any:
    settings = {"resolution": 32, "step": 16, **look}
    family.codec = family.codec.training(Plan(Look(**settings), family.objective))
    return family


def sample(number: int = 1, text: str = "a blue circle on grass") -> Caption:
    return Caption(ImageRef(str(DATA / f"{number}.png")), (text,), f"metadata.jsonl:{number + 1}")


def batch(family: Any, *samples: Caption, seed: int = 0) -> Any:
    items = [family.codec.encode(one, seed + i) for i, one in enumerate(samples or (sample(), sample(2)))]
    return family.codec.collate(items)


# ------------------------------------------------------------------------------------------------- as the pipeline


def test_it_is_what_the_contract_says(family: Any) -> None:
    assert isinstance(family, ImageFamily)
    assert (family.channels, family.scale, family.resolution) == (4, 2, 32)


def test_a_condition_is_the_pipelines(family: Any, folder: Path) -> None:
    """In float64: other releases of transformers draw other weights here, and fp32 rounds some of them by 2e-6."""
    theirs = StableDiffusionXLPipeline.from_pretrained(folder).to(dtype=torch.float64)
    for name in ("text_encoder", "text_encoder_2"):
        family.part(name).double()
    prompts = ["a red square", "two dots"]
    text, no_text, pooled, no_pooled = theirs.encode_prompt(prompts, device="cpu", negative_prompt=["blue", ""])
    ours = family.condition([*prompts, "blue", "", None], (48, 32), (60, 40), (5, 3))
    assert (ours["text"][:4] - torch.cat((text, no_text))).abs().max() <= 1e-12
    assert (ours["pooled"][:4] - torch.cat((pooled, no_pooled))).abs().max() <= 1e-12
    _, zeros, _, pooled_zeros = theirs.encode_prompt(prompts[:1], device="cpu")
    assert torch.equal(ours["text"][4:], zeros) and torch.equal(ours["pooled"][4:], pooled_zeros)
    ids = theirs._get_add_time_ids((40, 60), (3, 5), (32, 48), torch.float32, 20)
    assert torch.equal(ours["time_ids"], ids.expand(5, 6)) and ours["time_ids"].dtype == torch.float32


def test_a_prediction_is_the_unets(family: Any, theirs: StableDiffusionXLPipeline) -> None:
    told, latents, t = family.condition(["a", "b"], (32, 32)), torch.randn(2, 4, 16, 16), torch.tensor([3.0, 999.0])
    with torch.no_grad():
        ours = family.predict(latents, t, told)
        added = {"text_embeds": told["pooled"], "time_ids": told["time_ids"]}
        out = theirs.unet(latents, t.long(), encoder_hidden_states=told["text"], added_cond_kwargs=added).sample
        assert torch.equal(ours, out)
        assert not torch.equal(out, family.predict(latents, t, family.condition(["a", "b"], (32, 32), (320, 320))))


def test_latents_are_scaled_as_the_pipeline_scales_them(family: Any, theirs: StableDiffusionXLPipeline) -> None:
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        pixels = theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample
    assert torch.equal(family.decode(latents), pixels)
    assert torch.equal(family.encode(pixels)[:, :4], theirs.vae.encode(pixels).latent_dist.mean)


def test_a_long_prompt_is_read_to_its_end(family: Any) -> None:
    told = family.condition(["x " * 100 + "red", "x " * 100 + "blue", "x"], (32, 32))
    assert told["text"].shape == (3, 3 * 77 - 77, 40)
    assert not torch.equal(told["text"][0], told["text"][1])
    assert torch.equal(told["pooled"][0], told["pooled"][1])  # the summary is the first chunk's
    assert family.predict(torch.randn(3, 4, 16, 16), torch.full((3,), 10.0), told).shape == (3, 4, 16, 16)


# ------------------------------------------------------------------------------------------------- training


def test_the_crop_is_told_as_it_was_made(family: Any) -> None:
    """diffusers' script draws a new crop for its time_ids each time it reads cached latents of another."""
    planned(family, crop="random", crops=50, buckets=False)
    seen = set()
    for seed in range(20):
        for number in range(4):
            item = family.codec.encode(sample(number), seed)
            view, ids = item.frames[0].view, item.frames[0].tensors["time_ids"]
            left = view.scaled[0] - view.size[0] - view.left if view.flip else view.left
            assert ids.tolist() == [view.original[1], view.original[0], view.top, left, 32, 32]
            seen.add((view.top, view.left))
    assert len(seen) > 3
    told: list[Tensor] = []
    predict = family.predict
    family.predict = lambda z, t, c: (told.append(c["time_ids"]), predict(z, t, c))[1]
    group = batch(family, sample(1), sample(3))
    family.loss(group)
    assert torch.equal(torch.cat(told), torch.cat([group[f"{i}/time_ids"] for i in range(group.host["groups"])]))


def test_sizes_and_times_are_not_rounded_under_autocast(family: Any) -> None:
    planned(family)
    fed: dict[str, Tensor] = {}
    unet = family.net.unet
    unet.add_time_proj.register_forward_pre_hook(lambda _, args: fed.update(ids=args[0]))
    unet.time_proj.register_forward_pre_hook(lambda _, args: fed.update(t=args[0]))
    group = batch(family)
    group.tensors["0/time_ids"][:] = torch.tensor([1333.0, 1501.0, 327.0, 5.0, 32.0, 32.0])
    group.tensors["0/t"][:] = 997.0
    with torch.autocast("cpu", torch.bfloat16):
        family.loss(group).backward()
    assert fed["ids"].dtype == fed["t"].dtype == torch.float32
    assert fed["ids"][:3].tolist() == [1333.0, 1501.0, 327.0] and fed["t"].tolist() == [997.0, 997.0]
    narrow = Condition(
        {n: t.bfloat16() if n != "time_ids" else t for n, t in family.condition(["a"], (1333, 9)).tensors.items()}
    )
    family.net.to(torch.bfloat16)
    family.predict(torch.randn(1, 4, 16, 16), torch.tensor([997.0]), narrow)
    assert fed["ids"].tolist()[:2] == [9.0, 1333.0] and fed["ids"].dtype == torch.float32


def test_what_no_loss_reaches_is_idle_and_nothing_else(family: Any) -> None:
    planned(family)
    family.loss(batch(family)).backward()
    silent = {n for n, p in family.net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
    idle = {name for glob in family.idle for name in freezing.matching(family.net, glob)}
    assert silent <= idle
    assert all(name in silent or name.endswith("k_proj.bias") for name in idle)
    adapted = {name for pattern in family.lora_targets["text"] for name in lora.match(family.net, [pattern])}
    assert adapted and not any(f"{name}.weight" in idle for name in adapted)


def test_pictures_of_all_sizes_travel_together(family: Any) -> None:
    planned(family)
    both = [sample(0), sample(1), sample(3, "x " * 100)]
    together = family.loss(batch(family, *both))
    alone = sum(family.loss(batch(family, one, seed=i)) for i, one in enumerate(both))
    assert batch(family, *both).host["groups"] > 1
    assert float(together.detach()) == pytest.approx(float(alone.detach()), rel=1e-5)


def test_what_is_kept_is_what_is_made(family: Any) -> None:
    """Moments and embeddings instead of pixels and ids give the same loss."""
    planned(family)
    made = batch(family, sample(1))
    kept = {name: t for name, t in made.tensors.items() if not name.startswith(("0/pixels", "0/ids."))}
    with torch.no_grad():
        kept["0/moments"] = family.encode(made["0/pixels"].float() / 127.5 - 1)
        ids = {name: made[f"0/ids.{name}"] for name in ("tokenizer", "tokenizer_2")}
        kept |= {f"0/text.{name}": t for name, t in family.embed(ids).items()}
    assert torch.equal(family.loss(made), family.loss(type(made)(kept, made.host, made.keys, made.weight)))


@pytest.mark.parametrize("adapter", [False, True])
def test_recomputing_changes_no_gradient(folder: Path, adapter: bool) -> None:
    found = []
    for recompute in (False, True):
        family = planned(open_folder(folder))
        if adapter:
            torch.manual_seed(0)
            names = lora.attach(family.net, Adapter(rank=2, parts=["denoiser", "text"]), family.lora_targets)
            assert any(n.startswith("text_encoder_2.") for n in names) and any(n.startswith("unet.") for n in names)
        family.net.train()
        if recompute:
            family.checkpoint_activations(["denoiser", "text"])
        family.loss(batch(family)).backward()
        found.append({n: p.grad for n, p in family.net.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    assert all(torch.allclose(grad, found[1][n], atol=1e-6) for n, grad in found[0].items())


def test_parts_at_rest_leave_the_net_and_still_serve(family: Any) -> None:
    planned(family)
    group = batch(family)
    before = family.loss(group)
    freezing.apply(family.net, family.resting, ("text_encoder_2.*",), family.idle)
    family.rest()
    assert [name for name, _ in family.net.named_children()] == ["unet", "text_encoder_2"]
    assert set(family.frozen) == {"vae", "text_encoder"}
    family.leave()
    loss = family.loss(group)
    assert torch.equal(loss, before)
    loss.backward()
    assert all(p.grad is None for part in family.frozen.values() for p in part.parameters())
    assert set(family.hashes) == {"unet", "vae", "text_encoder", "text_encoder_2"}


def test_fp16_leaves_the_vae_wide(folder: Path) -> None:
    family: Any = open_folder(folder, dtype=torch.float16)
    assert next(family.part("vae").parameters()).dtype == torch.float32
    assert family.net.unet.dtype == family.part("text_encoder").dtype == torch.float16


# ------------------------------------------------------------------------------------------------- codec


def test_the_codec_pickles_and_draws_the_same(family: Any) -> None:
    codec = planned(family).codec
    again = pickle.loads(pickle.dumps(codec))
    ours, copy = codec.encode(sample(), 3), again.encode(sample(), 3)
    assert all(torch.equal(t, copy.frames[0].tensors[name]) for name, t in ours.frames[0].tensors.items())
    assert codec.still().plan.still and not codec.plan.still


def test_a_sample_is_measured_without_its_pixels(family: Any, tmp_path: Path) -> None:
    codec = planned(family).codec
    assert codec.measure(sample()).tokens == 77 and codec.measure(sample(text="x " * 100)).tokens == 154
    with pytest.raises(SampleError, match="metadata.jsonl:9.*nothing.png"):
        codec.measure(Caption(ImageRef(str(tmp_path / "nothing.png")), ("x",), "metadata.jsonl:9"))


def test_sizes_that_are_no_latents_are_refused(family: Any) -> None:
    codec = replace(family.codec, latents=(4, 32))  # a VAE of 32 pixels a latent
    with pytest.raises(ValueError, match="data.bucket_step = 16 is no multiple of 32, the pixels of one latent"):
        codec.training(Plan(Look(32, step=16), family.objective))
    with pytest.raises(ValueError, match="data.resolution = 48 is no multiple of 32"):
        codec.training(Plan(Look(48, buckets=False), family.objective))


def test_a_codec_without_a_plan_says_so(folder: Path) -> None:
    with pytest.raises(ValueError, match="call training"):
        codec_of(folder).encode(sample())
