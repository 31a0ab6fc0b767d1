"""Drafts of a text's next tokens, from where its latest tokens stood before (Saxena, "Prompt Lookup Decoding", 2023).

A step over a token and its draft reads the weights once for all of them, and an FFN the union of their neurons. What
each row says is compared with the draft in order: the text is the one that single steps write, and a right draft saves
them. How many tokens are worth drafting follows from how often drafts were right so far and what further rows cost; a
draft that is not tried is judged all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

LENGTHS = (4, 3, 2)  # tokens that must have stood before in the same order: the longest that did decides
PRIOR, WINDOW = 0.5, 16  # how often a draft is taken to be right before any was judged, and how many judgements count
# Of a step by its tokens, in steps of one, before any was timed: on two cores of an AMD EPYC (Zen 4), where bf16 is
# bound by memory up to four tokens and int4 from two on by arithmetic. `python -m prosparse.bench --only lookup` says.
COSTS = {
    "bf16": {1: 1.0, 2: 1.1, 3: 1.3, 4: 1.45, 8: 2.1, 16: 4.2},
    "int8": {1: 1.0, 2: 1.25, 3: 1.45, 4: 1.8, 8: 3.5, 16: 6.9},
    "int4": {1: 1.0, 2: 1.25, 3: 1.75, 4: 2.2, 8: 4.5, 16: 10.0},
}
LATEST, OUTLIER = 8, 2.0  # steps that a mean of seconds goes back, and times the mean that a step counts for at most
MARGIN = 1.05  # by how much a step with drafts must be expected to be faster: the estimates are not better than that
FORGOTTEN = 64  # steps without one of so many tokens, after which its time is forgotten: a bad moment is not for good


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


class Costs:
    """What a step costs by its number of tokens: in seconds once steps were timed, before that in steps of one token.

    What was not timed is taken to be in proportion to what was.

    Args:
        weights: format of the model's matrices.
        learns: False leaves the costs as they are: how many tokens a step has must then not depend on the clock.
    """

    def __init__(self, weights: str, learns: bool = True) -> None:
        self._prior, self._learns = COSTS.get(weights, COSTS["bf16"]), learns
        self._seconds: dict[int, float] = {}
        self._latest: dict[int, int] = {}  # when each was timed, in steps
        self._steps = 0
        self._lock = threading.RLock()  # the runs of an engine share it

    def __call__(self, tokens: int) -> float:
        with self._lock:
            return self._cost(tokens)

    def _cost(self, tokens: int) -> float:
        if tokens in self._seconds or not self._seconds:
            return self._seconds.get(tokens) or self._expected(tokens)
        timed = min(self._seconds, key=lambda other: abs(other - tokens))
        return self._seconds[timed] * self._expected(tokens) / self._expected(timed)

    def learn(self, tokens: int, seconds: float) -> None:
        """A step took so long."""
        if self._learns:
            with self._lock:
                self._learn(tokens, seconds)

    def _learn(self, tokens: int, seconds: float) -> None:
        mean = self._cost(tokens) if self._seconds else seconds
        mean += (min(seconds, OUTLIER * mean) - mean) / (LATEST if tokens in self._seconds else 1)
        self._seconds[tokens] = mean
        self._steps += 1
        self._latest[tokens] = self._steps
        for other in [other for other, at in self._latest.items() if at + FORGOTTEN < self._steps]:
            del self._seconds[other], self._latest[other]

    def _expected(self, tokens: int) -> float:
        above = next(known for known in self._prior if known >= tokens)
        below = max(known for known in self._prior if known <= tokens)
        share = (tokens - below) / (above - below) if above > below else 0.0
        return self._prior[below] + share * (self._prior[above] - self._prior[below])


def best_length(drafts: Sequence[Draft], room: int, cost: Callable[[int], float]) -> int:
    """How many tokens a step should try of each sequence's draft, at most `room`."""
    longest = min(room, max(len(draft.tokens) for draft in drafts))

    def speed(tried: int) -> float:
        return sum(draft.expected(tried) for draft in drafts) / cost(len(drafts) * (1 + tried))

    best = max(range(longest + 1), key=speed)
    return best if speed(best) > MARGIN * speed(0) else 0
