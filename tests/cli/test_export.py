"""`anymix export`: one LoRA for every program, its alpha true, what it says of itself kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from anymix.adapters import formats, loading, lora, opening, reading, saving
from anymix.adapters.details import Details
from anymix.cli.export import export
from anymix.cli.merge import merge
from drawing_nets import answer, net, trained

app = typer.Typer()
app.command()(export)
app.command()(merge)


def run(*words: object) -> str:
    """The command's output; what it raises for people comes through as ValueError."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, ValueError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def pipeline(folder: Path, family: str) -> Path:
    """The folder of a pipeline: configurations, and no weights, as none are needed to export."""
    made, index = net(family), {}
    for part, module in made.named_children():
        (folder / part).mkdir(parents=True)
        if hasattr(module, "save_config"):
            module.save_config(folder / part)
        else:
            module.config.architectures = [type(module).__name__]
            module.config.save_pretrained(folder / part)
        index[part] = ["library", type(module).__name__]
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKL"]}))
    return folder


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_there_and_back(family: str, tmp_path: Path) -> None:
    base, made = pipeline(tmp_path / "base", family), trained(family)
    saving.save(made, tmp_path / "out", base, Details(title="fox", triggers=["sks"]))
    told = run("export", tmp_path / "out", "--to", "kohya", "-o", tmp_path / "kohya.safetensors")
    assert (
        "LoRA, rank 3, alpha 7.5" in told and f"kohya, {len(load_file(tmp_path / 'kohya.safetensors'))} tensors" in told
    )
    run("export", tmp_path / "kohya.safetensors", "--to", "comfyui", "-o", tmp_path / "c.safetensors")
    run("export", tmp_path / "c.safetensors", "--to", "diffusers", "-o", tmp_path / "d.safetensors")
    first, last = load_file(tmp_path / "out" / reading.WEIGHTS), load_file(tmp_path / "d.safetensors")
    assert first.keys() == last.keys() and all(torch.allclose(first[name], last[name], atol=1e-6) for name in first)
    for form in ("kohya", "c", "d"):
        said, fresh = header(tmp_path / f"{form}.safetensors"), net(family)
        assert (said["modelspec.title"], said["modelspec.trigger_phrase"]) == ("fox", "sks")
        assert said["base_model"] == str(base)
        loading.load_file(fresh, tmp_path / f"{form}.safetensors")
        assert torch.allclose(answer(fresh), answer(made), rtol=0, atol=1e-5)


def test_words_picture_and_type_are_said_anew(tmp_path: Path) -> None:
    base = pipeline(tmp_path / "base", "sd1")
    formats.write(trained("sd1"), tmp_path / "a.safetensors", "diffusers", base, Details(title="old", triggers=["old"]))
    Image.new("RGB", (4, 4)).save(tmp_path / "p.jpg")
    run(
        "export", tmp_path / "a.safetensors", "--to", "kohya", "-o", tmp_path / "b.safetensors", "--title", "new",
        "--trigger", "sks", "--trigger", "fox", "--preview", tmp_path / "p.jpg", "--dtype", "fp16",
    )  # fmt: skip
    said, tensors = header(tmp_path / "b.safetensors"), load_file(tmp_path / "b.safetensors")
    assert (said["modelspec.title"], said["ss_output_name"]) == ("new", "new")
    assert said["modelspec.trigger_phrase"] == "sks, fox"
    assert said["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert {t.dtype for name, t in tensors.items() if not name.endswith(".alpha")} == {torch.float16}
    assert {float(t) for name, t in tensors.items() if name.endswith(".alpha")} == {7.5}


def test_a_base_that_is_not_at_hand_is_not_needed(tmp_path: Path) -> None:
    """A published model's names are known: by what the file says it is for, or by its widths."""
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    tensors = {
        "lora_down.weight": torch.ones(4, 2048),
        "lora_up.weight": torch.ones(640, 4),
        "alpha": torch.tensor(2.0),
    }
    save_file({f"{name}.{leaf}": t for leaf, t in tensors.items()}, tmp_path / "a.safetensors")
    run("export", tmp_path / "a.safetensors", "--to", "diffusers", "-o", tmp_path / "b.safetensors")
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    assert key in load_file(tmp_path / "b.safetensors") and "base_model" not in header(tmp_path / "b.safetensors")
    unknown = {n.replace("attn2_to_k", "attn1_to_q").replace("input_blocks_4_1", "down_blocks_1_attentions_0"): t
               for n, t in load_file(tmp_path / "a.safetensors").items()}  # fmt: skip
    save_file(unknown, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="does not say which model it adapts; pass base="):
        run("export", tmp_path / "c.safetensors", "--to", "diffusers", "-o", tmp_path / "d.safetensors")


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    base = pipeline(tmp_path / "base", "sd1")
    formats.write(trained("sd1"), tmp_path / "a.safetensors", "diffusers", base)
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for words, complaint in (
        ((source, "--to", "a1111", "-o", target), "--to is diffusers, kohya or comfyui, found 'a1111'"),
        ((source, "--to", "kohya", "-o", tmp_path / "b"), "is no .safetensors file; give one such as b.safetensors"),
        ((source, "--to", "kohya", "-o", source, "--overwrite"), "is the LoRA itself"),
        ((tmp_path / "base", "--to", "kohya", "-o", target), "holds no pytorch_lora_weights.safetensors"),
        (
            (source, "--to", "kohya", "-o", target, "--base", pipeline(tmp_path / "xl", "sdxl")),
            "for Stable Diffusion 1.5",
        ),
    ):
        with pytest.raises(ValueError, match=complaint):
            run("export", *words)
    assert not target.exists()
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="anymix merge --as-adapter"):
        run("export", tmp_path / "peft", "--to", "kohya", "-o", target)
    run("export", source, "--to", "kohya", "-o", target)
    with pytest.raises(ValueError, match="is there already; give another file, or add --overwrite"):
        run("export", source, "--to", "kohya", "-o", target)
    run("export", source, "--to", "comfyui", "-o", target, "--overwrite")
    assert any(name.startswith("diffusion_model.") for name in load_file(target))


