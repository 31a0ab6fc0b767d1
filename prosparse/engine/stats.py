"""What a run did, as a plain dict.

activation_sparsity   {"mean", "layers"}: share of act(gate) * up that was exactly zero, over the run's decode
                      tokens, per layer and their mean (Song et al., "ProSparse", 2024, section 3.1); None without
                      decode tokens
predicted_sparsity    {"mean", "layers"}: share of neurons that the predictor left out in the run's decode steps; None
                      for a layer that has none, which the mean leaves out, and None in other modes
audit                 {"steps", "recall"}: see `prosparse.engine.audit`; None where none was asked for
prefill_tokens        of this prompt
cached_tokens         of these, what a conversation already had, which was not read again
decode_tokens         tokens of this prompt's text that came from decode steps: all but the first
ttft_s                from the request to its first token, loading excluded
tokens_per_s          decode tokens per second of this prompt, None without any
bytes_per_token       weights and cache that the run's decode steps had to read, per decode token
prompt_lookup         {"drafted", "accepted"}: tokens that this prompt's steps tried ahead, and those that came; None
                      where it was not asked for
cold                  of a model on two devices, over the run's decode steps: {"layers": how many both "shared" and how
                      many were "slow", on the slow device alone; "share" of the active neurons of the shared ones that
                      were computed there; "parts", times that a step came to a shared layer, and how many of these
                      were "skipped" there, nothing cold being active; "moved", {"pairs", "bytes"} of neurons that
                      changed places after the run's prompts, None unless asked for}; None on one device
ffn_kernels           per layer, what computed its decode steps: its mode, or where an exact layer has so few zeros that
                      the dense kernel is faster, "dense", or "exact and dense" in a run that changed over; None without
                      decode steps: see `prosparse.engine.choice`
kernels               which implementation computed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prosparse.kernels.tally import COLD_STEPS, COLD_UP_ROWS, NONZERO, PREDICTED, UP_ROWS

from .. import machine
from ..model.decoder import Decoder
from ..model.tiers import SLOW
from ..plan import Plan
from ..sparsity import has_selector
from .request import Request
from .session import Session


def activation_sparsity(session: Session, neurons: int) -> dict[str, Any] | None:
    """Mean and per-layer share of exact zeros over the session's decode tokens, of so many neurons for each."""
    if not session.decode_tokens:
        return None
    possible = neurons * session.decode_tokens
    layers = [round(1 - done[NONZERO] / possible, 6) for done in session.done]
    return {"mean": round(sum(layers) / len(layers), 6), "layers": layers}


def predicted_sparsity(session: Session, decoder: Decoder) -> dict[str, Any] | None:
    """Mean and per-layer share of neurons not predicted; None where no layer is predicted, or before any step."""
    is_predicted = [has_selector(ffn) for _, ffn in decoder.blocks]
    if not session.steps or not any(is_predicted):
        return None
    possible = decoder.config.neurons * session.steps
    shares = [1 - done[PREDICTED] / possible for done in session.done]
    layers = [round(share, 6) if own else None for share, own in zip(shares, is_predicted, strict=True)]
    known = [share for share in layers if share is not None]
    return {"mean": round(sum(known) / len(known), 6), "layers": layers}


def bytes_per_token(session: Session, decoder: Decoder) -> int | None:
    """Bytes that the session's decode steps had to read, per decode token; embeddings and norms are left out."""
    if not session.decode_tokens:
        return None
    per_step = decoder.lm_head.nbytes
    ffns = 0
    for (attention, ffn), done in zip(decoder.blocks, session.done, strict=True):
        per_step += attention.qkv.nbytes + attention.o.nbytes
        ffns += ffn.bytes_read(session.steps, done)
    total = session.steps * per_step + ffns + session.positions_read * session.cache.position_bytes
    return round(total / (session.decode_tokens - session.surplus))


def cold_stats(session: Session, decoder: Decoder) -> dict[str, Any] | None:
    """What the slow device did in a run on two; None on one, or before any step."""
    if decoder.tiers.is_one or not session.steps:
        return None
    shared = [done for done, own in zip(session.done, decoder.tiers.beside, strict=True) if own]
    moved = None if session.moved is None else dict(zip(("pairs", "bytes"), session.moved, strict=True))
    return cold_of(shared, sum(tier.name == SLOW for tier in decoder.tiers.layers), session.steps) | {"moved": moved}


def cold_of(shared: Sequence[Sequence[int]], slow: int, steps: int) -> dict[str, Any]:
    """`cold` of what shared layers tallied in so many steps, with so many layers on the slow device alone."""
    rows, cold = (sum(done[column] for done in shared) for column in (UP_ROWS, COLD_UP_ROWS))
    parts = steps * len(shared)
    return {
        "layers": {"shared": len(shared), "slow": slow},
        "share": round(cold / rows, 6) if rows else None,
        "parts": parts,
        "skipped": parts - sum(done[COLD_STEPS] for done in shared),
    }


def ffn_kernels(session: Session, plan: Plan) -> list[str] | None:
    """What computed the FFN of each layer; None before any decode step."""
    if not session.steps:
        return None
    names = []
    for layer, dense_steps in zip(plan.layers, session.dense_steps, strict=True):
        changed = "dense" if dense_steps == session.steps else f"{layer.mode} and dense"
        names.append(changed if dense_steps else layer.mode)
    return names


def request_stats(request: Request, session: Session, decoder: Decoder, plan: Plan) -> dict[str, Any]:
    """The stats of one finished request of a run."""
    decoded, lookup = request.generated - 1, request.lookup
    seconds = request.last_at - request.first_at
    return {
        "activation_sparsity": activation_sparsity(session, decoder.config.neurons_per_token),
        "predicted_sparsity": predicted_sparsity(session, decoder),
        "audit": None if session.audit is None else session.audit.stats(),
        "prefill_tokens": request.prompt_tokens,
        "cached_tokens": request.cached,
        "decode_tokens": decoded,
        "ttft_s": request.first_at - request.created_at,
        "tokens_per_s": decoded / seconds if decoded and seconds > 0 else None,
        "bytes_per_token": bytes_per_token(session, decoder),
        "prompt_lookup": None if lookup is None else {"drafted": lookup.drafted, "accepted": lookup.accepted},
        "cold": cold_stats(session, decoder),
        "ffn_kernels": ffn_kernels(session, plan),
        "kernels": " and ".join(dict.fromkeys(machine.kernel_name(device) for device in decoder.tiers.devices)),
    }
