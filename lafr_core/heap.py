"""The C library's heap, for hosts that run for days: what it keeps of freed memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def trim() -> None:
    """Give the system what the C library keeps of freed memory, where it can (glibc).

    It keeps that per thread and between what still lives. A webui answers from ever other threads, each of which would hold a
    few hundred megabytes once it has restored a picture; ComfyUI's one would hold a checkpoint that the host has let go.
    """
    if call := _malloc_trim():
        call(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        call: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # Windows, macOS, musl
        return None
    return call
