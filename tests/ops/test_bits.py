"""Bits that do not depend on the machine: AVX2 and NEON add the same numbers in the same order, and the portable code
is the same everywhere. What they give is held here, since no machine runs both."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from prosparse.kernels.activation import Activation
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.linear import linear
from prosparse.kernels.weight import in_format

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
COLUMNS = 300  # two blocks of packed columns and a tail
LANES = {"generic": "portable", "avx2": "eight", "neon": "eight", "avx512": "sixteen", "avx512vnni": "sixteen"}
# Of what `linear` and `glu_exact` give, the beginning of the SHA-256. Other bits are other sums: tell the changelog.
EXPECTED = {
    "portable": {
        "fp32": "bc80186ca901",
        "fp16": "85187af9319a",
        "bf16": "e77b5a6b0148",
        "int8": "89751cd357bc",
        "int4": "12c90dcf7651",
    },
    "eight": {
        "fp32": "e95dd87f3eda",
        "fp16": "eae5199bff8a",
        "bf16": "0f3223134cf8",
        "int8": "9359156cd317",
        "int4": "ae0f1dd8a988",
    },
    "sixteen": {
        "fp32": "13eac218c1ec",
        "fp16": "9fdeeec5963c",
        "bf16": "f8dc76ab0323",
        "int8": "9359156cd317",
        "int4": "ae0f1dd8a988",
    },
}


def noise(seed: int, *shape: int) -> torch.Tensor:
    """Multiples of 2^-15 from -1 to 1, from whole numbers alone: no machine's logarithm or cosine is in them."""
    bits = torch.arange(torch.Size(shape).numel(), dtype=torch.int64) + seed * 1_000_003
    for factor, shift in ((1640531527, 15), (2024237689, 13), (1597334677, 16)):
        bits = bits * factor % 2**32
        bits ^= bits >> shift
    return (bits % 65537 - 32768).float().view(shape) / 32768


@pytest.mark.parametrize("fmt", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_bits_of_an_instruction_set(compiled, fmt):
    up, gate, down = (in_format(noise(seed, 70, COLUMNS), fmt) for seed in (1, 2, 3))
    x = noise(4, 5, COLUMNS)
    y = linear(x, up)
    alone = glu_exact(x[:1].contiguous(), gate, up, down, Activation("relu"), torch.zeros(4, dtype=torch.int64))
    digest = hashlib.sha256(y.numpy().tobytes() + alone.numpy().tobytes()).hexdigest()
    assert digest[:12] == EXPECTED[LANES[compiled.removeprefix("cpu-")]][fmt]


@pytest.mark.skipif(COMPILER is None, reason="needs aarch64-linux-gnu-g++; a 64-bit Arm machine compiles it anyway")
@pytest.mark.parametrize("source", ["isa_neon.cpp", "isa_generic.cpp", "pool.cpp"])
def test_what_has_no_torch_in_it_compiles_for_arm(source):
    assert COMPILER is not None
    flags = ["-fsyntax-only", "-std=c++20", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [COMPILER, *flags, str(ROOT / "kernels/cpu/csrc" / source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
