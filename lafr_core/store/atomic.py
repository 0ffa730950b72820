"""Files appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` when the block ends well and is deleted otherwise.

    A reader sees the old file or the new one, never a part of it. The folder must exist. The temporary name starts with a
    dot and ends with ``.part``, so a process killed on the spot leaves nothing that could pass for a result. This replaces what
    is there: a run's results go through :class:`.outputs.Outputs`, which does not.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """A new name in the folder of ``path`` that nobody takes for a result."""
    return path.with_name(f".lafr-{os.getpid()}-{secrets.token_hex(4)}.part")
