"""What random inputs have in common: how many, what breaks numbers, and the limits they have to keep.

PROSPARSE_FUZZ_EXAMPLES=100000 python -m pytest tests/bad_inputs -k fuzz   searches for minutes, with new examples
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from prosparse.engine import load
from prosparse.errors import ProsparseError

EXAMPLES = int(os.environ.get("PROSPARSE_FUZZ_EXAMPLES", "120"))
RANDOMLY = settings(
    max_examples=EXAMPLES,
    derandomize="PROSPARSE_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,  # `limited` has one that a busy machine keeps
    suppress_health_check=list(HealthCheck),
)
MORE_MEMORY = 2**30  # bytes that one example may add to the address space
SECONDS = 30


def seldom(strategy: st.SearchStrategy) -> st.SearchStrategy:
    """None seven times of eight: little gets past damage of this kind."""
    return st.integers(0, 7).flatmap(lambda n: strategy if n == 5 else st.none())


# numbers at which sizes, products and conversions break
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 4, 64, 95, 96, 97, 127, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64, 10**400, 0.0, -0.0, 0.5,
     1e-300, 1e300, float("nan"), float("inf"), float("-inf")]
)  # fmt: skip
# some bytes put in and left out somewhere, as a bad disk or download does
DAMAGE = seldom(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 8)))


@contextmanager
def limited() -> Iterator[None]:
    """A large allocation fails, and a hang ends."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def attempt(model: Path) -> bool:
    """Whether the model runs; any other end than an error of ours is raised."""
    with limited():
        try:
            load(model).generate([3, 4, 5], max_new_tokens=2, ignore_eos=True)
        except ProsparseError as error:
            assert str(error).strip() and not str(error).startswith("cache:"), error
            return False
    return True


def damaged(data: bytes, damage: tuple[float, bytes, int] | None) -> bytes:
    """Bytes with some replaced by others, and as many more left out as the last number says."""
    if damage is None:
        return data
    at = int(damage[0] * len(data))
    return data[:at] + damage[1] + data[at + damage[2] :]
