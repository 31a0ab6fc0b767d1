"""From a folder to an engine: config, plan, weights, blocks, tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from .. import machine as this
from ..config import ModelConfig
from ..errors import UserError
from ..hardware import Machine, parse_size
from ..model.attention import Attention
from ..model.decoder import FFN, Decoder, Ends
from ..model.step import why_no_step
from ..placement import choose
from ..plan import Plan, fingerprint
from ..sparsity import DenseFFN, ExactFFN, PredictedFFN, Selector, other_ffn
from ..weights import ModelWeights, load_weights, resolve_model
from ..weights.content import content_of
from ..weights.divide import Division
from ..weights.formats import Formats
from ..weights.load import choose_formats
from ..weights.names import check_names
from ..weights.neuron_profile import Profile, content_key
from ..weights.predictor import LayerPredictor, Predictor
from ..weights.tables import names_of
from .adapting import Adapting
from .audit import check_every
from .budget import known_profile, plan_for
from .divided import Sharing, agreed, check_room, divide, fast_device, tiers_of
from .engine import Engine
from .graph import StepPool
from .kernels import times_of
from .memory_limit import grant
from .out_of_memory import Held, fitting_budget, told
from .profiling import WINDOW
from .source import held_formats, open_source

log = logging.getLogger("prosparse")

EMBEDDED_MODEL = Path(__file__).parent.parent / "assets" / "relu-llama-14m"
DEFAULT_CONTEXT = 4096  # tokens; models made for more must be asked for more, since the cache grows with it
FFN_OF_MODE = {"dense": DenseFFN, "exact": ExactFFN}
PREDICTOR_FILE = "predictor.safetensors"  # in the folder of a model: what mode predicted uses if nothing else is named


def load(
    model: str | Path | None = None,
    mode: str = "auto",
    weights: str = "auto",
    device: str = "auto",
    *,
    lm_head: str = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    fatrelu_threshold: float | None = None,
    plan: Plan | str | Path | None = None,
    predictor: Predictor | str | Path | None = None,
    audit: int | None = None,
    deterministic: bool = False,
    budget: int | str | None = None,
    profile: Profile | str | Path | None = None,
    machine: Machine | str | Path | None = None,
    adapt: int | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Engine:
    """Load a model and make it ready to run.

    Args:
        model: a folder in Hugging Face format with safetensors, a GGUF file, or a hub id; None is the packaged model.
        mode: "auto" is predicted where a predictor is given, exact where the activation makes zeros, else dense; or
            "dense", "exact" or "predicted".
        weights: "auto" is as stored, with fp32 held as bf16; "fp32", "fp16", "bf16", "int8" or "int4".
        device: "auto", "cpu" or "cuda". With a budget or a placed plan, "cpu" tries it out within the CPU's memory.
        lm_head: format of lm_head, and of the embedding where that is the same table; "auto" is as stored in a
            converted folder, else that of `weights`.
        dtype: alias of weights.
        threads: of this process on the CPU; None is PyTorch's number, but at most one per core that the process may
            use, unless OMP_NUM_THREADS is set.
        context: the most tokens a prompt and its text may have together; None is what the model was made for, at most
            `DEFAULT_CONTEXT`.
        fatrelu_threshold: run the gate with FATReLU at this threshold instead of what the config says; 0 is ReLU.
        plan: a Plan or its file; None makes one from `mode`.
        predictor: a Predictor or its file, for mode predicted; None is the `predictor.safetensors` of the folder.
        audit: every so many decode steps, compare what is predicted with what is active; `engine.stats` has the recall.
        budget: bytes of GPU memory for all that is there, as a number or as in "8GiB": hot neurons go there, cold ones
            stay with the CPU. The plan is kept in the cache (`machine.cache_folder`), and so is a profile that had to
            be made.
        profile: a Profile or its file, for a budget or a placed plan; None is the cached one, else one of the packaged
            text.
        machine: to plan for, with a budget: a Machine, its file or a preset's name.
        adapt: bytes of neurons that may change places between GPU and CPU after each prompt, as a number or as in
            "256MiB", so that those which its text needs are on the GPU; None leaves them where the plan puts them.
        deterministic: read prompts in steps of 16 tokens by the kernels of decode steps, slower, so that all bits are
            the same for any number of threads. Decode steps are that always, and runs repeat to the bit either way.
            Nothing is timed then: every layer runs as planned.
        progress: called with (bytes done, bytes in all) while weights are read.

    Raises:
        UserError: wrong options, a folder that is missing, malformed or not supported, a budget that is too small.
        MachineError: no such device, or not enough memory.
    """
    if dtype is not None and weights not in ("auto", dtype):
        raise UserError(f"load: dtype {dtype!r} and weights {weights!r} disagree; dtype is an alias, pass one")
    if budget is None:
        this.resolve_device(device)  # a device that is not there is told before anything else
        if machine is not None:
            raise UserError("load: a machine is what a budget is planned for, and there is none; pass --budget too")
    elif plan is not None:
        raise UserError("load: a plan already has its budget, but another one was given too; pass one of them")
    else:
        parse_size(budget, "budget")
        fast_device(device)
    set_threads(threads)
    path = resolve_model(EMBEDDED_MODEL if model is None else model, gguf=True)
    source = open_source(path, fatrelu_threshold)
    config = source.config
    name = EMBEDDED_MODEL.name if model is None else str(model)
    for note in config.notes:
        log.warning("%s: %s", name, note)
    tokens = _check_context(context, config)
    # What is quick to read comes first, so that a fault in it is told before gigabytes are; of that the headers of the
    # weights, before anything is made to the sizes of a config that may be wrong.
    checkpoint = source.checkpoint()
    check_names(checkpoint, config)
    predictor = _predictor(predictor, source.path, mode, plan)
    asked, division = held_formats(checkpoint, Formats(dtype or weights, lm_head)), None
    if budget is None:
        chosen = _plan(plan, config, mode, predictor)
    else:

        def whole(formats: Formats) -> Engine:
            return load(
                path, "dense", formats.weights, "cpu", lm_head=formats.lm_head, threads=threads, progress=progress,
                context=min(tokens, WINDOW), fatrelu_threshold=fatrelu_threshold,
            )  # fmt: skip

        chosen, profile = plan_for(budget, machine, checkpoint, config, mode, asked, tokens, predictor, profile, whole)
    every = check_every(audit, chosen.mode)
    tokenizer, model_sampling, known, limit = source.tokenizer(), source.sampling(), None, None
    movable = None if adapt is None else parse_size(adapt, "adapt")
    if chosen.placement is not None:
        if deterministic:
            raise UserError("load: deterministic is for a model on one device; leave it or the budget and plan out")
        asked, tokens = agreed(chosen.placement, asked, context)
        known = known_profile(profile, config, content_of(checkpoint, config))
        division = divide(chosen, config, known, fast_device(device))
        limit = grant(chosen.placement.budget, division.fast)
        check_room(chosen, config, tokens, predictor, division.fast, limit)
    elif profile is not None or movable is not None:
        what = "a profile" if profile is not None else "adapt"
        raise UserError(f"load: {what} is for a budget or a placed plan, and there is neither; pass --budget too")
    else:
        asked = choose_formats(checkpoint, names_of(config), asked)
    where = this.resolve_device(device)
    held = Held(config, asked.weights, tokens, None if limit is None else limit.budget)
    with told("load", held, where):
        tensors = load_weights(
            checkpoint, config, asked.weights, where, progress, lm_head=asked.lm_head,
            layouts=[layer.layout for layer in chosen.layers], division=division,
            instead=fitting_budget(held) if where.type == "cuda" else None,
        )  # fmt: skip
        decoder = assemble(config, tensors, chosen, tokens, predictor, division)
    fmt, head = tensors.layers[0].gate.format, tensors.lm_head.format
    formats = fmt if head == fmt else f"{fmt} (lm_head {head})"
    log.info("%s: %s weights, mode %s (%s)", name, formats, chosen.mode, chosen.reason)
    kv_dtype = torch.float32 if fmt == "fp32" else torch.bfloat16
    pool = None if why_no_step(decoder) else StepPool(decoder, kv_dtype)
    times = None if deterministic else times_of(decoder, chosen)
    adapting = None if movable is None or known is None else Adapting.of(decoder, known, movable)
    return Engine(
        decoder, tokenizer, chosen, model_sampling, kv_dtype, every, deterministic, pool, times, limit, adapting
    )


def assemble(
    config: ModelConfig,
    tensors: ModelWeights,
    plan: Plan,
    context: int,
    predictor: Predictor | None = None,
    division: Division | None = None,
) -> Decoder:
    """A decoder over weights in memory, divided or not, with the FFN blocks that the plan names.

    Raises:
        UserError: the plan has predicted layers for which there is no predictor, or it is of another model.
    """
    if predictor is not None:
        norms = [norm for own in tensors.layers for norm in (own.attention_norm, own.ffn_norm)]
        content = content_key(norm for norm in (*norms, tensors.final_norm) if norm is not None)
        predictor.check_fits(fingerprint(config), content, config.layers, config.neurons, config.hidden)
    sharing = None if division is None else Sharing(division, tensors)
    blocks: list[tuple[Attention, FFN]] = []
    for layer, (own, how) in enumerate(zip(tensors.layers, plan.layers, strict=True)):
        attention = Attention(
            config, layer, own.attention_norm, own.qkv, own.qkv_bias, own.o, own.attention_norm_bias, own.o_bias
        )
        guess = _of_layer(predictor, layer) if how.mode == "predicted" else None
        ffn: FFN | None
        if sharing is not None and own.cold is not None:
            blocks.append((attention, sharing.ffn(config, layer, own, own.cold, how.mode, guess)))
            continue
        selector = None if guess is None else Selector(guess, own.gate)
        ffn = other_ffn(config, own, how.mode, selector)
        if ffn is None:
            assert own.up is not None, "an FFN without up projection is another block"
            parts = (
                own.ffn_norm, config.norm_eps, own.gate, own.up, own.down, config.activation, config.residual_scale,
            )  # fmt: skip
            if selector is not None:
                ffn = PredictedFFN(*parts, selector=selector)
            else:
                ffn = FFN_OF_MODE[how.mode](*parts)
        blocks.append((attention, ffn))
    ends = Ends(tensors.positions, tensors.project_in, tensors.project_out, tensors.final_norm_bias)
    tiers = None if division is None else tiers_of(division, tensors.embed is tensors.lm_head)
    return Decoder(config, tensors.embed, blocks, tensors.final_norm, tensors.lm_head, context, ends, tiers)


def _of_layer(predictor: Predictor | None, layer: int) -> LayerPredictor:
    own = None if predictor is None else predictor.layers[layer]
    if own is None:
        raise UserError(
            f"plan: layer {layer} is predicted, but there is no predictor for it; pass one, or make it exact"
        )
    return own


def _predictor(
    given: Predictor | str | Path | None, folder: Path, mode: str, plan: Plan | str | Path | None
) -> Predictor | None:
    if given is not None:
        if mode not in ("auto", "predicted"):
            raise UserError(
                f"load: a predictor is for mode predicted, but mode {mode!r} was given too; pass one of them"
            )
        return given if isinstance(given, Predictor) else Predictor.load(given)
    wanted = mode == "predicted" or plan is not None
    return Predictor.load(folder / PREDICTOR_FILE) if wanted and (folder / PREDICTOR_FILE).is_file() else None


def _plan(plan: Plan | str | Path | None, config: ModelConfig, mode: str, predictor: Predictor | None) -> Plan:
    if plan is None:
        return choose(config, mode, predictor)
    if mode != "auto":
        raise UserError(f"load: a plan already says how each layer runs, but mode {mode!r} was given too; pass one")
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    chosen.check_fits(config)
    if any(layer.mode != "dense" for layer in chosen.layers) and not config.activation.makes_zeros:
        raise UserError(f"plan: has sparse layers, but {config.activation} makes no exact zeros; make a dense plan")
    return chosen


def _check_context(context: int | None, config: ModelConfig) -> int:
    if context is None:
        return min(config.max_position, DEFAULT_CONTEXT)
    longest = 2**31 - 1 if config.rope.kind == "dynamic" else config.max_position
    if isinstance(context, bool) or not isinstance(context, int) or not 2 <= context <= longest:
        raise UserError(f"load: context must be from 2 to {longest} tokens for this model, got {context!r}")
    return context


def set_threads(threads: int | None) -> None:
    """Use this many CPU threads in this process. Raises UserError for a number that is none."""
    if threads is None:
        held, threads = torch.get_num_threads(), this.default_threads()
        if threads < held:
            log.info("%d threads instead of %d: no more can run at once here (`prosparse doctor`)", threads, held)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise UserError(f"load: threads must be from 1 to 1024, got {threads!r}")
    torch.set_num_threads(threads)
