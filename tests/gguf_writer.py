"""Writes GGUF files for tests, from the published layout and from none of our code.

write_gguf(path, keys, tensors)           keys: Python values; tensors: {name: (rows-first shape, type, bytes)}
write_model(path, folder, "Q8_0")         a tiny model folder as llama.cpp's converter would name and order it
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "I32": 26, "BF16": 30}
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}  # fmt: skip
Stored = tuple[tuple[int, ...], int, bytes]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A type and a value; whole numbers are u32, fractions f32, arrays of whole numbers i32."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<IQ", 10, item) if item >= 2**32 else struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    kind, code = (
        (8, "") if not item or isinstance(item[0], str) else (6, "f") if isinstance(item[0], float) else (5, "i")
    )
    body = b"".join(map(text, item)) if kind == 8 else struct.pack(f"<{len(item)}{code}", *item)
    return struct.pack("<IIQ", 9, kind, len(item)) + body


def write_gguf(
    path: Path,
    keys: dict[str, Any],
    tensors: dict[str, Stored],
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = 32,
) -> Path:
    head = magic + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(text(name) + value(item) for name, item in keys.items())
    at, data = 0, b""
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, at)
        data += raw + bytes(-len(raw) % alignment)
        at = len(data)
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


def stored(tensor: Tensor, kind: str) -> Stored:
    """A tensor in a type; lists of numbers stay as they are, and vectors are F32 as converters have them."""
    shape = tuple(tensor.shape)
    if tensor.dtype == torch.int32:
        return shape, TYPES["I32"], tensor.numpy().tobytes()
    kind = "F32" if len(shape) == 1 else kind
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind)
    if dtype is not None:
        return shape, TYPES[kind], tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
    blocks = tensor.float().reshape(-1, 32)
    if kind == "Q8_0":
        scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
        codes = (blocks / scale.float()).round().clamp(-128, 127).nan_to_num().to(torch.int8).view(torch.uint8)
    else:
        scale = (blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8).half()
        whole = ((blocks / scale.float()).nan_to_num() + 8.5).floor().clamp(0, 15).to(torch.uint8)
        codes = whole[:, :16] | whole[:, 16:] << 4
    return shape, TYPES[kind], torch.cat((scale.view(torch.uint8), codes), 1).numpy().tobytes()


def stored_values(tensor: Stored) -> Tensor:
    """float32 values of what `stored` made."""
    shape, kind, raw = tensor
    data = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    if kind not in (TYPES["Q8_0"], TYPES["Q4_0"]):
        return data.view({0: torch.float32, 1: torch.float16, 30: torch.bfloat16}[kind]).view(shape).float()
    blocks = data.view(-1, 34 if kind == TYPES["Q8_0"] else 18)
    scale, codes = blocks[:, :2].clone().view(torch.float16).float(), blocks[:, 2:].clone()
    if kind == TYPES["Q8_0"]:
        return (scale * codes.view(torch.int8).float()).view(shape)
    return (scale * (torch.cat((codes % 16, codes // 16), 1).float() - 8)).view(shape)


def exchange(tensor: Tensor, heads: int) -> Tensor:
    """Rows of q or k as the rotary embedding of GGUF's readers pairs them: from halves of a head to neighbours."""
    halves = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def model_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder under GGUF's names and in its order of rows."""
    config = json.loads((folder / "config.json").read_text())
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    tensors = {}
    for name, tensor in found.items():
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for part, count in heads.items():
            tensor = exchange(tensor, count) if part in name else tensor
        new = OUTER.get(name)
        if new is None:
            _, _, number, *middle, last = name.split(".")
            new = f"blk.{number}.{PARTS['.'.join(middle)]}.{last}"
        tensors[new] = tensor
    return tensors


def model_keys(folder: Path, arch: str = "llama") -> dict[str, Any]:
    """The keys of a model folder whose tokenizer is BPE over bytes."""
    config = json.loads((folder / "config.json").read_text())
    plan = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = plan["model"]["vocab"] | {token["content"]: token["id"] for token in plan["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in plan["added_tokens"] if token["special"]}
    keys: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.attention.key_length": config["head_dim"],
        f"{arch}.rope.dimension_count": config["head_dim"],
        f"{arch}.rope.freq_base": float(config["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in plan["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.add_bos_token": plan["post_processor"] is not None,
    }
    if arch == "minicpm":
        keys["minicpm.embedding_scale"] = float(config["scale_emb"])
        keys["minicpm.residual_scale"] = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
        keys["minicpm.logit_scale"] = config["hidden_size"] / config["dim_model_base"]
    return keys


def write_model(
    path: Path, folder: Path, kind: str = "F32", arch: str = "llama", powerinfer: bool = False, **changes: Any
) -> Path:
    """A model folder as one file; `changes` replace keys, with _ for the dots, and None removes one."""
    keys, tensors = model_keys(folder, arch), model_tensors(folder)
    dotted = {name.replace(".", "_"): name for name in keys}
    keys |= {dotted.get(name, name): item for name, item in changes.items()}
    if powerinfer:
        tensors = {name.replace("ffn_down", "ffn_down_t"): tensor.t().contiguous() if "ffn_down" in name else tensor
                   for name, tensor in tensors.items()}  # fmt: skip
    found = {name: stored(tensor, kind) for name, tensor in tensors.items()}
    kept = {name: item for name, item in keys.items() if item is not None}
    return write_gguf(path, kept, found, b"PWRI" if powerinfer else b"GGUF")
