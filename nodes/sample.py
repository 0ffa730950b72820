"""LAFR_IdentitySampler: finishes aligned latents, in one step or in a few, with the user's own MODEL."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import folder_paths
import latent_preview
import torch
from comfy_api.latest import io
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from ..lafr_core import heap
from ..lafr_core.errors import InputError
from ..lafr_core.latent.sd_prior import CONTEXT_FILE, load_context
from .faces import FaceSet
from .guidance import guidance_inputs, guided, reference_vectors
from .host import HostVae, check_latent, check_model, check_vae
from .lora import has_lafr_lora, without_lora
from .memory import check_rows, host_progress, say
from .networks import FOLDER, open_embedder
from .starter import ONE_STEP, ONE_STEP_ONLY, is_starter
from .widgets import FACES, make, schema, setting, timestep_input

FORCED = "one-step (forced)"
MODES = ("one-step", "few-step", FORCED)


class IdentitySampler(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_IdentitySampler",
            "Identity-Guided Sampler",
            "Finishes aligned face latents with the MODEL: in one step, or in a few with identity guidance.",
            [
                io.Model.Input(
                    "model", tooltip="An SD 1.5 or 2.1 MODEL with its LoRAs, or LAFR Load Starter's (one-step only)."
                ),
                io.Latent.Input("latent", tooltip="LAFR Align Latent's aligned output."),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE the latents come from: looks at the face for guidance and for the identity read-out.",
                ),
                FACES.Input("faces", tooltip="From LQ Face Detect: one latent row a face."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="one-step",
                    tooltip="one-step: one evaluation by the starter or a MODEL with a LAFR LoRA; other MODELs take few steps. "
                    "few-step: partial denoise. forced: one step whatever the MODEL, for a LoRA merged into it.",
                ),
                timestep_input(advanced=True),
                io.Int.Input("steps", default=4, min=1, max=100, tooltip="Few-step: how many steps."),
                make(
                    io.Float.Input,
                    "cfg",
                    default=1.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How far to follow positive against negative. 1 = positive only, and twice as fast.",
                    advanced=True,
                ),
                make(
                    io.Combo.Input,
                    "sampler_name",
                    options=list(comfy.samplers.KSampler.SAMPLERS),
                    default="dpmpp_2m",
                    tooltip="Few-step: the sampler.",
                    advanced=True,
                ),
                make(
                    io.Combo.Input,
                    "scheduler",
                    options=list(comfy.samplers.KSampler.SCHEDULERS),
                    default="karras",
                    tooltip="Few-step: the noise schedule.",
                    advanced=True,
                ),
                io.Float.Input(
                    "denoise",
                    default=0.35,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Few-step: how much of the face is made anew. Low stays close to the input, 1 = starts from noise.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Few-step: the noise. One-step adds none.",
                ),
                *guidance_inputs(),
                setting("batch_size", advanced=True),
                io.Conditioning.Input("positive", optional=True, tooltip="Text to follow. Not connected = the empty text."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Text to avoid, where cfg is above 1. Not connected = the empty text."
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Good photos of the same person: the identity to pull every face towards.",
                ),
            ],
            [
                io.Latent.Output(
                    "restored", display_name="latent", tooltip="The restored latents, one row a face. Decode with the VAE."
                ),
                io.Float.Output(
                    "identity",
                    display_name="identity",
                    is_output_list=True,
                    tooltip="Cosine of each restored face and its reference, -1 to 1. Higher is more alike.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="In how many steps the faces were restored, and why."
                ),
            ],
            ["face restore", "ksampler", "one step", "identity", "reference photo"],
        )

    @classmethod
    @heap.trimmed()
    def execute(
        cls,
        model: Any,
        latent: dict[str, Any],
        vae: Any,
        faces: FaceSet,
        mode: str,
        timestep: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        seed: int,
        identity_weight: float,
        start_percent: float,
        end_percent: float,
        batch_size: int,
        positive: Any = None,
        negative: Any = None,
        references: Tensor | None = None,
    ) -> Any:
        check_model(model)
        check_vae(vae)
        if not len(faces):
            return io.NodeOutput(latent, [0.0], "no face")
        samples = check_latent(latent)
        check_rows("latent", len(samples), len(faces))
        one = mode == FORCED or (mode == "one-step" and (is_starter(model) or has_lafr_lora(model)))
        if is_starter(model):
            if not one:
                raise InputError(ONE_STEP_ONLY)
            cfg = 1.0  # the starter takes no text
        report = "one step" if one else f"{steps} steps at denoise {denoise:.2f}"
        if mode == "one-step" and not one:
            report = without_lora(steps, denoise)
        say(report)

        reference = reference_vectors(faces, references)
        window = (0.0, 1.0) if one else (start_percent, end_percent)
        if reference is not None or identity_weight:
            model = guided(model, vae, reference, identity_weight, *window)
        positive = empty_text(model) if positive is None else positive
        negative = empty_text(model) if negative is None else negative

        finished = []
        for rows in chunks(len(faces), batch_size):
            part = {**latent, "samples": samples[rows]}
            if "noise_mask" in latent:
                part["noise_mask"] = rows_of(latent["noise_mask"], rows, len(faces))
            chunk_model = with_option(model, "lafr_rows", rows)
            if one:
                finished.append(one_step(chunk_model, part, timestep, positive, negative, cfg))
            else:
                noise = noise_of(latent, seed)[rows]
                finished.append(
                    few_steps(chunk_model, part, noise, steps, sampler_name, scheduler, denoise, seed, positive, negative, cfg)
                )
        restored = torch.cat(finished)
        return io.NodeOutput({**latent, "samples": restored}, identities(restored, vae, reference), report)


def one_step(model: Any, latent: dict[str, Any], timestep: int, positive: Any, negative: Any, cfg: float = 1.0) -> Tensor:
    """Raw latents (B, 4, h, w) -> restored raw latents, as :func:`lafr_core.latent.prediction.one_step` at ``timestep``.

    Runs inside the host's own sampling: LoRAs, ControlNets, hooks, patches, previews and interruption work as everywhere.
    """
    samples: Tensor = latent["samples"]
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigma(torch.tensor([float(timestep)])).float().reshape(1)
    sigmas = torch.cat([sigma.cpu(), torch.zeros(1)])
    sampler = comfy.samplers.KSAMPLER(_one_evaluation)
    restored = comfy.sample.sample_custom(
        with_option(model, ONE_STEP, True),
        torch.zeros_like(samples),
        cfg,
        sampler,
        sigmas,
        positive,
        negative,
        samples,
        callback=latent_preview.prepare_callback(model, 1),
        seed=0,
    )
    # The host would mix the mask into the input at the wrong scale; blending the result is the same for one step.
    return blend(samples, restored, latent.get("noise_mask"))


def _one_evaluation(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> Tensor:
    """A sampler of ComfyUI's shape. The host feeds the UNet x / sqrt(1 + sigma^2); it shall see the latent itself."""
    noisy = x * (1.0 + sigmas[0] ** 2).sqrt()
    denoised: Tensor = model(noisy, sigmas[0] * x.new_ones([x.shape[0]]), **(extra_args or {}))
    if callback is not None:
        callback({"x": noisy, "i": 0, "sigma": sigmas[0], "sigma_hat": sigmas[0], "denoised": denoised})
    return denoised


