"""prosparse chat: turns, commands, a context that is full, and Ctrl-C."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_engine import make_model

from prosparse.cli import main
from prosparse.cli.chat import Chat
from prosparse.engine import Engine, load
from prosparse.errors import UserError

TEMPLATE = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}[a]"
SAMPLING: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
ARGUMENTS = ["--max-new-tokens", "6", "--temperature", "1", "--seed", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("models") / "tiny", max_position=96)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder, deterministic=True)  # then a conversation has the bits of prompts that are read anew


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give stdin these lines, as a pipe."""

    def give(*lines: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines))))

    return give


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make stdin a terminal where these lines are typed; an exception is raised in place of a line, then Ctrl-D."""

    def give(*lines: str | BaseException) -> None:
        waiting = iter(lines)

        def read(prompt: str) -> str:
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(sys, "stdin", io.StringIO())
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr("builtins.input", read)

    return give


def written(engine: Engine, *messages: str, **sampling: Any) -> str:
    """What the model answers to a conversation."""
    roles = itertools.cycle(("user", "assistant"))
    turns = [{"role": role, "content": content} for role, content in zip(roles, messages, strict=False)]
    return engine.generate(engine.tokenizer.chat(turns), **{**SAMPLING, **sampling}).text


def test_each_line_of_a_pipe_is_a_message(
    capsys: pytest.CaptureFixture[str], engine: Engine, folder: Path, typed: Callable[..., None]
) -> None:
    typed("hé".encode(), b"", b"  b  ", b"/reset", b"b", b"/exit", b"never read")
    assert main(["chat", str(folder), *ARGUMENTS]) == 0
    first = written(engine, "hé")
    second = written(engine, "hé", first, "b")
    assert capsys.readouterr().out == f"{first}\n{second}\n{written(engine, 'b')}\n"


def test_system_text_comes_first(
    capsys: pytest.CaptureFixture[str], engine: Engine, folder: Path, typed: Callable[..., None]
) -> None:
    typed(b"a", b"/reset", b"a")
    assert main(["chat", str(folder), "--system", "Be brief.", *ARGUMENTS]) == 0
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    answer = engine.generate(engine.tokenizer.chat(turns), **SAMPLING).text
    assert capsys.readouterr().out == f"{answer}\n{answer}\n"


def test_commands_are_answered_on_stderr(
    capsys: pytest.CaptureFixture[str], folder: Path, typed: Callable[..., None]
) -> None:
    typed(b"/help", b"/halp", b"/reset")
    assert main(["chat", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "/reset  forget" in err and "there is no command /halp" in err and "is forgotten" in err


def test_oldest_turns_go_when_the_context_is_full(engine: Engine) -> None:
    chat = Chat(engine, None, SAMPLING)
    questions = [f"question {n}, rather long" for n in range(4)]
    answers = ["".join(chat.answer(question)) for question in questions]
    assert chat.dropped
    # 96 tokens of context less 6 for the answer: two questions of 22 bytes fit with one answer, three do not
    assert answers[1] == written(engine, questions[0], answers[0], questions[1])
    assert answers[3] == written(engine, questions[2], answers[2], questions[3])
    chat.reset()
    assert not chat.dropped and "".join(chat.answer(questions[0])) == answers[0]


def test_dropping_is_said_once(capsys: pytest.CaptureFixture[str], folder: Path, typed: Callable[..., None]) -> None:
    typed(*[b"a question that is rather long"] * 5)
    assert main(["chat", str(folder), *ARGUMENTS]) == 0
    assert capsys.readouterr().err.count("the oldest turns are dropped") == 1


def test_a_message_that_leaves_no_room(
    capsys: pytest.CaptureFixture[str], engine: Engine, folder: Path, terminal: Callable, typed: Callable
) -> None:
    terminal("x" * 200, "a")
    assert main(["chat", str(folder), *ARGUMENTS]) == 0
    out, err = capsys.readouterr()
    assert "leaves no room in the context of 96" in err and written(engine, "a") in out
    typed(b"x" * 200, b"a")
    assert main(["chat", str(folder), *ARGUMENTS]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "leaves no room in the context of 96" in err.splitlines()[-1]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(engine: Engine) -> None:
    chat = Chat(engine, None, {**SAMPLING, "max_new_tokens": 40, "seed": 1})
    pieces: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        for piece in chat.answer("a"):
            pieces.append(piece)
            if len(pieces) == 3:
                raise KeyboardInterrupt
    assert "".join(chat.answer("b")) == written(engine, "a", "".join(pieces), "b", max_new_tokens=40, seed=1)


def test_ctrl_c_at_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, terminal: Callable[..., None]
) -> None:
    def interrupted(self: Engine, prompt: object, **_: object) -> Iterator[str]:
        yield "so"
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", interrupted)
    terminal(KeyboardInterrupt(), "a", "b")
    assert main(["chat", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == "so\nso\n\n" and "Ctrl-D ends" in err


def test_ctrl_c_in_a_pipe_is_status_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, typed: Callable[..., None]
) -> None:
    def interrupted(self: Engine, prompt: object, **_: object) -> Iterator[str]:
        yield "so"
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", interrupted)
    typed(b"a", b"b")
    assert main(["chat", str(folder)]) == 130
    assert capsys.readouterr().err.endswith("prosparse: interrupted\n")


def test_a_line_that_is_not_utf8(capsys: pytest.CaptureFixture[str], folder: Path, typed: Callable[..., None]) -> None:
    typed(b"/help", b"caf\xe9")
    assert main(["chat", str(folder)]) == 2
    assert "stdin: line 2 is not UTF-8 text" in capsys.readouterr().err


def test_a_model_without_a_template_is_sent_to_generate(
    capsys: pytest.CaptureFixture[str], typed: Callable[..., None]
) -> None:
    typed(b"Hello")
    assert main(["chat"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "has no chat template" in err and "prosparse generate" in err


def test_system_text_that_the_template_refuses(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    (folder / "chat_template.jinja").write_text(refusing)
    with pytest.raises(UserError, match="the chat template failed with TemplateError: no system"):
        Chat(load(folder), "Be brief.", SAMPLING)
