"""A request -> the models that carry it out: the starter's, or the loaded checkpoint's with the starter's adapter between
them.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lafr_core.errors import CheckpointError, InputError, MissingPackageError
from lafr_core.faces.crop import crop_faces, place
from lafr_core.faces.detect import detect_faces
from lafr_core.images import photos
from lafr_core.latent import guidance
from lafr_core.models import open_models
from lafr_core.pipeline import ignore_progress
from lafr_core.settings import RestoreSettings
from lafr_core.types import Models, Sampler

from . import host, loaded
from .sampling import FewSteps, Guide, GuidedPrior, OneStep
from .settings import EngineSettings, Request


@dataclass
class Cache:
    """What is kept between pictures: one set of starter models and one reference photo's embedding, never more."""

    key: tuple[Any, ...] | None = None
    models: Models | None = None
    reference_key: tuple[Any, ...] | None = None
    reference: Tensor | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """Let everything go; the next restoration loads again."""
        self.key = self.models = self.reference_key = self.reference = None


CACHE = Cache()


@contextlib.contextmanager
def opened(request: Request, reference: Image.Image | None = None) -> Iterator[tuple[Models, str]]:
    """Models for ``request`` and a note: '' or one sentence on what is done instead of what was asked.

    A checkpoint that cannot be used is no error: the starter does the work and the note says why. Call it and use the models
    under :func:`lafr_webui.host.neutral`. Raises LafrError when the starter's files are damaged, when identity guidance has
    no embedder or when the reference photo shows no face.
    """
    models = starter_parts(request.restore)
    person = (
        reference_embedding(reference, models, request.restore) if reference is not None and request.engine.identity else None
    )
    with contextlib.ExitStack() as stack:
        note = ""
        if request.engine.engine == "checkpoint":
            try:
                checkpoint = stack.enter_context(loaded.checkpoint(request.engine.lora))
            except CheckpointError as error:
                note = f"starter engine used ({error})"
            else:
                models = replace(models, vae=checkpoint.vae, prior=None)
                guide = _guide(models, request.engine, person)
                yield replace(models, sampler=_sampler(checkpoint, request.engine, guide)), note
                return
        guide = _guide(models, request.engine, person)
        if guide is not None and models.prior is not None:
            models = replace(models, sampler=GuidedPrior(models.prior, guide))
        yield models, note


def starter_parts(settings: RestoreSettings) -> Models:
    """The starter models on the webui's device, loaded once. Without facexlib's parser, mask "parse" raises
    MissingPackageError later.
    """
    key = (settings.detector, settings.mask == "parse", host.device())
    with CACHE.lock:
        if CACHE.models is None or CACHE.key != key:
            CACHE.clear()
            CACHE.key, CACHE.models = key, open_models(settings, device=key[2])
        return CACHE.models


def reference_embedding(photo: Image.Image, models: Models, settings: RestoreSettings) -> Tensor:
    """Unit vector (D,) of the largest face of the reference photo. Raises InputError where there is none."""
    if models.embedder is None:
        raise _no_embedder()
    key = (CACHE.key, hashlib.sha256(photo.tobytes()).digest(), photo.size, photo.mode, settings.threshold)
    if CACHE.reference is None or CACHE.reference_key != key:
        image = photos.from_pil(photo).pixels[None]
        # The panel's "which faces" is about the photo to restore; the person meant here is the largest face.
        wanted = RestoreSettings(detector=settings.detector, threshold=settings.threshold, top_k=1)
        faces = [place(face) for face in detect_faces(image, models.detector, wanted, progress=ignore_progress)]
        if not faces:
            raise InputError("reference photo: no face found; use a clearer one or lower the detection threshold")
        crops = crop_faces(image, faces).to(models.device, torch.float32)
        CACHE.reference_key, CACHE.reference = key, guidance.reference_embedding(models.embedder, crops)
    return CACHE.reference


def _guide(models: Models, engine: EngineSettings, person: Tensor | None) -> Guide | None:
    if engine.identity == 0:
        return None
    if models.embedder is None:
        raise _no_embedder()
    return Guide(models.vae, models.embedder, engine.identity, person)


def _sampler(checkpoint: loaded.Checkpoint, engine: EngineSettings, guide: Guide | None) -> Sampler:
    if engine.steps == 1:
        return OneStep(checkpoint.denoiser, engine.timestep, guide)
    return FewSteps(checkpoint.denoiser, engine.steps, engine.denoise, engine.seed, guide, host.poll)


def _no_embedder() -> MissingPackageError:
    return MissingPackageError(
        "identity guidance: no face embedder at hand; install LAFR with its weights or set the weight to 0"
    )
