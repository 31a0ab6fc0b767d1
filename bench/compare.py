"""python -m prosparse.bench.compare BEFORE AFTER: do two result files differ beyond noise?

Rows of the same case are compared by the p10 of their samples, drawn again two thousand times: first the runs of a
file, then blocks of calls within a run, since a slow moment lasts for several calls. One run knows nothing of what the
machine does between runs: on a shared one, append several runs to each file, in turns, or compare `--by base`, the
time over that of the row's base in the same run. A difference counts where its 95 % interval is beyond the margin.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from prosparse.errors import ProsparseError, UserError

from .clock import Samples
from .files import read_rows
from .row import Row
from .samples import unpack

CASE = ("subject", "part", "model", "shape", "layers", "mode", "weights", "device", "threads", "batch", "context")
KNOBS = ("activation_sparsity", "skew", "predictability", "overlap")
RESAMPLES = 2000
BLOCK = 8  # calls that are drawn together
MARGIN = 0.05
SLOWER, FASTER, SAME, UNKNOWN = "slower", "faster", "no difference", "not compared"
Run = tuple[Samples, Samples | None]  # of the row, and of its base


@dataclass(frozen=True)
class Difference:
    """One case in both files.

    Args:
        case: what was measured.
        before, after: p10 in microseconds, or over that of the base; KL divergence of a quality row.
        ratio, low, high: after over before with its 95 % interval; None where a row holds no samples.
        verdict: one of the four of this module; "slower" of a quality row is a larger divergence.
    """

    case: str
    before: float
    after: float
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str


def compare_rows(
    before: Sequence[Row], after: Sequence[Row], by: str = "time", margin: float = MARGIN
) -> list[Difference]:
    """Compare the cases that both have.

    Args:
        before, after: rows.
        by: "time", or "base": a row's time over that of its base in the same run; rows without one are left out.
        margin: differences within this share are none.
    """
    found = []
    old, new = _cases(before), _cases(after)
    for case in old:
        if case not in new:
            continue
        if old[case][0]["subject"] == "quality":
            found.append(_quality(case, old[case][-1], new[case][-1]))
            continue
        runs = [list(_runs(rows, everything, by)) for rows, everything in ((old[case], before), (new[case], after))]
        if all(runs):
            found.append(_difference(case, runs[0], runs[1], margin))
        elif by == "time":
            before_us, after_us = (float(np.mean([row["p10_us"] for row in rows])) for rows in (old[case], new[case]))
            found.append(Difference(json.loads(case)[0], before_us, after_us, None, None, None, UNKNOWN))
    return found


def _cases(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what they measure."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        if row["subject"] == "hybrid":  # simulated: there are no times to compare
            continue
        asked = row.get("synthetic") or {}
        parts = [f"{row[key]}" for key in ("subject", "part", "model", "shape", "weights", "mode") if row.get(key)]
        parts += [f"at {asked['activation_sparsity']:.0%}"] if asked else []
        parts += [f"{row['batch']} sequences"] if (row.get("batch") or 1) > 1 else []
        rest = [row.get(key) for key in CASE] + [asked.get(key) for key in KNOBS]
        cases.setdefault(json.dumps([" ".join(parts), rest]), []).append(row)
    return cases


def _runs(rows: Sequence[Row], everything: Sequence[Row], by: str) -> Iterator[Run]:
    for row in rows:
        samples = unpack(row)
        if samples is None:
            continue
        if by == "time":
            yield samples, None
            continue
        # the base of a run is the row that is exactly as fast as itself
        for other in everything:
            if other.get("run") == row.get("run") and other.get("dense_ratio_95") == [1.0, 1.0] and other is not row:
                base = unpack(other)
                if base is not None and base.size == samples.size:
                    yield samples, base


def _difference(case: str, before: Sequence[Run], after: Sequence[Run], margin: float) -> Difference:
    rng = np.random.default_rng(0)
    drawn = np.exp(_drawn(after, rng) - _drawn(before, rng))
    low, high = (float(bound) for bound in np.percentile(drawn, [2.5, 97.5]))
    old, new = (float(np.exp(np.mean([_p10(run) for run in runs]))) for runs in (before, after))
    verdict = SLOWER if low > 1 + margin else FASTER if high < 1 / (1 + margin) else SAME
    return Difference(json.loads(case)[0], old, new, new / old, low, high, verdict)


def _p10(run: Run) -> float:
    """Its logarithm."""
    samples, base = run
    own = float(np.log(np.percentile(samples, 10)))
    return own if base is None else own - float(np.log(np.percentile(base, 10)))


def _drawn(runs: Sequence[Run], rng: np.random.Generator) -> Samples:
    """Means over runs of the logarithm of p10, [RESAMPLES], runs and blocks of calls drawn again."""
    each = np.stack([_drawn_p10(run, rng) for run in runs], axis=1)
    if len(runs) == 1:
        return each[:, 0]
    picked = rng.integers(0, len(runs), (RESAMPLES, len(runs)))
    return np.take_along_axis(each, picked, axis=1).mean(axis=1)


def _drawn_p10(run: Run, rng: np.random.Generator) -> Samples:
    samples, base = run
    starts = rng.integers(0, max(1, samples.size - BLOCK + 1), (RESAMPLES, -(-samples.size // BLOCK)))
    places = (starts[:, :, None] + np.arange(min(BLOCK, samples.size))).reshape(RESAMPLES, -1)
    own = np.log(np.percentile(samples[places], 10, axis=1))
    return own if base is None else own - np.log(np.percentile(base[places], 10, axis=1))


def _quality(case: str, before: Row, after: Row) -> Difference:
    (old, old_low, old_high), (new, new_low, new_high) = (row["quality"]["kl_divergence"] for row in (before, after))
    verdict = SAME
    if old_low is not None and new_low is not None:
        verdict = SLOWER if new_low > old_high else FASTER if new_high < old_low else SAME
    return Difference(json.loads(case)[0], old, new, new / old if old else None, None, None, verdict)


def parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    title, _, text = __doc__.partition(": ")
    made = argparse.ArgumentParser(
        prog="python -m prosparse.bench.compare",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 no case is slower, 1 some are, 2 wrong input.",
    )
    made.add_argument("before", type=Path, metavar="BEFORE", help="rows, one JSON object a line")
    made.add_argument("after", type=Path, metavar="AFTER", help="the same cases, measured later")
    made.add_argument("--by", choices=("time", "base"), default="time", help="what is compared (default: time)")
    margin = f"a difference within this share is none (default: {MARGIN})"
    made.add_argument("--margin", type=float, default=MARGIN, metavar="M", help=margin)
    made.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        if not 0 <= args.margin < 1:
            raise UserError(f"compare: --margin must be at least 0 and below 1, got {args.margin}")
        before, after = read_rows(args.before), read_rows(args.after)
        found = compare_rows(before, after, args.by, args.margin)
        if not found:
            raise UserError(f"compare: {args.before} and {args.after} have no case in common that can be compared")
    except ProsparseError as fault:
        sys.stderr.write(f"{fault}\n")
        return 2
    if args.json:
        sys.stdout.write(json.dumps({"differences": [asdict(each) for each in found]}, indent=1) + "\n")
    else:
        _print(found, args.by)
    return 1 if any(each.verdict == SLOWER for each in found) else 0


def _print(found: Sequence[Difference], by: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    unit = "p10 us" if by == "time" else "of base"
    for name in ("case", f"before\n{unit}", f"after\n{unit}", "after / before\n(95 %)", ""):
        table.add_column(name, justify="left" if name in ("case", "") else "right", no_wrap=name != "case")
    colour = {SLOWER: "red", FASTER: "green"}
    for each in found:
        ratio = "-" if each.ratio is None else f"{each.ratio:.3f}"
        ratio += "" if each.low is None else f" ({each.low:.3f}-{each.high:.3f})"
        cells = (each.case, f"{each.before:.4g}", f"{each.after:.4g}", ratio)
        table.add_row(*cells, Text(each.verdict, style=colour.get(each.verdict, "dim")))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
