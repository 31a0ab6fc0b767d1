"""What a run did, as a plain dict.

activation_sparsity   {"mean", "layers"}: share of act(gate) * up that was exactly zero, over the run's decode
                      tokens, per layer and their mean (Song et al., "ProSparse", 2024, section 3.1); None without
                      decode tokens
predicted_sparsity    {"mean", "layers"}: share of neurons that the predictor left out in the run's decode steps; None
                      for a layer that has none, which the mean leaves out, and None in other modes
audit                 {"steps", "recall"}: see `prosparse.engine.audit`; None where none was asked for
prefill_tokens        of this prompt
decode_tokens         tokens of this prompt's text that came from decode steps: all but the first
ttft_s                from the request to its first token, loading excluded
tokens_per_s          decode tokens per second of this prompt, None without any
bytes_per_token       weights and cache that the run's decode steps had to read, per decode token
kernels               which implementation computed
"""

from __future__ import annotations

from typing import Any

from prosparse.kernels.tally import NONZERO, PREDICTED

from .. import machine
from ..model.decoder import Decoder
from ..sparsity import PlainPredictedFFN, PredictedFFN
from .request import Request
from .session import Session


def activation_sparsity(session: Session, neurons: int) -> dict[str, Any] | None:
    """Mean and per-layer share of exact zeros over the session's decode tokens, of so many neurons for each."""
    if not session.decode_tokens:
        return None
    active = session.tally[:, NONZERO].double() / (neurons * session.decode_tokens)
    layers = [round(1 - share, 6) for share in active.tolist()]
    return {"mean": round(sum(layers) / len(layers), 6), "layers": layers}


def predicted_sparsity(session: Session, decoder: Decoder) -> dict[str, Any] | None:
    """Mean and per-layer share of neurons not predicted; None where no layer is predicted, or before any step."""
    is_predicted = [isinstance(ffn, PredictedFFN | PlainPredictedFFN) for _, ffn in decoder.blocks]
    if not session.steps or not any(is_predicted):
        return None
    shares = (1 - session.tally[:, PREDICTED].double() / (decoder.config.neurons * session.steps)).tolist()
    layers = [round(share, 6) if own else None for share, own in zip(shares, is_predicted, strict=True)]
    known = [share for share in layers if share is not None]
    return {"mean": round(sum(known) / len(known), 6), "layers": layers}


def bytes_per_token(session: Session, decoder: Decoder) -> int | None:
    """Bytes that the session's decode steps had to read, per decode token; embeddings and norms are left out."""
    if not session.decode_tokens:
        return None
    per_step = decoder.lm_head.nbytes
    ffns = 0
    for (attention, ffn), done in zip(decoder.blocks, session.tally.tolist(), strict=True):
        per_step += attention.qkv.nbytes + attention.o.nbytes
        ffns += ffn.bytes_read(session.steps, done)
    keys = session.cache.keys
    position = 2 * keys.shape[0] * keys.shape[2] * keys.shape[4] * keys.element_size()
    total = session.steps * per_step + ffns + session.positions_read * position
    return round(total / session.decode_tokens)


def request_stats(request: Request, session: Session, decoder: Decoder) -> dict[str, Any]:
    """The stats of one finished request of a run."""
    decoded = request.generated - 1
    seconds = request.last_at - request.first_at
    return {
        "activation_sparsity": activation_sparsity(session, decoder.config.neurons_per_token),
        "predicted_sparsity": predicted_sparsity(session, decoder),
        "audit": None if session.audit is None else session.audit.stats(),
        "prefill_tokens": request.prompt_tokens,
        "decode_tokens": decoded,
        "ttft_s": request.first_at - request.created_at,
        "tokens_per_s": decoded / seconds if decoded and seconds > 0 else None,
        "bytes_per_token": bytes_per_token(session, decoder),
        "kernels": machine.kernel_name(decoder.device),
    }
