"""What a person at the terminal sees; stdout stays free for results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TextIO, TypeVar

T = TypeVar("T")


def say(message: str) -> None:
    """One line on stderr; lost where nobody listens any more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(message.encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stderr.flush()


def show(line: str) -> None:
    """One line of a result, on stdout."""
    sys.stdout.write(line + "\n")


@contextlib.contextmanager
def progress_bar(items: Sequence[T], name: str, *, shown: bool) -> Iterator[Any]:
    """``items`` to walk through, with tqdm's bar where it is installed and ``shown``; ``write`` says a line beside the bar."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield _Plain(items)
        return
    with tqdm(items, desc=name, unit="photo", disable=not shown, file=sys.stderr) as bar:
        yield bar if shown else _Plain(items)


class _Plain(Generic[T]):
    def __init__(self, items: Sequence[T]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def write(self, message: str, file: TextIO | None = None) -> None:
        say(message)
