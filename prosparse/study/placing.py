"""What is to be placed: a model, or a shape without weights, with the frequencies of its neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..config import ModelConfig
from ..config.shapes import shape
from ..engine.budget import profile_for
from ..engine.load import DEFAULT_CONTEXT, EMBEDDED_MODEL, load
from ..engine.profiling import profile_neurons
from ..engine.source import held_formats, open_source
from ..errors import UserError
from ..placement.activity import synthetic_profile
from ..placement.sizes import check_can_be_split
from ..plan import fingerprint
from ..weights import resolve_model
from ..weights.content import content_of
from ..weights.formats import Formats, check_asked
from ..weights.load import choose_formats
from ..weights.names import check_names
from ..weights.neuron_profile import Profile
from ..weights.predictor import Predictor
from ..weights.synthetic import Knobs
from ..weights.tables import names_of


@dataclass(frozen=True, eq=False)
class Subject:
    """What is to be placed.

    Args:
        config: sizes.
        profile: how often its neurons are active.
        weights, lm_head: formats.
        context: tokens of its cache.
    """

    config: ModelConfig
    profile: Profile
    weights: str
    lm_head: str
    context: int


def of_shape(
    name: str,
    knobs: Knobs | float,
    profile: Path | None = None,
    weights: str = "auto",
    lm_head: str = "auto",
    context: int | None = None,
) -> Subject:
    """A shape of `config.shapes`.

    Args:
        name: of the shape.
        knobs: of its synthetic frequencies, or their activation sparsity alone.
        profile: file to take in place of those.
        weights, lm_head: formats; "auto" is bf16, and that of weights.
        context: tokens; None is what the model was made for, at most `DEFAULT_CONTEXT`.

    Raises:
        UserError: no such shape or format, knobs out of range, or a profile that does not fit.
    """
    config = shape(name)
    check_asked("plan", Formats(weights, lm_head))
    weights = "bf16" if weights == "auto" else weights
    made = synthetic_profile(config, fingerprint(config), knobs) if profile is None else Profile.load(profile)
    return Subject(config, made, weights, weights if lm_head == "auto" else lm_head, _context(config, context))


def of_model(
    model: str | Path | None,
    profile: Path | None = None,
    weights: str = "auto",
    lm_head: str = "auto",
    context: int | None = None,
    predictor: Predictor | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Subject:
    """A model as `prosparse.load` finds it.

    Args:
        model: folder, GGUF file or hub id; None is the packaged model.
        profile: file; None is the one in the cache, else one of the packaged text: the model is loaded for it.
        weights, lm_head: formats; "auto" is what `load` makes of them.
        context: see `of_shape`.
        predictor: checked to be of this model.
        progress: called with (what, done, total) while tokens are counted.

    Raises:
        UserError: what `load` refuses, or a profile or predictor of another model.
        UnsupportedError: FFNs that are not split.
        MachineError: not enough memory.
    """
    source = open_source(resolve_model(EMBEDDED_MODEL if model is None else model, gguf=True), None)
    config, names = source.config, names_of(source.config)
    check_can_be_split(config)  # before minutes of counting
    with source.checkpoint() as checkpoint:
        check_names(checkpoint, config)
        formats = choose_formats(checkpoint, names, held_formats(checkpoint, Formats(weights, lm_head)))
        content = content_of(checkpoint, config)
    if predictor is not None:
        predictor.check_fits(fingerprint(config), content, config.layers, config.neurons, config.hidden)

    def count() -> Profile:
        engine = load(model, "dense", formats.weights, "cpu", lm_head=formats.lm_head)
        return profile_neurons(engine, content, None if progress is None else partial(progress, "counting"))

    counts = profile_for(profile, config, content, count)
    return Subject(config, counts, formats.weights, formats.lm_head, _context(config, context))


def _context(config: ModelConfig, context: int | None) -> int:
    if context is None:
        return min(config.max_position, DEFAULT_CONTEXT)
    longest = 2**31 - 1 if config.rope.kind == "dynamic" else config.max_position
    if not 2 <= context <= longest:
        raise UserError(f"plan: context must be from 2 to {longest} tokens for this model, got {context}")
    return context
