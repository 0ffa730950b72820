"""The blind-face degradation model, every number drawn from an explicit generator.

x_lq = upsample( JPEG_q( downsample_r( x_hq (*) k_sigma ) + n_delta ) ), the protocol of GFPGAN (Wang et al. 2021) and
CodeFormer (Zhou et al. 2022), with their ranges: sigma in [0.1, 15] px at 512, r in [0.8, 32], delta in [0, 20]/255,
q in [30, 100], plus colour jitter and gray with small probability.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Ranges:
    """Bounds of one severity. Lengths in pixels of a 512 crop."""

    sigma: tuple[float, float] = (0.1, 15.0)
    ratio: tuple[float, float] = (0.8, 32.0)
    noise: tuple[float, float] = (0.0, 20.0)
    quality: tuple[int, int] = (30, 100)
    jitter: float = 0.1
    gray: float = 0.02


SEVERITIES: dict[str, Ranges] = {
    "full": Ranges(),
    "mild": Ranges(sigma=(0.1, 3.0), ratio=(0.8, 4.0), noise=(0.0, 6.0), quality=(60, 100), jitter=0.0, gray=0.0),
    "medium": Ranges(sigma=(2.0, 6.0), ratio=(4.0, 8.0), noise=(3.0, 12.0), quality=(40, 80), jitter=0.0, gray=0.0),
    "severe": Ranges(sigma=(5.0, 12.0), ratio=(8.0, 20.0), noise=(8.0, 20.0), quality=(30, 60), jitter=0.0, gray=0.0),
}
"""Training draws from ``full``; the other three are the fixed validation severities."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one sample: enough to log it and to draw it again."""

    sigma_x: float
    sigma_y: float
    angle: float
    ratio: float
    noise: float
    quality: int
    gain: tuple[float, float, float]
    gray: bool

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def draw(generator: np.random.Generator, ranges: Ranges) -> Drawn:
    """Draw one degradation. Uniform in each range; half of the kernels are anisotropic."""
    sigma_x = float(generator.uniform(*ranges.sigma))
    anisotropic = generator.random() < 0.5
    sigma_y = float(generator.uniform(*ranges.sigma)) if anisotropic else sigma_x
    return Drawn(
        sigma_x=sigma_x,
        sigma_y=sigma_y,
        angle=float(generator.uniform(0.0, math.pi)) if anisotropic else 0.0,
        ratio=float(generator.uniform(*ranges.ratio)),
        noise=float(generator.uniform(*ranges.noise)),
        quality=int(generator.integers(ranges.quality[0], ranges.quality[1] + 1)),
        gain=tuple(1.0 + ranges.jitter * generator.uniform(-1.0, 1.0, 3)) if generator.random() < 0.3 else (1.0, 1.0, 1.0),
        gray=bool(generator.random() < ranges.gray),
    )


def blur(image: Array, sigma_x: float, sigma_y: float, angle: float) -> Array:
    """Gaussian blur (H, W, 3) with standard deviations along axes turned by ``angle`` (radians), edges replicated.

    Computed in the frequency domain over a reflected border, so the cost does not grow with sigma.
    """
    height, width = image.shape[:2]
    pad = math.ceil(3 * max(sigma_x, sigma_y))
    pad = min(pad, height - 1, width - 1)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    fy = np.fft.fftfreq(padded.shape[0]).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(padded.shape[1]).astype(np.float32)[None, :]
    c, s = math.cos(angle), math.sin(angle)
    u, v = fx * c + fy * s, -fx * s + fy * c
    transfer = np.exp(-2 * (math.pi**2) * ((u * sigma_x) ** 2 + (v * sigma_y) ** 2))[..., None]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * transfer
    blurred = np.fft.irfft2(spectrum, s=padded.shape[:2], axes=(0, 1))
    return blurred[pad : pad + height, pad : pad + width].astype(np.float32)


def resize(image: Array, size: tuple[int, int], method: Image.Resampling) -> Array:
    """(H, W, 3) float -> ``size`` (h, w), channel by channel in float."""
    planes = [Image.fromarray(image[..., k]).resize((size[1], size[0]), method) for k in range(3)]
    return np.stack([np.asarray(p, dtype=np.float32) for p in planes], axis=-1)


def apply(image: Array, drawn: Drawn, generator: np.random.Generator) -> Array:
    """(H, W, 3) float32 in [0, 1] -> degraded image of the same size and range. ``generator`` draws the noise field."""
    height, width = image.shape[:2]
    unit = min(height, width) / 512
    low = image * np.asarray(drawn.gain, dtype=np.float32)
    if drawn.gray:
        low = np.repeat(low @ np.asarray([[0.299], [0.587], [0.114]], dtype=np.float32), 3, axis=2)
    low = blur(low, drawn.sigma_x * unit, drawn.sigma_y * unit, drawn.angle)
    small = (max(4, round(height / drawn.ratio)), max(4, round(width / drawn.ratio)))
    low = resize(low, small, Image.Resampling.BILINEAR)
    noise = generator.standard_normal(low.shape, dtype=np.float32) * (drawn.noise / 255)
    if drawn.gray:
        noise = np.repeat(noise[..., :1], 3, axis=2)
    low = np.clip(low + noise, 0.0, 1.0)
    buffer = io.BytesIO()
    Image.fromarray((low * 255 + 0.5).astype(np.uint8)).save(buffer, "JPEG", quality=drawn.quality)
    low = np.asarray(Image.open(buffer).convert("RGB")).astype(np.float32) / np.float32(255)
    return np.clip(resize(low, (height, width), Image.Resampling.BICUBIC), 0.0, 1.0)


def degrade(image: Array, generator: np.random.Generator, severity: str = "full") -> tuple[Array, Drawn]:
    """Draw a degradation of ``severity`` and apply it. Returns the degraded image and what was drawn."""
    drawn = draw(generator, SEVERITIES[severity])
    return apply(image, drawn, generator), drawn
