"""Two texts for one picture: people read a sentence under it, its file keeps the line that :func:`infotext.parse` reads.

The webuis have one text for both. So the sentence goes where the webui shows it, and just before a picture is written the
webui's own callback lets us put the line in its place.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

from .infotext import KEY, Report, line
from .words import sentence

KEPT = 256
"""Sentences remembered: a picture is written right after it was made, a few more are on their way at most."""

_lines: OrderedDict[str, str] = OrderedDict()
_lock = threading.Lock()


def shown(report: Report) -> str:
    """The sentence for ``report``; its line is remembered for the file."""
    text = sentence(report)
    with _lock:
        _lines[text] = line(report)
        _lines.move_to_end(text)
        while len(_lines) > KEPT:
            _lines.popitem(last=False)
    return text


def before_saved(params: Any) -> None:
    """The webui's before-image-saved callback: in every text that is about to be written, our sentence becomes our line."""
    for name, text in list(params.pnginfo.items()):
        if isinstance(text, str) and f"{KEY}: " in text:
            params.pnginfo[name] = encoded(text)


def encoded(text: str) -> str:
    """A webui's parameters with the line where the sentence stood; other texts stay as they are."""
    with _lock:
        known = list(_lines.items())
    for words, written in sorted(known, key=lambda pair: -len(pair[0])):
        for form in (json.dumps(words, ensure_ascii=False), words):  # the webui quotes what holds a comma, colon or line break
            text = text.replace(f"{KEY}: {form}", f"{KEY}: {written}")
    return text
