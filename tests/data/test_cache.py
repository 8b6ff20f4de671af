"""The cache of encodings by itself: entries whole or absent, pictures known by their contents, old ones going first."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anymix.data.cache import Encodings, pack, unpack
from anymix.data.store import Entry, Freed, Store, amount, default_folder
from anymix.data.views import View
from anymix.samples import ImageRef, SampleError
from house.source import ROOT
from sketches import draw_picture, pictures_opened

VIEW = View((48, 40), (38, 32), (32, 32), 3, 0)
KEY = "ab" * 20
OTHER = "cd" * 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def kept(store: Store) -> Encodings:
    return Encodings(store, "a vae", "encoders")


def looked(kept: Encodings, image: ImageRef) -> str:
    """Have a picture known; -> the name of what a VAE makes of it."""
    seen = kept.look(image, "rows:1")
    kept.remember(image, seen)
    return kept.moments_key(seen, VIEW)


def entries(store: Store) -> list[Entry]:
    return sorted(store.entries(), key=lambda entry: entry.path.name)


# entries


def test_an_entry_comes_back_as_it_was_in_every_type():
    given = {
        "a": torch.randn(3, 4),
        "b": torch.randn(2, 2).bfloat16(),
        "c": torch.tensor(3),
        "d": torch.randn(6).half(),
    }
    back = unpack(pack(given))
    assert back is not None and back.keys() == given.keys()
    assert all(back[name].dtype == t.dtype and torch.equal(back[name], t) for name, t in given.items())


def test_parts_of_one_tensor_are_entries_of_their_own_size():
    rows = torch.randn(16, 8)
    assert len(pack({"a": rows[3], "b": rows[3]})) < 600


def test_no_byte_of_an_entry_can_change_unseen():
    data = pack({"moments": torch.randn(2, 3)})
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 4
        assert unpack(changed) is None, place


def test_an_entry_cut_anywhere_is_removed_and_not_there(store, kept):
    data = pack({"moments": torch.randn(2, 3)})
    for length in range(len(data)):
        store.write("moments", KEY, data[:length])
        ask = kept.length if length % 2 else kept.get
        assert ask("moments", KEY) is None
        assert not store.path("moments", KEY).exists()
    store.write("moments", KEY, data)
    assert kept.length("moments", KEY) == len(data)


# pictures


def test_a_picture_is_known_without_being_opened(kept, tmp_path):
    image = ImageRef(str(draw_picture(tmp_path / "a.png", 1)))
    assert kept.size(image) is None
    looked(kept, image)
    with pictures_opened() as opened:
        assert kept.size(image) == (48, 40)
        assert kept.moments(image, VIEW) is None
    assert opened == []


def test_the_size_is_that_of_the_upright_picture(kept, tmp_path):
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=turned)
    assert kept.look(ImageRef(str(tmp_path / "a.jpg")), "rows:1").size == (20, 30)


def test_name_folder_and_times_of_a_picture_do_not_matter(kept, tmp_path):
    path = draw_picture(tmp_path / "a.png", 1)
    name = looked(kept, ImageRef(str(path)))
    os.utime(path, (1, 1))
    assert kept.size(ImageRef(str(path))) is None  # it has to be read again
    assert looked(kept, ImageRef(str(path))) == name
    moved = path.rename(tmp_path / "another name.png")
    assert looked(kept, ImageRef(str(moved))) == name
    assert looked(kept, ImageRef("cell of a table", moved.read_bytes())) == name


def test_an_edit_is_seen_even_if_length_and_mtime_stay(kept, tmp_path):
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 2 1 255\n" + bytes(range(6)))
    first, before = looked(kept, ImageRef(str(path))), os.stat(path)
    for _ in range(5):  # at once, as a program that writes twice does
        path.write_bytes(b"P6 2 1 255\n" + os.urandom(6))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert kept.size(ImageRef(str(path))) is None
        second = looked(kept, ImageRef(str(path)))
        assert second != first
        first = second


def test_a_picture_in_bytes_is_known_by_them(kept, tmp_path):
    data = draw_picture(tmp_path / "a.png", 1).read_bytes()
    looked(kept, ImageRef("cell 1", data))
    assert kept.size(ImageRef("cell 2", bytes(bytearray(data)))) == (48, 40)
    assert kept.size(ImageRef("cell 1", data + b"x")) is None


def test_a_picture_that_cannot_be_read_is_named(kept, tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(SampleError, match=f"rows:7: picture {path}"):
            kept.look(ImageRef(str(path)), "rows:7")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(SampleError, match="rows:7"):
        kept.look(ImageRef(str(tmp_path / "a.png")), "rows:7")
    assert not entries(kept.store)


def test_a_damaged_record_of_a_picture_is_no_record(kept, tmp_path):
    image = ImageRef(str(draw_picture(tmp_path / "a.png", 1)))
    looked(kept, image)
    [entry] = entries(kept.store)
    data = entry.path.read_bytes()
    for damaged in (b"", data[:40], data.replace(b'"width": 48', b'"width": 49'), b"\xff" * 80):
        entry.path.write_bytes(damaged)
        assert kept.size(image) is None
    entry.path.write_bytes(data)
    assert kept.size(image) == (48, 40)


# keys


def test_a_name_tells_apart_all_an_encoding_depends_on(store, tmp_path):
    a, b = (ImageRef(str(draw_picture(tmp_path / f"{n}.png", n))) for n in (1, 2))
    kept, other = Encodings(store, "a vae", "encoders"), Encodings(store, "another", "others")
    seen = kept.look(a, "")
    views = [VIEW, View((48, 40), (38, 32), (32, 32), 4, 0), View((48, 40), (38, 32), (32, 32), 3, 0, True)]
    names = [kept.moments_key(seen, view) for view in views]
    names += [kept.moments_key(kept.look(b, ""), VIEW), other.moments_key(seen, VIEW)]
    names += [kept.mask_key(seen, VIEW, (8, 8)), kept.mask_key(seen, VIEW, (4, 4))]
    ids = torch.arange(154).view(2, 77)
    said: list[dict[str, Tensor]] = [{"a": ids}, {"b": ids}, {"a": ids, "b": ids}, {"a": ids[:1]}, {"a": ids.flip(0)}]
    names += [kept.text_key(each) for each in said] + [other.text_key(said[0])]
    assert len(set(names)) == len(names)
    assert kept.text_key({"a": ids.int()}) == kept.text_key({"a": ids})


def test_it_pickles_with_nothing_of_what_it_read(kept, tmp_path):
    data = draw_picture(tmp_path / "a.png", 1).read_bytes()
    looked(kept, ImageRef("cell", data))
    pickled = pickle.dumps(kept)
    assert len(pickled) < 500
    assert pickle.loads(pickled).size(ImageRef("cell", data)) == (48, 40)


def test_texts_are_not_kept_where_their_encoders_train(store):
    ids = {"a": torch.zeros(1, 77, dtype=torch.int64)}
    kept = Encodings(store, "a vae", "encoders")
    store.write("text", kept.text_key(ids), pack({"text": torch.ones(2)}))
    assert kept.text(ids) is not None
    assert Encodings(store, "a vae", None).text(ids) is None


# the folder

WRITER = """
import sys
from pathlib import Path
from anymix.data.store import Store
store, data = Store(Path(sys.argv[1])), Path(sys.argv[2]).read_bytes()
print("up", flush=True)
for n in range(int(sys.argv[3])):
    store.write("moments", f"{n % 50:040x}", data)
