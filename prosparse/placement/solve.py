"""The solver: which option of each layer, so that a token takes the least time within a budget.

Layers begin with the option of fewest bytes and take steps along their hulls, most seconds saved per byte first, over
all layers; then one layer takes what is left of the budget, or pairs of layers exchange bytes while that saves time.
This is done for every number of layers on the CPU and both places of lm_head that a bound does not rule out.

A larger budget never gives a slower answer: the answers to smaller ones, on a grid of budgets that depends on the model
alone, are candidates too, as long as the bound says that they can win.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .activity import Array
from .problem import Choice, Options, Problem, Whole

GRID = 4096  # budgets between the least that is of use and the whole model on the GPU
PASSES = 8  # of exchanges between all pairs of layers
ROUNDING = 1e-9  # as a share of a time: less is no gain


@dataclass(frozen=True, eq=False)
class _Family:
    """All plans with the same first layers on the CPU and the same place of lm_head, along the greedy path.

    Args:
        on_cpu, head: what they have in common.
        nbytes, seconds: after each step along the path, [steps + 1].
        layers, options: of each step: which layer went on to which option.
    """

    on_cpu: int
    head: bool
    nbytes: Whole
    seconds: Array
    layers: Whole
    options: Whole

    def bound(self, budget: int) -> float:
        """No plan of the family within the budget is faster: the path, with a part of its next step."""
        at = int(np.searchsorted(self.nbytes, budget, side="right")) - 1
        if at < 0:
            return float("inf")
        if at == len(self.nbytes) - 1:
            return float(self.seconds[-1])
        part = (budget - self.nbytes[at]) / (self.nbytes[at + 1] - self.nbytes[at])
        return float(self.seconds[at] + part * (self.seconds[at + 1] - self.seconds[at]))

    def picks(self, budget: int, layers: int) -> list[int]:
        """The option of each layer, those on the CPU left out, after the last step within the budget."""
        found = [0] * layers
        taken = int(np.searchsorted(self.nbytes, budget, side="right")) - 1
        for layer, option in zip(self.layers[:taken].tolist(), self.options[:taken].tolist(), strict=True):
            found[layer] = option
        return found[self.on_cpu :]


def solve(problem: Problem, budget: int) -> Choice:
    """The fastest choice found within a budget, bytes; all layers on the CPU where nothing is faster."""
    on_cpu = Choice(len(problem.layers), False, ())
    best, best_s = on_cpu, problem.seconds(on_cpu)
    families = list(_families(problem))
    for candidate in _whole_layers(problem, budget):
        if (seconds := problem.seconds(candidate)) < best_s:
            best, best_s = candidate, seconds
    for family in families:
        if family.bound(budget) < best_s * (1 - ROUNDING):
            candidate = _one_more(problem, family, budget)
            if (seconds := problem.seconds(candidate)) < best_s:
                best, best_s = candidate, seconds
    least, most = min(int(each.nbytes[0]) for each in families), max(int(each.nbytes[-1]) for each in families)
    step = max(1, (most - least) // GRID)
    for within in range(least + (budget - least) // step * step, least - 1, -step):
        ranked = sorted(
            (bound, at) for at, each in enumerate(families) if (bound := each.bound(within)) < best_s * (1 - ROUNDING)
        )
        if not ranked:
            break
        for bound, at in ranked:
            if bound < best_s * (1 - ROUNDING):
                candidate = _improved(problem, families[at], within)
                if (seconds := problem.seconds(candidate)) < best_s:
                    best, best_s = candidate, seconds
    return best


def layer_split(problem: Problem, budget: int) -> tuple[Problem, Choice]:
    """The fastest choice within a budget whose layers are each whole on one device, and the problem it answers."""
    unshared = problem.unshared
    candidates = [Choice(len(problem.layers), False, ()), *_whole_layers(unshared, budget)]
    return unshared, min(candidates, key=unshared.seconds)


def _whole_layers(problem: Problem, budget: int) -> Iterator[Choice]:
    whole = [len(own.nbytes) - 1 for own in problem.layers]
    for on_cpu in range(len(whole)):
        for head in (True, False):
            choice = Choice(on_cpu, head, tuple(whole[on_cpu:]))
            if problem.nbytes(choice) <= budget:
                yield choice


def _families(problem: Problem) -> Iterator[_Family]:
    steps = [_steps(layer, own) for layer, own in enumerate(problem.layers)]
    layer, option, nbytes, seconds = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    order = np.argsort(seconds / nbytes, kind="stable")  # seconds are negative: most saved per byte first
    layer, option, nbytes, seconds = layer[order], option[order], nbytes[order], seconds[order]
    for on_cpu in range(len(problem.layers)):
        for head in (True, False):
            start = Choice(on_cpu, head, (0,) * (len(problem.layers) - on_cpu))
            mine = layer >= on_cpu
            yield _Family(
                on_cpu,
                head,
                np.cumsum(np.append(problem.nbytes(start), nbytes[mine])),
                np.cumsum(np.append(problem.seconds(start), seconds[mine])),
                layer[mine],
                option[mine],
            )


def _steps(layer: int, own: Options) -> tuple[Whole, Whole, Whole, Array]:
    """Of one layer along its hull: its number, the option reached, the bytes added, the seconds added."""
    hull = own.hull
    return np.full(len(hull) - 1, layer), hull[1:], np.diff(own.nbytes[hull]), np.diff(own.seconds[hull])


def _one_more(problem: Problem, family: _Family, budget: int) -> Choice:
    """The fastest plan within a budget that is on the family's path but for one layer, which may be on any option."""
    states = int(np.searchsorted(family.nbytes, budget, side="right"))
    left, seconds = budget - family.nbytes[:states], family.seconds[:states]
    best, found = float("inf"), (0, 0, 0)
    for layer in range(family.on_cpu, len(problem.layers)):
        own, mine = problem.layers[layer], family.layers == layer
        before = np.cumsum(mine)[: states - 1]
        at = np.append(0, family.options[mine])[np.append(0, before)]  # its option in each state
        to = np.searchsorted(own.nbytes, own.nbytes[at] + left, side="right") - 1
        total = seconds - own.seconds[at] + own.seconds[to]
        state = int(np.argmin(total))
        if total[state] < best:
            best, found = float(total[state]), (state, layer, int(to[state]))
    state, layer, option = found
    picks = family.picks(int(family.nbytes[state]), len(problem.layers))
    picks[layer - family.on_cpu] = option
    return Choice(family.on_cpu, family.head, tuple(picks))


