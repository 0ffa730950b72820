"""Identity guidance as a patch on the MODEL, and the node that sets it."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..lafr_core.errors import CheckpointError, InputError
from ..lafr_core.latent.guidance import guide, ordinary, reference_embedding
from .faces import FaceSet, reference_crops
from .host import check_model, check_vae
from .layout import to_images
from .memory import Managed
from .networks import open_embedder
from .widgets import FACES, make, schema

ROWS = "lafr_rows"
"""Key in transformer_options: which rows of the whole batch a chunk being sampled is."""

log = logging.getLogger("lafr")


def guidance_inputs() -> list[Any]:
    """The widgets both guiding nodes share."""
    return [
        make(
            io.Float.Input,
            "identity_weight",
            display_name="Identity weight",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How far a step may be pulled towards the identity. 0 = no guidance: "
            "measured, the pull makes no face more like the person.",
        ),
        make(
            io.Float.Input,
            "start_percent",
            display_name="Guidance start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Few-step: steps before this share of the whole noise schedule are not guided. 0 = from pure noise on.",
        ),
        make(
            io.Float.Input,
            "end_percent",
            display_name="Guidance end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Few-step: steps after this share of the whole noise schedule are not guided. 1 = to the last step.",
        ),
    ]


def reference_vectors(faces: FaceSet, references: Tensor | None) -> Tensor | None:
    """Unit vectors (N, D), one a face: of the reference photos, else of the faces themselves. None without an embedder."""
    embedder = open_embedder()
    if embedder is None:
        return None
    device = mm.get_torch_device()
    embedder.load()
    if references is not None:
        crops = reference_crops(to_images(references))
        return reference_embedding(embedder.call, crops.to(device)).expand(len(faces), -1)
    with torch.no_grad():
        return torch.cat([embedder.call(crop[None].to(device)) for crop in faces.crops])


def guided(model: Any, vae: Any, reference: Tensor | None, weight: float, start: float, end: float) -> Any:
    """A clone of MODEL whose every denoised estimate is pulled towards the identities ``reference`` (N, D), one a latent row.

    weight 0 returns ``model`` itself. Works with every sampler of the host; nothing of the input MODEL changes.
    """
    if weight == 0.0:
        return model
    embedder = open_embedder()
    if embedder is None or reference is None:
        raise CheckpointError("identity guidance: expected a face embedder, found none; set the identity weight to 0")
    patched = model.clone()
    sampling = patched.get_model_object("model_sampling")
    high, low = float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end))
    # Loaded together with the MODEL by whatever sampler runs it.
    patched.set_additional_models("lafr_identity", [vae.patcher, embedder.patcher])
    # A closure: the host deep-copies callable objects with their networks on every later clone.
    patched.set_model_sampler_post_cfg_function(_hook(vae, embedder, reference, weight, low, high))
    return patched


def _hook(vae: Any, embedder: Managed, reference: Tensor, weight: float, low: float, high: float) -> Any:
    def hook(args: dict[str, Any]) -> Tensor:
        x0: Tensor = args["denoised"]
        if not low <= float(args["sigma"].max()) <= high:
            return x0
        rows = args["model_options"].get("transformer_options", {}).get(ROWS, slice(None))
        wanted = reference[rows]
        if len(wanted) != len(x0):
            raise InputError(
                f"identity guidance: expected one latent row a face ({len(wanted)}), got {len(x0)}; "
                "sample the latents of these faces"
            )
        base, first_stage = args["model"], vae.first_stage_model

        def decode(latents: Tensor) -> Tensor:
            raw = base.process_latent_out(latents)
            return first_stage.decode(raw.to(vae.device, vae.vae_dtype)).float().to(latents.device) * 0.5 + 0.5

        # The host recasts and moves weights under inference mode, which makes them unfit for gradients again.
        ordinary(first_stage)
        for network in embedder.networks:
            ordinary(network)
        try:
            moved = []
            for row, target in zip(x0, wanted, strict=True):
                mm.throw_exception_if_processing_interrupted()
                moved.append(guide(row[None], decode, embedder.call, target[None], weight))
            return torch.cat(moved)
        except mm.OOM_EXCEPTION:
            log.warning("LAFR: not enough memory for identity guidance at this step; it goes on without")
            return x0

    return hook


class IdentityGuidance(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_IdentityGuidance",
            "LAFR Identity Guidance",
            "Patches a MODEL so that any sampler keeps the person's identity. Sample the latents of the same faces with it.",
            [
                io.Model.Input("model", tooltip="An SD 1.5 or 2.1 MODEL, with its LoRAs."),
                io.Vae.Input(
                    "vae",
                    tooltip="Decodes the estimates to look at the face. A tiny VAE (TAESD, starter) is much faster.",
                ),
                FACES.Input("faces", tooltip="From LQ Face Detect: whose identity to keep."),
                *guidance_inputs(),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Good photos of the same person. They replace the damaged face as the identity, for every face.",
                ),
            ],
            [
                io.Model.Output(
                    "patched", display_name="model", tooltip="The MODEL with guidance. The input MODEL stays as it was."
                )
            ],
            ["identity", "face likeness", "guidance", "reference photo"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        faces: FaceSet,
        identity_weight: float,
        start_percent: float,
        end_percent: float,
        references: Tensor | None = None,
    ) -> Any:
        check_model(model)
        check_vae(vae)
        if not len(faces) or identity_weight == 0.0:
            return io.NodeOutput(model)
        reference = reference_vectors(faces, references)
        if reference is None:
            raise CheckpointError("identity guidance: expected a face embedder, found none; set the identity weight to 0")
        return io.NodeOutput(guided(model, vae, reference, identity_weight, start_percent, end_percent))
