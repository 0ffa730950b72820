"""Where a clip's frames go: into segments, so that a stop loses little, which are then joined under the result's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from .frames import Clip

Seal = Callable[[Path, Path, Path], None]
"""(source, the written file, the name that it is about to get): the last word before it has that name."""


def no_seal(source: Path, written: Path, output: Path) -> None:
    """Nothing to say."""


class Source(Clip, Protocol):
    """A clip that comes from a file or a folder."""

    path: Path
    faults: list[str]
    """One sentence for each place that could not be read, in the pass last made."""


class Writer(Protocol):
    """One segment while it is written."""

    frames: int
    """How many it holds."""

    def write(self, frame: Any) -> None:
        """Add the next frame of the target's source."""
        ...

    def close(self) -> None:
        """End the segment; it is whole."""
        ...

    def abandon(self) -> None:
        """Let go of it; it is not whole."""
        ...


class Target(Protocol):
    """A result settled for one source."""

    @property
    def suffix(self) -> str:
        """Of the result's name; '' for a folder."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What the result cannot keep of the source."""
        ...

    def segment(self, path: Path) -> Writer:
        """A writer of one segment, a file or folder at ``path``. Raises ClipError."""
        ...

    def join(
        self, segments: Sequence[Path], out: Path, *, whole: bool = True, replace: bool = False, seal: Seal = no_seal
    ) -> None:
        """The segments, in order, as the result at ``out``; there whole or not at all. ``whole``: they are all there are.
        ``replace``: what is there goes. Raises ClipError, also where it may not and something has come meanwhile."""
        ...
