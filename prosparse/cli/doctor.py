"""prosparse doctor: what this machine can do, and why not more."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__

NAME = "doctor"
HELP = "what this machine can do, and why not more"
DESCRIPTION = (
    "Versions, processor, kernels in use and why not the others, GPU, memory and its measured read bandwidth. Exit "
    "status 0, warnings included: each says what to do."
)
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "triton")
OPTIONAL = {"triton": "not installed: only GPU kernels need it"}
PROBE_ROUNDS = 60  # of half a millisecond to two
PROBE_BYTES = 576 * 2**20  # what the probe's buffer takes
LITTLE_MEMORY = 2 * 2**30  # bytes; MiniCPM-S-1B in bf16 needs 2.4 GiB


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        topic: what it is about.
        value: what was found, for a person.
        warning: what is wrong and what to do about it, or None.
        data: the same for a program.
    """

    topic: str
    value: str
    warning: str | None = None
    data: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")


def run(args: argparse.Namespace) -> int:
    findings = [*_versions(), *_processor(), _kernels(), _compiler(), _gpu(), *_memory(), _embedded_model()]
    if args.json:
        document = [asdict(finding) for finding in findings]
        sys.stdout.write(json.dumps({"findings": document, "warnings": _count(findings)}, indent=1) + "\n")
        return 0
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        sys.stdout.write(f"{finding.topic:<{width}}  {finding.value}\n")
        if finding.warning:
            sys.stdout.write(f"{'':<{width}}  ! {finding.warning}\n")
    warnings = _count(findings)
    verdict = "everything is usable" if not warnings else f"{warnings} of the above limit what runs, or how fast"
    sys.stdout.write(f"\n{verdict}\n")
    return 0


def _count(findings: list[Finding]) -> int:
    return sum(finding.warning is not None for finding in findings)


def _versions() -> list[Finding]:
    found = [Finding("prosparse", f"{__version__} in {Path(__file__).parents[1]}", data=__version__)]
    python = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}"
    found.append(Finding("python", python, data=platform.python_version()))
    for package in PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            why = OPTIONAL.get(package)
            missing = None if why else f"not installed; run `pip install {package}`"
            found.append(Finding(package, why or "not installed", missing))
        else:
            if package == "torch":
                version = _torch_version()
            found.append(Finding(package, version, data=version))
    return found


def _torch_version() -> str:
    """With its build (+cpu, +cu130), which the metadata of a package may leave out."""
    import torch

    return str(torch.__version__)


def _processor() -> list[Finding]:
    from ..machine import default_threads, processor_name, processors

    found, threads = processors(), default_threads()
    quota = "" if found.quota is None else f", time of {found.quota:g} granted by the control group"
    value = f"{processor_name()}, {found.logical} usable on {found.cores} cores{quota}"
    warning = None
    if threads > found.threads:  # only the environment can ask for that
        warning = f"OMP_NUM_THREADS asks for more threads than the {found.threads} that can run at once; unset it"
    return [
        Finding("processor", value, data={"name": processor_name(), **asdict(found)}),
        Finding("threads", f"{threads}", warning, threads),
    ]


def _kernels() -> Finding:
    from prosparse.kernels import cpu

    if not cpu.available():
        why = _why_not_loaded()
        return Finding(
            "kernels",
            f"PyTorch reference; the C++ extension does not load: {why}",
            "decoding is many times slower than it could be; install a C++20 compiler and reinstall prosparse, or run "
            "`python setup.py build_ext --inplace` in a checkout",
            {"in_use": "reference", "available": [], "why_not": why},
        )
    in_use = cpu.isa()
    usable = [name for name in cpu.ISAS if cpu.cap_isa(name) == name]
    cpu.cap_isa(in_use)
    limit = os.environ.get("PROSPARSE_ISA")
    warning = None
    if in_use != usable[-1]:
        warning = f"PROSPARSE_ISA={limit} keeps {usable[-1]} from being used; unset it"
    elif in_use == "generic":
        warning = "this processor has none of AVX2, AVX-512 and NEON; decoding is slow"
    value = f"C++ {in_use} (this processor runs {', '.join(usable)})"
    return Finding("kernels", value, warning, {"in_use": in_use, "available": usable, "why_not": None})


def _why_not_loaded() -> str:
    try:
        importlib.import_module("prosparse.kernels.cpu._C")
    except ImportError as error:
        return str(error)
    return "it loads now; start again"


def _compiler() -> Finding:
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        return Finding("compiler", f"none found (looked for {', '.join(names)}); only building the kernels needs one")
    return Finding("compiler", found, data=found)


def _gpu() -> Finding:
    import torch

    from ..machine import kernel_name

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        kernels = kernel_name(torch.device("cuda"))
        value = (
            f"{name}, compute capability {capability}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, {kernels}"
        )
        warning = None if kernels.startswith("Triton") else "decoding on the GPU is many times slower than it could be"
        data = {"name": name, "capability": capability, "free": free, "total": total, "kernels": kernels}
        return Finding("gpu", value, warning, data)
    if torch.version.cuda is None:
        return Finding("gpu", "not used: this PyTorch is built without CUDA", data=None)
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding("gpu", "not used: CUDA_VISIBLE_DEVICES hides all GPUs", data=None)
    why = f"no GPU or no driver for CUDA {torch.version.cuda}; `nvidia-smi` says which"
    return Finding("gpu", f"not used: {why}", data=None)


def _memory() -> list[Finding]:
    from ..bench.clock import interleave
    from ..bench.probe import Probe, bandwidth
    from ..machine import available_memory

    free = available_memory()
    warning = None
    if free < LITTLE_MEMORY:
        warning = "too little for a model of a billion weights; close other programs"
    memory = Finding("memory", f"{free / 2**30:.1f} GiB available", warning, free)
    if free < 2 * PROBE_BYTES:
        return [memory, Finding("bandwidth", f"not measured: that takes {PROBE_BYTES / 2**30:.1f} GiB of memory")]
    timing = interleave({"probe": Probe()}, PROBE_ROUNDS, budget_s=1.0)["probe"]
    speed = bandwidth(timing)
    token = f"a token of 1 GB of weights takes at least {1e9 / speed * 1e3:.0f} ms"
    return [memory, Finding("bandwidth", f"{speed / 1e9:.1f} GB/s read from memory: {token}", data=speed)]


def _embedded_model() -> Finding:
    from ..config import ModelConfig
    from ..engine.load import EMBEDDED_MODEL
    from ..errors import ProsparseError
    from ..weights import Checkpoint

    try:
        config = ModelConfig.from_hf(EMBEDDED_MODEL)
        Checkpoint(EMBEDDED_MODEL)
    except ProsparseError as error:
        return Finding("packaged model", "not usable", f"{error}; reinstall prosparse")
    value = f"{EMBEDDED_MODEL.name}, {config.layers} layers of {config.neurons} neurons, {config.activation}"
    return Finding("packaged model", value, data=str(EMBEDDED_MODEL))
