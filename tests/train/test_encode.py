"""The cache filled from rows: what is made when and never again, what goes wrong in a sentence; cached = uncached."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anymix import config
from anymix.data import store as store_module
from anymix.data.cache import unpack
from anymix.data.loader import Order, Split, stream
from anymix.data.store import Store
from anymix.device import pick
from anymix.families.common import pictures
from anymix.families.common.pictures import Plan
from anymix.samples import Caption, ImageRef, SampleError
from anymix.train.encode import Filled, fill
from anymix.train.fingerprint import ENCODERS
from house.source import ROOT
from sketches import Codec, Sketch, captions, draw_picture, pictures_opened, plan, tokenise

Fill = Callable[..., Filled]


@pytest.fixture
def filled(tmp_path: Path) -> Fill:
    """Fill a cache in the test's folder."""

    def call(rows: list[Caption], how: Plan, family: Sketch | None = None, **more: Any) -> Filled:
        cache = config.Cache(path=str(tmp_path / "cache"), **{k: more.pop(k) for k in ("limit_gb",) if k in more})
        dtype = more.pop("dtype", torch.float32)
        parts = more.pop("parts", [(rows, how)])
        return fill(family or Sketch(), parts, tokenise, cache, pick("cpu"), dtype, **more)

    return call


def made(done: Filled) -> tuple[int, int, int]:
    return done.pictures, done.texts, done.masks


def masked(rows: list[Caption], folder: Path) -> list[Caption]:
    folder.mkdir()
    found = []
    for n, row in enumerate(rows):
        Image.linear_gradient("L").rotate(90 * n).resize((24, 20)).save(folder / f"{n}.png")
        found.append(replace(row, mask=ImageRef(str(folder / f"{n}.png"))))
    return found


# cached = uncached


def rich(folder: Path) -> tuple[list[Caption], Plan]:
    """Rows with all that can be drawn: crops, mirrors, several captions, dropout, class pictures, masks, shuffling."""
    prior = tuple(captions(folder / "class", 3))
    rows = masked(captions(folder / "own", 3, prior=prior, prior_weight=0.5), folder / "masks")
    rows[0] = replace(rows[0], texts=("one", "another", "a third of 100 letters" * 5))
    rows[1] = replace(rows[1], texts=("red, round, small",), shuffle=True, keep=1)
    rows[2] = replace(rows[2], dropout=0.0)
    return rows, plan(crop="random", flip=True, dropout=0.3, masked=True)


def test_what_is_drawn_is_the_same_cached_or_not_bit_for_bit(filled, tmp_path):
    rows, how = rich(tmp_path)
    family = Sketch()
    kept = replace(how, kept=filled(rows, how, family).kept)
    seen = set()
    for seed in range(60):
        row = rows[seed % 3]
        cached, uncached = Codec(kept).encode(row, seed), Codec(how).encode(row, seed)
        assert len(cached.frames) == len(uncached.frames) == 2
        for one, other in zip(cached.frames, uncached.frames, strict=True):
            assert one.view == other.view
            both = one.tensors.keys() & other.tensors.keys()
            assert both >= {"eps", "noise", "t", "signal", "sigma", "weighting", "time_ids", "mask"}
            assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in both)
            assert "moments" in one.tensors and "pixels" in other.tensors
            seen |= {name for name in one.tensors if name.startswith(("ids.", "text."))}
    assert seen == {"ids.words", "text.text", "text.pooled"}  # shuffled captions go on to be embedded


def test_losses_are_the_same_cached_or_not(filled, tmp_path):
    rows, how = rich(tmp_path)
    family = Sketch()
    kept = replace(how, kept=filled(rows, how, family).kept)
    for seed in range(8):
        cached, uncached = (
            family.loss(Codec(each).collate([Codec(each).encode(row, seed) for row in rows])).detach()
            for each in (kept, how)
        )
        assert float(cached) == pytest.approx(float(uncached), rel=1e-6)


