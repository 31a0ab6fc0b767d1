"""What a row keeps of its single calls."""

from __future__ import annotations

import numpy as np
import pytest

from prosparse.bench.clock import Timing
from prosparse.bench.row import measured
from prosparse.bench.samples import pack, unpack
from prosparse.errors import UserError


def test_times_come_back_in_order():
    us = np.random.default_rng(0).exponential(50, 300) + 100
    us[7] = 16_000.0  # a slow moment
    row = {"samples": pack(Timing(us)), "median_us": float(np.median(us))}
    back = unpack(row)
    assert back is not None and back.shape == us.shape
    assert np.abs(back / us - 1).max() < 1e-3
    assert len(row["samples"]) == 800  # 2.7 characters each


def test_rows_without_or_with_broken_samples():
    assert unpack({"subject": "decode"}) is None
    for text in ("no base64!", "", "AAA", "AHwAfA==", 5):
        with pytest.raises(UserError, match="samples of a decode row are no times"):
            unpack({"subject": "decode", "samples": text, "median_us": 1.0})


def test_rows_of_one_run_are_known_by_it():
    rng = np.random.default_rng(1)
    timings = {name: Timing(rng.exponential(1, 20) + 10) for name in ("dense", "exact", "probe")}
    dense, exact = (measured(timings, name) for name in ("dense", "exact"))
    assert dense["run"] == exact["run"] and len(dense["run"]) == 8
    assert dense["dense_ratio_95"] == [1.0, 1.0] != exact["dense_ratio_95"]
    again = {**timings, "probe": Timing(timings["probe"].us + 1)}
    assert measured(again, "exact")["run"] != exact["run"]
    alone = measured({"exact": timings["exact"], "probe": timings["probe"]}, "exact")
    assert "dense_ratio" not in alone and alone["calls"] == 20
