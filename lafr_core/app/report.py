"""What happened to each input, as JSON: valid at every moment, resumable, and merged from several processes."""

from __future__ import annotations

import glob
import json
import math
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..faces.trust import verdict
from ..store.outputs import Outputs
from ..types import Face

DONE = ("restored", "detected", "no_face")
FAILED = "failed"
UNOPENED = "unopened"
"""A picture of a folder in a format that is not opened: listed with what would read it, and no failure."""
LEVELS = 20
"""Levels of lists and names in each other; entries have five."""
_SAVE_EVERY = 5.0  # seconds: a report of 100,000 photos must not be rewritten for each of them


@dataclass(frozen=True)
class Record:
    """One input: what became of it."""

    input: str
    status: str
    """``restored``, ``detected``, ``no_face``, ``failed`` or ``unopened``."""
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
        "verdict": None if face.trust is None else verdict(face.trust),
        "person": face.person,
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
    outputs: Outputs = field(default_factory=Outputs)
    """Says whether the file may be written, and writes it."""
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _saved: float = field(default=-math.inf, repr=False)

    def add(self, record: Record) -> bool:
        """Note one input; the file is rewritten at most every few seconds. False = tried, and it could not be written."""
        self.entries[record.input] = record.as_dict()
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._saved = time.monotonic()
            try:
                self.save()
            except InputError:
                return False
        return True

    def save(self, finished: bool = False) -> None:
        """Write the file, whole or not at all."""
        if self.path is not None:
            write(self.path, self.header, self.entries.values(), finished, self.outputs)
            self._saved = time.monotonic()

    def count(self, *statuses: str) -> int:
        return sum(entry["status"] in statuses for entry in self.entries.values())


def write(
    path: Path, header: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], finished: bool, outputs: Outputs
) -> None:
    """The report file: the header's fields, ``finished``, and ``inputs`` sorted by name. Raises InputError if it cannot."""
    inputs = sorted(entries, key=lambda entry: entry["input"])
    text = json.dumps({**header, "finished": finished, "inputs": inputs}, indent=1, allow_nan=False)
    try:
        with outputs.writing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: the report cannot be written ({error.strerror or error})") from error


def read(path: Path) -> dict[str, Any]:
    """A report file as written by :func:`write`. Raises InputError when it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not all(map(is_entry, data["inputs"])):
            raise KeyError("inputs")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a LAFR report ({type(error).__name__}: {error}); name another --report file") from error
    return dict(data)


def is_entry(value: Any) -> bool:
    """Whether a value of a JSON file has the shape of an input's entry, a photo's or a clip's: people edit such files."""
    if not isinstance(value, dict):
        return False
    faces = value.get("tracks", value.get("faces"))
    texts = [value.get(name, "") for name in ("output", "reason")]
    warnings = value.get("warnings")
    return (
        all(isinstance(value.get(name), str) for name in ("input", "status"))
        and all(text is None or isinstance(text, str) for text in texts)
        and isinstance(warnings, list)
        and all(isinstance(warning, str) for warning in warnings)
        and isinstance(faces, list)
        and all(_is_face(face) and ("tracks" not in value or _is_track(face)) for face in faces)
        and is_shallow(value)
    )


def is_shallow(value: Any, levels: int = LEVELS) -> bool:
    """Whether a value of a JSON file is nested no deeper than ``levels``: what can be read cannot always be written again."""
    if not isinstance(value, (dict, list)):
        return True
    return levels > 0 and all(is_shallow(inner, levels - 1) for inner in (value.values() if isinstance(value, dict) else value))


def _is_face(face: Any) -> bool:
    if not isinstance(face, dict) or not isinstance(face.get("box"), list) or len(face["box"]) != 4:
        return False
    numbers = [*face["box"], *(face.get(name) for name in ("change", "likeness", "trust"))]
    return all(map(_is_number_or_none, numbers)) and isinstance(face.get("person"), (str, type(None)))


def _is_track(face: dict[str, Any]) -> bool:
    return type(face.get("start")) is int and face["start"] >= 0 and _is_number_or_none(face.get("first", ""))


def _is_number_or_none(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < 1e15)


def part(path: Path, process: int) -> Path:
    """Where one of several processes keeps its share of the report."""
    return path.with_name(f"{path.name}.process{process:04d}")


def parts(path: Path) -> list[Path]:
    """The shares of the report that several processes have written, or an interrupted run has left; no other files."""
    named = path.parent.glob(glob.escape(path.name) + ".process[0-9][0-9][0-9][0-9]")
    return sorted(file for file in named if _reads(file))


def is_report_of(path: Path, inputs: Collection[str]) -> bool:
    """Whether the file is a report of ours that tells of one of the ``inputs`` (:func:`absolutes`), or of nothing yet.

    Such a one a resumed run writes anew; another album's is left alone.
    """
    try:
        data = read(path)
    except InputError:
        return False
    told = absolutes(entry["input"] for entry in data["inputs"])
    return "lafr" in data and (not told or not told.isdisjoint(inputs))


def absolutes(paths: Iterable[str | Path]) -> frozenset[str]:
    """Paths as they stand in reports, made absolute: two runs may have named one file differently."""
    return frozenset(os.path.abspath(path) for path in paths)


def _reads(path: Path) -> bool:
    try:
        read(path)
    except InputError:
        return False
    return True


def merge(path: Path, header: Mapping[str, Any], processes: int, outputs: Outputs) -> dict[str, dict[str, Any]]:
    """Join the parts of all processes into ``path``, delete them, and return the entries by input."""
    shares = [part(path, process) for process in range(processes)]
    entries = {entry["input"]: entry for file in shares if file.is_file() for entry in read(file)["inputs"]}
    write(path, header, entries.values(), finished=True, outputs=outputs)
    for file in parts(path):
        file.unlink(missing_ok=True)
    return entries
