"""Folders as people have them, whole and spoilt, opened by every family that talks: the same net, or one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anymix import families
from families.contract import FAMILIES
from families.tiny_qwen import tiny_qwen2vl
from model_files import same, tensors_of
from tiny import tiny_internvl2
from tiny_llava import tiny_llava

MAKE: dict[str, Callable[..., Path]] = dict(zip(FAMILIES, (tiny_internvl2, tiny_llava, tiny_qwen2vl), strict=True))
INDEX = "model.safetensors.index.json"


@pytest.fixture(params=FAMILIES)
def make(request: pytest.FixtureRequest) -> Callable[..., Path]:
    return MAKE[request.param]


@pytest.fixture
def folder(make: Callable[..., Path], tmp_path: Path) -> Path:
    """In two shards, as the larger models are released."""
    return make(tmp_path / "m", shards=2)


def parameters(path: str | Path) -> dict[str, torch.Tensor]:
    return dict(families.open_folder(path).net.named_parameters())


# -------------------------------------------------------------------------------------------------- whole


@pytest.mark.parametrize("name", ["my models/InternVL 2 (copy)", "模型/书生·万象", "a'b\"c", "50%done#1"])
def test_a_folder_may_have_any_name(name: str, make: Callable[..., Path], tmp_path: Path) -> None:
    plain = parameters(make(tmp_path / "plain"))
    assert same(parameters(make(tmp_path / name)), plain)


@pytest.mark.parametrize("ending", ["/", "//", "/.", "/../m"])
def test_a_path_may_end_as_it_likes(ending: str, folder: Path, tmp_path: Path) -> None:
    family = families.open_folder(f"{folder}{ending}")
    assert same(dict(family.net.named_parameters()), parameters(folder))
    family.save(tmp_path / "out", family.layout)
    assert same(tensors_of(tmp_path / "out"), tensors_of(folder))


def test_a_path_may_begin_where_one_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert same(parameters("."), parameters(folder))
    monkeypatch.chdir(folder.parent)
    assert same(parameters("./m"), parameters(folder))


def cached(folder: Path, hub: Path) -> Path:
    """The folder as a hub's cache keeps it: blobs by hash, links to them by name; its snapshot."""
    repo = hub / "models--example--tiny"
    snapshot = repo / "snapshots" / "0123abcd"
    (repo / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob, link = repo / "blobs" / f"{number:040x}", snapshot / path.relative_to(folder)
        shutil.copyfile(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(repo).parts) - 1)) / "blobs" / blob.name)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abcd")
    return snapshot


def test_a_hubs_cache_of_links_opens_by_its_id_and_is_saved_as_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached(folder, tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    family = families.open_folder("example/tiny")
    assert same(dict(family.net.named_parameters()), parameters(folder))
    family.save(tmp_path / "out", family.layout)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert same(tensors_of(tmp_path / "out"), tensors_of(folder))
    names = {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()}
    assert {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    } == names


def test_a_cache_that_lacks_a_blob_gets_a_sentence(folder: Path, tmp_path: Path) -> None:
    snapshot = cached(folder, tmp_path / "hub")
    sorted(snapshot.glob("model-*.safetensors"))[1].resolve().unlink()
    with pytest.raises(ValueError, match="1 of 2 weight files are missing, the first is model-00002-of-00002"):
        families.open_folder(snapshot)


@pytest.mark.parametrize("layout", ["original", "native"])
def test_a_folder_is_only_read(layout: str, folder: Path, tmp_path: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in (folder, *folder.rglob("*"))}
    for path in before:
        path.chmod(path.stat().st_mode & ~0o222)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in before}
    family = families.open_folder(folder)
    family.save(tmp_path / "out", layout)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in (folder, *folder.rglob("*"))} == before
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "out").rglob("*"))  # who copies may write
    assert families.open_folder(tmp_path / "out").layout == layout


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_any_type_is_kept_or_widened_to_fp32(stored: torch.dtype, make: Callable[..., Path], tmp_path: Path) -> None:
    source = make(tmp_path / "m", dtype=stored)
    kept = families.open_folder(source)
    assert {p.dtype for p in kept.net.parameters()} == {stored}
    wide = families.open_folder(source, dtype=torch.float32)
    assert {p.dtype for p in wide.net.parameters()} == {torch.float32}
    wide.save(tmp_path / "out", wide.layout)
    assert same(tensors_of(tmp_path / "out"), tensors_of(source))


