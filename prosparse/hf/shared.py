"""A gated FFN of a live transformers model whose neurons two devices share.

Its Linears stay where they are, with their names and shapes, but their weights are on the meta device meanwhile: what
there is of them lies in hot-first order, some on the one and some on the other device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.tally import SHARED_SIZE

from ..errors import UnsupportedError
from ..placement.sizes import PREFILL_TOKENS
from ..sparsity import HybridFFN
from .accelerated import Accelerated

FIRST = "restore the model first"


def stay(*arguments: Any, **named: Any) -> Any:
    """In place of what moves a module."""
    raise UnsupportedError(f"accelerate: a divided model stays where its plan puts it; {FIRST}")


class SharedGLU(Accelerated):
    """Mixed into the class of a gated FFN.

    Attributes:
        prosparse_ffn: what computes.
    """

    tally_size = SHARED_SIZE
    prosparse_ffn: HybridFFN

    def forward(self, x: Tensor) -> Tensor:
        """x is [..., hidden]; so is the result."""
        if x.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                f"accelerate: a divided model computes no gradients; call it under torch.no_grad(), or {FIRST}"
            )
        flat = x.reshape(-1, x.shape[-1])
        if not 1 <= len(flat) <= MAX_ROWS:
            parts = [self.prosparse_ffn.bare_prefill(part) for part in flat.split(PREFILL_TOKENS)]
            return torch.cat(parts).to(x.dtype).view(x.shape)
        counted = x.dim() < 3 or x.shape[-2] == 1
        tally = self.prosparse_tally if counted else torch.zeros_like(self.prosparse_tally)
        y = self.prosparse_ffn.bare_decode(flat.float(), tally)
        if counted:
            self.count(len(flat))
        return y.to(x.dtype).view(x.shape)

    def count(self, tokens: int) -> None:
        """Steps are counted in every mode, for `cold`."""
        self.prosparse_tokens.add_(tokens)
        self.prosparse_steps.add_(1)

    def _apply(self, *arguments: Any, **named: Any) -> Any:
        stay()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        raise UnsupportedError(f"accelerate: a divided model is not copied or pickled; {FIRST}")

    def _save_to_state_dict(self, *arguments: Any) -> None:
        raise UnsupportedError(f"state_dict: the weights of a divided model lie in two places; {FIRST}")
