"""The command line: ``python -m lafr_core restore | detect | compare | demo | doctor | completion``.

One module a command, in ``commands/``.

Exit codes: 0 = every input done (a photo without a face is done), 1 = some inputs failed, 2 = nothing was done: wrong usage,
or a model that cannot be opened, 130 = stopped by Ctrl-C or SIGTERM. Results go to files, messages to stderr.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import __version__
from ..errors import InputError, LafrError
from .commands import compare, completion, demo, detect, doctor, restore
from .config import with_config
from .terminal import say

COMMANDS = (restore, detect, compare, demo, doctor)
"""Each has ``add(commands)``, which describes itself and sets ``run(args) -> exit code``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself exits with 2 on wrong usage)."""
    try:
        given = with_config(sys.argv[1:] if arguments is None else arguments)
        if broken := next((text for text in given if "\0" in text), None):
            raise InputError(f"{broken!r}: expected arguments without NUL characters; check the script or file they come from")
        args = build_parser().parse_args(given)
        with _stoppable():
            return int(args.run(args))
    except LafrError as error:
        say(f"lafr: {error}")
        return 2
    except BrokenPipeError:  # the reader of our figures has heard enough
        sys.stdout = None  # type: ignore[assignment]
        return 1
    except OSError as error:
        say(f"lafr: {error.filename or 'a file'}: {error.strerror or error}; check the disk and the permissions")
        return 2
    except KeyboardInterrupt:
        say("lafr: stopped")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands. Setting options are drawn from ``settings.options()``."""
    parser = argparse.ArgumentParser(prog="lafr", description="Restores degraded faces in photos.")
    parser.add_argument("--version", action="version", version=f"lafr {__version__}")
    parser.add_argument(
        "--config", metavar="FILE.toml", help="a file of options by their names, also after the command; flags go before it"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    completion.add(commands, build_parser)
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
