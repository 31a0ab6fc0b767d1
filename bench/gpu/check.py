"""python -m prosparse.bench.gpu.check: what `make gpu-check` runs.

Each part is a process with a time limit, so that none can take another down. What is done is kept in state.json and not
done again; rows.jsonl and table.txt are written anew after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from prosparse.kernels import cpu

from . import FORMATS
from .report import table

ROOT = Path(__file__).parents[2]
TOTAL_S = 520  # of one command: under 9 minutes with what lies between parts
CUDA_TOOLS = "/usr/local/cuda/bin"  # where they lie if they are not in the PATH
LEAST_S = 40  # a part is not begun with less left: most of it would be done twice
FINAL = ("done", "failed", "stopped", "left out")  # a part that was cut, for want of time, is not
ME = ("-m", "prosparse.bench.gpu.check")
ONE_THREAD = (("OMP_NUM_THREADS", "1"),)  # of each of several processes
WARM = ("tokens-1b", "tokens-7b", "ops-1b", "ops-7b", "variants-7b")
OWN_TESTS = ("choice", "replay", "step", "engine_step", "argmax", "ffn_23", "gpu_parts", "overlap")
# These look at all of the GPU's memory, so nothing may run beside them.
ALONE = ("tests/gpu/test_machine.py", "tests/gpu/test_budget.py")
GPU_TESTS = (
    "tests/gpu",
    *(f"--ignore={path}" for path in ALONE),
    *(f"tests/triton/test_{name}.py" for name in OWN_TESTS),
)
# Most of a test is compiling, which several processes do at once.
WORKERS = ("-n", str(min(12, os.cpu_count() or 1))) if find_spec("xdist") else ()
# Every result in a line of its own as it comes: a part may be stopped before its end says which failed. What knows the
# marks of the tests stays loaded, or those of a whole folder are not even collected.
PYTEST = ("-m", "pytest", "-v", "-p", "no:cacheprovider", "--disable-warnings", "--tb=short")


@dataclass(frozen=True)
class Job:
    """A part.

    Args:
        name: of it.
        limit_s: after that it is stopped; its rows are kept.
        what: one line for a person.
        commands: arguments of Python, run at the same time; {rows} is a file for rows.
        tool: a program that is put in front, and without which the part is left out.
        variables: of the environment.
    """

    name: str
    limit_s: int
    what: str
    commands: tuple[tuple[str, ...], ...]
    tool: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def measuring(name: str, limit_s: int, what: str) -> Job:
    return Job(name, limit_s, what, ((*ME, "--part", name, "--rows", "{rows}"),))


JOBS = (
    measuring("environment", 120, "versions, read bandwidth, cost of a launch in a graph"),
    Job(
        "tests", 150, "tests of graphs, launchers and whole steps on the GPU", ((*PYTEST, *WORKERS, *GPU_TESTS),), (),
        ONE_THREAD,
    ),
    Job(
        "warm", 150, "compile all kernels and check them at real sizes, a process for each part and format",
        tuple((*ME, "--part", name, "--format", fmt, "--rounds", "1") for name in WARM for fmt in FORMATS),
        (), ONE_THREAD,
    ),
    measuring("tokens-1b", 90, "whole tokens of MiniCPM-S-1B: graph and op by op, dense and exact; energy"),
    measuring("tokens-7b", 100, "whole tokens of the 7B shape"),
    measuring("hybrid", 100, "1B and 7B within half of their bytes: the placed plan against the layer split, exact"),
    measuring("ops-7b", 90, "linear, gate_select, FFN, attention at 7B against cuBLAS"),
    measuring("ops-1b", 60, "the same at 1B"),
    measuring("variants-7b", 120, "other tiles, warps and stages"),
    measuring("ffn-7b", 60, "FFNs from 0 to 98 % zeros at 7B"),
    measuring("transformers-eager-1b", 60, "transformers, eager, 1B bf16"),
    measuring("transformers-compile-1b", 240, "transformers, torch.compile with static cache, 1B bf16"),
    Job("memory-tests", 120, "tests of what the machine has and of budgets", ((*PYTEST, *ALONE),)),
    Job(
        "op-tests", 240, "a sample of the op tests with the Triton kernels",
        ((*PYTEST, *WORKERS, "-p", "triton_sample", "tests/ops"),), (), ONE_THREAD,
    ),
    *(
        Job(
            f"sanitizer-{tool}", 90, f"compute-sanitizer {tool} on tiny ops", ((*PYTEST, "tests/gpu/test_tiny.py"),),
            ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
            (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),  # else what is next to a tensor belongs to it as well
        )
        for tool in ("racecheck", "memcheck")
    ),
    measuring("ffn-1b", 45, "FFNs from 0 to 98 % zeros at 1B"),
    measuring("transformers-compile-7b", 240, "transformers, torch.compile with static cache, 7B bf16"),
    measuring("ops-13b", 90, "linear, gate_select, FFN, attention at 13B"),
)  # fmt: skip


def run(job: Job, limit_s: float, folder: Path) -> dict[str, Any]:
    """Run a part; what it said, and its rows, also where it was stopped. Both are in the folder as they come."""
    search = os.pathsep.join([os.environ.get("PATH", ""), CUDA_TOOLS])
    tool = shutil.which(job.tool[0], path=search) if job.tool else None
    if job.tool and tool is None:
        return {"status": "left out", "seconds": 0.0, "tail": f"{job.tool[0]} is not installed", "rows": []}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "ops")])
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "PROSPARSE_TEST_GPU": "1"}
    environment = os.environ | own | dict(job.variables)
    environment.pop("TRITON_INTERPRET", None)
    began, rows, log = time.monotonic(), folder.resolve() / "running.jsonl", folder / "log.txt"
    rows.unlink(missing_ok=True)
    in_front = [tool, *job.tool[1:]] if tool else []
    with log.open("ab") as file:
        file.write(f"=== {job.name}\n".encode())
        file.flush()
        start = file.tell()
        started = [
            subprocess.Popen(
                [*in_front, sys.executable, *(str(rows) if part == "{rows}" else part for part in command)],
                cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )
            for command in job.commands
        ]  # fmt: skip
        codes = [wait(process, began + limit_s - time.monotonic()) for process in started]
    said = log.read_bytes()[start:].decode(errors="replace")
    written = rows.read_text().splitlines(keepends=True) if rows.exists() else []
    keep = [line for line in said.splitlines() if line.strip()]
    told = [line for line in keep if re.search(r"^(FAILED|ERROR)| FAILED: | FAILED tests/", line)]
    return {
        "status": "stopped" if None in codes else "failed" if any(codes) else "done",
        "seconds": round(time.monotonic() - began, 1),
        "tail": "\n".join(told[:20] or keep[-3:]),
        "rows": [json.loads(line) for line in written if line.endswith("\n")],  # the last may have been cut off
    }


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit status; None where the time was up, and then nothing of its group is left running."""
    try:
        return process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="gpu-check", description=__doc__.split("\n\n")[1])
    folder = Path(os.environ.get("OUT") or "gpu-check")
    made.add_argument("-o", "--output", type=Path, default=folder, metavar="DIR", help=f"default: {folder} ($OUT)")
    made.add_argument("--resume", type=Path, metavar="FILE", help="state.json of an earlier run, where DIR has none")
    made.add_argument("--only", action="append", metavar="PART", help="may be repeated; runs it again")
    made.add_argument("--dry-run", action="store_true", help="list the parts")
    made.add_argument("--part", help=argparse.SUPPRESS)
    made.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--rounds", type=int, default=20, help=argparse.SUPPRESS)
    made.add_argument("--format", choices=FORMATS, help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parse = parser()
    args = parse.parse_args(arguments)
    names = [job.name for job in JOBS]
    if unknown := set(args.only or ()) - set(names):
        parse.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if args.dry_run:
        sys.stdout.writelines(f"{job.name:24} {job.limit_s:4} s at most  {job.what}\n" for job in JOBS)
        return 0
    if not torch.cuda.is_available():
        sys.stderr.write("gpu-check: no NVIDIA GPU here; run it on a CUDA machine (--dry-run lists the parts)\n")
        return 2
    if args.part:
        from .parts import run_part  # Triton, and what measures

        return run_part(args.part, args.rows, args.rounds, (args.format,) if args.format else FORMATS)
    if not cpu.available():
        sys.stdout.write(
            "gpu-check: the C++ kernels are not built, so hybrid has nothing to measure and tests compare with "
            "references; `make kernels/cpu/_C.abi3.so` builds them, with the PY of this command\n"
        )
    args.output.mkdir(parents=True, exist_ok=True)
    state_file = args.output / "state.json"
    source = state_file if state_file.exists() else args.resume
    state: dict[str, Any] = json.loads(source.read_text()) if source else {}
    return check([job for job in JOBS if not args.only or job.name in args.only], state, args.output, bool(args.only))


def check(jobs: Sequence[Job], state: dict[str, Any], folder: Path, again: bool = False) -> int:
    """Run parts that are not done; 1 where one failed."""
    began = time.monotonic()
    for job in jobs:
        if not again and state.get(job.name, {}).get("status") in FINAL:
            continue
        left = TOTAL_S - (time.monotonic() - began)
        if left < LEAST_S:
            sys.stdout.write("gpu-check: the time is up; the same command goes on with what is left\n")
            break
        sys.stdout.write(f"{job.name}: {job.what} ...\n")
        sys.stdout.flush()
        state[job.name] = found = run(job, min(job.limit_s, left), folder)
        if found["status"] == "stopped" and left < job.limit_s:
            found["status"] = "cut"
        sys.stdout.write(f"{job.name}: {found['status']} after {found['seconds']} s, {len(found['rows'])} rows\n")
        if found["status"] != "done":
            sys.stdout.write(found["tail"] + "\n")
        rows = [row for part in state.values() for row in part["rows"]]
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "table.txt").write_text(table(rows))
    sys.stdout.write(table([row for part in state.values() for row in part["rows"]]))
    missing = [job.name for job in jobs if state.get(job.name, {}).get("status") not in FINAL]
    wrong = [name for name, part in state.items() if part["status"] in ("failed", "stopped")]
    sys.stdout.write(f"not run: {', '.join(missing) or 'none'}; failed or stopped: {', '.join(wrong) or 'none'}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
