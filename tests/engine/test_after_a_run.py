"""What a run leaves behind, however it ends: nothing but its result."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_engine import make_model

import prosparse
from prosparse.engine import Engine
from prosparse.model.cache import KVCache


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return prosparse.load(make_model(tmp_path_factory.mktemp("model") / "model"), weights="fp32")


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[KVCache]]]:
    """The caches that are made, while Python collects no garbage: it may not for hundreds of short runs."""
    made: list[weakref.ref[KVCache]] = []
    make = KVCache.__init__

    def noted(self: KVCache, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        made.append(weakref.ref(self))

    monkeypatch.setattr(KVCache, "__init__", noted)
    gc.collect()
    gc.disable()
    yield made
    gc.enable()


def test_a_result_has_its_own_stats_when_another_run_ends_beside_it(engine: Engine) -> None:
    class Interrupted(Engine):
        """Where its stats are set, another thread is given way to, whose run ends."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "stats" and value["prefill_tokens"] == 3:
                self.generate([1, 2, 3, 4], max_new_tokens=1)

    engine.__class__ = Interrupted
    try:
        assert engine.generate([1, 2, 3], max_new_tokens=1).stats["prefill_tokens"] == 3
    finally:
        engine.__class__ = Engine
    assert engine.stats["prefill_tokens"] == 4


def run(engine: Engine) -> None:
    engine.generate(["one", "two"], max_new_tokens=4)


def stream(engine: Engine) -> None:
    assert list(engine.stream("one", max_new_tokens=4))


def abandon(engine: Engine) -> None:
    pieces = engine.stream("one", max_new_tokens=40, ignore_eos=True)
    next(pieces)


def interrupt(engine: Engine) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate("one", progress=stop)


def logits(engine: Engine) -> None:
    engine.logits([1, 2, 3])


@pytest.mark.parametrize("use", [run, stream, abandon, interrupt, logits], ids=lambda use: use.__name__)
def test_the_cache_goes_with_the_run(engine: Engine, caches: list[weakref.ref[KVCache]], use: Any) -> None:
    use(engine)
    assert len(caches) == 1
    assert caches[0]() is None, "gigabytes for a large model and a long context"
