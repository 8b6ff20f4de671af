"""open_image: parts and LoRAs as people name them, really used, and refused where they change nothing."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file

import anymix
from anymix.adapters import elsewhere, formats, lora, reading
from anymix.config import Adapter
from anymix.engines.drawing import pairs
from anymix.families import open_folder
from drawing_nets import stir
from engines.painters import folder

TOLD = {"seed": 1, "width": 32, "height": 32, "steps": 3}


def _same(one, other):
    return ImageChops.difference(one, other).getbbox() is None


@pytest.fixture(scope="module")
def base():
    return anymix.open_image(folder("sdxl"), "cpu", "fp32")


@pytest.fixture(scope="module")
def plain(base):
    return base.draw("a cat", **TOLD)[0].image


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A UNet and a VAE of one's own, as `save_pretrained` leaves them."""
    home = tmp_path_factory.mktemp("parts")
    pipe = DiffusionPipeline.from_pretrained(folder("sdxl"))
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(-1)
        pipe.vae.decoder.conv_out.bias.add_(0.2)
    pipe.unet.save_pretrained(home / "unet")
    pipe.vae.save_pretrained(home / "vae")
    return home


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA of the UNet that does something, in kohya's names."""
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    family = open_folder(folder("sdxl"), "cpu", torch.float32)
    lora.attach(family.net, Adapter(rank=2, alpha=4, targets=["unet.*.to_q", "unet.*.to_v"]), {})
    stir(family.net)
    formats.write(family.net, path, "kohya", folder("sdxl"))
    return path


def test_own_unet_and_vae_in_two_lines(base, plain, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base_model, unet, vae = folder("sdxl"), parts / "unet", parts / "vae"

    engine = anymix.open_image(base_model, unet=unet, vae=vae)
    engine.draw("A pokemon with green eyes and red legs.", steps=3, guidance=7.5)[0].save("pokemon.png")

    print(engine.hashes)
    assert re.search(r"'unet': '[0-9a-f]{16}'", capsys.readouterr().out)
    changed = {name for name, code in engine.hashes.items() if base.hashes[name] != code}
    assert changed == {"unet", "vae"}
    with Image.open("pokemon.png") as image:
        assert image.size == (32, 32)
        assert engine.hashes["unet"] in image.text["parameters"]
    both = engine.draw("a cat", **TOLD)[0].image
    only = anymix.open_image(base_model, unet=unet).draw("a cat", **TOLD)[0].image
    assert not _same(plain, only) and not _same(only, both)


def test_it_is_what_the_pipeline_draws_with_them(parts):
    pipe = DiffusionPipeline.from_pretrained(folder("sdxl"), unet=UNet2DConditionModel.from_pretrained(parts / "unet"))
    generator = torch.Generator().manual_seed(1)
    theirs = pipe("a cat", num_inference_steps=3, guidance_scale=7.0, width=32, height=32, generator=generator)
    ours = anymix.open_image(folder("sdxl"), "cpu", "fp32", unet=parts / "unet").draw("a cat", **TOLD)[0].image
    apart = ImageChops.difference(ours, theirs.images[0]).getextrema()
    assert max(high for _, high in apart) <= 1


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_a_part_that_is_the_same_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} = .* has the very weights .* has already .*; leave {name} out"):
        anymix.open_image(folder("sdxl"), "cpu", **{name: folder("sdxl")})


def test_a_model_without_a_part_takes_that_of_another(base, parts, tmp_path):
    """Its own has nothing to be compared with; of two parts given, the other is compared all the same."""
    copy = shutil.copytree(folder("sdxl"), tmp_path / "copy")
    shutil.rmtree(copy / "vae")
    engine = anymix.open_image(copy, "cpu", vae=parts / "vae")
    assert engine.hashes["vae"] != base.hashes["vae"] and engine.hashes["unet"] == base.hashes["unet"]
    with pytest.raises(ValueError, match="^unet = .* has the very weights .* has already"):
        anymix.open_image(copy, "cpu", vae=parts / "vae", unet=folder("sdxl"))


def test_an_adapter_trained_with_another_vae_opens_with_it_or_the_models_own(base, parts, adapter, tmp_path):
    header = {**reading.read_header(adapter), **elsewhere.entries({"vae": str(parts / "vae")})}
    save_file(load_file(adapter), tmp_path / "a.safetensors", header)
    engine = anymix.open_image(tmp_path / "a.safetensors", "cpu")
    assert engine.hashes["vae"] != base.hashes["vae"]
    own = anymix.open_image(tmp_path / "a.safetensors", "cpu", vae=folder("sdxl"))
    assert own.hashes["vae"] == base.hashes["vae"]


def test_a_part_the_model_does_not_have_is_refused(parts):
    with pytest.raises(ValueError, match="transformer is no option of this model; it has unet, vae"):
        anymix.open_image(folder("sdxl"), "cpu", transformer=parts / "unet")


