"""What the command line works on: inputs named by a person -> one output name each, none of them taken twice."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import InputError
from ..images.formats import SUFFIXES, UNOPENED, regular_file


@dataclass(frozen=True)
class Job:
    """One input and where its result goes."""

    source: Path
    output: Path
    problem: str | None = None
    """Why the input cannot even be tried: missing, no regular file, a folder that cannot be read."""
    unopened: str | None = None
    """What would read this picture of a folder, which is of a format that is not opened; listed, and no failure."""


@dataclass(frozen=True)
class Found:
    """One input, and the name below the output folder that follows from where it was found."""

    source: Path
    relative: PurePath
    problem: str | None = None
    unopened: str | None = None


def plan(
    inputs: Sequence[str],
    out: Path,
    *,
    recursive: bool = False,
    suffix: Callable[[Path], str] = lambda source: ".png",
    earlier: Callable[[Path], Path | None] = lambda source: None,
    is_result: Callable[[Path], bool] = lambda path: False,
    may_be_none: bool = False,
    reserved: Iterable[PurePath] = (),
) -> list[Job]:
    """Files, folders and globs -> jobs writing ``out/<relative path><suffix>``, in the order given, folders sorted by name.

    A file keeps its name, a file of a folder its path below that folder, a file of a glob its path below the glob's fixed
    part; of several folders each keeps its own name (``out/album/...``). Inputs whose names differ in the suffix only
    (``a.jpg``, ``a.png``) keep it (``a.jpg.png``, ``a.png.png``); what still collides is numbered. ``earlier`` tells the result
    that a source had before, and goes first. ``reserved`` are names below ``out`` that clips of the
    same run get. Of folders and globs only image suffixes are taken, no hidden files, nothing inside ``out`` when it lies in a
    folder, and none of ``is_result``. Raises InputError when an output is an input, or,
    unless ``may_be_none``, when there is nothing to do.
    """
    found: list[Found] = []
    seen: set[str] = set()
    prefixes = albums(inputs)
    for text in inputs:
        for one in _expand(text, out, recursive, prefixes.get(text, PurePath()), is_result):
            key = os.path.realpath(one.source)
            if key not in seen:
                seen.add(key)
                found.append(one)
    if not found and not may_be_none:
        deeper = "" if recursive else "; add -r to search subfolders"
        raise InputError(f"no image files in {', '.join(map(repr, inputs))}{deeper}")
    names = _names(found, out, suffix, earlier, {folded(name) for name in reserved})
    jobs = [Job(one.source, out / name, one.problem, one.unopened) for one, name in zip(found, names, strict=True)]
    for job in jobs:
        if job.problem is None and job.unopened is None and os.path.realpath(job.output) in seen:
            raise InputError(f"{job.output}: the result would overwrite this input; choose another output folder with -o")
    return jobs


def albums(inputs: Sequence[str]) -> dict[str, PurePath]:
    """The name that each of several folders keeps in the output folder; none for a folder that stands alone."""
    folders = list(dict.fromkeys(text for text in inputs if os.path.isdir(text)))
    if len(folders) < 2:
        return {}
    names: dict[str, PurePath] = {}
    taken: set[str] = set()
    for text in folders:
        base = name = os.path.basename(os.path.realpath(text)) or "album"
        number = 2
        while folded(name) in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(folded(name))
        names[text] = PurePath(name)
    return names


def _expand(text: str, out: Path, recursive: bool, album: PurePath, is_result: Callable[[Path], bool]) -> Iterator[Found]:
    """What one argument names."""
    path = Path(text)
    if os.path.isdir(path):
        for one in _walk(path, os.path.realpath(out), recursive):
            if not is_result(one.source):
                yield Found(one.source, album / one.source.relative_to(path), one.problem, one.unopened)
    elif os.path.lexists(path) or not glob.has_magic(text):
        problem = regular_file(path) if os.path.lexists(path) else "expected an image file or folder, found nothing there"
        yield Found(path, PurePath(path.name), problem)
    else:
        base = fixed_part(path)
        for match in sorted(map(Path, glob.glob(text, recursive=True))):
            picture = _entry(match)
            if picture is not None and not os.path.isdir(match) and not is_result(match):
                yield Found(match, match.relative_to(base), picture.problem, picture.unopened)


def _walk(folder: Path, out: str, recursive: bool) -> Iterator[Found]:
    """The pictures of a folder, and of those inside it where ``recursive``, sorted by name; no depth is too deep."""
    open_folders = [_entries(folder)]
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif isinstance(entry, Found):
            yield entry
        elif entry.is_dir(follow_symlinks=False):
            if recursive and os.path.realpath(entry.path) != out:
                open_folders.append(_entries(Path(entry.path)))
        elif not os.path.isdir(entry.path) and (one := _entry(Path(entry.path))) is not None:
            yield one


def _entries(folder: Path) -> Iterator[os.DirEntry[str] | Found]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(folder, PurePath(), f"the folder cannot be read ({error.strerror})")
        return
    yield from (entry for entry in listed if not entry.name.startswith("."))


def _entry(path: Path) -> Found | None:
    """A file of a folder or glob by its suffix; None for files that are no pictures."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return Found(path, PurePath(), problem=regular_file(path))
    return Found(path, PurePath(), unopened=UNOPENED[suffix]) if suffix in UNOPENED else None


def fixed_part(pattern: Path) -> Path:
    """The folders before the first part with a wildcard."""
    fixed: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _names(
    found: Sequence[Found],
    out: Path,
    suffix: Callable[[Path], str],
    earlier: Callable[[Path], Path | None],
    reserved: Collection[str],
) -> list[PurePath]:
    """One name each below ``out``; compared without case, because some file systems do."""
    ends = [suffix(one.source) for one in found]
    known = [_below(earlier(one.source), out, end) for one, end in zip(found, ends, strict=True)]
    taken = {folded(name) for name in known if name is not None} | set(reserved)
    short = [one.relative.with_name(one.relative.stem + end) if one.relative.name else one.relative
             for one, end in zip(found, ends, strict=True)]  # fmt: skip
    uses = Counter(folded(name) for name, before in zip(short, known, strict=True) if before is None)
    taken |= {text for text, count in uses.items() if count == 1}
    contested = {text for text, count in uses.items() if count > 1}
    contested |= {folded(name) for name in known if name is not None} | set(reserved)
    names: list[PurePath] = []
    for one, end, name, before in zip(found, ends, short, known, strict=True):
        if before is not None:
            names.append(before)
            continue
        if folded(name) in contested and one.relative.name:
            name = one.relative.with_name(one.relative.name + end)
            number = 2
            while folded(name) in taken:
                name = one.relative.with_name(f"{one.relative.name}-{number}{end}")
                number += 1
            taken.add(folded(name))
        names.append(name)
    return names


def _below(path: Path | None, out: Path, suffix: str) -> PurePath | None:
    """An earlier result's name below ``out``, where it still has the suffix that is wanted now."""
    if path is None or path.suffix != suffix:
        return None
    try:
        return path.relative_to(os.path.realpath(out))
    except ValueError:
        return None


def folded(name: PurePath | str) -> str:
    """One text for the spellings that some file systems take for one."""
    return unicodedata.normalize("NFC", str(name)).casefold()
