"""Consumer machines from their data sheets, to plan for what is not at hand. `docs/hybrid.md` has the sources."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .description import Machine

# Shares of a data sheet's bandwidth. GPU: docs/gpu.md. CPU: what two channels of DDR give several threads that read;
# scattered rows cost what this project's kernels were measured to cost, as a share of the same machine's stream.
GPU_STREAM, GPU_GATHER, CPU_STREAM, CPU_GATHER = 0.92, 0.85, 0.80, 0.80 * 0.87
LINK = {"pcie3 x16": 12.3e9, "pcie4 x8": 12.3e9, "pcie4 x16": 24.6e9}  # 0.78 of 15.75 and 31.5 GB/s
HELD_BACK = 0.8 * 2**30  # bytes: the driver and a desktop, so that a card of 8 GB counts 7.2 GiB
CONTEXT = 450 << 20
SYNC_S, LAUNCH_S, ROW_S, CALL_S = 15e-6, 5e-6, 20e-9, 12e-6


def _machine(name: str, card: str, gib: int, gpu_gb_s: float, link: str, memory: str, cpu_gb_s: float) -> Machine:
    return Machine(
        name=name,
        gpu_bytes=int(gib * 2**30 - HELD_BACK),
        context_bytes=CONTEXT,
        gpu_stream=GPU_STREAM * gpu_gb_s * 1e9,
        gpu_gather=GPU_GATHER * gpu_gb_s * 1e9,
        gpu_launch_s=LAUNCH_S,
        cpu_stream=CPU_STREAM * cpu_gb_s * 1e9,
        cpu_gather=CPU_GATHER * cpu_gb_s * 1e9,
        cpu_row_s=ROW_S,
        cpu_call_s=CALL_S,
        to_gpu=LINK[link],
        to_cpu=LINK[link],
        sync_s=SYNC_S,
        source=f"data sheets: {card} ({gib} GB, {gpu_gb_s:g} GB/s), {link}, 2 channels of {memory} ({cpu_gb_s:g} GB/s)",
    )


PRESETS = {
    made.name: made
    for made in (
        _machine("8gb-pcie3", "RTX 3070", 8, 448, "pcie3 x16", "DDR4-2933", 46.9),
        _machine("8gb-pcie4", "RTX 3070", 8, 448, "pcie4 x16", "DDR4-3200", 51.2),
        _machine("8gb-pcie4-x8", "RTX 4060", 8, 272, "pcie4 x8", "DDR5-5600", 89.6),
        _machine("12gb-pcie3", "RTX 3060", 12, 360, "pcie3 x16", "DDR4-2933", 46.9),
        _machine("12gb-pcie4", "RTX 4070", 12, 504, "pcie4 x16", "DDR5-5600", 89.6),
        _machine("24gb-pcie3", "RTX 3090", 24, 936, "pcie3 x16", "DDR4-2933", 46.9),
        _machine("24gb-pcie4", "RTX 4090", 24, 1008, "pcie4 x16", "DDR5-5600", 89.6),
    )
}


def named_machine(name: str, *others: str) -> Machine:
    """A preset by its name, or the machine that a file describes.

    Args:
        name: of a preset or a file.
        others: what else the caller takes, for the message.

    Raises:
        UserError: neither, or a file that does not describe a machine.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).exists():
        raise UserError(f"machine: {name!r} is neither a file nor one of {', '.join((*others, *PRESETS))}")
    return Machine.load(name)
