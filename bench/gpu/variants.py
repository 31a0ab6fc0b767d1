"""Other sizes of tiles, warps and stages than the table's, where they are most likely to matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from prosparse.config import ModelConfig
from prosparse.kernels.tally import DOWN_ROWS, UP_ROWS, new_tally
from prosparse.kernels.triton import attend_step, down, glu_dense, glu_exact, linear, select
from prosparse.kernels.weight import bytes_per_row

from ..ffn import make_layer, shift_of
from . import ops
from .subjects import LEAST, SPARSITY, Setting, normal, right

TABLE = "the sizes of `configs`, in the same run"
ROWS = [(1, 8, 3), (2, 4, 3), (2, 8, 2), (2, 8, 4), (4, 4, 3), (4, 8, 2), (4, 8, 3), (8, 8, 2)]
PROGRAMS = [1, 2, 3, 4, 6]  # per multiprocessor
DOWNS = [(4, 4, 3), (8, 4, 2), (8, 4, 4), (16, 4, 3), (8, 8, 3)]
ATTENDS = [(16, 4, 3), (32, 4, 2), (64, 4, 2), (64, 8, 2), (64, 4, 3)]


def variants(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> Mapping[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {
        f"linear {fmt} variants": partial(_linear, setting, shape, config, fmt),
        f"ffn {fmt} variants": partial(_ffn, setting, shape, config, fmt),
    }
    if fmt == "bf16":
        for tile in ATTENDS:
            found[f"attend {tile}"] = partial(_attend, setting, shape, config, tile)
    return found


def named(tile: tuple[int, ...]) -> str:
    return "BLOCK {}, {} warps, {} stages".format(*tile)


@contextmanager
def changed(modules: tuple[Any, ...], **values: Any) -> Iterator[None]:
    """Launchers of these modules use other values than those of the table."""
    with ExitStack() as stack:
        for module in modules:
            for name, value in values.items():
                stack.enter_context(patch.object(module, name, value))
        yield


def row_variants() -> dict[str, Callable[[], Any]]:
    """Of the kernels that read whole rows."""
    modules = (linear, select, glu_dense)
    found: dict[str, Callable[[], Any]] = {
        named(tile): partial(changed, modules, row_tile=lambda weights, own=tile: own) for tile in ROWS
    }
    found["tensor cores"] = partial(changed, modules, by_rows=lambda weights, tokens: False)
    for per_sm in PROGRAMS:
        programs = partial(_programs, per_sm)
        found[f"{per_sm} programs per multiprocessor"] = partial(changed, modules, persistent=programs)
    return found


def _programs(per_sm: int, gpu: Any, weights: Any, tokens: int, rows: int, block_n: int) -> int:
    return max(1, min(per_sm * gpu.sms, -(-rows // block_n)))


def down_variants(fmt: str) -> dict[str, Callable[[], Any]]:
    kind = fmt if fmt in down.DOWN else "float"
    return {f"down {named(tile)}": partial(changed, (down,), DOWN={**down.DOWN, kind: tile}) for tile in DOWNS}


def _measure(
    setting: Setting, call: Callable[[int], object], calls: int, others: Mapping[str, Callable[[], Any]],
    check: Callable[[], None], nbytes: float, **labels: Any,
) -> None:  # fmt: skip
    """The table's own sizes and others, each recorded under its change; what does not compile is left out."""
    for name, change in others.items():
        try:
            with change():
                check()
                timings = setting.times({"other": (call, calls)})
        except Exception as error:  # too much shared memory, or a tile that the format does not allow
            setting.said(f"{labels['subject']} {labels['weights']} {name}: {type(error).__name__}")
            continue
        setting.row(timings, "other", nbytes, "none", TABLE, part=name, **labels)


def _linear(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> None:
    rows, columns = config.neurons, config.hidden
    nbytes = rows * bytes_per_row(fmt, columns)
    weights = [setting.maker(fmt).matrix(rows, columns, columns**-0.5) for _ in range(setting.copies(nbytes))]
    x, n = normal(setting, 1, columns), len(weights)
    expected = linear.launch(x, weights[0].codes)

    def check() -> None:
        right("linear", linear.launch(x, weights[0].codes), expected, columns)

    labels = {"subject": "linear", "shape": shape, "weights": fmt, "mode": "dense", "layers": 1}
    others: dict[str, Callable[[], Any]] = {"table": partial(changed, ()), **row_variants()}
    _measure(setting, lambda i: linear.launch(x, weights[i % n].codes), max(n, LEAST), others, check, nbytes, **labels)


def _ffn(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> None:
    activation, row_bytes = config.activation, bytes_per_row(fmt, config.hidden)
    how, maker = (activation.code, activation.threshold, activation.on_up), setting.maker(fmt)
    matrix = config.neurons * row_bytes
    layers = [make_layer(maker, config.neurons, config.hidden) for _ in range(setting.copies(3 * matrix))]
    x, n, tally = normal(setting, 1, config.hidden), len(layers), new_tally(setting.device)
    x[0, 0] = shift_of(config, SPARSITY.get(shape, 0.88))

    def call(i: int) -> torch.Tensor:
        return glu_exact.launch(x, *(weight.codes for weight in layers[i % n]), *how, tally)

    expected = call(0)
    read = row_bytes * float(tally[UP_ROWS] + tally[DOWN_ROWS])

    def check() -> None:
        right("glu_exact", call(0), expected, config.hidden + config.neurons, 2e-3)

    labels = {"subject": "ffn", "shape": shape, "weights": fmt, "mode": "exact", "layers": 1}
    others: dict[str, Callable[[], Any]] = {"table": partial(changed, ()), **row_variants(), **down_variants(fmt)}
    _measure(setting, call, max(n, LEAST), others, check, matrix + read, **labels)


def _attend(setting: Setting, shape: str, config: ModelConfig, tile: tuple[int, int, int]) -> None:
    with changed((attend_step,), ATTEND=tile):
        ops.attend(setting, shape, config, ops.CONTEXTS[0], named(tile))
