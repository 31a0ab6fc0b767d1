"""Prompts that begin as those before them: what the cache already holds of them is not read again.

A chat sends all that was said with every question. Keys and values of a position depend on the tokens up to it alone,
so those of the longest common beginning stay.
"""

from __future__ import annotations

from collections.abc import Callable

from .request import Request
from .session import Session


class Conversation:
    """What is kept from one `Engine.stream` to the next: a cache, and which tokens it holds.

    It is of one model at a time, and of one thread; it holds the memory of a cache until `close`, or until it goes.

    Positions that an earlier prompt or its answer left were computed in other steps than a fresh prompt's, so logits
    may differ from those of a fresh one by what the dtype rounds; by nothing with `load(deterministic=True)` and the
    C++ kernels.
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._owner: object = None
        self._held: list[int] = []

    def enter(self, request: Request, owner: object, new: Callable[[], Session]) -> Session:
        """A session that runs the request, and what of its prompt is there.

        Args:
            request: of ids; embeddings are read anew.
            owner: the engine.
            new: makes a session of its own.
        """
        if self._owner is not owner:
            self.close()
        if self._session is None:
            self._session, self._owner = new(), owner
        else:
            self._session.count_anew()
        request.cached = _in_common(self._held, request)
        self._held = []  # nothing is sure before `leave`
        return self._session

    def leave(self, request: Request) -> None:
        """The run is over, or was given up: its latest token was chosen, but not read."""
        if not request.first_id and request.generated:
            self._held = request.ids[: request.length - 1].tolist()

    def close(self) -> None:
        """Forget everything, and free the memory."""
        if self._session is not None:
            self._session.close()
        self._session, self._owner, self._held = None, None, []


def _in_common(held: list[int], request: Request) -> int:
    """How many tokens both begin with, less than the prompt has: its last one's logits are needed."""
    if request.first_id:
        return 0
    prompt = request.prompt.tolist()
    most = min(len(held), len(prompt) - 1)
    return next((at for at in range(most) if held[at] != prompt[at]), most)
