"""A file of options: ``--config lafr.toml``, with the names of the flags. What the command line says itself goes before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPackageError, SettingsError


def with_config(arguments: Sequence[str]) -> list[str]:
    """The arguments, those of the file that ``--config`` names put behind the command's name and before all others.

    Names at the top of the file are for every command; those in a table ``[restore]`` for that one. True and False stand for a
    flag and its ``--no-`` form (False for a flag without one leaves it out), lists for a flag given several times. Raises
    InputError for a file that cannot be read, SettingsError for a value that no flag takes.
    """
    rest, file = _taken(list(arguments))
    if file is None or not rest:
        return rest
    values = _read(Path(file))
    command = rest[0]
    own = values.get(command, {})
    if not isinstance(own, dict):
        raise SettingsError(f"{file}: expected a table [{command}], got {own!r}")
    chosen = {name: value for name, value in values.items() if not isinstance(value, dict)}
    return [command, *_flags(chosen | own, file), *rest[1:]]


def _taken(arguments: list[str]) -> tuple[list[str], str | None]:
    """The arguments without ``--config FILE`` or ``--config=FILE``, and the file."""
    for at, text in enumerate(arguments):
        if text == "--":
            break
        if text.startswith("--config="):
            return arguments[:at] + arguments[at + 1 :], text.partition("=")[2]
        if text == "--config" and at + 1 < len(arguments):
            return arguments[:at] + arguments[at + 2 :], arguments[at + 1]
    return arguments, None


def _read(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib  # type: ignore[no-redef, import-not-found]
        except ImportError as error:
            raise MissingPackageError("--config needs Python 3.11 or the package tomli; run pip install tomli") from error
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: expected a TOML file of options, such as 'fidelity = 0.9' ({reason})") from error


def _flags(values: Mapping[str, Any], file: str) -> Iterator[str]:
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool):
                if one or name in _WITH_NO:
                    yield flag if one else "--no-" + flag[2:]
            elif isinstance(one, (int, float, str)):
                yield f"{flag}={one}"
            else:
                raise SettingsError(f"{file}: {name}: expected text, a number, true or false, got {one!r}")


_WITH_NO = ("rotate", "small_faces", "small-faces")
"""Settings that are on unless they are turned off."""
