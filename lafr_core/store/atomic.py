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
    dot and ends with ``.part``, so a process killed on the spot leaves nothing that could pass for a result.
    """
    path = Path(path)
    temporary = path.with_name(f".lafr-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
