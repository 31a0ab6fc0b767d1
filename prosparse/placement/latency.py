"""The latency model: what a token is expected to take, layer by layer, for every pair of cuts.

A layer on one device costs its bytes over that device's speed, and every kernel its launch. Where two share an FFN:

    GPU   attention, norm -> gate rows [hot, gate) -> gate rows [0, hot), up and down of the open ones -> add
                         \\ x                     \\ open ones in [hot, gate)                           / y
    CPU                   gate rows from `gate` on, up and down of the open ones -> theirs in [hot, gate) -

so that both work at the same time, and small copies are waited for. What the CPU needs lies in the GPU's own queue, so
the next kernel is behind it; x goes with the list where the CPU has nothing to do with x alone. In mode predicted a
predictor on the GPU takes the place of the gate, and whoever has a neuron has its three rows. Where every gate is on
the GPU and nothing cold is open, the CPU has nothing to compute; how often that is follows from the frequencies as if
neurons were independent, which errs towards too rarely, since real ones open together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import ModelConfig
from ..hardware import Machine
from .activity import Activity, Array
from .sizes import Sizes

# Kernels of a captured step: docs/gpu.md, docs/hybrid-decode.md
ATTENTION_LAUNCHES = 3  # norm and qkv; rotary embedding, cache and attention; output projection and add
# An FFN: a gate with what is open, down with the add. A predicted one op by op: norm, three of the guess, add.
FFN_LAUNCHES = {"dense": 2, "exact": 2, "predicted": 7}
NORM_LAUNCHES = 1  # of an FFN that two devices share: both need what it makes
LIST_LAUNCHES = 2  # gates between the cuts, and one list of what is open
GUESS_LAUNCHES = 3  # its two matrices, and one list
HOT_LAUNCHES = {"dense": 3, "exact": 3, "predicted": 7}  # the add apart; predicted, how much of the list is hot
ADD_LAUNCHES = 1
ATTENTION_CALLS = 4  # on the CPU: regions at whose ends threads wait for each other


@dataclass(frozen=True, eq=False)
class Latency:
    """Seconds of the parts of a token.

    Args:
        config: of the model.
        sizes: of its parts.
        machine: that runs it.
        fmt, head_fmt: formats of the weights and of lm_head.
    """

    config: ModelConfig
    sizes: Sizes
    machine: Machine
    fmt: str
    head_fmt: str

    def attention(self, on_gpu: bool) -> float:
        """Of one layer, over a full cache."""
        sizes, machine = self.sizes, self.machine
        if on_gpu:
            speed = machine.gpu_stream * machine.gpu_share(self.fmt)
            return (
                sizes.attention / speed + sizes.cache / machine.gpu_stream + ATTENTION_LAUNCHES * machine.gpu_launch_s
            )
        speed = machine.cpu_stream * machine.cpu_share(self.fmt)
        return sizes.attention / speed + sizes.cache / machine.cpu_stream + ATTENTION_CALLS * machine.cpu_call_s

    def cpu_ffn(self, mode: str, own: Activity, predictor: int) -> float:
        """A whole FFN on the CPU; `predictor` is the bytes of its predictor."""
        neurons, call = len(own.rows) - 1, self.machine.cpu_call_s
        if mode == "dense":
            return call + float(self.cpu_stream(3 * neurons))
        if mode == "exact":
            return call + float(self.cpu_stream(neurons) + self.cpu_gather(own.rows[-1]))
        guess = call + predictor / self.machine.cpu_stream
        return guess + call + float(self.cpu_gather(own.named[-1] + own.rows[-1]))

    def gpu_ffn(self, mode: str, own: Activity, predictor: int) -> float:
        """A whole FFN on the GPU."""
        neurons, launch = len(own.rows) - 1, self.machine.gpu_launch_s
        launch *= FFN_LAUNCHES[mode]
        if mode == "dense":
            return launch + float(self.gpu_stream(3 * neurons))
        if mode == "exact":
            return launch + float(self.gpu_stream(neurons) + self.gpu_gather(own.rows[-1]))
        return launch + predictor / self.machine.gpu_stream + float(self.gpu_gather(own.named[-1] + own.rows[-1]))

    def shared_ffn(self, mode: str, own: Activity, predictor: int, gate: Array, hot: Array) -> Array:
        """An FFN that both share, for cuts [options] each, not both of which are all neurons."""
        machine, neurons, launch = self.machine, len(own.rows) - 1, self.machine.gpu_launch_s
        x = 4 * self.config.hidden
        back = x / machine.to_gpu + ADD_LAUNCHES * launch  # once the GPU goes on
        g, h = gate.astype(np.int64), hot.astype(np.int64)
        rows_hot, rows_all = own.rows[h], own.rows[-1]
        normed = NORM_LAUNCHES * launch + x / machine.to_cpu
        there = normed + machine.sync_s
        if mode == "dense":
            gpu = normed + HOT_LAUNCHES[mode] * launch * (h > 0) + self.gpu_stream(3 * hot)
            cpu = there + machine.cpu_call_s + self.cpu_stream(3 * (neurons - hot))
            return np.maximum(gpu, cpu + machine.sync_s) + back
        if mode == "exact":
            between = LIST_LAUNCHES * launch + self.gpu_stream(gate - hot) + 8 * (gate - hot) / machine.to_cpu
            selected = normed + np.where(g > h, between, 0.0)
            listed = selected + machine.sync_s
            cold = self.cpu_stream(neurons - gate) + self.cpu_gather(rows_all - own.rows[g])
            alone = np.where(g < neurons, there + machine.cpu_call_s + cold, 0.0)
            asked = np.where(g > h, machine.cpu_call_s + self.cpu_gather(own.rows[g] - rows_hot), 0.0)
            computed = self.gpu_stream(hot) + self.gpu_gather(rows_hot)
        else:
            guess = GUESS_LAUNCHES * launch + predictor / machine.gpu_stream
            selected = np.asarray(normed + guess + 4 * neurons / machine.to_cpu)
            listed, alone = selected + machine.sync_s, np.zeros(len(h))
            asked = machine.cpu_call_s + self.cpu_gather(own.named[-1] - own.named[h] + rows_all - rows_hot)
            computed = self.gpu_gather(own.named[h] + rows_hot)
        gpu = selected + HOT_LAUNCHES[mode] * launch * (h > 0) + computed
        nothing = np.where((g == neurons) | (mode == "predicted"), np.exp(own.log_closed[-1] - own.log_closed[h]), 0.0)
        cpu = np.maximum(alone, listed) + (1 - nothing) * asked
        return np.maximum(gpu, cpu + machine.sync_s) + back

    def head(self, on_gpu: bool) -> float:
        """lm_head, without the way to it or the logits' way back."""
        if on_gpu:
            speed = self.machine.gpu_stream * self.machine.gpu_share(self.head_fmt)
            return self.sizes.head / speed + self.machine.gpu_launch_s
        speed = self.machine.cpu_stream * self.machine.cpu_share(self.head_fmt)
        return self.sizes.head / speed + self.machine.cpu_call_s

    def logits(self) -> float:
        """Their way to the CPU, where a token is chosen."""
        return self.machine.sync_s + 4 * self.config.vocab / self.machine.to_cpu

    def crossing(self) -> float:
        """The residual's way from one device to the other, between layers."""
        slower = min(self.machine.to_cpu, self.machine.to_gpu)
        return self.machine.sync_s + 4 * self.config.hidden / slower

    def cpu_stream(self, rows: Array | float) -> Array:
        """Seconds to read rows one after the other."""
        return np.asarray(rows) * (self.sizes.row / (self.machine.cpu_stream * self.machine.cpu_share(self.fmt)))

    def cpu_gather(self, rows: Array | float) -> Array:
        """Seconds to read scattered rows."""
        speed = self.machine.cpu_gather * self.machine.cpu_share(self.fmt)
        return np.asarray(rows) * (self.sizes.row / speed + self.machine.cpu_row_s)

    def gpu_stream(self, rows: Array | float) -> Array:
        return np.asarray(rows) * (self.sizes.row / (self.machine.gpu_stream * self.machine.gpu_share(self.fmt)))

    def gpu_gather(self, rows: Array | float) -> Array:
        return np.asarray(rows) * (self.sizes.row / (self.machine.gpu_gather * self.machine.gpu_share(self.fmt)))
