"""What is built and installed: packages, metadata, the C++ kernels, and life without them."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prosparse
from prosparse.kernels import cpu

ROOT = Path(__file__).parent.parent


def run(code_or_args: str | list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    args = [sys.executable, "-c", code_or_args] if isinstance(code_or_args, str) else [sys.executable, *code_or_args]
    return subprocess.run(
        args, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_metadata():
    result = run(["setup.py", "--quiet", "--name", "--version"], PROSPARSE_NO_EXT="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["prosparse", prosparse.__version__]


def test_every_folder_with_an_init_is_a_package():
    result = run("import runpy; print(*runpy.run_path('setup.py')['packages']())")
    listed = set(result.stdout.split())
    assert {"prosparse", "prosparse.kernels", "prosparse.kernels.cpu", "prosparse.bench"} <= listed, result.stderr
    for folder in ("prosparse", "kernels", "bench"):
        for source in (ROOT / folder).rglob("*.py"):
            assert (source.parent / "__init__.py").is_file(), f"{source} would not be installed: add an __init__.py"


@pytest.mark.skipif(os.environ.get("PROSPARSE_NO_EXT") == "1", reason="asked for no C++ kernels")
def test_the_extension_is_built():
    assert cpu.available(), "build it: python setup.py build_ext --inplace (or set PROSPARSE_NO_EXT=1)"
    assert cpu.isa() in cpu.ISAS


FALLBACK = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
sys.modules["prosparse.kernels.cpu._C"] = None  # as if it had not been built
import torch
from prosparse.kernels import cpu
from prosparse.kernels.linear import linear
from prosparse.kernels.weight import Weight
weight = Weight(torch.arange(12.0).view(3, 4))
print(linear(torch.ones(1, 4), weight).tolist(), cpu.isa(), cpu.available())
try:
    cpu.cap_isa("avx2")
except RuntimeError as error:
    print(error)
"""


def test_without_the_extension_the_reference_runs_and_says_so_once():
    result = run(FALLBACK)
    assert result.stdout.splitlines() == [
        "[[6.0, 22.0, 38.0]] reference False",
        "cap_isa: the C++ extension is not loaded, so there is no instruction set to cap",
    ], result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and "the C++ extension is not usable" in lines[0] and "build_ext --inplace" in lines[0]


ISA = "import prosparse.kernels.linear; from prosparse.kernels import cpu; print(cpu.isa())"


@pytest.mark.skipif(not cpu.available(), reason="without the extension there is no instruction set to choose")
def test_the_environment_caps_the_instruction_set():
    assert run(ISA, PROSPARSE_ISA="generic").stdout.strip() == "generic"
    result = run(ISA, PROSPARSE_ISA="sse9")
    supported = f"limit is 'sse9'; supported are {', '.join(cpu.ISAS)}"
    assert f"PROSPARSE_ISA: {supported}" in result.stderr
    with pytest.raises(ValueError, match=f"cap_isa: {supported}"):
        cpu.cap_isa("sse9")
    with pytest.raises(RuntimeError, match=f"cpu_cap_isa: {supported}"):  # the extension knows the same names
        torch.ops.prosparse.cpu_cap_isa("sse9")


def test_a_broken_compiler_is_one_clear_line_or_an_error(tmp_path):
    build = ["setup.py", "--quiet", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path)]
    optional = run(build, CXX="/bin/false", CC="/bin/false", PROSPARSE_REQUIRE_EXT="0")
    assert optional.returncode == 0, optional.stderr
    assert "prosparse: C++ kernels not built, the slow PyTorch reference will run instead: " in optional.stderr
    required = run(build, CXX="/bin/false", CC="/bin/false", PROSPARSE_REQUIRE_EXT="1")
    assert required.returncode != 0


@pytest.mark.skipif(not cpu.available() or shutil.which("nm") is None, reason="needs the extension and binutils")
def test_the_extension_asks_torch_and_python_for_stable_symbols_only():
    """One binary for several versions: only torch's C interface, and one Python function of the limited API."""
    module = importlib.import_module("prosparse.kernels.cpu._C")
    done = subprocess.run(["nm", "-D", "--undefined-only", module.__file__], capture_output=True, text=True, check=True)
    symbols = {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}
    assert {name for name in symbols if name.startswith(("Py", "_Py"))} == {"PyModule_Create2"}
    torch_names = {name for name in symbols if re.search("torch|aoti|c10|_ZN2at", name)}
    assert torch_names and all(re.match("(aoti_)?torch_", name) for name in torch_names), sorted(torch_names)
