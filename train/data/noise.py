"""Noise that is a function of numbers: each sample's own, whatever it is batched with, made for a whole batch on any device.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 64-bit words are mixed from a key
and a counter by SplitMix64's finaliser (Steele et al. 2014) and turned into normal numbers by Box and Muller's transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio as a signed 64-bit number
FIRST, SECOND = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)
HALF = 0xFFFFFFFF


def mixed(words: Tensor) -> Tensor:
    """int64 -> int64, every bit depending on every bit."""
    words = (words ^ _right(words, 30)) * FIRST
    words = (words ^ _right(words, 27)) * SECOND
    return words ^ _right(words, 31)


def keys(shared: Sequence[int], index: Tensor) -> Tensor:
    """One key for each of ``index`` (B,) int64, from it and the numbers that the whole batch shares."""
    key = torch.zeros_like(index)
    for number in shared:
        key = mixed(key * STEP + number + 1)
    return mixed(key * STEP + index + 1)


def below(end: int, keys: Tensor) -> Tensor:
    """A whole number in [0, end) for each key (B,)."""
    return _right(mixed(keys - 1), 1) % end


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers (B, *shape) float32, those of each key its own."""
    counters = torch.arange(1, math.prod(shape) + 1, device=keys.device)
    words = mixed(keys[:, None] + counters * STEP)
    radius, turn = (((half & HALF).double() + 0.5) / (HALF + 1) for half in (_right(words, 32), words))
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * turn).cos()).float().view(len(keys), *shape)


def _right(words: Tensor, bits: int) -> Tensor:
    """Shifted right with zeros coming in."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
