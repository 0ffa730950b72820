"""Command lines of the starter trainers: every option can also stand in a YAML file, so that one config reproduces one net."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from lafr_core.errors import SettingsError
from train.config import read_yaml


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse ``arguments`` (None = the process's), after the values of the ``--config FILE`` they may name.

    The file maps option names without dashes in front (``lr: 1e-3``) to values; the command line wins over it.
    Raises SettingsError for a file that cannot be read or a name that is no option, with the nearest one.
    """
    parser.add_argument("--config", type=Path, help="YAML file of option values; the command line wins over it")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    config = first.parse_known_args(arguments)[0].config
    if config is not None:
        _take(parser, config)
    return parser.parse_args(arguments)


def _take(parser: argparse.ArgumentParser, config: Path) -> None:
    """Make the file's values the parser's defaults, converted as on the command line."""
    options = {a.dest: a for a in parser._actions if a.option_strings and a.dest not in ("help", "config")}
    for key, value in read_yaml(config).items():
        name = str(key).replace("-", "_")
        if name not in options:
            close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(options)}"
            raise SettingsError(f"{config}: {key!r} is no option; {hint}")
        action = options[name]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise SettingsError(f"{config}: {key}: expected true or false, got {value!r}")
        elif callable(action.type):
            many = isinstance(action.nargs, int)
            if many and (not isinstance(value, list) or len(value) != action.nargs):
                raise SettingsError(f"{config}: {key}: expected a list of {action.nargs}, got {value!r}")
            try:
                value = [action.type(str(v)) for v in value] if many else action.type(str(value))
            except ValueError as error:
                raise SettingsError(f"{config}: {key}: {error}; write it as on the command line") from error
        if action.choices is not None and value not in action.choices:
            raise SettingsError(f"{config}: {key}: expected one of {', '.join(map(str, action.choices))}, got {value!r}")
        parser.set_defaults(**{name: value})
        action.required = False
