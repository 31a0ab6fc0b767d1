"""Whole tokens: dense and exact as one graph each and op by op, their energy, and transformers beside them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any

import torch
from torch._dynamo.utils import counters

from prosparse.config import ModelConfig
from prosparse.engine.graph import Steps
from prosparse.engine.load import assemble
from prosparse.kernels.tally import NONZERO, new_tally
from prosparse.kernels.triton.gpu import gpu_of
from prosparse.kernels.triton.overlap import can_overlap
from prosparse.model.cache import KVCache
from prosparse.model.decoder import Decoder
from prosparse.model.step import DeviceStep
from prosparse.placement import choose
from prosparse.weights.synthetic import Knobs, synthetic_weights, walk

from ..adapters import ready
from ..check import FLIPS, require_close
from ..clock import Timing
from ..modes import gated_blocks, in_mode
from .clock import in_turns
from .energy import joules
from .subjects import SPARSITY, Setting

START, CONTEXT = 512, 1024  # where timed tokens begin, and the room of the cache
TOKEN = 5  # that is timed first
TOKENS = 5  # times the rounds of an op
OVERLAP = ", overlap"  # behind the name of a mode
GRAPH = "mode dense as a graph, over the same weights in the same run"
ENERGY_S = 1.5  # of decoding while the energy counter of the board, which moves every tenth of a second, runs on


def tokens(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> Mapping[str, Callable[[], None]]:
    return {f"tokens {fmt}": functools.partial(_ours, setting, shape, config, fmt)}


def beside(
    compiled: bool, setting: Setting, shape: str, config: ModelConfig, fmt: str
) -> Mapping[str, Callable[[], None]]:
    """transformers, eager or compiled, beside our dense graph."""
    how = "compile" if compiled else "eager"
    return {f"transformers {how} {fmt}": functools.partial(_theirs, setting, shape, config, fmt, compiled)}


class Subject:
    """A decoder with a cache that is full up to `START` and steps over it."""

    def __init__(self, setting: Setting, decoder: Decoder, overlap: bool = False) -> None:
        config, self.decoder = decoder.config, decoder
        dtype = torch.float32 if decoder.lm_head.format == "fp32" else torch.bfloat16
        self.cache = KVCache(config, 1, decoder.context, dtype, decoder.device)
        self.start = min(START, decoder.context // 2)
        for part in (self.cache.keys, self.cache.values):
            part.normal_(generator=torch.Generator(decoder.device).manual_seed(0))
        self.steps = Steps(decoder, self.cache, functools.partial(DeviceStep, overlap=overlap), setting.new_graph)
        self.tally = new_tally(decoder.device, config.layers)
        self.at = self.calls = self.positions = 0

    def begin(self) -> None:
        """Go back to the first timed token."""
        self.at = self.start
        if not self.steps.begin(torch.tensor([TOKEN]), (0,), (self.start,)):
            raise RuntimeError("no graph was made; the log says why")

    def graph(self) -> None:
        """One token."""
        if self.at == self.decoder.context:
            self.begin()
        self.steps.launch()
        self.at += 1
        self.calls += 1
        self.positions += self.at

    def count_anew(self) -> None:
        """From the first timed token on."""
        self.begin()
        self.steps.tally.zero_()
        self.calls = self.positions = 0

    def op_by_op(self, token: torch.Tensor | int = TOKEN) -> torch.Tensor:
        """A token at the start again, launched from the host."""
        ids = torch.as_tensor(token, device=self.decoder.device).view(1, 1)
        hidden = self.decoder.decode(ids, (0,), (self.start,), self.cache, self.tally)
        return self.decoder.logits(hidden)

    def read(self, done: list[list[float]], positions: float) -> float:
        """Bytes of a token whose FFNs did this, with so many positions in the cache."""
        found = self.decoder.lm_head.nbytes + self.cached(positions)
        for (attention, ffn), own in zip(gated_blocks(self.decoder), done, strict=True):
            found += attention.qkv.nbytes + attention.o.nbytes + ffn.bytes_read(1, own)  # type: ignore[arg-type]
        return found

    def cached(self, positions: float) -> float:
        """Bytes of the cache that a token reads."""
        return self.cache.position_bytes * positions


def _model(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> tuple[Decoder, Knobs]:
    config = dataclasses.replace(config, max_position=max(config.max_position, CONTEXT))
    tensors, knobs = synthetic_weights(config, fmt, SPARSITY.get(shape, 0.88), device=setting.device)
    return assemble(config, tensors, choose(config, "dense"), min(CONTEXT, config.max_position)), knobs


def _ours(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> None:
    decoder, knobs = _model(setting, shape, config, fmt)
    ways = ("", OVERLAP) if can_overlap(gpu_of(setting.device)) else ("",)
    subjects = {
        mode + way: Subject(setting, in_mode(decoder, mode), way == OVERLAP)
        for mode in ("dense", "exact")
        for way in ways
    }
    for subject in subjects.values():
        subject.begin()
        subject.graph()
    expected = subjects["dense"].op_by_op()
    for mode, subject in subjects.items():
        require_close(f"a token of mode {mode}", subject.steps.logits.cpu(), expected.cpu(), config.hidden, FLIPS)
        subject.count_anew()
    rounds = TOKENS * setting.rounds
    recorded: dict[str, tuple[Callable[[], object], int]] = {m: (s.graph, 1) for m, s in subjects.items()}
    probed = {"probe": (setting.probed, setting.PROBES)}
    timings = in_turns(setting.clock, {**recorded, **probed}, rounds)
    done = {mode: (subject.steps.tally.double() / subject.calls).tolist() for mode, subject in subjects.items()}
    positions = {mode: subject.positions / subject.calls for mode, subject in subjects.items()}
    host = {mode: (subjects[mode].op_by_op, 1) for mode in ("dense", "exact")}
    slow = in_turns(setting.clock, {**host, **probed}, setting.rounds)
    for mode, subject in subjects.items():
        zeros = 1 - sum(own[NONZERO] for own in done[mode]) / (config.layers * config.neurons)
        labels = {
            "shape": shape, "mode": mode.removesuffix(OVERLAP), "weights": fmt, "layers": config.layers,
            "synthetic": knobs.as_dict(), "activation_sparsity": round(zeros, 4), "context": decoder.context,
        }  # fmt: skip
        spent = joules(subject.graph, timings[mode].median, ENERGY_S if setting.rounds > 1 else 0.0, setting.device)
        read = subject.read(done[mode], positions[mode])
        note = "one CUDA graph a token" + (", launches overlap" if mode.endswith(OVERLAP) else "")
        write(setting, timings, mode, read, "dense", GRAPH, note=note, joules_per_token=spent, **labels)
        if mode not in slow:
            continue
        read = subject.read(done[mode], subject.start + 1)
        write(setting, slow, mode, read, "none", GRAPH, note="op by op, without a graph", **labels)


def write(
    setting: Setting, timings: dict[str, Timing], name: str, read: float, base: str, against: str, **labels: Any
) -> None:
    """The row of a token."""
    us = timings[name].median
    speed = {"tokens_per_s": round(1e6 / us, 1), "tpot_ms": round(us / 1e3, 4)}
    setting.row(timings, name, read, base, against, subject="decode", **speed, **labels)


def _theirs(setting: Setting, shape: str, config: ModelConfig, fmt: str, compiled: bool) -> None:
    from ..with_transformers import Transformers  # seconds of imports, for those who ask for it

    decoder, knobs = _model(setting, shape, config, fmt)
    ours, other = Subject(setting, decoder), Transformers(decoder, decoder.context, compiled)
    ids = walk(config.vocab, decoder.context).to(setting.device)
    decoder.prefill(ids[: ours.start], 0, 0, ours.cache)
    ready(other, ids, ours.start, 1, ours.op_by_op(ids[ours.start]))
    places = cycle(range(ours.start, decoder.context))

    def theirs() -> torch.Tensor:
        at = next(places)
        return other.decode(ids[at : at + 1], at)

    for _ in range(3):  # compiles, and then records a graph of its own
        theirs()
    skipped = sum(count for name, count in counters["inductor"].items() if "cudagraph_skips" in name)
    ours.begin()
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "dense": (ours.graph, 1),
        "theirs": (theirs, 1),
        "probe": (setting.probed, setting.PROBES),
    }
    timings = in_turns(setting.clock, calls, setting.rounds)
    labels = {
        "shape": shape, "weights": fmt, "layers": config.layers, "synthetic": knobs.as_dict(),
        "context": decoder.context, "mode": "transformers-compile" if compiled else "transformers-eager",
        "note": f"{other.note}, but without its CUDA graph" if skipped else other.note,
    }  # fmt: skip
    read = other.nbytes + ours.cached(ours.start + 1)
    write(setting, timings, "theirs", read, "dense", GRAPH, **labels)
