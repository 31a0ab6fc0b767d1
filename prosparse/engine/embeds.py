"""Prompts that are embeddings: what a vision tower made, between the embeddings of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_embeds(given: object, where: str, width: int, context: int) -> Tensor:
    """The embeddings of one prompt, [tokens, width] float32, in memory of their own.

    Raises:
        UserError: no such tensor, another width, a dtype that is no float, NaN or infinity, or more than the context
            has room for.
    """
    expected = f"a tensor [tokens, {width}] of fp32, fp16 or bf16"
    if not isinstance(given, Tensor) or given.layout != torch.strided:
        raise UserError(f"{where} must be {expected}, got {getattr(given, 'layout', type(given).__name__)}")
    if given.dim() != 2 or given.shape[1] != width or given.dtype not in DTYPES:
        got = f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
        raise UserError(f"{where} must be {expected}, got {got}; `engine.embed(token_ids)` makes those of tokens")
    if not 0 < len(given) < context:
        raise UserError(
            f"{where} has {len(given)} tokens, expected from 1 to {context - 1}, which leaves room in the context of "
            f"{context}; shorten it or raise --context"
        )
    embeds = given.detach().to("cpu", torch.float32, copy=True)
    finite = torch.isfinite(embeds).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise UserError(f"{where} has NaN or infinity, first at token {row}; check what made it")
    return embeds


def check_one_of(what: str, prompt: object, inputs_embeds: object) -> None:
    """Raise UserError unless one of the two is given."""
    if (prompt is None) == (inputs_embeds is None):
        got = "neither" if prompt is None else "both"
        raise UserError(f"{what}: pass either a prompt or inputs_embeds, got {got}")
