"""What the compiler made of a kernel: registers, spills, shared memory, and how wide its loads are."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from .launches import Launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Resources:
    """
    Args:
        registers: of a thread.
        stack: bytes of a thread; more than 0 is a spill or an array indexed at run time.
        spills: instructions that read or write local memory.
        repeated_spills: those of them inside a loop.
        shared: bytes of a program.
        copies: loads from global memory by their size in bytes, asynchronous copies to shared memory.
        loads: the same, to registers.
        repeated: instructions of the first loop that copies asynchronously; 0 without one.
        ordered: whether a barrier stands between the last store and each ticket; None without tickets.
        waits: whether it waits for the launch before it before it touches memory; None if it does not wait.
    """

    registers: int
    stack: int
    spills: int
    repeated_spills: int
    shared: int
    copies: dict[int, int]
    loads: dict[int, int]
    repeated: int
    ordered: bool | None
    waits: bool | None = None


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile for a compute capability; no GPU or driver is needed."""
    options = {"num_warps": launch.warps}
    kernel = triton.compile(launch.source(), target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, sass = _dump("--dump-resource-usage", file.name), _dump("-sass", file.name)
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)([^;]*);", sass, re.M)
    operations = [name for _, name, _ in code]
    spills = [int(at, 16) for at, name, _ in code if name.startswith(("LDL", "STL"))]
    loops = _loops(code)
    return Resources(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        spills=len(spills),
        repeated_spills=sum(any(first <= at <= last for first, last in loops) for at in spills),
        shared=kernel.metadata.shared,
        copies=_widths(operations, "LDGSTS"),
        loads=_widths(operations, "LDG."),
        repeated=_length(code, loops),
        ordered=_tickets_are_ordered(kernel.asm["ptx"]),
        waits=_waits_first(operations),
    )


def _dump(what: str, path: str) -> str:
    environment = os.environ | {"PATH": f"{TOOLS}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(TOOLS / "cuobjdump"), what, path], capture_output=True, text=True, env=environment, check=True
    ).stdout


def _loops(code: list[tuple[str, str, str]]) -> list[tuple[int, int]]:
    """First and last address of each loop: a branch backwards, but not the endless one that fills up a kernel."""
    found = []
    for at, name, operands in code:
        target = re.search(r"0x([0-9a-f]+)\s*$", operands) if name.startswith("BRA") else None
        if target and int(target[1], 16) < int(at, 16):
            found.append((int(target[1], 16), int(at, 16)))
    return found


def _length(code: list[tuple[str, str, str]], loops: list[tuple[int, int]]) -> int:
    bodies = [[name for at, name, _ in code if first <= int(at, 16) <= last] for first, last in loops]
    return next((len(body) for body in bodies if any(name.startswith("LDGSTS") for name in body)), 0)


def _widths(operations: list[str], kind: str) -> dict[int, int]:
    """Bytes of a load -> how many such instructions."""
    found: dict[int, int] = {}
    for name in operations:
        if name.startswith(kind):
            bits = re.search(r"\.(?:U|S)?(8|16|64|128)(?:\.|$)", name)
            width = int(bits[1]) // 8 if bits else 4
            found[width] = found.get(width, 0) + 1
    return found


def _tickets_are_ordered(ptx: str) -> bool | None:
    tickets = [match.start() for match in re.finditer(r"atom\.\S*acq_rel\S*add", ptx)]
    if not tickets:
        return None
    return all(ptx.rfind("bar.sync", 0, at) > ptx.rfind("st.global", 0, at) for at in tickets)


def _waits_first(operations: list[str]) -> bool | None:
    """Asking the L2 cache for a line is no such access: it is CCTL."""
    if "ACQBULK" not in operations:
        return None
    before = operations[: operations.index("ACQBULK")]
    return not any(re.match(r"(LDG|LDGSTS|STG|ATOMG?|REDG?)(\.|$)", name) for name in before)
