"""Live transformers models: what they say, and everything about them that accelerating touches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PROMPT = torch.tensor([[1, 40, 41, 42, 90, 91, 92, 40, 41, 42, 17, 18, 19, 20, 21, 22, 23, 24]])


def generate(model: Any) -> Tensor:
    return model.generate(PROMPT, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that accelerate touches."""
    parameters = {n: (id(p), p.stride(), p.detach().clone()) for n, p in model.named_parameters()}
    modules = {
        n: (id(m), type(m), sorted(m.__dict__), set(m._non_persistent_buffers_set)) for n, m in model.named_modules()
    }
    return {"parameters": parameters, "modules": modules, "buffers": sorted(n for n, _ in model.named_buffers())}


def assert_same(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert now["modules"] == before["modules"] and now["buffers"] == before["buffers"]
    assert now["parameters"].keys() == before["parameters"].keys()
    for name, (identity, stride, value) in before["parameters"].items():
        assert now["parameters"][name][:2] == (identity, stride), name
        assert torch.equal(now["parameters"][name][2], value), name