def test_a_second_epoch_opens_no_picture_and_runs_no_encoder(filled, tmp_path):
    rows, how = rich(tmp_path)
    rows[1] = replace(rows[1], shuffle=False)
    family = Sketch()
    first = filled(rows, how, family)
    assert family.encoded == first.pictures > 12 and family.embedded == first.texts and family.left
    codec = Codec(replace(how, kept=first.kept))
    with pictures_opened() as opened:
        again = filled(rows, how, family)
        family.encoded = family.embedded = 0
        for batches in stream(rows, codec, Order(3), Split(3), range(10)):
            family.loss(batches[0])
    assert made(again) == (0, 0, 0) and again.found == first.pictures + first.texts + first.masks
    assert (opened, family.encoded, family.embedded) == ([], 0, 0)


def test_all_that_may_be_said_of_a_picture_is_listed(tmp_path):
    choose = random.Random(0)
    for _ in range(300):
        texts = tuple(choose.sample(["a", "a , b", "b,c , d", "", "x,y", "long, words, here"], choose.randint(1, 3)))
        sample = Caption(
            ImageRef("x"),
            texts,
            "k",
            shuffle=choose.random() < 0.6,
            keep=choose.randint(0, 2),
            dropout=choose.choice([None, 0, 1]),
        )
        how = plan(dropout=choose.choice([0.0, 0.5]), still=choose.random() < 0.2)
        listed, all_of_them = pictures.sayings(sample, how)
        drawn = {pictures._text(sample, random.Random(seed), how) for seed in range(40)}
        assert all_of_them is False or drawn <= set(listed)
        assert all_of_them or sample.shuffle


# what is made again, and what is not


def test_what_encodings_do_not_depend_on_changes_nothing(filled, tmp_path):
    rows = captions(tmp_path / "here", 4)
    how = plan(flip=True, crop="random", dropout=0.1)
    first = made(filled(rows, how))
    assert first[0] > 2 * len(rows) and first[1:] == (5, 0)
    shuffled = [replace(row, key=f"other.jsonl:{9 - n}") for n, row in enumerate(reversed(rows))]
    assert made(filled(shuffled, how)) == (0, 0, 0)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = [replace(row, image=ImageRef(row.image.path.replace("here", "there"))) for row in shuffled]
    assert made(filled(moved, how)) == (0, 0, 0)
    cells = [replace(row, image=ImageRef(row.image.path, Path(row.image.path).read_bytes())) for row in moved]
    assert made(filled(cells, how)) == (0, 0, 0)
    assert made(filled(moved, replace(how, dropout=0.5, objective=Sketch().objective))) == (0, 0, 0)
    assert made(filled(moved[:2], plan(flip=False, crop="random"))) == (0, 0, 0)


def test_a_renamed_picture_is_not_encoded_again(filled, tmp_path):
    rows = captions(tmp_path / "p", 3)
    filled(rows, plan())
    Path(rows[0].image.path).rename(tmp_path / "p" / "new.png")
    rows[0] = replace(rows[0], image=ImageRef(str(tmp_path / "p" / "new.png")))
    assert made(filled(rows, plan())) == (0, 0, 0)


def test_one_changed_caption_encodes_one_caption(filled, tmp_path):
    rows, family = captions(tmp_path, 5), Sketch()
    filled(rows, plan(dropout=0.1), family)
    family.encoded = family.embedded = 0
    rows[3] = replace(rows[3], texts=("something else",))
    assert made(filled(rows, plan(dropout=0.1), family)) == (0, 1, 0)
    assert (family.encoded, family.embedded) == (0, 1)


def test_one_edited_picture_encodes_its_own_views(filled, tmp_path):
    rows, family = masked(captions(tmp_path, 5), tmp_path / "masks"), Sketch()
    how = plan(flip=True, masked=True)
    filled(rows, how, family)
    family.encoded = family.embedded = 0
    draw_picture(Path(rows[3].image.path), 99)
    assert made(filled(rows, how, family)) == (2, 0, 0)
    assert (family.encoded, family.embedded) == (2, 0)
    Image.new("L", (48, 40), 77).save(rows[1].mask.path)
    assert made(filled(rows, how, family)) == (0, 0, 2)


