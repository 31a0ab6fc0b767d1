"""Stop strings in a stream of text."""

from __future__ import annotations


class StopMatcher:
    """Cuts a stream at the stop string that is completed first.

    Where two are completed by the same character, the longer one counts. The cut does not depend on how the text was
    divided into pieces, and nothing is withheld that can no longer become part of a stop string.

    Args:
        stop: non-empty strings; none passes all text through.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Add text. Returns what may be shown now, and whether a stop string was completed, here or before."""
        if self._stopped:
            return "", True
        text = self._held + text
        starts = {stop: text.find(stop) for stop in self._stop}
        found = [(start + len(stop), start) for stop, start in starts.items() if start >= 0]
        if found:
            self._stopped, self._held = True, ""
            return text[: min(found)[1]], True
        safe = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """The text withheld, once no more will come; empty after a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning of stop, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
