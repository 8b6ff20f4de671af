"""The engine that draws: diffusers' pictures to one step of 255, and each by its own seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from PIL import Image

from anymix.engines import open_image, schedulers
from anymix.engines.image import How
from anymix.engines.prompts import Wanted
from engines.painters import NAMES, folder, pipeline
from engines.painters import engine as opened
from families import tiny_pictures

SMALL = {"width": 32, "height": 32, "steps": 4}
LONG = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 8  # 208 words


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def engine(name):
    return opened(name)


@pytest.fixture
def sdxl():
    return opened("sdxl")


@pytest.fixture(scope="module")
def photo():
    noise = np.random.RandomState(0).randint(0, 255, (32, 48, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _apart(one, other):
    """Largest difference of two pictures, in steps of 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def _theirs(name, scheduler, image=None, **more):
    pipe = pipeline(name) if image is None else AutoPipelineForImage2Image.from_pipe(pipeline(name))
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    if scheduler is not None:
        pipe.scheduler = schedulers.build(scheduler, opened(name)._plan)
    try:
        given = {"prompt": ["a red cat"] * 2, "generator": generators, **more}
        return pipe(**given, **({} if image is None else {"image": [image] * 2})).images
    finally:
        pipe.scheduler = own


# ------------------------------------------------------------------------------------------ equal to diffusers


