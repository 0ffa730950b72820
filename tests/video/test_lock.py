"""The lock of a clip's hidden folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lafr_core.video.lock import Lock

fcntl = pytest.importorskip("fcntl", reason="locks as POSIX has them")


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    first, second = Lock(), Lock()
    assert first.taken(tmp_path / "lock") and not second.taken(tmp_path / "lock")
    first.free()
    assert second.taken(tmp_path / "lock")
    second.free()
    second.free()


def test_a_lock_that_goes_with_its_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that held it is done and clears up between our opening it and our holding it."""
    flock = fcntl.flock

    def late(handle: int, how: int) -> Any:
        os.unlink(tmp_path / "lock")
        return flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert not Lock().taken(tmp_path / "lock")


def test_a_disk_without_locks_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert Lock().taken(tmp_path / "lock") and Lock().taken(tmp_path / "lock")
