"""A measurement in parts: shares, micro-batches, and passes that were killed, give what one pass gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import random_tables, write_hand_made
from tiny_engine import make_model
from torch import Tensor
from transformers import LlamaForCausalLM

import prosparse
from prosparse.engine import Engine, load
from prosparse.errors import MissingFileError, UserError
from prosparse.study import Report, merge
from prosparse.study.measure import one_pass

WINDOW = 8
PARTS = {"window": WINDOW, "near_zero": 0.02}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(write_hand_made(tmp_path_factory.mktemp("hand") / "made", random_tables(2, 70)), weights="fp32")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 16, (150, WINDOW), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def whole(engine: Engine, tokens: Tensor) -> Report:
    return prosparse.measure(engine, [tokens], **PARTS)


def assert_same(a: Report, b: Report) -> None:
    for name, total in a.counts.arrays().items():
        assert np.array_equal(total, b.counts.arrays()[name]), name
    assert a.to_json() == b.to_json()


@pytest.mark.parametrize("of", [2, 3, 8])
def test_merged_shares_are_the_whole_bit_for_bit(
    engine: Engine, tokens: Tensor, whole: Report, tmp_path: Path, of: int
) -> None:
    """150 windows are five groups, so some of eight shares are empty."""
    for number in range(1, of + 1):
        prosparse.measure(engine, [tokens], share=(number, of), **PARTS).save(tmp_path / str(number), plots=False)
    merged = merge([tmp_path / str(number) for number in range(of, 0, -1)])
    assert_same(merged, whole)
    merged.save(tmp_path / "all", plots=False)
    whole.save(tmp_path / "one", plots=False)
    for name in ("measure.json", "measure.html", "counts.safetensors"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert_same(Report.load(tmp_path / "one"), whole)


def test_shares_that_do_not_belong_together(engine: Engine, tokens: Tensor, tmp_path: Path) -> None:
    def save(name: str, part: Tensor, share: tuple[int, int], **options: Any) -> Path:
        given = {**PARTS, **options}
        prosparse.measure(engine, [part], share=share, **given).save(tmp_path / name, plots=False)
        return tmp_path / name

    first, second = (save(str(number), tokens, (number, 2)) for number in (1, 2))
    with pytest.raises(UserError, match="of 2 shares these are missing: 2"):
        merge([first])
    with pytest.raises(UserError, match="again holds share 1 of 2, also in .*1; give every share once"):
        merge([first, save("again", tokens, (1, 2))])
    with pytest.raises(UserError, match="thirds holds share 3 of 3, not of 2"):
        merge([first, second, save("thirds", tokens, (3, 3))])
    with pytest.raises(UserError, match="is of another text"):
        merge([first, save("text", tokens + 1, (2, 2))])
    with pytest.raises(UserError, match="is of another settings"):
        merge([first, save("settings", tokens, (2, 2), near_zero=0.5)])
    with pytest.raises(MissingFileError, match="counts.safetensors: no such file"):
        merge([first, tmp_path / "absent"])
    with pytest.raises(UserError, match="a share is for the one pass alone"):
        prosparse.measure(engine, [tokens], share=(1, 2), cett=[0.1])


def test_micro_batches_do_not_matter(tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(make_model(tmp_path / "tiny", neurons=200), dtype=torch.float32)
    tokens = torch.randint(3, 250, (40, 24), generator=torch.Generator().manual_seed(3))
    one, others = prosparse.measure(model, [tokens], batch=1), [3, 8, 100]
    for batch in others:
        found = prosparse.measure(model, [tokens], batch=batch)
        different = int(np.abs(found.counts.active - one.counts.active).sum())
        assert different < 1e-5 * int(one.counts.active.sum())
        assert found.counts.windows == one.counts.windows


def stop_after(calls: int) -> Any:
    """A predictor that ends the process, as far as the pass can tell."""

    def predictor(layer: int, x: Tensor) -> Tensor:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return torch.ones(len(x), 70, dtype=torch.bool)

    return predictor


@pytest.mark.parametrize("calls", [2 * 10 + 1, 2 * 47, 2 * 64, 2 * 149])
def test_killed_and_started_again_is_the_same(
    engine: Engine, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    monkeypatch.setattr(one_pass, "SAVE_EVERY_S", 0.0)
    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        prosparse.measure(engine, [tokens], predictor=stop_after(calls), state=state, **PARTS)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    rest = 2 * 150 - calls // 2 * 2  # calls of what was not saved
    again = prosparse.measure(engine, [tokens], predictor=stop_after(rest), state=state, **PARTS)
    assert_same(again, prosparse.measure(engine, [tokens], predictor=stop_after(300), **PARTS))
    assert_same(prosparse.measure(engine, [tokens], predictor=stop_after(0), state=state, **PARTS), again)


def test_a_state_of_something_else_is_refused(
    engine: Engine, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_pass, "SAVE_EVERY_S", 0.0)
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        prosparse.measure(engine, [tokens], predictor=stop_after(100), state=state, **PARTS)
    with pytest.raises(UserError, match="another settings; finish that one, or delete it"):
        prosparse.measure(engine, [tokens], state=state, window=4)
    with pytest.raises(UserError, match="another share"):
        prosparse.measure(engine, [tokens], state=state, share=(1, 2), **PARTS)
    for changed in (tokens.flip(0), tokens[:20]):
        with pytest.raises(UserError, match="the text has changed since this pass began"):
            prosparse.measure(engine, [changed], state=state, **PARTS)
    state.write_bytes(state.read_bytes()[:-5])
    with pytest.raises(UserError, match="cut off"):
        prosparse.measure(engine, [tokens], state=state, **PARTS)


def test_stopping_early_is_the_beginning(engine: Engine, tokens: Tensor) -> None:
    some = prosparse.measure(engine, [tokens], tokens=40 * WINDOW - 3, **PARTS)
    first = prosparse.measure(engine, [tokens[:40]], **PARTS)
    assert some.counts.tokens == 40 * WINDOW
    for name, total in some.counts.arrays().items():
        assert np.array_equal(total, first.counts.arrays()[name]), name


def test_sample_is_spread_evenly() -> None:
    for count in (1, 3, 4, 5, 8, 9, 100):
        sample = one_pass.Sample(4)
        for number in range(count):
            sample.offer(number, torch.tensor(number))
        numbers = [int(window) for window in sample.windows]
        assert min(count, 2) <= len(numbers) <= 4 and numbers[0] == 0
        steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)}
        assert len(steps) <= 1 and count - numbers[-1] <= max(steps, default=1)
