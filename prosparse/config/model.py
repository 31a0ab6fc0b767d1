"""The description of a model that every other room works from. Only `from_hf` knows Hugging Face's spelling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from prosparse.kernels.activation import Activation

from ..errors import ConfigError
from .hf import read_arguments
from .rope import RopeConfig

NORMS = ("rms", "layer")
BLOCKS = ("sequential", "post_norm", "parallel")


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and constants of a decoder.

    Args:
        family: which table of tensor names applies: "llama", "minicpm", "bamboo", "opt" or "falcon".
        hidden, neurons, layers, heads, kv_heads, head_dim, vocab: sizes; heads is a multiple of kv_heads.
        max_position: the longest context the model was made for, tokens.
        norm_eps: epsilon of the norms.
        rope: rotary embedding; of kind "none" where positions are learned.
        activation: of the FFN.
        tied_embeddings: lm_head is the embedding matrix.
        embed_scale: factor on the embedding (MiniCPM's scale_emb).
        residual_scale: factor on every block's output before the residual add (scale_depth / sqrt(layers)).
        logit_scale: factor on the final hidden state before lm_head (dim_model_base / hidden).
        sliding_window: how many latest positions attention sees, None for all.
        attention_bias: q, k and v have biases.
        output_bias: o has one.
        ffn_bias: gate and down have biases; for FFNs without up.
        gated: FFNs have gate, up and down; else gate and down alone, y = down^T act(gate x).
        norm: "rms", or "layer", which has biases.
        block: "sequential"; "post_norm", where a norm follows each add instead of preceding each part; or "parallel",
            where attention and FFN read the same residual.
        shared_norm: parts of a parallel block read one norm.
        final_norm: a norm precedes lm_head.
        position_offset: row of the first position in a table of learned positions; None for no such table.
        embed_width: columns of embedding and lm_head where a projection follows and precedes them; None for `hidden`.
        experts: FFNs per layer, of which a router chooses; 0 for one without a router.
        experts_per_token: how many it chooses.
        tensor_prefix: what the names of tensors begin with, before those of the family.
        vision_prefixes: what those of tensors beside them begin with, which are not read.
        bos_token_id, eos_token_ids, pad_token_id: from the config; None or empty where it names none.
        notes: what a user should know about how the config was read, one sentence each.

    Raises:
        ConfigError: a size that is not positive, or sizes that do not multiply out.
    """

    family: str
    hidden: int
    neurons: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int
    norm_eps: float
    rope: RopeConfig
    activation: Activation
    tied_embeddings: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    sliding_window: int | None = None
    attention_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    gated: bool = True
    norm: str = "rms"
    block: str = "sequential"
    shared_norm: bool = False
    final_norm: bool = True
    position_offset: int | None = None
    embed_width: int | None = None
    experts: int = 0
    experts_per_token: int = 0
    tensor_prefix: str = ""
    vision_prefixes: tuple[str, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("hidden", "neurons", "layers", "heads", "kv_heads", "head_dim", "vocab", "max_position"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 2**31:
                raise ConfigError(f"config: {name} must be a whole number from 1 to 2^31 - 1, got {size!r}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"config: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ConfigError(f"config: head_dim must be even for rotary embeddings, got {self.head_dim}")
        for name in ("norm_eps", "embed_scale", "residual_scale", "logit_scale"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(f"config: {name} must be a finite number above 0, got {value!r}")
        for name, known in (("norm", NORMS), ("block", BLOCKS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"config: {name} is {getattr(self, name)!r}; supported are {', '.join(known)}")
        if self.experts and not 0 < self.experts_per_token <= self.experts:
            raise ConfigError(
                f"config: experts_per_token must be from 1 to experts ({self.experts}), got {self.experts_per_token}"
            )

    @property
    def ffns(self) -> int:
        """FFNs that a layer holds."""
        return self.experts or 1

    @property
    def neurons_per_token(self) -> int:
        """Neurons of a layer that a token may activate: of all experts, those it is sent to."""
        return self.neurons * (self.experts_per_token if self.experts else 1)

    @classmethod
    def from_hf(cls, source: str | Path | dict, fatrelu_threshold: float | None = None) -> ModelConfig:
        """Read a Hugging Face config.

        Args:
            source: a model folder, a config.json, or its parsed contents.
            fatrelu_threshold: use fatrelu with this threshold instead of what the config says.

        Raises:
            MissingFileError: no such folder or file.
            ConfigError: not JSON, a key missing or of the wrong type, sizes that do not fit together.
            UnsupportedError: a family, activation or rope scaling that prosparse does not run.
        """
        return cls(**read_arguments(source, fatrelu_threshold))
