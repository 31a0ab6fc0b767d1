"""A Profile: how often each neuron of a model was active on a text. What placement orders neurons by.

It is a safetensors file with one tensor, `counts` [layers, neurons] int64, and what it was made of as metadata.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError, MissingFileError, UserError
from .header import read_header
from .pickled import unpickle
from .whole_files import write_whole

SCHEMA_VERSION = "1"
POWERINFER_FILE = re.compile(r"activation_(\d{1,9})\.pt")
REMAKE = "make it again with `prosparse profile`"


def content_key(norms: Iterable[Tensor]) -> str:
    """Names a model's weights by its norm weights, [hidden] each, which every weight format holds in full precision."""
    digest = hashlib.sha256()
    for norm in norms:
        digest.update(norm.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Profile:
    """Activation counts.

    Args:
        counts: tokens in which a neuron was active, [layers, neurons] int64.
        tokens: how many were read; 0 where nobody wrote it down.
        model: fingerprint of the architecture; empty where it is not known.
        content: `content_key` of the weights; empty where it is not known.
        text: name of the text.

    Raises:
        UserError: counts of another shape or dtype, or outside 0 to `tokens`.
    """

    counts: Tensor
    tokens: int
    model: str
    content: str
    text: str

    def __post_init__(self) -> None:
        counts = self.counts
        if counts.dtype != torch.int64 or counts.dim() != 2 or not counts.numel():
            raise UserError(
                f"profile: counts must be [layers, neurons] int64, got {list(counts.shape)} {counts.dtype}; {REMAKE}"
            )
        lowest, highest = int(counts.min()), int(counts.max())
        if lowest < 0 or (self.tokens and highest > self.tokens):
            raise UserError(
                f"profile: counts go from {lowest} to {highest}, expected 0 to {self.tokens} tokens; {REMAKE}"
            )

    @property
    def frequency(self) -> Tensor:
        """Share of the tokens in which each neuron was active, [layers, neurons] float64.

        Raises:
            UserError: it is not known how many tokens there were.
        """
        if not self.tokens:
            raise UserError("profile: does not say how many tokens it counts, so there are no frequencies; pass tokens")
        return self.counts.double() / self.tokens

    @property
    def key(self) -> str:
        """Names these counts: equal for equal counts."""
        return hashlib.sha256(self.counts.contiguous().numpy().tobytes()).hexdigest()[:16]

    def hot_first(self, layer: int) -> Tensor:
        """The neurons of a layer by falling count, [neurons] int64; of equally many the lower number is first."""
        return self.counts[layer].argsort(descending=True, stable=True)

    def check_fits(self, model: str, content: str, layers: int, neurons: int) -> None:
        """Raise UserError unless the profile is of this model; what it does not know is not compared."""
        if tuple(self.counts.shape) != (layers, neurons):
            raise UserError(
                f"profile: has {self.counts.shape[0]} layers of {self.counts.shape[1]} neurons, the model {layers} of "
                f"{neurons}; it is of another model: {REMAKE}"
            )
        if self.model and self.model != model:
            raise UserError(
                f"profile: made for model {self.model}, but this one is {model} (same sizes, another activation, "
                f"threshold or constant); {REMAKE}"
            )
        if self.content and self.content != content:
            raise UserError(
                f"profile: made for weights {self.content}, but these are {content} (same architecture, trained "
                f"differently); {REMAKE}"
            )

    def of_model(self, model: str, content: str, layers: int, neurons: int) -> Profile:
        """The same counts, from now on those of this model. Raises UserError where they cannot be."""
        self.check_fits(model, content, layers, neurons)
        return dataclasses.replace(self, model=model, content=content)

    def save(self, path: str | Path) -> None:
        """Write the file; it appears whole or not at all. Raises MachineError where that fails."""
        metadata = {
            "format": "prosparse.profile",
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "content": self.content,
            "tokens": str(self.tokens),
            "text": self.text,
        }
        write_whole({Path(path): save({"counts": self.counts.contiguous()}, metadata)})

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises:
            MissingFileError: no such file.
            UserError: it is damaged, no profile, or of another schema version.
        """
        path = Path(path)
        read_header(path)
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            if found.get("format") != "prosparse.profile" or list(file.keys()) != ["counts"]:
                raise UserError(f"{path}: is no profile; {REMAKE}")
            counts = file.get_tensor("counts")
        if found.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema_version is {found.get('schema_version')!r}, expected {SCHEMA_VERSION!r}; {REMAKE}"
            )
        missing = [key for key in ("model", "content", "tokens", "text") if key not in found]
        if missing or not found["tokens"].isdecimal() or len(found["tokens"]) > 18:
            raise UserError(f"{path}: its metadata lacks {', '.join(missing) or 'a number of tokens'}; {REMAKE}")
        return cls(counts, int(found["tokens"]), found["model"], found["content"], found["text"])


def read_powerinfer(folder: str | Path, tokens: int = 0) -> Profile:
    """The counts that PowerInfer keeps as activation_0.pt, activation_1.pt, .. (Song et al., "PowerInfer", 2023).

    Layers are ordered by number: by name, activation_10 would come before activation_2. Nothing in the files is run.

    Args:
        folder: holds the files.
        tokens: how many were counted; the files do not say.

    Raises:
        MissingFileError: no such folder, or a layer is missing.
        UserError: no such files, or one that is no vector of whole numbers.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one with activation_0.pt, activation_1.pt, ..")
    numbers = {int(found[1]): path for path in folder.iterdir() if (found := POWERINFER_FILE.fullmatch(path.name))}
    if not numbers:
        raise UserError(f"{folder}: holds no activation_0.pt, activation_1.pt, ..; give PowerInfer's activation folder")
    if absent := [number for number in range(max(numbers) + 1) if number not in numbers]:
        raise MissingFileError(f"{folder}: activation_{absent[0]}.pt is missing; a profile needs every layer")
    layers = [_read_layer(numbers[number]) for number in sorted(numbers)]
    if len({len(layer) for layer in layers}) > 1:
        sizes = sorted({len(layer) for layer in layers})
        raise UserError(f"{folder}: layers have {sizes} neurons; they must be of one model")
    return Profile(torch.stack(layers), tokens, "", "", f"PowerInfer: {folder.name}")


def _read_layer(path: Path) -> Tensor:
    found = unpickle(path)
    if not isinstance(found, Tensor) or found.dim() != 1 or found.is_complex():
        what = f"{list(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise CheckpointError(f"{path}: expected the counts of a layer, [neurons], got {what}")
    counts = found.to(torch.int64)
    if not torch.equal(counts.double(), found.double()):
        raise CheckpointError(f"{path}: holds numbers that are no counts; expected whole ones")
    return counts
