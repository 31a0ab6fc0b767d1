"""Measures the machine that this runs on: CPU and GPU by the kernels that decode with them, the link by copies.

p10 of many short calls, as everywhere: neighbours only ever make a call slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from prosparse.kernels.activation import Activation
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.glu_active import glu_active
from prosparse.kernels.linear import linear
from prosparse.kernels.tally import new_tally
from prosparse.kernels.weight import Weight, in_format

from .. import machine as this
from ..errors import MachineError
from ..weights.memory import Arena
from .description import Machine

HELD = 192 << 20  # bytes of weights gone through: more than a guest gets of a cache that a server shares, or a GPU has
BLOCK = 16 << 20  # bytes of a call
LONG, SHORT = 4096, 512  # columns of a 7B model's rows, and of rows so short that their number counts
ACTIVE = 0.1  # of the rows, where they are scattered
CALLS, WARM_UP = 40, 3
FORMATS = ("bf16", "int8", "int4")  # the first is what the others are compared with
LARGE, SMALL = 64 << 20, 16 << 10  # bytes copied over the link: for its speed, and for its latency
MOST_CONTEXT = 600 << 20  # bytes: what is missing beyond that is other processes'
Call = Callable[[int], object]  # with the number of the call
NODES = 200  # of the graph that tells what a launch costs


def measure_machine() -> Machine:
    """The machine as it is now; takes some seconds and half a gigabyte of memory.

    Raises:
        MachineError: there is no GPU, so there is nothing to place.
    """
    if not torch.cuda.is_available():
        raise MachineError(
            "machine: no usable GPU was found, so there is nothing to measure or to place; to plan for another machine "
            "pass --machine with a preset (8gb-pcie4, ..) or a file that describes it"
        )
    name = f"{torch.cuda.get_device_name()}, {this.processor_name()}"
    source = f"measured with {torch.get_num_threads()} threads"
    return Machine(name=name, **measure_gpu(), **measure_cpu(), source=source)


def measure_cpu() -> dict[str, Any]:
    """The fields of a `Machine` that its CPU decides."""
    device = torch.device("cpu")
    stream, formats, gather, row_s, call_s = _kernels(device)
    return {
        "cpu_stream": stream,
        "cpu_formats": formats,
        "cpu_gather": gather,
        "cpu_row_s": row_s,
        "cpu_call_s": call_s,
    }


def measure_gpu() -> dict[str, Any]:
    """The fields of a `Machine` that its GPU and the link to it decide."""
    device = torch.device("cuda")
    stream, formats, gather, _, _ = _kernels(device)
    to_gpu, to_cpu, sync_s = _link(device)
    available, context = gpu_memory()
    return {
        "gpu_bytes": available,
        "context_bytes": context,
        "gpu_stream": stream,
        "gpu_formats": formats,
        "gpu_gather": gather,
        "gpu_launch_s": _launch_s(device),
        "to_gpu": to_gpu,
        "to_cpu": to_cpu,
        "sync_s": sync_s,
    }


def gpu_memory() -> tuple[int, int]:
    """Bytes of GPU memory that this process may take in all, and what its context takes of them."""
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    context = min(max(total - free - reserved, 0), MOST_CONTEXT)
    return free + reserved + context, context


def load_libraries() -> None:
    """Let the GPU's context grow to what it is while a model runs: libraries and kernels load on first use."""
    device = torch.device("cuda")
    _tiny(device)(0)
    square = torch.ones(64, 64, dtype=torch.bfloat16, device=device)
    square @ square
    torch.cuda.synchronize()


