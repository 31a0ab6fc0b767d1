"""What a model is loaded from: a folder in Hugging Face's format, or one GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import ModelConfig, SamplingParams
from ..weights import Checkpoint
from ..weights.formats import Formats
from ..weights.gguf import GgufCheckpoint, GgufFile, read_config, read_gguf
from .gguf_tokenizer import load_gguf_tokenizer
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Source:
    """A model that is there, of which headers and keys have been read.

    Args:
        path: a folder, or a GGUF file.
        config: of the model.
        gguf: header of the file; None for a folder.
    """

    path: Path
    config: ModelConfig
    gguf: GgufFile | None = None

    def checkpoint(self) -> Checkpoint:
        """Its tensors. Raises CheckpointError, UnsupportedError."""
        if self.gguf is None:
            return Checkpoint(self.path, self.config.tensor_prefix, self.config.vision_prefixes)
        return GgufCheckpoint(self.gguf, self.config)

    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError."""
        if self.gguf is None:
            return Tokenizer.load(self.path, self.config)
        return Tokenizer(load_gguf_tokenizer(self.gguf), self.config, self.path)

    def sampling(self) -> SamplingParams:
        """What generation_config.json recommends. Raises ConfigError."""
        return SamplingParams.from_hf(self.path) if self.gguf is None else SamplingParams()


def open_source(path: Path, fatrelu_threshold: float | None) -> Source:
    """Read what a model says of itself.

    Args:
        path: see `weights.resolve_model`.
        fatrelu_threshold: in place of the activation's own.

    Raises:
        UserError: a config or header that is malformed or of a model that does not run.
    """
    if path.is_dir():
        return Source(path, ModelConfig.from_hf(path, fatrelu_threshold))
    file = read_gguf(path)
    return Source(path, read_config(file, fatrelu_threshold), file)


def held_formats(checkpoint: Checkpoint, asked: Formats) -> Formats:
    """The formats to load: of a GGUF file, "auto" is what keeps each part best."""
    return checkpoint.formats(asked) if isinstance(checkpoint, GgufCheckpoint) else asked
