"""The journal beside the results: which result came from which source, with what settings and models. JSON lines.

A line is written, and on the disk, before the result gets its name: a run that is killed between the two leaves a line without
a result, never a result that nobody knows. A line cut short is passed over. Each of several processes has its own file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..store.atomic import atomic
from .report import is_entry, is_shallow

NAME = ".lafr-journal.jsonl"
_PATTERN = ".lafr-journal*.jsonl"
_HEAD = b'{"lafr_journal": 1}'
_NAMING = 50_000_000
"""Nanoseconds between the stamping of a result and the last change by which it got its name."""


@dataclass(frozen=True)
class Stamp:
    """What tells whether a file is still the same: quickly by size and time, surely by content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Stamp:
        before = os.stat(path)
        return cls(before.st_size, before.st_mtime_ns, before.st_ctime_ns, sha256(path))

    def holds(self, path: Path) -> bool:
        """Whether the file at ``path`` is the one that was stamped. Its content is read only where its times leave doubt."""
        try:
            now = os.stat(path)
            if not stat.S_ISREG(now.st_mode) or now.st_size != self.size:
                return False
            # A content can be changed and its time put back, but not the time of that change. Naming a result changes it, too.
            untouched = now.st_ctime_ns in range(self.ctime_ns, self.ctime_ns + _NAMING)
            return (untouched and now.st_mtime_ns == self.mtime_ns) or sha256(path) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class Entry:
    """One result."""

    command: str
    source: Path
    source_stamp: Stamp
    output: Path
    output_stamp: Stamp
    made_with: Mapping[str, Any]
    """Settings, models and whatever else decides what the result looks like."""
    record: Mapping[str, Any]
    """What the report says of it."""

    def is_result_of(self, source: Path, command: str, made_with: Mapping[str, Any]) -> bool:
        """Whether doing it again would give the same: the source, settings and models are as they were."""
        same = self.command == command and self.source == absolute(source)
        return same and digest(self.made_with) == digest(made_with) and self.source_stamp.holds(source)


@dataclass
class Journal:
    """What is known of the results in one folder."""

    folder: Path
    entries: dict[Path, list[Entry]] = field(default_factory=dict)
    """By the output's absolute path, oldest first: of a line whose result never got its name, the one before holds."""
    process: int = 0
    _runs: set[str] = field(default_factory=set)
    """Settings and models that this process has written down."""

    @classmethod
    def open(cls, folder: Path, process: int = 0) -> Journal:
        """The journal in ``folder``, empty where there is none yet. Raises InputError where something else has its name."""
        journal = cls(folder, process=process)
        lines: list[tuple[float, dict[str, Any]]] = []
        for path in sorted(folder.glob(_PATTERN)) if folder.is_dir() else []:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise InputError(f"{path}: expected LAFR's journal, got something that is no file; move it away")
            lines += _lines(path)
        settings = {line["run"]: line["made_with"] for _, line in lines if "made_with" in line}
        for _, line in sorted(lines, key=lambda pair: pair[0]):
            entry = _entry(line, folder, settings)
            if entry is not None:
                journal.entries.setdefault(entry.output, []).append(entry)
        return journal

    def outputs_by_source(self, command: str) -> dict[Path, Path]:
        """Source -> the result that ``command`` last made of it in this folder; both absolute."""
        latest = [entries[-1] for entries in self.entries.values()]
        return {entry.source: entry.output for entry in latest if entry.command == command}

    def of_output(self, path: Path) -> Entry | None:
        """What is known of the file at ``path``: a result of ours that nobody has changed since, or None."""
        known = self.entries.get(absolute(path), [])
        return next((entry for entry in reversed(known) if entry.output_stamp.holds(path)), None)

    def made(self, path: Path) -> bool:
        """Whether ``path`` is such a result."""
        return self.of_output(path) is not None

    def note(
        self, command: str, source: Path, output: Path, written: Path, made_with: Mapping[str, Any], record: Mapping[str, Any]
    ) -> None:
        """Write down that ``written`` is about to become ``output``, and see it on the disk."""
        entry = Entry(command, absolute(source), Stamp.of(source), absolute(output), Stamp.of(written), made_with, record)
        run = digest(made_with)
        line = {
            "at": time.time(),
            "run": run,
            "command": command,
            "source": str(entry.source),
            "source_stamp": vars(entry.source_stamp),
            "output": os.path.relpath(entry.output, absolute(self.folder)),
            "output_stamp": vars(entry.output_stamp),
            "record": dict(record),
        }
        path = self.folder / (NAME if self.process == 0 else f".lafr-journal.process{self.process:04d}.jsonl")
        first = run not in self._runs
        lines = ([{"at": time.time(), "run": run, "made_with": dict(made_with)}] if first else []) + [line]
        _append(path, lines)
        self._runs.add(run)
        self.entries.setdefault(entry.output, []).append(entry)


