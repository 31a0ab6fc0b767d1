"""What this machine is: processor, memory, threads, device."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from prosparse.kernels import cpu, triton

from .errors import MachineError, UserError

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str) -> torch.device:
    """The device a user means.

    Raises:
        UserError: not one of `DEVICES`.
        MachineError: cuda was asked for and is not there.
    """
    if name not in DEVICES:
        raise UserError(f"load: device is {name!r}; supported are {', '.join(DEVICES)}")
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        why = (
            "this PyTorch is built without CUDA" if torch.version.cuda is None else "no usable GPU or driver was found"
        )
        raise MachineError(f"load: device cuda is not available: {why}; use --device cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


@dataclass(frozen=True)
class Processors:
    """What this process may use of the processor.

    Args:
        logical: processors that it may be put on.
        cores: cores that these are on. Two on one core share its path to memory, which is what decoding waits for.
        quota: processors' worth of time that its control group grants, None for any.
    """

    logical: int
    cores: int
    quota: float | None

    @property
    def threads(self) -> int:
        """As many threads as can run at once. One more than a quota holds would stop all of them before long."""
        return self.cores if self.quota is None else max(1, min(self.cores, int(self.quota)))


def processors(root: Path = Path("/")) -> Processors:
    """Read affinity, topology and control group; `root` holds the proc and sys that are read."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    folder = root / "sys/devices/system/cpu"
    cores = {_first_line(folder / f"cpu{number}/topology/thread_siblings_list") or str(number) for number in usable}
    quotas = [quota for quota in _quotas(root) if quota is not None]
    return Processors(len(usable), len(cores), min(quotas, default=None))


def default_threads() -> int:
    """Threads where nobody says how many: PyTorch's number, but no more than can run at once.

    Whoever sets OMP_NUM_THREADS, or a smaller number by torch.set_num_threads, has said how many.
    """
    held = torch.get_num_threads()
    return held if "OMP_NUM_THREADS" in os.environ else min(held, processors().threads)


def available_memory() -> int:
    """Bytes of memory that can be used without swapping; physical memory where the kernel does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_folder() -> Path:
    """Where is kept what can be made again: PROSPARSE_CACHE, or `prosparse` among the user's caches, or in TMPDIR."""
    if own := os.environ.get("PROSPARSE_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prosparse"
    except RuntimeError:  # no HOME, and a user whom the system does not know: a container's
        return Path(os.environ.get("TMPDIR") or "/tmp") / f"prosparse-{os.getuid()}"


@cache
def processor_name(root: Path = Path("/")) -> str:
    """Marketing name of the processor; Linux on Arm knows numbers of maker and part alone."""
    found: dict[str, list[str]] = {}
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = map(str.strip, line.partition(":"))
        if value not in found.setdefault(key, []):
            found[key].append(value)
    if "model name" in found:
        return found["model name"][0]
    if "CPU part" in found:  # several where cores differ
        makers, parts = ("/".join(found.get(key, ["?"])) for key in ("CPU implementer", "CPU part"))
        return f"{platform.machine()}, implementer {makers}, part {parts}"
    return _brand() or platform.processor() or platform.machine()


def _brand() -> str:
    """What macOS calls the processor; nothing elsewhere."""
    if platform.system() != "Darwin":
        return ""
    try:
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def describe(device: torch.device) -> str:
    """One line for a person: where the model runs and with which kernels."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, kernels: {kernel_name(device)}"
    return f"{processor_name()}, {torch.get_num_threads()} threads, kernels: {kernel_name(device)}"


def kernel_name(device: torch.device) -> str:
    """Which implementation of the ops runs on a device, and on a GPU why not Triton."""
    if device.type == "cuda":
        reason = triton.why_not()
        return f"PyTorch reference ({reason})" if reason else f"Triton {triton.version()}"
    return f"C++ {cpu.isa()}" if device.type == "cpu" and cpu.available() else "PyTorch reference"


def _quotas(root: Path) -> Iterator[float | None]:
    """The quota of each control group that this process is in, from its own up to the root's, in either version."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        # In a container the path may be the host's, and what is mounted here begins further down: then only "/" exists.
        group = Path(path.lstrip("/"))
        for place in (group, *group.parents):
            if controllers:
                parts = [_first_line(mount / place / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                parts = _first_line(mount / place / "cpu.max").split()
            yield _quota(*parts) if len(parts) == 2 else None


def _quota(time: str, period: str) -> float | None:
    """Microseconds granted of each period as processors; "max" or -1 grants any."""
    try:
        granted, of = int(time), int(period)
    except ValueError:
        return None
    return granted / of if granted > 0 and of > 0 else None


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "").strip()


def _lines(path: Path) -> list[str]:
    """Of a small text file; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
