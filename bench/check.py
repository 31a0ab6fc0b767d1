"""Nothing is timed before it is right: these checks raise, and no number comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prosparse.errors import MachineError
from prosparse.kernels import cpu
from prosparse.kernels.activation import Activation
from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.glu_dense import glu_dense, glu_dense_reference
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.plain_dense import plain_dense, plain_dense_reference
from prosparse.kernels.plain_exact import plain_exact
from prosparse.kernels.tally import new_tally
from prosparse.kernels.weight import Weight
from prosparse.model.decoder import FFN, Decoder
from prosparse.sparsity import ExpertsFFN, PlainFFN
from prosparse.sparsity.ffn import GatedFFN

OPS = {"dense": glu_dense, "exact": glu_exact}
PLAIN_OPS = {"dense": plain_dense, "exact": plain_exact}
MARGIN = 1e-5  # of a pre-activation: ten times what summing 8192 products in another order moves it by
PACKED_MARGIN = 1.5e-4  # of one of packed weights, which meet x in 16-bit fixed point: six standard deviations
FIXED_POINT = 1e-3  # of an output: what 16-bit fixed point may do, its constant channel being 40 times the others
# Of an output, L2: a prefill rounds h and y to the format of its GEMM, bf16 for packed weights.
PREFILLED = {"fp32": 0.0, "fp16": 2e-3, "bf16": 1.6e-2, "int8": 1.6e-2, "int4": 1.6e-2}
FLIPS = 0.05  # what a few neurons that flip at a jump of the activation can do to logits, L2


def check_block(mode: str, ffn: FFN) -> None:
    """Compare the op of an FFN block with its meaning; experts, whose ops depend on the token, with their prefill.

    Raises:
        MachineError: the op is wrong.
    """
    if isinstance(ffn, GatedFFN):
        check_ffn(mode, ffn.gate, ffn.up, ffn.down, ffn.activation, clear_input(ffn.gate, ffn.activation))
    elif isinstance(ffn, PlainFFN):
        check_plain(mode, ffn.gate, ffn.gate_bias, ffn.down, ffn.down_bias, ffn.activation)
    else:
        assert isinstance(ffn, ExpertsFFN), "every block is one of these"
        # one token more than a step takes, so that the prefill multiplies by GEMMs
        residual = torch.randn(MAX_ROWS + 1, ffn.gate.shape[1], generator=torch.Generator().manual_seed(0))
        decoded, prefilled = ffn.decode(residual[:MAX_ROWS], new_tally("cpu")), ffn.prefill(residual)[:MAX_ROWS]
        require_close("a step of experts", decoded, prefilled, sum(ffn.gate.shape), PREFILLED[ffn.gate.format])


def check_plain(
    mode: str,
    gate: Weight,
    gate_bias: Tensor | None,
    down: Weight,
    down_bias: Tensor | None,
    activation: Activation,
    shift: float = 0.0,
) -> None:
    """The same for the op of an FFN without up projection, on a `clear_input`."""
    x, act, tally = clear_input(gate, activation, shift), activation, new_tally("cpu")
    codes = (gate.codes, gate_bias, down.codes, down_bias)
    expected = plain_dense_reference(x, *codes, act.code, act.threshold, new_tally("cpu"))
    actual = PLAIN_OPS[mode](x, gate, gate_bias, down, down_bias, act, tally)
    require_close(f"plain_{mode}", actual, expected, sum(gate.shape), FIXED_POINT if gate.is_packed else 0.0)


def check_ffn(mode: str, gate: Weight, up: Weight, down: Weight, activation: Activation, x: Tensor) -> None:
    """Compare an FFN op with its meaning in plain PyTorch.

    Raises:
        MachineError: the op is wrong.
    """
    parts = (gate.codes, up.codes, down.codes, activation.code, activation.threshold, activation.on_up)
    expected = glu_dense_reference(x, *parts, new_tally(x.device))
    actual = OPS[mode](x, gate, up, down, activation, new_tally(x.device))
    require_close(f"glu_{mode}", actual, expected, sum(gate.shape), FIXED_POINT if gate.is_packed else 0.0)


def clear_input(gate: Weight, activation: Activation, shift: float = 0.0) -> Tensor:
    """A normed token [1, hidden] that puts no neuron near the threshold, where either side would be right.

    Args:
        gate: gate projection.
        activation: of it.
        shift: value of the first channel.

    Raises:
        MachineError: there is none in many tries.
    """
    rng = torch.Generator().manual_seed(0)
    values, margin = gate.values(), PACKED_MARGIN if gate.is_packed else MARGIN
    for _ in range(64):
        x = torch.randn(1, gate.shape[1], generator=rng)
        x[0, 0] = shift
        distance = (torch.nn.functional.linear(x, values) - activation.threshold).abs().min()
        if float(distance) > margin:
            return x
    raise MachineError(
        f"bench: the gate {gate.shape} has neurons at the threshold of {activation} for every input tried"
    )


def require_close(what: str, actual: Tensor, expected: Tensor, terms: int, more: float = 0.0) -> None:
    """Raise unless two float32 results differ by no more than `more` and what the order of `terms` numbers explains."""
    bound = 8 * math.sqrt(terms) * torch.finfo(torch.float32).eps + more
    error = float((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))
    if not error <= bound:
        raise MachineError(
            f"bench: {what} is wrong: relative error {error:.1e}, rounding explains {bound:.1e}; nothing was timed"
        )


class Lockstep:
    """An FFN block that runs several on the same residual, insists that they agree, and goes on with the first."""

    def __init__(self, layer: int, blocks: Mapping[str, FFN], terms: int) -> None:
        self.layer, self.blocks, self.terms = layer, blocks, terms

    def prefill(self, residual: Tensor) -> Tensor:
        return self._all("prefill", {mode: block.prefill(residual) for mode, block in self.blocks.items()})

    def decode(self, residual: Tensor, tally: Tensor) -> Tensor:
        return self._all(
            "decode", {mode: block.decode(residual, new_tally(residual.device)) for mode, block in self.blocks.items()}
        )

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        return sum(block.bytes_read(steps, done) for block in self.blocks.values())

    def glu(self) -> None:
        """Several FFNs at once are no plain one."""

    def _all(self, phase: str, results: dict[str, Tensor]) -> Tensor:
        (base, expected), *others = results.items()
        for mode, actual in others:
            require_close(f"{phase} of layer {self.layer}, {mode} against {base},", actual, expected, self.terms)
        return expected


def in_lockstep(decoders: Mapping[str, Decoder]) -> Decoder:
    """One decoder that checks the FFN blocks of several against each other."""
    first = next(iter(decoders.values()))
    config = first.config
    blocks = []
    for layer, (attention, _) in enumerate(first.blocks):
        ffns = {mode: decoder.blocks[layer][1] for mode, decoder in decoders.items()}
        blocks.append((attention, Lockstep(layer, ffns, config.hidden + config.neurons)))
    return first.with_blocks(blocks)


def require_same_logits(what: str, actual: Tensor, expected: Tensor) -> None:
    """Raise unless two modes predict the same: bit for bit where the C++ kernels run, which promise it."""
    if cpu.available():
        if not torch.equal(actual, expected):
            worst = float((actual - expected).abs().max())
            raise MachineError(
                f"bench: {what} gives other logits (up to {worst:.1e} off), but must equal bit for bit; stopped"
            )
        return
    error = float((actual - expected).norm() / expected.norm().clamp_min(1e-30))
    if not error <= FLIPS or not torch.equal(actual.argmax(-1), expected.argmax(-1)):
        raise MachineError(f"bench: {what} gives other logits (relative error {error:.1e}); nothing was timed")
