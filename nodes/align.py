"""LAFR_AlignLatent: low-quality face crops -> latents where high-quality faces are."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional as F

from ..lafr_core.errors import CheckpointError, InputError
from ..lafr_core.faces.people import known
from ..lafr_core.geometry import CROP_SIZE
from ..lafr_core.pipeline import restore_latents
from ..lafr_core.settings import RestoreSettings
from ..lafr_core.types import Models
from .faces import FaceSet, reference_crops
from .host import HostVae, check_vae, raw_latent
from .layout import to_images, to_mask
from .memory import Managed, host_progress
from .networks import open_detector, open_embedder
from .widgets import ADAPTER, FACES, reference_weight_input, schema, settings_inputs


class AlignLatent(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_AlignLatent",
            "LAFR Align Latent",
            "Encodes degraded faces with the VAE (posterior mode) and moves their latents to where sharp faces are.",
            [
                io.Vae.Input(
                    "vae",
                    tooltip="A VAE of the adapter's family: for the starter's an SD 1.5 or 2.1 checkpoint's, TAESD or LAFR "
                    "Load Starter's.",
                ),
                ADAPTER.Input("adapter", tooltip="From LAFR Load Adapter or LAFR Load Starter."),
                *settings_inputs(("fidelity", "batch_size"), advanced=("batch_size",)),
                reference_weight_input("aligned latents"),
                FACES.Input("faces", optional=True, tooltip="From LQ Face Detect. Its crops are used."),
                io.Image.Input(
                    "crops",
                    optional=True,
                    tooltip="Upright face crops, each side a multiple of 32. Used when faces is not connected.",
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Good photos of one person, for faces of 512x512. What alignment lost of the person comes back "
                    "before the sampler.",
                ),
            ],
            [
                io.Latent.Output(
                    "aligned", display_name="aligned", tooltip="The aligned latents, one row a face: what the sampler finishes."
                ),
                io.Latent.Output(
                    "unaligned", display_name="unaligned", tooltip="The VAE's own latents of the crops, for comparison."
                ),
                io.Mask.Output(
                    "confidence",
                    display_name="confidence",
                    tooltip="White where the aligned face may be believed, black where it is a guess. One row a face.",
                ),
            ],
            ["face restore", "latent alignment", "codebook", "encode face"],
        )

    @classmethod
    def execute(
        cls,
        vae: Any,
        adapter: Managed,
        fidelity: float,
        batch_size: int,
        reference_weight: float,
        faces: FaceSet | None = None,
        crops: Tensor | None = None,
        references: Tensor | None = None,
    ) -> Any:
        spec = adapter.spec
        check_vae(vae, spec)
        if faces is not None and not len(faces):
            side = CROP_SIZE // spec.factor
            empty = torch.zeros(1, spec.channels, side, side, device=mm.intermediate_device())
            return io.NodeOutput({"samples": empty}, {"samples": empty.clone()}, torch.zeros(1, CROP_SIZE, CROP_SIZE))
        pixels = _pixels(faces, crops)
        before, after, confidence = align(pixels, HostVae(vae, spec), adapter, fidelity, batch_size)
        if references is not None and reference_weight > 0:
            after = lent(pixels, references, HostVae(vae, spec), adapter, fidelity, reference_weight).to(after)
        return io.NodeOutput(raw_latent(after, spec), raw_latent(before, spec), to_mask(confidence))


def align(pixels: Tensor, vae: HostVae, adapter: Managed, fidelity: float, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Crops (N, 3, H, W) -> their latents, the aligned latents (N, C, H/8, W/8) and the confidence (N, 1, H, W)."""
    progress = host_progress()
    rows = []
    with torch.no_grad():
        for start in range(0, len(pixels), batch_size):
            latents = vae.encode(pixels[start : start + batch_size])
            aligned = adapter(latents.to(mm.get_torch_device()), fidelity)
            rows.append((latents, aligned.latents.to(latents), aligned.confidence.to(latents)))
            progress("align", min(start + batch_size, len(pixels)), len(pixels))
    before, after, confidence = (torch.cat(parts) for parts in zip(*rows, strict=True))
    confidence = F.interpolate(confidence, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    return before, after, confidence.clamp(0, 1)


def lent(pixels: Tensor, references: Tensor, vae: HostVae, adapter: Managed, fidelity: float, weight: float) -> Tensor:
    """Crops (N, 3, 512, 512) -> their aligned latents with what the person of the reference photos lends to each.

    Raises InputError for crops of another size or references without a face, CheckpointError without an embedder.
    """
    if pixels.shape[-2:] != (CROP_SIZE, CROP_SIZE):
        raise InputError(f"references: expected 512x512 crops, got {tuple(pixels.shape[-2:])}; connect faces, or no references")
    embedder = open_embedder()
    if embedder is None:
        raise CheckpointError("references: expected a face embedder, found none; install the pack again or disconnect them")
    device = mm.get_torch_device()
    person = known("reference", reference_crops(to_images(references)).to(device), embedder)
    detector = open_detector(RestoreSettings().detector)
    models = Models(detector, vae, adapter, None, embedder, device=device)
    progress = host_progress()
    rows = []
    with torch.no_grad():
        for crop in pixels.split(1):
            row = crop.to(device, torch.float32)
            rows.append(restore_latents(row, models, fidelity, lenders=[person], weight=weight))
            progress("lend", len(rows), len(pixels))
    return torch.cat(rows)


def _pixels(faces: FaceSet | None, crops: Tensor | None) -> Tensor:
    if faces is not None:
        return faces.crops
    if crops is None:
        raise InputError("LAFR Align Latent: expected faces or crops, got neither; connect LQ Face Detect's faces output")
    pixels = to_images(crops)
    if any(side % 32 for side in pixels.shape[-2:]):
        raise InputError(f"crops: expected sides that are multiples of 32, got {tuple(pixels.shape[-2:])}; use 512x512 crops")
    return pixels
