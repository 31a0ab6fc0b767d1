"""Subject "load": how long a folder takes to load, how much memory that takes, and how long the first token does.

Folders of one shape, in bf16 and converted, are loaded by child processes, so that no measurement finds what another
one left in memory. The time of a load is compared with that of reading the same files again, which are in the page
cache both times. Memory is anonymous, watched in a child that is not timed, and is what loading and answering add to a
process that holds the libraries already; it is compared with weights and cache for the whole context. Quantising while
a float folder is loaded is timed as well, in bytes of the file.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy
import torch

from prosparse.config import ModelConfig
from prosparse.config.shapes import shape as shape_named
from prosparse.engine import Engine, load
from prosparse.engine.tokenizer import Tokenizer
from prosparse.errors import UserError
from prosparse.weights import convert
from prosparse.weights.formats import PACKED
from prosparse.weights.synthetic import write_synthetic

from .clock import Timing
from .progress import Progress, stage
from .row import Row, make_row

PROMPTS = (16, 512)  # tokens
CONTEXT = 1024  # tokens
BLOCK_BYTES = 8 * 2**20  # read at a time
WATCH_S = 0.002
Facts = dict[str, Any]


def compare_load(
    shape: str = "minicpm-s-1b",
    sparsity: float = 0.88,
    formats: Sequence[str] = ("bf16", "int8", "int4"),
    layers: int | None = None,
    repeat: int = 5,
    progress: Progress | None = None,
) -> list[Row]:
    """Load folders of a synthetic model, one for each format, in mode exact.

    Args:
        shape: a name of `prosparse.config.shapes`.
        sparsity: activation sparsity of its neurons.
        formats: the first is bf16, fp16 or fp32, which the others are converted from.
        layers: only so many; None is all.
        repeat: loads of each, the formats in turns.
        progress: called with (stage, done, total).

    Returns:
        One row per format: times are those of loading, `bandwidth_gb_s` and `floor_us` those of reading the files, and
        "loading" holds the rest.

    Raises:
        UserError: no such shape or format.
        MachineError: no room for the folders where temporary files go, or too little memory.
    """
    if repeat < 1:
        raise UserError(f"bench: repeat must be at least 1, got {repeat}")
    full = shape_named(shape)
    config = dataclasses.replace(
        full, layers=min(layers or full.layers, full.layers), max_position=max(CONTEXT, full.max_position)
    )
    update = stage(progress, "loading")
    with tempfile.TemporaryDirectory(prefix="prosparse-bench-") as temporary:
        folders = [Path(temporary, fmt) for fmt in formats]
        _, knobs = write_synthetic(
            shape, config, folders[0], sparsity, formats[0], progress=stage(progress, "making weights")
        )
        for folder in folders[1:]:
            convert(folders[0], folder, folder.name, progress=stage(progress, f"converting to {folder.name}"))
        timed: list[list[Facts]] = [[] for _ in formats]
        for number in range(repeat):
            for found, folder in zip(timed, folders, strict=True):
                found.append(_in_child(_timed, folder))
                if folder.name in PACKED:
                    found[-1] |= _in_child(_quantised, folders[0], folder.name)
            if update is not None:
                update(number + 1, repeat)
        watched = [_in_child(_watched, folder) for folder in folders]
    note = f"{config.layers} of {full.layers} layers" if config.layers < full.layers else None
    labels = {"shape": shape, "synthetic": knobs.as_dict(), "note": note}
    return [_row(*each, config, labels) for each in zip(formats, timed, watched, strict=True)]


def _row(fmt: str, timed: list[Facts], watched: Facts, config: ModelConfig, labels: dict[str, Any]) -> Row:
    def of(key: str) -> Timing:
        return Timing(numpy.array([facts[key] for facts in timed]) * 1e6)

    loading, reading = of("load_s"), of("read_s")
    nbytes = watched["file_bytes"]
    first = {f"ttft_{n}_ms": round(of(f"ttft_{n}_s").median / 1e3, 1) for n in PROMPTS}
    rates = [facts["quantised_gb_s"] for facts in timed if "quantised_gb_s" in facts]
    ratio = watched["peak_bytes"] / (watched["weight_bytes"] + watched["cache_bytes"])
    return make_row(
        subject="load",
        layers=config.layers,
        mode="exact",
        weights=fmt,
        context=CONTEXT,
        threads=watched["threads"],
        bytes=nbytes,
        bandwidth_gb_s=round(nbytes / reading.p10 / 1e3, 2),
        floor_us=round(reading.p10, 1),
        fraction_of_floor=round(reading.p10 / loading.p10, 4),
        repeat=len(timed),
        loading={
            "quantised_gb_s": round(float(numpy.median(rates)), 2) if rates else None,
            "times_read": round(loading.median / reading.median, 2),
            "read_ms": round(reading.median / 1e3, 1),
            "load_ms": round(loading.median / 1e3, 1),
            **first,
            **{key: watched[key] for key in ("weight_bytes", "cache_bytes", "peak_bytes", "libraries_bytes")},
            "times_weights_and_cache": round(ratio, 3),
        },
        calls=len(timed),
        median_us=round(loading.median, 1),
        p10_us=round(loading.p10, 1),
        p90_us=round(loading.p90, 1),
        **labels,
    )


def _in_child(measure: Callable[..., Facts], folder: Path, *arguments: str) -> Facts:
    """A fresh process's measurement."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, folder, torch.get_num_threads(), *arguments).result()