def _improved(problem: Problem, family: _Family, budget: int) -> Choice:
    """The family's plan at a budget, filled up, and with bytes exchanged between pairs of layers."""
    rest = problem.layers[family.on_cpu :]
    picks = family.picks(budget, len(problem.layers))
    left = budget - problem.nbytes(Choice(family.on_cpu, family.head, tuple(picks)))
    for _ in range(PASSES):
        left, exchanged = _fill(rest, picks, left), False
        for first, second in combinations(range(len(rest)), 2):
            one, two, now = rest[first], rest[second], (picks[first], picks[second])
            room = left + int(one.nbytes[now[0]] + two.nbytes[now[1]])
            pair = _best_pair(one, two, room, float(one.seconds[now[0]] + two.seconds[now[1]]))
            if pair is not None:
                picks[first], picks[second] = pair
                left, exchanged = room - int(one.nbytes[pair[0]] + two.nbytes[pair[1]]), True
        if not exchanged:
            break
    return Choice(family.on_cpu, family.head, tuple(picks))


def _fill(layers: Sequence[Options], picks: list[int], left: int) -> int:
    """Give the bytes that are left to the layer that saves most with them, until none does; returns what is left."""
    while True:
        reach = [own.fitting(own.nbytes[pick] + left) for own, pick in zip(layers, picks, strict=True)]
        saved = [float(own.seconds[pick] - own.seconds[to]) for own, pick, to in zip(layers, picks, reach, strict=True)]
        at = int(np.argmax(saved))
        if saved[at] <= 0:
            return left
        left -= int(layers[at].nbytes[reach[at]] - layers[at].nbytes[picks[at]])
        picks[at] = reach[at]


def _best_pair(one: Options, two: Options, room: int, seconds: float) -> tuple[int, int] | None:
    """The fastest options of two layers within so many bytes together; None where they are not faster."""
    count = one.fitting(room - int(two.nbytes[0])) + 1
    of_two = np.searchsorted(two.nbytes, room - one.nbytes[:count], side="right") - 1
    together = one.seconds[:count] + two.seconds[of_two]
    best = int(np.argmin(together))
    if together[best] >= seconds * (1 - ROUNDING):
        return None
    return best, int(of_two[best])
