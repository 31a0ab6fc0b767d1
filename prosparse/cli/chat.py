"""prosparse chat: a conversation in the terminal, with the model's own chat template."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import options

if TYPE_CHECKING:
    from ..engine import Engine

NAME = "chat"
HELP = "talk with a model in the terminal"
DESCRIPTION = (
    "A conversation with a model that was trained for it, by its own chat template. /reset forgets everything said, "
    "/help lists the commands, /exit or Ctrl-D ends, Ctrl-C stops an answer. Where stdin is not a terminal, each of "
    "its lines is a message."
)
MAX_NEW_TOKENS = 512
PROMPT = "> "
COMMANDS = {
    "/reset": "forget the conversation",
    "/help": "show this",
    "/exit": "end (as Ctrl-D does); Ctrl-C stops an answer",
}
Messages = list[dict[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    options.add_loading(parser)
    options.add_placing(parser)
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    from ..engine import load  # heavy: torch and transformers

    sampling = {"max_new_tokens": MAX_NEW_TOKENS, **options.sampling(args)}
    loading = options.given(args, options.LOADING + options.PLACING)
    engine = load(args.model, progress=options.progress_bar("loading"), **loading)
    chat = Chat(engine, args.system, sampling)
    interactive = sys.stdin.isatty()
    if interactive:
        _say("/help lists the commands, Ctrl-D ends")
    for line in _lines(interactive):
        text = line.strip()
        if text == "/exit":
            break
        if text == "/reset":
            chat.reset()
            _say("the conversation is forgotten")
        elif text == "/help":
            _say("\n".join(f"{name:<8}{what}" for name, what in COMMANDS.items()))
        elif text.startswith("/") and " " not in text:
            _say(f"there is no command {text}; /help lists them")
        elif text:
            _answer(chat, text, interactive)
    return 0


class Chat:
    """A conversation within the context of its engine.

    Args:
        engine: of a model with a chat template.
        system: what stands before the conversation, or None.
        sampling: keywords of `Engine.stream`.

    Attributes:
        dropped: whether the oldest turns had to go since the last `reset`.

    Raises:
        TokenizerError: the model has no chat template, or one that does not take the system text.
    """

    def __init__(self, engine: Engine, system: str | None, sampling: dict[str, Any]) -> None:
        from ..engine import Conversation  # heavy: torch and transformers

        self._engine, self._sampling = engine, sampling
        self._opening: Messages = [] if system is None else [{"role": "system", "content": system}]
        self._turns: Messages = []
        self.dropped = False
        self._conversation = Conversation()
        engine.tokenizer.chat([*self._opening, {"role": "user", "content": "Hello"}])

    def reset(self) -> None:
        """Forget everything but the system text."""
        self._turns, self.dropped = [], False

    def answer(self, text: str) -> Iterator[str]:
        """The pieces of an answer. What was yielded becomes part of the conversation, however the iteration ends.

        Raises:
            UserError: the message alone leaves no room for an answer; it is then not part of the conversation.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        ids = self._engine.tokenizer.chat([*self._opening, *turns])
        while len(ids) > self._longest_prompt() and len(turns) > 2:
            turns, self.dropped = turns[2:], True  # a question and its answer
            ids = self._engine.tokenizer.chat([*self._opening, *turns])
        pieces: list[str] = []
        # refuses a prompt that fills the context by itself
        stream = self._engine.stream(ids, conversation=self._conversation, **self._sampling)
        try:
            for piece in stream:
                pieces.append(piece)
                yield piece
        finally:
            self._turns = [*turns, {"role": "assistant", "content": "".join(pieces)}]

    def _longest_prompt(self) -> int:
        """Tokens of a conversation that leave room for an answer: a quarter of the context, or all it may be."""
        context = self._engine.context
        wanted = self._sampling["max_new_tokens"]
        return context - min(wanted, context // 4)


def _answer(chat: Chat, text: str, interactive: bool) -> None:
    dropped = chat.dropped
    try:
        for piece in chat.answer(text):
            if chat.dropped and not dropped:
                dropped = True
                _say("the context is full: the oldest turns are dropped from here on")
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not interactive:
            raise
    except UserError as error:
        if not interactive:
            raise
        _say(str(error))
    sys.stdout.write("\n")
    sys.stdout.flush()


def _lines(interactive: bool) -> Iterator[str]:
    """Lines of stdin as they come; at a terminal with a prompt, editing and history."""
    if not interactive:
        for number, data in enumerate(sys.stdin.buffer, 1):
            try:
                yield data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"stdin: line {number} is not UTF-8 text ({error.reason} at byte {error.start}); convert it, for "
                    "example with iconv"
                ) from None
        return
    try:
        import readline  # noqa: F401  where Python has it, input() edits lines and recalls them
    except ImportError:
        pass
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            _say("\n/exit or Ctrl-D ends")


def _say(text: str) -> None:
    """A remark that is not the model's, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