def absolute(path: Path) -> Path:
    """The path by which the journal knows a file: absolute, links in its folders followed, its own name kept."""
    return Path(os.path.realpath(path.parent)) / path.name


def is_journal(path: Path) -> bool:
    """Whether journals have names like that of ``path``."""
    return fnmatch.fnmatchcase(path.name, _PATTERN)


def sha256(path: Path) -> str:
    """The content of a file as hexadecimal sha256."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            made.update(block)
    return made.hexdigest()


def digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _lines(path: Path) -> list[tuple[float, dict[str, Any]]]:
    found = []
    try:
        with path.open("rb") as file:
            head = file.readline(1 << 16)
            if not _HEAD.startswith(head.rstrip(b"\n")):  # a head cut short by a crash passes
                raise InputError(f"{path}: expected LAFR's journal of format 1, got another file; move it away")
            for text in file:
                line = _parsed(text)
                if type(line.get("at")) in (int, float) and abs(line["at"]) < 1e15 and isinstance(line.get("run"), str):
                    found.append((float(line["at"]), line))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); make it readable or choose another -o"
        ) from error
    return found


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # cut short when the machine went down
        return {}
    return line if isinstance(line, dict) else {}


def _entry(line: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]) -> Entry | None:
    """A line as an entry, or None for lines of other kinds and damaged ones."""
    try:
        entry = Entry(
            command=line["command"],
            source=Path(line["source"]),
            source_stamp=_stamp(line["source_stamp"]),
            output=absolute(folder / _name(line["output"])),
            output_stamp=_stamp(line["output_stamp"]),
            made_with=settings[line["run"]],
            record=line["record"],
        )
    except (KeyError, TypeError, ValueError):
        return None
    known = isinstance(entry.command, str) and isinstance(entry.made_with, dict) and is_shallow(entry.made_with)
    return entry if known and is_entry(entry.record) else None


def _name(text: str) -> str:
    if "\0" in text:
        raise ValueError("no file has such a name")
    return text


def _stamp(values: Mapping[str, Any]) -> Stamp:
    stamp = Stamp(**values)
    if any(type(number) is not int for number in (stamp.size, stamp.mtime_ns, stamp.ctime_ns)):
        raise TypeError("expected whole numbers")
    return stamp


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    """The lines at the end of the journal, each whole, on the disk. A part of a line that a crash left is closed first."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode("utf-8", "surrogatepass")
    if path.is_file() and os.stat(path).st_nlink > 1:  # a backup made of hard links keeps the journal that it has
        with atomic(path) as copy:
            shutil.copy2(path, copy)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size == 0:
            text = _HEAD + b"\n" + text
        else:
            os.lseek(handle, size - 1, os.SEEK_SET)
            text = text if os.read(handle, 1) == b"\n" else b"\n" + text
        while text:
            text = text[os.write(handle, text) :]
        os.fsync(handle)
    finally:
        os.close(handle)


class Results:
    """What earlier runs made: this one's folder's, and what lies among the photos of the named ``folders`` beside a journal."""

    def __init__(self, journal: Journal, folders: Iterable[Path] = ()) -> None:
        self.journal, self.roots = journal, {Path(os.path.realpath(folder)) for folder in folders}
        self.known: dict[Path, Journal] = {}

    def made(self, path: Path) -> bool:
        """Whether a run made ``path``. The journal in a folder that a person names does not count: those results are meant."""
        if self.journal.made(path):
            return True
        parents = absolute(path).parents
        depth = next((number for number, folder in enumerate(parents) if folder in self.roots), 0)
        return any(self._in(folder).made(path) for folder in parents[:depth])

    def _in(self, folder: Path) -> Journal:
        if folder not in self.known:
            try:
                self.known[folder] = Journal.open(folder)
            except InputError:  # something else of its name, in a folder of photos
                self.known[folder] = Journal(folder)
        return self.known[folder]
