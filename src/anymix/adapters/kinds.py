"""LoRA, LoHa and LoKr: as peft's layers in a net, and as plain tensors apart from any net or file.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds B A; LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098) adds
(W1a W1b) * (W2a W2b), * being element by element; LoKr (Yeh et al. 2023, arXiv 2309.14859) adds the Kronecker
product of W1 and W2, each whole or a product of two. All are scaled by alpha / rank. Tensors are named as in peft.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.functional import cast_adapter_dtype, inject_adapter_in_model
from peft.tuners.loha import LoHaLayer
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from anymix.adapters.files import whole as whole

NAME = "default"  # peft's own name for the one adapter of a net
KINDS = {"lora": (LoraConfig, LoraLayer), "loha": (LoHaConfig, LoHaLayer), "lokr": (LoKrConfig, LoKrLayer)}
LEAVES = {
    "lora": ("lora_A", "lora_B", "lora_magnitude_vector"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
}
TITLES = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}
MAGNITUDE = "lora_magnitude_vector"
_OF_ADAPTER = re.compile(r"\.(lora|hada|lokr)_")


@dataclass(frozen=True)
class Update:
    """What is added to one layer's weight: factors by leaf name (see LEAVES), and alpha / rank to scale them.

    lora_A (r, in, ...) and lora_B (out, r, ...) are in the layer's own number of dimensions; DoRA's magnitude is
    (out,). A LoHa or LoKr factor of a convolution is flat over its kernel, or has a third, small kernel (t1, t2).
    """

    kind: str
    tensors: dict[str, Tensor]
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def is_zero(self) -> bool:
        """Whether it adds nothing (DoRA's magnitude left aside): a product with a factor of zeros."""
        return any(not t.any() for name, t in self.tensors.items() if name != MAGNITUDE)

    def with_tensors(self, **tensors: Tensor) -> Update:
        return replace(self, tensors={**self.tensors, **tensors})


# --------------------------------------------------------------------------------------------------- asking


def is_attached(net: nn.Module) -> bool:
    """Whether adapter layers are in the net."""
    return any(isinstance(module, BaseTunerLayer) for module in net.modules())


def layers(net: nn.Module) -> dict[str, Any]:
    """The adapter layers in the net, by the name of the module each took the place of."""
    return {name: module for name, module in net.named_modules() if isinstance(module, BaseTunerLayer)}


def plain(net: nn.Module) -> dict[str, nn.Module]:
    """Every linear and convolution layer, adapted or not, by the name it has without an adapter."""
    wrapped = layers(net)
    inside = tuple(f"{name}." for name in wrapped)
    able = (nn.Linear, _ConvNd)
    found = {n: m for n, m in net.named_modules() if n in wrapped or isinstance(m, able) and not n.startswith(inside)}
    return {name: wrapped[name].get_base_layer() if name in wrapped else m for name, m in found.items()}


def of_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return _OF_ADAPTER.search(name) is not None


def settings_of(net: nn.Module) -> Any:
    """The peft settings of the adapter in the net. Raises ValueError when there is none."""
    if not is_attached(net):
        raise ValueError("the net has no adapter; attach or load one first")
    return net.peft_config[NAME]  # type: ignore[index]


def kind_of(net: nn.Module) -> str:
    """lora, loha or lokr. Raises ValueError when the net has no adapter."""
    settings = settings_of(net)
    return next(kind for kind, (config, _) in KINDS.items() if isinstance(settings, config))


def refuse_second(net: nn.Module) -> None:
    if is_attached(net):
        raise ValueError("the net has an adapter already; merge it before another one is put in")


def updates(net: nn.Module) -> dict[str, Update]:
    """The adapter in the net as plain tensors, by module; they are the net's own, detached."""
    return {name: _of(name, layer) for name, layer in layers(net).items()}


def _of(name: str, layer: Any) -> Update:
    kind = next(kind for kind, (_, cls) in KINDS.items() if isinstance(layer, cls))
    found: dict[str, Tensor] = {}
    for leaf in LEAVES[kind]:
        holder = getattr(layer, leaf)
        if NAME in holder:
            value = holder[NAME]
            found[leaf] = (value if isinstance(value, Tensor) else value.weight).detach()
    if kind == "lora" and "lora_A" not in found:
        raise ValueError(f"{name} is an adapted embedding, which a LoRA file has no place for")
    if MAGNITUDE in found:
        found[MAGNITUDE] = found[MAGNITUDE].flatten()  # (1, out, 1, 1) in a convolution
    rank = layer.r[NAME]
    return Update(kind, found, rank, float(layer.scaling[NAME]) * rank)


# ------------------------------------------------------------------------------------------- putting in, out


def settings(kind: str, names: Sequence[str], rank: int, alpha: float, base: str = "", **more: Any) -> Any:
    """peft's settings for one rank and alpha on all of `names`."""
    key = "lora_alpha" if kind == "lora" else "alpha"
    config = KINDS[kind][0]
    return config(r=rank, target_modules=list(names), base_model_name_or_path=base, **{key: whole(alpha)}, **more)


def inject(net: nn.Module, config: PeftConfig) -> None:
    """Put fresh adapter layers into the net, in fp32 whatever the net is in; all else is frozen."""
    inject_adapter_in_model(config, net, adapter_name=NAME)
    cast_adapter_dtype(net, NAME, autocast_adapter_dtype=True)  # on a bf16 net they are born bf16
    for layer in layers(net).values():
        layer.train(layer.get_base_layer().training)  # born in training mode: dropout would act in inference


def put_in(net: nn.Module, found: Mapping[str, Update], *, trains: bool = False, dropout: float = 0.0) -> None:
    """Put adapter layers with these values into the net, each with its own rank and alpha; fp32.

    Raises ValueError where one net cannot hold them all: two kinds, or DoRA on some layers only."""
    refuse_second(net)
    inject(net, patterned(found, trains=trains, dropout=dropout))
    for name, layer in layers(net).items():
        _fill(layer, found[name])


def patterned(found: Mapping[str, Update], *, trains: bool = False, dropout: float = 0.0) -> Any:
    """peft's settings for layers of different rank and alpha: the commonest, and what differs by exact name."""
    if not found:
        raise ValueError("there is no layer to adapt")
    kinds = sorted({update.kind for update in found.values()})
    decomposed = {MAGNITUDE in update.tensors for update in found.values()}
    if len(kinds) > 1:
        raise ValueError(f"it mixes {' and '.join(TITLES[kind] for kind in kinds)}, and a net takes one kind at a time")
    if len(decomposed) > 1:
        raise ValueError("it has DoRA's magnitudes for some of its layers only, and peft knows all or none")
    rank, alpha = Counter((u.rank, whole(u.alpha)) for u in found.values()).most_common(1)[0][0]
    other = {f"^{re.escape(name)}": u for name, u in found.items() if (u.rank, whole(u.alpha)) != (rank, alpha)}
    more: dict[str, Any] = {"lora_dropout": dropout, "use_dora": decomposed == {True}} if kinds == ["lora"] else {}
    return settings(
        kinds[0], list(found), rank, alpha,
        rank_pattern={name: u.rank for name, u in other.items()},
        alpha_pattern={name: whole(u.alpha) for name, u in other.items()},
        inference_mode=not trains, **more,
    )  # fmt: skip


@torch.no_grad()
def _fill(layer: Any, update: Update) -> None:
    """Set the factors of a fresh layer; LoHa and LoKr take the factorisation the values come in."""
    trains = any(p.requires_grad for leaf in LEAVES[update.kind] for p in getattr(layer, leaf).parameters())
    for leaf in LEAVES[update.kind]:
        holder, value = getattr(layer, leaf), update.tensors.get(leaf)
        if update.kind == "lora":
            if value is not None:
                place = holder[NAME].weight
                place.data = value.to(place.device, torch.float32).reshape(place.shape).clone()
            continue
        if NAME in holder:
            del holder[NAME]
        if value is not None:
            device = layer.get_base_layer().weight.device
            holder[NAME] = nn.Parameter(value.to(device, torch.float32).clone(), requires_grad=trains)


def unwrap(net: nn.Module) -> None:
    """Put the base layers back in place of the adapter layers."""
    for name, layer in layers(net).items():
        parent, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(parent), leaf, layer.get_base_layer())
    if hasattr(net, "peft_config"):
        del net.peft_config