"""


def _writer(store: Store, data: Path, count: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WRITER, str(store.folder), str(data), str(count)]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, stdout=-1, text=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    return process


def _all_whole(store: Store, count: int) -> None:
    found = entries(store)
    assert len(found) >= count
    assert all(unpack(entry.path.read_bytes()) for entry in found)


def test_a_kill_at_any_moment_leaves_whole_entries_only(store, tmp_path):
    data = tmp_path / "entry"
    data.write_bytes(pack({"moments": torch.randn(8, 64, 64)}))
    for wait in (0.003, 0.01, 0.03, 0.06, 0.1):
        process = _writer(store, data, 10**6)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    _all_whole(store, 1)
    leftovers = list((store.folder / "making").iterdir())
    store.tidy()
    assert list((store.folder / "making").iterdir()) == leftovers  # they might be another's who is at work
    for leftover in leftovers:
        os.utime(leftover, (1, 1))
    store.tidy()
    assert not list((store.folder / "making").iterdir())


def test_processes_write_the_same_entries_at_once(store, tmp_path):
    data = tmp_path / "entry"
    data.write_bytes(pack({"moments": torch.randn(8, 16, 16)}))
    processes = [_writer(store, data, 150) for _ in range(2)]
    assert [process.communicate()[1] or process.returncode for process in processes] == [0, 0]
    _all_whole(store, 50)
    assert not list((store.folder / "making").iterdir())


def test_a_write_that_fails_leaves_nothing(store, monkeypatch):
    written = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 600:
            raise OSError(28, "No space left on device")
        return written(handle, data[:200])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        store.write("moments", KEY, b"x" * 1000)
    assert not entries(store) and not list((store.folder / "making").iterdir())


def test_the_longest_unused_go_first_and_none_that_is_needed_now(store):
    keys = [f"{n:02x}" * 20 for n in range(6)]
    for n, key in enumerate(keys):
        store.write("moments", key, b"x" * 100)
        os.utime(store.path("moments", key), (n, n))
    store.read("moments", keys[0])  # a use
    assert store.trim(350, since=3.0).entries == 2
    assert {entry.path.name[:40] for entry in store.entries()} == {keys[0], *keys[3:]}  # 3 is of a run that is going on
    assert store.trim(350, since=time.time() + 60).entries == 1
    assert {entry.path.name[:40] for entry in store.entries()} == {keys[0], *keys[4:]}
    assert store.trim(350, since=time.time() + 60).entries == 0


def test_a_use_is_noted_hourly_and_no_more(store):
    store.write("moments", KEY, b"x")
    path, now = store.path("moments", KEY), time.time()
    for age, noted in ((60, False), (7200, True)):
        os.utime(path, (now - age, now - age))
        store.read("moments", KEY)
        assert (abs(path.stat().st_mtime - now) < 30) is noted


def test_clearing_takes_what_is_ours_and_no_more(store):
    for key in (KEY, OTHER):
        store.write("moments", key, b"x" * 10)
    store.write("seen", KEY, b"x")
    os.utime(store.path("moments", OTHER), (1, 1))
    theirs = [store.folder / "holiday.jpg", store.folder / "moments" / "ab" / "notes.txt", store.folder / "text" / "me"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert store.clear(before=0).entries == 0
    assert store.clear(before=time.time() - 60) == Freed(1, 10)
    assert store.clear().entries == 2
    assert not entries(store)
    assert all(path.exists() for path in theirs)
    assert not (store.folder / "seen").exists()
    store.write("moments", KEY, b"x")  # and it goes on


def test_an_empty_or_absent_folder_is_an_empty_cache(store):
    assert not entries(store) and store.clear().entries == 0 and store.read("seen", KEY) is None
    assert store.free() > 0
    assert not store.folder.exists()


def test_where_the_cache_is():
    home = Path.home()
    assert default_folder({}) == home / ".cache" / "anymix" / "pictures"
    assert default_folder({"XDG_CACHE_HOME": "/fast"}) == Path("/fast/anymix/pictures")
    assert default_folder({"XDG_CACHE_HOME": "not/absolute"}) == home / ".cache" / "anymix" / "pictures"
    assert default_folder({"XDG_CACHE_HOME": "/fast", "ANYMIX_CACHE": "~/kept"}) == home / "kept" / "pictures"


def test_sizes_are_said_as_people_say_them():
    assert [amount(n) for n in (0, 999, 1000, 1_234_567, 5 * 10**9, 2 * 10**13)] == [
        "0 B", "999 B", "1 kB", "1.23 MB", "5 GB", "20 TB",
    ]  # fmt: skip
