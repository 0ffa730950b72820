"""Opens the models that one restoration needs: the starter pack's, or the user's own where given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .errors import CheckpointError, InputError
from .faces.detectors import open_detector
from .faces.identity import open_embedder
from .faces.parser import open_parser
from .latent.adapter import open_adapter
from .latent.prior import open_prior
from .latent.vae import open_vae
from .settings import RestoreSettings
from .types import Models

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` = CUDA where there is one, else Apple's MPS, else the CPU. Raises InputError for a device that is not there."""
    at_hand = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in at_hand.items() if there)
    if not at_hand.get(name, False):
        there = ", ".join(device for device, is_there in at_hand.items() if is_there)
        raise InputError(f"device: {name!r} is not available here; choose auto or one of: {there}")
    return torch.device(name)


def open_models(
    settings: RestoreSettings | None = None,
    *,
    device: torch.device | str = "auto",
    vae: Path | None = None,
    adapter: Path | None = None,
    prior: Path | None = None,
    detector_weights: Path | None = None,
    embedder: Path | None = None,
    folders: Sequence[Path] = (),
) -> Models:
    """All models that ``settings`` (None = the defaults) need, on ``device`` ("auto", "cpu", ... or a torch device).

    A path of None means the starter's own.

    vae: a diffusers folder, a single file or a LAFR vae file; prior: a LAFR prior file or a diffusers UNet folder. The bundled
    adapter is the one for the VAE's latents; the starter prior knows SD 1.x/2.x latents only, so that for others ``prior`` is
    None where no path is given (:func:`prior_note` says so). folders: where a host keeps third-party weights (RetinaFace,
    ParseNet, ...), looked into before the usual places. The face parser is opened for mask "parse" only. Raises
    CheckpointError for a missing, damaged or mismatched file, MissingPackageError for a backend whose package is not
    installed, InputError for a device that is not there.
    """
    settings = settings if settings is not None else RestoreSettings()
    device = choose_device(device) if isinstance(device, str) else device
    opened_vae = open_vae(vae, device)
    aligner = open_adapter(adapter, device, latents=opened_vae.spec.name)
    finisher = open_prior(prior, device) if prior is not None or opened_vae.spec.name == "sd" else None
    for name, part in (("adapter", aligner), ("prior", finisher)):
        if part is not None and part.spec != opened_vae.spec:
            raise CheckpointError(
                f"{name}: expected one for the VAE's {opened_vae.spec.name} latents, got one for {part.spec.name} latents; "
                f"pass --{name} or --vae of the same family"
            )
    return Models(
        detector=open_detector(settings.detector, weights=detector_weights, device=device, folders=folders),
        vae=opened_vae,
        aligner=aligner,
        prior=finisher,
        embedder=open_embedder(embedder, device),
        parser=open_parser(None, device, folders) if settings.mask == "parse" else None,
        device=device,
    )


def prior_note(models: Models) -> str:
    """One sentence where no prior knows the latents, so that faces are aligned and not finished; '' otherwise."""
    if models.prior is not None or models.sampler is not None or models.vae.spec.name == "sd":
        return ""
    return f"faces are aligned only: the starter prior finishes sd latents, not {models.vae.spec.name} latents"


def device_name(device: torch.device) -> str:
    """The device in words, for status lines and reports: 'cuda:0 (NVIDIA H100)', 'cpu (2 threads)', 'mps'."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
