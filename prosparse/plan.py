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

from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.weight import LAYOUTS

from .config import ModelConfig
from .errors import MissingFileError, UserError

UNPREDICTED = ("dense", "exact")
MODES = (*UNPREDICTED, "predicted")
STEP_ROWS = (1, 2, 4, 8, MAX_ROWS)  # tokens of a step, from one number to the next, that are decided on together
SCHEMA_VERSION = 1


def fingerprint(config: ModelConfig) -> str:
    """Names a model's architecture: equal for equal dimensions, constants and activation."""
    facts = dataclasses.asdict(config)
    del facts["notes"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Split:
    """Where one layer lies that two devices share. Its neurons are in hot-first order: `Profile.hot_first`.

    Args:
        gate: neurons, from the hottest, whose gate row is on the GPU.
        hot: neurons, from the hottest, whose up and down rows are on the GPU; at most `gate`, since only the device
            that opens a neuron's gate knows without asking that it is active.
        attention: whether attention, the norms and the layer's part of the cache are on the GPU.
    """

    gate: int
    hot: int
    attention: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.hot <= self.gate:
            raise UserError(
                f"plan: a split needs 0 <= hot <= gate, got hot {self.hot} and gate {self.gate}; make the plan again"
            )


@dataclass(frozen=True)
class Placement:
    """What a plan for two devices was made for, and what it promises.

    Args:
        budget: bytes of GPU memory that everything there must fit into: weights, cache, workspace, graph, context.
        gpu_bytes: how many of them the plan uses.
        context: tokens that the cache has room for.
        weights, lm_head: their formats.
        head: whether lm_head is on the GPU.
        profile: `Profile.key` of the counts that order the neurons.
        tokens_per_s: expected.
    """

    budget: int
    gpu_bytes: int
    context: int
    weights: str
    lm_head: str
    head: bool
    profile: str
    tokens_per_s: float

    def __post_init__(self) -> None:
        if self.gpu_bytes > self.budget:
            raise UserError(f"plan: uses {self.gpu_bytes} bytes of a budget of {self.budget}; make it again")


@dataclass(frozen=True)
class LayerPlan:
    """One layer's FFN.

    Args:
        mode: one of `MODES`.
        layout: of its weights, one of `LAYOUTS`; every mode runs on each.
        split: between GPU and CPU; None where the whole model is on one device.
        dense_rows: of an exact layer, the numbers of tokens, each of `STEP_ROWS` standing for those up to it, whose
            steps the dense kernel computes, since few neurons are at zero: what is skipped there costs more than it
            saves, and the result is that of exact.
    """

    mode: str
    layout: str = "rows"
    split: Split | None = None
    dense_rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"plan: mode is {self.mode!r}; supported are {', '.join(MODES)}")
        if self.layout not in LAYOUTS:
            raise UserError(f"plan: layout is {self.layout!r}; supported are {', '.join(LAYOUTS)}")
        if self.dense_rows and (self.mode != "exact" or self.split is not None):
            raise UserError("plan: dense_rows is for exact layers on one device; leave it out of others")
        if not set(self.dense_rows) <= set(STEP_ROWS):
            supported = ", ".join(map(str, STEP_ROWS))
            raise UserError(f"plan: dense_rows is {list(self.dense_rows)}; supported are {supported}")


@dataclass(frozen=True)
class Plan:
    """Decisions for a whole model.

    Args:
        model: `fingerprint` of the ModelConfig it was made for.
        layers: one entry per layer.
        reason: why it looks like this, one sentence for a person.
        placement: for a model on two devices; then every layer has a split.
    """

    model: str
    layers: tuple[LayerPlan, ...]
    reason: str
    placement: Placement | None = None

    def __post_init__(self) -> None:
        if any((layer.split is None) != (self.placement is None) for layer in self.layers):
            raise UserError("plan: either every layer is split and there is a placement, or none is; make it again")

    def check_fits(self, config: ModelConfig) -> None:
        """Raise UserError unless the plan was made for this model."""
        if self.model != fingerprint(config) or len(self.layers) != config.layers:
            raise UserError(
                f"plan: made for model {self.model} with {len(self.layers)} layers, but this model is "
                f"{fingerprint(config)} with {config.layers}; make a new plan for it"
            )
        for number, layer in enumerate(self.layers):
            if layer.split is not None and layer.split.gate > config.neurons:
                raise UserError(
                    f"plan: layer {number} puts {layer.split.gate} neurons on the GPU, but a layer has "
                    f"{config.neurons}; make the plan again"
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
            layers = tuple(_layer(**layer) for layer in data.pop("layers"))
            placement = data.pop("placement", None)
            return cls(layers=layers, placement=None if placement is None else Placement(**placement), **data)
        except (KeyError, TypeError) as error:
            raise UserError(f"{source}: not a plan ({type(error).__name__}: {error}); make it again") from error

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise MissingFileError(f"{path}: cannot read the plan ({error.strerror}); check the path") from error
        except UnicodeDecodeError:
            raise UserError(
                f"{path}: not a plan, but bytes that are no text; give what `prosparse plan -o` wrote"
            ) from None
        return cls.from_json(text, str(path))


def _layer(split: dict[str, Any] | None = None, dense_rows: list[int] | None = None, **others: Any) -> LayerPlan:
    return LayerPlan(
        split=None if split is None else Split(**split), dense_rows=tuple(dense_rows or ()), **others
    )  # fmt: skip
