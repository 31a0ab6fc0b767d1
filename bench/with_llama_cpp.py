"""llama.cpp beside ours, through llama-cpp-python where that is installed: the same sizes, format and tokens.

It knows no ReLU in a Llama: its gate is SiLU, whatever the file says, and MiniCPM's scalings are left out. So it does
the work of our mode dense and gives other logits, which its rows say. The weights go through a temporary file, which
is not mapped, so that it may repack them. Its buffers come from malloc: they are on huge pages, like our weights, if
the process was started with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which a row's note tells.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from prosparse.errors import MachineError, UnsupportedError
from prosparse.kernels.weight import Weight
from prosparse.model.decoder import Decoder
from prosparse.sparsity.ffn import GatedFFN

from .gguf import KINDS, Entry, write_gguf


class LlamaCpp:
    """llama.cpp on one sequence.

    Args:
        decoder: ours, whose weights are written out for it.
        context: positions of its cache.
        weights: format that it is given; None is ours.

    Raises:
        UnsupportedError: it is not installed.
        MachineError: the file cannot be written or is refused.
    """

    same_function = False

    def __init__(self, decoder: Decoder, context: int, weights: str | None = None) -> None:
        try:
            self._library: Any = importlib.import_module("llama_cpp")
        except ImportError as fault:
            raise UnsupportedError(
                f"bench: llama-cpp-python is not installed ({fault}); pip install llama-cpp-python, or leave "
                "llama-cpp out"
            ) from None
        fmt = weights or decoder.lm_head.format
        self.weights = KINDS[fmt][1]
        pages = "huge" if "malloc.hugetlb=" in os.environ.get("GLIBC_TUNABLES", "") else "small"
        self.note: str | None = (
            "llama.cpp computes SiLU for a llama: the same sizes as ours, another function; "
            f"it has flash attention and its weights on {pages} pages"
        )
        self.title = f"llama.cpp {self.weights}"
        self.versions = {"llama-cpp-python": str(self._library.__version__)}
        entries = list(_tensors(decoder, fmt))
        tied = decoder.config.tied_embeddings
        self.nbytes = sum(entry.nbytes for entry in entries if tied or entry.name != "token_embd.weight")
        with tempfile.TemporaryDirectory(prefix="prosparse-bench-") as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(path, _metadata(decoder), entries)
            threads = torch.get_num_threads()
            try:
                self._model = self._library.Llama(
                    str(path),
                    n_ctx=context,
                    n_threads=threads,
                    n_threads_batch=threads,
                    use_mmap=False,
                    flash_attn=True,
                    verbose=False,
                )
            except (ValueError, RuntimeError) as fault:
                raise MachineError(f"bench: llama.cpp refuses the model: {fault}") from fault
        self._vocab = decoder.config.vocab

    def prefill(self, tokens: Tensor) -> None:
        self._model.reset()
        self._model.eval(tokens.tolist())

    def decode(self, token: Tensor, at: int) -> Tensor:
        self._model.n_tokens = at  # eval drops what the cache holds beyond
        self._model.eval(token.tolist())
        pointer = self._library.llama_get_logits(self._model.ctx)
        return torch.from_numpy(numpy.ctypeslib.as_array(pointer, shape=(self._vocab,)).copy())  # the next token's too


def _metadata(decoder: Decoder) -> list[tuple[str, Any]]:
    config = decoder.config
    return [
        ("general.architecture", "llama"),
        ("llama.vocab_size", config.vocab),
        ("llama.context_length", config.max_position),
        ("llama.embedding_length", config.hidden),
        ("llama.block_count", config.layers),
        ("llama.feed_forward_length", config.neurons),
        ("llama.attention.head_count", config.heads),
        ("llama.attention.head_count_kv", config.kv_heads),
        ("llama.attention.key_length", config.head_dim),
        ("llama.attention.value_length", config.head_dim),
        ("llama.attention.layer_norm_rms_epsilon", float(config.norm_eps)),
        ("llama.rope.dimension_count", config.head_dim),
        ("llama.rope.freq_base", float(config.rope.theta)),
        ("tokenizer.ggml.model", "no_vocab"),
    ]


def _tensors(decoder: Decoder, fmt: str) -> Iterator[Entry]:
    """The matrices under llama.cpp's names; norms are fp32 there."""
    config = decoder.config

    def matrix(name: str, weight: Weight) -> Entry:
        return Entry(name, weight.shape, fmt, weight.values)

    def norm(name: str, values: Tensor) -> Entry:
        return Entry(name, (config.hidden,), "fp32", lambda: values)

    assert decoder.final_norm is not None
    yield matrix("token_embd.weight", decoder.embed)
    yield norm("output_norm.weight", decoder.final_norm)
    if not config.tied_embeddings:
        yield matrix("output.weight", decoder.lm_head)
    for layer, (attention, ffn) in enumerate(decoder.blocks):
        assert isinstance(ffn, GatedFFN) and attention.norm is not None
        at, qkv, end = f"blk.{layer}", attention.qkv, 0
        yield norm(f"{at}.attn_norm.weight", attention.norm)
        for name, heads in zip("qkv", (config.heads, config.kv_heads, config.kv_heads), strict=True):
            begin, end = end, end + heads * config.head_dim
            yield matrix(f"{at}.attn_{name}.weight", Weight(qkv.codes[begin:end], qkv.packed_columns))
        yield matrix(f"{at}.attn_output.weight", attention.o)
        yield norm(f"{at}.ffn_norm.weight", ffn.norm)
        yield matrix(f"{at}.ffn_gate.weight", ffn.gate)
        yield matrix(f"{at}.ffn_up.weight", ffn.up)
        yield Entry(f"{at}.ffn_down.weight", ffn.down.shape[::-1], fmt, partial(_transposed, ffn.down))


def _transposed(weight: Weight) -> Tensor:
    return weight.values().t()
