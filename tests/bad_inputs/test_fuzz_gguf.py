"""GGUF files at random: a working engine or an error of ours, never a traceback, a hang, gigabytes."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.fuzzing import DAMAGE, RANDOMLY, attempt, damaged, limited, seldom
from gguf_writer import TYPES, model_keys, model_tensors, stored, write_gguf
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_tiny
from tiny_tokenizer import VOCAB, write_tokenizer

from prosparse.errors import ProsparseError
from prosparse.weights.gguf import read_gpu_index, read_predictors

Model = tuple[dict[str, Any], dict[str, Any]]
WHOLE = st.sampled_from([0, 1, 2, 3, 8, 15, 16, 17, 31, 32, 63, 64, 65, 258, 259, 260, 2**31 - 1, 2**31, 2**32 - 1,
                         2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1])  # fmt: skip
FRACTIONS = st.sampled_from([0.0, -0.0, 1.0, 0.5, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf")])
WORDS = st.sampled_from(["llama", "minicpm", "gpt2", "qwen2", "linear", "yarn", "generic.gpu_index", "", "\0", "a b"])
ITEMS = st.one_of(st.lists(st.integers(-5, 300), min_size=1, max_size=4), st.lists(WORDS, max_size=4),
                  st.lists(FRACTIONS, min_size=1, max_size=4))  # fmt: skip
VALUES = st.one_of(WHOLE, WHOLE, FRACTIONS, st.booleans(), WORDS, ITEMS, st.none())
MORE_KEYS = ("general.alignment", "split.count", "llama.expert_count", "llama.rope.scaling.type",
             "llama.rope.scaling.factor", "llama.attention.value_length", "minicpm.logit_scale",
             "powerinfer.sparse_threshold", "generic.gpu_index.block_count", "tokenizer.ggml.unknown_token_id",
             "tokenizer.ggml.scores", "tokenizer.chat_template")  # fmt: skip
SHAPES = st.lists(WHOLE.filter(lambda size: size < 2**64), min_size=0, max_size=6).map(tuple)
# a number put over some bytes of the header, where counts, lengths, types and offsets are
NUMBERS = st.tuples(st.floats(0, 1), st.sampled_from("IQ"), WHOLE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(write_tiny(folder, vocab=VOCAB, neurons=32, hidden=32, heads=2, kv_heads=1, layers=1))
    tensors = {name: stored(tensor, "F32") for name, tensor in model_tensors(folder).items()}
    tensors |= {f"blk.0.fc{i}.weight": ((32, 32), TYPES["Q8_0"], bytes(32 * 34)) for i in (1, 2)}
    return model_keys(folder), tensors


@given(
    keys=st.lists(st.tuples(st.integers(0, 40), VALUES), max_size=2),
    tensors=st.lists(
        st.tuples(st.integers(0, 20), seldom(SHAPES), seldom(st.integers(0, 40)), st.integers(-64, 64)), max_size=2
    ),
    numbers=st.lists(NUMBERS, max_size=2),
    renamed=seldom(st.tuples(st.integers(0, 20), st.sampled_from(["", "rope_freqs.weight", "blk.7.fc1.weight", "é"]))),
    powerinfer=st.booleans(),
    damage=DAMAGE,
    tail=seldom(st.integers(-9000, 99)),
)
@RANDOMLY
def test_gguf(
    model: Model,
    keys: list[tuple[int, Any]],
    tensors: list[tuple[int, tuple[int, ...] | None, int | None, int]],
    numbers: list[tuple[float, str, int]],
    renamed: tuple[int, str] | None,
    powerinfer: bool,
    damage: Any,
    tail: int | None,
) -> None:
    given_keys, given_tensors = dict(model[0]), dict(model[1])
    names = [*given_keys, *MORE_KEYS]
    for number, item in keys:
        given_keys[names[number % len(names)]] = item
    for number, shape, kind, longer in tensors:
        name = list(given_tensors)[number % len(given_tensors)]
        old = given_tensors[name]
        raw = old[2] + bytes(longer) if longer > 0 else old[2][: len(old[2]) + longer]
        given_tensors[name] = (old[0] if shape is None else shape, old[1] if kind is None else kind, raw)
    if renamed is not None:
        name = list(given_tensors)[renamed[0] % len(given_tensors)]
        given_tensors[renamed[1]] = given_tensors.pop(name)
    kept = {name: item for name, item in given_keys.items() if item is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(Path(folder) / "x.gguf", kept, given_tensors, b"PWRI" if powerinfer else b"GGUF")
        raw = path.read_bytes()
        end = len(raw) - sum(len(tensor[2]) for tensor in given_tensors.values())
        for where, code, number in numbers:
            data = struct.pack("<" + code, number % 2 ** (8 * struct.calcsize(code)))
            at = int(where * end)
            raw = raw[:at] + data + raw[at + len(data) :]
        path.write_bytes(damaged(raw, damage)[: tail if tail and tail < 0 else None] + bytes(max(0, tail or 0)))
        attempt(path)
        for reader in (read_gpu_index, lambda path: list(read_predictors(path))):
            try_reading(reader, path)


def try_reading(reader: Any, path: Path) -> None:
    with limited():
        try:
            reader(path)
        except ProsparseError as error:
            assert str(error).strip()


def test_what_is_tried_runs_when_it_is_left_alone(model: Model, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", *model, b"PWRI")
    assert attempt(path) and len(list(read_predictors(path))) == 1
