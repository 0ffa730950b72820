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
from .latent.sd_prior import open_sd_finisher
from .latent.vae import open_vae
from .settings import RestoreSettings
from .types import Models, Prior

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
    checkpoint: Path | None = None,
    lora: Path | None = None,
    mode: str = "auto",
    steps: int | None = None,
    denoise: float | None = None,
    detector_weights: Path | None = None,
    embedder: Path | None = None,
    folders: Sequence[Path] = (),
) -> Models:
    """All models that ``settings`` (None = the defaults) need, on ``device`` ("auto", "cpu", ... or a torch device).

    A path of None means the starter's own.

    checkpoint: your own SD 1.x/2.x, a whole .safetensors file or a diffusers pipeline folder. Its VAE is used (unless ``vae``
    is given), and its UNet is the prior: one step with the LAFR ``lora`` made for it, a few without (``mode``, ``steps``,
    ``denoise``: :func:`lafr_core.latent.sd_prior.open_sd_finisher`).
    vae: a diffusers folder, a single file or a LAFR vae file; prior: a LAFR prior file or a diffusers UNet folder. The bundled
    adapter is the one for the VAE's latents; the starter prior knows SD 1.x/2.x latents only, so that for others ``prior`` is
    None where no path is given (:func:`prior_note` says so). folders: where a host keeps third-party weights (RetinaFace,
    ParseNet, ...), looked into before the usual places. The face parser is opened for mask "parse" only. Raises
    CheckpointError for a missing, damaged or mismatched file, MissingPackageError for a backend whose package is not
    installed, InputError for a device that is not there.
    """
    settings = settings if settings is not None else RestoreSettings()
    device = choose_device(device) if isinstance(device, str) else device
    check_checkpoint(checkpoint, prior, lora, mode, steps, denoise)
    opened_vae = open_vae(vae or checkpoint, device)
    aligner = open_adapter(adapter, device, latents=opened_vae.spec.name)
    finisher: Prior | None
    if checkpoint is not None:
        finisher = open_sd_finisher(checkpoint, lora=lora, mode=mode, steps=steps, denoise=denoise, device=device)
    else:
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


def check_checkpoint(
    checkpoint: Path | None, prior: Path | None, lora: Path | None, mode: str, steps: int | None, denoise: float | None
) -> None:
    """Raise InputError where options of a checkpoint are given without one, or a prior beside it."""
    if checkpoint is not None and prior is not None:
        raise InputError("prior, checkpoint: the checkpoint's UNet is the prior; give one of the two")
    given = {"lora": lora, "mode": None if mode == "auto" else mode, "steps": steps, "denoise": denoise}
    stray = [name for name, value in given.items() if value is not None]
    if checkpoint is None and stray:
        raise InputError(f"{stray[0]}: belongs to a Stable Diffusion checkpoint; give --checkpoint with it, or leave it out")


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
