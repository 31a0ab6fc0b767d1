"""The public face of a loaded model: generate, stream, logits."""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from prosparse.kernels import cpu
from prosparse.kernels.checks import MAX_ROWS

from ..config import ModelConfig, SamplingParams
from ..errors import UserError
from ..model.decoder import Decoder
from ..plan import Plan
from .adapting import Adapting
from .choice import TimesOf
from .conversation import Conversation
from .embeds import check_embeds, check_one_of
from .graph import StepPool
from .kernels import KernelChoice
from .lookup import Costs
from .memory_limit import Grant
from .out_of_memory import Held, told
from .request import Generation, Request
from .session import PREFILL_CHUNK, Progress, Session
from .stats import request_stats
from .tokenizer import Tokenizer

LONGEST_TOKEN = 256  # characters; real vocabularies end at 128, with runs of spaces
Prompt = str | Sequence[int]


class Engine:
    """A model ready to run. Made by `prosparse.load`; holds no state of a run, so threads may share it.

    Attributes:
        config, tokenizer: what was loaded.
        context: the most tokens a prompt and its text may have together.
        stats: of the latest finished prompt; empty before the first. See `prosparse.engine.stats`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        plan: Plan,
        model_sampling: SamplingParams,
        kv_dtype: torch.dtype,
        audit: int = 0,
        deterministic: bool = False,
        pool: StepPool | None = None,
        times: TimesOf | None = None,
        limit: Grant | None = None,
        adapting: Adapting | None = None,
    ) -> None:
        self.prefill_chunk = MAX_ROWS if deterministic else PREFILL_CHUNK
        self.audit, self._pool, self._limit, self._adapting = audit, pool, limit, adapting
        self.decoder, self.tokenizer, self._choice = decoder, tokenizer, KernelChoice(decoder, plan, times)
        self.model_sampling, self.kv_dtype = model_sampling, kv_dtype
        # elsewhere the number of a step's tokens changes how sums are rounded, which no clock may decide
        same_bits = decoder.device.type == "cpu" and cpu.available()
        self._costs = Costs(decoder.blocks[0][0].qkv.format, learns=same_bits and not deterministic)
        self.stats: dict[str, Any] = {}

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def plan(self) -> Plan:
        """How each layer runs; `dense_rows` follows what runs count, and a copy that is loaded starts from there."""
        return self._choice.plan

    @property
    def context(self) -> int:
        return self.decoder.context

    @property
    def weights(self) -> str:
        """Weight format, e.g. "bf16"; lm_head may have another."""
        return self.decoder.blocks[0][0].qkv.format

    @property
    def lm_head(self) -> str:
        """Weight format of lm_head, and of the embedding where the two are tied."""
        return self.decoder.lm_head.format

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] | None = None,
        params: SamplingParams | None = None,
        *,
        inputs_embeds: Tensor | Sequence[Tensor] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Any:
        """Continue one prompt, or several at once.

        Args:
            prompt: a text or a sequence of token ids; or a list of those.
            params: how to choose and when to stop; greedy by default.
            inputs_embeds: instead of a prompt, its embeddings, [tokens, hidden] fp32 | fp16 | bf16, or a list of those:
                rows of `embed`, and between them what a vision tower made. They are taken as they are, as the model's
                own code does: no scale is applied to them, and the repetition penalty does not see them.
            progress: called with (tokens done, tokens in all) while a prompt is read.
            options: fields of `SamplingParams` instead of params, e.g. max_new_tokens=64, temperature=0.8, seed=1;
                sampling="model" starts from the model's generation_config.json.

        Returns:
            A `Generation`, or a list of them in the order of the prompts. A prompt's text does not depend on the
            others.

        Raises:
            UserError: an empty prompt, a token id outside the vocabulary, a prompt as long as the context, an unknown
                option, or embeddings that are not finite or of another shape or dtype.
            MachineError: logits that are not finite, or no memory for the cache or the work.
        """
        check_one_of("generate", prompt, inputs_embeds)
        given: Any = inputs_embeds if prompt is None else prompt
        several = isinstance(given, Sequence) if prompt is None else is_batch(prompt)
        requests = self._requests(given if several else [given], params, options, prompt is None)
        with self._told("generate"):
            self._choice.settle()
            session = self._session(len(requests))
            try:
                for _ in session.run(requests, progress):
                    pass
                results = [self._finished(request, session) for request in requests]
            finally:
                session.close()
        return results if several else results[0]

    def stream(
        self,
        prompt: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        progress: Progress | None = None,
        conversation: Conversation | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continue one prompt, yielding its text in pieces as it becomes certain. Arguments and errors of `generate`.

        A piece never splits a character, and the pieces together are the text. `engine.stats` is set at the end. With a
        conversation, what a prompt has in common with the one before it and its text is not read again.
        """
        check_one_of("stream", prompt, inputs_embeds)
        if isinstance(inputs_embeds, Sequence) or (prompt is not None and is_batch(prompt)):
            raise UserError("stream: takes one prompt, got a list; use generate for several")
        embedded = prompt is None
        request = self._requests([inputs_embeds if embedded else prompt], params, options, embedded)[0]
        return self._stream(request, progress, conversation)

    def _stream(self, request: Request, progress: Progress | None, kept: Conversation | None) -> Iterator[str]:
        with self._told("stream"):
            self._choice.settle()
            session = self._session(1) if kept is None else kept.enter(request, self, lambda: self._session(1))
            try:
                for _, piece in session.run([request], progress):
                    if piece:
                        yield piece
                self._finished(request, session)
            finally:
                session.close() if kept is None else kept.leave(request)

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int] | Tensor, chunk: int | None = None) -> Tensor:
        """Scores of every next token with the sequence given (teacher forcing).

        Args:
            token_ids: [tokens], from `engine.tokenizer.encode` for instance.
            chunk: tokens per prefill step; None is what `generate` takes.

        Returns:
            [tokens, vocab] float32 on the CPU.

        Raises:
            UserError: no tokens, more than the context, an id outside the vocabulary, or a chunk below 1.
        """
        ids = self._check_ids(token_ids, "logits: token_ids", "a sequence of whole numbers")
        if chunk is not None and chunk < 1:
            raise UserError(f"logits: chunk must be at least 1 token, got {chunk}")
        if len(ids) > self.context:
            raise UserError(f"logits: {len(ids)} tokens are more than the context of {self.context}; raise --context")
        with self._told("logits"):
            session = Session(self.decoder, self.kv_dtype, 1, len(ids), chunk=self.prefill_chunk)
            parts = [self.decoder.logits(hidden).cpu() for hidden in session.prefill(torch.tensor(ids), chunk=chunk)]
            return torch.cat(parts)

    @torch.no_grad()  # a tensor of inference mode could not be written to, and rows of this one are to be replaced
    def embed(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """The embeddings of tokens as the first layer takes them, [tokens, hidden] float32 on the CPU.

        Raises:
            UserError: no tokens, or an id outside the vocabulary.
        """
        ids = self._check_ids(token_ids, "embed: token_ids", "a sequence of whole numbers")
        return self.decoder.embed_tokens(torch.tensor(ids).to(self.decoder.device)).cpu()

    def _requests(
        self, prompts: Sequence[Any], params: SamplingParams | None, options: dict[str, Any], embedded: bool = False
    ) -> list[Request]:
        if not prompts:
            raise UserError("generate: no prompt was given; pass a text or a list of at least one")
        params = self._params(params, options)
        checked: list[list[int] | Tensor] = []
        for i, prompt in enumerate(prompts):
            if embedded:
                width = self.config.embed_width or self.config.hidden
                checked.append(check_embeds(prompt, f"generate: inputs_embeds {i}", width, self.context))
            else:
                checked.append(self._prompt_ids(prompt, i))
        return [Request(each, params, self.tokenizer, self.context, self.config.vocab) for each in checked]

    def _params(self, params: SamplingParams | None, options: dict[str, Any]) -> SamplingParams:
        start = options.pop("sampling", None)
        if start not in (None, "model"):
            raise UserError(f'generate: sampling is {start!r}; the only choice is "model"')
        if params is not None and (options or start):
            raise UserError("generate: pass either params or single options, not both")
        known = [field.name for field in dataclasses.fields(SamplingParams)]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                raise UserError(f"generate: unknown option {name!r}; {hint}")
        base = self.model_sampling if start else SamplingParams()
        return params or dataclasses.replace(base, **options)

    def _prompt_ids(self, prompt: Prompt, number: int) -> list[int]:
        where = f"generate: prompt {number}"
        if isinstance(prompt, (bytes, bytearray)):
            raise UserError(f"{where} is bytes, not a text; decode it first, for example with .decode()")
        if isinstance(prompt, str):
            if len(prompt) > self.context * LONGEST_TOKEN:  # megabytes of text are not worth tokenizing to say so
                raise UserError(
                    f"{where} has {len(prompt)} characters, more than {self.context} tokens can hold; "
                    "shorten it or raise --context"
                )
            ids = self.tokenizer.encode(prompt)
            if not ids and self.tokenizer.bos_id is not None:
                ids = [self.tokenizer.bos_id]
        else:
            ids = self._check_ids(prompt, where, "a text or a sequence of whole numbers")
        if not ids:
            raise UserError(f"{where} is empty and this model has no BOS token to start from; give some text")
        if len(ids) >= self.context:
            raise UserError(
                f"{where} has {len(ids)} tokens, which leaves no room in the context of {self.context}; "
                "shorten it or raise --context"
            )
        return ids

    def _check_ids(self, given: Sequence[int] | Tensor, where: str, expected: str) -> list[int]:
        # On the host: an id outside the table would read foreign memory on a GPU, or kill its context.
        try:
            ids = [operator.index(i) for i in given]
        except TypeError as error:
            raise UserError(f"{where} must be {expected} ({error})") from error
        if not ids:
            raise UserError(f"{where} holds no token ids; give at least one")
        bad = next((i for i in ids if not 0 <= i < self.config.vocab), None)
        if bad is not None:
            raise UserError(f"{where} holds token id {bad}; this model knows 0 to {self.config.vocab - 1}")
        return ids

    def _session(self, prompts: int) -> Session:
        slots = prompts if self.plan.placement is None else 1  # a budget has room for the cache of one
        return Session(
            self.decoder, self.kv_dtype, slots, self.context, self.audit, self.prefill_chunk, self._pool, self._choice,
            self._adapting, self._costs,
        )  # fmt: skip

    def _told(self, where: str) -> AbstractContextManager[None]:
        held = Held(self.config, self.weights, self.context, None if self._limit is None else self._limit.budget)
        return told(where, held, self.decoder.tiers.layers[-1].device)

    def _finished(self, request: Request, session: Session) -> Generation:
        self.stats = stats = request_stats(request, session, self.decoder, self.plan)
        # not self.stats again: another thread's run may have ended meanwhile
        return Generation(request.text, request.token_ids, request.finish_reason, stats)


def is_batch(prompt: object) -> bool:
    """True for a list of prompts, False for one text or one sequence of token ids."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return len(prompt) == 0 or not isinstance(prompt[0], Integral)
