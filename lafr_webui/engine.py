"""A request -> the models that carry it out: the starter's, or the loaded checkpoint's with the starter's adapter between
them.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lafr_core.errors import CheckpointError, DownloadError, InputError, LafrError, MissingPackageError
from lafr_core.faces import detectors, parser, people
from lafr_core.faces.crop import crop_faces, place
from lafr_core.faces.detect import detect_faces
from lafr_core.faces.detectors import retinaface, scrfd
from lafr_core.images import photos
from lafr_core.models import open_models
from lafr_core.pipeline import NO_REFERENCES, References, ignore_progress
from lafr_core.settings import RestoreSettings
from lafr_core.store import assets
from lafr_core.types import Models, Parser, Person, Sampler

from . import host, loaded
from .sampling import FewSteps, OneStep
from .settings import EngineSettings, Request

DOWNLOAD = "lafr_download"
"""The webui's name of the setting that allows downloads of third-party face networks; off until somebody switches it on."""


@dataclass(frozen=True)
class Opened:
    """What carries out one request."""

    models: Models
    settings: RestoreSettings
    """The request's, but for what cannot be had here."""
    references: References = NO_REFERENCES
    """The person in the reference photo."""
    notes: tuple[str, ...] = ()
    """Sentences: what is done instead of what was asked."""


@dataclass
class Cache:
    """What is kept between pictures: one set of starter models and one reference photo's person, never more."""

    key: tuple[Any, ...] | None = None
    opened: Opened | None = None
    reference_key: tuple[Any, ...] | None = None
    reference: Person | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """Let everything go; the next restoration loads again."""
        self.key = self.opened = self.reference_key = self.reference = None


CACHE = Cache()


@contextlib.contextmanager
def opened(request: Request, reference: Image.Image | None = None, broken: str = "") -> Iterator[Opened]:
    """The models that carry out ``request``.

    What cannot be used here is no error: a checkpoint gives way to the starter, a detector to LAFR's own, mask "parse" to
    "oval", and a note says why. ``broken``: why the checkpoint is not even tried. Call it and use the models under
    :func:`lafr_webui.host.neutral`. ``reference`` helps unless its weight is 0. Raises LafrError when the starter's files are
    damaged, or when there is a reference photo and no embedder, or no face in it.
    """
    starter = starter_parts(request.restore)
    models = starter.models
    if reference is not None and request.engine.identity == 0:
        starter = replace(starter, notes=(*starter.notes, "reference photo not used (reference weight 0)"))
    elif reference is not None:
        person = reference_person(reference, models, request.restore)
        starter = replace(starter, references=References((person,), request.engine.identity))
    with contextlib.ExitStack() as stack:
        if request.engine.engine == "checkpoint":
            try:
                if broken:
                    raise CheckpointError(broken)
                checkpoint = stack.enter_context(loaded.checkpoint(request.engine.lora))
            except CheckpointError as error:
                starter = replace(starter, notes=(*starter.notes, f"starter engine used ({error})"))
            else:
                sampler = _sampler(checkpoint, request.engine)
                starter = replace(starter, models=replace(models, vae=checkpoint.vae, prior=None, sampler=sampler))
        yield starter


def starter_parts(settings: RestoreSettings) -> Opened:
    """The starter models on the webui's device, loaded once, with the detector and parser that the settings ask for."""
    folders, download = host.weight_folders(), bool(host.setting(DOWNLOAD, False))
    key = (settings.detector, settings.mask == "parse", host.device(), folders, download)
    with CACHE.lock:
        if CACHE.opened is None or CACHE.key != key:
            CACHE.clear()
            CACHE.opened, CACHE.key = _open(settings, key[2], folders, download), key
        return replace(CACHE.opened, settings=replace(settings, mask=_mask(settings, CACHE.opened.models)))


def _open(settings: RestoreSettings, device: torch.device, folders: tuple[Path, ...], download: bool) -> Opened:
    """The starter's networks with the detector and parser of ``settings``, or with what takes their place and a note."""
    detector, missing = _detector(settings.detector, folders, download)
    notes = [missing] if missing else []
    wanted = replace(settings, detector=detector, mask="oval")
    try:
        opened = open_models(wanted, device=device, folders=folders)
    except (CheckpointError, MissingPackageError, DownloadError) as error:
        opened = open_models(replace(wanted, detector="starter"), device=device, folders=folders)
        notes.append(f"LAFR's own detector used ({error})")
    if settings.mask == "parse":
        try:
            opened = replace(opened, parser=_parser(device, folders, download))
        except LafrError as error:
            notes.append(f"mask oval used ({error})")
    return Opened(opened, settings, notes=tuple(notes))


def _detector(name: str, folders: tuple[Path, ...], download: bool) -> tuple[str, str]:
    """The detector to open and a note: one without weights here gives way to the best at hand unless it may be downloaded."""
    if name in ("auto", "starter") or download or detectors.find_weights(name, folders) is not None:
        return name, ""
    file = (scrfd.FILES if name == "scrfd" else retinaface.VARIANTS[name].files)[0]
    return "auto", f"detector auto used ({_where(file, folders)})"


def _parser(device: torch.device, folders: tuple[Path, ...], download: bool) -> Parser:
    """Facexlib's face parser. Raises LafrError when weights or package are missing, or the file is not the published one."""
    found = next((path for file in parser.FILES if (path := assets.find(file, folders)) is not None), None)
    if found is None and download:
        found = assets.fetch(assets.ASSETS[parser.FILES[0]])
    if found is None:
        raise CheckpointError(_where(parser.FILES[0], folders))
    opened = parser.open_parser(assets.check(found, assets.ASSETS[found.name]), device)
    assert opened is not None  # a given path works or raises
    return opened


def _where(file: str, folders: tuple[Path, ...]) -> str:
    folder = folders[0] if folders else assets.download_folder()
    return f"{file} is not here; put it into {folder} or allow downloads on the settings page LAFR"


def _mask(settings: RestoreSettings, opened: Models) -> str:
    return "oval" if settings.mask == "parse" and opened.parser is None else settings.mask


def reference_person(photo: Image.Image, models: Models, settings: RestoreSettings) -> Person:
    """The person with the largest face of the reference photo. Raises InputError where there is none."""
    if models.embedder is None:
        raise MissingPackageError(
            "reference photo: no face embedder at hand; install LAFR with its weights or set the reference weight to 0"
        )
    key = (CACHE.key, hashlib.sha256(photo.tobytes()).digest(), photo.size, photo.mode, settings.threshold)
    if CACHE.reference is None or CACHE.reference_key != key:
        image = photos.from_pil(photo).stored.expand(3, -1, -1)[None]
        # The panel's "which faces" is about the photo to restore; the person meant here is the largest face.
        wanted = RestoreSettings(detector=settings.detector, threshold=settings.threshold, top_k=1)
        faces = [place(face) for face in detect_faces(image, models.detector, wanted, progress=ignore_progress)]
        if not faces:
            raise InputError("reference photo: no face found; use a clearer one or lower the detection threshold")
        crops = crop_faces(image, faces).to(models.device, torch.float32)
        CACHE.reference_key, CACHE.reference = key, people.known("reference", crops, models.embedder)
    return CACHE.reference


def _sampler(checkpoint: loaded.Checkpoint, engine: EngineSettings) -> Sampler:
    if engine.steps == 1:
        return OneStep(checkpoint.denoiser, engine.timestep)
    return FewSteps(checkpoint.denoiser, engine.steps, engine.denoise, engine.seed, host.poll)
