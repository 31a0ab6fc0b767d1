"""Decoding on this GPU and its CPU within half of what the weights take: the placed plan and the layer split, exact.

Both decode the same synthetic weights in turns, each from where it places them, timed by the host until a token is
there. The simulator predicts both for the machine as it was measured in the same process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prosparse.config import ModelConfig
from prosparse.engine.divided import divide
from prosparse.engine.graph import MakeStep, StepPool
from prosparse.engine.load import assemble, set_threads
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity, bytes_per_token, cold_stats
from prosparse.engine.tallies import parts_of
from prosparse.errors import MachineError
from prosparse.hardware import Machine
from prosparse.hardware.measure import gpu_memory, load_libraries, measure_machine
from prosparse.kernels import cpu
from prosparse.placement.activity import synthetic_profile
from prosparse.placement.explain import bound_s
from prosparse.placement.place import Case
from prosparse.placement.simulate import simulate
from prosparse.plan import Plan, fingerprint
from prosparse.weights import ModelWeights
from prosparse.weights.synthetic import settle, walk, weight_bytes

from ..check import FLIPS, require_close
from ..clock import Timing, interleave
from ..hybrid import plans_of, rounded
from ..row import make_row, measured
from .halves import Halves, reserved, synthesize
from .subjects import SPARSITY, Setting

START, CONTEXT = 512, 1024  # tokens of the prompt, and the room of the cache
TURN, LEAD = 4, 1  # tokens of a turn that are timed, and one before them that brings caches and threads back
TIMED_S = 12.0  # of both plans together
SIMULATED = 16  # tokens
PLACED, SPLIT = "placed", "layer split"
BASELINE = "layer split of the same engine in the same mode, memory and run"


def hybrid(
    setting: Setting, shape: str, config: ModelConfig, fmt: str, make_step: MakeStep | None = None
) -> Mapping[str, Callable[[], None]]:
    """Nothing without the C++ extension, and a line that says so; `make_step` is of the engine's pool of steps."""
    if not cpu.available():
        setting.said("hybrid is left out: the C++ extension is not built here, and half of a token is the CPU's")
        return {}
    return {f"hybrid {shape} {fmt}": partial(_compare, setting, shape, config, fmt, make_step)}


def budget_of(case: Case) -> int:
    """Bytes of GPU memory for everything: half of the weights'."""
    return weight_bytes(case.config, case.weights) // 2


def machine_here() -> Machine:
    """This machine, measured now, with the context that a model needs."""
    load_libraries()
    return measure_machine()


