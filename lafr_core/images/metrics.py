"""Full-reference picture quality, by the standard definitions: PSNR and SSIM.

Convention: both pictures (B, 3, H, W) float in [0, 1], the same shape; results (B,) float64, one number a picture, computed
on the RGB values as they are (no luma conversion, no border cut), on the pictures' device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

WINDOW = 11
"""Side of SSIM's Gaussian window in pixels (Wang et al. 2004, section III-C); pictures must be at least this large."""
_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``-10 log10(mean squared error)`` over all channels; inf for identical pictures."""
    images, reference = _pair(images, reference)
    return -10 * torch.log10((images - reference).square().flatten(1).mean(1))


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Mean structural similarity in [-1, 1].

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE TIP
    2004, eq. 13: Gaussian window 11x11 with sigma 1.5, K = (0.01, 0.03), population covariance, averaged over the channels
    and over the window positions that lie wholly inside the picture (what scikit-image computes with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``). Raises InputError for pictures smaller than the window.
    """
    images, reference = _pair(images, reference)
    if min(images.shape[-2:]) < WINDOW:
        raise InputError(f"ssim: expected pictures of at least {WINDOW}x{WINDOW}, got {tuple(images.shape[-2:])}")
    mean_x, mean_y = _blur(images), _blur(reference)
    var_x = _blur(images.square()) - mean_x.square()
    var_y = _blur(reference.square()) - mean_y.square()
    cov = _blur(images * reference) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * cov + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).flatten(1).mean(1)


def _pair(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, which SSIM's differences of squares need; MPS has none, so pictures there are compared on the CPU."""
    if images.shape != reference.shape or images.ndim != 4:
        raise InputError(
            f"metrics: expected two equal batches (B, 3, H, W), got {tuple(images.shape)} and {tuple(reference.shape)}; "
            "resize one of them first"
        )
    if images.device.type == "mps":
        images, reference = images.cpu(), reference.cpu()
    return images.double(), reference.to(images.device).double()


def _blur(planes: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H - 10, W - 10): the Gaussian window at every position that fits."""
    offsets = torch.arange(WINDOW, dtype=planes.dtype, device=planes.device) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    window = window / window.sum()
    channels = planes.shape[1]
    columns = F.conv2d(planes, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(columns, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
