"""Noise that is a function of numbers: normal, uniform, each key its own, known words."""

from __future__ import annotations

import pytest
import torch

from train.data import noise


def test_words_are_splitmix64s() -> None:
    """The first outputs of SplitMix64 from seed 1234567, as published with its reference implementation."""
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    counters = torch.arange(1, 5)
    words = noise.mixed(1234567 + counters * noise.STEP)
    assert [int(word) % (1 << 64) for word in words] == wanted


def test_numbers_are_normal_uniform_and_each_keys_own() -> None:
    index = torch.arange(400)
    keys = noise.keys([3, 11, 5], index)
    z = noise.normal(keys, (4, 8, 8))
    assert z.shape == (400, 4, 8, 8) and z.dtype == torch.float32
    assert float(z.mean()) == pytest.approx(0, abs=0.02) and float(z.std()) == pytest.approx(1, abs=0.02)
    assert float((z**4).mean()) == pytest.approx(3, abs=0.15)
    assert abs(float((z[1:] * z[:-1]).mean())) < 0.02 and abs(float((z[..., 1:] * z[..., :-1]).mean())) < 0.02
    assert torch.equal(noise.normal(noise.keys([3, 11, 5], index[7:9]), (4, 8, 8)), z[7:9])
    assert len({*keys.tolist(), *noise.keys([3, 11, 6], index).tolist(), *noise.keys([4, 11, 5], index).tolist()}) == 1200
    t = noise.below(10, noise.keys([3], torch.arange(20000)))
    assert sorted(set(t.tolist())) == list(range(10))
    assert torch.bincount(t).float().std() < 120
