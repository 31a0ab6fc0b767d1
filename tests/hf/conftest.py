"""A tiny ReLU Llama as transformers loads it, and a fresh copy of it for every test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engine import make_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("hf") / "llama", family="llama", neurons=100, layers=3)


@pytest.fixture(scope="session")
def reference(llama_folder: Path) -> Any:
    """Never changed by a test: what the others must equal."""
    return AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)


@pytest.fixture
def model(reference: Any) -> Any:
    return copy.deepcopy(reference)


class OpCalls(TorchDispatchMode):
    """Names of our ops, in the order of their calls while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prosparse":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def op_calls() -> OpCalls:
    return OpCalls()


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Makes random Llamas of any activation, without files."""

    def make(**keys: Any) -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**{**sizes, "vocab_size": 64, "initializer_range": 0.2, **keys})).eval()

    return make
