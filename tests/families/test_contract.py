"""The contract of the families that talk, for every language model each of them comes with."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anymix.data import conversations
from anymix.samples import Conversation
from drawn import rows as drawn_rows
from families import contract
from families.contract import CHECKS, FAMILIES, HERE, MADE, PROVED

TESTS = Path(__file__).parents[1]
USUAL = ("internvl2-internlm2", "llava_next-vicuna", "qwen2_vl-released")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Opened by many, written by none."""
    place = tmp_path_factory.mktemp("models")
    return {name: make(place / name) for name, make in MADE.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows with a picture, of other shapes, and one without; answers of one to three words.

    Grainy: attention over patches that are all the same has no gradient but rounding, of which Adam makes steps."""
    place = tmp_path_factory.mktemp("rows")
    path = drawn_rows(place, 4)
    for number, drawn in enumerate(sorted(place.glob("*.png"))):
        with Image.open(drawn) as image:
            noise = np.random.default_rng(number).integers(-40, 40, (image.height, image.width, 3))
            Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)).save(drawn)
    return path


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Conversation]:
    return list(conversations.read(str(data)))


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_is_proved(check: str) -> None:
    """For each of the three families, by a test that is there."""
    if check in HERE:
        assert {name.partition("-")[0] for name in MADE} == set(FAMILIES)
        assert f"test_{HERE[check]}" in globals() and hasattr(contract, HERE[check])
    else:
        assert len(PROVED[check]) == len(FAMILIES)
    for named in PROVED.get(check, ()):
        file, _, test = named.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, named


@pytest.mark.parametrize("name", MADE)
def test_loss_and_gradients_are_the_references(
    name: str, sources: dict[str, Path], rows: list[Conversation], tmp_path: Path
) -> None:
    contract.loss_and_gradients_are_the_references(sources[name], rows, tmp_path)


@pytest.mark.parametrize("name", USUAL)
def test_one_step_of_the_loop(name: str, sources: dict[str, Path], data: Path, tmp_path: Path) -> None:
    contract.one_step_of_the_loop(sources[name], data, tmp_path)


@pytest.mark.parametrize("name", MADE)
def test_the_split_does_not_matter(name: str, sources: dict[str, Path], data: Path, tmp_path: Path) -> None:
    contract.the_split_does_not_matter(sources[name], data, tmp_path)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("name", ["llava_next-vicuna"])
def test_two_ranks_are_one(name: str, sources: dict[str, Path], data: Path, tmp_path: Path) -> None:
    contract.two_ranks_are_one(sources[name], data, tmp_path)


@pytest.mark.parametrize("name", USUAL[1:])
def test_resume_is_bitwise(name: str, sources: dict[str, Path], data: Path, tmp_path: Path) -> None:
    contract.resume_is_bitwise(sources[name], data, tmp_path)


@pytest.mark.parametrize("name", MADE)
def test_it_learns_by_heart_and_says_so(name: str, sources: dict[str, Path], data: Path, tmp_path: Path) -> None:
    contract.it_learns_by_heart_and_says_so(sources[name], data, tmp_path)


@pytest.mark.parametrize("name", MADE)
def test_a_merged_adapter_is_the_adapter(
    name: str, sources: dict[str, Path], rows: list[Conversation], tmp_path: Path
) -> None:
    contract.a_merged_adapter_is_the_adapter(sources[name], rows, tmp_path)


@pytest.mark.parametrize("name", MADE)
def test_answers_are_those_of_generate(
    name: str, sources: dict[str, Path], rows: list[Conversation], tmp_path: Path
) -> None:
    contract.answers_are_those_of_generate(sources[name], rows, tmp_path)


@pytest.mark.parametrize("name", USUAL)
def test_nothing_waits_for_the_device(name: str, sources: dict[str, Path], rows: list[Conversation]) -> None:
    contract.nothing_waits_for_the_device(sources[name], rows)


@pytest.mark.parametrize("name", USUAL)
def test_blocks_are_recomputed(name: str, sources: dict[str, Path], rows: list[Conversation]) -> None:
    contract.blocks_are_recomputed(sources[name], rows)
