"""Identity guidance: pull a clean-latent estimate towards a person, as far as that helps and never further.

Classifier guidance on the denoised estimate (Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021,
applied to x0 as in Bansal et al., "Universal Guidance for Diffusion Models", 2023, without the backward pass through the
UNet), with three safeguards: the loss is seen through several views, so that no stain fools the embedder; the move is a
smooth field found by a backtracking line search inside a trust region (Nocedal and Wright, "Numerical Optimization", 2006,
chapters 3 and 4); and a row that did not become more like its reference comes back as it was.

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
from ..filters import gaussian
from ..types import Embedder

Decode = Callable[[Tensor], Tensor]
"""Latents (1, C, h, w) in the caller's own scaling -> pixels (1, 3, H, W) in [0, 1], unclamped, differentiable."""

RADIUS = 0.05
"""RMS by which a UNet-scaled latent (std about 1) may move at weight 1. Measured (docs/identity.md): the embedder's gradient
raises the embedder's own cosine at any radius and another judge's at none; at this one it costs nothing worth speaking of."""

SAME_PERSON = 0.85
"""Where pulling stops: what the starter embedder finds between two photos of one person (mean 0.87 over 32 people of
``faces_london/train``, a neutral and a smiling photo each)."""

ROUNDS = 6
"""Gradients per call at most."""

TRIALS = 3
"""Steps tried along one gradient, each half of the one before."""

RESOLVES = 0.02
"""Differences of likeness below this the embedder cannot tell: moving the crop by a few pixels changes it as much."""

SMOOTH = 5.0
"""Standard deviation, in latent cells, of the low-pass that the move goes through: spikes on single cells fool an embedder
without changing the face. Measured: at 1 and 2.5 cells another judge's cosine falls by three to ten times as much."""

SHIFT = 8
"""Pixels by which the shifted views of a 512 crop are moved."""


def reference_embedding(embedder: Embedder, crops: Tensor) -> Tensor:
    """One unit vector (D,) for a person seen in R >= 1 FFHQ-template crops (R, 3, 512, 512): the mean direction."""
    if crops.shape[0] == 0:
        raise InputError("reference: expected at least one face crop, got none")
    with torch.no_grad():
        mean = embedder(crops.float()).mean(dim=0)
    return F.normalize(mean, dim=0)


def guide(x0: Tensor, decode: Decode, embedder: Embedder, reference: Tensor, weight: float) -> Tensor:
    """x0 (B, C, h, w) moved towards the identity by RMS at most ``weight * RADIUS`` per row; dtype and device of x0.

    reference: unit vectors (B, D), or (D,) for all rows. weight 0 returns ``x0`` itself and evaluates nothing. No row comes
    back less like its reference than it was; a row at :data:`SAME_PERSON` or above is left alone. Rows are worked one at a
    time, so memory is that of one face. Raises InputError as :func:`identity_gradient`, and for a weight below 0.
    """
    if weight == 0.0:
        return x0
    if not weight > 0.0:
        raise InputError(f"identity weight: expected 0 or more, got {weight}")
    rows = _rows(x0, reference, lambda row, target: _guided(row, decode, embedder, target, weight * RADIUS))
    return rows.to(x0.dtype)


def approach(x0: Tensor, goal: Tensor, decode: Decode, embedder: Embedder, reference: Tensor, weight: float) -> Tensor:
    """Each row of x0 (B, C, h, w) moved towards ``goal`` (same shape), what reference photos show, by the share ``weight`` in
    [0, 1]; dtype and device of x0.

    reference: as for :func:`guide`. Half and a quarter of the way are tried where the whole way makes the face less like its
    reference by more than :data:`RESOLVES`; where that helps nothing the row comes back as it was. weight 0 returns ``x0``
    itself and evaluates nothing. Needs no gradient.
    """
    if weight == 0.0:
        return x0
    goals = iter(goal.float().split(1))

    def nearer(row: Tensor, target: Tensor) -> Tensor:
        start, end = row.float(), next(goals)
        _, least = _look(row, start, decode, embedder, target)
        for share in (weight, weight / 2, weight / 4):
            trial = torch.lerp(start, end, share)
            if _look(row, trial, decode, embedder, target)[1] <= least + RESOLVES:
                return trial
        return start

    return _rows(x0, reference, nearer).to(x0.dtype)


