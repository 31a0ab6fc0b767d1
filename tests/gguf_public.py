"""Writes a model folder with the public `gguf` package, in the way of llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf_writer import model_keys, model_tensors
from safetensors.torch import load_file


def write_public(gguf: Any, path: Path, folder: Path, kind: str = "F32", powerinfer: bool = False) -> Path:
    keys = model_keys(folder)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(keys["llama.context_length"])
    writer.add_embedding_length(keys["llama.embedding_length"])
    writer.add_block_count(keys["llama.block_count"])
    writer.add_feed_forward_length(keys["llama.feed_forward_length"])
    writer.add_head_count(keys["llama.attention.head_count"])
    writer.add_head_count_kv(keys["llama.attention.head_count_kv"])
    writer.add_layer_norm_rms_eps(keys["llama.attention.layer_norm_rms_epsilon"])
    writer.add_key_length(keys["llama.attention.key_length"])
    writer.add_rope_dimension_count(keys["llama.rope.dimension_count"])
    writer.add_rope_freq_base(keys["llama.rope.freq_base"])
    writer.add_vocab_size(len(keys["tokenizer.ggml.tokens"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(keys["tokenizer.ggml.tokens"])
    writer.add_token_types(keys["tokenizer.ggml.token_type"])
    writer.add_token_merges(keys["tokenizer.ggml.merges"])
    writer.add_bos_token_id(keys["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(keys["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(keys["tokenizer.ggml.add_bos_token"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, keys["llama.block_count"])
    known = {names.get_name(name, try_suffixes=(".weight",)) for file in folder.glob("model*.safetensors")
             for name in load_file(file)}  # fmt: skip
    tensors = model_tensors(folder)
    assert known == set(tensors), "the names of the tests' own writer are those of the package"
    for name, tensor in tensors.items():
        array = tensor.float().numpy()
        if powerinfer and "ffn_down" in name:
            name, array = name.replace("ffn_down", "ffn_down_t"), np.ascontiguousarray(array.T)
        if array.ndim == 2 and kind != "F32":
            kept = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(array, kept), raw_dtype=kept)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if powerinfer:  # as its converter does: an ordinary file, then another magic
        with path.open("r+b") as file:
            file.write(b"PWRI")
    return path
