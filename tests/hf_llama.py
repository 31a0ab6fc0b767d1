"""transformers' LlamaForCausalLM on our test folders: the implementation that others trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from float64_forward import read_folder
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.activations import ACT2CLS, ACT2FN

# What folders say that LlamaConfig must not be told, or spells otherwise.
OTHER_KEYS = ("architectures", "auto_map", "model_type", "hidden_act_param", "torch_dtype", "dtype", "sliding_window")


class FATReLU(nn.Module):
    """x where x >= threshold, else 0 (Song et al., "ProSparse", 2024, eq. 3)."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= self.threshold, x, torch.zeros_like(x))


def load_hf(folder: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The folder's weights in transformers' own network, eager attention."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if config["hidden_act"] == "fatrelu":
        ACT2CLS["fatrelu"] = ACT2FN["fatrelu"] = (FATReLU, {"threshold": config["hidden_act_param"]})
    try:
        known = {key: value for key, value in config.items() if key not in OTHER_KEYS}
        model = LlamaForCausalLM(LlamaConfig(**known, attn_implementation="eager"))
    finally:
        for table in (ACT2CLS, ACT2FN):
            table.pop("fatrelu", None)
    tensors = read_folder(folder)[1]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype).eval()


@torch.inference_mode()
def hf_logits(model: LlamaForCausalLM, token_ids: list[int]) -> Tensor:
    """[tokens, vocab] float32."""
    return model(torch.tensor([token_ids]), use_cache=False).logits[0].float()
