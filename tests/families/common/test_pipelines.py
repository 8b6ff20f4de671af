"""A pipeline folder opened by parts and given back; what cannot be opened is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from anymix.adapters.opening import open_family
from anymix.families import codec_of, open_folder
from anymix.families.common import part_files, shards
from families.tiny_pictures import named_as_published, tiny_sd2, tiny_sd15, tiny_sdxl


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made")
    return {"sd15": tiny_sd15(root / "sd15"), "sd2": tiny_sd2(root / "sd2"), "sdxl": tiny_sdxl(root / "sdxl")}


@pytest.fixture
def sd15(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["sd15"], tmp_path / "sd15"))


@pytest.fixture
def sdxl(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["sdxl"], tmp_path / "sdxl"))


def as_variant(folder: Path, shard_size: str | None = None, variant: str | None = "fp16") -> None:
    """Have diffusers write the folder again, in fp16 under the names of a variant, in shards where asked."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(torch.float16 if variant else torch.float32)
    shutil.rmtree(folder)
    more = {"max_shard_size": shard_size} if shard_size else {}
    pipeline.save_pretrained(folder, variant=variant, **more)


# ------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_what_did_not_train_is_given_back_byte_for_byte(made: dict[str, Path], name: str, tmp_path: Path) -> None:
    open_folder(made[name]).save(tmp_path / "out", "diffusers")
    assert files(tmp_path / "out") == files(made[name])


@pytest.mark.parametrize("trained", [False, True])
def test_a_text_encoder_is_saved_by_names_that_all_releases_find(sd15: Path, tmp_path: Path, trained: bool) -> None:
    """transformers 5.5 finds nothing in a file without `text_model.`; diffusers then draws with random words."""
    before = load_file(sd15 / "text_encoder" / "model.safetensors")
    prints = open_folder(sd15).hashes
    family = open_folder(named_as_published(sd15, ""))
    assert family.hashes == prints
    if trained:
        next(family.part("text_encoder").parameters()).data += 1.0
    family.save(tmp_path / "out", "diffusers")
    after = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert set(after) == set(before) and all(name.startswith("text_model.") for name in after)
    assert sum(not torch.equal(after[name], before[name]) for name in before) == trained
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "out").text_encoder.state_dict()
    held = {name.removeprefix("text_model."): tensor for name, tensor in theirs.items()}
    assert all(torch.equal(held[name.removeprefix("text_model.")], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_a_trained_part_is_saved_anew_and_nothing_else(made: dict[str, Path], name: str, tmp_path: Path) -> None:
    family = open_folder(made[name])
    family.net.unet.conv_in.weight.data += 0.5
    family.save(tmp_path / "out", "diffusers")
    before, after = files(made[name]), files(tmp_path / "out")
    assert [file for file in before if after[file] != before[file]] == ["unet/diffusion_pytorch_model.safetensors"]
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "out")
    for ours, part in ((family.net.unet, theirs.unet), (family.part("text_encoder"), theirs.text_encoder)):
        state = part.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())


def test_a_pipeline_may_be_saved_over_the_folder_it_was_opened_from(sdxl: Path) -> None:
    family = open_folder(sdxl)
    before = files(sdxl)
    for step in (1, 2):
        family.net.unet.conv_in.bias.data += 1.0
        family.save(sdxl, "diffusers")
        again = open_folder(sdxl)
        assert again.hashes == family.hashes
        assert torch.equal(again.net.unet.conv_in.bias, family.net.unet.conv_in.bias), step
    family.net.unet.conv_in.bias.data -= 2.0  # as it was opened: but the file is no longer that one
    family.save(sdxl, "diffusers")
    assert torch.allclose(open_folder(sdxl).net.unet.conv_in.bias, family.net.unet.conv_in.bias)
    assert set(files(sdxl)) == set(before)


def test_a_source_that_is_gone_is_given_back_from_memory(sd15: Path, tmp_path: Path) -> None:
    family = open_folder(sd15)
    before = files(sd15)
    shutil.rmtree(sd15)
    family.save(tmp_path / "out", "diffusers")
    assert set(files(tmp_path / "out")) == set(before)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(again.vae.decoder.conv_in.weight, family.part("vae").decoder.conv_in.weight)


