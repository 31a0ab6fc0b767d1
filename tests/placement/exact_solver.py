"""The exact answer to a small problem, by HiGHS: what the greedy solver is held to."""

from __future__ import annotations

import numpy as np

from prosparse.placement.problem import Problem


def exact_seconds(problem: Problem, budget: int) -> float:
    """Seconds of the best choice there is.

    Variables: how many first layers are on the CPU (one of them is 1), lm_head on the GPU, and each layer's options.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, ends = problem.layers, problem.ends
    count = len(layers)
    first = [count + 2 + sum(len(own.nbytes) for own in layers[:layer]) for layer in range(count + 1)]
    cost, held, head = np.zeros(first[-1]), np.zeros(first[-1]), count + 1
    for on_cpu in range(count + 1):
        alone = on_cpu == count
        cost[on_cpu] = sum(own.cpu_s for own in layers[:on_cpu])
        cost[on_cpu] += ends.alone_s if alone else ends.crossing_s + ends.cpu_s
    cost[head], held[head] = ends.gpu_s - ends.cpu_s, ends.nbytes
    rows, right = [], []
    one = np.zeros(first[-1])
    one[: count + 1] = 1
    rows.append(one)
    right.append((1, 1))
    for layer, own in enumerate(layers):
        cost[first[layer] : first[layer + 1]], held[first[layer] : first[layer + 1]] = own.seconds, own.nbytes
        row = np.zeros(first[-1])
        row[first[layer] : first[layer + 1]] = 1
        row[: layer + 1] = -1  # a layer has an option where it is not among those on the CPU
        rows.append(row)
        right.append((0, 0))
    at_most = np.zeros(first[-1])
    at_most[head] = at_most[count] = 1  # where every layer is on the CPU, so is lm_head
    rows.append(at_most)
    right.append((0, 1))
    room = max(1, budget - problem.fixed)  # for nothing but what varies, or a tolerance of 1e-6 would be many rows
    rows.append(held / room)
    right.append((-np.inf, 1))
    low, high = zip(*right, strict=True)
    found = milp(
        cost * 1e3,
        integrality=np.ones(first[-1]),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.array(rows), low, high),
        options={"mip_rel_gap": 1e-6},
    )
    assert found.status == 0, found.message
    return float(found.fun) / 1e3
