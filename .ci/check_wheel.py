"""Check an installed wheel against the checkout it was built from: python check_wheel.py CHECKOUT."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch

import prosparse
from prosparse.kernels import cpu

FOLDERS = {"prosparse": ".", "kernels": "kernels", "bench": "bench"}  # in the checkout: inside the installed package


def contents(folder: Path) -> set[str]:
    """The files of a folder that belong to the package, relative to it."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts and path.suffix != ".so"}


def main(checkout: Path) -> None:
    installed = Path(prosparse.__file__).resolve().parent
    if installed.is_relative_to(checkout):
        sys.exit(f"check_wheel: imported {installed}, which is the checkout and not the wheel")
    for folder, inside in FOLDERS.items():
        if not (checkout / folder / "__init__.py").is_file():
            continue
        # Results of benchmarks and READMEs of code folders stay behind; everything under assets travels.
        wanted = {name for name in contents(checkout / folder) if name.endswith(".py") or name.startswith("assets/")}
        missing = sorted(wanted - contents(installed / inside))
        if missing:
            sys.exit(f"check_wheel: {len(missing)} files of {folder}/ are not in the wheel, the first {missing[:5]}")
    if not cpu.available():
        sys.exit("check_wheel: the C++ kernels are not in the wheel, or do not load")
    has_gpu = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    if not has_gpu and torch.version.cuda is not None:
        sys.exit(f"check_wheel: torch {torch.__version__} is a CUDA build on a machine without a GPU")
    size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file())
    sys.stdout.write(f"check_wheel: {installed}, {size / 1e6:.1f} MB, kernels {cpu.isa()}, torch {torch.__version__}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
