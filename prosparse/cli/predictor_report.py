"""What `prosparse predictor` prints, and how it times decoding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from ..engine import Engine
    from ..weights.predictor import Predictor

PROMPT, STEPS = 64, 48  # tokens before the timed ones, and how many are timed
WHY_EXACT = "no rank and kind is expected to save a tenth of the gate, or to keep to --within"
SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def made_table(about: Mapping[str, Any]) -> str:
    """A new predictor, layer by layer, on the windows that its thresholds were set on."""
    rows = [["layer", "kind", "rank", "recall", "predicted sparsity", "activation sparsity", "bytes of gate"]]
    for number, own in enumerate(about.get("layers", ())):
        kind = own["kind"] if own["used"] else "exact"
        cells = [_percent(own[name]) for name in ("recall", "predicted_sparsity", "activation_sparsity")]
        rows.append([str(number), kind, str(own["rank"] or "-"), *cells, _percent(own.get("bytes_of_gate"))])
    reached = about.get("calibration_kl")
    last = "" if all(own["used"] for own in about.get("layers", ())) else f"exact: {WHY_EXACT}\n"
    if reached is not None:
        kept = "" if reached <= about["target_kl"] else ", which no recall reaches"
        last += f"KL from exact {reached:.3g} nats per token, asked for {about['target_kl']:g}{kept}\n"
    return _columns(rows) + last + "on calibration text; judge it on other text with `prosparse predictor eval`\n"


def table(document: Mapping[str, Any]) -> str:
    """An evaluation: one line per point, the layers of predictors given as files, remarks, and what was chosen."""
    names = ["", "recall", "precision", "predicted", "missed mass", "KL", "top-1", "perplexity ratio", "MB/token"]
    timed = document["modes"]["exact"]["tokens_per_s"] is not None
    rows = [[*names, "tokens/s"] if timed else names]
    for mode, own in document["modes"].items():
        row = [mode, "100.00%", "-", "-", "0.00%", "0", "100.00%", "1", _megabytes(own)]
        rows.append([*row, _speed(own)] if timed else row)
    for point in document["points"]:
        kl, top, ratio = (point[name] for name in ("kl_divergence", "top1_agreement", "perplexity_ratio"))
        shares = [_percent(point[name]) for name in ("recall", "precision", "predicted_sparsity", "missed_mass")]
        quality = [f"{kl['value']:.2e}", f"{top['value']:.2%}", _interval(ratio)]
        row = [point["name"], *shares, *quality, _megabytes(point)]
        rows.append([*row, _speed(point)] if timed else row)
    lines = [_columns(rows)]
    for point in document["points"]:
        if point["is_predictor"] and point["target"] is None:
            lines.append(f"\n{point['name']}, layer by layer\n{_columns(_layers(point['layers']))}")
        lines += [f"{point['name']}: {remark}\n" for remark in point["remarks"]]
    what = f"{document['predictions']} predictions on {document['text']}, {document['weights']} weights"
    perplexity = f"perplexity of exact and dense {document['perplexity']:.4f}"
    lines.append(f"\n{what}, {perplexity}; predicted: predicted sparsity, mean over layers that predict\n")
    target = f"KL at most {document['target_kl']:g} nats per token"
    if document["chosen"] is None:
        lines.append(f"chosen: none keeps to {target}; stay with exact\n")
    else:
        lines.append(f"chosen: {document['chosen']}, the fewest bytes with {target}\n")
    return "".join(lines)


def recording_table(found: Mapping[str, Any]) -> str:
    """Yardsticks on a recording."""
    rows = [["", "recall", "precision", "predicted sparsity"]]
    for own in found["points"]:
        rows.append([own["name"], *(_percent(own[key]) for key in ("recall", "precision", "predicted_sparsity"))])
    unions = ", ".join(f"{share:.2%} for {size} tokens" for size, share in found["unions"].items())
    what = f"{found['recording']}: {found['tokens']} tokens of {found['neurons']} neurons"
    return f"{what}, activation sparsity {found['activation_sparsity']:.2%}\nunion {unions}\n{_columns(rows)}"


def decode_speeds(engine: Engine, which: Mapping[str, Predictor | str]) -> dict[str, float]:
    """tokens/s of predictors and modes by name: single decode steps in turn, the fast decile of each."""
    import torch

    from prosparse.bench.clock import interleave

    from ..engine.session import Session
    from ..study.predictors.apply import decoder_with
    from ..study.windows import cut, read_text

    ids = cut(read_text(None), engine.tokenizer, min(PROMPT + STEPS, engine.context), 1).inputs[0]
    prompt = len(ids) * PROMPT // (PROMPT + STEPS)
    calls = {}
    with torch.inference_mode():
        for name, how in which.items():
            session = Session(decoder_with(engine, how), engine.kv_dtype, 1, len(ids))
            list(session.prefill(ids[:prompt]))

            def step(number: int, session: Session = session) -> None:
                at = prompt + number % (len(ids) - prompt)
                session.decode(ids[at].view(1, 1), (0,), (at,))

            calls[name] = step
        timings = interleave(calls, len(ids) - prompt)
    return {name: 1e6 / timing.p10 for name, timing in timings.items()}


def parse_size(text: str) -> int:
    """Bytes of a size like 20GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", text)
    if not match:
        raise UserError(f"predictor: expected a size like 500MB or 20GiB, got {text!r}")
    return int(float(match[1]) * SIZES[match[2] or ""])


def _layers(layers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["layer", "kind", "rank", "recall", "precision", "predicted", "active", "missed mass", "predictor KB"]]
    for number, own in enumerate(layers):
        shares = [_percent(own[name]) for name in ("recall", "precision", "predicted_sparsity", "activation_sparsity")]
        nbytes = f"{own['predictor_bytes'] / 1e3:.0f}"
        rows.append([str(number), own["kind"], str(own["rank"] or "-"), *shares, _percent(own["missed_mass"]), nbytes])
    rows[0][5:7] = ["predicted sparsity", "activation sparsity"]
    return rows


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]).rstrip() + "\n")
    return "".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _interval(interval: Mapping[str, float | None]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"


def _megabytes(own: Mapping[str, Any]) -> str:
    return f"{own['bytes_per_token'] / 1e6:.2f}"


def _speed(own: Mapping[str, Any]) -> str:
    return "-" if own["tokens_per_s"] is None else f"{own['tokens_per_s']:.1f}"
