"""Other engines in the same run: the same function, or a row that says it is not; the file that llama.cpp is given."""

from __future__ import annotations

import ctypes
import dataclasses
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prosparse.bench import adapters, gguf, with_llama_cpp, with_transformers
from prosparse.bench.cases import CASES
from prosparse.bench.decode import compare
from prosparse.bench.modes import Run
from prosparse.bench.row import KEYS
from prosparse.bench.run import run_cases
from prosparse.config import shapes
from prosparse.engine.load import assemble
from prosparse.errors import MachineError, UnsupportedError
from prosparse.hf.accelerated import Accelerated
from prosparse.kernels.activation import Activation
from prosparse.kernels.weight import in_format
from prosparse.placement import choose
from prosparse.weights.synthetic import synthetic_weights, weight_bytes

pytestmark = pytest.mark.usefixtures("small_probe")
EAGER = Run(pp=5, tg=8, repeat=2, against=("transformers-eager",))
SIZES = {"layers": 2, "hidden": 96, "neurons": 160, "heads": 6, "kv_heads": 2, "head_dim": 16, "vocab": 288}


@pytest.fixture(params=["minicpm-s-1b", "prosparse-llama-2-7b", "relullama-7b"])
def small(request, monkeypatch):
    """A real family at sizes that take no time."""
    full = shapes.SHAPES[request.param]
    changed = {"residual_scale": 1.4 / 2**0.5} if full.family == "minicpm" else {}
    monkeypatch.setitem(shapes.SHAPES, "small", dataclasses.replace(full, **SIZES, **changed))
    return "small"


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_transformers_computes_the_same_in_the_same_run(small, weights):
    dense, exact, eager = compare(small, 0.8, weights=weights, run=EAGER)
    assert eager["mode"] == "transformers-eager" and eager["run"] == dense["run"] and tuple(eager) == KEYS
    assert eager["versions"]["transformers"] and "static cache" in eager["note"]
    assert eager["calls"] == dense["calls"] == 16 and eager["dense_ratio"] > 0
    for key in ("shape", "layers", "weights", "context", "threads", "synthetic", "baseline"):
        assert eager[key] == dense[key], key
    assert eager["bytes"] == pytest.approx(dense["bytes"], rel=0.01)
    for row in (dense, exact, eager):
        assert 0 < row["alone"]["p10_us"] <= row["alone"]["median_us"]


def test_turns_go_back_and_count_whole():
    """20 tokens are three turns of 8; the tokens before a turn and those of a run that begins anew are known ones."""
    seen: dict[str, list[int]] = {"ours": [], "theirs": [], "probe": []}
    calls = {name: list.append.__get__(numbers) for name, numbers in seen.items()}
    timings = adapters.take_turns({"ours": calls["ours"]}, {"theirs": calls["theirs"]}, calls["probe"], tokens=20)
    assert {name: timing.us.size for name, timing in timings.items()} == {
        "ours": 24, "theirs": 24, "probe": 24, "ours alone": 32, "theirs alone": 32,
    }  # fmt: skip
    alone = [0, 1, 0, 1, *range(2, 18)]
    turns = [0, 1, *(first + n for first in (2, 10, 18) for n in range(-2, 8))]
    assert seen["ours"] == seen["theirs"] == [*alone, *turns, *alone] and seen["probe"] == turns
    assert adapters.take_turns({"ours": calls["ours"]}, {}, calls["probe"], tokens=20)["ours"].us.size == 20


@pytest.mark.parametrize("kind", ["relu", "fatrelu"])
def test_transformers_runs_none_of_our_kernels(kind):
    config = dataclasses.replace(shapes.shape("tiny"), activation=Activation(kind, 0.03 if kind == "fatrelu" else 0.0))
    tensors, _ = synthetic_weights(config, "fp32", 0.8)
    theirs = with_transformers.Transformers(assemble(config, tensors, choose(config, "dense"), 32), 32, compiled=False)
    theirs.prefill(torch.arange(5))
    kinds = {type(module).__module__.split(".")[0] for module in theirs._model.modules() if "MLP" in repr(type(module))}
    assert kinds == {"transformers"} and not any(isinstance(module, Accelerated) for module in theirs._model.modules())


