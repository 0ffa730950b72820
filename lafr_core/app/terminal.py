"""What a person at the terminal sees; stdout stays free for results."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TextIO, TypeVar

T = TypeVar("T")


def say(message: str) -> None:
    """One line on stderr; lost where nobody listens any more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(_line(message, sys.stderr))
        sys.stderr.flush()


def show(*lines: str) -> None:
    """Lines of a result, on stdout; lost where stdout is closed."""
    if sys.stdout is not None:
        sys.stdout.writelines(_line(line, sys.stdout) for line in lines)


def _line(text: str, stream: TextIO) -> str:
    """The text as one line that ``stream`` can take."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return plain(text).encode(encoding, "backslashreplace").decode(encoding) + "\n"


def plain(text: str) -> str:
    """The text as one line of letters. File names hold what they like: bytes that are no text, line ends, codes that colour a
    terminal or clear it; these are written as escapes."""
    return "".join(_escaped(letter) if unicodedata.category(letter) in _HIDDEN else letter for letter in text)


_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of pairs, and ends of lines and paragraphs."""


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def on_terminal() -> bool:
    """Whether somebody looks at stderr, which may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(items: Sequence[T], name: str, *, shown: bool) -> Iterator[Any]:
    """``items`` to walk through, with tqdm's bar where it is installed and ``shown``; ``write`` says a line beside the bar."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield _Plain(items)
        return
    with tqdm(items, desc=name, unit="photo", disable=not shown, file=sys.stderr) as bar:
        yield _Beside(bar) if shown else _Plain(items)


class _Plain(Generic[T]):
    def __init__(self, items: Iterable[T]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def write(self, message: str) -> None:
        say(message)


class _Beside(_Plain[T]):
    """The items of a bar that is shown."""

    def write(self, message: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.items.write(_line(message, sys.stderr)[:-1], file=sys.stderr)  # type: ignore[attr-defined]
