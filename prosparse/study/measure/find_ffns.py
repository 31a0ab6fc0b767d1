"""Find the FFNs of a transformers model by their structure: a module with an activation between its projections.

gated     gate, up, down: y = down(act(gate x) * up x)      Llama, Mistral, Qwen, Gemma, MiniCPM, Phi-3, ..
plain     up, down:       y = down(act(up x))               OPT, Falcon, GPT-2, GPT-NeoX, BLOOM, Phi, Nemotron, ..
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UnsupportedError

# first projection (of the gated kinds the gate, or gate and up in one), last projection, whether it is gated
KINDS = (
    ("gate_proj", "down_proj", True),
    ("gate_up_proj", "down_proj", True),
    ("up_proj", "down_proj", False),
    ("fc1", "fc2", False),
    ("dense_h_to_4h", "dense_4h_to_h", False),
    ("c_fc", "c_proj", False),
    ("fc_in", "fc_out", False),
)
ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation", "gelu_impl")


@dataclass(frozen=True, eq=False)
class Found:
    """One FFN.

    Args:
        name: of the module in the model.
        first: projection that the activation follows.
        down: last projection.
        act: the activation; a module, or a function that cannot be watched.
        gated: whether up is multiplied on.
    """

    name: str
    first: nn.Module
    down: nn.Module
    act: nn.Module | Callable[[Tensor], Tensor]
    gated: bool


def find_ffns(model: nn.Module) -> list[Found]:
    """The FFNs of a model in order; nothing is changed.

    Raises:
        UnsupportedError: there are none, they have different sizes, or they are experts that see some tokens only.
    """
    found = [ffn for name, module in model.named_modules() if (ffn := _examine(name, module)) is not None]
    experts = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] == "experts"]
    if experts:
        raise UnsupportedError(
            f"measure: {experts[0]} holds experts, which see only some tokens; models with one FFN per layer are "
            "measured"
        )
    if not found:
        kinds = ", ".join(f"{first} and {down}" for first, down, _ in KINDS)
        raise UnsupportedError(
            f"measure: {type(model).__name__} has no FFN that is known; expected modules with an activation "
            f"({', '.join(ACTIVATIONS)}) and projections {kinds}"
        )
    if len({rows_of(ffn.down).shape for ffn in found}) > 1:
        sizes = sorted({rows_of(ffn.down).shape[0] for ffn in found})
        raise UnsupportedError(f"measure: FFNs have {sizes} neurons; models with one size in all layers are measured")
    return found


def rows_of(down: nn.Module) -> Tensor:
    """The last projection as [neurons, hidden]; transformers' Conv1D has it like that, Linear transposed."""
    weight: Any = down.weight
    return weight.detach() if type(down).__name__ == "Conv1D" else weight.detach().t()


def is_linear_relu(act: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    """Whether an activation is ReLU but for a threshold: every value is 0 or its input, and none below 0 is kept."""
    with torch.no_grad():
        x = torch.linspace(-8, 8, 1001, device=device)
        y = act(x)
    return bool(((y == 0) | (y == x)).all() and (y[x < 0] == 0).all() and (y == x)[x > 7].all())


def _examine(name: str, module: nn.Module) -> Found | None:
    act = next((getattr(module, a) for a in ACTIVATIONS if callable(getattr(module, a, None))), None)
    if act is None:
        return None
    for first, down, gated in KINDS:
        projections = [getattr(module, child, None) for child in (first, down)]
        if all(_is_matrix(projection) for projection in projections):
            return Found(name, projections[0], projections[1], act, gated)  # type: ignore[arg-type]
    return None


def _is_matrix(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Module) and isinstance(weight, Tensor) and weight.dim() == 2
