"""Compile the Triton kernels for GPUs that are not here, and check what came out.

    python tools/compile_triton.py                       every case for every target
    python tools/compile_triton.py --quick sm_80 sm_90   one model, two targets

Prints one line per kernel: registers, shared memory, programs per multiprocessor, the bytes these keep in flight
against what hides the latency of the memory, and for kernels of whole rows the instructions of a thread for each
weight. Exit status 1 where a kernel spills in a loop, reads weights in less than 16 bytes, or (with the pinned Triton)
goes over its budget. A line marked "little" is no error: that launch waits for memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

TOOLS = Path(__file__).parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]  # PYTHONSAFEPATH leaves the first out; a bare checkout is not installed
os.environ.pop("TRITON_INTERPRET", None)  # read when kernels are decorated
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from aot.checks import in_flight, per_weight, problems, programs_per_sm, tile_bytes  # noqa: E402
from aot.cubin import Resources, compile_launch  # noqa: E402
from aot.launches import Launch  # noqa: E402
from aot.targets import FULL, QUICK, TARGETS, Case, Target, launches_of  # noqa: E402

Work = tuple[Target, Case, Launch]


def collect(cases: list[Case], targets: list[Target]) -> list[Work]:
    """Every launch once per target: different cases often share a kernel."""
    found: dict[tuple[int, str], Work] = {}
    for target in targets:
        for case in cases:
            for launch in launches_of(case, target.gpu):
                found.setdefault((target.gpu.capability, launch.key()), (target, case, launch))
    return list(found.values())


def compile_one(number: int) -> Resources | str:
    target, _, launch = work[number]
    try:
        return compile_launch(launch, target.gpu.capability)
    except Exception as error:  # whatever the compiler says is a result
        return f"{type(error).__name__}: {error}"


def line(target: Target, case: Case, launch: Launch, found: Resources) -> str:
    flight, needed = in_flight(launch, found, target), target.needed_in_flight
    text = (
        f"{target.name:9} {str(case):20} {launch.name:12} {launch.programs:5} programs of {launch.warps} warps, "
        f"{found.registers:3} registers, {found.shared / 1024:5.1f} KiB shared, "
        f"{programs_per_sm(launch, found, target)} per SM"
    )
    if not tile_bytes(launch):
        return text
    verdict = "" if flight >= needed else "  little"
    work = f", {each:.1f} instructions a weight" if (each := per_weight(launch, found)) else ""
    return f"{text}, {flight / 1024:4.0f} KiB in flight of {needed / 1024:3.0f}{verdict}{work}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="sm_90", help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="one model only")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    names = {f"sm_{capability}": target for capability, target in TARGETS.items()}
    if unknown := set(args.targets) - set(names):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    began = time.monotonic()
    work.extend(collect(QUICK if args.quick else FULL, [names[name] for name in args.targets or names]))
    wrong = 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with multiprocessing.get_context("fork").Pool(args.processes) as pool:
            for (target, case, launch), found in zip(work, pool.imap(compile_one, range(len(work))), strict=True):
                said = [found] if isinstance(found, str) else problems(case, launch, found, target)
                if isinstance(found, Resources):
                    sys.stdout.write(line(target, case, launch, found) + "\n")
                for problem in said:
                    sys.stdout.write(f"  WRONG: {target.name}, {case}, {launch.name}: {problem}\n")
                wrong += bool(said)
                sys.stdout.flush()
    sys.stdout.write(f"{len(work)} kernels, {wrong} with problems, {time.monotonic() - began:.0f} s\n")
    return 1 if wrong else 0


work: list[Work] = []  # what `main` fills, and the processes forked after that find

if __name__ == "__main__":
    sys.exit(main())
