"""torch.compile of accelerated models: one graph, no breaks, and the tokens of the untouched model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from predictors import predictor_of
from tiny_engine import make_model
from tiny_tokenizer import write_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, CompileConfig, OPTConfig, OPTForCausalLM

import prosparse
from prosparse.kernels.tally import NONZERO

PROMPT = torch.tensor([[1, 40, 41, 42, 90, 91, 92, 40, 41, 42, 17, 18, 19, 20, 21, 22, 23, 24]])
NEW = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "dense": {"mode": "dense"},
    "predicted": {},  # and a predictor
    "int4": {"weights": "int4", "linears": True},
}
OPS = {
    "exact": {"glu_exact"},
    "dense": {"glu_dense"},
    "predicted": {"glu_predicted", "sign_select"},
    "int4": {"glu_exact", "linear"},
}


def greedy(model: Any, **options: Any) -> Tensor:
    return model.generate(PROMPT, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None, **options)


def recording() -> tuple[Callable[..., Any], list[set[str]]]:
    """A backend that runs what it is given, and which ops of ours that holds; a function, since configs are copied."""
    graphs: list[set[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        graphs.append({name.split(".")[1] for name in called if name.startswith("prosparse.")})
        return graph.forward

    return backend, graphs


def compiled(model: Any) -> tuple[Tensor, list[set[str]]]:
    """What `generate` gives where it compiles the decode steps of a static cache, and the ops in its graphs.

    That is what it does by itself on a GPU; elsewhere it must be told to.
    """
    backend, graphs = recording()
    torch.compiler.reset()
    how = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None)
    how._compile_all_devices = True
    return greedy(model, cache_implementation="static", compile_config=how), graphs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("compile") / "model", family="llama", neurons=100, layers=1)


@pytest.mark.parametrize("how", OPTIONS)
def test_static_cache_decode_is_one_graph(how: str, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    untouched = greedy(model)
    options = dict(OPTIONS[how])
    if how == "predicted":
        options["predictor"] = predictor_of(prosparse.load(folder, weights="fp32"), "sign_bits", 0.0)
    prosparse.accelerate(model, **options)
    expected = greedy(model)
    prosparse.stats(model, reset=True)
    found, graphs = compiled(model)
    assert torch.equal(found, expected) and (how not in ("exact", "dense") or torch.equal(found, untouched))
    assert graphs == [OPS[how]], "one graph for all decode steps"
    assert prosparse.stats(model)["decode_tokens"] == NEW - 1


@pytest.mark.parametrize("mode", ["exact", "predicted"])
def test_ffns_without_up_projection(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 96, "num_hidden_layers": 1, "vocab_size": 259}
    made = OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=2, max_position_embeddings=64, init_std=0.2)).eval()
    made.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    predictor = None
    if mode == "predicted":
        engine = prosparse.load(tmp_path / "model", weights="fp32")
        predictor = predictor_of(engine, "sign_bits", 0.0)
    prosparse.accelerate(model, mode, predictor=predictor)
    expected = greedy(model)
    found, graphs = compiled(model)
    assert torch.equal(found, expected)
    assert graphs == [{"axpy_active"} if mode == "exact" else {"sign_select", "linear_active", "axpy_active"}]


def test_an_ffn_compiles_functionalised(reference: Any, model: Any) -> None:
    """aot_eager traces with fake tensors and functionalises the counters, as inductor does."""
    x = torch.randn(1, 1, 64)
    mlp = prosparse.accelerate(model).model.layers[0].mlp
    torch.compiler.reset()
    compiled_ffn = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = reference.model.layers[0].mlp(x)
        for _ in range(3):
            torch.testing.assert_close(compiled_ffn(x), expected, rtol=1e-5, atol=1e-6)
    assert int(mlp.prosparse_tokens) == 3
    assert 0 < int(mlp.prosparse_tally[NONZERO]) < 3 * 100


def test_a_trace_without_kernels_has_no_breaks(model: Any) -> None:
    """On a device where no op of ours has a kernel, shapes alone decide the graph: nothing waits for a number."""
    mlp = copy.deepcopy(prosparse.accelerate(model)).to("meta").model.layers[0].mlp
    backend, graphs = recording()
    torch.compiler.reset()
    with torch.no_grad():
        y = torch.compile(mlp, fullgraph=True, backend=backend)(torch.empty(1, 1, 64, device="meta"))
    assert y.shape == (1, 1, 64) and y.device.type == "meta"
    assert graphs == [{"glu_exact"}]
