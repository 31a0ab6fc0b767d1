"""What an FFN op did, counted where it ran: [4] int64, added to by every call and read by the host when it likes.

UP_ROWS     rows of up that were read       (the neurons listed: the union over a step's tokens; also where no up is)
DOWN_ROWS   rows of down that were read     (fewer where the product h is zero for every token, as dReLU makes it)
NONZERO     products h that are not zero, summed over tokens: from these comes the activation sparsity
PREDICTED   rows of the gate that were read since a predictor named them; 0 where the whole gate is read

Of an FFN that two devices share four more follow, which ops know nothing of:

COLD_UP_ROWS, COLD_DOWN_ROWS   of the rows above, those that the device of the cold neurons read
COLD_STEPS                     steps in which that device computed; in the others nothing of its own was active
SCANNED_NAMED                  of PREDICTED, rows that were read anyway, since gates between the cuts are scanned whole
"""

from __future__ import annotations

import torch
from torch import Tensor

UP_ROWS, DOWN_ROWS, NONZERO, PREDICTED = range(4)
SIZE = 4
COLD_UP_ROWS, COLD_DOWN_ROWS, COLD_STEPS, SCANNED_NAMED = range(SIZE, SIZE + 4)
SHARED_SIZE = SIZE + 4


def new_tally(device: torch.device | str, *leading: int, size: int = SIZE) -> Tensor:
    """Zeroed counters, [*leading, size] int64."""
    return torch.zeros(*leading, size, dtype=torch.int64, device=device)
