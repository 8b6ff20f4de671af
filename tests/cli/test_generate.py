"""`anymix generate`: from prompts to files, and every wrong input a sentence."""

from __future__ import annotations

import json

import pytest
from PIL import Image, ImageChops

from anymix.cli.generate import _lora
from anymix.engines import open_image
from anymix.engines.pictures import read_record
from engines.painters import folder

QUICK = ("--device", "cpu", "--dtype", "fp32", "--steps", 2, "--width", 32, "--height", 32)


def _draw(anymix, *words):
    run = anymix("generate", folder("sdxl"), *words, *QUICK)
    assert run.exit_code == 0, (run.exception, run.stderr)
    return run


def _same(path, image):
    with Image.open(path) as drawn:
        return max(high for _, high in ImageChops.difference(drawn, image).getextrema()) <= 1


def test_one_prompt_to_one_file(anymix, tmp_path):
    path = tmp_path / "new" / "x.png"
    run = _draw(anymix, "a cat", "-o", path, "--seed", 3, "--negative", "dog", "--guidance", 5)
    engine = open_image(folder("sdxl"), "cpu", "fp32")
    told = {"negative": "dog", "seed": 3, "width": 32, "height": 32, "steps": 2, "guidance": 5.0}
    assert _same(path, engine.draw("a cat", **told)[0].image)
    assert f"{path}: seed 3, 32x32, " in run.stdout
    assert "sdxl on cpu, float32" in run.stderr
    for name, code in engine.hashes.items():
        assert f"  {name}  {code}" in run.stderr


def test_the_file_says_how_to_draw_it_again(anymix, tmp_path):
    _draw(anymix, "a cat", "-o", tmp_path / "x.png")
    said = read_record(tmp_path / "x.png")
    _draw(anymix, said["prompt"], "-o", tmp_path / "y.png", "--seed", said["seed"], "--guidance", said["guidance"])
    with Image.open(tmp_path / "y.png") as again:
        assert _same(tmp_path / "x.png", again)


