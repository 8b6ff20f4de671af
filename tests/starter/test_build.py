"""The recipe's parts, and its first steps."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anymix import open_chat
from anymix.families.internvl2 import InternVL2
from anymix.families.llava_next import LlavaNext
from anymix.families.qwen2_vl import Qwen2VL
from anymix.starter import films, pairs, score
from anymix.starter.build import heritage, make, rows, train
from anymix.starter.build.make import build
from anymix.starter.build.muon import Optimiser, orthogonal
from anymix.starter.build.patches import FINE, Heads, Places, labels_of
from anymix.starter.build.trainee import next_token
from anymix.starter.canvas import COLOURS, SQUARE, THINGS, WIDE
from anymix.starter.scenes import conversation, draw

EVERY = tuple(make.MADE)


@pytest.fixture(scope="module")
def trainees(tmp_path_factory):
    found = {}

    def opened(name):
        if name not in found:
            found[name] = make.MADE[name][0](tmp_path_factory.mktemp("new") / name, 0)
        return found[name]

    return opened


def test_the_config_is_an_internvl2_of_two_tiles(trainees):
    model = trainees("internvl2").model
    codec = model.codec
    assert (codec.image_size, codec.tokens_per_tile, codec.max_tiles, codec.thumbnail) == (56, 16, 2, True)
    assert codec.template.name == "internlm2-chat" and codec.words.adds_bos
    assert 1_000_000 < sum(p.numel() for p in model.net.parameters()) < 1_300_000


def test_the_config_is_a_llava_next_of_one_tile_or_two(trainees):
    model = trainees("llava_next").model
    codec = model.codec
    assert (codec.image_size, codec.side, codec.pinpoints) == (56, 8, ((56, 56), (112, 56), (56, 112)))
    assert codec.template.name == "chatml_direct" and model.net.config.vision_feature_layer == -2
    assert len(model.tower.encoder.layers) == 4 and len(model.net.model.language_model.layers) == 3


def test_the_config_is_a_qwen2_vl_with_its_eight_marks(trainees):
    model = trainees("qwen2_vl").model
    codec, config = model.codec, model.net.config
    assert (codec.cut.patch, codec.cut.merge, codec.cut.temporal, codec.cut.max_pixels) == (7, 2, 2, 6272)
    assert config.text_config.rope_parameters["mrope_section"] == [4, 6, 6] and not codec.words.adds_bos
    assert sorted(codec.words.marks) == list(range(8)) and codec.words.piece(7) == "<|video_pad|>"


@pytest.mark.parametrize("name", EVERY)
def test_any_text_comes_back_from_the_tokenizer(trainees, name):
    words = trainees(name).codec.words
    for text in ("What colour is it?", "a red star", "书生 42 naïve 🚀", " two  spaces "):
        assert words.decode(words.encode(text)) == text
    assert len(words.encode("47")) == 2  # digits stand alone


@pytest.mark.parametrize("name", EVERY)
def test_all_know_the_same_words(trainees, name):
    first, own = heritage.first().codec.words, trainees(name).codec.words
    text = "What colour is the bar? a red star on an orange background"
    assert [own.piece(i) for i in own.encode(text)] == [first.piece(i) for i in first.encode(text)]


def _shown(name):
    """One of everything a family's recipe has."""
    drawn = [(draw(seed, {"scene": 1.0}, size), conversation) for seed, size in ((11, SQUARE), (12, WIDE))]
    if name != "internvl2":
        other = train.resized(drawn[0][0], train.Recipe(resized=1.0), random.Random(2))
        assert other.image.size in train.OTHER
        drawn.append((other, conversation))
    if name == "qwen2_vl":
        drawn += [(pairs.pair(5), None), (films.film(7, length=4), None)]
    return [(shown, _one_each(shown)) for shown, _ in drawn]


def _one_each(shown):
    if isinstance(shown, films.Film):
        return [films.conversation(shown, question) for question in shown.questions]
    if isinstance(shown, pairs.Pair):
        return [pairs.conversation(shown, question) for question in shown.questions]
    return [conversation(shown, [question]) for question in shown.questions]