def test_texts_and_pictures_that_repeat_are_encoded_once(filled, tmp_path):
    rows = [replace(row, texts=("a photo of sks dog",)) for row in captions(tmp_path, 3)] * 4
    rows.append(replace(rows[0], key="another:1", image=ImageRef(str(tmp_path / "copy.png"))))
    (tmp_path / "copy.png").write_bytes(Path(rows[0].image.path).read_bytes())
    assert made(filled(rows, plan())) == (3, 1, 0)


def test_a_picture_in_two_data_sets_is_kept_as_each_sees_and_calls_it(filled, tmp_path):
    """One folder in two data sets of a kohya file, at two sizes, is how people train at several resolutions."""
    row, how = captions(tmp_path / "p", 1)[0], plan(crop="random", flip=True)
    rows = [row, replace(row, look=(("resolution", 16),)), replace(row, dropout=1.0), replace(row, mask=row.image)]
    how = replace(how, masked=True)
    drawn_of = Codec(replace(how, kept=filled(rows, how).kept))
    for each in rows:
        for seed in range(20):
            tensors = drawn_of.encode(each, seed).frames[0].tensors
            assert {"moments", "text.text"} <= tensors.keys() and "pixels" not in tensors
    assert made(filled(rows, how)) == (0, 0, 0)


def test_other_weights_or_another_type_are_another_cache(filled, tmp_path):
    rows = captions(tmp_path, 2)
    assert made(filled(rows, plan())) == (2, 2, 0)
    vae, words = Sketch(), Sketch()
    with torch.no_grad():
        vae.part("vae").bias[0] += 1e-6
        words.part("text_encoder").weight[17, 2] += 1e-6  # as one new word of textual inversion would
    assert made(filled(rows, plan(), vae)) == (2, 0, 0)
    assert made(filled(rows, plan(), words)) == (0, 2, 0)
    assert made(filled(rows, plan(), dtype=torch.bfloat16)) == (2, 2, 0)
    assert made(filled(rows, plan())) == (0, 0, 0)


def test_a_vae_widened_on_the_way_is_the_same_vae(filled, tmp_path):
    rows, family = captions(tmp_path, 2), Sketch()
    family.part("vae").half()
    with torch.no_grad():
        family.encode = lambda pixels: family.part("vae").float()(pixels)  # as one that overflows in fp16 is
        assert made(filled(rows, plan(), family))[0] == 2
        assert made(filled(rows, plan(), family)) == (0, 0, 0)


def test_another_architecture_over_the_same_weights_is_another_cache(filled, tmp_path):
    rows, family = captions(tmp_path, 2), Sketch()
    filled(rows, plan())
    family.part("vae").stride = (2, 2)
    assert made(filled(rows, plan(), family))[:2] == (2, 0)


def test_text_encoders_that_train_are_not_kept(filled, tmp_path):
    rows, family = captions(tmp_path, 2), Sketch()
    family.net["text_encoder"] = family.frozen.pop("text_encoder")
    done = filled(rows, plan(), family)
    assert made(done) == (2, 0, 0) and family.embedded == 0
    assert "trains" in str(done)
    frames = Codec(plan(kept=done.kept)).encode(rows[0]).frames
    assert "ids.words" in frames[0].tensors and "moments" in frames[0].tensors
    family.net["text_encoder"].requires_grad_(False)
    assert made(filled(rows, plan(), family)) == (0, 2, 0)


def test_shuffled_captions_are_left_out_and_it_is_said(filled, tmp_path):
    rows = captions(tmp_path, 3)
    rows[0] = replace(rows[0], texts=("a, b, c, d",), shuffle=True, keep=1)
    rows[1] = replace(rows[1], texts=("a, b",), shuffle=True, keep=1)  # of one order only
    done = filled(rows, plan())
    assert made(done) == (3, 2, 0) and done.loose == 1
    assert "1 shuffled captions are embedded anew" in str(done)
    assert "text.text" in Codec(plan(kept=done.kept)).encode(rows[1]).frames[0].tensors


