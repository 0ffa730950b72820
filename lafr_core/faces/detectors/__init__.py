"""Face detectors behind one protocol (:class:`lafr_core.types.Detector`), opened by the name in the settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from ...errors import CheckpointError, SettingsError
from ...settings import DETECTORS
from ...store import assets
from ...types import Detector
from .retinaface import VARIANTS, open_retinaface
from .scrfd import FILES, open_scrfd
from .starter import open_starter

BEST_FIRST = ("scrfd", "retinaface-resnet50", "starter", "retinaface-mobile0.25")
"""What ``auto`` tries. On degraded faces the starter is ahead of RetinaFace-mobile0.25 (benchmarks/detector.py)."""

_PACKAGES = {
    "scrfd": ("insightface", "onnxruntime"),
    "retinaface-resnet50": ("facexlib",),
    "retinaface-mobile0.25": ("facexlib",),
}


def open_detector(
    name: str, *, weights: Path | None = None, device: torch.device | str = "cpu", folders: Sequence[Path] = ()
) -> Detector:
    """The detector called ``name`` (one of settings.DETECTORS) on ``device``.

    ``auto`` opens the best one whose weights and package are at hand and downloads nothing. A detector asked for by name whose
    weights are not at hand is downloaded where that is allowed (:func:`lafr_core.store.assets.fetch`). ``weights`` names the
    file to use instead; with ``auto`` its kind decides the detector. ``folders`` are looked into before the usual ones.
    Raises SettingsError for an unknown name, CheckpointError for a missing or wrong file, MissingPackageError for a missing
    package, DownloadError when a download fails.
    """
    if name not in DETECTORS:
        raise SettingsError(f"detector: expected one of {', '.join(DETECTORS)}, got {name!r}")
    device = torch.device(device)
    if name == "auto":
        name = _kind_of(Path(weights)) if weights is not None else best_at_hand(folders)
    path = Path(weights) if weights is not None else find_weights(name, folders)
    if name == "starter":
        return open_starter(path or assets.bundled("detector"), device)
    if name == "scrfd":
        return open_scrfd(path or assets.fetch(assets.ASSETS[FILES[0]]))
    return open_retinaface(name, path or assets.fetch(VARIANTS[name].asset), device)


def find_weights(name: str, folders: Sequence[Path] = ()) -> Path | None:
    """The weight file of detector ``name`` on this machine, ``folders`` first, or None. Downloads nothing."""
    if name == "starter":
        path = assets.bundled("detector")
        return path if path.is_file() else None
    files = FILES if name == "scrfd" else VARIANTS[name].files
    return next((found for file in files if (found := assets.find(file, folders)) is not None), None)


def best_at_hand(folders: Sequence[Path] = ()) -> str:
    """The detector that ``auto`` means on this machine, ``folders`` looked into as well."""
    for name in BEST_FIRST:
        installed = all(importlib.util.find_spec(package) is not None for package in _PACKAGES.get(name, ()))
        if installed and find_weights(name, folders) is not None:
            return name
    return "starter"  # opening it says what is missing


def _kind_of(path: Path) -> str:
    """Which detector a weight file belongs to: ONNX is SCRFD, .pth the RetinaFace its sha256 is published for, else ours."""
    if path.suffix == ".onnx":
        return "scrfd"
    if path.suffix == ".pth" and path.is_file():
        for name, variant in VARIANTS.items():
            try:
                assets.check(path, variant.asset)
            except CheckpointError:
                continue
            return name
        published = ", ".join(variant.files[0] for variant in VARIANTS.values())
        raise CheckpointError(f"{path}: expected a published RetinaFace file ({published}), got another .pth; get it again")
    return "starter"
