"""What must hold of every compiled kernel, and what it keeps in flight."""

from __future__ import annotations

import triton

from prosparse.kernels.triton.configs import PIECES
from prosparse.kernels.triton.layout import UNIT_BYTES

from .cubin import Resources
from .launches import Launch
from .targets import Case, Target

# Registers of a thread and bytes of shared memory, at most, with Triton 3.6.0: another version may differ.
PINNED = "3.6.0"
BUDGET = {
    "select": (168, 40 << 10),
    "up": (104, 40 << 10),
    "gate_up": (104, 40 << 10),
    "down": (128, 18 << 10),
    "linear": (168, 40 << 10),
    "tile_select": (208, 48 << 10),
    "tile_down": (224, 16 << 10),
    "attend": (255, 72 << 10),
    "sign": (104, 28 << 10),
    "ffn_23": (104, 40 << 10),
    "attend_step": (255, 72 << 10),
    "embed": (64, 4 << 10),
    "join": (64, 4 << 10),
    "nonzero": (64, 4 << 10),
    "span": (64, 1 << 10),
    "argmax": (40, 1 << 10),
    "join_attend": (168, 4 << 10),
    "rms_norm": (64, 1 << 10),
    "rotary_store": (40, 1 << 10),
}
PARKED = 4  # the assembler may store a value or two before a loop and load it after it, to fit in one more program
MOST_PROGRAMS = 65535  # along the second and third axis of a grid
WHOLE_ROWS = {"linear", "select", "gate_up", "up", "ffn_23"}
READERS = set(BUDGET) - {
    "join",
    "nonzero",
    "span",
    "argmax",
    "embed",
    "join_attend",
    "rms_norm",
    "rotary_store",
}  # of weights, or of the cache


def problems(case: Case, launch: Launch, found: Resources, target: Target) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    wrong = []
    if found.repeated_spills or found.spills > PARKED:
        wrong.append(f"{found.spills} instructions spill registers, {found.repeated_spills} of them in loops")
    if found.ordered is False:
        wrong.append("a ticket is taken before the stores it stands for")
    if launch.values.get("OVERLAP") and not found.waits:
        wrong.append("memory is touched before the launch before it is over")
    if programs_per_sm(launch, found, target) == 0:
        wrong.append(f"{found.shared} bytes of shared memory do not fit")
    if launch.name in WHOLE_ROWS and programs_per_sm(launch, found, target) * target.gpu.sms < launch.programs:
        wrong.append(f"{launch.programs} programs do not run at once: the last would be few, and wait for memory alone")
    if max(launch.grid[1:], default=0) > MOST_PROGRAMS:
        wrong.append(f"a grid of {launch.grid} is refused: {MOST_PROGRAMS} programs along the second and third axis")
    if launch.name in READERS:
        wide = found.copies.get(16, 0) + found.loads.get(16, 0)
        narrow = sum(n for loads in (found.copies, found.loads) for width, n in loads.items() if width < 4)
        if wide < 2 or not found.copies.get(16, 0) + found.copies.get(8, 0):
            wrong.append(f"weights are not read 16 bytes at a time: copies {found.copies}, loads {found.loads}")
        if narrow and case.fmt not in ("int8", "int4"):  # scales are two bytes
            wrong.append(f"{narrow} loads of less than 4 bytes")
    if triton.__version__ == PINNED:
        registers, shared = BUDGET[launch.name]
        if found.registers > registers:
            wrong.append(f"{found.registers} registers, {registers} allowed")
        if found.shared > shared:
            wrong.append(f"{found.shared} bytes of shared memory, {shared} allowed")
    return wrong


def programs_per_sm(launch: Launch, found: Resources, target: Target) -> int:
    """Programs that run on a multiprocessor at once, by what they need and by how many there are."""
    threads = 32 * launch.warps
    registers = -(-found.registers // 8) * 8 * threads
    fit = min(target.blocks, target.threads // threads, 65536 // registers, target.shared // (found.shared + 1024))
    return min(fit, -(-launch.programs // target.gpu.sms))


def tile_bytes(launch: Launch) -> int:
    """Bytes of weights, or of the cache, that one stage of a kernel's loop reads; 0 for kernels without such a loop."""
    v = launch.values
    if launch.name not in READERS:
        return 0
    if launch.name in ("attend", "attend_step"):
        return 2 * v["BLOCK_P"] * v["HEAD_DIM"] * v["keys_ptr"].element_size()
    codes = next(v[name] for name in ("gate_ptr", "up_ptr", "down_ptr", "codes_ptr") if name in v)
    if launch.name == "down":
        row = PIECES * UNIT_BYTES
    elif launch.name == "tile_down":
        row = v["WIDTH"] // (8 if v["FORMAT"] == "int4" else 1) * codes.element_size()
    elif "BLOCK_E" in v:
        row = v["BLOCK_E"] * codes.element_size()
    else:
        row = codes.shape[1] * codes.element_size()
    return v["BLOCK_N"] * row * (2 if launch.name == "gate_up" else 1)


def per_weight(launch: Launch, found: Resources) -> float:
    """Instructions of a thread for each weight of whole rows that it meets in a loop; 0 for other kernels."""
    v = launch.values
    if launch.name not in WHOLE_ROWS:
        return 0.0
    weights = v["BLOCK_N"] * v["HIDDEN"] * (2 if v.get("UP") and launch.name == "gate_up" else 1)
    return found.repeated * 32 * launch.warps / weights


def in_flight(launch: Launch, found: Resources, target: Target) -> int:
    """Bytes a multiprocessor has asked for while every program waits: all stages of its loop but the one in use."""
    return programs_per_sm(launch, found, target) * (launch.values.get("STAGES", 1) - 1) * tile_bytes(launch)
