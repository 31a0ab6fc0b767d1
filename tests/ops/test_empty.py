"""Rows without columns, which make a sum of nothing: a division by the bytes of a row would end the process."""

from __future__ import annotations

import pytest
import torch

from prosparse.kernels.tally import new_tally

NEURONS = 64
X, WEIGHT, SIGNS = torch.zeros(2, 0), torch.zeros(NEURONS, 0), torch.zeros(NEURONS, 0, dtype=torch.int64)
EVERY = torch.arange(NEURONS, dtype=torch.int32)
LISTED = EVERY, torch.tensor([NEURONS], dtype=torch.int32)
RELU, TALLY = (0, 0.0), new_tally("cpu")
NOTHING = torch.zeros(2, 0)
CALLS = {
    "linear": ((X, WEIGHT), torch.zeros(2, NEURONS)),
    "linear_active": ((X, WEIGHT, None, *LISTED, TALLY), torch.zeros(2, NEURONS)),
    "glu_exact": ((X, WEIGHT, WEIGHT, WEIGHT, *RELU, False, TALLY), NOTHING),
    "glu_dense": ((X, WEIGHT, WEIGHT, WEIGHT, *RELU, False, TALLY), NOTHING),
    "glu_predicted": ((X, WEIGHT, WEIGHT, WEIGHT, *LISTED, *RELU, False, TALLY), NOTHING),
    "glu_active": ((X, WEIGHT, WEIGHT, *LISTED, torch.ones(2, NEURONS), False, TALLY), NOTHING),
    "gate_select": ((X, WEIGHT, *RELU), None),
    "plain_exact": ((X, WEIGHT, None, WEIGHT, None, *RELU, TALLY), NOTHING),
    "axpy_active": ((torch.ones(2, NEURONS), WEIGHT, 0, None, TALLY), NOTHING),
    "predict_select": ((X, WEIGHT, torch.zeros(NEURONS)), EVERY),  # a score of 0 is not below 0
    "sign_select": ((X, SIGNS, torch.zeros(NEURONS)), EVERY),
}


@pytest.mark.parametrize("op", CALLS)
def test_the_process_lives(compiled, op):
    arguments, expected = CALLS[op]
    found = getattr(torch.ops.prosparse, op)(*arguments)
    if op == "gate_select":
        found, expected = found[1], torch.zeros(1, dtype=torch.int32)
    assert torch.equal(found if isinstance(found, torch.Tensor) else found[0], expected)
