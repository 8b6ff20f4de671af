"""The same film as a file and as a folder of its frames, to every family that is shown videos."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from anymix import families
from anymix.data import video
from anymix.families.contract import Size
from anymix.samples import Conversation, ImageRef, SampleError, Turn, VideoRef
from anymix.starter import films
from families.tiny_qwen import tiny_qwen2vl
from tiny import tiny_internvl2

SHOWN = ("internvl2", "qwen2_vl")


@pytest.fixture(scope="module", params=SHOWN)
def codec(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make = {"internvl2": tiny_internvl2, "qwen2_vl": tiny_qwen2vl}[request.param]
    return families.codec_of(str(make(tmp_path_factory.mktemp("model") / "m")), max_frames=4)


def asked(video: VideoRef) -> Conversation:
    return Conversation((Turn("user", (video, "\nWhich way?")), Turn("assistant", ("left",))), "rows.jsonl:3")


def pixels(item: Any) -> torch.Tensor:
    return item.tiles if hasattr(item, "tiles") else item.patches


def encoded(path: Path, drawn: films.Film, codec: str, layout: str, gop: int) -> VideoRef:
    """A film written with PyAV, without loss."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=2)
        stream.width, stream.height = drawn.frames[0].image.size
        stream.pix_fmt, stream.gop_size = layout, gop
        for picture in drawn.frames:
            out.mux(stream.encode(av.VideoFrame.from_image(picture.image)))
        out.mux(stream.encode(None))
    return VideoRef(str(path))


@pytest.mark.parametrize(("form", "layout", "name"), [("ffv1", "bgr0", "a.mkv"), ("png", "rgb24", "a.mov")])
def test_a_file_is_seen_as_the_folder_of_its_frames(codec, tmp_path, form, layout, name):
    drawn = films.film(7, length=8, size=(56, 56))
    films.write([drawn], tmp_path)
    folder = VideoRef(str(tmp_path / "films" / "7"), fps=2.0)
    file = encoded(tmp_path / name, drawn, form, layout, 3)
    one, two = (codec.encode(asked(ref)) for ref in (folder, file))
    assert one.ids.tolist() == two.ids.tolist() and torch.equal(pixels(one), pixels(two))
    assert codec.measure(asked(file)) == Size(len(two.ids), codec.measure(asked(folder)).tiles, int(two.weight))


def test_any_frames_of_a_file_are_those_decoded_in_turn(tmp_path):
    drawn = films.film(9, length=8, size=(56, 56))
    file = encoded(tmp_path / "a.mkv", drawn, "ffv1", "bgr0", 3)
    for wanted in ([0], [7], [5, 2], [1, 1, 6], list(range(8))):
        found = video.frames(file, "k", wanted)
        assert [f.tobytes() for f in found] == [drawn.frames[n].image.tobytes() for n in wanted]


def test_of_a_long_film_few_frames_are_decoded_and_measuring_decodes_one(codec, tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    path = tmp_path / "long.mkv"
    frames = films.film(3, length=4, size=(56, 56)).frames
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 56
        stream.pix_fmt, stream.gop_size = "yuv420p", 12
        for n in range(1200):
            out.mux(stream.encode(av.VideoFrame.from_image(frames[n // 300].image)))
        out.mux(stream.encode(None))
    decoded = []
    real = video._upright
    monkeypatch.setattr(video, "_upright", lambda frame: decoded.append(frame.pts) or real(frame))
    in_turn = []
    monkeypatch.setattr(video, "_in_turn", lambda *a: in_turn.append(a))
    size = codec.measure(asked(VideoRef(str(path))))
    assert len(decoded) == 1 and size.tokens < 400
    item = codec.encode(asked(VideoRef(str(path))))
    assert len(item.ids) == size.tokens and len(decoded) == 2 + 4 and not in_turn


def test_what_is_broken_is_a_sentence_that_names_row_and_video(codec, tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"no film" * 40)
    (tmp_path / "empty").mkdir()
    frames = (ImageRef("a.png", b"no picture"),)
    real = builtins.__import__

    def without(name, *args, **more):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for ref, said in (
        (VideoRef(str(tmp_path / "a.mp4")), r"pip install 'anymix\[video\]'"),
        (VideoRef(str(tmp_path / "no.mp4")), "there is no video"),
        (VideoRef(str(tmp_path / "empty")), "without a picture"),
        (VideoRef("film", frames), "a.png"),
    ):
        for use in (codec.encode, codec.measure):
            with pytest.raises(SampleError, match=rf"^rows.jsonl:3: .*{said}"):
                use(asked(ref))


def test_a_file_that_is_broken_is_a_sentence(codec, tmp_path):
    file = encoded(tmp_path / "a.mkv", films.film(7, length=8, size=(56, 56)), "ffv1", "bgr0", 3)
    whole = Path(file.path).read_bytes()
    for kept in (0, 60, len(whole) // 2):
        Path(file.path).write_bytes(whole[:kept])
        try:
            found = codec.encode(asked(file))  # half a film may be a shorter one
        except SampleError as error:
            assert str(error).startswith("rows.jsonl:3: ") and "a.mkv" in str(error) and "\n" not in str(error)
        else:
            assert kept > 60 and len(found.ids) == codec.measure(asked(file)).tokens


def test_one_frame_is_a_film(codec):
    drawn = films.film(4)
    ref = films.reference(drawn)
    alone = VideoRef("film", ref.frames[:1])
    assert codec.measure(asked(alone)).tokens == len(codec.encode(asked(alone)).ids)
    assert len(pixels(codec.encode(asked(alone)))) < len(pixels(codec.encode(asked(ref))))
