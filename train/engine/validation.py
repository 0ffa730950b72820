"""What a run is worth while it trains: held-out faces, always the same ones in the same state, restored and compared."""

from __future__ import annotations

import math
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

SIDE = 512
"""Pixels along the side of the crops that the starter embedder knows."""


class Judge:
    """Scores a task's restored pictures: psnr (dB), ssim, identity (cosine by the starter embedder), sharpness.

    sharpness is the log of the edge energy over the original's, with a minus sign where it is too much: 0 is right, below is
    wrong either way. Higher is better in every column.
    """

    def __init__(self, faces: Faces, count: int) -> None:
        self.faces = faces
        by_picture = sorted((faces.locate(position)[1], position) for position in range(len(faces)))
        self.positions = [position for _, position in by_picture[:count]]
        self.embed: Any = None

    @torch.no_grad()
    def __call__(self, task: Any, device: torch.device) -> dict[str, float]:
        """The means over the faces; {} for a task that shows nothing."""
        rows: list[dict[str, float]] = []
        for position in self.positions:
            batch = {name: value.to(device) for name, value in default_collate([self.faces[position]]).items()}
            restored = task.sample(batch)
            if restored is None:
                return {}
            restored, sharp = restored.float().clamp(0, 1), batch["hq"].float()
            energy = float((edge_energy(restored) + 1e-6).log() - (edge_energy(sharp) + 1e-6).log())
            rows.append(
                {
                    "psnr": float(psnr(restored, sharp)),
                    "ssim": float(ssim(restored, sharp)),
                    "identity": self.likeness(restored, sharp),
                    "sharpness": -abs(energy),
                }
            )
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def likeness(self, restored: Tensor, sharp: Tensor) -> float:
        """Cosine of the starter embedder's vectors; NaN where there is no embedder."""
        if self.embed is None:
            try:
                self.embed = open_embedder(None, restored.device) or False
            except LafrError:
                self.embed = False
        if self.embed is False:
            return math.nan
        large = [F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False) for x in (restored, sharp)]
        a, b = (self.embed(x).float() for x in large)
        return float(F.cosine_similarity(a, b, dim=1).mean())
