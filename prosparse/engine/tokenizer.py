"""Text to token ids and back, with the files of a model folder.

The folder's own tokenizer runs in the `tokenizers` library under transformers' rules; no code from the folder is run.
Text of a user is text: "</s>" in a prompt becomes the characters, not the token.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import TokenizerError, UserError
from .chat import MINICPM_TEMPLATE, control_tokens, guard, render
from .tokenizer_files import load_pretrained

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads.

    Args:
        pretrained: transformers' tokenizer, backed by the `tokenizers` library.
        config: of the model it has to fit.
        source: its folder, for messages.

    Attributes:
        bos_id: begins a sequence; None where neither the tokenizer nor the config names one.
        eos_ids: end a sequence: those of the config and of the tokenizer.
        byte_ids: tokens that stand for one byte (`<0x0A>`), where the decoder joins runs of them into characters.

    Raises:
        TokenizerError: its vocabulary is larger than the model's.
    """

    def __init__(self, pretrained: Any, config: ModelConfig, source: Path) -> None:
        self._pretrained = pretrained
        self._backend = pretrained.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._lock = threading.Lock()  # around encode_special_tokens, a switch of the shared backend
        self._config = config
        self._source = source

        added = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        # Added tokens beyond the model's rows are common (padding) and harmless until a text produces one.
        largest = max((i for i in vocabulary.values() if i not in added), default=0)
        if largest >= config.vocab:
            raise TokenizerError(
                f"{source}: the tokenizer has ids up to {largest}, but the model has {config.vocab} (vocab_size in "
                "config.json); use the tokenizer that came with these weights"
            )
        self.byte_ids = frozenset(
            i for token, i in vocabulary.items() if BYTE_TOKEN.fullmatch(token) and self._backend.decode([i]) != token
        )
        self.bos_id: int | None = pretrained.bos_token_id
        if self.bos_id is None or self.bos_id >= config.vocab:
            self.bos_id = config.bos_token_id
        if self.bos_id is None and config.family == "minicpm":
            self.bos_id = 1
        eos_ids = {*config.eos_token_ids, pretrained.eos_token_id}
        self.eos_ids = frozenset(i for i in eos_ids if i is not None and 0 <= i < config.vocab)

    @classmethod
    def load(cls, folder: str | Path, config: ModelConfig) -> Tokenizer:
        """The tokenizer of a model folder.

        Raises:
            TokenizerError: no tokenizer files, files that cannot be read or need a package that is not installed, or a
                vocabulary larger than the model's.
        """
        return cls(load_pretrained(Path(folder)), config, Path(folder))

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of a text, in which names of special tokens are plain text.

        Args:
            text: any text; NUL is a character like others.
            add_special: frame it as the tokenizer's settings say (usually a leading BOS; with MiniCPM always, as its
                models misbehave without).

        Raises:
            UserError: text with a lone surrogate, which is not a character.
            TokenizerError: a token that the model does not have.
        """
        _check_unicode(text)
        with self._lock:
            self._backend.encode_special_tokens = True
            ids = self._backend.encode(text, add_special_tokens=add_special).ids
        if add_special and self._config.family == "minicpm":
            ids = self._with_one_bos(ids)
        return self._checked(ids)

    def encode_sized(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text without any frame, and the UTF-8 bytes each stands for, which add up to those of the text.

        Raises what `encode` does.
        """
        _check_unicode(text)
        with self._lock:
            self._backend.encode_special_tokens = True
            encoding = self._backend.encode(text, add_special_tokens=False)
        sizes, done = [], 0
        for _, end in encoding.offsets:  # of a character that several tokens share, the first has all bytes
            sizes.append(len(text[done:end].encode()))
            done = max(done, end)
        if sizes:
            sizes[-1] += len(text[done:].encode())  # what the tokenizer strips
        return self._checked(list(encoding.ids)), sizes

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation in the form the model was trained on, up to where its answer begins.

        Special tokens written by the chat template are tokens; those in a message are plain text, as are other added
        tokens that the template uses. Not covered: markers that are ordinary text in the vocabulary, such as MiniCPM's
        `<AI>`, which the model reads alike wherever they stand.

        Args:
            messages: {"role": ..., "content": ...}, oldest first; further string keys are passed to the template.

        Raises:
            UserError: no messages, an unknown role, or content that is not a text.
            TokenizerError: no chat template, one that fails, or a token that the model does not have.
        """
        template = self._chat_template()
        controls = control_tokens(self._backend.get_added_tokens_decoder().values(), template)
        guarded, breaker = guard(messages, controls)
        for message in guarded:
            _check_unicode(message["content"])
        text = render(self._pretrained, template, guarded, self._source)
        with self._lock:
            self._backend.encode_special_tokens = False
            encoding = self._backend.encode(text, add_special_tokens=False)
        ids = list(encoding.ids)
        if breaker in text:
            spans = [text[start:end] for start, end in encoding.offsets]
            if any(breaker in span and span != breaker for span in spans):
                raise TokenizerError(
                    f"{self._source}: this tokenizer cannot write the name of a special token as plain text; remove "
                    "such names from the messages"
                )
            ids = [i for i, span in zip(ids, spans, strict=True) if span != breaker]
        # MiniCPM's template leaves out the BOS that its models need; its llama-format copies share the template.
        if self._config.family == "minicpm" or "<用户>" in template:
            ids = self._with_one_bos(ids)
        return self._checked(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, without special tokens and without tidying spaces."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def has_text(self, token_id: int) -> bool:
        """Whether decoding shows the token: not a special one, and in the vocabulary."""
        return token_id not in self._special_ids and self._backend.id_to_token(token_id) is not None

    def _chat_template(self) -> str:
        template = self._pretrained.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is None and self._config.family == "minicpm":
            return MINICPM_TEMPLATE
        if template is None:
            raise TokenizerError(
                f"{self._source}: the model has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json); generate from a plain prompt instead (`prosparse generate`), or "
                "add the template it was trained with"
            )
        return template

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        start = next((n for n, i in enumerate(ids) if i != self.bos_id), len(ids))
        return ids[start:] if self.bos_id is None else [self.bos_id, *ids[start:]]

    def _checked(self, ids: list[int]) -> list[int]:
        largest = max(ids, default=0)
        if largest >= self._config.vocab:
            raise TokenizerError(
                f"{self._source}: the text contains token {self._backend.id_to_token(largest)!r} with id {largest}, "
                f"but the model has {self._config.vocab} tokens (vocab_size in config.json); use the tokenizer that "
                "came with these weights, or remove that token from the text"
            )
        return ids


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"prompt: character {error.start} is the lone surrogate U+{ord(text[error.start]):04X}, which is no "
            "character; decode the text with errors='replace'"
        ) from None
