"""The report as a page for people: before and after of every photo, its faces with what is known of them, warnings first.

One file that opens from disk without a network. Pictures lie in it as inert text and are unpacked when they come near the
screen, so that hundreds of photos stay usable.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from ..errors import InputError, LafrError
from ..faces.trust import verdict
from ..images import photos
from ..images.photos import Photo
from ..store.outputs import Outputs
from .page import SCRIPT, STYLE
from .terminal import plain

SIDE = 960
"""Longer side of the pictures on the page, in pixels."""
FACE = 192
"""Side of the face crops on the page."""
MARK = "<!-- lafr gallery 1 -->"
_NAME = re.compile(r'^<article [^>]*data-name="([^"]*)"')
"""A photo's card and its input, in small letters."""
_QUALITY = 78
_AROUND = 0.35
"""How much of the surroundings a face crop shows, as a share of the box on each side."""
STATUS = {
    "restored": "restored", "no_face": "no face", "failed": "failed", "unopened": "not opened", "detected": "detected",
}  # fmt: skip


def write(
    path: Path,
    header: Mapping[str, Any],
    entries: Iterable[Mapping[str, Any]],
    outputs: Outputs,
    read: Callable[[Path], Photo] = photos.read,
) -> None:
    """The page for the entries of a report, one photo in memory at a time. Raises InputError when it cannot be written."""
    listed = sorted(entries, key=lambda entry: (-urgency(entry), entry["input"]))
    try:
        with outputs.writing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            _page(file, header, listed, read)
    except OSError as error:
        raise InputError(f"{path}: the gallery cannot be written ({error.strerror or error})") from error


def is_gallery_of(path: Path, inputs: Collection[str]) -> bool:
    """Whether the file is a page of ours that shows one of the ``inputs`` (absolute paths), or nothing.

    Such a one a resumed run writes anew; another album's is left alone.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            if not file.read(200).startswith(f"<!doctype html>\n{MARK}"):
                return False
            shown = [html.unescape(found[1]) for line in file if (found := _NAME.search(line))]
    except OSError:
        return False
    wanted = {plain(name).lower() for name in inputs}
    return not shown or any(os.path.abspath(name).lower() in wanted for name in shown)


def urgency(entry: Mapping[str, Any]) -> float:
    """How much a person should look at it: failures, then warnings, then the faces that can be trusted least."""
    if entry["status"] in ("failed", "unopened"):
        return 3.0
    faces = _faces_of(entry)
    values = [face["trust"] if face.get("trust") is not None else face.get("change") for face in faces]
    doubts = [1 - value for value in values if value is not None]
    return (2.0 if entry["warnings"] else 0.0) + max(doubts, default=0.0) / 2


def _faces_of(entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The faces of a photo, the tracks of a clip."""
    found: Sequence[Mapping[str, Any]] = entry["tracks"] if "tracks" in entry else entry["faces"]
    return found


