"""Forms of other programs and other years, and files to be refused: damaged, foreign, empty, another family's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anymix.adapters import formats, kinds, loading, lora, reading
from drawing_nets import ATTENTION, answer, net, trained

TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def rewritten(path: Path, change: Any, header: dict[str, str] | None = None) -> Path:
    """The file with `change` made to its tensors."""
    tensors = change(load_file(path))
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, path, header or {})
    return path


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    formats.write(trained("sd1"), tmp_path / "a.safetensors", "kohya")
    return tmp_path / "a.safetensors"


def effect(family: str, path: Path) -> Tensor:
    made = net(family)
    loading.load_file(made, path)
    return answer(made)


# ------------------------------------------------------------------------------------------ forms that are about


def test_old_names_of_diffusers(tmp_path: Path) -> None:
    """`processor.to_q_lora.up`, and `self_attn.to_q_lora.up` of CLIP: what diffusers wrote in 2023, at scale 1."""
    targets = [*ATTENTION["sd1"], "text_encoder.*.self_attn.*_proj", "text_encoder.*.mlp.fc1"]
    made = trained("sd1", alpha=3.0, targets=targets)
    tensors = {}
    for name, update in kinds.updates(made).items():
        old = name.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out")
        for letter in ("q", "k", "v"):
            old = old.replace(f"self_attn.{letter}_proj", f"self_attn.to_{letter}")
        old = old.replace("self_attn.out_proj", "self_attn.to_out").replace("text_encoder.text_model.", "text_encoder.")
        old = old.replace("text_encoder.", "text_encoder.text_model.", 1)  # which older transformers have themselves
        lora_ = ".lora_linear_layer." if ".mlp." in old else "_lora."
        tensors[f"{old}{lora_}down.weight"] = update.tensors["lora_A"].clone()
        tensors[f"{old}{lora_}up.weight"] = update.tensors["lora_B"].clone()
    save_file(tensors, tmp_path / "a.safetensors")
    assert torch.allclose(effect("sd1", tmp_path / "a.safetensors"), answer(made), rtol=0, atol=1e-5)
    bare = {name.removeprefix("unet."): t for name, t in tensors.items() if name.startswith("unet.")}
    save_file(bare, tmp_path / "b.safetensors")  # of the attention alone it left the part's name out
    assert len(reading.read(net("sd1"), tmp_path / "b.safetensors").updates) == len(bare) // 2


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("sd3", "transformer.", "lora_transformer_"),  # OneTrainer
        ("sd3", "transformer.", "lycoris_"),  # SimpleTuner
        ("sd3", "transformer.", "base_model.model."),  # plain peft
        ("sd3", "transformer.", "transformer_"),  # diffusers' own converter to kohya's names
        ("sdxl", "unet.", "lora_unet_"),  # kohya's names, diffusers' blocks
        ("sdxl", "unet.", "base_model.model.unet."),
    ],
)
def test_names_of_other_programs(family: str, old: str, new: str, tmp_path: Path) -> None:
    made = trained(family, targets=ATTENTION[family])
    tensors = {}
    for name, update in kinds.updates(made).items():
        stem = new + name.removeprefix(old)
        stem = stem if new.endswith(".") else stem.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = update.tensors["lora_A"].clone()
        tensors[f"{stem}.lora_up.weight"] = update.tensors["lora_B"].clone()
        tensors[f"{stem}.alpha"] = torch.tensor(update.alpha, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "a.safetensors")
    assert torch.allclose(effect(family, tmp_path / "a.safetensors"), answer(made), rtol=0, atol=1e-5)


def test_without_alpha_the_rank_is_alpha(kohya: Path) -> None:
    rewritten(kohya, lambda tensors: {n: t for n, t in tensors.items() if not n.endswith(".alpha")})
    assert {update.scale for update in reading.read(net("sd1"), kohya).updates.values()} == {1.0}


def test_rank_stabilised_files_of_peft(tmp_path: Path) -> None:
    formats.write(trained("sd1"), tmp_path / "a.safetensors", "diffusers")
    entry = '{"unet.lora_alpha": 8, "unet.use_rslora": true, "text_encoder.lora_alpha": 9}'
    rewritten(tmp_path / "a.safetensors", lambda tensors: tensors, {reading.METADATA: entry})
    found = reading.read(net("sd1"), tmp_path / "a.safetensors").updates
    assert found[TO_Q].scale == pytest.approx(8 / math.sqrt(3))
    assert {u.scale for name, u in found.items() if name.startswith("text_encoder")} == {3.0}


def test_one_by_one_convolutions_as_matrices_and_the_reverse(tmp_path: Path) -> None:
    for family, change in (
        ("sd1", lambda t: t.flatten(1) if t.dim() == 4 and t.shape[2:] == (1, 1) else t),
        ("sd2", lambda t: t[:, :, None, None] if t.dim() == 2 else t),
    ):
        made = trained(family)
        formats.write(made, tmp_path / "a.safetensors", "kohya")
        rewritten(tmp_path / "a.safetensors", lambda tensors, f=change: {name: f(t) for name, t in tensors.items()})
        assert torch.allclose(effect(family, tmp_path / "a.safetensors"), answer(made), rtol=0, atol=1e-5)


def test_a_small_kernel_between_down_and_up_is_folded(tmp_path: Path) -> None:
    """LoCon with lora_mid: down 1x1, mid 3x3, up 1x1, as three convolutions one after another."""
    draw = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(*s, generator=draw) for s in ((4, 8, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1)))
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    leaves = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    save_file({f"{stem}.{leaf}": t for leaf, t in leaves.items()}, tmp_path / "a.safetensors")
    made = net("sd1")
    conv = made.unet.down_blocks[0].resnets[0].conv1
    x = torch.randn(1, 8, 8, 8, generator=draw)
    wanted = conv(x) + 0.5 * torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid, padding=1), up)
    loading.load_file(made, tmp_path / "a.safetensors")
    assert torch.allclose(made.unet.down_blocks[0].resnets[0].conv1(x), wanted, atol=1e-4)


def test_lycoris_with_small_kernels_and_other_factorisations(tmp_path: Path) -> None:
    """Written out by the formulas of LyCORIS; peft's own layers would have other shapes for this layer."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    made = net("sd1")
    shape = made.unet.down_blocks[0].resnets[0].conv1.weight.shape  # (8, 8, 3, 3)
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    loha = {"hada_w1_a": noise(3, 8), "hada_w1_b": noise(3, 8), "hada_t1": noise(3, 3, 3, 3),
            "hada_w2_a": noise(3, 8), "hada_w2_b": noise(3, 8), "hada_t2": noise(3, 3, 3, 3)}  # fmt: skip
    product = [
        torch.einsum("ijkl,jr,ip->prkl", loha[f"hada_t{n}"], loha[f"hada_w{n}_b"], loha[f"hada_w{n}_a"]) for n in (1, 2)
    ]
    lokr = {"lokr_w1": noise(4, 2), "lokr_w2_a": noise(2, 3), "lokr_w2_b": noise(3, 4 * 9)}
    whole = {"lokr_w1": noise(2, 4), "lokr_w2": noise(4, 2, 3, 3)}
    wanted = [
        (loha, 1.5 / 3 * product[0] * product[1]),
        (lokr, 1.5 / 3 * torch.kron(lokr["lokr_w1"], lokr["lokr_w2_a"] @ lokr["lokr_w2_b"]).reshape(shape)),
        (whole, torch.kron(whole["lokr_w1"][:, :, None, None], whole["lokr_w2"])),  # unscaled, whatever alpha says
    ]
    for leaves, delta in wanted:
        save_file(
            {**{f"{stem}.{n}": t for n, t in leaves.items()}, f"{stem}.alpha": torch.tensor(1.5)},
            tmp_path / "a.safetensors",
        )
        made = net("sd1")
        before = made.unet.down_blocks[0].resnets[0].conv1.weight.clone()
        loading.merge_files(made, [tmp_path / "a.safetensors"])
        after = made.unet.down_blocks[0].resnets[0].conv1.weight
        assert torch.allclose(after - before, delta, atol=1e-5)


