"""A synthetic folder: what transformers makes of it, that it reads back as what was written, and that it is atomic."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prosparse
from prosparse.config import ModelConfig
from prosparse.config.shapes import SHAPES, shape
from prosparse.engine import load
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity
from prosparse.errors import MachineError, UnsupportedError, UserError
from prosparse.weights.checkpoint import INDEX, Checkpoint
from prosparse.weights.synthetic import Knobs, folder, walk, write_synthetic
from prosparse.weights.synthetic.folder import as_plain, hf_config

MINICPM = dataclasses.replace(
    shape("minicpm-s-1b"), hidden=192, neurons=512, heads=6, kv_heads=2, head_dim=32, vocab=1024, layers=3
)
BAMBOO = dataclasses.replace(shape("bamboo-7b"), hidden=128, neurons=384, heads=2, kv_heads=1, vocab=512, layers=2)
TOKENS = walk(512, 64, seed=8)


def decode(model_folder, weights="fp32"):
    """Activation sparsity per layer and logits of `TOKENS`, token by token, mode exact."""
    engine = load(model_folder, mode="exact", weights=weights)
    session = Session(engine.decoder, torch.float32, 1, len(TOKENS))
    logits = torch.cat([session.decode(TOKENS[at].view(1, 1), (0,), (at,)) for at in range(len(TOKENS))])
    return activation_sparsity(session, engine.config.neurons), logits


@torch.inference_mode()
def watch(model, parts):
    """The same of a transformers model; `parts` picks from an FFN and its input what is zero where it is not active."""
    shares = []

    def hook(module, arguments, output):
        shares.append(float((parts(module, arguments[0]) == 0).double().mean()))

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(hook)
    return shares, model(TOKENS[None], use_cache=False).logits[0].float()


@pytest.mark.parametrize("fmt", ["fp32", "bf16"])
def test_transformers_loads_it_and_measures_the_same_sparsity(tmp_path, fmt):
    write_synthetic("minicpm-s-1b", MINICPM, tmp_path / "model", 0.8, fmt)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    shares, expected = watch(model, lambda mlp, x: mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    ours, logits = decode(tmp_path / "model")
    assert ours["layers"] == pytest.approx(shares, abs=1e-4)
    assert ours["mean"] == pytest.approx(0.8, abs=0.02)
    assert float((logits - expected).norm() / expected.norm()) < 1e-4


def test_drelu_goes_through_patched(tmp_path):
    write_synthetic("bamboo-7b", BAMBOO, tmp_path / "model", 0.8, "fp32")
    with prosparse.patched("dense"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    shares, expected = watch(model, lambda mlp, x: mlp.gate_proj(x).relu() * mlp.up_proj(x).relu())
    ours, logits = decode(tmp_path / "model")
    assert ours["layers"] == pytest.approx(shares, abs=1e-3)
    assert ours["mean"] == pytest.approx(0.8, abs=0.02)
    assert float((logits - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_a_config_that_reads_back(name):
    plain = as_plain(shape(name))
    read = ModelConfig.from_hf({**hf_config(plain, "bf16"), "prosparse_synthetic": {}})
    assert dataclasses.replace(read, notes=()) == plain and not read.notes


def test_the_folder_says_what_it_is(tmp_path):
    config, knobs = write_synthetic("minicpm-s-1b", MINICPM, tmp_path / "model", Knobs(0.8, overlap=0.6), seed=3)
    document = json.loads((tmp_path / "model" / "config.json").read_text())
    assert document["prosparse_synthetic"] == {**knobs.as_dict(), "shape": "minicpm-s-1b", "seed": 3}
    assert knobs.overlap == pytest.approx(0.6, abs=1e-3) and ModelConfig.from_hf(tmp_path / "model") == config
    assert "means nothing" in (tmp_path / "model" / "README.md").read_text()


def test_shards_hold_the_same_tensors_as_one_file(tmp_path, monkeypatch):
    write_synthetic("m", MINICPM, tmp_path / "one", 0.8)
    monkeypatch.setattr(folder, "SHARD_BYTES", 1_000_000)
    write_synthetic("m", MINICPM, tmp_path / "many", 0.8)
    assert (tmp_path / "many" / INDEX).exists()
    with Checkpoint(tmp_path / "one") as one, Checkpoint(tmp_path / "many") as many:
        assert one.names() == many.names()
        assert all(torch.equal(one.read(name), many.read(name)) for name in one.names())


@pytest.mark.parametrize("vocab", [246, 256, 30_000])
def test_any_text_passes_the_tokenizer(tmp_path, vocab):
    config = dataclasses.replace(shape("tiny"), vocab=vocab, hidden=32, neurons=32)
    write_synthetic("tiny", config, tmp_path / "model", 0.8)
    tokenizer = load(tmp_path / "model").tokenizer
    text = "Grüße, 世界! \t\n </s> 🎈"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id == 1 and max(ids) < 246 and tokenizer.decode(ids) == text
    names = [tokenizer.decode([i]) for i in range(246, vocab)]
    assert len(set(names)) == len(names) and all(name.startswith(" ") for name in names)
    plain = "Grüße, 世界!"  # transformers takes the name of a special token for the token
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(plain)["input_ids"] == tokenizer.encode(plain)


def test_a_vocabulary_too_small_for_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="vocabulary of 245 has no room for a tokenizer, which needs 246"):
        write_synthetic("tiny", dataclasses.replace(shape("tiny"), vocab=245), tmp_path / "model", 0.8)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_it_cannot_be_finished(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineError, match="synth: .*the disk is full"):
        write_synthetic("m", MINICPM, tmp_path / "model", 0.8)
    assert list(tmp_path.iterdir()) == []


def test_only_a_model_is_replaced_and_only_when_asked(tmp_path):
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match="exists; choose another destination"):
        write_synthetic("m", MINICPM, tmp_path / "work", 0.8)
    with pytest.raises(UserError, match="is no model folder"):
        write_synthetic("m", MINICPM, tmp_path / "work", 0.8, overwrite=True)
    for sparsity in (0.8, 0.5):
        write_synthetic("m", MINICPM, tmp_path / "model", sparsity, overwrite=True)
    assert '"activation_sparsity": 0.5' in (tmp_path / "model" / "config.json").read_text()


def test_packed_folders_are_not_written(tmp_path):
    with pytest.raises(UnsupportedError, match="weights is 'int8'; a folder is written in fp32, fp16, bf16"):
        write_synthetic("m", MINICPM, tmp_path / "model", 0.8, "int8")
