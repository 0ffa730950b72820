"""What a result was made with, as data that can be compared: the same values make the same result."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..faces.detectors import best_at_hand, find_weights
from ..settings import RestoreSettings
from ..store import assets
from .journal import digest, sha256

LARGE = 256 << 20
"""Files of more bytes are told by size and time: reading gigabytes at each start takes longer than it is worth."""

MODELS = ("vae", "adapter", "prior", "checkpoint", "lora", "detector_weights", "embedder")
"""The arguments that name model files."""


def made_with(
    args: argparse.Namespace, settings: RestoreSettings, names: Iterable[str] | None = None, **more: Any
) -> dict[str, Any]:
    """Settings (``names`` of them, None = all), models and ``more``, which is JSON, as one record for the journal."""
    chosen = asdict(settings)
    return {
        "settings": {name: chosen[name] for name in names} if names is not None else chosen,
        "models": models(args, settings),
        **more,
    }


def models(args: argparse.Namespace, settings: RestoreSettings) -> dict[str, str]:
    """Each model by its content: the starter's as a whole, the named ones, and the detector that ``auto`` means here."""
    starter = sorted(assets.bundled("vae").parent.glob("*.safetensors"))
    found = {"starter": digest({path.name: content(path) for path in starter})}
    how = {name: getattr(args, name, None) for name in ("mode", "steps", "denoise")}
    if getattr(args, "checkpoint", None) is not None:
        found["finish"] = digest({name: str(value) for name, value in how.items()})
    named = {name: getattr(args, name, None) for name in MODELS}
    found |= {name: content(Path(path)) for name, path in named.items() if path is not None}
    if named["detector_weights"] is None:
        detector = best_at_hand() if settings.detector == "auto" else settings.detector
        weights = find_weights(detector)
        found["detector"] = f"{detector} {content(weights) if weights is not None else ''}".strip()
    return found


def content(path: Path) -> str:
    """A file, or all files of a folder, as one short text that changes when they do."""
    if path.is_dir():
        return digest({str(file.relative_to(path)): content(file) for file in sorted(path.rglob("*")) if file.is_file()})
    if not path.is_file():
        return "missing"
    stat = path.stat()
    return sha256(path)[:16] if stat.st_size <= LARGE else f"{stat.st_size} {stat.st_mtime_ns}"
