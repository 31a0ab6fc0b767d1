"""MiniCPM-V: the language model within, whose keys lie in config.json beside those of the vision side.

version      decoder                          written by
2.0          MiniCPM-2.4B                     no version, but scale_emb
2.5          Llama3-8B                        "2.5", or neither of these keys
2.6          Qwen2-7B: q, k, v have biases    2.6
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnsupportedError
from .fields import Fields, show

VISION_MODEL = "minicpmv"


@dataclass(frozen=True)
class Decoder:
    """A language model, and where it lies in a checkpoint.

    Args:
        model_type: by which the rest of config.json is read.
        attention_bias: q, k and v have biases.
        ends: tokens that end an answer and that config.json does not name.
        tensor_prefix: what the names of its tensors begin with.
        vision_prefixes: what the names of tensors begin with that are not its own, and not read.
        notes: what a user should know.
    """

    model_type: str
    attention_bias: bool = False
    ends: tuple[int, ...] = ()
    tensor_prefix: str = ""
    vision_prefixes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_decoder(fields: Fields) -> Decoder:
    """The language model of a MiniCPM-V config.

    Raises:
        UnsupportedError: another version of MiniCPM-V, or a sliding window in its decoder.
    """
    version = fields.data.get("version", "2.5" if fields.data.get("scale_emb") is None else "2.0")
    # the decoder, and <|eot_id|> of Llama 3, <|endoftext|> and <|im_end|> of Qwen 2, which the model's own code ends at
    decoders: dict[str, tuple[str, tuple[int, ...]]] = {
        "2.0": ("minicpm", ()),
        "2.5": ("llama", (128009,)),
        "2.6": ("llama", (151643, 151645)),
    }
    if str(version) not in decoders:
        raise UnsupportedError(
            f"{fields.where}: version is {show(version)}; of MiniCPM-V the language models of {', '.join(decoders)} run"
        )
    if fields.boolean("use_sliding_window", False):
        raise UnsupportedError(f"{fields.where}: use_sliding_window is true; only MiniCPM-V without it runs")
    model_type, ends = decoders[str(version)]
    vocab = fields.whole("vocab_size")
    return Decoder(
        model_type,
        attention_bias=str(version) == "2.6",
        ends=tuple(end for end in ends if end < vocab),
        tensor_prefix="llm.",
        vision_prefixes=("vpm.", "resampler."),
        notes=(
            f"the language model of MiniCPM-V {version} runs; its vision tensors (vpm, resampler) are not read: what a "
            "vision tower makes goes into generate(inputs_embeds=...).",
        ),
    )