def test_a_save_that_is_cut_off_leaves_the_folder_as_it_was(sd15: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = open_folder(sd15)
    family.net.unet.conv_in.bias.data += 1.0
    before = files(sd15)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part_files.shards, "write", full)
    with pytest.raises(OSError, match="No space"):
        family.save(sd15, "diffusers")
    assert files(sd15) == before


def test_a_save_killed_among_its_renames_is_refused_and_ends_with_the_next(
    sd15: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = open_folder(sd15)
    family.net.unet.conv_in.bias.data += 1.0
    replace, moved = shards.os.replace, []

    def killed(source: Any, target: Any) -> None:
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(shards.os, "replace", lambda s, t: killed(s, t) if shards.SAVING in str(s) else replace(s, t))
    monkeypatch.setattr(shards, "sync", lambda path: None)
    with pytest.raises(KeyboardInterrupt):
        family.save(sd15, "diffusers")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="a save was cut off"):
        open_folder(sd15)
    family.save(sd15, "diffusers")
    assert open_folder(sd15).hashes == family.hashes


def test_a_type_can_be_asked_for(sd15: Path, tmp_path: Path) -> None:
    open_folder(sd15).save(tmp_path / "out", "diffusers", torch.bfloat16)
    held = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    StableDiffusionPipeline.from_pretrained(tmp_path / "out")


def test_a_part_frozen_in_another_type_is_still_unchanged(sd15: Path, tmp_path: Path) -> None:
    """Training keeps what rests in its computing type: that is no reason to save it rounded."""
    family = open_folder(sd15)
    family.net.text_encoder.to(torch.bfloat16)
    family.save(tmp_path / "out", "diffusers")
    assert files(tmp_path / "out") == files(sd15)


def test_trained_masters_are_saved_in_the_type_of_the_source(sd15: Path, tmp_path: Path) -> None:
    as_variant(sd15)
    family = open_folder(sd15)
    family.net.float()
    family.net.unet.conv_in.bias.data += 1.0
    family.save(tmp_path / "out", "diffusers")
    held = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.float16}
    family.net.unet.conv_in.bias.data += 1e6
    with pytest.raises(ValueError, match=r"conv_in.bias of the unet is not finite in float16; save it in fp32"):
        family.save(tmp_path / "worse", "diffusers")
    family.save(tmp_path / "wide", "diffusers", torch.float32)


def test_an_adapter_has_to_be_merged_first(sd15: Path, tmp_path: Path) -> None:
    from anymix.adapters import lora
    from anymix.config import Adapter

    family = open_folder(sd15)
    lora.attach(family.net, Adapter(rank=2), family.lora_targets)
    with pytest.raises(ValueError, match="merge the adapter"):
        family.save(tmp_path / "out", "diffusers")
    assert not (tmp_path / "out" / "model_index.json").exists()
    lora.merge(family.net)
    family.save(tmp_path / "out", "diffusers")
    assert files(tmp_path / "out") == files(sd15)


def test_only_diffusers_layout_is_written(sd15: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="saved as diffusers has it, found layout 'original'"):
        open_folder(sd15).save(tmp_path / "out", "original")


# ------------------------------------------------------------------------------------------------- how files are named


def test_a_variant_is_opened_in_its_type_and_saved_under_plain_names(sd15: Path, tmp_path: Path) -> None:
    as_variant(sd15)
    assert not (sd15 / "unet" / "diffusion_pytorch_model.safetensors").exists()
    family = open_folder(sd15)
    assert family.net.unet.conv_in.weight.dtype == family.part("text_encoder").dtype == torch.float16
    family.save(tmp_path / "out", "diffusers")
    variant = (sd15 / "unet" / "diffusion_pytorch_model.fp16.safetensors").read_bytes()
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == variant
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "out").unet.dtype == torch.float32
    family.save(sd15, "diffusers")  # over itself: no file of the old names is left to be opened instead
    assert not list(sd15.rglob("*.fp16.safetensors"))
    assert open_folder(sd15).hashes == family.hashes


