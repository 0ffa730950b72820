"""Train the starter detector's finder on composites of portraits (train.data.composites).

    python -m train detector --config train/configs/starter_detector.yaml --data.source FACES
    python -m train closeup --config train/configs/starter_closeup.yaml --data.source FACES --finder runs/.../finder.safetensors

FACES is a folder with faces.csv (portraits and their landmarks). The last step's averaged weights become ``finder.safetensors``
beside the checkpoints; train.tasks.closeup adds the second look and makes it a detector, train.tasks.landmarks the last look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.faces.networks.detector import Predictions, StarterDetectorNet, fold
from lafr_core.store import checkpoint
from train.config import Config
from train.data.composites import Library, open_library, sample
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, seeded
from train.engine.run import command

MAX_FACES = 16
"""As many faces of a composite are taught at most."""


class Composites:
    """Stream position -> pixels (3, S, S), boxes (16, 4), points (16, 5, 2) and kind (16,): 1 face, 0 unsure, -1 none."""

    def __init__(self, config: Config, library: Library) -> None:
        self.config, self.data, self.library, self.pictures = config, config.data, library, library.pictures

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        g = np.random.default_rng([self.config.seed, 3, position])
        array, faces = sample(g, self.library, self.config.detector.canvas, self.data.flip)
        boxes, points, kind = torch.zeros(MAX_FACES, 4), torch.zeros(MAX_FACES, 5, 2), torch.full((MAX_FACES,), -1.0)
        for row, face in enumerate(faces[:MAX_FACES]):
            boxes[row], points[row], kind[row] = torch.tensor(face.box), torch.tensor(face.landmarks), float(face.certain)
        pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        return {"pixels": pixels, "boxes": boxes, "points": points, "kind": kind}


# --- loss ------------------------------------------------------------------------------------------------------------

LEVEL_SIZES = {8: (0.0, 56.0), 16: (36.0, 120.0), 32: (80.0, 1e9)}
"""Which face sizes each stride is taught; they overlap, so that a face between two levels is found by both."""


def assign(centres: Tensor, strides: Tensor, boxes: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Which face each cell answers for: (B, N) index or -1, and (B, N) True where the cell is left out of the loss.

    A cell is taught a face of its level's size when it lies near the middle of its box; of several the smallest face wins.
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = (boxes[..., 2:] - boxes[..., :2]).amax(-1)  # (B, M)
    away = (centres[None, None] - middle[:, :, None]).abs().amax(-1)  # (B, M, N)
    reach = torch.minimum(torch.maximum(0.3 * size[..., None], 0.51 * strides), 1.25 * strides)
    low, high = torch.tensor([LEVEL_SIZES[int(s)] for s in strides], device=strides.device).unbind(1)
    near = (away <= reach) & (size[..., None] >= low) & (size[..., None] <= high)
    taught = near & (kind[..., None] == 1)
    cost = torch.where(taught, size[..., None], torch.inf)
    best, index = cost.min(dim=1)
    index = torch.where(torch.isfinite(best), index, -1)
    inside = (centres >= boxes[..., None, :2]).all(-1) & (centres <= boxes[..., None, 2:]).all(-1)
    unsure = (inside & (kind[..., None] == 0)).any(1) & (index < 0)
    return index, unsure


def giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of paired boxes (N, 4)."""
    area = lambda t: (t[:, 2:] - t[:, :2]).clamp(min=0).prod(-1)
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = area(a) + area(b) - common
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    iou = common / union.clamp(min=1e-6)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


def losses(out: Predictions, boxes: Tensor, points: Tensor, kind: Tensor) -> dict[str, Tensor]:
    """score: quality focal loss (Li et al. 2020) towards 0.5 + IoU/2; box: 1 - GIoU; landmarks: error per eye distance."""
    index, unsure = assign(out.centres, out.strides, boxes, kind)
    rows, cols = torch.nonzero(index >= 0, as_tuple=True)
    which = index[rows, cols]
    count = max(1, len(rows))
    target = torch.zeros_like(out.logits)
    zero = out.logits.sum() * 0
    box_loss, point_loss = zero, zero
    if len(rows):
        truth = boxes[rows, which]
        iou, generalised = giou(out.boxes[rows, cols], truth)
        target[rows, cols] = 0.5 + 0.5 * iou.detach().clamp(0, 1)
        box_loss = (1 - generalised).mean()
        eyes = 0.33 * (truth[:, 2:] - truth[:, :2]).amax(-1)
        error = (out.landmarks[rows, cols] - points[rows, which]).norm(dim=-1) / eyes[:, None]
        point_loss = error.mean()
    score = out.logits.sigmoid()
    focal = F.binary_cross_entropy_with_logits(out.logits, target, reduction="none") * (target - score.detach()).abs() ** 2
    return {"score": focal.masked_fill(unsure, 0.0).sum() / count, "box": box_loss, "landmarks": point_loss}


WEIGHTS = {"score": 1.0, "box": 1.0, "landmarks": 3.0}


class FinderTask(NetworkTask):
    """Cells of the three levels learn which face they answer for, its box and its landmarks."""

    name = "detector"

    def __init__(self, config: Config) -> None:
        with seeded(config.seed):
            super().__init__(StarterDetectorNet(norm=True))

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = model(batch["pixels"].contiguous(memory_format=torch.channels_last))
        parts = losses(out, batch["boxes"], batch["points"], batch["kind"])
        return {name: WEIGHTS[name] * part for name, part in parts.items()}


def run(config: Config) -> Path:
    """Train the finder and write it beside its checkpoints; returns the file."""
    task = FinderTask(config)
    last = train(task, config.detector, config, Composites(config, open_library(config.data)))
    task.load_weights(averaged(checkpoints.load_state(last)))
    finder = fold(cast(StarterDetectorNet, task.model))
    notes = {
        "licence": "MIT, trained on CC0-1.0 and official US government portraits only",
        "training_data": "faces/train: 624 portraits (faker-js, CivilServiceUSA); scikit-image pictures without faces",
        "command": f"python -m train detector --config train/configs/{config.name}.yaml",
        "seed": str(config.seed),
        "revision": checkpoints.revision(),
        "use": "finds faces to restore; not for identification or surveillance",
    }
    path = last.parent / "finder.safetensors"
    checkpoint.save(path, "detector", finder, finder.config, notes)
    return path


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
