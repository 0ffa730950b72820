"""Identity guidance: pull a clean-latent estimate towards a face's identity.

loss(x0) = 1 - cos(embed(decode(x0)), e_ref), and the estimate moves against its gradient (classifier guidance on the
denoised estimate: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, applied to x0 as in
Bansal et al., "Universal Guidance for Diffusion Models", 2023, without the backward pass through the UNet).

Host-free: a host brings ``decode`` and decides at which steps to call :func:`guide`. Everything here works under a
surrounding ``torch.no_grad()`` and ``torch.inference_mode()``, as long as the *weights* behind ``decode`` and
``embedder`` are ordinary tensors: see :func:`ordinary`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..types import Embedder

Decode = Callable[[Tensor], Tensor]
"""Latents (1, C, h, w) in the caller's own scaling -> pixels (1, 3, H, W) in [0, 1], unclamped, differentiable."""

STEP = 0.1
"""RMS of the move of a UNet-scaled latent (std about 1) at weight 1, before :data:`LIMIT`."""

LIMIT = 4.0
"""No latent value moves by more than this many times the RMS."""


def reference_embedding(embedder: Embedder, crops: Tensor) -> Tensor:
    """One unit vector (D,) for a person seen in R >= 1 FFHQ-template crops (R, 3, 512, 512): the mean direction."""
    if crops.shape[0] == 0:
        raise InputError("reference: expected at least one face crop, got none")
    with torch.no_grad():
        mean = embedder(crops.float()).mean(dim=0)
    return F.normalize(mean, dim=0)


def identity_gradient(x0: Tensor, decode: Decode, embedder: Embedder, reference: Tensor) -> Tensor:
    """Gradient of 1 - cos(embed(decode(x0)), reference) with respect to x0, float32, same shape.

    x0: (B, C, h, w). reference: unit vectors (B, D), or (D,) for all rows. Rows are worked one at a time, so memory is
    that of one face. Raises InputError when the gradient is cut off (weights made under ``torch.inference_mode``: call
    :func:`ordinary`) or not finite.
    """
    if reference.ndim == 1:
        reference = reference.expand(x0.shape[0], -1)
    if reference.shape[0] != x0.shape[0]:
        raise InputError(f"reference: expected one vector a latent ({x0.shape[0]}), got {reference.shape[0]}")
    rows = [_row_gradient(row[None], decode, embedder, target) for row, target in zip(x0, reference, strict=True)]
    return torch.cat(rows) if rows else torch.zeros_like(x0, dtype=torch.float32)


def guide(x0: Tensor, decode: Decode, embedder: Embedder, reference: Tensor, weight: float) -> Tensor:
    """x0 moved towards the identity by RMS at most ``weight * STEP`` per row; dtype and device of x0.

    weight 0 returns ``x0`` itself and evaluates nothing. Each row's gradient is brought to RMS 1 first: its raw size
    depends on decoder and embedder, not on how far the face is off.
    """
    if weight == 0.0:
        return x0
    gradient = identity_gradient(x0, decode, embedder, reference)
    rms = gradient.pow(2).mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    # Spikes on single cells (the tip of the nose, seen at weight 2) fool an embedder without changing the face.
    return (x0.float() - weight * STEP * (gradient / rms).clamp(-LIMIT, LIMIT)).to(x0.dtype)


def in_window(percent: float, start: float, end: float) -> bool:
    """Whether a step at ``percent`` of the sampling (0 = first, 1 = last) lies in [start, end]."""
    return start <= percent <= end


def ordinary(module: nn.Module) -> nn.Module:
    """Replace inference-mode parameters and buffers of ``module`` by equal ordinary ones, in place; return it.

    ComfyUI and Forge load models under ``torch.inference_mode``, and autograd refuses such weights ("Inference tensors
    cannot be saved for backward"). Values, dtypes and devices stay. Costs nothing when there is nothing to do; hosts
    recast weights behind our back, so call it before every gradient.
    """
    with torch.inference_mode(False), torch.no_grad():
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None and parameter.is_inference():
                    part._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()
    return module


def _row_gradient(row: Tensor, decode: Decode, embedder: Embedder, target: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        # Cloned inside: a tensor made under inference mode could not enter the graph.
        leaf = row.detach().clone().float().requires_grad_(True)
        anchor = target.detach().clone().to(leaf)
        try:
            loss = 1.0 - (embedder(decode(leaf).float()) * anchor).sum()
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise InputError(
                "guidance: weights were made under torch.inference_mode; pass their module through ordinary()"
            ) from error
        if not loss.requires_grad:
            raise InputError("guidance: no gradient reaches the latent; decode or the embedder works under no_grad or clamps")
        (gradient,) = torch.autograd.grad(loss, leaf)
    if not bool(gradient.isfinite().all()):
        raise InputError("guidance: the identity gradient is not finite; check the VAE's dtype (use fp32) or lower the weight")
    return gradient
