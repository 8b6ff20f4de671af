"""Every sequence is turned as if it were alone, and no forward waits for the device."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anymix.families import open_folder
from anymix.families.common import rotary
from anymix.families.contract import Batch, Prompt
from anymix.families.internvl2 import InternVL2, weights
from tiny import Language, tiny_internvl2

LIMIT = 48
HALF = 8  # pairs of a head of the tiny models
KINDS: tuple[Language, ...] = ("internlm2", "phi3")


def model(folder: Path, llm: Language) -> Path:
    """A tiny model whose frequencies change beyond LIMIT positions."""
    tiny_internvl2(folder, llm, max_positions=LIMIT if llm == "internlm2" else 4 * LIMIT)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if llm == "phi3":
        factors = {"short_factor": [1.0 + 0.1 * i for i in range(HALF)], "long_factor": [2.0 + i for i in range(HALF)]}
        config["llm_config"] |= {
            "original_max_position_embeddings": LIMIT,
            "rope_scaling": {"type": "su", **factors},
        }
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {llm: model(tmp_path_factory.mktemp("rotary") / llm, llm) for llm in KINDS}


def opened(folder: Path) -> InternVL2:
    family = open_folder(folder)
    assert isinstance(family, InternVL2)
    return family


def words(length: int, seed: int = 0) -> Tensor:
    ids = torch.randint(5, 250, (length,), generator=torch.Generator().manual_seed(seed))
    ids[0] = 1
    return ids


def batch(rows: Sequence[Tensor]) -> Batch:
    """Rows of ids as one row of concatenated sequences; every next token is a target."""
    borders = torch.tensor([0, *map(len, rows)]).cumsum(0).tolist()
    tensors = {
        "input_ids": torch.cat(list(rows)),
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows]),
        "target_positions": torch.cat([torch.arange(len(row) - 1) + n for row, n in zip(rows, borders, strict=False)]),
        "target_ids": torch.cat([row[1:] for row in rows]),
    }
    return Batch(tensors, {"cu_seqlens": borders}, ("a",), float(len(tensors["target_ids"])))


def greedy(family: InternVL2, rows: Sequence[Tensor], new: int) -> Tensor:
    """(B, new) ids."""
    logits, cache = family.prefill(*(Prompt(row, None, "a") for row in rows))
    said = []
    for _ in range(new):
        said.append(logits.argmax(1))
        logits = family.step(said[-1], cache)
    return torch.stack(said, 1)


# -------------------------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("length", [1, LIMIT - 1, LIMIT, LIMIT + 1, 70, 191])
@pytest.mark.parametrize("llm", KINDS)
def test_a_row_alone_is_turned_as_transformers_turns_it(folders: dict[str, Path], llm: str, length: int) -> None:
    tower = opened(folders[llm]).net.model.language_model
    stock = weights.load(folders[llm]).model.language_model.rotary_emb  # new: it remembers what it has seen
    x, positions = torch.zeros(1, length, 64), torch.arange(length)[None]
    theirs = stock(x, positions)
    with rotary.lengths(tower, [length]):
        ours = tower.rotary_emb(x, positions)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_dynamic_frequencies_are_those_of_the_formula(folders: dict[str, Path]) -> None:
    """base * (factor * L / limit - (factor - 1)) ** (D / (D - 2)) of InternLM2DynamicNTKScalingRotaryEmbedding."""
    tower = opened(folders["internlm2"]).net.model.language_model
    base = 10000.0 * (2.0 * 90 / LIMIT - 1.0) ** (2 * HALF / (2 * HALF - 2))
    with rotary.lengths(tower, [90]):
        cos, _ = tower.rotary_emb(torch.zeros(1, 1, 64), torch.tensor([[89]]))
    expected = [math.cos(89 * base ** (-i / HALF)) for i in range(HALF)]
    assert torch.allclose(cos[0, 0, :HALF], torch.tensor(expected), atol=1e-5)


def test_longrope_frequencies_are_those_of_the_formula(folders: dict[str, Path]) -> None:
    """theta ** (-i / (D / 2)) / long_factor, and cos and sin scaled by sqrt(1 + ln(4) / ln(limit))."""
    tower = opened(folders["phi3"]).net.model.language_model
    scale = math.sqrt(1 + math.log(4) / math.log(LIMIT))
    for length, factors in ((LIMIT, [1.0 + 0.1 * i for i in range(HALF)]), (LIMIT + 1, range(2, 2 + HALF))):
        with rotary.lengths(tower, [length]):
            cos, _ = tower.rotary_emb(torch.zeros(1, 1, 64), torch.tensor([[length - 1]]))
        turns = [(length - 1) * 10000.0 ** (-i / HALF) / factor for i, factor in enumerate(factors)]
        assert torch.allclose(cos[0, 0, :HALF], torch.tensor([scale * math.cos(a) for a in turns]), atol=1e-5)


@pytest.mark.parametrize("length", [30, LIMIT, 70])
@pytest.mark.parametrize("llm", KINDS)
def test_the_loss_of_one_row_is_that_of_transformers(folders: dict[str, Path], llm: str, length: int) -> None:
    row = words(length)
    net = weights.load(folders[llm])
    with torch.no_grad():
        logits = net(input_ids=row[None]).logits[0, :-1].float()
        ours = opened(folders[llm]).loss(batch([row])).item()
    theirs = torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
    assert abs(ours - theirs) < 1e-5 * theirs


@pytest.mark.parametrize("length", [20, 40, LIMIT, 60])
@pytest.mark.parametrize("llm", KINDS)
def test_greedy_ids_are_those_of_transformers_across_the_limit(folders: dict[str, Path], llm: str, length: int) -> None:
    row, new = words(length), 40
    stock = weights.load(folders[llm])
    theirs = stock.generate(
        input_ids=row[None], attention_mask=torch.ones(1, length), max_new_tokens=new, min_new_tokens=new,
        do_sample=False, pad_token_id=2, eos_token_id=None,
    )[:, length:]  # fmt: skip
    assert torch.equal(greedy(opened(folders[llm]), [row], new), theirs)


@pytest.mark.parametrize("llm", KINDS)
def test_without_lengths_the_net_is_transformers_own(folders: dict[str, Path], llm: str) -> None:
    """Also after our own forwards: they leave nothing behind."""
    family, row = opened(folders[llm]), words(60)
    family.loss(batch([words(90), words(20)]))
    greedy(family, [words(70), words(9)], 3)
    stock = weights.load(folders[llm])
    assert type(stock.model.language_model.rotary_emb).__module__.startswith("transformers.")
    with torch.no_grad():
        assert torch.equal(family.net(input_ids=row[None]).logits, stock(input_ids=row[None]).logits)


# -------------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("llm", KINDS)
def test_packed_equals_separate_beyond_the_limit(folders: dict[str, Path], llm: str, checkpointing: bool) -> None:
    family = opened(folders[llm])
    family.net.train()
    if checkpointing:
        family.checkpoint_activations(("language",))
    rows = [words(length, length) for length in (20, 90, LIMIT, 64)]
    together = family.loss(batch(rows))
    together.backward()
    packed = {name: p.grad.clone() for name, p in family.net.named_parameters() if p.grad is not None}
    assert any("q_proj" in name or "qkv_proj" in name for name in packed)
    family.net.zero_grad()
    alone = 0.0
    for row in rows:
        loss = family.loss(batch([row]))
        loss.backward()
        alone += loss.item()
    assert abs(together.item() - alone) < 1e-5 * alone
    for name, gradient in packed.items():
        own = family.net.get_parameter(name).grad
        assert own is not None
        assert (gradient - own).abs().max() <= 1e-5 * max(1.0, float(own.abs().max())), name


@pytest.mark.parametrize("llm", KINDS)
def test_a_batch_answers_as_each_row_alone(folders: dict[str, Path], llm: str) -> None:
    """Short beside long, and rows that cross the limit at different steps."""
    family, rows = opened(folders[llm]), [words(n, n) for n in (9, 80, 40, LIMIT)]
    together = greedy(family, rows, 24)
    alone = torch.cat([greedy(opened(folders[llm]), [row], 24) for row in rows])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("llm", KINDS)
def test_rows_that_stay_keep_their_own_frequencies(folders: dict[str, Path], llm: str) -> None:
    family, rows = opened(folders[llm]), [words(80), words(30, 1)]
    logits, cache = family.prefill(*(Prompt(row, None, "a") for row in rows))
    token = logits.argmax(1)[1:]
    cache.keep([1])
    own, alone = family.prefill(Prompt(rows[1], None, "a"))
    assert own.argmax(1).equal(token)
    assert (family.step(token, cache) - family.step(token, alone)).abs().max() < 1e-4


# -------------------------------------------------------------------------------------------- syncs


class Reads(TorchDispatchMode):
    """Counts tensors read by the host: each makes it wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("length", [20, 90])
