"""Decode steps run on our threads alone: PyTorch's, once awake, spin for milliseconds on the cores that ours need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_engine import make_model

from prosparse.kernels import cpu

COUNT = """
import os, sys, torch, prosparse
torch.set_num_threads(1)
engine = prosparse.load(sys.argv[1], weights=sys.argv[2])
torch.set_num_threads(2)
count = lambda: len(os.listdir("/proc/self/task"))
seen = [count()]
options = {"max_new_tokens": 12, "ignore_eos": True}
for prompts in (["ab"], ["ab", "cd", "efg"] * 4):
    engine.generate(prompts, **options)
    seen.append(count())
engine.generate("ab ab ab ab", **options, prompt_lookup=4)
seen.append(count())
torch.ones(10**6).add_(1)
print(*seen, count())
"""


@pytest.mark.skipif(not cpu.available() or not sys.platform.startswith("linux"), reason="threads of the C++ kernels")
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_steps_of_one_and_of_several_tokens_wake_no_thread_of_pytorch(tmp_path: Path, weights: str) -> None:
    folder = make_model(tmp_path / "model", hidden=1024, heads=8)  # PyTorch parts what has 3000 elements
    done = subprocess.run([sys.executable, "-c", COUNT, folder, weights], capture_output=True, text=True, check=True)
    loaded, one, several, lookup, woken = map(int, done.stdout.split())
    assert one == several == lookup <= loaded + 1, "at most the second thread of ours"
    assert woken == lookup + 1, "one of PyTorch's would have been seen"
