"""Stop strings: the same cut however the text is divided, and nothing withheld without need."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prosparse.engine.stopping import StopMatcher


def naive(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Read one character at a time; stop at the first end of a stop string, the longest one that ends there."""
    for end in range(len(text) + 1):
        ending = [len(s) for s in stop if text[:end].endswith(s)]
        if ending:
            return text[: end - max(ending)], True
    return text, False


@settings(max_examples=250, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="ab<", max_size=6), max_size=12),
    stop=st.lists(st.text(alphabet="ab<", min_size=1, max_size=5), max_size=4).map(tuple),
)
def test_any_division_of_the_text_gives_the_naive_cut(pieces: list[str], stop: tuple[str, ...]) -> None:
    matcher, shown, stopped, read = StopMatcher(stop), "", False, ""
    for piece in pieces:
        new, stopped = matcher.push(piece)
        shown, read = shown + new, read + piece
        if not stopped:  # what is withheld could become a stop string, and is no longer than that needs
            held = read[len(shown) :]
            assert read.startswith(shown)
            assert not held or any(s != held and s.startswith(held) for s in stop)
            assert not any(len(s) > n > len(held) and read.endswith(s[:n]) for s in stop for n in range(len(s)))
    assert (shown + matcher.flush(), stopped) == naive("".join(pieces), stop)


def test_a_stop_string_across_pieces() -> None:
    matcher = StopMatcher(("</s>", "\n\n"))
    assert matcher.push("one <") == ("one ", False)
    assert matcher.push("/s") == ("", False)
    assert matcher.push("x> \n") == ("</sx> ", False)
    assert matcher.push("\nmore") == ("", True)
    assert matcher.push("and more") == ("", True)
    assert matcher.flush() == ""


def test_withheld_text_comes_out_at_the_end() -> None:
    matcher = StopMatcher(("END",))
    assert matcher.push("the EN") == ("the ", False)
    assert matcher.flush() == "EN"
    assert matcher.flush() == ""


def test_without_stop_strings_text_passes() -> None:
    assert StopMatcher(()).push("anything") == ("anything", False)


@pytest.mark.parametrize("stop", [("abc", "bc"), ("bc", "abc")])
def test_of_two_ending_together_the_longer_counts(stop: tuple[str, ...]) -> None:
    assert StopMatcher(stop).push("xabc") == ("x", True)