@pytest.mark.parametrize("name", EVERY)
def test_a_row_of_many_questions_is_so_many_rows_of_one(trainees, name):
    """Summed, packed and separate losses agree: no question sees another, positions and pixels are the codec's."""
    trainee = trainees(name)
    for shown, conversations in _shown(name):
        row = rows.Layer(trainee).row(shown, shown.questions)
        targets = sum(label != rows.IGNORE for label in row.labels)
        with torch.no_grad():
            tokens = trainee.see([trainee.cut(shown)])[1]
            packed = next_token(trainee, rows.batch([row], trainee), tokens)[0] * targets
            batches = [trainee.codec.collate([trainee.codec.encode(one)]) for one in conversations]
            single = sum(trainee.model.loss(batch) for batch in batches)
        assert targets == sum(batch.weight for batch in batches)
        torch.testing.assert_close(packed, single, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", EVERY)
def test_padding_changes_nothing(trainees, name):
    trainee, layer = trainees(name), rows.Layer(trainees(name))
    drawn = [draw(seed, {"scene": 1.0}, size) for seed, size in ((21, SQUARE), (22, WIDE))]
    laid = [
        layer.row(p, p.questions[:n], together) for (p, n, together) in zip(drawn, (1, 3), (True, False), strict=True)
    ]
    cuts = [trainee.cut(picture) for picture in drawn]
    with torch.no_grad():
        both = next_token(trainee, rows.batch(laid, trainee), trainee.see(cuts)[1])[0]
        alone = [
            next_token(trainee, rows.batch([r], trainee), trainee.see([cut])[1])[0]
            for r, cut in zip(laid, cuts, strict=True)
        ]
    counts = [sum(label != rows.IGNORE for label in r.labels) for r in laid]
    mean = sum(a * n for a, n in zip(alone, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(both, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_patch_labels_name_what_lies_there(trainees, name):
    """The lower half of a chart's patches is bars on white; what lies on a patch is in the order of the tower."""
    trainee, picture = trainees(name), draw(4, {"chart": 1.0}, SQUARE)
    cut = trainee.cut(picture)
    frames = trainee.frames
    named, ink, cover = labels_of([cut])
    assert named.shape == ink.shape == (64, frames) and cover.shape == (64, frames, 49)
    assert all(torch.equal(labels[:, :1].expand_as(labels), labels) for labels in (named, ink, cover))
    named, ink, cover = named[:, 0], ink[:, 0], cover[:, 0]
    assert set(named.unique().tolist()) == {0, THINGS.index("bar")}
    assert not cover[named == 0].any() and cover.float().mean() > 0.1
    assert len(trainee.features([cut])) == 64
    white = [COLOURS[i] == "white" for i in ink.tolist()]
    assert all(not bar or not plain for bar, plain in zip(named.tolist(), white, strict=True))


def test_patches_of_qwen2_vl_and_their_labels_are_in_one_order(trainees):
    """A patch is in either frame as dark as the part of the picture its labels say it shows."""
    trainee, picture, film = trainees("qwen2_vl"), draw(12, {"scene": 1.0}, WIDE), films.film(3, "growth", 4, WIDE)
    for shown in (_marked(picture), replace(film, frames=tuple(map(_marked, film.frames)))):
        cut = trainee.cut(shown)
        colours = cut.pixels.view(cut.patches, 3, 2, 49).float()
        luma = (colours * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
        assert (luma - torch.from_numpy(cut.things).view(-1, 2, 49).float()).abs().max() < 1.5
    assert (luma[:, 0] - luma[:, 1]).abs().max() > 20  # it grows


def _marked(picture):
    grey = np.asarray(picture.image.convert("L"))
    return replace(picture, things=grey, inks=grey)


def test_places_of_qwen2_vl_are_those_of_its_tokens(trainees):
    """What the codec turns a token's queries and keys by, and what training tells it of its place, rise together."""
    trainee = trainees("qwen2_vl")
    for shown, moments in ((draw(12, {"scene": 1.0}, WIDE), 1), (pairs.pair(5), 2), (films.film(7, length=8), 4)):
        row, cut = rows.Layer(trainee).row(shown, shown.questions), trainee.cut(shown)
        seen = torch.isin(torch.tensor(row.ids), torch.tensor(trainee.placeholders))
        told, turned = cut.places, row.positions[:, seen].T
        assert len(told) == len(turned) and told[:, 0].unique().tolist() == list(range(moments))
        first = told[:, 0] == 0
        for axis in (1, 2):
            pairs_of = set(zip(told[first, axis].tolist(), turned[first, axis].tolist(), strict=True))
            assert len(pairs_of) == len({a for a, _ in pairs_of}) == len({b for _, b in pairs_of}) > 1
            assert told[:, axis].max() < FINE and sorted(pairs_of) == sorted(pairs_of, key=lambda pair: pair[1])


def test_where_a_token_lies_can_be_told_from_states_that_say_it():
    """The head's loss falls on states that hold the place, and names nothing in states that do not."""
    places = torch.cartesian_prod(torch.arange(2), torch.arange(4) * 4, torch.arange(4) * 4)
    states = torch.nn.functional.one_hot(places, 128).sum(1).float() + torch.nn.functional.one_hot(
        places[:, 2] + 32, 128
    )
    head = Places(0)
    optimiser = Optimiser([(head, 1.0)], 0.02, 0.02)
    for _ in range(150):
        loss, right = head(states, places)
        optimiser.step(loss, 1.0)
    assert right.float().mean() > 0.9
    assert head(torch.ones_like(states), places)[1].float().mean() < 0.6


def test_the_border_of_a_llava_canvas_is_black_and_nothing(trainees):
    trainee = trainees("llava_next")
    picture = draw(4, {"chart": 1.0}, SQUARE)
    tries = (train.resized(picture, train.Recipe(resized=1.0), random.Random(seed)) for seed in range(20))
    other = next(shown for shown in tries if shown.image.size == (112, 84))
    cut = trainee.cut(other)
    things, inks, _ = cut.layout
    edge = cut.pixels[1][:, :, 0]  # the first column of the first tile of the canvas
    assert edge.max() == 0 and set(inks[1][:, 0]) == {COLOURS.index("black")} and set(things[1][:, 0]) == {0}


@pytest.mark.parametrize("name", EVERY[1:])
def test_the_younger_begin_with_what_the_first_has_learned(trainees, name):
    """Words and layers of the language model are those of the first starter. A word behind a space is spelt otherwise
    in the vocabulary than in the text."""
    trainee, first = trainees(name), heritage.first()
    own, old = trainee.codec.words, first.codec.words
    for text in ("colour", "red", "<|im_start|>", " cross", " left", "\n", " "):
        ids = own.encode(text), old.encode(text)
        mine, theirs = (
            w.net.get_input_embeddings().weight[i] for w, i in zip((trainee.model, first), ids, strict=True)
        )
        assert torch.equal(mine, theirs)
    theirs = dict(first.net.model.language_model.layers.named_parameters())
    mine = dict(trainee.model.net.model.language_model.layers.named_parameters())
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert not any(mine[key].any() for key in set(mine) - set(theirs))  # a Qwen2's biases


def test_orthogonal_makes_singular_values_one():
    for shape in ((3, 128, 128), (2, 256, 128), (1, 128, 512)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.median() > 0.6 and values.max() < 1.4


def test_the_optimiser_lowers_a_loss_and_sorts_tables_from_matrices():
    layer = torch.nn.ModuleDict({"embed": torch.nn.Embedding(4, 8), "inner": torch.nn.Linear(8, 8)})
    optimiser = Optimiser([(layer, 1.0)], matrices=0.02, others=0.01)
    target = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(60):
        loss = (layer["inner"](layer["embed"].weight) - target).square().mean()
        optimiser.step(loss, 1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert [len(stack) for stack, _, _ in optimiser._stacks] == [1]


def test_rates_rise_and_fall():
    course = [train.rate(step, 100, 10, 0.02) for step in range(100)]
    assert course[0] == pytest.approx(0.1) and max(course) > 0.97 and course[-1] == pytest.approx(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_first_steps_lower_both_losses(tmp_path, name):
    trainee = make.MADE[name][0](tmp_path / "m", 0)
    heads = Heads(0, trainee.frames, trainee.placed)
    recipe, told = replace(make.MADE[name][1], first=12, second=8, warm=2), []
    train.stage_one(trainee, heads, recipe, 0, told.append)
    train.stage_two(trainee, heads, recipe, 0, told.append, looks=4)
    first = [float(line.split("loss ")[1].split()[0]) for line in told]
    assert len(told) == 5 and first[-1] < first[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family", "layout", "tensor"),
    [
        ("internvl2", InternVL2, "original", "language_model.model.layers.0.attention.wqkv.weight"),
        ("llava_next", LlavaNext, "native", "multi_modal_projector.linear_1.weight"),
        ("qwen2_vl", Qwen2VL, "original", "visual.merger.mlp.0.weight"),
    ],
)
def test_two_steps_of_either_stage_make_a_folder_that_opens(tmp_path, monkeypatch, name, family, layout, tensor):
    monkeypatch.setattr(make, "look", lambda trainee: "")
    recipe = train.Recipe(first=2, second=2, pictures=(2, 2), pool=1, again=((1, 0.5),))
    table = build(tmp_path / "made", seed=3, recipe=recipe, each=1, name=name)
    again = build(tmp_path / "again", seed=3, recipe=recipe, each=1, name=name)
    asked = len(score.questions(1)) + (len(score.several(1)) if name == "qwen2_vl" else 0)
    assert sum(s.asked for s in table) == asked == sum(s.asked for s in again)
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"}
    one, two = (load_file(tmp_path / made / "model.safetensors") for made in ("made", "again"))
    assert all(torch.equal(one[key], two[key]) and one[key].dtype == torch.bfloat16 for key in one)
    engine = open_chat(tmp_path / "made", "cpu", "fp32")
    assert isinstance(engine.family, family) and engine.family.layout == layout
    assert tensor in one
    assert json.loads((tmp_path / "made" / "config.json").read_text()).get("dtype", "bfloat16") == "bfloat16"
    if layout == "native":  # what transformers' processor needs lies beside it
        assert names >= {"chat_template.jinja", "processor_config.json", "preprocessor_config.json"}
        assert (
            engine.family.codec.words.id_of("<image>")
            == len(next(t for key, t in one.items() if key.endswith("lm_head.weight"))) - 1
        )


def test_nothing_that_is_there_is_written_over(tmp_path):
    (tmp_path / "mine.log").write_text("a log of mine")
    with pytest.raises(ValueError, match=r"mine\.log is there already"):
        build(tmp_path / "mine")
    with pytest.raises(ValueError, match="is there already"):
        build(tmp_path)
    assert (tmp_path / "mine.log").read_text() == "a log of mine"


def test_no_two_pictures_of_training_are_one():
    drawn = [p.image.tobytes() for p in itertools.islice(train.pictures(0, 1, train.SECOND), 300)]
    assert len(set(drawn)) == 300
