"""One prompt on its way to a text."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingParams
from .detokenize import Detokenizer
from .lookup import NOTHING, Draft, Lookup
from .sampler import Sampler, check_peak
from .stopping import StopMatcher
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Generation:
    """What a prompt became.

    Args:
        text: the new text, without the prompt, special tokens and stop strings.
        token_ids: every token generated, an end-of-sequence token included.
        finish_reason: "eos", "stop" (a stop string), or "length" (max_new_tokens, or the context is full).
        stats: plain dict; see `prosparse.engine.stats`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stats: dict[str, Any]


class Request:
    """The state of one prompt: what it has, how it samples, when it ends.

    Args:
        prompt: ids of at least one token, or embeddings, [tokens, hidden].
        params: how to choose, when to stop.
        tokenizer: turns ids into text and knows the end-of-sequence tokens.
        context: the most tokens that prompt and text may have together.
        vocab: size of the logits.
    """

    def __init__(
        self,
        prompt: list[int] | Tensor,
        params: SamplingParams,
        tokenizer: Tokenizer,
        context: int,
        vocab: int,
    ) -> None:
        self.params, self.eos_ids = params, frozenset() if params.ignore_eos else tokenizer.eos_ids
        self.prompt_tokens = self.length = len(prompt)
        self.cached = 0  # of these, what the cache already holds
        room = context - len(prompt)
        self.limit = room if params.max_new_tokens is None else min(room, params.max_new_tokens)
        self.ids = torch.empty(len(prompt) + self.limit, dtype=torch.int64)  # prompt and text
        self.prompt = prompt if isinstance(prompt, Tensor) else torch.tensor(prompt)
        self.first_id = len(prompt) if isinstance(prompt, Tensor) else 0  # embeddings have no ids
        if not self.first_id:
            self.ids[: self.length] = self.prompt
        self.sampler = Sampler(params, vocab)
        self.lookup = Lookup(self.ids[self.first_id : self.length].tolist()) if params.prompt_lookup else None
        self.detokenizer, self.stops = Detokenizer(tokenizer), StopMatcher(params.stop)
        self.pieces: list[str] = []
        self.finish_reason = ""
        self.created_at = self.first_at = self.last_at = time.perf_counter()

    @property
    def done(self) -> bool:
        return bool(self.finish_reason)

    @property
    def generated(self) -> int:
        return self.length - self.prompt_tokens

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.limit - self.generated

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is always that of the largest logit."""
        return self.params.greedy and self.params.repetition_penalty == 1.0

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self.ids[self.prompt_tokens : self.length].tolist())

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def draft(self) -> Draft:
        """What may come next by prompt lookup, as many tokens as were asked for and still may come but one."""
        if self.lookup is None:
            return NOTHING
        return self.lookup.draft(min(self.params.prompt_lookup, self.left - 1))

    def advance(self, logits: Tensor) -> str:
        """Choose the next token from logits [vocab] float32; returns the text that became certain."""
        return self._take(self.sampler.choose(logits, self.ids[self.first_id : self.length]))

    def advance_to(self, token: int, peak: float) -> str:
        """As `advance`, for a greedy request whose token was chosen where its logits are; peak is the largest."""
        check_peak(peak)
        return self._take(token)

    def _take(self, token: int) -> str:
        self.ids[self.length] = token
        self.length += 1
        if self.lookup is not None:
            self.lookup.push(token)
        self.last_at = time.perf_counter()
        if self.generated == 1:
            self.first_at = self.last_at
        if token in self.eos_ids:
            self.finish_reason, piece = "eos", self._rest("")
        else:
            piece, stopped = self.stops.push(self.detokenizer.push(token))
            if stopped:
                self.finish_reason = "stop"
            elif self.generated == self.limit:
                self.finish_reason, piece = "length", self._rest(piece)
        self.pieces.append(piece)
        return piece

    def _rest(self, piece: str) -> str:
        """Text held back until the end; a stop string may still be completed by it."""
        tail, stopped = self.stops.push(self.detokenizer.flush())
        if stopped:
            self.finish_reason = "stop"
            return piece + tail
        return piece + tail + self.stops.flush()
