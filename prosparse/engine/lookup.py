"""Drafts of a text's next tokens, from where its latest tokens stood before (Saxena, "Prompt Lookup Decoding", 2023).

A step over a token and its draft reads the weights once for all of them, and an FFN the union of their neurons. What
each row says is compared with the draft in order: the text is the one that single steps write, and a right draft saves
them. How many tokens are worth drafting follows from how often drafts were right so far and what further rows cost; a
draft that is not tried is judged all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LENGTHS = (4, 3, 2)  # tokens that must have stood before in the same order: the longest that did decides
PRIOR, WINDOW = 0.5, 16  # how often a draft is taken to be right before any was judged, and how many judgements count
# Of a step on the CPU by its tokens, in steps of one token: up to four share each read of a weight, and more of them
# are bound by arithmetic. `python -m prosparse.bench --only lookup` measures it.
COSTS = {1: 1.0, 2: 1.15, 3: 1.2, 4: 1.25, 8: 2.1, 16: 3.9}


@dataclass
class Rate:
    """How often what was drafted came: a mean over the latest judgements."""

    right: float = PRIOR
    weight: float = 1.0

    def judge(self, was_right: bool) -> None:
        self.weight = min(self.weight + 1, WINDOW)
        self.right += (was_right - self.right) / self.weight


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next.

    Args:
        tokens: they; none where the latest tokens never stood before.
        rate: how often such a token came so far.
        length: how many tokens were found again; a key of the rates.
    """

    tokens: Sequence[int] = ()
    rate: float = 0.0
    length: int = 0

    def expected(self, most: int) -> float:
        """Tokens that a step with up to so many drafted ones is expected to bring."""
        return sum(self.rate**n for n in range(min(most, len(self.tokens)) + 1))


NOTHING = Draft()


class Lookup:
    """The drafts of one text.

    Args:
        ids: tokens it begins with.

    Attributes:
        drafted, accepted: tokens that steps tried, and those of them that came.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # tokens in a row -> place of the one behind their latest
        self._rates = {length: Rate() for length in LENGTHS}
        self.drafted = self.accepted = 0
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """The text grew by a token."""
        for length in LENGTHS:
            if len(self._ids) >= length:
                self._behind[tuple(self._ids[-length:])] = len(self._ids)
        self._ids.append(token)

    def draft(self, most: int) -> Draft:
        """Up to `most` tokens that followed when the latest ones stood before."""
        for length in LENGTHS:
            place = self._behind.get(tuple(self._ids[-length:])) if len(self._ids) >= length else None
            if place is not None:
                period = len(self._ids) - place  # a draft that reaches the text's end goes on with its own beginning
                tokens = [self._ids[place + i % period] for i in range(most)]
                return Draft(tokens, self._rates[length].right, length)
        return NOTHING

    def judge(self, draft: Draft, came: Sequence[int], tried: int) -> None:
        """Compare a draft, of which a step tried some tokens or none, with the tokens that came, one at least."""
        right = 0
        for drafted, token in zip(draft.tokens[: max(tried, 1)], came, strict=False):
            self._rates[draft.length].judge(drafted == token)
            right += drafted == token
        self.drafted += tried
        self.accepted += right if tried else 0


def cost(tokens: int) -> float:
    """Of a step of so many tokens, in steps of one: see `COSTS`."""
    above = next(known for known in COSTS if known >= tokens)
    below = max(known for known in COSTS if known <= tokens)
    if above == below:
        return COSTS[above]
    return COSTS[below] + (COSTS[above] - COSTS[below]) * (tokens - below) / (above - below)


def best_length(drafts: Sequence[Draft], room: int) -> int:
    """How many tokens a step should try of each sequence's draft, at most `room`."""
    longest = min(room, max(len(draft.tokens) for draft in drafts))

    def speed(tried: int) -> float:
        return sum(draft.expected(tried) for draft in drafts) / cost(len(drafts) * (1 + tried))

    return max(range(longest + 1), key=speed)