def test_validation_needs_its_first_view_and_caption_alone(filled, tmp_path):
    prior = tuple(captions(tmp_path / "class", 2))
    rows = captions(tmp_path / "rows", 3, prior=prior)
    rows[0] = replace(rows[0], texts=("x", "y", "z"))
    how = plan(flip=True, crop="random", dropout=0.5)
    assert made(filled(rows, replace(how, still=True))) == (3, 3, 0)
    views, texts, _ = made(filled([], how, parts=[(rows[:1], how), (rows[1:], replace(how, still=True))]))
    assert views > 3 and texts == 4  # y, z, none at all and the class picture 0; those of rows 1 and 2 are there


# damage


def test_a_damaged_entry_is_encoded_on_the_way_and_made_again(filled, tmp_path):
    rows, how, family = captions(tmp_path, 3), plan(), Sketch()
    kept = filled(rows, how, family).kept
    codec = Codec(replace(how, kept=kept))
    whole = [codec.encode(row, 1).frames[0].tensors for row in rows]
    for entry in list(kept.store.entries()):
        if entry.kind in ("moments", "text"):
            data = bytearray(entry.path.read_bytes())
            data[-1] ^= 1
            entry.path.write_bytes(data)
    hurt = [codec.encode(row, 1).frames[0].tensors for row in rows]
    assert all("pixels" in each and "ids.words" in each for each in hurt)
    assert {entry.kind for entry in kept.store.entries()} == {"seen"}
    assert made(filled(rows, how, family)) == (3, 3, 0)
    again = [codec.encode(row, 1).frames[0].tensors for row in rows]
    assert all(torch.equal(a[n], b[n]) for a, b in zip(whole, again, strict=True) for n in a)


def test_entries_cut_short_are_found_before_training(filled, tmp_path):
    rows = captions(tmp_path, 3)
    kept = filled(rows, plan()).kept
    for kind in ("moments", "text"):
        entry = next(entry for entry in kept.store.entries() if entry.kind == kind)
        entry.path.write_bytes(entry.path.read_bytes()[:-7])
    assert made(filled(rows, plan())) == (1, 1, 0)


def test_a_picture_changed_while_training_is_read_as_it_is_now(filled, tmp_path):
    rows = captions(tmp_path, 2)
    codec = Codec(plan(kept=filled(rows, plan()).kept))
    draw_picture(Path(rows[0].image.path), 77, (60, 40))
    now = codec.encode(rows[0], 1).frames[0]
    assert torch.equal(now.tensors["pixels"], Codec(plan()).encode(rows[0], 1).frames[0].tensors["pixels"])
    assert now.view.original == (60, 40)


def test_a_picture_changed_between_hash_and_encoding_is_not_kept_under_its_old_name(filled, tmp_path):
    rows = captions(tmp_path, 2)

    def tell(what: str, done: int, total: int) -> None:
        if what == "looked at" and done == total:
            draw_picture(Path(rows[1].image.path), 77)

    with pytest.raises(SampleError, match="rows.jsonl:1: picture .*1.png changed while it was read"):
        filled(rows, plan(), tell=tell)
    assert made(filled(rows, plan()))[0] in (1, 2)


# what goes wrong


@pytest.mark.parametrize("how", ["raises", "returns"])
def test_a_vae_that_overflows_names_the_picture(filled, tmp_path, how):
    rows, family = captions(tmp_path, 5), Sketch()
    Image.new("RGB", (48, 40), "white").save(rows[3].image.path)
    family.overflow = 0.9
    if how == "returns":
        encode, family.overflow = family.encode, None
        family.encode = lambda pixels: encode(pixels) / (pixels.mean((1, 2, 3), keepdim=True) < 0.9)
    with pytest.raises(
        SampleError, match=r"^rows.jsonl:3: picture .*3\.png: the VAE .*; set model\.vae to a folder with a good one$"
    ) as caught:
        filled(rows, plan(), family)
    assert "\n" not in str(caught.value)
    assert made(filled(rows[:3], plan())) == (3, 0, 0)  # texts were made before, and stay
    assert made(filled([rows[4]], plan())) == (1, 0, 0)