@pytest.mark.parametrize("negative", [None, "blue"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("scheduler", [None, "heun", "dpm++_2m"])
def test_a_picture_is_that_of_the_pipeline(engine, name, scheduler, guidance, negative):
    theirs = _theirs(
        name,
        scheduler,
        negative_prompt=None if negative is None else [negative] * 2,
        num_inference_steps=4,
        guidance_scale=guidance,
        width=48,
        height=32,
    )
    told = {"negative": negative, "seed": 3, "count": 2, "width": 48, "height": 32, "steps": 4}
    ours = engine.draw("a red cat", guidance=guidance, scheduler=scheduler, **told)
    assert [picture.image.size for picture in ours] == [(48, 32)] * 2
    assert max(_apart(*pair) for pair in zip((p.image for p in ours), theirs, strict=True)) <= 1
    assert _apart(ours[0].image, ours[1].image) > 20  # the seeds tell


@pytest.mark.parametrize("scheduler", ["euler_a", "ddim", "ddpm", "dpm++_2m_sde_karras", "unipc"])
def test_noise_on_the_way_is_that_of_the_pipeline(scheduler):
    theirs = _theirs("sdxl", scheduler, num_inference_steps=4, guidance_scale=5.0, width=32, height=32)
    ours = opened("sdxl").draw("a red cat", seed=3, count=2, guidance=5.0, scheduler=scheduler, **SMALL)
    assert max(_apart(*pair) for pair in zip((p.image for p in ours), theirs, strict=True)) <= 1


def test_eta_and_rescale_are_those_of_the_pipeline(sdxl):
    told = {"num_inference_steps": 4, "guidance_scale": 9.0, "width": 32, "height": 32}
    theirs = _theirs("sdxl", "ddim", eta=0.7, guidance_rescale=0.6, **told)
    ours = sdxl.draw("a red cat", seed=3, count=2, guidance=9.0, scheduler="ddim", eta=0.7, rescale=0.6, **SMALL)
    assert max(_apart(*pair) for pair in zip((p.image for p in ours), theirs, strict=True)) <= 1
    plain = sdxl.draw("a red cat", seed=3, guidance=9.0, scheduler="ddim", **SMALL)
    assert _apart(plain[0].image, ours[0].image) > 3


@pytest.mark.parametrize(("strength", "guidance"), [(0.5, 7.5), (1.0, 1.0)])
def test_a_picture_from_a_picture_is_that_of_the_pipeline(engine, name, photo, strength, guidance):
    size = {"width": 48, "height": 32} if name == "sd3" else {}
    told = {"num_inference_steps": 4, "guidance_scale": guidance, "strength": strength}
    theirs = _theirs(name, None, photo, **told, **size)
    ours = engine.draw("a red cat", seed=3, count=2, image=photo, steps=4, guidance=guidance, strength=strength)
    assert max(_apart(*pair) for pair in zip((p.image for p in ours), theirs, strict=True)) <= 1


def test_a_v_model_with_zero_terminal_snr_is_drawn_as_it_was_trained(tmp_path):
    said = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    folder = tiny_pictures.tiny_sdxl(tmp_path / "v", **said)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    told = {"num_inference_steps": 4, "guidance_scale": 3.0, "width": 32, "height": 32}
    theirs = pipe("x", generator=torch.Generator().manual_seed(3), **told).images[0]
    engine = open_image(folder, "cpu", "fp32")
    assert _apart(engine.draw("x", seed=3, guidance=3.0, **SMALL)[0].image, theirs) <= 1
    plain = open_image(tiny_pictures.tiny_sdxl(tmp_path / "e"), "cpu", "fp32")  # the same weights
    assert _apart(plain.draw("x", seed=3, guidance=3.0, **SMALL)[0].image, theirs) > 20


# ------------------------------------------------------------------------------------------ seeds and words


def test_a_picture_does_not_depend_on_its_neighbours(engine):
    one = Wanted("a cat", None, 32, 32, 11)
    others = [Wanted(LONG, "blue", 32, 32, 1), Wanted("a dog", None, 32, 32, 2, guidance=3.0)]
    others += [Wanted("x", None, 48, 32, 11), Wanted("a cat", None, 32, 32, 12, guidance=1.0)]
    how = How(steps=4, scheduler=None, batch=8)
    alone = list(engine.stream([one], how))[0].image
    drawn = {picture.place: picture for picture in engine.stream([*others, one, one], how)}
    assert sorted(drawn) == list(range(6))
    assert _apart(drawn[4].image, alone) <= 1
    assert _apart(drawn[5].image, alone) <= 1
    assert drawn[2].image.size == (48, 32)
    assert _apart(drawn[3].image, alone) > 3


def test_a_batch_is_no_larger_than_asked(sdxl, monkeypatch):
    rows = []
    predict = sdxl.family.predict
    monkeypatch.setattr(sdxl.family, "predict", lambda z, t, c: rows.append(len(z)) or predict(z, t, c))
    sdxl.draw("a cat", count=5, seed=0, batch=2, **SMALL)
    assert set(rows) == {4, 2} and rows.count(4) == 8  # both halves of guidance in one forward
    rows.clear()
    sdxl.draw("a cat", count=2, seed=0, guidance=1.0, **SMALL)
    assert set(rows) == {2}


def test_no_word_of_a_long_prompt_is_lost(engine):
    first, changed = (engine.draw(words, seed=1, **SMALL)[0].image for words in (LONG + "cat", LONG + "dog"))
    assert _apart(first, changed) > 0
    assert _apart(first, engine.draw(LONG[:70], seed=1, **SMALL)[0].image) > 0


def test_a_short_prompt_and_a_long_negative_go_together(engine):
    for words in [("cat", LONG), (LONG, "cat"), (LONG, None)]:
        prompt, negative = words
        assert engine.draw(prompt, negative=negative, seed=1, **SMALL)[0].image.size == (32, 32)


def test_a_negative_prompt_changes_the_picture_only_with_guidance(engine):
    def drawn(negative, guidance):
        return engine.draw("cat", negative=negative, seed=1, guidance=guidance, **SMALL)[0].image

    assert _apart(drawn(None, 9.0), drawn("a blue dog", 9.0)) > 0
    assert _apart(drawn(None, 1.0), drawn("a blue dog", 1.0)) == 0


def test_no_negative_and_an_empty_one_differ_for_sdxl(sdxl):
    none, empty = (sdxl.draw("cat", negative=n, seed=1, guidance=9.0, **SMALL)[0].image for n in (None, ""))
    assert _apart(none, empty) > 0


def test_seeds_count_up_and_are_told(sdxl):
    drawn = sdxl.draw(["cat", "dog"], count=2, seed=5, **SMALL)
    assert [(p.wanted.prompt, p.seed) for p in drawn] == [("cat", 5), ("cat", 6), ("dog", 5), ("dog", 6)]
    again = sdxl.draw("dog", seed=6, **SMALL)[0]
    assert _apart(again.image, drawn[3].image) <= 1
    unseeded = sdxl.draw("dog", **SMALL)[0]
    assert _apart(unseeded.image, sdxl.draw("dog", seed=unseeded.seed, **SMALL)[0].image) == 0


def test_no_global_random_state_is_touched(engine):
    before = torch.get_rng_state()
    engine.draw("cat", seed=1, scheduler=None, **SMALL)
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------------ from a picture


def test_at_strength_0_the_picture_stays(engine, photo):
    from anymix.engines.pixels import to_images, to_tensor

    kept = engine.draw("a red cat", seed=3, image=photo, strength=0.02, steps=4, scheduler=None)[0].image
    vae, family = engine.family.part("vae"), engine.family
    with torch.no_grad():
        drawn = vae.encode(to_tensor(photo, (48, 32))).latent_dist.sample(torch.Generator().manual_seed(3))
        round_trip = to_images(vae.decode(drawn)[0])[0]
    if family.name != "sd3":  # which rounds 0.02 of 4 steps up to one
        assert _apart(kept, round_trip) <= 1
    stays, goes = (_mean(engine, photo, s, round_trip) for s in (0.3, 1.0))
    assert stays < goes


def _mean(engine, photo, strength, other):
    image = engine.draw("a red cat", seed=3, image=photo, strength=strength, steps=8, guidance=1.0)[0].image
    return np.abs(np.asarray(image, dtype=int) - np.asarray(other, dtype=int)).mean()


def test_a_picture_is_cut_to_the_size_asked_for(sdxl, photo, tmp_path):
    photo.save(tmp_path / "p.png")
    given = {"image": tmp_path / "p.png", "seed": 1, "steps": 2}
    assert sdxl.draw("x", **given)[0].image.size == (48, 32)
    assert sdxl.draw("x", width=32, height=64, **given)[0].image.size == (32, 64)
    odd = photo.crop((0, 0, 47, 31))
    assert sdxl.draw("x", **{**given, "image": odd})[0].image.size == (46, 30)  # steps of two pixels
    with pytest.raises(ValueError, match="gone.png"):
        sdxl.draw("x", image=tmp_path / "gone.png")


# ------------------------------------------------------------------------------------------ what goes wrong


def test_sizes_are_checked_in_a_sentence(engine, name):
    step = engine.family.grain
    assert step == (4 if name == "sd3" else 2)
    with pytest.raises(ValueError, match=f"33x32 is not in steps of {step} pixels.*use 32x32"):
        engine.draw("x", width=33, height=32)


def test_a_size_beyond_the_model_is_a_sentence():
    with pytest.raises(ValueError, match="the size 96x200 is more than the 96x96 this model can draw"):
        opened("sd3").draw("x", width=96, height=200)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"steps": 0}, "steps = 0, expected at least 1"),
        ({"batch": 0}, "batch = 0"),
        ({"strength": 1.5}, r"strength = 1\.5, expected 0 to 1"),
        ({"scheduler": "plms"}, "'plms' is not known for this model; use one of euler"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_what_is_wrong_is_a_sentence(sdxl, how, sentence):
    with pytest.raises(ValueError, match=sentence):
        sdxl.draw("x", **{**SMALL, **how})


def test_latents_that_broke_are_a_sentence(sdxl, monkeypatch):
    monkeypatch.setattr(sdxl.family, "predict", lambda z, t, c: z * torch.nan)
    with pytest.raises(ValueError, match="latents are not numbers .* of seed 7; use dtype bf16 or fp32"):
        sdxl.draw("x", seed=7, **SMALL)


def test_a_vae_that_broke_is_a_sentence(sdxl, monkeypatch):
    monkeypatch.setattr(sdxl.family, "decode", lambda z: torch.full((1, 3, 32, 32), torch.inf))
    with pytest.raises(ValueError, match="pixels of the VAE are not numbers.*sdxl-vae-fp16-fix"):
        sdxl.draw("x", seed=7, **SMALL)


def test_a_batch_too_large_for_the_device_is_drawn_in_halves(sdxl, monkeypatch):
    whole = sdxl.draw("cat", seed=1, count=3, **SMALL)
    predict, told = sdxl.family.predict, []

    def full(latents, t, condition):
        if len(latents) > 4:
            raise torch.OutOfMemoryError("no")
        return predict(latents, t, condition)

    monkeypatch.setattr(sdxl.family, "predict", full)
    halves = sdxl.draw("cat", seed=1, count=3, progress=lambda done, total: told.append((done, total)), **SMALL)
    assert max(_apart(a.image, b.image) for a, b in zip(whole, halves, strict=True)) <= 1
    assert told[-1] == (12, 12)
    monkeypatch.setattr(sdxl.family, "predict", lambda z, t, c: full(torch.zeros(9), t, c))
    with pytest.raises(ValueError, match="no memory for one picture of 32x32; draw a smaller one"):
        sdxl.draw("cat", seed=1, **SMALL)


# ------------------------------------------------------------------------------------------ progress, cancelling


def test_progress_counts_the_steps_of_all_pictures(sdxl):
    told = []
    wanted = [Wanted("a", None, 32, 32, 1, 2), Wanted("b", None, 32, 32, 2, 5)]
    list(sdxl.stream(wanted, progress=lambda done, total: told.append((done, total))))
    assert [total for _, total in told] == [7] * 7
    assert [done for done, _ in told] == [1, 2, 3, 4, 5, 6, 7]


def test_cancelling_keeps_what_is_finished(sdxl):
    steps = []
    drawn = sdxl.draw(
        "x",
        count=3,
        seed=1,
        batch=1,
        progress=lambda done, _: steps.append(done),
        cancel=lambda: len(steps) >= 6,
        **SMALL,
    )
    assert [picture.seed for picture in drawn] == [1]
    assert len(steps) == 6
    assert sdxl.draw("x", cancel=lambda: True, **SMALL) == []


def test_a_picture_says_what_made_it(sdxl, photo, tmp_path):
    picture = sdxl.draw("x", seed=1, image=photo, steps=2, strength=0.5, eta=0.5, scheduler="ddim")[0]
    record = picture.record()
    assert (record["scheduler"], record["strength"], record["eta"]) == ("ddim", 0.5, 0.5)
    assert (record["steps"], record["guidance"], record["width"]) == (2, 7.0, 48)
    assert record["hashes"] == sdxl.family.hashes
    assert sdxl.draw("x", seed=1, **SMALL)[0].record()["scheduler"] == "EulerDiscreteScheduler"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_seed_is_the_same_picture_in_half_precision(sdxl, dtype):
    half = open_image(folder("sdxl"), "cpu", dtype).draw("a cat", seed=1, **SMALL)[0].image
    whole, other = (sdxl.draw("a cat", seed=seed, **SMALL)[0].image for seed in (1, 2))

    def distance(image):
        return np.abs(np.asarray(image, dtype=int) - np.asarray(whole, dtype=int)).mean()

    assert distance(half) < 0.1 * distance(other)
