"""Which of our networks a node uses, found in the host's model folders or bundled with the pack."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ..lafr_core.errors import CheckpointError, DownloadError, LafrError, MissingPackageError
from ..lafr_core.faces import detectors, identity, parser
from ..lafr_core.latent import adapter, prior, vae
from ..lafr_core.settings import RestoreSettings
from .memory import Managed, opened

FOLDER = "lafr"
FACE_FOLDERS = (FOLDER, "facerestore_models", "facedetection", "facexlib", "insightface")
"""Where detectors and parsers are looked for: our folder, and those that other face packs register or make in models/."""
INSIDE = ("", "models/buffalo_l", "models/antelopev2")
"""Where in such a folder: insightface keeps its packs two levels down."""
DETECTOR_FILES = {
    **{name: variant.files for name, variant in detectors.VARIANTS.items()},
    "scrfd": detectors.FILES,
}
"""Detector name -> file names of its weights."""

log = logging.getLogger("lafr")


def stamp(path: Path | None) -> tuple[str, int]:
    """A file's name and date, to notice that it was replaced."""
    return ("starter", 0) if path is None else (str(path), path.stat().st_mtime_ns)


def model_file(name: str) -> Path:
    """The file called ``name`` in the lafr model folders. Raises CheckpointError listing the searched folders."""
    found = folder_paths.get_full_path(FOLDER, name)
    if found is None:
        searched = ", ".join(folder_paths.get_folder_paths(FOLDER))
        raise CheckpointError(f"{name}: expected this file in one of {searched}, found none; put it there and press R")
    return Path(found)


def open_detector(name: str) -> Managed:
    """The detector of that name; auto = the best whose weights are in the host's folders or where ``lafr_core`` looks."""
    for candidate in detectors.BEST_FIRST if name == "auto" else (name,):
        path = host_file(DETECTOR_FILES.get(candidate, ()))
        if path is not None:
            try:
                return opened(("detector", *stamp(path)), partial(_detector, candidate, path))
            except MissingPackageError:
                if name != "auto":
                    raise
        elif candidate == "starter":
            break  # nothing better lies in the host's folders
    return opened(("detector", name), partial(_detector, name, None))


def _detector(name: str, weights: Path | None, device: torch.device) -> Any:
    try:
        return detectors.open_detector(name, weights=weights, device=device)
    except (CheckpointError, DownloadError) as error:
        raise _with_folders(error, DETECTOR_FILES.get(name, ())) from error


def face_folders() -> list[Path]:
    """The host's folders for face models, registered or only there by name, in the order they are searched."""
    known = [folder_paths.get_folder_paths(name) for name in FACE_FOLDERS if name in folder_paths.folder_names_and_paths]
    plain = [str(Path(folder_paths.models_dir) / name) for name in FACE_FOLDERS]
    return [Path(folder) for folder in dict.fromkeys([*(folder for folders in known for folder in folders), *plain])]


def host_file(names: Iterable[str]) -> Path | None:
    """The first of these files in the host's folders for face models, or None."""
    places = (folder / inside / name for name in names for folder in face_folders() for inside in INSIDE)
    return next((path for path in places if path.is_file()), None)


def _with_folders(error: LafrError, files: Iterable[str]) -> LafrError:
    """The error, with the host's folders in which one of ``files`` would have been found."""
    folders = ", ".join(map(str, face_folders()))
    return type(error)(f"{error}; ComfyUI's own places for {' or '.join(files)}: {folders}")


def open_adapter(path: Path | None, latents: str = "sd") -> Managed:
    return opened(("adapter", latents, *stamp(path)), lambda device: adapter.open_adapter(path, device, latents=latents))


def open_prior() -> Managed:
    return opened(("prior", "starter"), lambda device: prior.open_prior(None, device))


def open_starter_vae() -> Managed:
    return opened(("vae", "starter"), lambda device: vae.open_vae(None, device))


def open_embedder() -> Managed | None:
    embedder = opened(("embedder", "starter"), lambda device: identity.open_embedder(None, device))
    if embedder is None:
        log.warning("LAFR: no face embedder at hand; identities are not compared")
    return embedder


def open_parser(settings: RestoreSettings) -> tuple[RestoreSettings, Any, str]:
    """The face parser for mask "parse", from the host's folders or facexlib's own; None for the other masks.

    Where there is none the settings come back with mask "oval", and the sentence says what is missing; else it is ''.
    """
    if settings.mask != "parse":
        return settings, None, ""
    path = host_file(parser.FILES)
    try:
        found = opened(("parser", *stamp(path)), lambda device: parser.open_parser(path, device))
    except MissingPackageError as error:
        return replace(settings, mask="oval"), None, f"mask oval instead of parse: {error}"
    if found is None:
        folders = ", ".join(map(str, face_folders()))
        missing = f"facexlib with {' or '.join(parser.FILES)} in one of {folders}"
        return replace(settings, mask="oval"), None, f"mask oval instead of parse: that needs {missing}"
    return settings, found, ""
