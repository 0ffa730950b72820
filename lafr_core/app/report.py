"""What happened to each input, as JSON: valid at every moment, resumable, and merged from several processes."""

from __future__ import annotations

import glob
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..store.atomic import atomic
from ..types import Face

DONE = ("restored", "detected", "no_face")
FAILED = "failed"
_SAVE_EVERY = 5.0  # seconds: a report of 100,000 photos must not be rewritten for each of them


@dataclass(frozen=True)
class Record:
    """One input: what became of it."""

    input: str
    status: str
    """``restored``, ``detected``, ``no_face`` or ``failed``."""
    output: str | None = None
    reason: str | None = None
    """Why it failed, or None."""
    faces: tuple[Face, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "input": self.input,
            "status": self.status,
            "output": self.output,
            "reason": self.reason,
            "faces": [face_entry(face) for face in self.faces],
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }


def face_entry(face: Face) -> dict[str, Any]:
    """A face for the report: box and landmarks in pixels, rounded to hundredths."""
    return {
        "box": [_number(v, 2) for v in face.box],
        "score": _number(face.score, 4),
        "landmarks": [[_number(x, 2), _number(y, 2)] for x, y in face.landmarks],
        **{name: _optional(getattr(face, name), 4) for name in ("change", "likeness", "trust")},
    }


def _optional(value: float | None, digits: int) -> float | None:
    return None if value is None else _number(value, digits)


def _number(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None  # JSON has no NaN


@dataclass
class Report:
    """The records of one run, by input. ``path`` None keeps them in memory only."""

    header: Mapping[str, Any]
    path: Path | None = None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _saved: float = field(default=-math.inf, repr=False)

    def add(self, record: Record) -> None:
        """Note one input; the file is rewritten at most every few seconds."""
        self.entries[record.input] = record.as_dict()
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self, finished: bool = False) -> None:
        """Write the file, whole or not at all."""
        if self.path is not None:
            write(self.path, self.header, self.entries.values(), finished)
            self._saved = time.monotonic()

    def count(self, *statuses: str) -> int:
        return sum(entry["status"] in statuses for entry in self.entries.values())


def write(path: Path, header: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], finished: bool) -> None:
    """The report file: the header's fields, ``finished``, and ``inputs`` sorted by name."""
    inputs = sorted(entries, key=lambda entry: entry["input"])
    text = json.dumps({**header, "finished": finished, "inputs": inputs}, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A report file as written by :func:`write`. Raises InputError when it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry["input"], str) and isinstance(entry["status"], str) for entry in data["inputs"]):
            raise KeyError("input")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a LAFR report ({type(error).__name__}: {error}); name another --report file") from error
    return dict(data)


def part(path: Path, process: int) -> Path:
    """Where one of several processes keeps its share of the report."""
    return path.with_name(f"{path.name}.process{process:04d}")


def earlier(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of an earlier run, by input: of the report and of parts that an interrupted run left; later files win."""
    files = [path, *sorted(path.parent.glob(glob.escape(path.name) + ".process*"))]
    return {entry["input"]: entry for file in files if file.is_file() for entry in read(file)["inputs"]}


def merge(path: Path, header: Mapping[str, Any], processes: int) -> dict[str, dict[str, Any]]:
    """Join the parts of all processes into ``path``, delete them, and return the entries by input."""
    parts = [part(path, process) for process in range(processes)]
    entries = {entry["input"]: entry for file in parts if file.is_file() for entry in read(file)["inputs"]}
    write(path, header, entries.values(), finished=True)
    for file in path.parent.glob(glob.escape(path.name) + ".process*"):
        file.unlink(missing_ok=True)
    return entries