def test_several_are_numbered(anymix, tmp_path):
    _draw(anymix, "a cat", "a dog", "-o", tmp_path / "x.png", "--count", 2, "--seed", 7, "--batch", 3)
    found = {path.name: read_record(path) for path in tmp_path.iterdir()}
    assert {name: (said["prompt"], said["seed"]) for name, said in found.items()} == {
        "x-1.png": ("a cat", 7), "x-2.png": ("a cat", 8), "x-3.png": ("a dog", 7), "x-4.png": ("a dog", 8),
    }  # fmt: skip
    _draw(anymix, "a cat", "-o", tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["00001.png"]


def test_json_and_a_file_of_prompts(anymix, tmp_path):
    rows = [{"prompt": "一只猫", "seed": 5, "width": 48}, {"prompt": "dog", "negative": "n", "steps": 1, "guidance": 1}]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    run = _draw(anymix, "--prompts", file, "-o", tmp_path / "out", "--seed", 9, "--json")
    said = json.loads(run.stdout)
    assert [(p["prompt"], p["seed"], p["width"], p["steps"], p["guidance"]) for p in said["pictures"]] == [
        ("一只猫", 5, 48, 2, 7.0),
        ("dog", 9, 32, 1, 1),
    ]
    assert [p["path"] for p in said["pictures"]] == [str(tmp_path / "out" / f"0000{n}.png") for n in (1, 2)]
    assert set(said["hashes"]) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert said["seconds"] >= sum(p["seconds"] for p in said["pictures"]) * 0.9 > 0


def test_from_a_picture(anymix, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "in.png")
    _draw(
        anymix, "a cat", "-i", tmp_path / "in.png", "--strength", 0.5, "-o", tmp_path / "x.png", "--scheduler", "ddim"
    )
    said = read_record(tmp_path / "x.png")
    assert (said["strength"], said["scheduler"]) == (0.5, "ddim")


def test_nothing_is_written_over_unasked(anymix, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"mine")
    run = anymix("generate", folder("sdxl"), "a cat", "-o", path, *QUICK)
    assert "is there already; give another --output, or add --overwrite" in str(run.exception)
    assert path.read_bytes() == b"mine"
    _draw(anymix, "a cat", "-o", path, "--overwrite")
    assert read_record(path)["prompt"] == "a cat"


def test_a_black_picture_is_told(anymix, tmp_path, monkeypatch):
    from anymix.engines.pictures import Picture

    monkeypatch.setattr(Picture, "black", True)
    run = _draw(anymix, "a cat", "-o", tmp_path / "x.png")
    assert "x.png is all black; if that is not what was asked for" in run.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is no prompt; write one after the model"),
        ([" "], "a prompt is empty; write what to draw"),
        (["x", "--steps", 0], "steps = 0, expected at least 1"),
        (["x", "--seed", -1], "seed = -1, expected 0 or more"),
        (["x", "--guidance", "nan"], "guidance = nan, expected a number such as 7"),
        (["x", "--strength", 2], r"strength = 2.0, expected 0 to 1"),
        (["x", "--image", "gone.png"], "there is no picture gone.png; check the path"),
        (["x", "--prompts", "gone.txt"], "the prompt file gone.txt cannot be read"),
        (["x", "--scheduler", "plms"], "'plms' is not known for this model; use one of euler"),
        (["x", "--width", 33], "the size 33x32 is not in steps of 2 pixels"),
        (["x", "--eta", 0.5], "eta = 0.5 is for ddim"),
        (["x", "--unet", "gone"], "gone"),
        (["x", "--lora", "gone.safetensors:0.5"], "gone.safetensors"),
        (["x", "--device", "tpu"], "device = 'tpu' is not known"),
        (["x", "--transformer", "y"], "transformer is no option of this model"),
        (["x", "-o", "x.jpg"], "x.jpg names no PNG"),
    ],
)
def test_what_is_wrong_is_a_sentence(anymix, tmp_path, words, sentence):
    more = [] if "-o" in words else ["-o", tmp_path / "x.png"]
    run = anymix("generate", folder("sdxl"), "--device", "cpu", "--height", 32, *more, *words)
    assert isinstance(run.exception, ValueError), run.stderr
    assert sentence in str(run.exception)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--scheduler", "plms"], "'plms' is not known for this model; use one of euler"),
        (["--width", 33], "the size 33x32 is not in steps of 2 pixels"),
        (["--lora", "gone.safetensors:0.5"], "there is no gone.safetensors"),
        (["--lora", folder("sdxl") / "unet" / "diffusion_pytorch_model.safetensors"], "is no LoRA file"),
        (["--vae", "gone"], "there is no folder gone"),
        (["--image", __file__], "is no picture anymix knows"),
        (["-o", "/dev/null/x.png"], "--output /dev/null/x.png lies under /dev/null, which is no folder"),
        (["-o", "/closed/x.png"], "--output /closed/x.png cannot be written, as / is closed to you"),
        (["-o", "/closed"], "--output /closed/00001.png cannot be written, as / is closed to you"),
    ],
)
def test_what_is_cheap_to_tell_is_told_before_weights_are_read(anymix, tmp_path, monkeypatch, words, sentence):
    from anymix.engines import drawing

    monkeypatch.setattr(drawing, "opened", lambda *_, **__: pytest.fail("it is late"))
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "/")
    more = [] if "-o" in words else ["-o", tmp_path / "x.png"]
    run = anymix("generate", folder("sdxl"), "a cat", "--device", "cpu", "--height", 32, *more, *words)
    assert isinstance(run.exception, ValueError) and sentence in str(run.exception), run.exception


def test_a_chat_model_is_told_so_at_once(anymix, model, tmp_path):
    run = anymix("generate", model, "a cat", "-o", tmp_path / "x.png", "--device", "cpu")
    assert "of the family internvl2, which does not draw" in str(run.exception)


def test_a_lora_may_carry_its_weight(tmp_path):
    odd = tmp_path / "a:0.5"
    odd.write_text("")
    assert _lora("a.safetensors") == ("a.safetensors", 1.0)
    assert _lora("a.safetensors:0.6") == ("a.safetensors", 0.6)
    assert _lora("a.safetensors:-1") == ("a.safetensors", -1.0)
    assert _lora("C:/a.safetensors") == ("C:/a.safetensors", 1.0)
    assert _lora(str(odd)) == (str(odd), 1.0)
