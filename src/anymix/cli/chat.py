"""`anymix chat MODEL [QUESTION]`: one answer, or a conversation at the terminal."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anymix.cli import options

if TYPE_CHECKING:
    from anymix.engines.chat import Answer, Chat, ChatEngine

HELP = (
    "/image PATH adds a picture to the next question, /reset begins anew, /quit or Ctrl-D ends; Ctrl-C stops an answer"
)


Question = Annotated[str | None, typer.Argument(help="What to ask; without it, a conversation.")]
Image = Annotated[
    list[str] | None,
    typer.Option("--image", "-i", help="A picture, or a PDF: its pages in order, scan.pdf#2 for one; again for more."),
]
Video = Annotated[
    list[str] | None, typer.Option("--video", "-v", help="A video, or a folder of its frames; may be given again.")
]
System = Annotated[str | None, typer.Option(help="System message instead of the model's own.")]
AsJson = Annotated[bool, typer.Option("--json", help="The answer as one JSON object on stdout.")]
NoStream = Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")]


def chat(
    model: options.Model,
    question: Question = None,
    image: Image = None,
    video: Video = None,
    system: System = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_new_tokens: options.MaxNewTokens = 1024,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    max_tiles: options.MaxTiles = None,
    max_pixels: options.MaxPixels = None,
    max_frames: options.MaxFrames = None,
    fps: options.Fps = None,
    template: options.Template = None,
    base: options.Base = None,
    as_json: AsJson = False,
    no_stream: NoStream = False,
) -> None:
    """Ask a model about pictures, once or in a conversation."""
    from anymix.engines.sampling import Sampling

    if question is not None and not question.strip():
        raise ValueError("the question is empty; write it after the model, or leave it out to talk")
    if question is None and as_json:
        raise ValueError("--json answers one question; write the question after the model")
    # What is cheap to get wrong is checked before the weights are read.
    drawn = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    for path in image or []:
        _refuse_missing(path)
    for path in video or []:
        if not os.path.exists(path):
            raise ValueError(f"there is no video {path}; check the path")

    from anymix.device import settle_threads
    from anymix.engines import open_chat
    from anymix.engines.chat import Chat

    seen: dict[str, Any] = {"max_pixels": max_pixels, "max_frames": max_frames, "fps": fps}
    engine = open_chat(model, device, dtype, base=base, max_tiles=max_tiles, template=template, **seen)
    settle_threads(engine.family.net)
    talk = Chat(engine, system, drawn)
    _note(_opened(engine))
    if question is None:
        _converse(talk, list(image or []), list(video or []), not no_stream)
    elif as_json:
        *_, last = talk.say(question, image or [], videos=video or [])
        assert last.answer is not None
        sys.stdout.write(json.dumps(_as_json(last.answer), ensure_ascii=False) + "\n")
    else:
        with _interruptible() as cancel:
            _answer(talk, question, image or [], video or [], cancel, not no_stream)


def _opened(engine: ChatEngine) -> str:
    weight: Any = next(iter(engine.family.net.parameters()))
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"{engine.source}: {engine.family.name} on {weight.device}, {dtype}"


def _as_json(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": len(answer.ids),
        "first_seconds": round(answer.first_seconds, 4),
        "seconds": round(answer.seconds, 4),
    }


def _answer(
    talk: Chat, text: str, images: Sequence[str], videos: Sequence[str], cancel: Callable[[], bool], stream: bool
) -> None:
    for piece in talk.say(text, images, cancel, videos):
        if stream:
            _write(piece.text)
        if piece.answer:
            _write("\n" if stream else piece.answer.text + "\n")
            if piece.finish == "length":
                _note(_cut(piece.answer, talk.sampling.max_new_tokens))
            elif piece.finish == "cancelled":
                _note("stopped")


def _cut(answer: Answer, wanted: int) -> str:
    if answer.limit < wanted:
        return f"the answer was cut: the model's context is full after {answer.limit} tokens"
    return f"the answer was cut at {answer.limit} tokens; raise --max-new-tokens"


def _converse(talk: Chat, images: list[str], videos: list[str], stream: bool) -> None:
    """Questions from the terminal until its end; pictures and videos wait for the next one."""
    with suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    _note(HELP)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            _write("\n")
            continue
        if line == "/quit":
            return
        if line == "/reset":
            talk.forget()
            images, videos = [], []
        elif line.split(" ")[0] == "/image":
            images += _pictures(line.removeprefix("/image").strip())
        elif line.startswith("/"):
            _note(HELP)
        elif line:
            _turn(talk, line, images, videos, stream)
            images, videos = [], []


def _turn(talk: Chat, line: str, images: list[str], videos: list[str], stream: bool) -> None:
    """One question. What cannot be asked is told, and may be asked anew."""
    try:
        with _interruptible() as cancel:
            _answer(talk, line, images, videos, cancel, stream)
    except ValueError as error:
        _note(str(error))


def _pictures(words: str) -> list[str]:
    """One path as it stands, or several in the shell's quoting. Those that are not there are told and left
    out."""
    found: list[str] = []
    try:
        paths = [words] if os.path.exists(words) else shlex.split(words)
        for path in map(os.path.expanduser, paths or [""]):
            _refuse_missing(path)
            found.append(path)
    except ValueError as error:
        _note(str(error))
    return found


def _refuse_missing(path: str) -> None:
    """Raises ValueError for a picture that is not there, or a PDF whose pages cannot be counted."""
    from anymix.data import pages
    from anymix.samples import ImageRef

    if not os.path.isfile(pages.file_of(path)):
        raise ValueError(f"there is no picture {path or '(write its path)'}; check the path")
    pages.refs_of(ImageRef(path), "--image")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While it lasts the first Ctrl-C only asks for an end; the second one interrupts as ever."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def first(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    own = threading.current_thread() is threading.main_thread()
    if own:
        signal.signal(signal.SIGINT, first)
    try:
        yield asked.is_set
    finally:
        if own:
            signal.signal(signal.SIGINT, before)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(f"anymix: {text}\n")
    sys.stderr.flush()
