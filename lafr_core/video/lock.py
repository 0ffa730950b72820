"""One run at a time for each clip: two would write into the same segments."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

LOCK = "lock"
"""File in a clip's hidden folder that the run at work holds; the system lets go of it when that ends, however it ends."""


@dataclass
class Lock:
    """Held from :meth:`taken` until :meth:`free`, or until the process is gone."""

    _handle: int | None = field(default=None, repr=False)

    def taken(self, path: Path) -> bool:
        """Take it, in a folder that is there; False where another process holds it. Where the system or the disk has no such
        locks it is always taken. Raises OSError."""
        try:
            import fcntl
        except ImportError:  # Windows
            return True
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:  # network shares without locks
            os.close(handle)
            return True
        self._handle = handle
        return os.fstat(handle).st_nlink > 0  # else the run that held it has just taken the folder away

    def free(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
