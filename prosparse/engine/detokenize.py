"""Token ids to text, one id at a time.

The pieces joined equal the decoding of all ids at once. Text is decoded from a window that starts at a token already
shown, because decoders treat the first token apart (Llama's drops its leading space). Two things are not final:

- a last U+FFFD: the start of a character whose other bytes are in the next token (byte-level BPE);
- a run of byte tokens `<0x..>`: one invalid byte turns every byte of the run into U+FFFD (byte fallback), so a run is
  shown when another token ends it.
"""

from __future__ import annotations

from .tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
LONGEST_WINDOW = 16  # tokens; reached only while every one of them ends inside a character
SHORTEST_WINDOW = 4  # tokens of at least a byte each: after at most 3 bytes UTF-8 decoding is back in step


class Detokenizer:
    """The text of one request's tokens as they come, never a part of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text already returned

    def push(self, token_id: int) -> str:
        """The text that this token makes final, possibly empty."""
        if not self._tokenizer.has_text(token_id):
            return ""
        self._window.append(token_id)
        if token_id in self._tokenizer.byte_ids:
            return ""
        text = self._tokenizer.decode(self._window)
        final = text.removesuffix(REPLACEMENT)
        piece = final[self._shown :]
        self._shown = len(final)
        if final == text:
            self._restart(1)
        elif len(self._window) > LONGEST_WINDOW:
            self._restart(SHORTEST_WINDOW)
        return piece

    def flush(self) -> str:
        """What is left once no more tokens will come; a character cut short is U+FFFD."""
        text = self._tokenizer.decode(self._window)
        piece = text[self._shown :]
        self._shown = len(text)
        return piece

    def _restart(self, tokens: int) -> None:
        """Forget all but the last tokens of the window."""
        self._window = self._window[-tokens:]
        text = self._tokenizer.decode(self._window)
        self._shown = len(text if tokens == 1 else text.removesuffix(REPLACEMENT))