def test_a_lokr_of_a_fused_layer_is_split(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(8, 4, generator=draw), torch.randn(6, 4, generator=draw)
    stem = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    save_file({f"{stem}.lokr_w1": first, f"{stem}.lokr_w2": second}, tmp_path / "a.safetensors")
    made = net("sd3")
    attention = made.transformer.transformer_blocks[0].attn
    layers = (attention.to_q, attention.to_k, attention.to_v)
    before = torch.cat([layer.weight.clone() for layer in layers])
    loading.merge_files(made, [tmp_path / "a.safetensors"])
    after = torch.cat([layer.weight for layer in layers])
    assert torch.allclose(after - before, torch.kron(first, second), atol=1e-5)


def test_kohya_dora(tmp_path: Path) -> None:
    made = trained("sd1", dora=True)
    formats.write(made, tmp_path / "a.safetensors", "kohya")
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["lora_unet_down_blocks_0_resnets_0_conv1.dora_scale"].shape == (8, 1, 1, 1)
    assert torch.allclose(effect("sd1", tmp_path / "a.safetensors"), answer(made), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="is a DoRA, whose layers have no strength of their own"):
        loading.load_file(net("sd1"), tmp_path / "a.safetensors", 0.5)
    by_input = {n: t.reshape(1, -1) if n == f"{NAME}.dora_scale" else t for n, t in tensors.items()}
    save_file({n: t.clone() for n, t in by_input.items()}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=f"{NAME} has DoRA's magnitudes by input"):
        loading.load_file(net("sd1"), tmp_path / "b.safetensors")


# ------------------------------------------------------------------------------------------- strength, several


def test_strength_scales_the_effect(kohya: Path) -> None:
    half, twice = net("sd1"), net("sd1")
    loading.load_file(half, kohya, 0.5)
    rewritten(kohya, lambda tensors: {n: t * 0.5 if n.endswith(".alpha") else t for n, t in tensors.items()})
    loading.load_file(twice, kohya)
    assert torch.allclose(answer(half), answer(twice), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="at strength 0 changes nothing"):
        loading.load_file(net("sd1"), kohya, 0.0)


def test_several_are_added_each_at_its_strength(tmp_path: Path) -> None:
    """Weights are W + 0.8 D1 - 0.3 D2 + D3, of three kinds and three forms."""
    made, wanted = net("sd1"), dict(net("sd1").named_parameters())
    loras = []
    for kind, form, strength in (("lora", "kohya", 0.8), ("loha", "comfyui", -0.3), ("lora", "diffusers", 1.0)):
        one = trained("sd1", kind=kind, rank=2 + len(loras))
        path = tmp_path / f"{len(loras)}.safetensors"
        formats.write(one, path, form)
        lora.merge(one)
        start = dict(net("sd1").named_parameters())
        wanted = {name: p + strength * (one.get_parameter(name) - start[name]) for name, p in wanted.items()}
        loras.append((path, strength))
    done = loading.merge_files(made, [*loras[:2], loras[2][0]])
    assert [found.path for found in done] == [path for path, _ in loras]
    assert not lora.is_attached(made)
    for name, parameter in made.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-5), name


