"""LoRA and DoRA: injected into a net by peft, never wrapped around it, and kept as PEFT folders.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds alpha/r B A to a frozen weight, A (r, in), B (out, r); DoRA (Liu
et al. 2024, arXiv 2402.09353) trains the length of every row of the sum besides. Going in: a net, an adapter
section and the family's patterns. Coming out: the same net object with adapter layers in it, and a folder
that `PeftModel.from_pretrained` opens to the same outputs. In it every tensor is `base_model.model.` + its
name without the adapter's; what trained beside the adapter stands there whole, named by `modules_to_save`.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import cast_adapter_dtype, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from anymix.adapters import files
from anymix.adapters.files import PREFIX
from anymix.config import Adapter

NAME = "default"  # peft's own name for the one adapter of a net
ADAPTABLE = (nn.Linear, _ConvNd)
log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------- attaching


def attach(net: nn.Module, config: Adapter, targets: Mapping[str, Sequence[str]], base: str = "") -> list[str]:
    """Put a fresh adapter, or the one of `config.init`, into `net`; returns the names of the adapted modules.

    `targets` holds the family's patterns for each of `config.parts`; `base` is what the net was opened from.
    All adapter weights are fp32 and train; EVERYTHING else is frozen afterwards, so freeze and unfreeze after
    this. Raises ValueError in one sentence: a pattern without a match, an `init` the recipe contradicts.
    """
    _refuse_second(net)
    patterns = _patterns(config, targets)
    if config.init is not None:
        return _go_on(net, config, patterns, base)
    names = match(net, patterns)
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=files.whole(alpha),  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        use_dora=config.dora,
        target_modules=names,
        base_model_name_or_path=base,
    )
    _inject(net, settings)
    return names


def _patterns(config: Adapter, targets: Mapping[str, Sequence[str]]) -> list[str]:
    if config.targets is not None:
        return list(config.targets)
    parts: Sequence[str] = config.parts or [next(iter(targets))]
    unknown = [part for part in parts if part not in targets]
    if unknown:
        raise ValueError(
            f"adapter.parts names {unknown[0]}, which this model does not have; it has {', '.join(targets)}"
        )
    return [pattern for part in parts for pattern in targets[part]]


def match(net: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the linear and convolution layers that a pattern matches in full, in the order of the net.

    * is any run of characters, all else is literal. Raises ValueError for a pattern that matches none."""
    modules = dict(net.named_modules())
    able = [name for name, module in modules.items() if isinstance(module, ADAPTABLE)]
    found: set[str] = set()
    for pattern in patterns:
        expression = re.compile(".*".join(map(re.escape, pattern.split("*"))))
        hits = [name for name in able if expression.fullmatch(name)]
        if not hits:
            other = next((name for name in modules if name and expression.fullmatch(name)), None)
            what = f"only {other}, a {type(modules[other]).__name__}" if other else "no module"
            near = difflib.get_close_matches(pattern, {*able, *map(_glob, able)}, n=1, cutoff=0)
            tail = f", the nearest is {near[0]}" if near else ""
            raise ValueError(f"adapter target {pattern} matches {what}, expected linear or convolution layers{tail}")
        found.update(hits)
    return [name for name in able if name in found]


def summary(names: Sequence[str]) -> str:
    """Adapted modules in one line: `24 x model.language_model.layers.*: mlp.down_proj, self_attn.q_proj`."""
    places: dict[tuple[str, str], list[str]] = {}
    for name in names:
        block, leaf = re.fullmatch(r"(.*\.\d+(?=\.))?\.?(.*)", name).groups(default="")  # type: ignore[union-attr]
        places.setdefault((_glob(block), leaf), []).append(block)
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (stem, leaf), blocks in places.items():
        groups.setdefault((stem, tuple(blocks)), []).append(leaf)
    return "; ".join(
        f"{len(blocks)} x {stem}: {', '.join(leaves)}" if stem else ", ".join(leaves)
        for (stem, blocks), leaves in groups.items()
    )


