"""python -m prosparse.bench: run the table of cases."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import textwrap
from pathlib import Path

from rich.console import Console

from prosparse.engine.load import set_threads

from .cases import CASES, QUICK, chosen, subjects
from .run import run_cases
from .table import render

DESCRIPTION = """\
Run the benchmark cases: all of them, which takes an hour or more, or those that are named. Every case checks its ops
before it times them; what is compared takes turns, beside a probe of the memory's bandwidth. Rows go to stdout or a
file, a table to stderr. `prosparse bench` times a model of yours, or one shape with other options.
"""
EPILOG = """\
cases, by subject (docs/benchmarks.md says what each compares):
{cases}

examples:
  python -m prosparse.bench --quick
  python -m prosparse.bench --only ops --only prefill-1b-bf16 -o rows.jsonl
  python -m prosparse.bench.compare before.jsonl after.jsonl
  python -m prosparse.bench.plots rows.jsonl -o figures
"""


def parser() -> argparse.ArgumentParser:
    wide = max(map(len, subjects())) + 2
    cases = "\n".join(
        textwrap.fill(
            f"{subject:{wide}}" + " ".join(name for name in CASES if name.split("-")[0] == subject),
            width=110,
            initial_indent="  ",
            subsequent_indent=" " * (wide + 2),
            break_on_hyphens=False,
        )
        for subject in subjects()
    )
    made = argparse.ArgumentParser(
        prog="python -m prosparse.bench",
        description=DESCRIPTION,
        epilog=EPILOG.format(cases=cases),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, and shorter")
    made.add_argument(
        "--only", action="append", metavar="NAME", help="a case or a subject; may be repeated (default: all)"
    )
    made.add_argument("-o", "--output", type=Path, metavar="FILE", help="append rows to FILE, one JSON object a line")
    return made


def main() -> int:
    parse = parser()
    args = parse.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    set_threads(None)
    table = QUICK if args.quick else CASES
    for name in args.only or ():
        if not chosen([name], table):
            parse.error(f"no case or subject {name!r}; there are {', '.join(table)}")
    rows, failed = run_cases(chosen(args.only, table), args.output)
    if args.output is None:
        sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)
    if rows:
        Console(stderr=True).print(render(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