def test_nothing_is_merged_when_one_of_several_is_wrong(kohya: Path, tmp_path: Path) -> None:
    formats.write(trained("sdxl"), tmp_path / "b.safetensors", "kohya")
    made = net("sd1")
    before = answer(made)
    with pytest.raises(ValueError, match="is a LoRA for SDXL"):
        loading.merge_files(made, [(kohya, 0.8), tmp_path / "b.safetensors"])
    assert torch.equal(answer(made), before)


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("form", ["diffusers", "kohya", "comfyui"])
@pytest.mark.parametrize(
    ("theirs", "mine", "words"),
    [("sdxl", "sd1", "is a LoRA for SDXL, and this model is Stable Diffusion 1.5"),
     ("sd1", "sd3", "is a LoRA for Stable Diffusion 1.5, and this model is SD3"),
     ("sd3", "sdxl", "is a LoRA for SD3, and this model is SDXL")],
)  # fmt: skip
@pytest.mark.parametrize("header", [True, False])
def test_another_family_is_named(form: str, theirs: str, mine: str, words: str, header: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    formats.write(trained(theirs), path, form)
    if not header:
        rewritten(path, lambda tensors: tensors)
        if (theirs, form) in (("sd1", "diffusers"), ("sd1", "kohya"), ("sd1", "comfyui"), ("sdxl", "comfyui")):
            words = "made for another model"  # at this size its names do not say which
    made = net(mine)
    before, keys = answer(made), list(made.state_dict())
    with pytest.raises(ValueError, match=words):
        loading.load_file(made, path)
    assert torch.equal(answer(made), before) and list(made.state_dict()) == keys


def test_another_family_of_the_same_sizes_is_refused(tmp_path: Path) -> None:
    """A text encoder is the same in SD 1.5 and SDXL: layers fit, and only the header tells."""
    formats.write(trained("sdxl", targets=["text_encoder.*.self_attn.*_proj"]), tmp_path / "a.safetensors", "diffusers")
    made = net("sd1")
    before = answer(made)
    with pytest.raises(ValueError, match=r"LoRA for SDXL as its header says, and this model is Stable Diffusion 1\.5"):
        loading.load_file(made, tmp_path / "a.safetensors")
    assert torch.equal(answer(made), before)
    loading.load_file(made, rewritten(tmp_path / "a.safetensors", lambda tensors: tensors))  # without it they do fit


@pytest.mark.parametrize(
    ("width", "label"), [(768, "Stable Diffusion 1.5"), (1024, "Stable Diffusion 2"), (2048, "SDXL")]
)
def test_real_files_without_a_header_are_told_by_their_width(width: int, label: str, tmp_path: Path) -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(
        {f"{stem}.lora_down.weight": torch.ones(4, width), f"{stem}.lora_up.weight": torch.ones(320, 4)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(ValueError, match=f"is a LoRA for {label}, and this model is SD3; 2 of its 2 tensors"):
        loading.load_file(net("sd3"), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stray", r"2 of its \d+ tensors have no place in this model, the first is lora_unet_down_blocks_7"),
        ("half", f"{NAME} has no lora_B; the file is damaged"),
        ("shape", rf"{NAME} has shapes \(3, 5\) and \(8, 3\), which do not make this model's \(8, 8\)"),
        ("diff", f"holds {NAME}.diff, a layer trained whole, which anymix does not read"),
        ("twice", "twice, under two names"),
        ("beside", "has hada_w1_a beside a LoRA"),
        ("zeros", "changes nothing: it is all zeros"),
        ("mixed", "mixes LoHa and LoRA"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(kohya: Path, fault: str, words: str) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        down, up = tensors[f"{NAME}.lora_down.weight"], tensors[f"{NAME}.lora_up.weight"]
        match fault:
            case "stray":
                stem = NAME.replace("down_blocks_0", "down_blocks_7")
                return {**tensors, f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            case "half":
                del tensors[f"{NAME}.lora_up.weight"]
            case "shape":
                tensors[f"{NAME}.lora_down.weight"] = torch.ones(3, 5)
            case "diff":
                tensors[f"{NAME}.diff"] = torch.ones(8, 8)
            case "twice":
                tensors |= {f"{TO_Q}.lora_A.weight": down, f"{TO_Q}.lora_B.weight": up}
            case "beside":
                tensors[f"{NAME}.hada_w1_a"] = down
            case "zeros":
                return {name: t * ("lora_up" not in name) for name, t in tensors.items()}
            case _:
                stem = NAME.replace("to_q", "to_k")
                tensors |= {f"{stem}.hada_w{n}_a": torch.ones(8, 2) for n in (1, 2)}
                tensors |= {f"{stem}.hada_w{n}_b": torch.ones(2, 8) for n in (1, 2)}
        return tensors

    rewritten(kohya, change)
    made = net("sd1")
    keys = list(made.state_dict())
    with pytest.raises(ValueError, match=words):
        loading.load_file(made, kohya)
    assert list(made.state_dict()) == keys and not lora.is_attached(made)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("truncated", "is not a whole safetensors file"),
        ("pointer", "is a git-lfs pointer"),
        ("pickle", "is a pickle, which can run code when opened; get it as .safetensors"),
        ("model", "is no LoRA file: it holds conv.weight"),
        ("nothing", "there is no .*b.safetensors, did you mean"),
        ("folder", "holds no pytorch_lora_weights.safetensors"),
        ("text", "is no LoRA file, expected .safetensors"),
        ("empty", "holds no tensors"),
    ],
)
def test_what_is_no_lora_file(kohya: Path, tmp_path: Path, fault: str, words: str) -> None:
    path = kohya
    match fault:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-10])
        case "pointer":
            path.write_text("version https://git-lfs.github.com/spec/v1\n")
        case "pickle":
            path = path.rename(tmp_path / "a.pt")
        case "model":
            save_file({"conv.weight": torch.ones(3)}, path)
        case "nothing":
            path = tmp_path / "b.safetensors"
        case "folder":
            path = tmp_path / "made"
            path.mkdir()
        case "text":
            path = path.rename(tmp_path / "a.txt")
        case _:
            save_file({}, path)
    with pytest.raises(ValueError, match=words):
        loading.load_file(net("sd1"), path)


def test_folders_from_a_hub_hold_one_file_of_any_name(kohya: Path, tmp_path: Path) -> None:
    made = net("sd1")
    assert loading.load_file(made, tmp_path).path == kohya
    with pytest.raises(ValueError, match="has an adapter already"):
        loading.load_file(made, tmp_path)
    made = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="for Stable Diffusion 1.5, 2, XL and 3, and this model is none"):
        loading.load_file(made, kohya)


def test_a_word_that_comes_along_is_named(kohya: Path) -> None:
    """OneTrainer puts textual-inversion embeddings beside the factors."""
    rewritten(kohya, lambda tensors: {**tensors, "bundle_emb.sks-fox.string_to_param.*": torch.ones(2, 8)})
    with pytest.raises(ValueError, match=r"brings a word of its own, sks-fox, as a textual-inversion embedding"):
        loading.load_file(net("sd1"), kohya)