def _glob(name: str) -> str:
    """`layers.7.mlp` -> `layers.*.mlp`."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _inject(net: nn.Module, settings: LoraConfig) -> None:
    inject_adapter_in_model(settings, net, adapter_name=NAME)
    cast_adapter_dtype(net, NAME, autocast_adapter_dtype=True)  # on a bf16 net they are born bf16
    for layer in layers(net).values():
        layer.train(layer.get_base_layer().training)  # born in training mode: dropout would act in inference


def _go_on(net: nn.Module, config: Adapter, patterns: Sequence[str], base: str) -> list[str]:
    """Attach the adapter of `config.init`: what the recipe says must agree, what it leaves out is taken."""
    folder = Path(str(config.init))
    settings = files.read_config(folder)
    names, beside = _resolve(net, settings, folder)
    said = config.model_fields_set
    both = {"rank": settings.r, "alpha": settings.lora_alpha, "dora": settings.use_dora}
    for key, theirs in both.items():
        mine = getattr(config, key)
        if key in said and mine is not None and mine != theirs:
            raise ValueError(
                f"adapter.{key} is {mine} but {folder}, which adapter.init goes on from, has {theirs}; "
                f"write adapter.{key}={theirs} or leave it out"
            )
    if said & {"targets", "parts"} and set(match(net, patterns)) != set(names):
        key = "targets" if config.targets is not None else "parts"
        raise ValueError(
            f"adapter.{key} chooses other layers than {folder}, "
            f"which adapter.init goes on from, has ({summary(names)}); leave it out"
        )
    settings.lora_dropout, settings.base_model_name_or_path, settings.inference_mode = (
        config.dropout,
        base,
        False,
    )
    _inject(net, settings)
    _fill_or_undo(net, folder, beside, exact=True)
    log.info(
        "going on from %s: rank %s, alpha %s, %d layers, as it was trained",
        folder, settings.r, settings.lora_alpha, len(names),
    )  # fmt: skip
    return names


# --------------------------------------------------------------------------------------------------- asking


def is_attached(net: nn.Module) -> bool:
    """Whether adapter layers are in the net."""
    return any(isinstance(module, LoraLayer) for module in net.modules())


def layers(net: nn.Module) -> dict[str, Any]:
    """The adapter layers in the net, by the name of the module each took the place of."""
    return {name: module for name, module in net.named_modules() if isinstance(module, LoraLayer)}


def adapted(net: nn.Module) -> list[str]:
    """Names of the modules that carry an adapter."""
    return list(layers(net))


def trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    """What trains now, adapter and extras, by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def settings_of(net: nn.Module) -> LoraConfig:
    """The peft settings of the adapter in the net. Raises ValueError when there is none."""
    if not is_attached(net):
        raise ValueError("the net has no adapter; attach or load one first")
    settings: LoraConfig = net.peft_config[NAME]  # type: ignore[index, assignment]
    return settings


def extras(net: nn.Module) -> list[str]:
    """Modules beside the adapter that train, or came with it: the smallest whole ones, for `modules_to_save`.

    Raises ValueError in one sentence where the format has no place for them: a trained parameter whose module
    holds adapter layers too."""
    kept = {f"{module}." for module in settings_of(net).modules_to_save or ()}
    plain = {name: p for name, p in net.named_parameters() if ".lora_" not in name}
    owners = {name: name.rpartition(".")[0] for name, p in plain.items() if p.requires_grad}
    owners |= {prefix: prefix[:-1] for prefix in kept}
    return whole_modules(owners, adapted(net))


def whole_modules(owners: Mapping[str, str], adapters: Sequence[str]) -> list[str]:
    """The outermost of the modules that own what trains (parameter -> module); none may meet an adapter."""
    for name, owner in owners.items():
        for layer in adapters:
            if not owner or f"{layer}.".startswith(f"{owner}.") or f"{owner}.".startswith(f"{layer}."):
                raise ValueError(
                    f"{name.replace('.base_layer', '')} trains in a module where LoRA adapts {layer}, "
                    "and a PEFT folder holds whole modules without LoRA only; freeze it, or leave that "
                    "layer out of adapter.targets"
                )
    modules = sorted(set(owners.values()))
    return [m for m in modules if not any(m.startswith(f"{outer}.") for outer in modules)]


def _refuse_second(net: nn.Module) -> None:
    if is_attached(net):
        raise ValueError("the net has an adapter already; merge it before another one is put in")


# ------------------------------------------------------------------------------------------ saving, loading


