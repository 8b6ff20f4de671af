"""What a VAE and text encoders made of pictures and texts, kept in files named by all that it depends on.

In goes a picture and a `View`, token ids, or a mask; out come the tensors made of them before, or None. A picture
counts by its bytes, not by its name: what was kept survives shuffling, renaming and other settings, and an edited
picture is another one. What is known of a file (contents, size) is kept under its path and holds while its length,
mtime and ctime do, so that a picture seen before is looked up without being opened.
Every entry carries a checksum; one that is damaged is removed, and counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from anymix.data.images import image_size
from anymix.data.store import TICK, Store
from anymix.data.views import View
from anymix.samples import ImageRef, SampleError

FORMAT = "1"  # to be raised when pictures are cut, scaled or encoded in another way than before
SUM = "crc32"


@dataclass(frozen=True)
class Seen:
    """A picture as it was when last read: what is in it, upright width and height, and how its file looked."""

    digest: str
    width: int
    height: int
    stat: tuple[int, ...] = ()  # length, mtime and ctime in ns; of bytes nothing

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


class Encodings:
    """Moments, texts and masks in a store (`anymix.families.common.pictures.Kept`). Pickles.

    Args:
        vae: what moments depend on besides picture and view: the VAE's weights and type.
        text: the same of the text encoders; None where they train, so that nothing of theirs is kept.
    """

    def __init__(self, store: Store, vae: str, text: str | None) -> None:
        self.store, self.vae, self.encoders = store, vae, text
        self._digested: tuple[bytes, str] = (b"", _digest(b""))  # of the bytes asked about last

    # what training asks

    def size(self, image: ImageRef) -> tuple[int, int] | None:
        """(width, height) of a picture that was looked at before and has not changed."""
        seen = self.known(image)
        return seen.size if seen else None

    def moments(self, image: ImageRef, view: View) -> Tensor | None:
        """(2C, h, w) fp32."""
        seen = self.known(image)
        found = self.get("moments", self.moments_key(seen, view)) if seen else None
        return found["moments"] if found else None

    def text(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Tensors of a Condition for ids (K, 77) by tokenizer."""
        return self.get("text", self.text_key(ids)) if self.encoders is not None else None

    def mask(self, image: ImageRef, view: View, shape: tuple[int, int]) -> Tensor | None:
        """(h, w) fp32 in 0..1 of a mask, as its picture is seen."""
        seen = self.known(image)
        found = self.get("masks", self.mask_key(seen, view, shape)) if seen else None
        return found["mask"] if found else None

    # pictures

    def known(self, image: ImageRef) -> Seen | None:
        """What is remembered of a picture, if it holds. Opens no picture."""
        try:
            record = self.store.read("seen", self._picture_key(image))
            seen = None if record is None else _parsed(record)
            return seen if seen and seen.stat == _stat(image) else None
        except OSError:
            return None

    def look(self, image: ImageRef, key: str) -> Seen:
        """The same, read from the picture. Raises SampleError naming `key` where it cannot be read whole."""
        try:
            before, data = _stat(image), _settled(image)
            changed = _stat(image) != before
        except OSError as error:
            image_size(image, key)  # says what is wrong with the path
            found = f"picture {image.path} cannot be read ({error.strerror})"
            raise SampleError(key, found, "copy or download it again") from None
        if changed:
            raise SampleError(key, f"picture {image.path} changed while it was read", "start again once it is whole")
        return Seen(_digest(data), *image_size(ImageRef(image.path, data), key), before)

    def remember(self, image: ImageRef, seen: Seen) -> None:
        """Let `known` find what `look` saw. Raises OSError where it cannot be written."""
        self.store.write("seen", self._picture_key(image), _written(seen))

    def need(self, image: ImageRef) -> Seen | None:
        """What `known` says, noted as used: it then stays when others go."""
        seen = self.known(image)
        if seen:
            self.store.use("seen", self._picture_key(image))
        return seen

    # keys

    def moments_key(self, seen: Seen, view: View) -> str:
        return _key("moments", seen.digest, view.name, self.vae)

    def mask_key(self, seen: Seen, view: View, shape: tuple[int, int]) -> str:
        return _key("masks", seen.digest, view.name, *map(str, (*view.original, *shape)))

    def text_key(self, ids: Mapping[str, Tensor]) -> str:
        """The same whatever the type of the ids."""
        parts = (f"{name} {tuple(t.shape)} {t.flatten().tolist()}" for name, t in sorted(ids.items()))
        return _key("text", *parts, self.encoders or "")

    def _picture_key(self, image: ImageRef) -> str:
        if image.data is None:
            return _key("seen", "path", os.path.abspath(image.path))
        data, digest = self._digested
        if data is not image.data:
            digest = _digest(image.data)
            self._digested = image.data, digest
        return _key("seen", "bytes", digest)

    def __reduce__(self) -> tuple[type, tuple[Store, str, str | None]]:
        return type(self), (self.store, self.vae, self.encoders)

    # entries

    def get(self, kind: str, key: str) -> dict[str, Tensor] | None:
        data = self.store.read(kind, key)
        tensors = None if data is None else unpack(data)
        if data is not None and tensors is None:
            self.store.drop(kind, key)
        return tensors

    def length(self, kind: str, key: str) -> int | None:
        """Bytes of an entry, which is noted as used; None where there is none. One of a wrong length is removed."""
        found = self.store.head(kind, key)
        if found is None:
            return None
        if not _whole(*found):
            self.store.drop(kind, key)
            return None
        self.store.use(kind, key)
        return found[1]


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file with a checksum of names, types, shapes and contents in its metadata."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    bare = safetensors.torch.save(plain)
    packed: bytes = safetensors.torch.save(plain, {SUM: _sum(*_split(bare))})
    return packed