def _page(file: TextIO, header: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], read: Callable[[Path], Photo]) -> None:
    counts = {status: sum(entry["status"] == status for entry in entries) for status in STATUS}
    warned = sum(bool(entry["warnings"]) for entry in entries)
    words = [f"{count} {STATUS[status]}" for status, count in counts.items() if count]
    words += [f"{warned} with a warning"] if warned else []
    filters = [("all", "All", len(entries)), ("warned", "Warnings", warned)]
    filters += [(status, STATUS[status].capitalize(), count) for status, count in counts.items() if count]
    buttons = "".join(
        f'<button type="button" data-filter="{name}" aria-pressed="{str(name == "all").lower()}">{label} '
        f"<b>{count}</b></button>"
        for name, label, count in filters
    )
    settings = html.escape(json.dumps(header.get("settings", {})))
    file.write(
        f'<!doctype html>\n{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>Restored photos</title><style>{STYLE}</style></head><body>"
        f'<header><h1>Restored photos</h1><p class="sum">{html.escape(", ".join(words) or "no photos")}</p>'
        f'<div class="bar"><div role="group" aria-label="Show">{buttons}</div>'
        '<label>Sort <select id="sort"><option value="urgency">most doubtful first</option>'
        '<option value="name">by name</option><option value="trust">least trust first</option>'
        '<option value="change">most changed first</option></select></label>'
        '<label>Find <input id="find" type="search" placeholder="name"></label></div></header>'
        '<p class="note">A restored face is a guess: <i>trust</i> estimates how like the real person it is, <i>change</i> '
        "compares it with the photo, <i>likeness</i> with a reference photo. Drag the line across a picture, or use the arrow "
        "keys; <kbd>N</kbd> and <kbd>P</kbd> go to the next and previous photo, <kbd>B</kbd> shows it as it was.</p>"
        '<main id="photos">\n'
    )
    for number, entry in enumerate(entries):
        _card(file, number, entry, read)
    file.write(
        f'</main><p id="none" hidden>Nothing here.</p><footer>LAFR {html.escape(str(header.get("lafr", "")))} · '
        f"{html.escape(str(header.get('device', '')))}<details><summary>Settings</summary>"
        f"<code>{settings}</code></details></footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _text(text: str) -> str:
    """What a person reads in the page, as in the terminal: names of any bytes are escapes, and never markup."""
    return html.escape(plain(text))


def _card(file: TextIO, number: int, entry: Mapping[str, Any], read: Callable[[Path], Photo]) -> None:
    name = Path(entry["input"]).name
    faces = _faces_of(entry)
    trusts = [face["trust"] for face in faces if face.get("trust") is not None]
    changes = [face["change"] for face in faces if face.get("change") is not None]
    status = STATUS.get(entry["status"], entry["status"])
    where = entry["input"] + (f" → {entry['output']}" if entry.get("output") else "")
    file.write(
        f'<article id="photo{number}" tabindex="-1" data-name="{_text(entry["input"].lower())}" '
        f'data-status="{html.escape(entry["status"])}" data-warned="{int(bool(entry["warnings"]))}" '
        f'data-urgency="{urgency(entry):.4f}" data-trust="{min(trusts, default=2):.4f}" '
        f'data-change="{min(changes, default=2):.4f}">'
        f'<h2>{_text(name)} <span class="status {html.escape(entry["status"])}">{html.escape(status)}</span></h2>'
        f'<p class="where">{_text(where)}</p>'
    )
    notes = [entry["reason"]] if entry.get("reason") else []
    for note in [*notes, *entry["warnings"]]:
        file.write(f'<p class="warning">{_text(note)}</p>')
    shown = _loops(entry) if "tracks" in entry else _stills(entry, read)
    if shown is not None:
        width, height = shown.size
        label = _text(f"{name}: how much of the photo is shown as it was")
        file.write(
            f'<div class="compare" style="--ratio:{width}/{height};--width:{width}px">'
            f'<img class="after" alt="{_text(name)} restored" data-src="after"><img class="before" '
            f'alt="{_text(name)} before" data-src="before"><span class="line"></span>'
            f'<span class="tag left">before</span><span class="tag right">after</span>'
            f'<input type="range" min="0" max="100" value="50" aria-label="{label}"></div>'
        )
        if faces:
            file.write('<ul class="faces">')
            for index, face in enumerate(faces):
                file.write(f"<li>{_face(index, face)}</li>")
            file.write("</ul>")
        pictures = {"before": shown.before, "after": shown.after, "faces": shown.faces}
        text = json.dumps(pictures).replace("</", "<\\/")
        file.write(f'<script type="application/json">{text}</script>')
    file.write("</article>\n")


@dataclass(frozen=True)
class _Shown:
    """What a card shows, as addresses of pictures."""

    size: tuple[int, int]
    """(w, h)."""
    before: str
    after: str
    faces: Sequence[Sequence[str]]
    """(before, after) of each face."""


def _stills(entry: Mapping[str, Any], read: Callable[[Path], Photo]) -> _Shown | None:
    before, after = _pictures(entry, read)
    if before is None or after is None:
        return None
    faces = [[_uri(crop) for crop in _crops(before, after, face)] for face in entry["faces"]]
    return _Shown(before.size, _uri(_fitted(before)), _uri(_fitted(after)), faces)


def _loops(entry: Mapping[str, Any]) -> _Shown | None:
    from .loops import loops

    found = loops(entry)
    if found is None:
        return None
    rest = [("", "")] * (len(entry["tracks"]) - len(found.faces))
    return _Shown(found.size, found.before, found.after, [*found.faces, *rest])


def _face(index: int, face: Mapping[str, Any]) -> str:
    """One face in words and numbers, with room for its two crops."""
    trust = face.get("trust")
    said = "" if trust is None else verdict(trust)
    kind = {"supported": "good", "partly guessed": "fair", "a guess": "poor"}.get(said, "")
    numbers = "".join(
        f"<dt>{name}</dt><dd>{face[name]:.2f}</dd>" for name in ("trust", "change", "likeness") if face.get(name) is not None
    )
    person = f'<p class="person">{_text(face["person"])}</p>' if face.get("person") else ""
    badge = f'<p class="verdict {kind}">{said}</p>' if said else ""
    return (
        f'<img alt="face {index} before" data-face="{index}" data-side="0"><img alt="face {index} restored" '
        f'data-face="{index}" data-side="1"><div><p class="number">face {index}</p>{person}{badge}<dl>{numbers}</dl></div>'
    )


def _pictures(entry: Mapping[str, Any], read: Callable[[Path], Photo]) -> tuple[Image.Image | None, Image.Image | None]:
    """The photo before and after, upright, as RGB; None for one that cannot be read any more."""
    if not entry.get("output"):
        return None, None
    found: list[Image.Image | None] = []
    for path in (entry["input"], entry["output"]):
        try:
            found.append(photos.to_pil(read(Path(path))).convert("RGB"))
        except (LafrError, OSError, ValueError):
            found.append(None)
    return found[0], found[1]


def _crops(before: Image.Image, after: Image.Image, face: Mapping[str, Any]) -> list[Image.Image]:
    """The square around a face, before and after. A result of another size shows the same part of it."""
    x0, y0, x1, y1 = (float(value or 0.0) for value in face["box"])
    half = max(8.0, max(x1 - x0, y1 - y0) * (0.5 + _AROUND))
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    crops = []
    for image in (before, after):
        k = image.width / before.width
        corners = ((x - half) * k, (y - half) * k, (x + half) * k, (y + half) * k)
        left, top, right, bottom = (math.floor(value) for value in corners)
        crops.append(image.crop((left, top, right, bottom)).resize((FACE, FACE), Image.Resampling.LANCZOS))
    return crops


def _fitted(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return small


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
