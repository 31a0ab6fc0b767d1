"""The text that overlap is measured on: a walk over clusters of tokens.

Tokens come in clusters of 16 neighbouring ids, whose embeddings share a part. The walk mostly goes on to another token
of its cluster, as a text keeps to its subject for a while; what it leaves alike is what overlap comes from.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

CLUSTER = 16  # tokens
STAY = 0.9  # how likely the walk remains in its cluster


def walk(vocab: int, tokens: int, seed: int = 0) -> Tensor:
    """Ids of a text, [tokens] int64, in which no token follows itself."""
    rng = random.Random(seed)
    ids = [rng.randrange(vocab)]
    while len(ids) < tokens:
        first = ids[-1] // CLUSTER * CLUSTER
        last = min(first + CLUSTER, vocab)
        stays = rng.random() < STAY and last - first > 1
        new = rng.randrange(first, last) if stays else rng.randrange(vocab)
        if new != ids[-1]:
            ids.append(new)
    return torch.tensor(ids)
