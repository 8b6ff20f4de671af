"""The recipe's parts, and its first steps."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file

from anymix import open_chat
from anymix.families.internvl2 import InternVL2
from anymix.starter import score
from anymix.starter.build import network, rows, train
from anymix.starter.build.make import build
from anymix.starter.build.muon import Optimiser, orthogonal
from anymix.starter.build.patches import Heads, labels_of, tiles_of
from anymix.starter.canvas import SQUARE, THINGS, WIDE
from anymix.starter.scenes import conversation, draw


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return network.new(tmp_path_factory.mktemp("new") / "starter", seed=0)


def test_the_config_is_an_internvl2_of_two_tiles(model):
    codec = model.codec
    assert (codec.image_size, codec.tokens_per_tile, codec.max_tiles, codec.thumbnail) == (56, 16, 2, True)
    assert codec.template.name == "internlm2-chat" and codec.words.adds_bos
    assert 1_000_000 < sum(p.numel() for p in model.net.parameters()) < 1_300_000


def test_any_text_comes_back_from_the_tokenizer(model):
    for text in ("What colour is it?", "a red star", "书生 42 naïve 🚀", " two  spaces "):
        assert model.codec.words.decode(model.codec.words.encode(text)) == text
    assert len(model.codec.words.encode("47")) == 2  # digits stand alone


def test_tiles_are_the_codecs_own(model):
    for seed, size in ((1, SQUARE), (2, WIDE)):
        picture = draw(seed, {"scene": 1.0}, size)
        item = model.codec.encode(conversation(picture, picture.questions[:1]))
        assert torch.equal(tiles_of(picture)[0], item.tiles)


def test_a_row_of_many_questions_is_so_many_rows_of_one(model):
    """Summed, packed and separate losses agree: no question sees another, positions are those of a single one."""
    for seed, size in ((11, SQUARE), (12, WIDE)):
        picture = draw(seed, {"scene": 1.0}, size)
        asked = picture.questions
        row = rows.Layer(model.codec).row(picture, asked)
        tensors = rows.batch([row], model.codec.pad_id)
        targets = sum(label != rows.IGNORE for label in row.labels)
        with torch.no_grad():
            tokens = train._see(model, tiles_of(picture)[0])[1]
            packed = train._next_token(model, tensors, tokens) * targets
            items = [model.codec.encode(conversation(picture, [question])) for question in asked]
            batches = [model.codec.collate([item]) for item in items]
            single = sum(model.loss(batch) for batch in batches)
        assert targets == sum(batch.weight for batch in batches)
        torch.testing.assert_close(packed, single, rtol=1e-4, atol=1e-3)


def test_padding_changes_nothing(model):
    drawn = [draw(seed, {"scene": 1.0}, size) for seed, size in ((21, SQUARE), (22, WIDE))]
    layer = rows.Layer(model.codec)
    laid = [
        layer.row(p, p.questions[:n], together) for (p, n, together) in zip(drawn, (1, 3), (True, False), strict=True)
    ]
    with torch.no_grad():
        tiles = [tiles_of(p)[0] for p in drawn]
        both = train._next_token(model, rows.batch(laid, 0), train._see(model, torch.cat(tiles))[1])
        alone = [
            train._next_token(model, rows.batch([r], 0), train._see(model, t)[1])
            for r, t in zip(laid, tiles, strict=True)
        ]
    counts = [sum(label != rows.IGNORE for label in r.labels) for r in laid]
    mean = sum(a * n for a, n in zip(alone, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(both, mean, rtol=1e-4, atol=1e-5)


def test_patch_labels_name_what_lies_there():
    picture = draw(4, {"chart": 1.0}, SQUARE)
    _, things, inks = tiles_of(picture)
    named, ink, cover = labels_of(things, inks)
    assert named.shape == ink.shape == (1, 64) and cover.shape == (1, 64, 49)
    assert set(named.unique().tolist()) == {0, THINGS.index("bar")}
    assert not cover[named == 0].any() and cover.float().mean() > 0.1


def test_orthogonal_makes_singular_values_one():
    for shape in ((3, 128, 128), (2, 256, 128), (1, 128, 512)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.median() > 0.6 and values.max() < 1.4


def test_the_optimiser_lowers_a_loss_and_sorts_tables_from_matrices(model):
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
def test_the_first_steps_lower_both_losses(tmp_path):
    model, heads = network.new(tmp_path / "m", 0), Heads(0)
    recipe, told = train.Recipe(first=12, second=8, warm=2), []
    train.stage_one(model, heads, recipe, 0, told.append)
    train.stage_two(model, heads, recipe, 0, told.append, looks=4)
    first = [float(line.split("loss ")[1].split()[0]) for line in told]
    assert len(told) == 5 and first[-1] < first[1]


@pytest.mark.slow
def test_two_steps_of_either_stage_make_a_folder_that_opens(tmp_path):
    recipe = train.Recipe(first=2, second=2, pictures=(2, 2), pool=1)
    table = build(tmp_path / "made", seed=3, recipe=recipe, each=1)
    again = build(tmp_path / "again", seed=3, recipe=recipe, each=1)
    assert sum(s.asked for s in table) == len(score.questions(1)) == sum(s.asked for s in again)
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"}
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("made", "again"))
    assert all(torch.equal(one[key], two[key]) and one[key].dtype == torch.bfloat16 for key in one)
    engine = open_chat(tmp_path / "made", "cpu", "fp32")
    assert isinstance(engine.family, InternVL2) and engine.family.layout == "original"
    assert "language_model.model.layers.0.attention.wqkv.weight" in one


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