def _timed(folder: Path, threads: int) -> Facts:
    _warm_up(folder)
    _read(folder)
    start = time.perf_counter()
    _read(folder)
    read_s = time.perf_counter() - start
    start = time.perf_counter()
    engine = load(folder, "exact", threads=threads, context=CONTEXT)
    facts: Facts = {"read_s": read_s, "load_s": time.perf_counter() - start}
    for n in PROMPTS:
        facts[f"ttft_{n}_s"] = _first_token_s(engine, n)
    return facts


def _quantised(folder: Path, threads: int, fmt: str) -> Facts:
    """How fast a float folder is rounded while it is loaded."""
    _warm_up(folder)
    _read(folder)
    start = time.perf_counter()
    load(folder, "exact", fmt, threads=threads, context=CONTEXT)
    return {"quantised_gb_s": _file_bytes(folder) / (time.perf_counter() - start) / 1e9}


def _watched(folder: Path, threads: int) -> Facts:
    _warm_up(folder)
    before = _anonymous_bytes()
    with _peak() as peak:
        engine = load(folder, "exact", threads=threads, context=CONTEXT)
        for n in PROMPTS:
            _first_token_s(engine, n)
    config, head = engine.config, engine.decoder.lm_head
    matrices = [head] if engine.decoder.embed is head else [head, engine.decoder.embed]
    for attention, ffn in engine.decoder.blocks:
        matrices += [attention.qkv, attention.o, *(getattr(ffn, name) for name in ("gate", "up", "down"))]
    position = 2 * config.layers * config.kv_heads * config.head_dim * engine.kv_dtype.itemsize
    return {
        "file_bytes": _file_bytes(folder),
        "weight_bytes": sum(matrix.nbytes for matrix in matrices),
        "cache_bytes": CONTEXT * position,
        "peak_bytes": peak() - before,
        "libraries_bytes": before,
        "threads": torch.get_num_threads(),
    }


def _warm_up(folder: Path) -> None:
    """Opening a tokenizer imports what belongs to no model."""
    Tokenizer.load(folder, ModelConfig.from_hf(folder))


def _file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _read(folder: Path) -> None:
    block = bytearray(BLOCK_BYTES)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def _first_token_s(engine: Engine, n: int) -> float:
    ids = [1 + number % (engine.config.vocab - 1) for number in range(n)]
    engine.generate(ids, max_new_tokens=1)
    return float(engine.stats["ttft_s"])


@contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """Watches this process's anonymous memory for as long as the block runs; then gives its peak."""
    largest, ended = _anonymous_bytes(), threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(WATCH_S):
            largest = max(largest, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: largest
    finally:
        largest = max(largest, _anonymous_bytes())
        ended.set()
        watcher.join()


def _anonymous_bytes() -> int:
    """Bytes of this process's memory that are no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")
