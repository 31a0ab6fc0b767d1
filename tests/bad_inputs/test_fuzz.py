"""Config and safetensors header at random: a working engine or an error of ours, never a traceback, a hang, gigabytes.

bad_inputs/fuzzing.py says how to search for minutes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.case import FILE
from bad_inputs.fuzzing import DAMAGE, MORE_MEMORY, NUMBERS, RANDOMLY, attempt, damaged, limited, seldom
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import FAMILIES, write_tiny
from tiny_tokenizer import VOCAB, write_tokenizer

from prosparse.engine.tokenizer_files import load_pretrained

WORDS = st.sampled_from(
    ["relu", "fatrelu", "silu", "llama3", "dynamic", "linear", "default", "minicpm", "", "\0", "\ud800"]
)
SCALARS = st.one_of(NUMBERS, WORDS, st.none(), st.booleans(), st.integers(), st.text(max_size=3))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)
ROPE_KEYS = ("rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor",
             "original_max_position_embeddings", "partial_rotary_factor")  # fmt: skip
ROPES = st.dictionaries(st.sampled_from(ROPE_KEYS), SCALARS, max_size=4)
KEYS = (
    "model_type", "architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "hidden_act", "hidden_act_param", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "pad_token_id", "sliding_window", "scale_emb", "scale_depth", "dim_model_base", "attention_bias",
    "mlp_bias", "num_experts", "quantization_config", "partial_rotary_factor", "torch_dtype", "auto_map",
    "prosparse_quantization",
)  # fmt: skip
# mostly values of a type that gets past the first check
CHANGES = st.dictionaries(
    st.sampled_from(KEYS), st.one_of(NUMBERS, st.integers(1, 300), WORDS, ROPES, VALUES), min_size=1, max_size=3
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        family: write_tokenizer(write_tiny(root / family, family=family, vocab=VOCAB, neurons=16, layers=1))
        for family in FAMILIES
    }


@pytest.fixture(autouse=True)
def one_tokenizer(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it takes longer than all the rest, and it is not what is tried here."""
    pretrained = load_pretrained(models["llama"])
    monkeypatch.setattr("prosparse.engine.tokenizer.load_pretrained", lambda folder: pretrained)


def copied(source: Path, target: Path, name: str, data: bytes) -> None:
    """A model folder with one file replaced."""
    for path in source.iterdir():
        (target / path.name).symlink_to(path)
    (target / name).unlink()
    (target / name).write_bytes(data)


@given(family=st.sampled_from(list(FAMILIES)), changes=CHANGES, damage=DAMAGE)
@RANDOMLY
def test_config(models: dict[str, Path], family: str, changes: dict[str, Any], damage: Any) -> None:
    config = json.loads((models[family] / "config.json").read_text()) | changes
    with tempfile.TemporaryDirectory() as folder:
        copied(models[family], Path(folder), "config.json", damaged(json.dumps(config).encode(), damage))
        attempt(Path(folder))


ENTRIES = st.dictionaries(
    st.sampled_from(["dtype", "shape", "data_offsets"]),
    st.one_of(
        st.sampled_from(["F64", "F32", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "F4", "bf16"]),
        st.lists(NUMBERS | st.integers(-2, 20_000), max_size=9),
        VALUES,
    ),
    max_size=2,
)
LENGTHS = seldom(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 7, 10**8, 10**8 + 1, 2**63]))


@given(
    edits=st.lists(st.tuples(st.integers(0, 20), ENTRIES | VALUES), max_size=3),
    renamed=st.none() | st.tuples(st.integers(0, 20), st.text(max_size=4) | st.just("__metadata__")),
    length=LENGTHS,
    damage=DAMAGE,
    tail=seldom(st.integers(-70_000, 8)),
)
@RANDOMLY
def test_safetensors_header(
    models: dict[str, Path],
    edits: list,
    renamed: tuple[int, str] | None,
    length: int | None,
    damage: Any,
    tail: int | None,
) -> None:
    raw = (models["llama"] / FILE).read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:end])
    names = list(entries)
    for number, edit in edits:
        name = names[number % len(names)]
        both = isinstance(entries[name], dict) and isinstance(edit, dict)
        entries[name] = {**entries[name], **edit} if both else edit
    if renamed is not None:
        entries[renamed[1]] = entries.pop(names[renamed[0] % len(names)])
    text = damaged(json.dumps(entries).encode(), damage)
    data = raw[end:] + bytes(8)
    data = data[: len(raw) - end + (tail or 0)]
    with tempfile.TemporaryDirectory() as folder:
        content = (len(text) if length is None else length).to_bytes(8, "little") + text + data
        copied(models["llama"], Path(folder), FILE, content)
        attempt(Path(folder))


def test_what_is_tried_runs_when_it_is_left_alone(models: dict[str, Path]) -> None:
    assert all(attempt(folder) for folder in models.values())


def test_the_limits_hold() -> None:
    with pytest.raises(MemoryError), limited():
        bytearray(2 * MORE_MEMORY)
