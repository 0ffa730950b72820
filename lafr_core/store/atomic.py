"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` when the block ends well and is deleted otherwise.

    A reader sees the old file or the new one, never a part of it. The folder must exist. The temporary name starts with a
    dot and ends with ``.part``, so a process killed on the spot leaves nothing that could pass for a result. ``replace``: what
    is there goes; otherwise FileExistsError, also where it came meanwhile. A run's results go through
    :class:`.outputs.Outputs`, which knows what may be replaced.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        if replace:
            os.replace(temporary, path)
        else:
            publish(temporary, path)
    except OSError as error:
        if error.filename == os.fspath(temporary):  # people know the file by its name
            error.filename = os.fspath(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # the folder, or the disk, has gone: what failed before says so
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give the file the name ``path`` if nobody has it. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except (OSError, NotImplementedError, AttributeError):  # a disk without hard links (FAT), or somebody has the name
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def temporary_name(path: Path) -> Path:
    """A new name in the folder of ``path`` that nobody takes for a result."""
    return path.with_name(f".lafr-{os.getpid()}-{secrets.token_hex(4)}.part")