def save(net: nn.Module, folder: str | Path, base: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the adapter of `net`, and every module trained beside it, as a PEFT folder.

    Args:
        folder: made where missing; each file in it is complete or absent.
        base: folder or hub id of the model under the adapter, recorded as `base_model_name_or_path`.
        metadata: further entries for the header of the weights file.

    Raises ValueError in one sentence when something trained has no place in the format (see `extras`).
    """
    settings, modules = settings_of(net), extras(net)
    values = {
        **settings.to_dict(),
        "target_modules": sorted(adapted(net)),  # in full: a short q_proj would adapt the vision tower too
        "modules_to_save": modules or None,
    }
    files.write(Path(folder), values, _tensors(net, modules), base, metadata or {})


def _tensors(net: nn.Module, modules: Sequence[str]) -> dict[str, Tensor]:
    """Every tensor of the adapter and of whole `modules` by its name in the file; the net's own objects."""
    state = net.state_dict(keep_vars=True)
    # save_embedding_layers "auto" would ask a hub whether the vocabulary grew
    tensors = get_peft_model_state_dict(net, state_dict=state, adapter_name=NAME, save_embedding_layers=False)
    own = {name: t for name, t in state.items() if any(name.startswith(f"{m}.") for m in modules)}
    return {PREFIX + name: t for name, t in {**tensors, **own}.items()}


def load(net: nn.Module, folder: str | Path, *, must_change: bool = False) -> list[str]:
    """Open an adapter folder, ours or plain peft's, onto `net`; returns the names of the adapted modules.

    Adapter weights are fp32, modules trained beside it take the dtype the net has. Raises ValueError in one
    sentence when the folder's tensors are not exactly those its config asks of this net or, under
    `must_change`, when it changes nothing. The net is then as it was."""
    folder = Path(folder)
    _refuse_second(net)
    settings = files.read_config(folder)
    names, beside = _resolve(net, settings, folder)
    _inject(net, settings)
    if not _fill_or_undo(net, folder, beside) and must_change:
        _unwrap(net)
        raise ValueError(f"{folder} changes nothing: its every lora_B is zero, so it was saved before it trained")
    return names


def _resolve(net: nn.Module, settings: LoraConfig, folder: Path) -> tuple[list[str], list[str]]:
    """The modules a folder's settings mean in this net: adapted, and whole. The settings then name them."""
    modules = [name for name, _ in net.named_modules() if name]
    names = [name for name in modules if check_target_module_exists(settings, name)]
    if not names:
        wanted = settings.target_modules
        shown = wanted if isinstance(wanted, str) else ", ".join(sorted(wanted or ())[:3])
        raise ValueError(f"{folder} adapts {shown}, which this net does not have; it was made for another network")
    beside = {end: [m for m in modules if m.endswith(end)] for end in settings.modules_to_save or ()}
    absent = [end for end, found in beside.items() if not found]
    if absent:
        raise ValueError(
            f"{folder} brings a whole {absent[0]}, which this net does not have; it was made for another network"
        )
    settings.target_modules = list(names)
    settings.exclude_modules = settings.layers_to_transform = settings.layers_pattern = None
    settings.modules_to_save = None  # peft would wrap these modules, where here they are simply set
    return names, whole_modules({m: m for found in beside.values() for m in found}, names)


def _fill_or_undo(net: nn.Module, folder: Path, beside: list[str], exact: bool = False) -> bool:
    """Fill the adapter just injected, and the modules beside it; says whether that changed the net.

    On an error the net is left without an adapter."""
    settings_of(net).modules_to_save = beside or None
    try:
        return _fill(_tensors(net, beside), folder, exact)
    except ValueError:
        _unwrap(net)
        raise


@torch.no_grad()
def _fill(places: Mapping[str, Tensor], folder: Path, exact: bool) -> bool:
    """Set every place from the file. `exact` keeps the file's dtype for modules beside the adapter."""
    tensors = files.read_tensors(folder)
    missing, unexpected = [n for n in places if n not in tensors], [n for n in tensors if n not in places]
    if missing or unexpected:
        first = f"{missing[0]} is missing" if missing else f"{unexpected[0]} has no place"
        raise ValueError(
            f"{folder}: {len(tensors)} tensors where its config asks this net for {len(places)} "
            f"({len(missing)} missing, {len(unexpected)} without a place; {first}); it is damaged, or was "
            "made for another network"
        )
    for name, value in tensors.items():
        if value.shape != places[name].shape:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(value.shape)}, this net expects "
                f"{tuple(places[name].shape)}; it was made for a model of another size"
            )
    changed = False
    for name, value in tensors.items():
        place, is_lora = places[name], ".lora_" in name
        value = value.to(place.device, value.dtype if exact and not is_lora else place.dtype)
        changed = changed or _changes(name, value, place)
        place.data = value
    return changed


def _changes(name: str, value: Tensor, before: Tensor) -> bool:
    if ".lora_A" in name or ".lora_embedding_A" in name:
        return False
    if ".lora_B" in name or ".lora_embedding_B" in name:
        return bool(value.any())
    return not torch.allclose(value.to(before.dtype), before)


# -------------------------------------------------------------------------------------------------- merging


@torch.no_grad()
def merge(net: nn.Module) -> None:
    """Add the adapter into the weights and take its layers out: names and dtypes are as before `attach`.

    The sum is taken in fp32 and rounded once to the weight's own dtype: on a bf16 net a merged weight differs
    from the exact one by at most 2^-9 of its size. Raises ValueError when a merged weight is not finite."""
    settings_of(net)
    cast_adapter_dtype(net, NAME, autocast_adapter_dtype=True)
    for name, layer in layers(net).items():
        held = [(p, p.dtype) for p in layer.get_base_layer().parameters(recurse=False)]
        for p, dtype in held:
            p.data = p.data.to(torch.promote_types(dtype, torch.float32))
        try:
            layer.merge(safe_merge=True)
        except ValueError:
            raise ValueError(
                f"merging makes {name} not finite; its adapter is broken, go back to an earlier one"
            ) from None
        for p, dtype in held:
            p.data = p.data.to(dtype)
            if not p.isfinite().all():
                raise ValueError(
                    f"merged, {name} is too large for {dtype}; open the base model with dtype fp32 or bf16"
                )
    _unwrap(net)


def _unwrap(net: nn.Module) -> None:
    """Put the base layers back in place of the adapter layers."""
    for name, layer in layers(net).items():
        parent, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(parent), leaf, layer.get_base_layer())
    if hasattr(net, "peft_config"):
        del net.peft_config
