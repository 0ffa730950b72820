"""What the test clips show, and when."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

SIZE = (64, 80)
CLOCK = Fraction(1, 1000)


def moving(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(h, w, 3) uint8: frame number ``index``, unlike every other, in which no axis can be taken for another."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([(3 * x + 2 * index) % 256, (2 * y + 40) % 256, np.full_like(x, (7 * index) % 256)], -1).astype(np.uint8)


def shown_at(index: int) -> int:
    """Milliseconds: every third frame is shown longer."""
    return 40 * index + 10 * ((index + 2) // 3)


MakeClip = Callable[..., Path]