def unpack(data: bytes | bytearray) -> dict[str, Tensor] | None:
    """The tensors of such a file; None where it is not whole."""
    try:
        header, body = _split(data)
        if header["__metadata__"][SUM] != _sum(header, body):
            return None
        tensors: dict[str, Tensor] = safetensors.torch.load(bytes(data))
        return tensors
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _split(data: bytes | bytearray) -> tuple[dict[str, dict[str, str]], memoryview]:
    count = 8 + int.from_bytes(data[:8], "little")
    return json.loads(bytes(data[8:count])), memoryview(data)[count:]


def _sum(header: Mapping[str, object], body: memoryview) -> str:
    """Against damage, not malice; every read pays for it, and this is the quickest: 0.2 ms for 512 kB."""
    described = {name: value for name, value in header.items() if name != "__metadata__"}
    return f"{zlib.crc32(body, zlib.crc32(json.dumps(described, sort_keys=True).encode())):08x}"


def _whole(head: bytes, size: int) -> bool:
    """Has a safetensors file the length its header says? Reads no more than the header."""
    try:
        count = 8 + int.from_bytes(head[:8], "little")
        header = json.loads(head[8:count])
        return bool(size == count + max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _key(*parts: str) -> str:
    return _digest("\0".join((FORMAT, *parts)).encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def _settled(image: ImageRef) -> bytes:
    """The bytes of a picture, read so long after it was written that writing it again would change its mtime."""
    if image.data is not None:
        return image.data
    age = time.time_ns() - max(_stat(image)[1:])
    if 0 <= age < TICK:
        time.sleep((TICK - age) / 1e9)
    with open(image.path, "rb") as file:
        return file.read()


def _stat(image: ImageRef) -> tuple[int, ...]:
    """ctime too: a copy that keeps mtime and length (cp -p, rsync) still changes it."""
    if image.data is not None:
        return ()
    stat = os.stat(image.path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _written(seen: Seen) -> bytes:
    text = json.dumps(asdict(seen))
    return f"{text}\n{_digest(text.encode())}\n".encode()


def _parsed(record: bytes | bytearray) -> Seen | None:
    text, _, check = bytes(record).partition(b"\n")
    if check.strip().decode("ascii", "replace") != _digest(text):
        return None
    tree = json.loads(text)
    return Seen(tree["digest"], tree["width"], tree["height"], tuple(tree["stat"]))
