"""Chat templates: a conversation as the text a model was trained on.

A template joins its own control tokens with the users' messages, and the tokenizer cannot tell whose "<|end|>" it sees.
So every control token in a message is broken by one character that occurs nowhere else; the tokenizer then leaves it in
pieces, and the ids of that character are dropped (see `Tokenizer.chat`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ..errors import TokenizerError, UserError

# For MiniCPM folders without a template: the user's turns between these two marks, all else as it is.
MINICPM_TEMPLATE = (
    "{% for turn in messages %}{% set text = turn.content | trim %}"
    "{{ '<用户>' ~ text ~ '<AI>' if turn.role == 'user' else text }}{% endfor %}"
)
# Templates build control tokens from roles ('<|' + role + '|>'), so a role is never free text.
ROLES = ("system", "developer", "user", "assistant", "tool")
FIRST_BREAKER = 0xF0000  # private use: tokenizers know no such character, so it never joins its neighbours in a token


def control_tokens(added: Iterable[AddedToken], template: str) -> list[str]:
    """Names that messages must not be able to write: special tokens, and added tokens that the template writes."""
    names = (token.content for token in added if token.special or token.content in template)
    return [name for name in names if len(name) > 1 and not name.isspace()]


def guard(messages: Sequence[dict[str, str]], controls: list[str]) -> tuple[list[dict[str, str]], str]:
    """Messages whose control tokens are broken after their first character, and the character that breaks them.

    Raises:
        UserError: no messages, an unknown role, or a value that is not a text.
    """
    if not messages:
        raise UserError("chat: there are no messages; give at least one, such as {'role': 'user', 'content': 'Hello'}")
    for n, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise UserError(f"chat: message {n} has role {message.get('role')!r}; it must be one of {', '.join(ROLES)}")
        for key in ("content", *message):
            if not isinstance(message.get(key), str):
                raise UserError(f"chat: {key} of message {n} must be a text, got {message.get(key)!r}")
    texts = [text for message in messages for text in message.values()]
    breaker = next(c for c in map(chr, range(FIRST_BREAKER, 0x110000)) if not any(c in text for text in texts))
    if not controls:
        return [dict(message) for message in messages], breaker
    longest_first = sorted(controls, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))

    def broken(text: str) -> str:
        while pattern.search(text):  # again, for one that stood inside another
            text = pattern.sub(lambda match: match[0][0] + breaker + match[0][1:], text)
        return text

    return [{key: broken(text) for key, text in message.items()} for message in messages], breaker


def render(pretrained: Any, template: str, messages: list[dict[str, str]], source: Path) -> str:
    """The text of a conversation, by transformers' sandbox.

    Raises:
        TokenizerError: the template does not compile, refuses the conversation, or fails.
    """
    try:
        return pretrained.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except ImportError as error:
        raise TokenizerError(f"{source}: chat templates need jinja2; run `pip install jinja2`") from error
    except Exception as error:  # a template is a program: besides jinja2's own errors it can raise any of Python's
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise TokenizerError(
            f"{source}: the chat template failed with {type(error).__name__}: {reason}; check the roles and their "
            "order, or correct the template (chat_template.jinja or tokenizer_config.json)"
        ) from error
