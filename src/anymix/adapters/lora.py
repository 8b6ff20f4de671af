"""LoRA, DoRA, LoHa and LoKr: injected into a net by peft, never wrapped around it; LoRA kept as PEFT folders.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds alpha/r B A to a frozen weight, A (r, in), B (out, r); DoRA (Liu
et al. 2024, arXiv 2402.09353) trains the length of every row of the sum besides; for LoHa and LoKr see kinds.py.
Going in: a net, an adapter section and the family's patterns. Coming out: the same net object with adapter layers
in it, and a folder that `PeftModel.from_pretrained` opens to the same outputs. In it every tensor is
`base_model.model.` + its name without the adapter's; what trained beside the adapter stands there whole, named by
`modules_to_save`. The files of models that draw are written in formats.py, read in reading.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import cast_adapter_dtype, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from anymix.adapters import files, kinds, reading
from anymix.adapters.files import PREFIX
from anymix.adapters.kinds import NAME as NAME
from anymix.adapters.kinds import is_attached as is_attached
from anymix.adapters.kinds import layers as layers
from anymix.adapters.kinds import settings_of as settings_of
from anymix.adapters.targets import match, patterns
from anymix.adapters.targets import summary as summary
from anymix.config import Adapter

RANK = 16  # where neither a recipe nor an adapter to go on from says
log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------- attaching


def attach(net: nn.Module, config: Adapter, targets: Mapping[str, Sequence[str]], base: str = "") -> list[str]:
    """Put a fresh adapter, or the one of `config.init`, into `net`; returns the names of the adapted modules.

    `targets` holds the family's patterns for each of `config.parts`; `base` is what the net was opened from.
    All adapter weights are fp32 and train; EVERYTHING else is frozen afterwards, so freeze and unfreeze after
    this. Raises ValueError in one sentence: a pattern without a match, an `init` the recipe contradicts.
    """
    kinds.refuse_second(net)
    wanted = patterns(config, targets)
    if config.init is not None:
        source = reading.place(config.init)
        if files.is_adapter(source):
            return _go_on(net, config, wanted, base, source)
        return _go_on_from_file(net, config, wanted, reading.locate(source))
    names = match(net, wanted)
    rank = config.rank or RANK
    alpha = 2.0 * rank if config.alpha is None else config.alpha
    kinds.inject(net, kinds.settings(config.kind, names, rank, alpha, base, **_options(config)))
    return names


def _options(config: Adapter) -> dict[str, Any]:
    if config.kind == "lora":
        return {"lora_dropout": config.dropout, "use_dora": config.dora}
    for key, value in (("dropout", config.dropout), ("dora", config.dora)):
        if value:
            raise ValueError(f"adapter.{key} is for adapter.kind=lora, and this is {config.kind}; leave it out")
    return {}


def _go_on_from_file(net: nn.Module, config: Adapter, wanted: Sequence[str], source: Path) -> list[str]:
    """Attach the LoRA file of `config.init`, as `_go_on` does a folder."""
    found = reading.read(net, source)
    first = next(iter(found.updates.values()))
    theirs: dict[str, set[Any]] = {
        "kind": {first.kind},
        "rank": {u.rank for u in found.updates.values()},
        "alpha": {kinds.whole(u.alpha) for u in found.updates.values()},
        "dora": {kinds.MAGNITUDE in first.tensors},
    }
    _agree(config, found.path, theirs)
    names = [name for name, _ in net.named_modules() if name in found.updates]
    _same_layers(net, config, wanted, names, found.path)
    _options(config.model_copy(update={"kind": first.kind}))
    kinds.put_in(net, found.updates, trains=True, dropout=config.dropout)
    log.info("going on from %s: %s, as it was trained", found.path, found.summary)
    return names


def _agree(config: Adapter, source: Path, theirs: Mapping[str, set[Any]]) -> None:
    """What the recipe says must be what the adapter it goes on from has."""
    for key, values in theirs.items():
        mine = getattr(config, key)
        if key in config.model_fields_set and mine is not None and values != {mine}:
            has = ", ".join(str(value) for value in sorted(values))
            out = f"add adapter.{key}=null" if key in ("rank", "alpha") else "leave it out"
            advice = f"write adapter.{key}={has}, or {out} to take it from there" if len(values) == 1 else out
            raise ValueError(
                f"adapter.{key} is {mine} but {source}, which adapter.init goes on from, has {has}; {advice}"
            )


def _same_layers(net: nn.Module, config: Adapter, wanted: Sequence[str], names: Sequence[str], source: Path) -> None:
    key = next((key for key in ("targets", "parts") if getattr(config, key) is not None), None)
    if key is not None and set(match(net, wanted)) != set(names):
        raise ValueError(
            f"adapter.{key} chooses other layers than {source}, "
            f"which adapter.init goes on from, has ({summary(names)}); add adapter.{key}=null to take those"
        )


def _go_on(net: nn.Module, config: Adapter, wanted: Sequence[str], base: str, folder: Path) -> list[str]:
    """Attach the adapter of `config.init`: what the recipe says must agree, what it leaves out is taken."""
    settings = files.read_config(folder)
    names, beside = _resolve(net, settings, folder)
    theirs: dict[str, set[Any]] = {
        "kind": {"lora"},
        "rank": {settings.r},
        "alpha": {settings.lora_alpha},
        "dora": {settings.use_dora},
    }
    _agree(config, folder, theirs)
    _same_layers(net, config, wanted, names, folder)
    settings.lora_dropout, settings.base_model_name_or_path, settings.inference_mode = (
        config.dropout,
        base,
        False,
    )
    kinds.inject(net, settings)
    _fill_or_undo(net, folder, beside, exact=True)
    log.info(
        "going on from %s: rank %s, alpha %s, %d layers, as it was trained",
        folder, settings.r, settings.lora_alpha, len(names),
    )  # fmt: skip
    return names


# --------------------------------------------------------------------------------------------------- asking


def adapted(net: nn.Module) -> list[str]:
    """Names of the modules that carry an adapter."""
    return list(layers(net))


def trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    """What trains now, adapter and extras, by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def extras(net: nn.Module) -> list[str]:
    """Modules beside the adapter that train, or came with it: the smallest whole ones, for `modules_to_save`.

    Raises ValueError in one sentence where the format has no place for them: a trained parameter whose module
    holds adapter layers too."""
    kept = {f"{module}." for module in settings_of(net).modules_to_save or ()}
    plain = {name: p for name, p in net.named_parameters() if not kinds.of_adapter(name)}
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


