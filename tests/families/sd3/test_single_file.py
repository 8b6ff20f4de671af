"""SD3 in one file, in Stability's names: against diffusers' own converters, and what is said of parts that lack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from anymix.families import open_folder
from anymix.families.common import parts, single_file
from anymix.families.sd3 import codec, names
from families.tiny_pictures import tiny_sd3

ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}


def original(folder: Path, encoders: bool = True, t5: bool = True) -> dict[str, Tensor]:
    """The pipeline in Stability's names: three thirds are one matrix, scales and shifts of the ends change places."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    config = pipeline.transformer.config
    found: dict[str, Tensor] = {}
    for name, tensor in pipeline.transformer.state_dict().items():
        source, take = names.transformer("model.diffusion_model.", name, config)
        if source.endswith((".qkv.weight", ".qkv.bias")):
            found.setdefault(source, torch.empty(3 * len(tensor), *tensor.shape[1:]))
            take(found[source]).copy_(tensor)  # a view: one third
        else:
            found[source] = take(tensor)  # changing places twice is nothing
    for name, tensor in pipeline.vae.state_dict().items():
        source, take = single_file.vae("first_stage_model.", name, pipeline.vae.config)
        found[source] = tensor[..., None, None] if ".mid.attn_1." in source and tensor.ndim == 2 else tensor
    for part, short in ENCODERS.items() if encoders else ():
        if part != "text_encoder_3" or t5:
            state = getattr(pipeline, part).state_dict()
            found |= {f"text_encoders.{short}.transformer.{name}": tensor for name, tensor in state.items()}
    found.pop("text_encoders.clip_l.transformer.text_projection.weight", None)  # the published files have none
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


