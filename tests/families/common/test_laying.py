"""Ids and labels of whole messages, on a tokenizer of every kind."""

from __future__ import annotations

import pytest

import golden_conversations as golden
import sentencepieces
from anymix.families.common.laying import IGNORE, Segment, lay, text_of
from anymix.families.common.words import Words, open_words
from anymix.families.internvl2.templates import TEMPLATES, render
from anymix.samples import Conversation, ImageRef, Turn

TINY = tuple(golden.TOKENIZERS)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Words]:
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {
        "internlm2": sentencepieces.internlm2(root / "internlm2"),
        "phi3": sentencepieces.phi3(root / "phi3"),
        "llama": sentencepieces.phi3(root / "llama", legacy=True),
        **golden.TOKENIZERS,
    }
    return {name: open_words(folder) for name, folder in folders.items()}


ANSWERS = ("A cat.", "  A cat. \n", "\nA cat", "\n\n", " ", "你好 𠀀", "x", "12\n\n34\n")


CHATML = tuple(name for name in TEMPLATES if name != "phi3-chat")
FITTING = [
    *((kind, template) for kind in ("internlm2", *TINY) for template in CHATML),
    ("phi3", "phi3-chat"),
    ("llama", "phi3-chat"),
]


@pytest.mark.parametrize(("kind", "template"), FITTING)
def test_laid_ids_are_those_of_the_whole_text(tokenizers: dict[str, Words], kind: str, template: str) -> None:
    words, strip = tokenizers[kind], ImageRef("a", max_tiles=1)
    for answer in ANSWERS:
        user = Turn("user", (f"{answer}\n", strip, "\n What?"))
        turns = (user, Turn("assistant", (f"{answer}.",)), user, Turn("assistant", (f"{answer}!",)))
        messages = render(TEMPLATES[template], Conversation(turns, "row"), [3, 2])
        laid = lay(words, messages)
        begin = [words.bos_id] if words.adds_bos else []
        assert laid.ids == begin + words.encode(text_of(messages))
        shown = lay(words, messages, roles=True)
        assert (shown.ids, shown.labels) == (laid.ids, laid.labels)
        assert len(shown.roles) == len(shown.ids)


@pytest.mark.parametrize("kind", ["internlm2", "phi3", "llama", *TINY])
def test_labels_decode_to_the_assistants_words_only(tokenizers: dict[str, Words], kind: str) -> None:
    words = tokenizers[kind]
    template = TEMPLATES["phi3-chat" if kind in ("phi3", "llama") else "Hermes-2"]
    turns = [Turn("user", ("Describe the image.",)), Turn("assistant", ("A red square.",))] * 2
    laid = lay(words, render(template, Conversation(tuple(turns), "row"), []))
    kept = [label for label in laid.labels if label != IGNORE]
    ends = [n for n, id in enumerate(kept) if id == words.id_of(template.end)]
    assert len(ends) == 2 and ends[-1] == len(kept) - 1
    assert [words.decode(kept[: ends[0]]), words.decode(kept[ends[0] + 1 : -1])] == ["A red square."] * 2


def test_a_token_across_the_header_and_the_answer_belongs_to_the_header(tokenizers: dict[str, Words]) -> None:
    """`assistant\\n` and an answer that begins with a newline meet in one stretch of text; the first tokens,
    as many as the header has by itself, carry no loss, as in preprocess_internvl2_5."""

    class Merging:
        """One token a character, but two newlines are one together."""

        def encode(self, text: str, start: bool) -> list[int]:
            return [ord(character) for character in text.replace("\n\n", "\t")]

    words = Words(Merging(), frozenset(), None, None, None, False)  # type: ignore[arg-type]
    laid = lay(words, [(Segment("h\n", "mark"), Segment("\nab", "assistant", True), Segment(".", "mark", True))])
    assert laid.ids == [ord("h"), 9, ord("a"), ord("b"), ord(".")]
    assert laid.labels == [IGNORE, IGNORE, ord("a"), ord("b"), ord(".")]
