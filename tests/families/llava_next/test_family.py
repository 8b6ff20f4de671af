"""LLaVA-1.6 as the loop, the adapters and the engine meet it: losses, gradients, LoRA, answers."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch

from anymix import families
from anymix.adapters import lora
from anymix.adapters.opening import open_family
from anymix.config import Adapter
from anymix.data import conversations
from anymix.engines.chat import ChatEngine, ask
from anymix.engines.sampling import Sampling
from anymix.families.contract import ChatFamily
from anymix.families.llava_next import LlavaNext
from anymix.samples import Conversation, ImageRef
from drawn import rows
from tiny_llava import tiny_llava


@pytest.fixture
def family(tmp_path: Path) -> LlavaNext:
    opened = families.open_folder(tiny_llava(tmp_path / "m"))
    assert isinstance(opened, LlavaNext) and isinstance(opened, ChatFamily)
    return opened


@pytest.fixture
def samples(tmp_path: Path) -> list[Conversation]:
    return list(conversations.read(str(rows(tmp_path / "rows", 4))))


def test_rows_together_are_the_sum_of_rows_alone(family: LlavaNext, samples: list[Conversation]) -> None:
    """Loss and gradients, two with pictures of several tiles, one without."""
    items = [family.codec.encode(sample) for sample in samples]
    assert [item.tiles is None for item in items] == [False, False, False, True]

    def graded(*batches: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
        family.net.zero_grad()
        total = 0.0
        for batch in batches:
            loss = family.loss(family.codec.collate([items[i] for i in batch]))
            loss.backward()
            total += loss.item()
        return total, {n: p.grad.clone() for n, p in family.net.named_parameters() if p.grad is not None}

    together, alone = graded([0, 1, 2, 3]), graded([0], [1], [2], [3])
    assert together[0] == pytest.approx(alone[0], rel=1e-6)
    assert together[1].keys() == alone[1].keys()
    for name, gradient in alone[1].items():
        assert (together[1][name] - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_idle_is_what_no_loss_reaches(family: LlavaNext, samples: list[Conversation]) -> None:
    family.loss(family.codec.collate([family.codec.encode(sample) for sample in samples])).backward()
    for name, parameter in family.net.named_parameters():
        idle = any(fnmatchcase(name, glob) for glob in family.idle)
        reached = parameter.grad is not None and float(parameter.grad.abs().max()) > 1e-5
        assert reached != idle, name


def test_a_row_without_a_picture_gives_the_towers_zeros(family: LlavaNext, samples: list[Conversation]) -> None:
    """So ranks with pictures and ranks without agree on what has a gradient."""
    family.net.train()
    batch = family.codec.collate([family.codec.encode(samples[3])])
    family.loss(batch).backward()
    for name in ("model.image_newline", "model.multi_modal_projector.linear_1.weight"):
        gradient = family.net.get_parameter(name).grad
        assert gradient is not None and not gradient.any(), name


def test_recomputed_activations_change_nothing(family: LlavaNext, samples: list[Conversation]) -> None:
    batch = family.codec.collate([family.codec.encode(sample) for sample in samples])
    family.net.train()
    before = family.loss(batch)
    before.backward()
    name = "model.vision_tower.*encoder.layers.0.mlp.fc1.weight"
    parameter = next(p for n, p in family.net.named_parameters() if fnmatchcase(n, name))
    assert parameter.grad is not None
    kept = parameter.grad.clone()
    family.net.zero_grad()
    family.checkpoint_activations(["language", "vision", "projector"])
    after = family.loss(batch)
    after.backward()
    assert torch.equal(before, after)
    assert (parameter.grad - kept).abs().max() < 1e-6


def test_lora_on_every_part_is_saved_opened_and_merged(
    family: LlavaNext, samples: list[Conversation], tmp_path: Path
) -> None:
    batch = family.codec.collate([family.codec.encode(sample) for sample in samples])
    before = family.loss(batch).item()
    config = Adapter(rank=2, parts=["language", "vision", "projector"])
    names = lora.attach(family.net, config, family.lora_targets, str(tmp_path / "m"))
    assert len(names) == 2 * 7 + 2 * 6 + 2  # the tower's third block is behind the features
    assert family.loss(batch).item() == pytest.approx(before, rel=1e-6)
    optimizer = torch.optim.SGD(lora.trainable(family.net).values(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        (family.loss(batch) / batch.weight).backward()
        optimizer.step()
    trained = family.loss(batch).item()
    assert trained < before - 0.1
    lora.save(family.net, tmp_path / "lora", tmp_path / "m")
    again = open_family(tmp_path / "lora", "cpu")
    assert again.loss(batch).item() == pytest.approx(trained, rel=1e-6)
    lora.merge(again.net)
    again.save(tmp_path / "merged")
    merged = open_family(tmp_path / "merged", "cpu")
    assert merged.layout == "original"
    assert merged.loss(batch).item() == pytest.approx(trained, rel=1e-5)


@pytest.mark.parametrize("kind", ["vicuna", "mistral", "yi", "llama3"])
def test_answers_in_a_batch_are_those_alone(kind: str, tmp_path: Path) -> None:
    rows(tmp_path / "rows", 3)
    engine = ChatEngine(families.open_folder(tiny_llava(tmp_path / kind, kind)))  # type: ignore[arg-type]
    refs = [ImageRef(str(tmp_path / "rows" / f"{i}.png")) for i in range(3)]
    asked = [
        Conversation((ask("What colour is the card?", refs[:1]),), "a"),
        Conversation((ask("Hello"),), "b"),
        Conversation((ask("Which is red?", refs[1:]),), "c"),
    ]
    few = Sampling(max_new_tokens=6)
    together = engine.answer(asked, few)
    for one, answer in zip(asked, together, strict=True):
        assert engine.answer([one], few)[0].ids == answer.ids


def test_a_chosen_template_goes_along(tmp_path: Path) -> None:
    opened = families.open_folder(tiny_llava(tmp_path / "m"), template="vicuna_v1")
    for layout in ("original", "native"):
        opened.save(tmp_path / layout, layout)
        assert families.codec_of(tmp_path / layout).template.name == "vicuna_v1"
