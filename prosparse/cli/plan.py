"""prosparse plan: what of a model lies on the GPU and what on the CPU, and how fast that is expected to be."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from . import measured, options

if TYPE_CHECKING:
    from ..hardware import Machine
    from ..placement.explain import Explanation
    from ..plan import Plan
    from ..study.placing import Subject

NAME = "plan"
HELP = "place a model on a GPU and a CPU within a budget of GPU memory"
DESCRIPTION = (
    "Decide which layers, and which neurons of each, lie on the GPU within a budget, so that a token takes the least "
    "time on the machine: this one, measured, or one that is described. Without a profile, a model is profiled on the "
    "packaged text, and a shape has synthetic frequencies. Speeds are expectations of a model of the machine."
)
SPARSITY = 0.88  # MiniCPM-S-1B's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    what = parser.add_argument_group("what is placed")
    what.add_argument("--shape", metavar="NAME", help="a real model's shape instead of a model")
    what.add_argument(
        "--sparsity", type=float, metavar="S", help=f"activation sparsity of --shape (default: {SPARSITY})"
    )
    what.add_argument("--skew", type=float, metavar="H", help="of --shape: share of activations in the hottest fifth")
    what.add_argument("--profile", metavar="P", help="neuron activation counts, from `prosparse profile`")
    what.add_argument("--predictor", metavar="FILE", help="of mode predicted; without one a shape takes a typical one")
    what.add_argument("--mode", default="auto", help="auto, dense, exact or predicted (default: auto)")
    options.add_formats(what, "default: as stored; bf16 with --shape")
    what.add_argument("--context", type=int, metavar="N", help="tokens that the cache has room for (default: 4096)")
    where = parser.add_argument_group("where")
    where.add_argument("--budget", metavar="SIZE", help="GPU memory, for example 8GiB (default: what is free)")
    where.add_argument(
        "--machine", metavar="M", help="a preset (8gb-pcie4, ..) or a description file (default: this one, measured)"
    )
    out = parser.add_argument_group("output")
    out.add_argument("--explain", action="store_true", help="a table: bytes per device, cuts, and what else there is")
    out.add_argument("--simulate", action="store_true", help="simulate what --explain compares, token by token")
    out.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the plan, for `--plan FILE`")
    out.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    out.add_argument("--json", action="store_true", help="print plan and explanation as one JSON document")


def run(args: argparse.Namespace) -> int:
    _check(args)
    from ..hardware import named_machine, parse_size, this_machine  # heavy, like everything below, for --help
    from ..placement import place
    from ..placement.explain import explain
    from ..study import placing
    from ..weights.predictor import Predictor
    from ..weights.synthetic import Knobs
    from ..weights.whole_files import write_whole

    budget = None if args.budget is None else parse_size(args.budget, "--budget")
    machine = this_machine() if args.machine is None else named_machine(args.machine)
    predictor = None if args.predictor is None else Predictor.load(args.predictor)
    asked = (args.profile, args.weights, args.lm_head, args.context)
    if args.shape is not None:
        knobs = Knobs(SPARSITY if args.sparsity is None else args.sparsity, args.skew)
        subject = placing.of_shape(args.shape, knobs, *asked)
    else:
        subject = placing.of_model(args.model, *asked, predictor, measured.bars())
    plan = place(
        subject.config,
        subject.profile,
        machine,
        machine.gpu_bytes if budget is None else budget,
        mode=args.mode,
        weights=subject.weights,
        lm_head=subject.lm_head,
        context=subject.context,
        predictor=predictor,
        assumed_predictor=args.shape is not None,
    )
    if args.output is not None:
        write_whole({args.output: plan.to_json().encode()})
        sys.stderr.write(f"prosparse: wrote {args.output}\n")
    if args.json or args.explain:
        found = explain(subject.config, plan, subject.profile, machine, predictor, args.simulate)
        if args.json:
            told = {"machine": machine.name, "frequencies": subject.profile.text, "plan": json.loads(plan.to_json())}
            sys.stdout.write(json.dumps({**told, "explanation": found.as_dict()}, indent=1) + "\n")
        else:
            sys.stdout.write(_table(plan, found, machine, subject))
    else:
        assert plan.placement is not None, "place gives a placement"
        sys.stdout.write(f"{plan.reason}; expected {plan.placement.tokens_per_s:.1f} tokens/s\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.model is not None and args.shape is not None:
        raise UserError("plan: a model and --shape were given; pass one")
    for name in ("sparsity", "skew"):
        if getattr(args, name) is not None and (args.shape is None or args.profile is not None):
            raise UserError(f"plan: --{name} belongs to --shape without --profile; leave it out")
    if args.simulate and not (args.explain or args.json):
        raise UserError("plan: --simulate adds to what --explain or --json shows; pass one of them")
    if args.output is not None and args.output.is_dir():
        raise UserError(f"plan: {args.output} is a folder; give a file to write")
    if args.output is not None and args.output.exists() and not args.overwrite:
        raise UserError(f"plan: {args.output} exists; choose another file, or --overwrite to replace it")


def _table(plan: Plan, found: Explanation, machine: Machine, subject: Subject) -> str:
    from ..hardware import show_size

    assert plan.placement is not None, "place gives a placement"
    placement = plan.placement
    lines = [
        f"{plan.reason}",
        f"machine      {machine.name}: {machine.source}",
        f"model        mode {plan.mode}, {placement.weights} (lm_head {placement.lm_head}), "
        f"cache of {placement.context} tokens",
        f"frequencies  {subject.profile.text}",
        "",
        f"{'bytes':<22}{'GPU':>12}{'CPU':>12}",
    ]
    for part in dict.fromkeys([*found.gpu, *found.cpu]):
        here, there = found.gpu.get(part, 0), found.cpu.get(part, 0)
        if here or there:
            lines.append(f"{part:<22}{show_size(here) if here else '-':>12}{show_size(there) if there else '-':>12}")
    total = [show_size(sum(side.values())) for side in (found.gpu, found.cpu)]
    lines += [
        f"{'together':<22}{total[0]:>12}{total[1]:>12}",
        "",
        *_cuts(plan, subject.config.neurons),
        f"up and down rows on the GPU cover {found.covered:.1%} of the activations",
        "",
        f"{'expected tokens/s':<46}{'':>8}{'simulated' if found.ways[0].simulated is not None else '':>12}",
    ]
    for way in found.ways:
        simulated = "" if way.simulated is None else f"{way.simulated:.1f}"
        lines.append(f"{way.name:<46}{way.tokens_per_s:>8.1f}{simulated:>12}".rstrip())
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _cuts(plan: Plan, neurons: int) -> list[str]:
    """Neighbouring layers with the same kind of split, one line each."""
    lines: list[str] = []
    splits = [layer.split for layer in plan.layers if layer.split is not None]
    kinds = ["CPU" if not own.attention else "GPU" if own.hot == neurons else "both" for own in splits]
    start = 0
    for at in range(1, len(kinds) + 1):
        if at < len(kinds) and kinds[at] == kinds[start]:
            continue
        run = splits[start:at]
        name = f"layer {start}" if at - start == 1 else f"layers {start} to {at - 1}"
        what = {"CPU": "on the CPU", "GPU": "on the GPU"}.get(kinds[start])
        if what is None:
            gate, hot = ([getattr(own, cut) / neurons for own in run] for cut in ("gate", "hot"))
            what = f"on both: gate {_range(gate)} on the GPU, up and down {_range(hot)}"
        lines.append(f"{name:<16}{what}")
        start = at
    return lines


def _range(shares: list[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"