# ------------------------------------------------------------------------------------------ saving, loading


def save(net: nn.Module, folder: str | Path, base: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the adapter of `net`, and every module trained beside it, as a PEFT folder.

    Args:
        folder: made where missing; each file in it is complete or absent.
        base: folder or hub id of the model under the adapter, recorded as `base_model_name_or_path`.
        metadata: further entries for the header of the weights file.

    Raises ValueError in one sentence when something trained has no place in the format (see `extras`).
    """
    refuse_other_kinds(net)
    settings, modules = settings_of(net), extras(net)
    values = {
        **settings.to_dict(),
        "target_modules": sorted(adapted(net)),  # in full: a short q_proj would adapt the vision tower too
        "modules_to_save": modules or None,
    }
    files.write(Path(folder), values, _tensors(net, modules), base, metadata or {})


def refuse_other_kinds(net: nn.Module) -> None:
    """Raise ValueError for an adapter that is no LoRA: PEFT folders are opened by programs that know nothing else."""
    if kinds.kind_of(net) != "lora":
        title = kinds.TITLES[kinds.kind_of(net)]
        raise ValueError(f"a PEFT folder holds LoRA and the net has {title}; set adapter.kind=lora")


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
    kinds.refuse_second(net)
    settings = files.read_config(folder)
    names, beside = _resolve(net, settings, folder)
    kinds.inject(net, settings)
    if not _fill_or_undo(net, folder, beside) and must_change:
        kinds.unwrap(net)
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
        kinds.unwrap(net)
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
def merge(net: nn.Module, strength: float = 1.0) -> None:
    """Add the adapter into the weights and take its layers out: names and dtypes are as before `attach`.

    The sum is taken in fp32 and rounded once to the weight's own dtype: on a bf16 net a merged weight differs
    from the exact one by at most 2^-9 of its size. `strength` is how far each weight goes from what it was to what it
    would be. Raises ValueError when a merged weight is not finite."""
    settings_of(net)
    cast_adapter_dtype(net, NAME, autocast_adapter_dtype=True)
    for name, layer in layers(net).items():
        held = [(p, p.dtype) for p in layer.get_base_layer().parameters(recurse=False)]
        for p, dtype in held:
            p.data = p.data.to(torch.promote_types(dtype, torch.float32))
        before = [p.data.clone() for p, _ in held] if strength != 1 else []
        try:
            layer.merge(safe_merge=True)
        except ValueError:
            raise ValueError(
                f"merging makes {name} not finite; its adapter is broken, go back to an earlier one"
            ) from None
        if strength != 1:
            for (p, _), old in zip(held, before, strict=True):
                p.data = old + strength * (p.data - old)
        for p, dtype in held:
            p.data = p.data.to(dtype)
            if not p.isfinite().all():
                raise ValueError(
                    f"merged, {name} is too large for {dtype}; open the base model with dtype fp32 or bf16"
                )
    kinds.unwrap(net)
