"""The one line LAFR leaves in a picture's parameters, and its parser.

``version=0.1.0; status=ok; found=2; change=0.71 0.64; engine=starter; fidelity=0.3``: settings appear only where they differ
from their defaults (the engine always), ``restored`` only where it is not ``found``. Values are percent-encoded wherever they
hold a character that the webui's own infotext grammar uses (comma, colon, quote, line break) or ours does (``;``, ``=``), so
the host never quotes or splits it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from lafr_core import __version__
from lafr_core.errors import InputError
from lafr_core.types import Face

from .settings import Request, options

KEY = "LAFR"
"""The name the line has among a picture's parameters."""
STATUSES = ("ok", "no face", "none selected", "stopped", "failed")
Scores = tuple[float | None, ...]
"""One number a restored face, two decimals; None where it is not known, () where none is."""
SCORES = ("change", "likeness", "trust")
_PLAIN = " !#$&'()*+-./?@[]^_{|}~"


@dataclass(frozen=True)
class Report:
    """What one restoration did, as far as the line tells."""

    status: str
    request: Request
    found: int = 0
    """Faces in the picture."""
    restored: int = 0
    """Faces that the settings chose and that were restored."""
    change: Scores = ()
    """Cosines between input and restored faces."""
    likeness: Scores = ()
    """Cosines between restored faces and the reference."""
    trust: Scores = ()
    """Estimated cosines between restored faces and the real persons."""
    note: str = ""
    """One sentence for people: why it failed, or what was done instead of what was asked."""
    version: str = __version__


def report(status: str, request: Request, faces: Sequence[Face] = (), note: str = "", found: int | None = None) -> Report:
    """The report of a restoration of ``faces``, out of ``found`` (None = all of them)."""
    change, likeness, trust = (_scores([getattr(face, name) for face in faces]) for name in SCORES)
    return Report(status, request, len(faces) if found is None else found, len(faces), change, likeness, trust, note)


def line(report: Report) -> str:
    """The report as one line without commas, colons, double quotes or line breaks. Inverse of :func:`parse`."""
    parts: dict[str, Any] = {"version": report.version, "status": report.status, "found": report.found}
    if report.restored != report.found:
        parts["restored"] = report.restored
    for name in SCORES:
        if scores := getattr(report, name):
            parts[name] = " ".join("-" if value is None else f"{value:.2f}" for value in scores)
    if report.note:
        parts["note"] = report.note
    parts["engine"] = report.request.engine.engine
    parts |= report.request.changed()
    return "; ".join(f"{name}={quote(_text(value), safe=_PLAIN)}" for name, value in parts.items())


def parse(text: str) -> Report:
    """The report behind a line. Raises InputError when it is not one of ours, SettingsError for a setting out of bounds."""
    parts = dict(part.split("=", 1) for part in text.strip().split("; ") if "=" in part)
    if not {"version", "status", "found", "engine"} <= set(parts) or parts["status"] not in STATUSES:
        raise InputError(f"infotext: expected a LAFR line with version, status, found and engine, got {text!r}")
    values = {name: unquote(value) for name, value in parts.items()}
    version, status, found = values.pop("version"), values.pop("status"), int(values.pop("found"))
    restored = int(values.pop("restored", found))
    values.setdefault("change", values.pop("alike", ""))  # its name before 26 November 2026
    change, likeness, trust = (_read_scores(values.pop(name, "")) for name in SCORES)
    note = values.pop("note", "")
    return Report(status, Request.from_mapping(_typed(values)), found, restored, change, likeness, trust, note, version)


def _scores(values: Sequence[float | None]) -> Scores:
    scores = tuple(None if value is None else round(value, 2) for value in values)
    return scores if any(value is not None for value in scores) else ()


def _read_scores(text: str) -> Scores:
    return tuple(None if part == "-" else float(part) for part in text.split())


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _typed(values: Mapping[str, str]) -> dict[str, Any]:
    known = options()
    typed: dict[str, Any] = {}
    for name, text in values.items():
        kind = type(known[name][1]) if name in known else str
        typed[name] = text == "True" if kind is bool else kind(text)
    return typed