class Decoding:
    """A plan at work on one sequence.

    Args:
        setting: where.
        plan, halves, tensors: who computes what, and the weights.
        config: of the model.
        prompt: [tokens] int64.
        context: room of the cache, tokens.
        make_step: see `hybrid`.

    Attributes:
        held: bytes of the GPU that it has taken so far, and of the device's context.
    """

    def __init__(
        self, setting: Setting, plan: Plan, halves: Halves, tensors: ModelWeights, config: ModelConfig,
        prompt: Tensor, context: int, make_step: MakeStep | None,
    ) -> None:  # fmt: skip
        on_gpu, before = setting.device.type == "cuda", reserved(setting.device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(setting.device)
        self.decoder = assemble(config, tensors, plan, context, None, halves.division)
        kv_dtype = torch.float32 if tensors.lm_head.format == "fp32" else torch.bfloat16
        pool = StepPool(self.decoder, kv_dtype, make_step, setting.new_graph)
        self.session = Session(self.decoder, kv_dtype, 1, context, pool=pool)
        for _ in self.session.prefill(prompt):
            pass
        assert self.session.steps_ahead is not None, "a pool lends steps"
        self.steps, self._first, self._start, self._end = self.session.steps_ahead, prompt[-1:], len(prompt), context
        self.begin()
        self.token()
        self.held = halves.reserved, 0
        if on_gpu:
            peak = torch.cuda.max_memory_reserved(setting.device)
            self.held = halves.reserved + peak - before, gpu_memory()[1]

    def begin(self) -> None:
        """Go back to the end of the prompt."""
        self._at = self._start
        if not self.steps.begin(self._first, (0,), (self._start,)):
            raise MachineError("hybrid: no chain of graphs was made; the log says why")

    def token(self, number: int = 0) -> None:
        """The next token, until it is there; `number` is whichever, as `interleave` counts."""
        if self._at == self._end:
            self.begin()
        self.steps.launch()
        self.steps.read(self._at - self._start)
        self._at += 1
        self.session.steps += 1
        self.session.decode_tokens += 1
        self.session.positions_read += self._at

    def take_cache(self, other: Decoding) -> None:
        """Keys and values of the prompt as another plan computed them, so that both then read the same."""
        with torch.inference_mode():
            for layer in range(self.decoder.config.layers):
                theirs = other.session.cache.up_to(layer, 0, self._start)
                for own, source in zip(self.session.cache.up_to(layer, 0, self._start), theirs, strict=True):
                    own.copy_(source)

    def count_anew(self) -> None:
        """From the end of the prompt on."""
        self.begin()
        with torch.inference_mode():
            for part in parts_of(self.steps.tally):
                part.zero_()
        self.session.steps = self.session.decode_tokens = self.session.positions_read = 0


def _compare(setting: Setting, shape: str, config: ModelConfig, fmt: str, make_step: MakeStep | None) -> None:
    set_threads(None)
    sparsity, context = SPARSITY.get(shape, 0.88), min(CONTEXT, config.max_position)
    activity, profile = settle(config, sparsity), synthetic_profile(config, fingerprint(config), sparsity)
    case = Case.of(config, profile, machine_here(), ["exact"] * config.layers, fmt, fmt, context, None)
    budget = min(budget_of(case), case.machine.gpu_bytes)
    plans = dict(zip((PLACED, SPLIT), plans_of(case, budget), strict=True))
    for name, plan in plans.items():
        setting.said(f"{shape}, {name}: {plan.reason}")
        if not any(layer.split is not None and layer.split.attention for layer in plan.layers):
            raise MachineError(f"hybrid: {name}: {plan.reason}; there is nothing to measure")
    halves = {name: Halves(config, fmt, divide(plan, config, profile, setting.device)) for name, plan in plans.items()}
    tensors = synthesize(config, fmt, activity, list(halves.values()))
    prompt = walk(config.vocab, min(START, context // 2))
    subjects = {
        name: Decoding(setting, plan, halves[name], own, config, prompt, context, make_step)
        for (name, plan), own in zip(plans.items(), tensors, strict=True)
    }
    _check_alike(subjects, config)
    timings = _timed(setting, subjects)
    for name, subject in subjects.items():
        labels = {"shape": shape, "synthetic": activity.knobs.as_dict()}
        setting.write_here(_row(case, budget, plans[name], subject, timings, name, labels))
    for name, subject in subjects.items():
        check_held(name, subject.held, budget)


def check_held(name: str, held: tuple[int, int], budget: int) -> None:
    """Raise MachineError where memory that PyTorch has reserved, and the device's context, exceed a budget; bytes."""
    if sum(held) > budget:
        raise MachineError(
            f"hybrid: {name} has reserved {held[0] / 1e9:.2f} GB beside a context of {held[1] / 1e9:.2f} GB, which is "
            f"more than the budget of {budget / 1e9:.2f} GB"
        )


def _check_alike(subjects: Mapping[str, Decoding], config: ModelConfig) -> None:
    placed, split = subjects[PLACED], subjects[SPLIT]
    split.take_cache(placed)
    for subject in subjects.values():
        subject.count_anew()
        subject.token()
    logits = [subject.steps.logits.float().cpu() for subject in (placed, split)]
    require_close("a token of the placed plan", *logits, config.hidden, FLIPS)
    for subject in subjects.values():
        subject.count_anew()


def _timed(setting: Setting, subjects: Mapping[str, Decoding]) -> dict[str, Timing]:
    def probe(number: int) -> None:
        setting.probed()
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)

    calls = {name: subject.token for name, subject in subjects.items()}
    return interleave({**calls, "probe": probe}, setting.rounds, budget_s=TIMED_S, turn=TURN, lead=LEAD)


def _row(
    case: Case, budget: int, plan: Plan, subject: Decoding, timings: dict[str, Timing], name: str,
    labels: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    config, session, us, bound = case.config, subject.session, timings[name].median, bound_s(case, budget)
    found = simulate(config, plan, case.profile, case.machine, tokens=SIMULATED)
    zeros = activation_sparsity(session, config.neurons)
    assert plan.placement is not None and zeros is not None
    return make_row(
        subject="decode",
        part=name,
        layers=config.layers,
        mode="exact",
        weights=case.weights,
        device="cuda",
        context=case.context,
        activation_sparsity=round(zeros["mean"], 4),
        tokens_per_s=round(1e6 / us, 2),
        tpot_ms=round(us / 1e3, 3),
        bytes=bytes_per_token(session, subject.decoder),
        floor_us=round(bound * 1e6, 1),
        floor_tokens_per_s=round(1 / bound, 2),
        fraction_of_floor=round(bound * 1e6 / timings[name].p10, 4),
        simulated={
            "tokens_per_s": round(found.tokens_per_s, 2),
            "expected_tokens_per_s": round(plan.placement.tokens_per_s, 2),
            "bound_tokens_per_s": round(1 / bound, 2),
            "reason": plan.reason,
            **rounded(found),
            "machine": dataclasses.asdict(case.machine),
        },
        loading={
            "budget": budget,
            "planned_bytes": plan.placement.gpu_bytes,
            "reserved_bytes": subject.held[0],
            "context_bytes": subject.held[1],
            "cold": cold_stats(session, subject.decoder),
        },
        repeat=1,
        note=f"chain of graphs, {sum(subject.held) / 1e9:.2f} of {budget / 1e9:.2f} GB",
        **measured(timings, name, SPLIT, BASELINE),
        **labels,
    )