@pytest.fixture(scope="module", params=["sd3", "sd35"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"} if request.param == "sd35" else {}
    return tiny_sd3(tmp_path_factory.mktemp("one") / "tiny", **more)


@pytest.fixture
def small(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's configs are those of the published sizes; here they are the fixture's, but for the transformer's
    shape, which is read from the file."""
    configs = tmp_path / "configs"
    for part in ("scheduler", "vae", *ENCODERS):
        (configs / part).mkdir(parents=True)
        for config in (folder / part).glob("*config.json"):
            shutil.copy(config, configs / part)
    shutil.copy(folder / "model_index.json", configs)
    published = json.loads((codec.CONFIGS / "transformer" / "config.json").read_text())
    (configs / "transformer").mkdir()
    said = json.dumps({**published, "attention_head_dim": 8, "sample_size": 16})
    (configs / "transformer" / "config.json").write_text(said)
    monkeypatch.setattr(codec, "CONFIGS", configs)


def test_names_are_those_of_the_diffusers_converters(folder: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    file = original(folder)
    wanted = convert_sd3_transformer_checkpoint_to_diffusers(
        {name: t.clone() for name, t in file.items() if name.startswith("model.diffusion_model.")}
    )
    state = pipeline.transformer.state_dict()
    assert set(wanted) == set(state)
    assert [name for name in state if not torch.equal(wanted[name], state[name])] == []
    vae = convert_ldm_vae_checkpoint({n: t for n, t in file.items() if "first_stage" in n}, pipeline.vae.config)
    assert all(torch.equal(vae[name], tensor) for name, tensor in pipeline.vae.state_dict().items())


@pytest.mark.usefixtures("small")
def test_a_file_is_the_pipeline_it_was_made_of(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    save_file(original(folder), path)
    one, whole = open_folder(path, tokenizer=folder), open_folder(folder)
    assert dict(one.part("transformer").config) == {
        **dict(whole.part("transformer").config),
        "_name_or_path": None,
    } or {key: value for key, value in one.part("transformer").config.items() if not key.startswith("_")} == {
        key: value for key, value in whole.part("transformer").config.items() if not key.startswith("_")
    }
    alike = {part for part in whole.hashes if one.hashes[part] == whole.hashes[part]}
    assert alike == {"transformer", "vae", "text_encoder_2", "text_encoder_3"}
    projection = one.part("text_encoder").text_projection.weight
    assert torch.equal(projection, torch.eye(len(projection)))  # SD3 reads CLIP-L's summary as it is
    whole.part("text_encoder").text_projection.weight.data.copy_(projection)
    ours, theirs = (family.condition(["a red circle"], (32, 32)) for family in (one, whole))
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5) for name in ("text", "pooled"))


@pytest.mark.usefixtures("small")
def test_a_file_saved_as_a_folder_opens_in_diffusers(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    save_file(original(folder), path)
    family = open_folder(path, tokenizer=folder)
    family.save(tmp_path / "out")
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")
    for part in ("transformer", "vae", *ENCODERS):
        state = family.part(part).state_dict()
        assert all(torch.equal(state[name], t) for name, t in getattr(pipeline, part).state_dict().items()), part
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(["a red circle"], None, None, do_classifier_free_guidance=False)
    told = open_folder(tmp_path / "out").condition(["a red circle"], (32, 32))
    assert (told["text"] - text).abs().max() <= 1e-6 and (told["pooled"] - pooled).abs().max() <= 1e-6
    assert pipeline.scheduler.config.shift == 3.0


@pytest.mark.usefixtures("small")
def test_a_file_without_t5_says_so_and_works(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "clips.safetensors"
    save_file(original(folder, t5=False), path)
    family = open_folder(path, tokenizer=folder)
    assert any("clips.safetensors has no T5 (text_encoder_3): zeros" in record.message for record in caplog.records)
    assert not family.condition(["x"], (32, 32))["text"][:, 77:].any()
    family.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    again = open_folder(tmp_path / "out")
    assert again.hashes == family.hashes


@pytest.mark.usefixtures("small")
def test_a_file_without_text_encoders_takes_them_from_a_folder(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file(original(folder, encoders=False), path)
    with pytest.raises(ValueError, match="holds no text encoders.*set model.text_encoders to the folder of any SD3"):
        open_folder(path)
    family = open_folder(path, text_encoders=folder)
    assert family.hashes == open_folder(folder).hashes


@pytest.mark.usefixtures("small")
def test_t5_in_eight_bits_is_read(folder: Path, tmp_path: Path) -> None:
    tensors = original(folder)
    eight = {n: t.to(torch.float8_e4m3fn) if ".t5xxl." in n else t for n, t in tensors.items()}
    path = tmp_path / "eight.safetensors"
    save_file(eight, path)
    family = open_folder(path, tokenizer=folder)
    t5 = family.part("text_encoder_3").state_dict()
    assert {t.dtype for t in t5.values()} == {torch.bfloat16}
    for name, tensor in t5.items():
        assert torch.equal(
            tensor.float(), tensors[f"text_encoders.t5xxl.transformer.{name}"].to(torch.float8_e4m3fn).float()
        )
    assert family.condition(["a red circle"], (32, 32))["text"].isfinite().all()
    family.save(tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out/text_encoder_3/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.usefixtures("small")
def test_what_a_file_lacks_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    whole = original(folder)
    path = tmp_path / "some.safetensors"
    save_file(whole, path)
    with pytest.raises(ValueError, match="holds no vocabulary, as single files never do"):
        open_folder(path)
    clips = tmp_path / "clips"
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(folder / name, clips / name)
    with pytest.raises(
        ValueError, match="holds T5 but no vocabulary of it, and in .*clips is none; set model.tokenizer"
    ):
        open_folder(path, tokenizer=clips)
    save_file({name: t for name, t in whole.items() if "first_stage" not in name}, path)
    with pytest.raises(ValueError, match="holds no vae; set model.vae to a folder that does"):
        open_folder(path, tokenizer=folder)
    save_file({"diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="is a LoRA, expected a whole model"):
        open_folder(path, tokenizer=folder)


def test_the_published_sizes_make_their_models() -> None:
    """Configs of the package, without memory: medium has 2.03 billion parameters, T5 4.76."""
    sizes = {}
    for part in ("transformer", "vae", *ENCODERS):
        config = json.loads((codec.CONFIGS / part / "config.json").read_text())
        sizes[part] = sum(p.numel() for p in parts.empty(parts.Part(part, config, codec.CONFIGS, dict)).parameters())
    assert round(sizes["transformer"] / 1e9, 2) == 2.03
    assert round(sizes["text_encoder"] / 1e6) == 124 and round(sizes["text_encoder_2"] / 1e6) == 695
    assert round(sizes["text_encoder_3"] / 1e9, 2) == 4.76 and round(sizes["vae"] / 1e6) == 84
