"""The Plan: how each layer's FFN is computed, for one model.

`placement` makes it, `engine` follows it. It is plain data and travels as JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prosparse.kernels.weight import LAYOUTS

from .config import ModelConfig
from .errors import MissingFileError, UserError

UNPREDICTED = ("dense", "exact")
MODES = (*UNPREDICTED, "predicted")
SCHEMA_VERSION = 1


def fingerprint(config: ModelConfig) -> str:
    """Names a model's architecture: equal for equal dimensions, constants and activation."""
    facts = dataclasses.asdict(config)
    del facts["notes"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LayerPlan:
    """One layer's FFN.

    Args:
        mode: one of `MODES`.
        layout: of its weights, one of `LAYOUTS`; every mode runs on each.
    """

    mode: str
    layout: str = "rows"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"plan: mode is {self.mode!r}; supported are {', '.join(MODES)}")
        if self.layout not in LAYOUTS:
            raise UserError(f"plan: layout is {self.layout!r}; supported are {', '.join(LAYOUTS)}")


@dataclass(frozen=True)
class Plan:
    """Decisions for a whole model.

    Args:
        model: `fingerprint` of the ModelConfig it was made for.
        layers: one entry per layer.
        reason: why it looks like this, one sentence for a person.
    """

    model: str
    layers: tuple[LayerPlan, ...]
    reason: str

    def check_fits(self, config: ModelConfig) -> None:
        """Raise UserError unless the plan was made for this model."""
        if self.model != fingerprint(config) or len(self.layers) != config.layers:
            raise UserError(
                f"plan: made for model {self.model} with {len(self.layers)} layers, but this model is "
                f"{fingerprint(config)} with {config.layers}; make a new plan for it"
            )

    @property
    def mode(self) -> str:
        """The mode of all layers; "predicted" where some are that and the others exact; else "mixed"."""
        modes = {layer.mode for layer in self.layers}
        if modes == {"exact", "predicted"}:
            return "predicted"
        return modes.pop() if len(modes) == 1 else "mixed"

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> Plan:
        """Raises UserError for anything that is not a plan of this schema version."""
        try:
            data: dict[str, Any] = json.loads(text)
            version = data.pop("schema_version")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{source}: not a plan ({type(error).__name__}: {error}); make it again") from error
        if version != SCHEMA_VERSION:
            raise UserError(f"{source}: schema_version is {version!r}, expected {SCHEMA_VERSION}; make the plan again")
        try:
            layers = tuple(LayerPlan(**layer) for layer in data.pop("layers"))
            return cls(layers=layers, **data)
        except (KeyError, TypeError) as error:
            raise UserError(f"{source}: not a plan ({type(error).__name__}: {error}); make it again") from error

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MissingFileError(f"{path}: cannot read the plan ({error}); check the path") from error
        return cls.from_json(text, str(path))