def test_text_encoders_that_overflow_name_the_caption(filled, tmp_path):
    rows, family = captions(tmp_path, 3), Sketch()
    rows[1] = replace(rows[1], texts=("~",))
    with torch.no_grad():
        family.part("text_encoder").weight[ord("~") + 1] = float("inf")
    with pytest.raises(SampleError, match="rows.jsonl:1: the text encoders make NaN or infinity of '~'; set"):
        filled(rows, plan(), family)


def test_a_picture_that_cannot_be_read_stops_it_by_name(filled, tmp_path):
    rows = captions(tmp_path, 3)
    Path(rows[1].image.path).write_bytes(b"")
    with pytest.raises(SampleError, match="rows.jsonl:1: picture .*1.png is empty"):
        filled(rows, plan())
    assert made(filled([rows[0], rows[2]], plan())) == (2, 2, 0)


def test_a_limit_below_what_the_run_needs_is_said_before_it_begins(filled, tmp_path):
    rows, family = captions(tmp_path, 4), Sketch()
    with pytest.raises(
        ValueError, match=r"needs 2\d\.?\d? kB of cache and cache.limit_gb = 1e-05 allows 10 kB; set"
    ) as said:
        filled(rows, plan(flip=True), family, limit_gb=1e-5)
    assert family.encoded == 0 and "\n" not in str(said.value)


def test_what_other_runs_left_goes_when_room_is_needed_and_nothing_of_this_one(filled, tmp_path):
    old, rows = captions(tmp_path / "old", 6), captions(tmp_path / "new", 6, first=50)
    store = filled(rows[:2], plan()).kept.store
    needed = {entry.path for entry in store.entries()}
    filled(old, plan())
    for entry in list(store.entries()):  # what this run needs is the longest unused
        os.utime(entry.path, (1, 1) if entry.path in needed else (2, 2))
    size = sum(entry.size for entry in store.entries())
    done = filled(rows, plan(), limit_gb=(size - 2000) / 1e9)
    assert made(done) == (4, 4, 0) and done.found == 4 and done.freed.entries
    assert "unused for longest removed" in str(done)
    assert sum(entry.size for entry in store.entries()) <= size - 2000
    assert needed <= {entry.path for entry in store.entries()}
    assert made(filled(rows, plan())) == (0, 0, 0)
    assert made(filled(old, plan()))[0] > 0


