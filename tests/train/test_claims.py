"""What benchmarks.claims_pilot measures with, by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks import claims_report
from benchmarks.claims_measure import Stopwatch, interval, peak_bytes, relative, time_to
from train.engine.optimizers import warm_cosine


def test_relative_gain_is_paired() -> None:
    """Every face 10 % better: no face's draw can change the gain, so the interval has no width; unpaired it would have."""
    before = [1.0, 2.0, 5.0, 9.0]
    mean, low, high = relative([1.1 * value for value in before], before)
    assert (mean, low, high) == pytest.approx((10.0, 10.0, 10.0))


def test_interval_is_that_of_the_mean() -> None:
    values = [0.0, 1.0] * 50
    mean, low, high = interval(values)
    half = 1.96 * 0.5 / 10  # of a mean of 100 coin throws
    assert mean == 0.5 and (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.015)


def test_time_to_is_the_first_crossing() -> None:
    curve = [(1.0, 0.9), (2.0, 0.5), (3.0, 0.6), (4.0, 0.4)]
    assert time_to(curve, 0.5) == 2.0 and time_to(curve, 0.45) == 4.0 and time_to(curve, 0.3) is None


def test_stopwatch_leaves_pauses_out() -> None:
    watch = Stopwatch()
    with watch.paused():
        busy_until = time.process_time() + 0.2
        while time.process_time() < busy_until:
            pass
    assert watch.seconds() < 0.1


def test_peak_counts_what_is_held_at_once() -> None:
    million = 250_000  # floats of four bytes

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(million).sum()

    def together() -> None:
        held = [torch.ones(million) for _ in range(3)]
        assert len(held) == 3

    assert 1e6 <= peak_bytes(one_after_the_other) < 1.5e6
    assert 3e6 <= peak_bytes(together) < 3.5e6


def test_rate_warms_up_and_ends_low() -> None:
    assert warm_cosine(0, 0 / 100, 2.0, 20) == pytest.approx(0.1)
    assert warm_cosine(50, 50 / 100, 2.0, 20) == pytest.approx(2.0 * 0.51)
    assert warm_cosine(99, 99 / 100, 2.0, 20) < 0.05


def test_a_new_report_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    file = tmp_path / "claims.md"
    assert claims_report.reading(file) == []
    file.write_text(f"old table\n\n{claims_report.READING}\n\nIt holds, because.\n")
    assert "\n".join(claims_report.reading(file)) == f"{claims_report.READING}\n\nIt holds, because.\n"
