"""An answer's text while it grows: what is shown never has to be taken back.

In go the tokens so far, out comes the text that is new and final. Held back until more is known: characters
whose bytes are not all there, white space at the end (answers are stripped, as `chat` of the original
InternVL2 code does), and whatever may be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what the bytes of half a character decode to


class Spoken:
    """One answer. `text` is all that was given out so far, `stopped` whether a stop string ended it."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stops = tuple(stops)

    def grow(self, ids: Sequence[int], last: bool = False) -> str:
        """ALL ids so far -> the text they add. With `last` nothing is held back any more.

        The whole answer is decoded every time: tokenizers do not decode piece by piece (spaces, bytes), and a
        thousand tokens take less than a millisecond."""
        text = self._decode(ids)
        cuts = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            text = text[: min(cuts)]
        elif not last:
            text = self._settled(text)
        new = text.strip()[len(self.text) :]
        self.text += new
        return new

    def _settled(self, text: str) -> str:
        text = text.rstrip(UNFINISHED)
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