def _no_room_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A disk that takes so many files more."""
    write_all = store_module._write_all
    left = iter(range(count))

    def limited(handle: int, data: bytes) -> None:
        if next(left, None) is None:
            os.write(handle, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(handle, data)

    monkeypatch.setattr(store_module, "_write_all", limited)


@pytest.mark.parametrize("room", [0, 3, 6, 7, 9])
def test_a_full_disk_is_one_sentence_and_loses_nothing(filled, tmp_path, monkeypatch, room):
    rows = captions(tmp_path / "p", 6)
    with monkeypatch.context() as patch:
        _no_room_after(patch, room)
        with pytest.raises(
            ValueError,
            match=r"cache in .*cache has no room \(No space left on device\): [\d.]+ k?B still needed, [\d.]+ GB free",
        ) as said:
            filled(rows, plan())
    assert "\n" not in str(said.value)
    store = Store(tmp_path / "cache")
    whole = list(store.entries())
    assert len(whole) == room and not list((tmp_path / "cache" / "making").iterdir())
    assert all(unpack(entry.path.read_bytes()) for entry in whole if entry.kind != "seen")
    pictures_, texts, _ = made(filled(rows, plan()))
    assert pictures_ + texts == 12 - max(0, room - 6)


def test_a_disk_known_to_be_too_small_is_said_before_it_begins(filled, tmp_path, monkeypatch):
    rows, family = captions(tmp_path / "p", 6), Sketch()
    monkeypatch.setattr(Store, "free", lambda self: 5000)
    with pytest.raises(ValueError, match=r"has no room .*: [\d.]+ kB still needed, 5 kB free"):
        filled(rows, plan(), family)
    assert family.encoded == 0


def test_a_limit_on_the_size_of_files_is_one_sentence(filled, tmp_path):
    rows = captions(tmp_path / "p", 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, hard))
    try:
        with pytest.raises(ValueError, match=r"has no room \(File too large\)"):
            filled(rows, plan())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert made(filled(rows, plan())) == (2, 2, 0)


def _read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Store, "now", refused)
    monkeypatch.setattr(Store, "write", refused)
    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(Path, "unlink", refused)


def test_a_folder_that_is_only_read_serves_while_it_is_warm(filled, tmp_path, monkeypatch):
    rows, family = captions(tmp_path / "p", 3), Sketch()
    filled(rows[:2], plan())
    _read_only(monkeypatch)
    done = filled(rows[:2], plan(), family)
    assert made(done) == (0, 0, 0)
    assert "moments" in Codec(plan(kept=done.kept)).encode(rows[0]).frames[0].tensors
    with pytest.raises(
        ValueError, match=r"lacks .*kB this run needs and cannot be written \(Read-only file system\); make"
    ) as said:
        filled(rows, plan(), family)
    assert family.encoded == family.embedded == 0 and "\n" not in str(said.value)


def test_a_path_that_cannot_be_a_folder_is_one_sentence(filled, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match="cache in .*cache lacks .* cannot be written"):
        filled(captions(tmp_path / "p", 1), plan())


# several processes

FILLER = """
import json
import sys
from dataclasses import replace
from pathlib import Path
import torch
from anymix import config
from anymix.device import pick, ranks
from anymix.train.encode import fill
from sketches import Sketch, captions, plan, tokenise
device = pick("cpu")
with ranks.session(device) as me:
    rows = captions(Path(sys.argv[1]), 12, draw=False)
    if "repeated" in sys.argv:
        classes = tuple(captions(Path(sys.argv[1]), 4, draw=False, first=12))
        rows = [replace(row, prior=classes) for row in rows for _ in range(3)]
    family, said = Sketch(), []
    print("up", flush=True)
    sys.stdin.readline()
    cache, how = config.Cache(path=sys.argv[2]), plan(flip=True, dropout=0.1)
    done = fill(family, [(rows, how)], tokenise, cache, device, torch.float32, me, lambda *each: said.append(each))
    shares = ranks.gather_objects((family.encoded, family.embedded))
    if me.is_main:
        print(json.dumps([[done.pictures, done.texts, done.found], shares, said[-1]]), flush=True)
