"""The C library's heap, for hosts that run for days: what it keeps of freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator


def trim() -> None:
    """Give the system what the C library keeps of freed memory, where it can (glibc).

    It keeps that per thread and between what still lives. A webui answers from ever other threads, each of which would hold a
    few hundred megabytes once it has restored a picture; ComfyUI's one would hold a checkpoint that the host has let go.
    """
    if call := _malloc_trim():
        call(0)


@contextlib.contextmanager
def trimmed() -> Iterator[None]:
    """Work after which the heap is trimmed, also where it fails or is stopped. Decorates functions too: then what they held
    is free by then."""
    try:
        yield
    finally:
        trim()


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        call: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # Windows, macOS, musl
        return None
    return call