def few_steps(
    model: Any,
    latent: dict[str, Any],
    noise: Tensor,
    steps: int,
    sampler_name: str,
    scheduler: str,
    denoise: float,
    seed: int,
    positive: Any,
    negative: Any,
    cfg: float,
) -> Tensor:
    """Raw latents -> restored raw latents by the host's partial denoise, as its KSampler does."""
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        latent["samples"],
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps),
        seed=seed,
    )


def identities(restored: Tensor, vae: Any, reference: Tensor | None) -> list[float]:
    """Cosine of each restored raw latent's face with its reference; zeros without an embedder."""
    embedder = open_embedder()
    if embedder is None or reference is None:
        return [0.0] * len(restored)
    host, progress, values = HostVae(vae), host_progress(), []
    with torch.no_grad():
        for row, target in zip(restored, reference, strict=True):
            crop = host.decode(host.spec.to_scaled(row[None])).to(target.device)
            values.append(float((embedder(crop)[0] * target).sum()))
            progress("identity", len(values), len(restored))
    return values


def empty_text(model: Any) -> Any:
    """CONDITIONING of the empty text for this MODEL, without its text encoder.

    The stored embedding that LAFR's training writes (``empty_prompt.safetensors`` in models/lafr), if one of the right width is
    there; else zeros, which is what the host's ConditioningZeroOut gives.
    """
    width = int(model.model.model_config.unet_config.get("context_dim") or 768)
    for folder in folder_paths.get_folder_paths(FOLDER):
        for file in sorted(Path(folder).glob(f"**/*{CONTEXT_FILE}")):
            if _width(file) == width:
                return [[load_context(file), {}]]
    return [[torch.zeros(1, 77, width), {}]]


def _width(file: Path) -> int | None:
    try:
        with safe_open(str(file), framework="pt") as stored:
            return int(stored.get_slice("context").get_shape()[-1])
    except Exception as error:  # whatever is wrong with a stray file, it is no embedding
        logging.getLogger("lafr").warning("%s: not an empty-prompt embedding (%s)", file, error)
        return None


def chunks(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def rows_of(mask: Tensor, rows: slice, total: int) -> Tensor:
    """The mask rows of a chunk; a single mask serves all."""
    return mask[rows] if mask.shape[0] == total else mask


def noise_of(latent: dict[str, Any], seed: int) -> Tensor:
    """Noise for all rows at once: the same whatever the number of faces at a time."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def with_option(model: Any, key: str, value: Any) -> Any:
    """A clone of MODEL with one entry more in its transformer_options."""
    clone = model.clone()
    options = clone.model_options
    clone.model_options = {**options, "transformer_options": {**options.get("transformer_options", {}), key: value}}
    return clone


def blend(before: Tensor, after: Tensor, mask: Tensor | None) -> Tensor:
    """``after`` where the noise mask (B or 1, [1,] H, W) is 1, ``before`` where it is 0."""
    if mask is None:
        return after
    weight = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), size=after.shape[-2:], mode="bilinear")
    return before + (after - before) * weight.to(after)