"""


def _filler(tmp_path: Path, *words: str, more: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    (tmp_path / "filler.py").write_text(FILLER)
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"
    arguments = [str(tmp_path / "filler.py"), str(tmp_path / "p"), str(tmp_path / "cache")]
    return [sys.executable, *words, *arguments, *more], {**os.environ, "PYTHONPATH": paths}


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_one_of_them_is_killed(filled, tmp_path):
    rows = captions(tmp_path / "p", 12)
    argv, environment = _filler(tmp_path)
    one, other = (subprocess.Popen(argv, env=environment, stdin=-1, stdout=-1, text=True) for _ in range(2))
    for process in (one, other):
        assert process.stdout and process.stdout.readline() == "up\n"
    for process in (one, other):
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    while one.poll() is None and not list((tmp_path / "cache" / "moments").glob("*/*")):
        pass
    one.kill()
    one.communicate()
    assert (other.communicate()[1], other.returncode) == (None, 0)
    done = filled(rows, plan(flip=True, dropout=0.1))  # and a third finds all they made
    assert made(done) == (0, 0, 0) and done.found == 24 + 13
    assert all(unpack(entry.path.read_bytes()) for entry in done.kept.store.entries() if entry.kind != "seen")


@pytest.mark.ranks
def test_ranks_share_the_work(tmp_path):
    captions(tmp_path / "p", 12)
    launch = "import sys; from anymix.device import ranks; raise SystemExit(ranks.launch(sys.argv[1:], 2))"
    argv, environment = _filler(tmp_path, "-c", launch)
    run = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    counts, shares, last = json.loads(run.stdout.strip().splitlines()[-1])
    assert counts == [24, 13, 0]
    assert last == ["encoded", 35, 35]  # each rank has made a text before, to learn how large they are
    assert [pictures_ for pictures_, _ in shares] == [12, 12]
    assert sum(texts for _, texts in shares) == 13 and min(texts for _, texts in shares) > 1


@pytest.mark.slow
@pytest.mark.ranks
def test_what_all_ranks_list_is_made_once(filled, tmp_path):
    """Three repeats of twelve pictures and four class pictures beside each, on two ranks: 32 views and 17 texts, of
    which 12 and 7 are there."""
    rows = captions(tmp_path / "p", 16)
    assert made(filled(rows[:6], plan(flip=True, dropout=0.1))) == (12, 7, 0)
    launch = "import sys; from anymix.device import ranks; raise SystemExit(ranks.launch(sys.argv[1:], 2))"
    argv, environment = _filler(tmp_path, "-c", launch, more=("repeated",))
    run = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    counts, shares, _ = json.loads(run.stdout.strip().splitlines()[-1])
    assert counts == [20, 10, 19]
    assert sum(pictures_ for pictures_, _ in shares) == 20


@pytest.mark.slow
def test_loader_workers_started_anew_read_the_cache(filled, tmp_path):
    rows, how = captions(tmp_path / "p", 4), plan(flip=True)
    codec = Codec(replace(how, kept=filled(rows, how).kept))
    loader = torch.utils.data.DataLoader(
        rows, batch_size=2, num_workers=2, collate_fn=codec.collate_all, multiprocessing_context="spawn"
    )
    batches = list(loader)
    assert len(batches) == 2
    assert all("0/moments" in batch.tensors and "0/text.text" in batch.tensors for batch in batches)
    assert torch.equal(batches[0]["0/moments"], codec.collate_all(rows[:2])["0/moments"])


# the families themselves


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny_sd15", "tiny_sdxl"])
def test_a_pipeline_trains_from_the_cache_as_it_does_without(tmp_path, kind):
    from anymix import families
    from families import tiny_pictures

    family = families.open_folder(getattr(tiny_pictures, kind)(tmp_path / "model"))
    for name in set(ENCODERS) & set(dict(family.net.named_children())):
        family.part(name).requires_grad_(False)
    family.rest()
    rows, how = rich(tmp_path)
    how = replace(how, look=replace(how.look, step=8), objective=family.objective)
    cache, words = config.Cache(path=str(tmp_path / "cache")), family.codec.words
    done = fill(family, [(rows, how)], words, cache, pick("cpu"), torch.float32)
    assert done.pictures > 12 and done.texts > 5
    runs: list[str] = []
    for name in ("vae", "text_encoder"):
        encoder = family.part(name).encoder if name == "vae" else family.part(name)
        encoder.register_forward_hook(lambda *_, name=name: runs.append(name))
    rows[1] = replace(rows[1], shuffle=False, texts=("small",))
    done = fill(family, [(rows, how)], words, cache, pick("cpu"), torch.float32)
    assert made(done) == (0, 1, 0) and runs == ["text_encoder"]
    cached, uncached = (family.codec.training(replace(how, kept=each)) for each in (done.kept, None))
    for seed in range(6):
        losses = []
        for codec in (cached, uncached):
            family.codec, runs[:] = codec, []
            losses.append(float(family.loss(codec.collate([codec.encode(row, seed) for row in rows])).detach()))
            assert bool(runs) is (codec is uncached)
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
