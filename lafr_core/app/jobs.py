"""What the command line works on: inputs named by a person -> one output name each, none of them taken twice."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import InputError
from ..images.photos import SUFFIXES


@dataclass(frozen=True)
class Job:
    """One input and where its result goes."""

    source: Path
    output: Path
    problem: str | None = None
    """Why the input cannot even be tried: missing, or a folder that cannot be read."""


def plan(inputs: Sequence[str], out: Path, *, recursive: bool = False) -> list[Job]:
    """Files, folders and globs -> jobs writing ``out/<relative path>.png``, in the order given, folders sorted by name.

    A file keeps its name, a file of a folder its path below that folder, a file of a glob its path below the glob's fixed part.
    Inputs whose names differ in the suffix only (``a.jpg``, ``a.png``) keep it (``a.jpg.png``, ``a.png.png``); what still
    collides is numbered. Of folders only image suffixes are taken, no hidden files, and nothing inside ``out``. Raises
    InputError when an output would overwrite an input, or when there is nothing to do.
    """
    found: list[tuple[Path, PurePath, str | None]] = []
    seen: set[Path] = set()
    for text in inputs:
        for source, relative, problem in _expand(text, out, recursive):
            if source.resolve() not in seen:
                seen.add(source.resolve())
                found.append((source, relative, problem))
    if not found:
        deeper = "" if recursive else "; add -r to search subfolders"
        raise InputError(f"no image files in {', '.join(map(repr, inputs))}{deeper}")
    names = _unique([relative for _, relative, _ in found])
    jobs = [Job(source, out / name, problem) for (source, _, problem), name in zip(found, names, strict=True)]
    for job in jobs:
        if job.output.resolve() in seen:
            raise InputError(f"{job.output}: the result would overwrite this input; choose another output folder with -o")
    return jobs


def _expand(text: str, out: Path, recursive: bool) -> Iterator[tuple[Path, PurePath, str | None]]:
    """(source, name below the output folder, problem) of one argument."""
    path = Path(text)
    if path.is_dir():
        yield from ((source, source.relative_to(path), problem) for source, problem in _walk(path, out.resolve(), recursive))
    elif path.exists() or not glob.has_magic(text):
        yield path, PurePath(path.name), None if path.is_file() else "expected an image file or folder, found nothing there"
    else:
        base = _fixed_part(path)
        for match in sorted(map(Path, glob.glob(text, recursive=True))):
            if match.is_file() and match.suffix.lower() in SUFFIXES:
                yield match, match.relative_to(base), None


def _walk(folder: Path, out: Path, recursive: bool) -> Iterator[tuple[Path, str | None]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"the folder cannot be read ({error.strerror})"
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if recursive and path.resolve() != out:
                yield from _walk(path, out, recursive)
        elif path.suffix.lower() in SUFFIXES:
            yield path, None


def _fixed_part(pattern: Path) -> Path:
    """The folders before the first part with a wildcard."""
    fixed: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _unique(relatives: Sequence[PurePath]) -> list[PurePath]:
    """One ``.png`` name each; compared without case, because some file systems do."""
    short = [relative.with_suffix(".png") for relative in relatives]
    uses = Counter(str(name).lower() for name in short)
    names: list[PurePath] = []
    taken: set[str] = {text for text, count in uses.items() if count == 1}
    for relative, name in zip(relatives, short, strict=True):
        if uses[str(name).lower()] > 1:
            name = relative.with_name(relative.name + ".png")
            number = 2
            while str(name).lower() in taken:
                name = relative.with_name(f"{relative.name}-{number}.png")
                number += 1
            taken.add(str(name).lower())
        names.append(name)
    return names
