"""Tokenizers: ids of golden/conversation where its tokenizers are here, and every trap on models trained
here."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import golden_conversations as golden
import sentencepieces
from anymix.families.common.words import Words, open_words

TEXTS = (
    "",
    "Hello",
    " Hello",
    "Hello world",
    "Describe the image.\n\n  What is it? ",
    "\n",
    "你好，世界 𠀀 é 😀",
    "<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhat?",
    "A cat.<box>[[1, 2]]</box> <ref>a cat</ref>",
    "<s> struck </s> <unk>",
    "tabs\tand\r\nlines",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "internlm2": sentencepieces.internlm2(root / "internlm2"),
        "phi3": sentencepieces.phi3(root / "phi3"),
        "llama": sentencepieces.phi3(root / "llama", legacy=True),
        "qwen2": qwen2(root / "qwen2"),
        **golden.TOKENIZERS,
    }


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> dict[str, Words]:
    return {name: open_words(folder) for name, folder in folders.items()}


KINDS = ("internlm2", "phi3", "llama", "qwen2", "tiny-bos", "tiny-nobos")


def qwen2(folder: Path, **config: Any) -> Path:
    """Qwen2's own layout (vocab.json, merges.txt) from the byte-level BPE of tiny-nobos; its marks are
    numbered against their order, and one vocabulary entry looks like a mark but is none."""
    folder.mkdir()
    model = json.loads((golden.TOKENIZERS["tiny-nobos"] / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    marks = [
        "<unk>",
        "<s>",
        "</s>",
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sentencepieces.IMAGE_MARKS,
    ]
    plain = [text for text in model["vocab"] if text not in marks]
    vocabulary = {text: id for id, text in enumerate([*plain, "<s>"])}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    added = {text: len(vocabulary) + n for n, text in enumerate(reversed(marks[3:]))}
    files = {
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "added_tokens.json": json.dumps(added),
        "special_tokens_map.json": json.dumps(
            {"additional_special_tokens": [*marks[4:6], *marks[6:]], "eos_token": {"content": "<|im_end|>"}}
        ),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "bos_token": None, **config}
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_is_the_inverse_of_encoding(opened: dict[str, Words], kind: str, text: str) -> None:
    words = opened[kind]
    ids = words.encode(text)
    assert all(0 <= id < len(words) for id in ids)
    assert words.decode(ids, skip_marks=False) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_growing_answer_only_ever_gains_text(opened: dict[str, Words], kind: str) -> None:
    words = opened[kind]
    for text in TEXTS:
        ids, before = words.encode(text), ""
        for n in range(len(ids) + 1):
            whole = words.decode(ids[:n]).rstrip("\ufffd")
            assert whole.startswith(before)
            before = whole


@pytest.mark.parametrize("kind", KINDS)
def test_it_reaches_loader_workers_whole(opened: dict[str, Words], kind: str) -> None:
    words = opened[kind]
    there: Words = pickle.loads(pickle.dumps(words))
    for text in TEXTS:
        assert there.encode(text) == words.encode(text)
        assert there.decode(words.encode(text)) == words.decode(words.encode(text))
    assert (there.marks, there.bos_id, there.eos_id, there.pad_id) == (
        words.marks, words.bos_id, words.eos_id, words.pad_id,
    )  # fmt: skip


@pytest.mark.parametrize("name", golden.TOKENIZERS)
def test_ids_of_the_fixtures(name: str) -> None:
    facts = json.loads((golden.GOLDEN / "templates.json").read_text(encoding="utf-8"))["tokenizers"][name]
    words = open_words(golden.TOKENIZERS[name])
    assert len(words) == facts["size"]
    assert (words.bos_id, words.eos_id, words.pad_id) == (facts["bos"], facts["eos"], facts["pad"])
    assert words.adds_bos == (name == "tiny-bos")
    for text, id in facts["ids"].items():
        assert words.id_of(text) == (id or None)  # the fixtures write 0, <unk>, for a token that is not there


def test_internlm2_puts_no_space_in_front(opened: dict[str, Words]) -> None:
    words = opened["internlm2"]
    assert words.encode("Hello") == [words.id_of("Hello")]
    assert words.encode("<img>Hello") == [words.id_of("<img>"), words.id_of("Hello")]
    assert words.decode(words.encode(" Hello")) == " Hello"


def test_internlm2_added_tokens_win_over_the_pieces_under_them(opened: dict[str, Words]) -> None:
    words = opened["internlm2"]
    under = sentencepieces.size(prefix=False) - 2
    assert words.id_of("<|im_end|>") == under and words.piece(under) == "<|im_end|>"
    assert len(words) == sentencepieces.size(prefix=False) + len(sentencepieces.IMAGE_MARKS)
    assert words.adds_bos and (words.bos_id, words.eos_id, words.pad_id) == (1, 2, 2)


def test_llama_puts_a_space_in_front_of_the_sequence_only(opened: dict[str, Words]) -> None:
    """Phi-3 (legacy: false): the space stands before the first mark, so rows start <s>, space, <|system|>."""
    words = opened["phi3"]
    space, mark, hello = (words.id_of(text) for text in ("\u2581", "<|system|>", "\u2581Hello"))
    assert words.encode("Hello") == [hello]
    assert words.encode("<|system|>Be") == [space, mark, *words.encode("Be", start=False)]
    assert words.encode("<|system|>Be", start=False) == [mark, *words.encode("Be", start=False)]
    assert words.encode("Be", start=False) != words.encode("Be")


def test_llama_drops_that_space_before_a_mark_it_calls_special(tmp_path: Path) -> None:
    folder = sentencepieces.phi3(tmp_path / "phi3", additional_special_tokens=["<|system|>"])
    words = open_words(folder)
    assert words.encode("<|system|>")[0] == words.id_of("<|system|>")
    assert words.encode("<|user|>")[0] == words.id_of("\u2581")


def test_legacy_llama_puts_a_space_in_front_of_every_stretch(opened: dict[str, Words]) -> None:
    words = opened["llama"]
    mark, hello = words.id_of("<img>"), words.id_of("\u2581Hello")
    assert words.encode("Hello<img>Hello") == [hello, mark, hello]
    assert words.encode("<img>") == [mark]


def test_marks_that_strip_swallow_white_space(opened: dict[str, Words]) -> None:
    words = opened["phi3"]
    assert words.encode("<|assistant|>\n  A cat.", start=False) == words.encode("<|assistant|>A cat.", start=False)
    kept = words.encode("</img>\nWhat", start=False)
    assert words.decode(kept, skip_marks=False) == "</img>\nWhat"


def test_the_longest_mark_wins(tmp_path: Path) -> None:
    config = json.loads((sentencepieces.internlm2(tmp_path / "a") / "tokenizer_config.json").read_text())
    size = sentencepieces.size(prefix=False)
    added = config["added_tokens_decoder"] | {str(size + 20): {"content": "<img><IMG_CONTEXT>", "special": True}}
    words = open_words(sentencepieces.internlm2(tmp_path / "b", added_tokens_decoder=added))
    assert words.encode("<img><IMG_CONTEXT><img>") == [size + 20, words.id_of("<img>")]


def test_unknown_characters_become_bytes(opened: dict[str, Words]) -> None:
    for kind in ("internlm2", "phi3"):
        words = opened[kind]
        ids = words.encode("𠀀", start=False)
        assert [words.piece(id) for id in ids] == ["<0xF0>", "<0xA0>", "<0x80>", "<0x80>"]
        assert words.decode(ids[:3]) == "\ufffd" and words.decode(ids) == "𠀀"


def test_qwen2_marks_keep_their_ids_whatever_their_order(folders: dict[str, Path]) -> None:
    words = open_words(folders["qwen2"])
    added = json.loads((folders["qwen2"] / "added_tokens.json").read_text())
    assert {text: words.id_of(text) for text in added} == added
    assert words.encode("<img><IMG_CONTEXT></img>") == [added[t] for t in ("<img>", "<IMG_CONTEXT>", "</img>")]
    assert words.id_of("<s>") not in words.marks  # an ordinary entry of Qwen2's vocabulary
    assert len(words.encode("<s>")) > 1
    assert not words.adds_bos and words.bos_id is None and words.eos_id == added["<|im_end|>"]
    plain = open_words(golden.TOKENIZERS["tiny-nobos"])
    for text in ("Describe the image.", "A cat on a mat. 你好", "\n\n 12 34"):
        assert "".join(map(words.piece, words.encode(text))) == "".join(map(plain.piece, plain.encode(text)))


def test_special_marks_are_left_out_of_text_and_others_stay(tmp_path: Path) -> None:
    config = json.loads((sentencepieces.internlm2(tmp_path / "a") / "tokenizer_config.json").read_text())
    added = config["added_tokens_decoder"]
    box = next(id for id, token in added.items() if token["content"] == "<box>")
    added[box]["special"] = False
    words = open_words(sentencepieces.internlm2(tmp_path / "b", added_tokens_decoder=added))
    assert words.decode(words.encode("a<img>b<box>c<|im_end|>")) == "ab<box>c"


def test_older_folders_list_their_marks_in_added_tokens_json(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = sentencepieces.internlm2(tmp_path / "old")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    marks = {token["content"]: int(id) for id, token in config.pop("added_tokens_decoder").items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({t: id for t, id in marks.items() if id > 2}))
    specials = {"additional_special_tokens": [t for t in marks if t not in ("<s>", "</s>", "<unk>")]}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    old, new = open_words(folder), open_words(folders["internlm2"])
    assert old.marks == new.marks
    for text in TEXTS:
        assert old.encode(text) == new.encode(text) and old.decode(new.encode(text)) == new.decode(new.encode(text))


def test_a_saved_truncation_cuts_nothing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden.TOKENIZERS["tiny-bos"], tmp_path / "cut"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = "Describe the image. " * 9
    assert open_words(folder).encode(text) == open_words(golden.TOKENIZERS["tiny-bos"]).encode(text)


def test_marks_only_the_config_lists_are_added(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden.TOKENIZERS["tiny-bos"], tmp_path / "more"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["488"] = {"content": "<|end|>", "special": True, "rstrip": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    words = open_words(folder)
    assert words.encode("<|end|>") == [488] and 488 in words.marks and len(words) == 489
    config["added_tokens_decoder"]["600"] = config["added_tokens_decoder"].pop("488")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="gives '<|end|>' the id 600, the vocabulary 488"):
        open_words(folder)


def test_no_python_of_the_folder_runs(tmp_path: Path) -> None:
    folder = sentencepieces.internlm2(tmp_path / "model")
    ran = tmp_path / "ran"
    for name in ("tokenization_internlm2.py", "__init__.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w').close()\nraise SystemExit('remote code ran')\n")
    assert open_words(folder).encode("Hello")
    assert not ran.exists()


def _without_class(folder: Path) -> None:
    (sentencepieces.internlm2(folder) / "tokenizer_config.json").write_text("{}")


def _pointer(folder: Path) -> None:
    (sentencepieces.internlm2(folder) / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")


def _broken(folder: Path) -> None:
    (sentencepieces.internlm2(folder) / "tokenizer.model").write_bytes(b"nonsense" * 9)


def _single_word(folder: Path) -> None:
    token = {"content": "<img>", "special": True, "single_word": True}
    sentencepieces.internlm2(folder, added_tokens_decoder={"500": token})


def _json_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")


def _json_of_something_else(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def _no_bos(folder: Path) -> None:
    sentencepieces.internlm2(folder, bos_token="<bos>")


def _bad_merges(folder: Path) -> None:
    folder.rmdir()
    (qwen2(folder) / "merges.txt").write_text("one two three\n")


SPOILT = {
    "empty": (lambda folder: None, "holds no tokenizer, expected tokenizer.json, tokenizer.model, or vocab"),
    "no class": (_without_class, "names no tokenizer_class, expected InternLM2Tokenizer"),
    "pointer": (_pointer, "tokenizer.model is a git-lfs pointer"),
    "broken": (_broken, "not a SentencePiece model"),
    "single_word": (_single_word, "'<img>' has single_word"),
    "json pointer": (_json_pointer, "tokenizer.json is a git-lfs pointer"),
    "other json": (_json_of_something_else, "not a tokenizer the `tokenizers` library reads"),
    "no bos": (_no_bos, "begins every sequence with '<bos>' but has no id for it"),
    "bad merges": (_bad_merges, "merges.txt does not fit vocab.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_folders_get_one_sentence(tmp_path: Path, name: str) -> None:
    spoil, sentence = SPOILT[name]
    folder = tmp_path / "model"
    folder.mkdir()
    spoil(folder)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=sentence) as error:
        open_words(folder)
    assert "\n" not in str(error.value)


def test_a_piece_that_ends_inside_a_character_can_be_read() -> None:
    """For `data show`: whole characters as they are, the bytes of a broken one as escapes, nothing garbled."""
    words = open_words(golden.TOKENIZERS["tiny-bos"])
    pieces = [words.piece(id) for id in words.encode("是由上海")]
    shown = "".join(pieces)
    assert "是由" in shown and "\\x" in shown and "æ" not in shown
