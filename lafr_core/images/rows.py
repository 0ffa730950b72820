"""Pictures that are made a few rows at a time: what the encoders take."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Rows(Protocol):
    """(H, W, C) uint8 or uint16: an array, or anything that makes its rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """The rows of the slice, all columns and channels."""
        ...
