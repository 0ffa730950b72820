"""The command line: ``python -m lafr_core restore | detect | compare | demo``. One module a command, in ``commands/``.

Exit codes: 0 = every input done (a photo without a face is done), 1 = some inputs failed, 2 = nothing was done: wrong usage,
or a model that cannot be opened, 130 = stopped by Ctrl-C or SIGTERM. Results go to files, messages to stderr.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import __version__
from ..errors import LafrError
from .batch import say
from .commands import compare, demo, detect, restore

COMMANDS = (restore, detect, compare, demo)
"""Each has ``add(commands)``, which describes itself and sets ``run(args) -> exit code``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself exits with 2 on wrong usage)."""
    args = build_parser().parse_args(arguments)
    try:
        with _stoppable():
            return int(args.run(args))
    except LafrError as error:
        say(f"lafr: {error}")
        return 2
    except KeyboardInterrupt:
        say("lafr: stopped")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands. Setting options are drawn from ``settings.options()``."""
    parser = argparse.ArgumentParser(prog="lafr", description="Restores degraded faces in photos.")
    parser.add_argument("--version", action="version", version=f"lafr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops like Ctrl-C: the report is written, no file is left half done. The old handler comes back afterwards."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
