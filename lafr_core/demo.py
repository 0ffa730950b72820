"""The demo: one public-domain portrait, made bad with a fixed seed, restored, measured and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import degrade, imagefile, metrics
from .crop import crop, place
from .errors import MissingPackageError
from .files import atomic
from .geometry import scale_of
from .identity import cosine
from .imagefile import Photo
from .pipeline import Parts, Restoration, restore_faces
from .settings import RestoreSettings
from .sheet import Row, sheet
from .starter import describe
from .types import Face

SEED = 2025
# Where the face is in the portrait, to measure the same pixels before and after; the restoration must find it by itself.
ASTRONAUT = Face(
    box=(178.0, 60.0, 270.0, 177.0),
    landmarks=((202.5, 101.5), (247.7, 103.0), (224.6, 128.7), (203.0, 141.3), (244.7, 142.0)),
    score=1.0,
)


def portrait() -> Tensor:
    """Eileen Collins, NASA 1999, as scikit-image carries it: (3, 512, 512) in [0, 1]. Raises MissingPackageError without it."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingPackageError(f"the demo's portrait comes with scikit-image ({error}); pip install scikit-image") from error
    return torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 255


def spoil(photo: Tensor, face: Face, severity: str) -> Tensor:
    """``photo`` (3, H, W) degraded so that ``face``, seen at the size of a 512 crop, suffers ``severity``. Always the same."""
    generator = np.random.default_rng(SEED)
    drawn = degrade.draw(generator, degrade.SEVERITIES[severity])
    matrix = place(face).matrix
    assert matrix is not None
    # The severities are defined for 512 crops; this face covers fewer pixels, so blur and shrinking get smaller alike.
    k = scale_of(matrix) * min(photo.shape[-2:]) / 512
    drawn = replace(drawn, sigma_x=drawn.sigma_x / k, sigma_y=drawn.sigma_y / k, ratio=max(1.0, drawn.ratio / k))
    spoilt = degrade.apply(photo.permute(1, 2, 0).numpy(), drawn, generator)
    return torch.from_numpy(spoilt).permute(2, 0, 1).contiguous()


def run_demo(out: Path, parts: Parts, settings: RestoreSettings, severity: str) -> Restoration:
    """Degrade, restore, write four pictures into ``out``, print the figures. Returns the restoration."""
    original = portrait()
    before = spoil(original, ASTRONAUT, severity)
    result = restore_faces(before[None], parts, settings)
    after = result.images[0]
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in (("original", original), ("before", before), ("after", after)):
        imagefile.write(out / f"{name}.png", Photo(picture))
    versions = (before, after, original)
    x0, y0, x1, y1 = ASTRONAUT.box
    rows = [
        Row(f"astronaut, {severity}", versions, focus=((x0 + x1) / 2, (y0 + y1) / 2)),
        Row("the face, 512 pixels wide", tuple(crop(version, place(ASTRONAUT)) for version in versions), focus=(255.5, 290.0)),
    ]
    page = sheet(("before", "after", "original"), rows)
    with atomic(out / "sheet.png") as temporary:
        page.save(temporary, format="PNG")
    print(f"{len(result.faces)} face(s) found by {parts.detector.name} on {describe(parts.device)}")
    print(figures(before, after, original, parts))
    print(f"pictures: {out}/before.png, after.png, original.png, sheet.png")
    return result


def figures(before: Tensor, after: Tensor, original: Tensor, parts: Parts) -> str:
    """A table: PSNR, SSIM and identity of the face crop against the original's, before and after."""
    face = place(ASTRONAUT)
    truth = crop(original, face)[None]
    lines = [f"{'face crop':10}{'PSNR dB':>10}{'SSIM':>10}{'identity':>10}"]
    for name, picture in (("before", before), ("after", after)):
        seen = crop(picture, face)[None]
        identity = "-"
        if parts.embedder is not None:
            identity = f"{cosine(parts.embedder, seen.to(parts.device), truth.to(parts.device))[0]:.3f}"
        lines.append(f"{name:10}{float(metrics.psnr(seen, truth)):10.2f}{float(metrics.ssim(seen, truth)):10.4f}{identity:>10}")
    return "\n".join(lines)