@pytest.mark.parametrize("said", [False, True], ids=["unsaid", "false"])
def test_a_native_folders_own_head_is_the_one_it_opens_with(
    said: bool, make: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers 5 ties InternVL's head where config.json does not say, and drops the one in the file in silence."""
    family = families.open_folder(make(tmp_path / "m"))
    family.save(tmp_path / "native", "native")
    path = tmp_path / "native" / "config.json"
    tree = json.loads(path.read_text())
    for config in (tree, tree.get("text_config", {})):
        config.pop("tie_word_embeddings", None)
        config |= {"tie_word_embeddings": False} if said else {}
    path.write_text(json.dumps(tree))
    net: Any = families.open_folder(tmp_path / "native").net
    words = len(family.net.lm_head.weight)  # type: ignore[union-attr]
    assert torch.equal(net.lm_head.weight[:words], family.net.lm_head.weight)  # type: ignore[union-attr]
    assert net.lm_head.weight is not net.get_input_embeddings().weight


# ------------------------------------------------------------------------------------------------- spoilt


def _second(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def _pointer(folder: Path) -> None:
    _second(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def _missing_shard(folder: Path) -> None:
    _second(folder).unlink()


def _empty_shard(folder: Path) -> None:
    _second(folder).write_bytes(b"")


def _truncated(folder: Path) -> None:
    path = _second(folder)
    path.write_bytes(path.read_bytes()[:-100])


def _index_names_absent_tensors(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["odd.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def _no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def _unused_key(folder: Path) -> None:
    path = _second(folder)
    tensors = {name: t.clone() for name, t in load_file(path).items()} | {"odd.weight": torch.zeros(3)}
    save_file(tensors, path, {"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["odd.weight"] = path.name
    (folder / INDEX).write_text(json.dumps(index))


def _less(folder: Path) -> None:
    """Without weights."""
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()


def _pickled(folder: Path) -> None:
    _less(folder)
    torch.save({}, folder / "pytorch_model-00001-of-00001.bin")


def _half_names(folder: Path) -> None:
    save_file(tensors_of(folder), folder / "model.fp16.safetensors")
    for path in (*folder.glob("model-*.safetensors"), folder / INDEX):
        path.unlink()


def _eight_bits(folder: Path) -> None:
    path = _second(folder)
    tensors = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t.clone() for n, t in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


def _quantised(folder: Path) -> None:
    _config(folder, quantization_config={"quant_method": "awq", "bits": 4})


def _config(folder: Path, **change: Any) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | change))


def _other_family(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text()[:-30])


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_tokenizer(folder: Path) -> None:
    for path in (*folder.glob("tokenizer*"), *folder.glob("special_tokens_map.json")):
        path.unlink()


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    _gone(folder)
    folder.mkdir()


def _photos(folder: Path) -> None:
    _empty(folder)
    (folder / "holiday.jpg").write_bytes(b"\xff\xd8")


def _two_models_mixed(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    language = tree.get("llm_config", tree)
    language["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(tree))


def _deeper(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    language = tree.get("llm_config", tree)
    language["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(tree))


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (_pointer, "is a git-lfs pointer, not weights; run `git lfs pull`"),
    (_missing_shard, "1 of 2 weight files are missing, the first is model-00002-of-00002.safetensors; copy"),
    (_empty_shard, r"00002.safetensors \(0 bytes\) is not a whole safetensors file .*the copy broke off"),
    (_truncated, "is not a whole safetensors file .*the copy broke off, copy it again"),
    (_index_names_absent_tensors, "names 1 tensors its files do not hold, the first is odd.weight; the folder mixes"),
    (_no_index, "2 weight files but no model.safetensors.index.json; copy the index"),
    (_unused_key, "(unknown tensor|no place for tensor) odd.weight; "),
    (_less, "(code and configuration but )?no weights(, expected model.safetensors or|; copy the .safetensors files)"),
    (_pickled, r"weights only as pickle \(pytorch_model-00001-of-00001.bin\).*get the safetensors"),
    (_half_names, r"only a weight variant is here \(model.fp16.safetensors\).*rename it to model.safetensors"),
    (_eight_bits, r"tensors are stored as F8_E4M3, the first is .*expected F32, .*that is not quantised"),
    (_quantised, r"holds quantised weights \(awq\), expected whole ones; take the version .* not quantised"),
    (_other_family, "no family opens BertModel, expected a model of InternVL2, LLaVA-1.6, Qwen2-VL"),
    (_bad_config, "config.json is not valid JSON .*; copy it again"),
    (_no_config, "has no config.json .*, so it is not a model folder"),
    (_no_tokenizer, "holds no tokenizer, expected tokenizer.json, tokenizer.model"),
    (_gone, "there is no folder .*/m"),
    (_empty, "is empty, expected a model folder"),
    (_photos, r"has no config.json \(it holds holiday.jpg, ...\), so it is not a model folder"),
    (_two_models_mixed, "has shape .* expects? .*; the folder mixes two models"),
    (_deeper, r"\d+ tensors are missing, the first is model.language_model.layers.2.*copy"),
]


@pytest.mark.parametrize(("spoil", "sentence"), SPOILT, ids=[f.__name__.strip("_") for f, _ in SPOILT])
def test_spoilt_folders_get_one_sentence(spoil: Callable[[Path], None], sentence: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        families.open_folder(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