def test_another_function_is_refused(monkeypatch):
    real = with_transformers.Transformers.decode
    monkeypatch.setattr(with_transformers.Transformers, "decode", lambda self, *at: real(self, *at) * 1.5)
    with pytest.raises(MachineError, match="transformers eager gives other logits .* nothing was timed"):
        compare("tiny", 0.9, run=EAGER)


def test_compiled_decodes_one_graph(monkeypatch):
    """Dynamo traces it as for the C++ backend, whose compiler would take half a minute."""
    real, modes = torch.compile, []

    def compile_eagerly(function: Any, **options: Any) -> Any:
        modes.append(options)
        return real(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    rows = compare("tiny", 0.9, run=dataclasses.replace(EAGER, against=("transformers-compile",)))
    assert rows[-1]["mode"] == "transformers-compile" and rows[-1]["dense_ratio"] > 0
    assert modes == [{"dynamic": False, "fullgraph": True}]


def test_formats_that_transformers_does_not_run():
    with pytest.raises(UnsupportedError, match="transformers runs fp32, fp16, bf16, not int8"):
        compare("tiny", 0.9, weights="int8", run=EAGER)


def test_an_engine_that_is_not_installed_is_one_line(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    run = dataclasses.replace(EAGER, against=("llama-cpp",))
    with pytest.raises(UnsupportedError, match="llama-cpp-python is not installed .*; pip install llama-cpp-python"):
        compare("tiny", 0.9, run=run)
    case = {"engines-tiny": lambda progress: compare("tiny", 0.9, run=run, progress=progress)}
    assert run_cases(case) == ([], [])
    assert "engines-tiny is left out: bench: llama-cpp-python is not installed" in caplog.text
    assert all(name.split("-")[0] == "engines" for name in CASES if "llama" in name)


class FakeLlama:
    """What the adapter uses of llama-cpp-python; it reads the file and answers with the position."""

    def __init__(self, path: str, n_ctx: int, **options: Any) -> None:
        self.file, self.options, self.n_tokens = Path(path).read_bytes(), {"n_ctx": n_ctx, **options}, 0
        self.ctx = self
        self.last = (ctypes.c_float * 1000)()

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: list[int]) -> None:
        self.n_tokens += len(tokens)

    def logits(self) -> ctypes.Array[ctypes.c_float]:
        """In one place, as llama.cpp keeps them."""
        self.last[:] = [float(self.n_tokens)] * len(self.last)
        return self.last


@pytest.fixture
def fake_llama(monkeypatch):
    library = type(sys)("llama_cpp")
    library.__version__, library.Llama = "0.0-fake", FakeLlama
    library.llama_get_logits = lambda context: ctypes.cast(context.logits(), ctypes.POINTER(ctypes.c_float))
    monkeypatch.setitem(sys.modules, "llama_cpp", library)


def test_llama_cpp_gets_a_file_and_goes_back(monkeypatch, fake_llama):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    dense, _, theirs = compare("tiny", 0.9, weights="int8", run=dataclasses.replace(EAGER, against=("llama-cpp",)))
    assert theirs["weights"] == "Q8_0" and theirs["versions"]["llama-cpp-python"] == "0.0-fake"
    assert "computes SiLU" in theirs["note"] and theirs["run"] == dense["run"]
    config = shapes.shape("tiny")
    decoder = assemble(config, synthetic_weights(config, "int8", 0.9)[0], choose(config, "dense"), 13)
    adapter = with_llama_cpp.LlamaCpp(decoder, 13)
    adapter.prefill(torch.arange(5))
    logits = [adapter.decode(torch.tensor([1]), at) for at in (5, 6, 5)]
    assert [float(each[0]) for each in logits] == [6, 7, 6] and "on small pages" in theirs["note"]
    assert adapter.nbytes * 32 / 34 == weight_bytes(config, "fp16") / 2 + 32 / 34 * 4 * 5 * config.hidden


def test_llama_cpp_takes_another_format(monkeypatch, fake_llama):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    rows = compare("tiny", 0.9, run=dataclasses.replace(EAGER, against=("llama-cpp", "llama-cpp-fp16")))
    assert [(row["mode"], row["weights"]) for row in rows[2:]] == [("llama-cpp", "BF16"), ("llama-cpp-fp16", "F16")]
    assert "on huge pages" in rows[2]["note"] and rows[2]["bytes"] == rows[3]["bytes"]


def read_gguf(data: bytes) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]], int]:
    """Metadata, the directory {name: (sizes, type, offset)}, and where the tensors begin."""
    assert data[:4] == b"GGUF"
    version, tensors, keys = struct.unpack_from("<IQQ", data, 4)
    assert version == 3
    at = 24

    def string() -> str:
        nonlocal at
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        return data[at - length : at].decode()

    metadata: dict[str, Any] = {}
    for _ in range(keys):
        name, (kind,) = string(), struct.unpack_from("<I", data, at)
        at += 4
        if kind == 8:
            metadata[name] = string()
        else:
            (metadata[name],) = struct.unpack_from({4: "<I", 6: "<f"}[kind], data, at)
            at += 4
    directory = {}
    for _ in range(tensors):
        name, (dimensions,) = string(), struct.unpack_from("<I", data, at)
        *sizes, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, at + 4)
        at += 4 + 8 * dimensions + 12
        directory[name] = (tuple(sizes), kind, offset)
    return metadata, directory, -(-at // 32) * 32


def test_the_gguf_file_holds_the_matrices(tmp_path):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 64, generator=rng), torch.randn(32, generator=rng)
    path = tmp_path / "m.gguf"
    entries = [gguf.Entry("a", (6, 64), "bf16", lambda: a), gguf.Entry("b", (32,), "fp32", lambda: b)]
    gguf.write_gguf(path, [("general.architecture", "llama"), ("n", 7), ("x", 0.5)], entries)
    data = path.read_bytes()
    metadata, directory, start = read_gguf(data)
    assert metadata == {"general.architecture": "llama", "n": 7, "x": 0.5}
    assert directory == {"a": ((64, 6), 30, 0), "b": ((32,), 0, 768)}
    stored = np.frombuffer(data, np.int16, 6 * 64, start)
    assert torch.equal(torch.from_numpy(stored.copy()).view(torch.bfloat16).view(6, 64), a.bfloat16())
    assert np.array_equal(np.frombuffer(data, "<f4", 32, start + 768), b.numpy())
    with pytest.raises(MachineError, match="cannot write the file for llama.cpp"):
        gguf.write_gguf(tmp_path / "absent" / "m.gguf", [], [])


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_blocks_decode_to_what_they_were(fmt):
    values = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    values[0, :32] = 0
    data = gguf.encode(values, fmt)
    assert len(data) == gguf.Entry("a", (5, 96), fmt, lambda: values).nbytes
    blocks = np.frombuffer(data, np.uint8).reshape(15, -1)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    codes = blocks[:, 2:]
    if fmt == "int8":
        back = codes.view(np.int8) * scale
    else:
        back = (np.concatenate([codes & 15, codes >> 4], axis=1).astype(np.float32) - 8) * scale
    error = torch.from_numpy(back).view(5, 96) - values
    assert float(error.norm() / values.norm()) < {"int8": 0.01, "int4": 0.12}[fmt]
    ours = in_format(values, fmt).values() - values
    assert float(error.norm()) < 4 * float(ours.norm())
    assert adapters.ADAPTERS.keys() == {
        "transformers-eager", "transformers-compile", "llama-cpp", "llama-cpp-fp16",
    }  # fmt: skip