def _kernels(device: torch.device) -> tuple[float, dict[str, float], float, float, float]:
    """Of a device, in turns: bytes per second of `linear`, the share of them that packed formats reach, bytes per
    second of long scattered rows, seconds that a row costs beside its bytes, and seconds of a call that does little.
    """
    streams = [_stream(fmt, device) for fmt in FORMATS]
    rows = [_gather(columns, device) for columns in (LONG, SHORT)]
    times = _times([call for _, call in [*streams, *rows]] + [_tiny(device)], device)
    first, *packed = [nbytes / seconds for (nbytes, _), seconds in zip(streams, times[: len(FORMATS)], strict=True)]
    (long_bytes, _), (short_bytes, _) = rows
    read = [int(ACTIVE * (HELD // (2 * nbytes))) * 2 for nbytes, _ in rows]
    long_s, short_s = (seconds / count for seconds, count in zip(times[len(FORMATS) : -1], read, strict=True))
    speed, row_s = long_bytes / long_s, 0.0
    if long_s > short_s:  # else there is nothing to tell apart in the noise
        speed = (long_bytes - short_bytes) / (long_s - short_s)
        row_s = max(0.0, short_s - short_bytes / speed)
    shares = {fmt: speed_of / first for fmt, speed_of in zip(FORMATS[1:], packed, strict=True)}
    return first, shares, speed, row_s, times[-1]


def _stream(fmt: str, device: torch.device) -> tuple[int, Call]:
    """Bytes that a call of `linear` reads, and the call, over weights that no cache holds."""
    weights, x = _weights(fmt, LONG, device), torch.randn(1, LONG, device=device)
    if device.type == "cuda":  # whose cache is large, and a call short
        return weights.nbytes, lambda number: linear(x, weights)
    step = BLOCK // weights.row_bytes
    blocks = [_slice(weights, start, step) for start in range(0, weights.shape[0] - step + 1, step)]
    return blocks[0].nbytes, lambda number: linear(x, blocks[number % len(blocks)])


def _gather(columns: int, device: torch.device) -> tuple[int, Call]:
    """Bytes of a row, and a call of `glu_active` that reads up and down of a tenth of the neurons."""
    weights = _weights("bf16", columns, device)
    neurons = HELD // (2 * weights.row_bytes)
    up, down, count = _slice(weights, 0, neurons), _slice(weights, neurons, neurons), int(ACTIVE * neurons)
    x, tally, relu = torch.randn(1, columns, device=device), new_tally(device), Activation("relu")
    held = torch.full((1,), count, dtype=torch.int32, device=device)
    value = torch.ones(1, count, device=device)
    chosen = [torch.randperm(neurons)[:count].sort().values.int().to(device) for _ in range(8)]
    lists = [ActiveNeurons(index, held, value) for index in chosen]
    return weights.row_bytes, lambda number: glu_active(x, up, down, lists[number % 8], relu, tally)


def _tiny(device: torch.device) -> Call:
    weight, x = Weight(torch.ones(64, 64, dtype=torch.bfloat16, device=device)), torch.ones(1, 64, device=device)
    return lambda number: linear(x, weight)


def _launch_s(device: torch.device) -> float:
    """Seconds of a node of a captured graph that does next to nothing."""
    tiny, graph = _tiny(device), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # as capturing asks for: what is compiled or allocated is so before
        tiny(0)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for number in range(NODES):
            tiny(number)
    return _time(lambda number: graph.replay(), device) / NODES


def _link(device: torch.device) -> tuple[float, float, float]:
    """Bytes per second to the GPU and to the CPU, and seconds of one way of a small copy that is waited for."""
    here, there = (
        torch.empty(LARGE, dtype=torch.uint8, pin_memory=True),
        torch.empty(LARGE, dtype=torch.uint8).to(device),
    )
    up = _time(lambda number: there.copy_(here, non_blocking=True), device)
    down = _time(lambda number: here.copy_(there, non_blocking=True), device)
    small_here, small_there, arrived = here[:SMALL], there[:SMALL], torch.cuda.Event()

    def round_trip(number: int) -> None:
        small_here.copy_(small_there, non_blocking=True)
        arrived.record()
        arrived.synchronize()
        small_there.copy_(small_here, non_blocking=True)
        arrived.record()
        arrived.synchronize()

    return LARGE / up, LARGE / down, _time(round_trip, torch.device("cpu")) / 2


def _weights(fmt: str, columns: int, device: torch.device) -> Weight:
    """A matrix of `HELD` bytes, every page of it written."""
    rows = BLOCK // (2 * columns)
    block = in_format(torch.full((rows, columns), 0.01), fmt)
    copies = HELD // block.nbytes
    shape = (copies * rows, *block.codes.shape[1:])
    if device.type == "cpu":
        codes = Arena(copies * block.nbytes).empty(shape, block.codes.dtype)
    else:
        codes = torch.empty(shape, dtype=block.codes.dtype, device=device)
    for part in codes.split(rows):
        part.copy_(block.codes)
    return Weight(codes, block.packed_columns)


def _slice(weight: Weight, start: int, rows: int) -> Weight:
    return Weight(weight.codes[start : start + rows], weight.packed_columns)


def _time(call: Call, device: torch.device) -> float:
    """Seconds of a call; see `_times`."""
    return _times([call], device)[0]


def _times(calls: Sequence[Call], device: torch.device) -> list[float]:
    """Seconds of each call, p10, made in turns; on a GPU until it has finished, by its own clock."""
    for number in range(WARM_UP):
        for call in calls:
            call(number)
    samples = _on_gpu(calls) if device.type == "cuda" else _on_cpu(calls)
    return [float(seconds) for seconds in np.percentile(samples, 10, axis=0)]


def _on_cpu(calls: Sequence[Call]) -> list[list[float]]:
    samples = []
    for number in range(WARM_UP, WARM_UP + CALLS):
        times = [time.perf_counter_ns()]
        for call in calls:
            call(number)
            times.append(time.perf_counter_ns())
        samples.append([(end - start) / 1e9 for start, end in pairwise(times)])
    return samples


def _on_gpu(calls: Sequence[Call]) -> list[list[float]]:
    events = []
    for number in range(WARM_UP, WARM_UP + CALLS):
        events.append([torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)])
        events[-1][0].record()
        for call, done in zip(calls, events[-1][1:], strict=True):
            call(number)
            done.record()
    torch.cuda.synchronize()
    return [[a.elapsed_time(b) / 1e3 for a, b in pairwise(own)] for own in events]
