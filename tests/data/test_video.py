"""Folders and lists of frames; files through PyAV where it is installed, and a sentence where it is not."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest
from PIL import Image

from anymix.data import conversations, video
from anymix.data.check import check
from anymix.samples import ImageRef, SampleError, VideoRef


def folder(place: Path, numbers: tuple[int, ...] = (10, 9, 1)) -> Path:
    place.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (6, 4), (number, 0, 0)).save(place / f"frame{number}.png")
    (place / "notes.txt").write_text("not a frame")
    return place


def test_frames_of_a_folder_stand_in_the_order_of_their_numbers(tmp_path):
    ref = VideoRef(str(folder(tmp_path)), fps=2.0)
    assert video.look(ref, "k") == video.Film(3, 2.0, (6, 4))
    assert [f.getpixel((0, 0))[0] for f in video.frames(ref, "k", [0, 2, 2])] == [1, 10, 10]


def test_listed_frames_stand_as_listed(tmp_path):
    folder(tmp_path)
    ref = VideoRef("film", tuple(ImageRef(str(tmp_path / f"frame{n}.png")) for n in (10, 1)))
    assert video.look(ref, "k") == video.Film(2, None, (6, 4))
    assert [f.getpixel((0, 0))[0] for f in video.frames(ref, "k", [0, 1])] == [10, 1]


def refused(ref):
    with pytest.raises(SampleError) as caught:
        video.look(ref, "f:1")
    assert str(caught.value).startswith("f:1: ")
    return str(caught.value)


def test_what_is_no_video_is_a_sentence(tmp_path):
    assert "there is no video" in refused(VideoRef(str(tmp_path / "no.mp4")))
    (tmp_path / "empty").mkdir()
    assert "a folder without a picture" in refused(VideoRef(str(tmp_path / "empty")))
    assert "fps=0" in refused(VideoRef(str(folder(tmp_path / "f")), fps=0))
    Image.new("RGB", (9, 9)).save(tmp_path / "f" / "frame11.png")
    assert "frame11.png is 9x9; bring them to one size" in refused(VideoRef(str(tmp_path / "f")))


def test_a_file_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    real = builtins.__import__

    def without(name, *args, **more):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'anymix[video]'" in refused(VideoRef(str(tmp_path / "a.mp4")))


def test_files(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(12):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (20 * n, 20 * n, 20 * n)))
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    ref = VideoRef(str(path))
    assert video.look(ref, "k") == video.Film(12, 10.0, (64, 48))
    shown = [f.getpixel((5, 5))[0] for f in video.frames(ref, "k", [0, 6, 11])]
    assert all(abs(found - wanted) < 8 for found, wanted in zip(shown, (0, 120, 220), strict=True))
    path.write_bytes(path.read_bytes()[:200])
    assert "cannot be read" in refused(ref) or "no frames" in refused(ref)


def test_a_film_taken_upright_is_seen_upright(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    lying = Image.new("RGB", (64, 48), (0, 0, 0))
    lying.paste((255, 255, 255), (0, 0, 64, 12))  # white along the top
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90)
        for _ in range(2):
            out.mux(stream.encode(av.VideoFrame.from_image(lying)))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        turn = next(container.decode(video=0)).rotation
    assert abs(turn) == 90
    ref = VideoRef(str(path))
    assert video.look(ref, "k").size == (48, 64)
    (seen,) = video.frames(ref, "k", [0])
    left, right = seen.getpixel((3, 32))[0], seen.getpixel((44, 32))[0]
    assert (left > 200 > right) if turn == 90 else (right > 200 > left)


def test_a_check_of_rows_looks_at_every_frame(tmp_path):
    folder(tmp_path / "v")
    row = {"conversations": [{"from": "human", "value": "<video>\nQ"}, {"from": "gpt", "value": "A"}], "video": "v"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    rows = conversations.read(str(tmp_path / "rows.jsonl"))
    assert check(rows).good == [0]
    whole = (tmp_path / "v" / "frame9.png").read_bytes()
    (tmp_path / "v" / "frame9.png").write_bytes(whole[:50])
    with pytest.raises(ValueError, match="frame9.png"):
        check(rows)
