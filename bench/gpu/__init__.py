"""`make gpu-check`: everything that only a GPU can say, in parts, in one command, without a network.

Operands are cold (copies that take turns hold more than the L2 cache), calls are replayed from a CUDA graph, times are
those of the device's own events. `check.py` is the command; `docs/gpu.md` says how to read what it writes.
"""

FORMATS = ("bf16", "int8", "int4")  # that are measured