def test_nothing_is_left_of_a_file_that_does_not_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pipeline(tmp_path / "base", "sd1")
    formats.write(trained("sd1"), tmp_path / "a.safetensors", "diffusers", base)
    (tmp_path / "b.safetensors").write_bytes(b"of before")
    whole = reading.read

    def read(net: Any, path: Path) -> Any:
        found = whole(net, path)
        if path.name.startswith("."):
            found.updates.popitem()
        return found

    monkeypatch.setattr(reading, "read", read)
    words = ("export", tmp_path / "a.safetensors", "--to", "kohya", "-o", tmp_path / "b.safetensors", "--overwrite")
    with pytest.raises(ValueError, match="does not read back as what it holds"):
        run(*words)
    assert (tmp_path / "b.safetensors").read_bytes() == b"of before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "base"]


def test_a_base_that_is_given_is_the_one_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one the file names may be gone; where the new one has other weights, that is told."""
    base, moved = pipeline(tmp_path / "base", "sd1"), pipeline(tmp_path / "moved", "sd1")
    save_file({"weight": torch.ones(3)}, moved / "unet" / "diffusion_pytorch_model.safetensors")
    formats.write(trained("sd1"), tmp_path / "a.safetensors", "diffusers", base)
    run("export", tmp_path / "a.safetensors", "--to", "kohya", "-o", tmp_path / "b.safetensors", "--base", moved)
    said = header(tmp_path / "b.safetensors")
    assert (said["base_model"], said["ss_sd_model_name"]) == (str(moved), "moved")
    assert said["base_fingerprint"] != header(tmp_path / "a.safetensors")["base_fingerprint"]
    assert "was trained on other weight files than those in" in caplog.text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--preview", "none.png"), "there is no picture none.png; check the path of --preview"),
        (("--preview", "notes.txt"), "a preview is a PNG, JPEG or WebP picture"),
        (
            ("-o", "notes.txt/b.safetensors"),
            "notes.txt/b.safetensors lies under .*notes.txt, which is no folder",
        ),
        (("-o", "base.safetensors"), "--output base.safetensors is a folder, expected a file"),
    ],
)
def test_what_is_cheap_to_tell_is_told_first(
    words: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline(tmp_path / "base.safetensors", "sd1")
    (tmp_path / "notes.txt").write_text("mine")
    formats.write(trained("sd1"), tmp_path / "a.safetensors", "diffusers", "base.safetensors")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=sentence):
        run("export", "a.safetensors", "--to", "kohya", "-o", "b.safetensors", *words)
    assert sorted(tmp_path.iterdir()) == before


def test_merge_takes_lora_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The family's own save is asked for its own layout, with the LoRA in the weights."""
    base, made = pipeline(tmp_path / "base", "sdxl"), trained("sdxl")
    saved: list[Any] = []

    def open_folder(path: Path, device: Any, dtype: Any = None, **options: Any) -> Any:
        family = SimpleNamespace(net=net("sdxl"), frozen={}, folder=path, layout="diffusers")
        family.save = lambda folder, layout, dtype=None: saved.append((folder, layout, dtype, answer(family.net)))
        return family

    monkeypatch.setattr(opening, "open_folder", open_folder)
    saving.save(made, tmp_path / "out", base)
    told = run("merge", tmp_path / "out", "-o", tmp_path / "merged", "--dtype", "fp16")
    folder, layout, dtype, output = saved[0]
    assert (folder, layout, dtype) == (tmp_path / "merged", "diffusers", torch.float16)
    assert torch.allclose(output, answer(made), rtol=0, atol=1e-4)
    assert f"merged {len(lora.adapted(made))} layers" in told and "anymix generate" in told
    with pytest.raises(ValueError, match="for the names of other programs use anymix export"):
        run("merge", tmp_path / "out", "-o", tmp_path / "x", "--as-adapter")
    for layout in ("native", "original"):
        with pytest.raises(ValueError, match="--layout is for models that talk: one that draws is written as"):
            run("merge", tmp_path / "out", "-o", tmp_path / "x", "--layout", layout)
    assert len(saved) == 1
    with pytest.raises(ValueError, match="is the adapter folder itself"):
        run("merge", tmp_path / "out", "-o", tmp_path / "out")
