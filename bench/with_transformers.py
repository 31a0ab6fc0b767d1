"""transformers beside ours: its own model classes over our weights, with a static cache, eager or compiled.

The matrices are those of our decoder, so the logits can be compared; `down` is copied, since transformers wants its
neurons in columns. The prompt is read eagerly in both; `torch.compile` gets the decode step, whose shapes never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers.cache_utils import StaticCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from prosparse.config import ModelConfig
from prosparse.config.to_hf import hf_keys
from prosparse.errors import MachineError, UnsupportedError
from prosparse.hf.minicpm import MiniCPMConfig, MiniCPMForCausalLM
from prosparse.hf.patched import register
from prosparse.hf.sparsellama import SparseLlamaConfig, SparseLlamaForCausalLM
from prosparse.kernels.weight import FLOATS
from prosparse.model.decoder import Decoder
from prosparse.sparsity.ffn import GatedFFN


class Transformers:
    """A transformers model that decodes one sequence.

    Args:
        decoder: ours, whose weights it takes over.
        context: positions of its static cache.
        compiled: decode with `torch.compile`.

    Raises:
        UnsupportedError: a format or a family that it does not run.
    """

    same_function = True

    def __init__(self, decoder: Decoder, context: int, compiled: bool) -> None:
        self.weights = decoder.lm_head.format
        if self.weights not in FLOATS:
            raise UnsupportedError(
                f"bench: transformers runs {', '.join(FLOATS)}, not {self.weights}; leave --against out"
            )
        config = decoder.config
        if config.family not in ("llama", "minicpm") or config.rope.kind != "default":
            raise UnsupportedError(f"bench: transformers is not set up for this {config.family}; leave --against out")
        how = "torch.compile" if compiled else "eager"
        self.title = f"transformers {how}"
        self.note: str | None = f"{self.title}, static cache"
        self.versions = {"transformers": transformers.__version__}
        tensors = dict(_tensors(decoder))
        self._model = _build(decoder.config, tensors, FLOATS[self.weights])
        matrices = (t for name, t in tensors.items() if t.dim() == 2 and name != "model.embed_tokens.weight")
        self.nbytes = sum(matrix.nbytes for matrix in matrices)
        self._compiled = compiled
        self._step: Any = self._model
        self._cache: Any = StaticCache(config=self._model.config, max_cache_len=context)
        self._next = 0

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> None:
        self._model(input_ids=tokens[None], past_key_values=self._cache)
        self._next = tokens.numel()
        if self._compiled:
            # under inference_mode tensors of the cache would be other objects to the compiler than outside
            own = {"mode": "reduce-overhead"} if tokens.is_cuda else {}  # a CUDA graph of its own
            self._step = torch.compile(self._model.forward, dynamic=False, fullgraph=True, **own)

    @torch.inference_mode()
    def decode(self, token: Tensor, at: int) -> Tensor:
        if at != self._next:
            for layer in self._cache.layers:
                layer.cumulative_length.fill_(at)
        self._next = at + 1
        try:
            found = self._step(input_ids=token[None], past_key_values=self._cache)
        except TorchDynamoException as fault:
            raise MachineError(
                f"bench: torch.compile failed on this machine ({fault}); try transformers-eager"
            ) from fault
        return cast(Tensor, found.logits)[0, -1].float()


def _build(config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """The model over given tensors; nothing is initialised or copied."""
    register()  # transformers knows no fatrelu
    keys = {**hf_keys(config), "tie_word_embeddings": False, "dtype": dtype}  # a tied tensor is given under both names
    own: Any = MiniCPMConfig(**keys) if config.family == "minicpm" else SparseLlamaConfig(**keys)
    with torch.device("meta"):
        model: Any = MiniCPMForCausalLM(own) if config.family == "minicpm" else SparseLlamaForCausalLM(own)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    device = tensors["model.norm.weight"].device
    model.model.rotary_emb = LlamaRotaryEmbedding(own).to(device)  # the one made on meta has no angles
    return model.eval().requires_grad_(False)


def _tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    config = decoder.config
    heads = (config.heads * config.head_dim, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim)
    assert decoder.final_norm is not None
    yield "model.embed_tokens.weight", decoder.embed.codes
    yield "model.norm.weight", decoder.final_norm
    yield "lm_head.weight", decoder.lm_head.codes
    for layer, (attention, ffn) in enumerate(decoder.blocks):
        assert isinstance(ffn, GatedFFN) and attention.norm is not None
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", attention.norm
        yield f"{at}.post_attention_layernorm.weight", ffn.norm
        for name, part in zip("qkv", attention.qkv.codes.split(heads), strict=True):
            yield f"{at}.self_attn.{name}_proj.weight", part
        if attention.qkv_bias is not None:
            for name, part in zip("qkv", attention.qkv_bias.split(heads), strict=True):
                yield f"{at}.self_attn.{name}_proj.bias", part
        yield f"{at}.self_attn.o_proj.weight", attention.o.codes
        yield f"{at}.mlp.gate_proj.weight", ffn.gate.codes
        yield f"{at}.mlp.up_proj.weight", ffn.up.codes
        yield f"{at}.mlp.down_proj.weight", ffn.down.codes.t().contiguous()