@pytest.mark.parametrize("llm", [*KINDS, "qwen2"])
def test_nothing_waits_for_the_device(folders: dict[str, Path], llm: Language, length: int, tmp_path: Path) -> None:
    folder = folders.get(llm) or tiny_internvl2(tmp_path / "m", llm)
    family = opened(folder)
    with Reads() as reads:
        family.loss(batch([words(length), words(10)])).backward()
    assert reads.count == 0
    logits, cache = family.prefill(Prompt(words(length), None, "a"))
    with Reads() as reads:
        family.step(logits.argmax(1), cache)
    assert reads.count == 0


# -------------------------------------------------------------------------------------------- the module


@pytest.mark.parametrize(("llm", "replaced"), [("internlm2", True), ("phi3", True), ("qwen2", False)])
def test_only_frequencies_that_depend_on_the_length_are_ours(
    folders: dict[str, Path], llm: Language, replaced: bool, tmp_path: Path
) -> None:
    family = opened(folders.get(llm) or tiny_internvl2(tmp_path / "m", llm))
    tower = family.net.model.language_model
    assert isinstance(tower.rotary_emb, rotary.RotaryByLength) is replaced
    first = tower.rotary_emb
    rotary.use(tower)
    assert tower.rotary_emb is first
    assert not [name for name in family.net.state_dict() if "rotary" in name]


def test_lengths_that_do_not_fit_are_refused(folders: dict[str, Path]) -> None:
    tower = opened(folders["internlm2"]).net.model.language_model
    with rotary.lengths(tower, [3, 4]), pytest.raises(ValueError, match="2 sequences of 7 tokens .* 1 x 8"):
        tower.rotary_emb(torch.zeros(1, 8, 64), torch.arange(8)[None])
    assert tower.rotary_emb.lengths is None
