"""What a run is worth while it trains: held-out faces, always the same ones in the same state, restored and compared."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from lafr_core.errors import LafrError
from lafr_core.faces.identity import open_embedder
from lafr_core.images.metrics import psnr, ssim
from train.data.faces import Faces
from train.judges.losses import edge_energy
from train.judges.metrics import landmarks
from train.judges.niqe import BLOCK, Niqe

log = logging.getLogger("train.validation")
SIDE = 512
"""Pixels along the side of the crops that the starter embedder knows."""


COLUMNS = ("psnr", "ssim", "identity", "sharpness", "landmarks", "perceptual", "niqe")


class Judge:
    """Scores a task's restored pictures. Higher is better in every column: distances have a minus sign.

    psnr (dB); ssim; identity: cosine by the starter embedder; sharpness: log of the edge energy over the original's, 0 is
    right; landmarks: distance of the five points of the detector at hand, as a share of the eye distance; perceptual: distance
    of EfficientNet-Lite0's features of unit length, where its two packages are installed; niqe: NIQE, where log.niqe names its
    file.
    """

    def __init__(self, faces: Faces, count: int, niqe: str = "") -> None:
        self.faces = faces
        by_picture = sorted((faces.locate(position)[1], position) for position in range(len(faces)))
        self.positions = [position for _, position in by_picture[:count]]
        self.niqe = Niqe(Path(niqe)) if niqe else None
        self.opened: dict[str, Any] = {}

    @torch.no_grad()
    def __call__(self, task: Any, device: torch.device) -> dict[str, float]:
        """The means over the faces that a column could be measured on; NaN where it could on none. {} for a task that shows
        nothing.
        """
        rows: list[dict[str, float]] = []
        for position in self.positions:
            batch = {name: value.to(device) for name, value in default_collate([self.faces[position]]).items()}
            restored = task.sample(batch)
            if restored is None:
                return {}
            rows.append(self.row(restored.float().clamp(0, 1), batch["hq"].float()))
        return {name: _mean([row[name] for row in rows]) for name in COLUMNS}

    def row(self, restored: Tensor, sharp: Tensor) -> dict[str, float]:
        """One face's columns; pictures (1, 3, S, S)."""
        energy = float((edge_energy(restored) + 1e-6).log() - (edge_energy(sharp) + 1e-6).log())
        large = [F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False) for x in (restored, sharp)]
        return {
            "psnr": float(psnr(restored, sharp)),
            "ssim": float(ssim(restored, sharp)),
            "identity": self.likeness(*large),
            "sharpness": -abs(energy),
            "landmarks": -self.moved(*large),
            "perceptual": -self.unlike(*large),
            "niqe": -self.unnatural(restored),
        }

    def likeness(self, restored: Tensor, sharp: Tensor) -> float:
        """Cosine of the starter embedder's vectors; NaN where there is no embedder."""
        embed = self._open("embedder", lambda: open_embedder(None, restored.device))
        if embed is None:
            return math.nan
        a, b = (embed(x).float() for x in (restored, sharp))
        return float(F.cosine_similarity(a, b, dim=1).mean())

    def moved(self, restored: Tensor, sharp: Tensor) -> float:
        """Mean distance of the landmarks found in both, as a share of the eye distance; NaN where a face is not found."""
        measure = self._open("landmarks", lambda: landmarks(Path(".")).measure)
        return math.nan if measure is None else float(measure(restored.cpu(), sharp.cpu()))

    def unlike(self, restored: Tensor, sharp: Tensor) -> float:
        """Distance of Lite0's feature vectors, the critic's own; NaN without its packages."""
        from train.judges.projected import LiteFeatures, near  # which needs the run, which needs this

        lite = self._open("features", lambda: LiteFeatures().to(restored.device))
        return math.nan if lite is None else float(near(lite(restored), lite(sharp)))

    def unnatural(self, restored: Tensor) -> float:
        """NIQE; NaN without its file or on pictures smaller than its blocks."""
        small = min(restored.shape[-2:]) < BLOCK
        return math.nan if self.niqe is None or small else self.niqe(restored[0].cpu())

    def _open(self, name: str, how: Callable[[], Any]) -> Any:
        """The judging network called ``name``, opened once; None where it is not at hand."""
        if name not in self.opened:
            try:
                self.opened[name] = how()
            except LafrError as error:
                log.info("validation: no column %s (%s)", name, error)
                self.opened[name] = None
        return self.opened[name]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
