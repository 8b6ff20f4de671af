"""`anymix chat`: one question, a conversation, and ways to stop it."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from anymix.data.images import open_image
from anymix.engines import open_chat
from anymix.engines.chat import Chat, ask
from anymix.engines.sampling import Sampling
from anymix.samples import Conversation, ImageRef
from tiny import tiny_internvl2


@pytest.fixture(scope="module")
def engine(model):
    return open_chat(model, device="cpu", dtype="fp32")


def _said(engine, question, images=(), tokens=12):
    row = Conversation((ask(question, images, lead=engine.family.codec.lead),), "turn 1")
    return engine.answer([row], Sampling(tokens))[0].text


@pytest.mark.parametrize("more", [[], ["--no-stream"]])
def test_one_question_about_a_picture(anymix, model, engine, picture, more):
    run = anymix("chat", model, "Read it.", "--image", picture, "--device", "cpu", "--max-new-tokens", 12, *more)
    assert run.exit_code == 0
    assert run.stdout == _said(engine, "Read it.", [picture]) + "\n"
    assert "internvl2 on cpu, float32" in run.stderr
    assert "the answer was cut at 12 tokens; raise --max-new-tokens" in run.stderr


def test_json_is_one_object_with_counts(anymix, model, engine, picture):
    run = anymix("chat", model, "Q", "-i", picture, "-i", picture, "--device", "cpu", "--max-new-tokens", 5, "--json")
    answer = json.loads(run.stdout)
    row = Conversation((ask("Q", [picture, picture], lead=engine.family.codec.lead),), "turn 1")
    assert answer["text"] == _said(engine, "Q", [picture, picture], 5)
    assert (answer["finish"], answer["tokens"]) == ("length", 5)
    assert answer["prompt_tokens"] == len(engine.prompt(row).ids)
    assert 0 < answer["first_seconds"] <= answer["seconds"]


def test_a_pdf_is_its_pages_in_order(anymix, model, engine, tmp_path):
    pytest.importorskip("pypdfium2")
    sheets = [Image.new("RGB", (90 + 40 * n, 60), (200, 90 * n, 0)) for n in range(3)]
    sheets[0].save(tmp_path / "a.pdf", save_all=True, append_images=sheets[1:], resolution=150)
    drawn = []
    for n in range(1, 4):
        drawn.append(tmp_path / f"{n}.png")
        open_image(ImageRef(str(tmp_path / f"a.pdf#{n}")), "k").save(drawn[-1])
    words = ("chat", model, "Read.", "--device", "cpu", "--max-new-tokens", 6, "--json", "-i")
    assert json.loads(anymix(*words, tmp_path / "a.pdf").stdout)["text"] == _said(engine, "Read.", drawn, 6)
    assert json.loads(anymix(*words, f"{tmp_path / 'a.pdf'}#2").stdout)["text"] == _said(engine, "Read.", drawn[1:2], 6)
    for wrong, found in (("a.pdf#4", "the file has 3 pages, 1 to 3"), ("no.pdf", "there is no picture")):
        assert found in str(anymix(*words, tmp_path / wrong).exception)


def test_options_reach_the_answer(anymix, model, picture):
    words = ["chat", model, "Q", "--device", "cpu", "--max-new-tokens", 8, "--json"]

    def said(*more):
        return json.loads(anymix(*words, *more).stdout)

    drawn = ["--temperature", 1.2, "--top-p", 0.9, "--top-k", 50, "--seed", 3]
    assert said(*drawn)["text"] == said(*drawn)["text"] != said()["text"]
    assert said("--system", "Be brief.")["text"] != said()["text"]
    assert said("--template", "internvl2_5")["prompt_tokens"] != said()["prompt_tokens"]
    pictured = said("-i", picture)["prompt_tokens"] - said("-i", picture, "--max-tiles", 1)["prompt_tokens"]
    assert pictured == 3 * 4  # 150 x 60 is three tiles and a thumbnail, four tokens each


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--temperature", "-1"], "temperature = -1.0, expected 0"),
        (["--image", "gone.png"], "there is no picture gone.png; check the path"),
        (["--device", "tpu"], "device = 'tpu' is not known"),
        (["--dtype", "int3"], "dtype is auto"),
        (["--template", "vicuna"], "vicuna"),
    ],
)
def test_what_is_wrong_is_a_sentence(anymix, model, words, sentence):
    run = anymix("chat", model, "Q", *words)
    assert isinstance(run.exception, ValueError)
    assert sentence in str(run.exception)
    assert run.stdout == ""


def test_json_needs_a_question(anymix, model):
    assert "--json answers one question" in str(anymix("chat", model, "--json").exception)


def test_a_conversation_line_by_line(anymix, model, engine, picture):
    typed = [
        "Hello",
        f"/image {picture}",
        "What?",
        "/image gone.png",
        "/image 'x",
        "/no",
        "",
        "/reset",
        "Hello",
        "/quit",
        "X",
    ]
    run = anymix("chat", model, "--device", "cpu", "--max-new-tokens", 6, input="\n".join(typed) + "\n")
    talk = Chat(engine, sampling=Sampling(6))
    first = "".join(p.text for p in talk.say("Hello"))
    second = "".join(p.text for p in talk.say("What?", [picture]))
    assert run.stdout == f"{first}\n{second}\n{first}\n"
    assert run.exit_code == 0
    assert "there is no picture gone.png" in run.stderr
    assert "No closing quotation" in run.stderr
    assert run.stderr.count("/reset begins anew") == 2


def test_a_turn_that_cannot_be_asked_is_told_and_the_conversation_goes_on(anymix, model, engine, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    typed = f"/image {broken}\nWhat?\nHello\n"
    run = anymix("chat", model, "--device", "cpu", "--max-new-tokens", 6, input=typed)
    assert run.stdout == _said(engine, "Hello", tokens=6) + "\n"
    assert f"picture {broken}" in run.stderr


@pytest.fixture
def talkative(tmp_path):
    """A model that never ends by itself: the scores of its stop tokens are always 0."""
    weights = tiny_internvl2(tmp_path / "talkative") / "model.safetensors"
    tensors = load_file(weights)
    tensors["language_model.output.weight"][[2, 5]] = 0
    save_file(tensors, weights, metadata={"format": "pt"})
    return weights.parent


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_conversation(command, talkative):
    argv, environment = command("chat", talkative, "--device", "cpu", "--max-new-tokens", 4000)
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdin.write(b"Hello\n")
        run.stdin.flush()
        assert run.stdout.read(10)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(b"/reset\n/quit\n", timeout=60)
    assert run.returncode == 0
    assert b"anymix: stopped\n" in err
    assert b"Traceback" not in err
    assert out.endswith(b"\n")
