"""The pipelines that come with the package: whole, small, plain diffusers folders, and as good as their READMEs say."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from anymix.starter import drawn, pictures, sight
from house.source import PACKAGE

FOLDERS = PACKAGE / "starter" / "models"
CLASSES = {
    "sdxl": "StableDiffusionXLPipeline", "sd15": "StableDiffusionPipeline", "sd3": "StableDiffusion3Pipeline",
}  # fmt: skip
ENCODERS = {"sdxl": 2, "sd15": 1, "sd3": 3}
HEADER = re.compile(r"^\| (.+?) \| (\d+) \| (.+) \|$", re.M)


@pytest.fixture(scope="module")
def opened():
    found = {}

    def open_(kind):
        if kind not in found:
            found[kind] = DiffusionPipeline.from_pretrained(FOLDERS / kind, local_files_only=True).to(torch.float32)
        return found[kind]

    return open_


@pytest.mark.parametrize("kind", CLASSES)
def test_the_folder_is_whole_and_small(kind):
    files = [path for path in (FOLDERS / kind).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 9_000_000
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 2 + ENCODERS[kind]
    for path in weights:
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}, path
            if path.parent.name in ("text_encoder", "text_encoder_2"):  # by other names transformers 5.5 finds nothing
                assert {key.split(".")[0] for key in file.keys()} <= {"text_model", "text_projection"}, path
    assert (FOLDERS / kind / "README.md").is_file() and not [p for p in files if "safety" in str(p)]


@pytest.mark.parametrize("kind", CLASSES)
def test_diffusers_opens_it_and_it_draws_what_it_is_asked(kind, opened):
    pipeline = opened(kind)
    assert type(pipeline).__name__ == CLASSES[kind]
    wanted = drawn.Wish("green", "square", "white", "large", "centre")
    image = next(iter(pictures.draw(pipeline, [drawn.caption(wanted)], steps=12)))
    assert image.size == (64, 64)
    assert all(sight.right(image, wanted).values())


def test_what_is_drawn_does_not_depend_on_how_many_are_drawn_at_once(opened):
    wishes = [drawn.caption(w) for w in drawn.sheet(3, 5)]
    together = list(pictures.draw(opened("sdxl"), wishes, steps=3))
    alone = next(iter(pictures.draw(opened("sdxl"), wishes[2:], first_seed=2, steps=3)))
    differ = max(abs(a - b) for a, b in zip(together[2].tobytes(), alone.tobytes(), strict=True))
    assert differ <= 1


@pytest.mark.parametrize("kind", CLASSES)
def test_any_text_is_a_prompt(kind, opened):
    """Words it has never seen, another script, more than it can hold."""
    for prompt in ("Pikachu 42!", "\u4e00\u53ea\u732b", "a red circle " * 40, ""):
        assert next(iter(pictures.draw(opened(kind), [prompt], steps=1))).size == (64, 64)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_words_of_captions_are_one_token_each(kind, opened):
    tokenizers = [part for name, part in opened(kind).components.items() if name.startswith("tokenizer")]
    assert len(tokenizers) == ENCODERS[kind]
    for wanted in drawn.sheet(20, 6):
        caption = drawn.caption(wanted)
        for tokenizer in tokenizers:
            ids = tokenizer(caption).input_ids
            extra = 2 if type(tokenizer).__name__.startswith("CLIP") else 1
            assert len(ids) == len(caption.split()) + extra <= 20
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_it_draws_as_well_as_its_readme_says(kind, opened):
    """The first forty of the sheet again; what the README tells is within what so many can tell."""
    wishes = pictures.test_sheet(40)["new pairs"]
    images = list(pictures.draw(opened(kind), [drawn.caption(w) for w in wishes]))
    tally = pictures.count("new pairs", wishes, images)[0]
    rows = {name: shares for name, _, shares in HEADER.findall((FOLDERS / kind / "README.md").read_text())}
    told = dict(zip((*sight.TRAITS, "all"), map(float, rows["new pairs"].split(" | ")), strict=True))
    for trait, share in told.items():
        assert 100 * tally.share(trait) >= share - 12, (trait, tally)
        assert share >= 90, trait