def test_a_lora_is_used_at_its_weight(base, plain, adapter):
    whole = anymix.open_image(folder("sdxl"), "cpu", "fp32", lora=adapter)
    half = anymix.open_image(folder("sdxl"), "cpu", "fp32", lora=[(adapter, 0.5)])
    images = [engine.draw("a cat", **TOLD)[0].image for engine in (whole, half)]
    assert not _same(plain, images[0]) and not _same(*images) and not _same(plain, images[1])
    assert len({engine.hashes["unet"] for engine in (base, whole, half)}) == 3
    assert whole.hashes["vae"] == base.hashes["vae"]
    assert {name for name in whole.hashes if name.startswith("lora")} == {"lora style.safetensors:1"}
    assert whole.hashes["lora style.safetensors:1"] == half.hashes["lora style.safetensors:0.5"]


def test_a_lora_is_drawn_as_diffusers_draws_it(adapter):
    pipe = DiffusionPipeline.from_pretrained(folder("sdxl"))
    pipe.load_lora_weights(adapter.parent, weight_name=adapter.name)
    generator = torch.Generator().manual_seed(1)
    theirs = pipe("a cat", num_inference_steps=3, guidance_scale=7.0, width=32, height=32, generator=generator)
    ours = anymix.open_image(folder("sdxl"), "cpu", "fp32", lora=str(adapter)).draw("a cat", **TOLD)[0].image
    assert max(high for _, high in ImageChops.difference(ours, theirs.images[0]).getextrema()) <= 1


def test_two_loras_go_together(adapter):
    both = anymix.open_image(folder("sdxl"), "cpu", "fp32", lora=[adapter, (adapter, -0.5)])
    half = anymix.open_image(folder("sdxl"), "cpu", "fp32", lora=(adapter, 0.5))
    one, other = (engine.draw("a cat", **TOLD)[0].image for engine in (both, half))
    assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 1


def test_a_lora_file_alone_names_its_model(adapter, plain):
    engine = anymix.open_image(adapter, "cpu", "fp32")
    assert engine.source == str(adapter)
    assert not _same(plain, engine.draw("a cat", **TOLD)[0].image)


def test_a_lora_that_changes_nothing_is_refused(adapter, tmp_path):
    idle = tmp_path / "idle.safetensors"
    tensors = {name: t * 0 if "lora_up" in name else t for name, t in load_file(adapter).items()}
    save_file(tensors, idle)
    with pytest.raises(ValueError, match="changes nothing"):
        anymix.open_image(folder("sdxl"), "cpu", lora=idle)
    with pytest.raises(ValueError, match="strength 0 changes nothing"):
        anymix.open_image(folder("sdxl"), "cpu", lora=(adapter, 0))
    with pytest.raises(ValueError, match="at weight 1e-12 leaves every weight as it was"):
        anymix.open_image(folder("sdxl"), "cpu", "fp32", lora=(adapter, 1e-12))


def test_a_lora_that_is_not_there_is_a_sentence():
    with pytest.raises(ValueError, match="gone.safetensors"):
        anymix.open_image(folder("sdxl"), "cpu", lora="gone.safetensors")


def test_what_cannot_draw_is_refused(model):
    with pytest.raises(ValueError, match="of the family internvl2, which does not draw"):
        anymix.open_image(model, "cpu")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, []),
        ("a", [("a", 1.0)]),
        (("a", 0.5), [("a", 0.5)]),
        (["a", ("b", 2)], [("a", 1.0), ("b", 2.0)]),
        (("a", "b"), [("a", 1.0), ("b", 1.0)]),
    ],
)
def test_loras_may_be_given_in_every_way(given, read):
    assert pairs(given) == read


def test_the_folder_of_a_model_is_not_touched(parts, adapter, tmp_path):
    copy = shutil.copytree(folder("sdxl"), tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    anymix.open_image(copy, "cpu", unet=parts / "unet", lora=adapter).draw("a cat", **TOLD)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_sd3_takes_a_transformer_of_ones_own(tmp_path):
    pipe = DiffusionPipeline.from_pretrained(folder("sd3"))
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(-1)
    pipe.transformer.save_pretrained(tmp_path / "mine")
    own = anymix.open_image(folder("sd3"), "cpu", "fp32", transformer=tmp_path / "mine")
    base = anymix.open_image(folder("sd3"), "cpu", "fp32")
    assert {name for name, code in own.hashes.items() if base.hashes[name] != code} == {"transformer"}
    assert not _same(own.draw("a cat", **TOLD)[0].image, base.draw("a cat", **TOLD)[0].image)
    with pytest.raises(ValueError, match="transformer = .* has the very weights"):
        anymix.open_image(folder("sd3"), "cpu", "fp32", transformer=folder("sd3") / "transformer")
