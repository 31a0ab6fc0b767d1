"""python -m prosparse.bench: run the table of cases."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from rich.console import Console

from .cases import CASES, QUICK
from .run import run_cases
from .table import render


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m prosparse.bench", description="Run the benchmark cases.")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, and shorter")
    parser.add_argument("--only", action="append", choices=list(CASES), help="only this case; may be repeated")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="append rows to FILE, one JSON object a line")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    table = QUICK if args.quick else CASES
    chosen = {name: case for name, case in table.items() if args.only is None or name in args.only}
    rows, failed = run_cases(chosen, args.output)
    if args.output is None:
        sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)
    if rows:
        Console(stderr=True).print(render(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
