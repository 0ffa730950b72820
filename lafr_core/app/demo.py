"""The demo: the repository's CC0 portrait, made bad with a fixed seed, restored, measured and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..faces.crop import crop, place
from ..faces.identity import cosine
from ..geometry import scale_of
from ..images import degrade, metrics, photos
from ..images.photos import Photo
from ..images.sheet import Row, sheet
from ..models import device_name
from ..pipeline import RestoredBatch, restore_faces
from ..settings import RestoreSettings
from ..store.assets import sample
from ..store.outputs import Outputs
from ..types import Face, Models
from .output import save_png
from .terminal import show

SEED = 2025
PICTURES = ("original.png", "before.png", "after.png", "sheet.png")
"""What the demo writes."""

# Where the face is in the portrait, to measure the same pixels before and after; the restoration must find it by itself.
PORTRAIT = Face(
    box=(225.3, 121.5, 424.9, 359.6),
    landmarks=((271.1, 206.3), (375.5, 197.5), (331.3, 267.8), (283.9, 299.8), (380.3, 292.6)),
    score=1.0,
)


def portrait() -> Tensor:
    """The repository's portrait of a person who does not exist (lafr_core/samples): (3, 640, 640) in [0, 1]."""
    return photos.read(sample("portrait")).pixels


def spoil(photo: Tensor, face: Face, severity: str, frame: int = 0) -> Tensor:
    """``photo`` (3, H, W) degraded so that ``face``, seen at the size of a 512 crop, suffers ``severity``. Always the same;
    another ``frame`` of a clip suffers the same blur, shrinking and compression under other noise."""
    generator = np.random.default_rng(SEED)
    drawn = degrade.draw(generator, degrade.SEVERITIES[severity])
    matrix = place(face).matrix
    assert matrix is not None
    # The severities are defined for 512 crops; this face covers fewer pixels, so blur and shrinking get smaller alike.
    k = scale_of(matrix) * min(photo.shape[-2:]) / 512
    drawn = replace(drawn, sigma_x=drawn.sigma_x / k, sigma_y=drawn.sigma_y / k, ratio=max(1.0, drawn.ratio / k))
    noise = np.random.default_rng((SEED, frame)) if frame else generator
    spoilt = degrade.apply(photo.permute(1, 2, 0).numpy(), drawn, noise)
    return torch.from_numpy(spoilt).permute(2, 0, 1).contiguous()


def run_demo(out: Path, models: Models, settings: RestoreSettings, severity: str, outputs: Outputs) -> RestoredBatch:
    """Degrade, restore, write PICTURES into ``out``, print the figures. Returns the restoration."""
    original = portrait()
    before = spoil(original, PORTRAIT, severity)
    result = restore_faces(before[None], models, settings)
    after = result.images[0]
    for name, picture in (("original", original), ("before", before), ("after", after)):
        save_png(outputs, out / f"{name}.png", photos.to_pil(Photo(picture)))
    versions = (before, after, original)
    x0, y0, x1, y1 = PORTRAIT.box
    rows = [
        Row(f"portrait, {severity}", versions, focus=((x0 + x1) / 2, (y0 + y1) / 2)),
        Row("the face, 512 pixels wide", tuple(crop(version, place(PORTRAIT)) for version in versions), focus=(255.5, 290.0)),
    ]
    page = sheet(("before", "after", "original"), rows)
    save_png(outputs, out / "sheet.png", page)
    show(f"{len(result.faces)} face(s) found by {models.detector.name} on {device_name(models.device)}")
    show(*figures(before, after, original, models))
    show(f"pictures: {out}/before.png, after.png, original.png, sheet.png")
    return result


def figures(before: Tensor, after: Tensor, original: Tensor, models: Models) -> list[str]:
    """A table, line by line: PSNR, SSIM and identity of the face crop against the original's, before and after."""
    face = place(PORTRAIT)
    truth = crop(original, face)[None]
    lines = [f"{'face crop':10}{'PSNR dB':>10}{'SSIM':>10}{'identity':>10}"]
    for name, picture in (("before", before), ("after", after)):
        seen = crop(picture, face)[None]
        identity = "-"
        if models.embedder is not None:
            identity = f"{cosine(models.embedder, seen.to(models.device), truth.to(models.device))[0]:.3f}"
        lines.append(f"{name:10}{float(metrics.psnr(seen, truth)):10.2f}{float(metrics.ssim(seen, truth)):10.4f}{identity:>10}")
    return lines
