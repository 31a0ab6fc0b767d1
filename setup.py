"""Builds the C++ kernels and maps the folders onto packages; everything else about the project is in pyproject.toml.

PROSPARSE_NO_EXT=1 builds without the C++ kernels, PROSPARSE_REQUIRE_EXT=1 fails where they cannot be built,
PROSPARSE_CXXFLAGS adds compiler flags (sanitizers) and keeps the symbols.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).parent
SOURCES = Path("kernels/cpu/csrc")
FOLDERS = {"prosparse": "prosparse", "prosparse.kernels": "kernels", "prosparse.bench": "bench"}


def packages() -> list[str]:
    """Every folder with an __init__.py, under the name it is installed by."""
    found = []
    for package, folder in FOLDERS.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            found.append(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    return found


def extension() -> dict[str, Any]:
    """Arguments of setup() for the C++ kernels; none where they are not wanted or torch is missing."""
    if os.environ.get("PROSPARSE_NO_EXT") == "1":
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if os.environ.get("PROSPARSE_REQUIRE_EXT") == "1":
            raise
        warn(f"torch cannot be imported while building ({error}); use --no-build-isolation to build with yours")
        return {}

    class OptionalBuild(BuildExtension):
        """Goes on without the kernels when they do not compile: setuptools' `optional` misses torch's own errors."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                if os.environ.get("PROSPARSE_REQUIRE_EXT") == "1":
                    raise
                warn(f"{type(error).__name__}: {error}")
                self.extensions = []

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

    flags = os.environ.get("PROSPARSE_CXXFLAGS", "").split()
    kernels = CppExtension(
        "prosparse.kernels.cpu._C",
        sorted(map(str, SOURCES.glob("*.cpp"))),
        depends=sorted(str(path) for pattern in ("*.h", "*.inc") for path in SOURCES.glob(pattern)),
        py_limited_api=True,
        extra_compile_args=[
            "-std=c++20",
            "-O3",
            "-g0",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",  # in torch's headers
            "-fvisibility=hidden",
            "-ffp-contract=off",  # an FMA is written where it is meant, so that every kernel rounds alike
            "-DTORCH_TARGET_VERSION=0x020b000000000000",  # 2.11: one binary for it and everything newer
            *flags,
        ],
        extra_link_args=["-Wl,-s"] if sys.platform == "linux" and not flags else [],
    )
    return {
        "ext_modules": [kernels],
        "cmdclass": {"build_ext": OptionalBuild.with_options(use_ninja=False)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def warn(reason: str) -> None:
    print(f"prosparse: C++ kernels not built, the slow PyTorch reference will run instead: {reason}", file=sys.stderr)


if __name__ == "__main__":
    setup(
        packages=packages(),
        package_dir=FOLDERS,
        package_data={"prosparse": ["assets/**"], "prosparse.kernels.cpu": ["csrc/*"]},
        **extension(),
    )
