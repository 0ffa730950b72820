"""``lafr completion``: what makes a shell complete commands and options at the Tab key."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ...errors import MissingPackageError
from ..arguments import Commands

SHELLS = ("bash", "zsh", "tcsh")


def add(commands: Commands, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """``whole`` makes the parser of all commands."""
    parser = commands.add_parser("completion", help="print what makes the Tab key complete lafr", description=run.__doc__)
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run, whole=whole)


def run(args: argparse.Namespace) -> int:
    """Prints a script for your shell: lafr completion bash > ~/.local/share/bash-completion/completions/lafr. Needs the package
    shtab."""
    try:
        import shtab
    except ImportError as error:
        raise MissingPackageError("completion needs the package shtab: run pip install shtab") from error
    print(shtab.complete(args.whole(), args.shell))
    return 0