def identity_gradient(x0: Tensor, decode: Decode, embedder: Embedder, reference: Tensor) -> Tensor:
    """Gradient of :func:`distance` with respect to x0, float32, same shape.

    x0: (B, C, h, w). reference: unit vectors (B, D), or (D,) for all rows. Raises InputError when the gradient is cut off
    (weights made under ``torch.inference_mode``: call :func:`ordinary`) or not finite.
    """
    return _rows(x0, reference, lambda row, target: _gradient(row, decode, embedder, target))


def distance(pixels: Tensor, embedder: Embedder, target: Tensor) -> Tensor:
    """1 - cosine of the face in ``pixels`` (1, 3, H, W) and ``target`` (D,), the mean over its :func:`views`; 0-dim."""
    return 1.0 - (embedder(views(pixels)) @ target).mean()


def views(pixels: Tensor) -> Tensor:
    """(1, 3, H, W) -> (4, 3, H, W): as it is, mirrored and moved down right, moved up left, and coarse (a quarter of the size
    and back). What all of them show is the face; what only one shows is a stain.
    """
    height, width = pixels.shape[-2:]
    step = max(1, round(SHIFT * min(height, width) / 512))
    padded = F.pad(pixels, (step, step, step, step), mode="replicate")
    coarse = F.interpolate(pixels, scale_factor=0.25, mode="bilinear", antialias=True) if min(height, width) >= 8 else pixels
    return torch.cat(
        [
            pixels,
            padded[..., :height, :width].flip(-1),
            padded[..., 2 * step :, 2 * step :],
            F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False),
        ]
    )


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


# --- one row ---------------------------------------------------------------------------------------------------------


def _rows(x0: Tensor, reference: Tensor, work: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``work(row, target)`` for each row of x0 and its reference, joined again; float32."""
    if reference.ndim == 1:
        reference = reference.expand(x0.shape[0], -1)
    if reference.shape[0] != x0.shape[0]:
        raise InputError(f"reference: expected one vector a latent ({x0.shape[0]}), got {reference.shape[0]}")
    rows = [work(row[None], target) for row, target in zip(x0, reference, strict=True)]
    return torch.cat(rows) if rows else torch.zeros_like(x0, dtype=torch.float32)


def _guided(row: Tensor, decode: Decode, embedder: Embedder, target: Tensor, radius: float) -> Tensor:
    """The row at the end of the search, or the row as it was when nothing found is more like the target."""
    start = row.float()
    likeness, loss = _look(row, start, decode, embedder, target)
    first, best, step = likeness, start, radius / 2
    for _ in range(ROUNDS):
        if likeness >= SAME_PERSON:
            break
        direction = gaussian(_gradient(best, decode, embedder, target), SMOOTH)
        direction = -direction / direction.square().mean().sqrt().clamp_min(1e-12)
        for _ in range(TRIALS):
            trial = _within(start, best + step * direction, radius)
            alike, worth = _look(row, trial, decode, embedder, target)
            if worth < loss and alike >= first:
                best, likeness, loss, step = trial, alike, worth, step * 1.5
                break
            step /= 2
        else:
            break
    return best


def _look(row: Tensor, trial: Tensor, decode: Decode, embedder: Embedder, target: Tensor) -> tuple[float, float]:
    """(cosine of the decoded face itself, distance over its views), of ``trial`` in the dtype that the caller will get."""
    with torch.no_grad():
        seen = views(decode(trial.to(row.dtype).float()).float().clamp(0, 1))
        cosines = embedder(seen) @ target.to(seen)
    return float(cosines[0]), float(1 - cosines.mean())


def _within(start: Tensor, trial: Tensor, radius: float) -> Tensor:
    """``trial``, drawn back to where its RMS distance from ``start`` is ``radius`` if it lies further out."""
    move = trial - start
    return start + move * (radius / move.square().mean().sqrt().clamp_min(1e-12)).clamp(max=1.0)


def _gradient(row: Tensor, decode: Decode, embedder: Embedder, target: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        # Cloned inside: a tensor made under inference mode could not enter the graph.
        leaf = row.detach().clone().float().requires_grad_(True)
        anchor = target.detach().clone().to(leaf)
        try:
            loss = distance(decode(leaf).float(), embedder, anchor)
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
