"""What an encoder is, in a few digits: kept encodings of another one are not used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from anymix import config
from anymix.data.cache import Encodings
from anymix.data.store import Store, default_folder
from anymix.device import ranks
from anymix.families.contract import ImageFamily

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def open_kept(family: ImageFamily, cache: config.Cache, dtype: torch.dtype, me: ranks.Ranks) -> Encodings:
    """The cache as this model may use it, with nothing made."""
    folder = Path(cache.path).expanduser() if cache.path else default_folder()
    names: tuple[str, str | None] = "", None
    if me.is_main:
        told = {name: family.part(name) for name in ENCODERS if _has(family, name)}
        assert told, "a family that draws has a text encoder"
        learning = any(p.requires_grad for name in told if name not in family.frozen for p in told[name].parameters())
        names = (
            # a VAE may be widened to fp32 on the way, when it overflows: that is to be no other VAE
            fingerprint({"vae": family.part("vae")}, str(dtype), widened=True),
            None if learning else fingerprint(told, str(dtype), family.name),
        )
    vae, text = ranks.broadcast_object(names)
    return Encodings(Store(folder), vae, text)


def fingerprint(modules: Mapping[str, nn.Module], *more: str, widened: bool = False) -> str:
    """Hex digits that tell these weights, types and architecture from any others; `widened`: types left out.

    All of each weight is read (not a sample: one new word in an embedding must count), in threads: nearly 1 GB a
    second and core."""
    tensors = [(f"{part}.{name}", t) for part, module in modules.items() for name, t in module.state_dict().items()]
    found = hashlib.blake2b(digest_size=20)
    with ThreadPoolExecutor() as pool:
        hashed = pool.map(partial(_hashed, widened=widened), (t for _, t in tensors))
        for (name, t), digest in zip(tensors, hashed, strict=True):
            found.update(f"{name} {tuple(t.shape)} {digest}\n".encode())
    for text in (*more, *(repr(module) for module in modules.values())):  # activations and eps stand in the latter
        found.update(text.encode())
    return found.hexdigest()


def _hashed(tensor: Tensor, widened: bool) -> str:
    plain = tensor.detach().cpu()
    if widened and plain.is_floating_point():
        plain = plain.float()
    octets = plain.contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{plain.dtype} {hashlib.blake2b(octets.data, digest_size=20).hexdigest()}"


def _has(family: ImageFamily, part: str) -> bool:
    return part in family.frozen or part in dict(family.net.named_children())
