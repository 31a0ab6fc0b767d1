"""The model `prosparse` of EleutherAI's lm-evaluation-harness (extra `[eval]`).

    python -m prosparse.hf.harness run --model prosparse --model_args pretrained=FOLDER,mode=exact --tasks TASK

or, from Python, import this module and ask for "prosparse". A continuation is scored by decode steps of up to 16 tokens
after its context was prefilled: the path, and so the numbers, of a model that generates it in this mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from prosparse.kernels.checks import MAX_ROWS

from ..config import SamplingParams
from ..engine import load
from ..engine.load import EMBEDDED_MODEL
from ..engine.session import Session
from ..engine.tokenizer_files import load_pretrained
from ..errors import UserError
from ..weights import resolve_model

DEFAULT_NEW_TOKENS = 256  # of generate_until where the task names no number, as in the harness's own models


@register_model("prosparse")
class ProsparseLM(TemplateLM):
    """A prosparse engine in the harness.

    Args:
        pretrained: model folder or hub id; None is the packaged model.
        mode, weights, device, threads, context, fatrelu_threshold, predictor: as of `prosparse.load`.
        add_bos_token: begin every text with BOS; None does so where the tokenizer does, and with MiniCPM, whose models
            misbehave without.
        batch_size: prompts that generate together, at most 16.
        max_batch_size: accepted and not used.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        mode: str = "auto",
        weights: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        context: int | None = None,
        fatrelu_threshold: float | None = None,
        predictor: str | None = None,
        add_bos_token: bool | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        folder = resolve_model(EMBEDDED_MODEL if pretrained is None else pretrained)
        device = "auto" if device in (None, "cuda:0") else device  # the harness says cuda:0 where a user names none
        self.engine = load(
            folder,
            mode,
            weights,
            device,
            threads=threads,
            context=context,
            fatrelu_threshold=fatrelu_threshold,
            predictor=predictor,
        )
        self.tokenizer = load_pretrained(folder)
        self.batch_size = MAX_ROWS if batch_size in (None, "auto") else max(1, int(batch_size))
        self._device = self.engine.decoder.device
        self._session = Session(self.engine.decoder, self.engine.kv_dtype, 1, self.engine.context)
        self._prefilled: list[int] = []
        self._bos = self.engine.tokenizer.bos_id
        if add_bos_token is None:
            framed = self.tokenizer("").input_ids
            add_bos_token = self.engine.config.family == "minicpm" or (bool(framed) and framed[0] == self._bos)
        self._add_bos = add_bos_token

    @property
    def eot_token_id(self) -> int:
        eos = self.tokenizer.eos_token_id
        return min(self.engine.tokenizer.eos_ids) if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """Stands for an empty context."""
        return self.eot_token_id if self._bos is None else self._bos

    @property
    def max_length(self) -> int:
        return self.engine.context

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Ids of a text in which special tokens are tokens, as chat templates write them; at most one leading BOS."""
        ids: list[int] = self.tokenizer(string, add_special_tokens=False).input_ids
        bos = self._bos
        if add_special_tokens is False or not self._add_bos or bos is None or ids[:1] == [bos]:
            return ids
        return [bos, *ids]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation in the model's own form."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        scores = []
        for key, context, continuation in tqdm(requests, desc="Scoring", disable=disable_tqdm):
            score = self._score(context, continuation)
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, score)
            scores.append(score)
        return scores

    @torch.inference_mode()
    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-probability of the continuation, and whether it is what greedy decoding gives."""
        if not continuation:
            return 0.0, True
        if len(continuation) > self.max_length:
            raise UserError(
                f"harness: a continuation of {len(continuation)} tokens does not fit into the context of "
                f"{self.max_length}; raise context"
            )
        # What predicts a token stands before it; the oldest tokens go where all do not fit.
        ids = torch.tensor([*context, *continuation][:-1][-self.max_length :])
        start = len(ids) - len(continuation)
        if ids[:start].tolist() != self._prefilled:  # the choices of a question share their context
            for _ in self._session.prefill(ids[:start]) if start else ():
                pass
            self._prefilled = ids[:start].tolist()
        total, greedy = 0.0, True
        for first in range(start, len(ids), MAX_ROWS):
            part = ids[first : first + MAX_ROWS]
            logits = self._session.decode(part[None], (0,), (first,)).double()
            wanted = torch.tensor(continuation[first - start :][: len(part)], device=logits.device)
            total += float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
            greedy = greedy and bool((logits.argmax(-1) == wanted).all())
        return total, greedy

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the context where they are longer."""
        totals = []
        for request in tqdm(requests, desc="Scoring texts", disable=disable_tqdm):
            (text,) = request.args
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            total = sum(self._score(*utils.make_disjoint_window(window))[0] for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that continue the contexts, each up to its stop strings."""
        texts: list[str] = [""] * len(requests)
        groups: dict[SamplingParams, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(sampling_params(request.args[1]), []).append(i)
        with tqdm(total=len(requests), desc="Generating", disable=disable_tqdm) as bar:
            for params, members in groups.items():
                for first in range(0, len(members), self.batch_size):
                    batch = members[first : first + self.batch_size]
                    room = max(1, self.max_length - (params.max_new_tokens or DEFAULT_NEW_TOKENS))
                    prompts = [self.tok_encode(requests[i].args[0])[-room:] or [self.prefix_token_id] for i in batch]
                    for i, result in zip(batch, self.engine.generate(prompts, params), strict=True):
                        texts[i] = result.text
                        self.cache_hook.add_partial("generate_until", requests[i].args, result.text)
                    bar.update(len(batch))
        return texts


def sampling_params(given: dict[str, Any]) -> SamplingParams:
    """The harness's generation arguments in our words.

    Raises:
        UserError: an argument that prosparse does not have.
    """
    rest = dict(given)
    until = rest.pop("until", None) or []
    stop = (until,) if isinstance(until, str) else tuple(until)
    new_tokens = next((rest.pop(k) for k in ("max_gen_toks", "max_new_tokens") if k in rest), DEFAULT_NEW_TOKENS)
    sample = rest.pop("do_sample", None)
    temperature = float(rest.pop("temperature", 1.0 if sample else 0.0))
    known = {name: rest.pop(name) for name in ("top_k", "top_p", "min_p", "repetition_penalty", "seed") if name in rest}
    if rest:
        raise UserError(f"harness: generation argument {next(iter(rest))!r} is not known; remove it from the task")
    return SamplingParams(
        max_new_tokens=int(new_tokens), temperature=0.0 if sample is False else temperature, stop=stop, **known
    )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
