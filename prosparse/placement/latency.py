"""The latency model: what a token is expected to take, layer by layer, for every pair of cuts.

A layer on one device costs its bytes over that device's speed, and every kernel its launch. Where two share an FFN:

    GPU   attention, norm -> gate rows [hot, gate) -> gate rows [0, hot), up and down of the open ones -> add
                         \\ x                     \\ open ones in [hot, gate)                           / y
    CPU                   gate rows from `gate` on, up and down of the open ones -> theirs in [hot, gate) -

so that both work at the same time, and small copies are waited for. In mode predicted a predictor on the GPU takes the
place of the gate, and whoever has a neuron has its three rows. Where every gate is on the GPU and nothing cold is open,
the CPU's part is left out; how often that is follows from the frequencies as if neurons were independent, which errs
towards too rarely, since real ones open together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import ModelConfig
from ..hardware import Machine
from .activity import Activity, Array
from .sizes import Sizes

ATTENTION_LAUNCHES = 5  # norm and qkv, rotary embedding, attention and its join, output projection: docs/gpu.md
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
        if mode == "dense":
            return 2 * launch + float(self.gpu_stream(3 * neurons))
        if mode == "exact":
            return 2 * launch + float(self.gpu_stream(neurons) + self.gpu_gather(own.rows[-1]))
        return 2 * launch + predictor / self.machine.gpu_stream + float(self.gpu_gather(own.named[-1] + own.rows[-1]))

    def shared_ffn(self, mode: str, own: Activity, predictor: int, gate: Array, hot: Array) -> Array:
        """An FFN that both share, for cuts [options] each, not both of which are all neurons."""
        machine, neurons, launch = self.machine, len(own.rows) - 1, self.machine.gpu_launch_s
        there = machine.sync_s + 4 * self.config.hidden / machine.to_cpu
        back = machine.sync_s + 4 * self.config.hidden / machine.to_gpu + launch
        g, h = gate.astype(np.int64), hot.astype(np.int64)
        rows_hot, rows_all = own.rows[h], own.rows[-1]
        if mode == "dense":
            gpu = 2 * launch * (h > 0) + self.gpu_stream(3 * hot)
            return np.maximum(gpu, there + machine.cpu_call_s + self.cpu_stream(3 * (neurons - hot)) + back)
        if mode == "exact":
            selected = launch * (g > h) + self.gpu_stream(gate - hot)
            listed = np.where(g > h, selected + machine.sync_s + 8 * (gate - hot) / machine.to_cpu, 0.0)
            cold = self.cpu_stream(neurons - gate) + self.cpu_gather(rows_all - own.rows[g])
            alone = there + np.where(g < neurons, machine.cpu_call_s + cold, 0.0)
            asked = np.where(g > h, machine.cpu_call_s + self.cpu_gather(own.rows[g] - rows_hot), 0.0)
            gpu = selected + 2 * launch * (h > 0) + self.gpu_stream(hot) + self.gpu_gather(rows_hot)
        else:
            selected = np.asarray(launch + predictor / machine.gpu_stream)
            listed = selected + machine.sync_s + 4 * neurons / machine.to_cpu
            alone = np.full(len(h), there)
            asked = machine.cpu_call_s + self.cpu_gather(own.named[-1] - own.named[h] + rows_all - rows_hot)
            gpu = selected + 2 * launch * (h > 0) + self.gpu_gather(own.named[h] + rows_hot)
        split = np.maximum(gpu, np.maximum(alone, listed) + asked + back)
        nothing = np.where((g == neurons) | (mode == "predicted"), np.exp(own.log_closed[-1] - own.log_closed[h]), 0.0)
        return nothing * (np.maximum(gpu, listed) + launch) + (1 - nothing) * split

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
