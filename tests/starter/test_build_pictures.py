"""The recipe of the pipelines, run short: its folders open, it repeats itself, and it keeps its rules."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import nn

from anymix.starter import drawn, pictures
from anymix.starter.build.diffusion import losses, make, networks, tokenizers, train, vae
from anymix.starter.build.diffusion.mean import Mean
from anymix.starter.build.muon import Optimiser
from anymix.starter.scenes import HELD

SHORT = {kind: (train.Recipe(2, batch=2, pictures=4, look=9),) * 2 for kind in make.KINDS}
KINDS = make.KINDS


@pytest.fixture(scope="module")
def seer():
    made = vae.new(0)
    vae.train(made, vae.Recipe(2, pictures=2), 0, lambda line: None)
    return made


@pytest.mark.slow
def test_a_short_build_is_three_folders_their_scores_and_a_log(tmp_path):
    said = []
    table = make.build(
        tmp_path / "mine",
        recipes=SHORT,
        seer=[vae.Recipe(2, pictures=2), vae.Recipe(1, pictures=2, decoder=True)],
        each=1,
        say=said.append,
    )
    assert set(table) == set(KINDS)
    for kind in KINDS:
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "mine" / kind).to(torch.float32)
        assert next(iter(pictures.draw(pipeline, ["a red circle"], steps=1))).size == (64, 64)
        encoder = load_file(tmp_path / "mine" / kind / "text_encoder" / "model.safetensors")
        assert {name.split(".")[0] for name in encoder} <= {"text_model", "text_projection"}
        assert f"# starter:{kind}" in (tmp_path / "mine" / kind / "README.md").read_text()
    assert (tmp_path / "mine.log").read_text().splitlines() == "\n".join(said).splitlines()


def test_nothing_that_is_there_is_written_over(tmp_path):
    (tmp_path / "mine.log").write_text("a log of mine")
    with pytest.raises(ValueError, match=r"mine\.log is there already"):
        make.build(tmp_path / "mine")
    with pytest.raises(ValueError, match="no recipe makes sd9, expected some of sdxl, sd15, sd3"):
        make.build(tmp_path / "other", kinds=["sd9"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_training_repeats_itself_and_reaches_every_part(kind, seer):
    taught = train.lesson(seer, 4, 1)
    weights = []
    for _ in range(2):
        pipeline = networks.new(kind, seer, 0)
        before = {(k, n): p.detach().clone() for k, part in _parts(pipeline) for n, p in part.named_parameters()}
        train.train(pipeline, taught, SHORT[kind][0], 3)
        weights.append(torch.cat([p.flatten() for _, part in _parts(pipeline) for p in part.parameters()]))
        for name, part in _parts(pipeline):
            assert any(not torch.equal(p, before[name, n]) for n, p in part.named_parameters()), name
    assert torch.equal(*weights)


def _parts(pipeline):
    return networks.trained_parts(pipeline).items()


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_encoded_as_the_pipeline_does_it(kind, seer):
    pipeline = networks.new(kind, seer, 0)
    for part in networks.trained_parts(pipeline).values():
        part.eval()
    captions = ["a large red circle on a blue background", ""]
    with torch.no_grad():
        if kind == "sd3":
            ours = losses.encode_three(pipeline, captions, 77)
            theirs = pipeline.encode_prompt(
                captions, None, None, do_classifier_free_guidance=False, max_sequence_length=77
            )
            theirs = theirs[0], theirs[2]
        elif kind == "sdxl":
            ours = losses.encode(pipeline, captions)
            theirs = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
            theirs = theirs[0], theirs[2]
        else:
            ours = losses.encode(pipeline, captions)[:1]
            theirs = pipeline.encode_prompt(captions, "cpu", 1, do_classifier_free_guidance=False)[:1]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_no_training_picture_shows_a_held_pair(seer):
    assert not {(w.colour, w.shape) for w in train.lesson(seer, 300, 7).wishes} & HELD


def test_training_and_test_and_watched_wishes_are_drawn_apart():
    seeds = {make.LESSON_SEED, drawn.WATCH_SEED, drawn.WATCH_SEED + 1, drawn.TEST_SEED, drawn.TEST_SEED + 1}
    assert len(seeds) == 5


def test_the_longest_caption_fits():
    rng, words = random.Random(0), tokenizers.clip()
    captions = [drawn.reword(w, rng) for w in drawn.sheet(500, 9, held=None)]
    assert max(len(ids) for ids in words(captions).input_ids) <= tokenizers.LENGTH


def test_the_mean_comes_and_goes():
    weight = nn.Parameter(torch.zeros(2))
    mean = Mean([weight], 0.5)
    with torch.no_grad():
        weight += 1
    mean.update()
    with mean:
        assert 0 < weight[0] < 1
    assert weight[0] == 1
    mean.keep()
    assert 0 < weight[0] < 1


def test_kernels_are_turned_only_when_asked():
    torch.manual_seed(0)
    layer, seen = nn.Conv2d(8, 8, 3, bias=False), 1 + torch.randn(4, 8, 6, 6)
    before = layer.weight.detach().clone()
    for kernels in (False, True):
        with torch.no_grad():
            layer.weight.copy_(before)
        optimiser = Optimiser([(layer, 1.0)], 1e-2, 1e-3, decay=0.0, kernels=kernels)
        optimiser.step(layer(seen).square().sum(), 1.0)
        change = (layer.weight - before).detach().flatten(1)
        turned = torch.linalg.svdvals(change)
        assert (turned[0] / turned[-1] < 2) == kernels


def test_a_rate_rises_stays_and_falls():
    recipe = train.Recipe(1000, warm=10, flat=0.4, floor=0.1)
    rates = [train.rate(step, recipe) for step in (0, 9, 399, 700, 999)]
    assert rates[:3] == [0.1, 1.0, 1.0] and 0.5 < rates[3] < 0.6 and rates[4] == pytest.approx(0.1, abs=0.01)


def test_small_shapes_come_as_often_as_asked(seer):
    taught = train.lesson(seer, 60, 1)
    often = train._often(taught, 0.9)
    small = torch.tensor([wanted.size == "small" for wanted in taught.wishes])
    assert often[small].sum() == pytest.approx(0.9) and often[~small].sum() == pytest.approx(0.1)
    torch.manual_seed(0)
    assert 0.85 < small[train._chosen(often, 1000)].float().mean() < 0.95
    drawn_as_they_are = small[train._chosen(train._often(taught, None), 1000)].float().mean()
    assert drawn_as_they_are == pytest.approx(small.float().mean().item(), abs=0.05)


def test_the_decoder_alone_learns_and_latents_stay(seer):
    made, before = copy.deepcopy(seer), seer.state_dict()
    vae.train(made, vae.Recipe(1, pictures=2, decoder=True, stars=1.0), 1, lambda line: None)
    changed = {
        name.split(".")[0] for name, weight in made.state_dict().items() if not torch.equal(weight, before[name])
    }
    assert changed == {"decoder"}


def test_small_shapes_and_stars_are_drawn_as_often_as_asked():
    rng = random.Random(0)
    wishes = [vae._wished(rng, 0.9, 0.5) for _ in range(2000)]
    assert 0.87 < sum(w.size == "small" for w in wishes) / 2000 < 0.93
    assert 0.55 < sum(w.shape == "star" for w in wishes) / 2000 < 0.68  # half by order, a fifth of the rest by chance
