"""Steps against each other: cache, chunks, rows, slots and threads must not change what a sequence becomes."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from tiny_engine import assert_logits_close, decoded_logits, make_model, some_tokens
from torch.nn.functional import scaled_dot_product_attention

import prosparse
from prosparse.engine import Engine
from prosparse.engine.session import Session
from prosparse.kernels import cpu
from prosparse.model import attention

needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the PyTorch reference makes no bitwise promise")
# bf16 prefill rounds activations to 8 bits before each GEMM, decode does not: some 2^-9 a product, over 14 products.
BF16_BOUND = 3e-2
FAMILIES = {"llama": {}, "minicpm": {"tied": True}, "bamboo": {"sliding_window": 9}}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = FAMILIES[request.param]
    return make_model(tmp_path_factory.mktemp("model") / "model", family=request.param, hidden=96, neurons=200, **keys)


@pytest.fixture(scope="module", params=["dense", "exact"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return prosparse.load(folder, mode=request.param, weights="fp32")


def test_decode_with_the_cache_equals_teacher_forcing(engine: Engine) -> None:
    ids = some_tokens(80)
    expected = engine.logits(ids)
    assert_logits_close(decoded_logits(engine, ids), expected, "from the first token")
    assert_logits_close(decoded_logits(engine, ids, prefix=33), expected[33:], "after a prefill of 33")


@pytest.mark.parametrize("weights", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_decode_equals_teacher_forcing_in_16_bits(folder: Path, mode: str, weights: str) -> None:
    engine = prosparse.load(folder, mode=mode, weights=weights)
    ids = some_tokens(80)
    assert_logits_close(decoded_logits(engine, ids), engine.logits(ids), weights, bound=BF16_BOUND)


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
def test_prefill_in_chunks_equals_prefill_at_once(engine: Engine, chunk: int) -> None:
    ids = some_tokens(100)
    assert_logits_close(engine.logits(ids, chunk=chunk), engine.logits(ids), f"chunks of {chunk}")


def test_masks_are_made_for_the_first_layer_and_go_with_the_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, made = attention.visible, list[weakref.ref[torch.Tensor]]()
    masks = set[int]()

    def visible(*given: object) -> torch.Tensor:
        made.append(weakref.ref(found := seen(*given)))
        return found

    def attend(*given: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        made.append(weakref.ref(attn_mask))
        masks.add(id(attn_mask))
        return scaled_dot_product_attention(*given, attn_mask=attn_mask)

    monkeypatch.setattr(attention, "visible", visible)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    engine.logits(some_tokens(200))
    parts, layers = 2, len(engine.decoder.blocks)  # 128 tokens, and 72
    assert len(made) == parts + parts * layers and len(masks) == parts
    assert all(mask() is None for mask in made), "of a long context they are large"


def test_several_rows_per_slot_equal_one_by_one(engine: Engine) -> None:
    """Three sequences of different lengths in slots out of order, four rows each in one step."""
    sequences = [some_tokens(n + 4, seed=n) for n in (9, 30, 1)]
    slots, starts = (2, 0, 1), (9, 30, 1)
    session = Session(engine.decoder, engine.kv_dtype, 3, 64)
    for ids, slot, start in zip(sequences, slots, starts, strict=True):
        list(session.prefill(torch.tensor(ids[:start]), slot))
    rows = torch.tensor([ids[start:] for ids, start in zip(sequences, starts, strict=True)])
    logits = session.decode(rows, slots, starts).view(3, 4, -1)
    for i, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        alone = decoded_logits(engine, ids, prefix=start)
        assert_logits_close(logits[i], alone, f"sequence {i}")
        assert torch.equal(logits[i], alone) or not cpu.available()  # the kernels give the same bits


def test_a_slot_used_again_forgets_what_it_held(engine: Engine) -> None:
    session = Session(engine.decoder, engine.kv_dtype, 2, 64)
    list(session.prefill(torch.tensor(some_tokens(60, seed=8)), 1))
    ids = some_tokens(20, seed=9)
    list(session.prefill(torch.tensor(ids[:19]), 1))
    again = session.decode(torch.tensor([ids[19:]]), (1,), (19,))
    assert torch.equal(again, decoded_logits(engine, ids, prefix=19))


@needs_kernels
def test_a_row_does_not_depend_on_the_others_in_its_step(engine: Engine) -> None:
    """Bitwise: each of 2, 5 and 16 sequences that decode together, against the same one alone."""
    for n in (2, 5, 16):
        sequences = [some_tokens(3 + i, seed=i) for i in range(n)]
        session = Session(engine.decoder, engine.kv_dtype, n, 64)
        for slot, ids in enumerate(sequences):
            list(session.prefill(torch.tensor(ids[:-1]), slot))
        last = torch.tensor([[ids[-1]] for ids in sequences])
        together = session.decode(last, tuple(range(n)), tuple(len(ids) - 1 for ids in sequences))
        for i, ids in enumerate(sequences):
            assert torch.equal(together[i : i + 1], decoded_logits(engine, ids, prefix=len(ids) - 1)), f"{i} of {n}"


@needs_kernels
@pytest.mark.parametrize("weights", ["fp32", "bf16", "fp16"])
def test_dense_and_exact_decode_are_bitwise_equal(folder: Path, weights: str) -> None:
    ids = some_tokens(60, seed=4)
    dense, exact = (prosparse.load(folder, mode=mode, weights=weights) for mode in ("dense", "exact"))
    assert torch.equal(decoded_logits(dense, ids), decoded_logits(exact, ids))
    assert torch.equal(dense.logits(ids), exact.logits(ids))


@needs_kernels
@pytest.mark.parametrize("weights", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_results_do_not_depend_on_the_number_of_threads(folder: Path, mode: str, weights: str, threads: None) -> None:
    engine = prosparse.load(folder, mode=mode, weights=weights)
    ids, found = some_tokens(40, seed=6), []
    rows = torch.tensor(ids[:16]).view(2, 8)
    for n in (1, 2, 7):
        torch.set_num_threads(n)
        session = Session(engine.decoder, engine.kv_dtype, 2, 64)
        found.append(torch.cat([decoded_logits(engine, ids), session.decode(rows, (0, 1), (0, 0))]))
    for more in found[1:]:
        assert torch.equal(more, found[0])


def test_a_step_of_too_many_tokens_is_refused(engine: Engine) -> None:
    session = Session(engine.decoder, engine.kv_dtype, 1, 64)
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        session.decode(torch.ones(1, 17, dtype=torch.int64), (0,), (0,))