def test_the_plain_files_come_before_a_variant(sd15: Path) -> None:
    other = load_file(sd15 / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: tensor.half() for name, tensor in other.items()},
        sd15 / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )
    assert open_folder(sd15).net.unet.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_opened_and_kept(sd15: Path, variant: str | None, tmp_path: Path) -> None:
    whole = open_folder(sd15, dtype=torch.float16).net.unet.state_dict()
    as_variant(sd15, "150KB", variant)
    assert len(list((sd15 / "unet").glob("*.safetensors"))) > 1
    family = open_folder(sd15)
    assert all(torch.equal(tensor.half(), whole[name]) for name, tensor in family.net.unet.state_dict().items())
    family.net.unet.conv_in.bias.data += 1.0
    for out in (tmp_path / "out", sd15):
        family.save(out, "diffusers")
        assert open_folder(out).hashes == family.hashes
        theirs = StableDiffusionPipeline.from_pretrained(out)
        assert torch.equal(theirs.unet.conv_in.bias, family.net.unet.conv_in.bias.float())


def test_names_of_any_age_are_read_and_kept(sd15: Path, tmp_path: Path) -> None:
    """text_model. in front of CLIP's blocks, its position_ids, and the VAE's attention before diffusers 0.17."""
    before = open_folder(sd15).hashes
    path = sd15 / "text_encoder" / "model.safetensors"
    text = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(path).items()}
    save_file({**text, "text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    path = sd15 / "vae" / "diffusion_pytorch_model.safetensors"
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    held = load_file(path)
    for now, then in former.items():
        held = {name.replace(f".{now}.", f".{then}."): tensor for name, tensor in held.items()}
    assert any(".proj_attn." in name for name in held)
    save_file(held, path)
    family = open_folder(sd15)
    assert family.hashes == before
    family.net.text_encoder.get_parameter(
        next(n for n, _ in family.net.text_encoder.named_parameters() if n.endswith("fc1.bias"))
    ).data += 1.0
    family.save(tmp_path / "out", "diffusers")
    assert set(load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")) == set(text)
    StableDiffusionPipeline.from_pretrained(tmp_path / "out")


def test_what_the_index_names_and_the_folder_lacks_is_null_in_the_copy(sd15: Path, tmp_path: Path) -> None:
    """A Stable Diffusion 1.5 downloaded without its safety checker."""
    index = json.loads((sd15 / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (sd15 / "model_index.json").write_text(json.dumps(index))
    open_folder(sd15).save(tmp_path / "out", "diffusers")
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["safety_checker"] == [None, None]
    StableDiffusionPipeline.from_pretrained(tmp_path / "out")


def test_parts_nobody_trains_are_copied_whole(sd15: Path, tmp_path: Path) -> None:
    index = json.loads((sd15 / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (sd15 / "model_index.json").write_text(json.dumps(index))
    (sd15 / "safety_checker").mkdir()
    (sd15 / "safety_checker" / "config.json").write_text("{}")
    for file in ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"):
        save_file({"weight": torch.ones(2)}, sd15 / "safety_checker" / file)
    (sd15 / "LICENSE.md").write_text("open")
    open_folder(sd15).save(tmp_path / "out", "diffusers")
    assert files(tmp_path / "out") == files(sd15)


# ------------------------------------------------------------------------------------------------- parts from elsewhere


def test_a_part_is_taken_from_a_folder_that_is_one_or_holds_one(sdxl: Path, tmp_path: Path) -> None:
    other = tiny_sdxl(tmp_path / "other", seed=1)
    own, theirs = open_folder(sdxl).hashes, open_folder(other).hashes
    for unet, vae in ((other, other / "vae"), (other / "unet", other)):
        family = open_folder(sdxl, unet=str(unet), vae=str(vae))
        assert family.hashes == {**own, "unet": theirs["unet"], "vae": theirs["vae"]}
        assert family.codec.chosen() == {"unet": str(unet), "vae": str(vae)}
    family.save(tmp_path / "out", "diffusers")
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == (
        other / "unet" / "diffusion_pytorch_model.safetensors"
    ).read_bytes()
    assert open_folder(tmp_path / "out").hashes == family.hashes


def test_hashes_tell_weights_and_not_files(sd15: Path, tmp_path: Path) -> None:
    before = open_folder(sd15).hashes
    as_variant(sd15, "150KB", None)
    assert open_folder(sd15).hashes == before
    assert open_folder(sd15, dtype=torch.bfloat16).hashes == before
    family = open_folder(sd15)
    family.net.text_encoder.get_parameter(next(n for n, _ in family.net.text_encoder.named_parameters())).data[3] += 0.1
    after = family.hashes
    assert after["text_encoder"] != before["text_encoder"]
    assert after["unet"] == before["unet"] and after["vae"] == before["vae"]


def test_an_adapter_is_part_of_a_hash(sd15: Path) -> None:
    from anymix.adapters import lora
    from anymix.config import Adapter

    family = open_folder(sd15)
    before = family.hashes
    lora.attach(family.net, Adapter(rank=2, parts=["text"]), family.lora_targets)
    assert family.hashes["text_encoder"] != before["text_encoder"]
    assert family.hashes["unet"] == before["unet"]


def test_the_output_of_a_run_opens_as_a_model(sd15: Path) -> None:
    (sd15 / "run.json").write_text("{}")
    assert open_family(sd15, "cpu").name == "sd"


# ------------------------------------------------------------------------------------------------- bad input


def _drop(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)


def _pickle_only(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def _lose_a_tensor(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    held = load_file(path)
    del held["conv_in.weight"]
    save_file(held, path)


def _foreign_tensor(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "noise_refiner.weight": torch.ones(1)}, path)


def _other_shape(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "encoder.conv_in.bias": torch.ones(3)}, path)


def _cut(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: _drop(f, "text_encoder"), r"has no text_encoder/config.json, a part of every such pipeline"),
        (lambda f: _drop(f, "tokenizer"), r"has no tokenizer \(tokenizer.json or .*model.tokenizer"),
        (lambda f: _drop(f, "scheduler"), r"scheduler_config.json cannot be read"),
        (_pickle_only, r"unet: weights only as pickle \(diffusion_pytorch_model.bin\), which can run code"),
        (_lose_a_tensor, r"1 tensors of its unet are missing, the first is conv_in.weight"),
        (_foreign_tensor, r"config.json of its unet has no place for tensor noise_refiner.weight"),
        (_other_shape, r"encoder.conv_in.bias of its vae has shape \(3,\), the config.json expects \(8,\)"),
        (_cut, r"text_encoder/model.safetensors \(1,000 bytes\) is not a whole safetensors file"),
        (lambda f: (f / "unet" / "config.json").write_text("{}"), r"its unet is a model without a class, expected one"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_sentence(sd15: Path, damage: Any, sentence: str) -> None:
    damage(sd15)
    with pytest.raises(ValueError, match=sentence) as refused:
        open_folder(sd15)
    assert "\n" not in str(refused.value)


def test_parts_of_another_family_are_refused(made: dict[str, Path]) -> None:
    sd15, sdxl = made["sd15"], made["sdxl"]
    with pytest.raises(
        ValueError, match=r"unet of .*sdxl/unet has addition_embed_type text_time, expected None .*SDXL"
    ):
        open_folder(sd15, unet=str(sdxl))
    with pytest.raises(ValueError, match=r"unet of .*sd15/unet has addition_embed_type None, expected text_time"):
        codec_of(sdxl, unet=str(sd15))
    with pytest.raises(ValueError, match=r"vae = .* is a UNet2DConditionModel, expected AutoencoderKL"):
        codec_of(sd15, vae=str(sd15 / "unet"))
    with pytest.raises(ValueError, match=r"unet = .*tokenizer is neither a unet .* nor a folder that holds one"):
        codec_of(sd15, unet=str(sd15 / "tokenizer"))
    with pytest.raises(ValueError, match=r"transformer is no option of this model; it has unet, vae, tokenizer"):
        codec_of(sd15, transformer=str(sdxl))
    with pytest.raises(ValueError, match="there is no folder"):
        codec_of(sd15, unet=str(sd15 / "nothing"))


def test_a_vae_with_other_latents_is_refused(sd15: Path) -> None:
    path = sd15 / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latent_channels": 16}))
    with pytest.raises(ValueError, match="unet of .* has in_channels 4, expected 16 to read the VAE"):
        codec_of(sd15)


def test_a_pipeline_of_no_family_is_refused(sd15: Path) -> None:
    path = sd15 / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="no family opens FluxPipeline"):
        open_folder(sd15)
