"""The starter detector: our own weights, in the repository."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checkpoint
from ..boxes import merge, suppress
from ..errors import CheckpointError
from ..geometry import FFHQ_TEMPLATE, similarity, transform
from ..networks.detector import Predictions, StarterDetectorNet
from ..resample import resample
from ..types import Face, Matrix, Point

LEVEL_STEP = 4
"""Each pyramid level is this many times smaller than the one before."""

SMALLEST_LEVEL = 64
"""No level is made whose longer side would be below this."""

CLOSE_UP = 96
"""Side of the crops on which landmarks are found a second time."""


class StarterDetector:
    """StarterDetectorNet as a :class:`~lafr_core.types.Detector`.

    The network knows faces of 8 to about 200 pixels, so it sees the image and quarter-size copies of it. Every face found is
    then looked at once more in a small upright crop, which makes the landmarks of small, big and turned faces equally exact.
    """

    name = "starter"

    def __init__(self, network: StarterDetectorNet, device: torch.device, *, refine: bool = True) -> None:
        self.network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.device = device
        self.refine = refine

    @torch.no_grad()
    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        """(3, H, W) in [0, 1] -> faces with score >= threshold, best first."""
        image = image.to(self.device, torch.float32)
        found: list[Face] = []
        for level, scale in pyramid(image):
            found += self._faces(level, scale, threshold)
        faces = merge(found)
        return merge(self._refined(image, faces)) if self.refine and faces else faces

    def _predict(self, pixels: Tensor) -> Predictions:
        """The network on pixels (B, 3, H, W) of any size: gray is added at the right and below up to multiples of 32."""
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (0, -width % 32, 0, -height % 32), value=0.5)
        return self.network(padded.contiguous(memory_format=torch.channels_last))

    def _faces(self, level: Tensor, scale: tuple[float, float], threshold: float) -> list[Face]:
        """Faces of one pyramid level, in pixels of the image; ``scale`` (x, y) is level pixels per image pixel."""
        out = self._predict(level[None])
        scores = out.logits[0].sigmoid()
        chosen = torch.nonzero(scores >= threshold)[:, 0]
        chosen = chosen[suppress(out.boxes[0, chosen], scores[chosen])]
        size = torch.tensor(scale, device=scores.device)
        boxes = (out.boxes[0, chosen].unflatten(-1, (2, 2)) + 0.5) / size - 0.5
        landmarks = (out.landmarks[0, chosen] + 0.5) / size - 0.5
        return [
            _face(box, points, score)
            for box, points, score in zip(boxes.flatten(1).tolist(), landmarks.tolist(), scores[chosen].tolist(), strict=True)
        ]

    def _refined(self, image: Tensor, faces: list[Face]) -> list[Face]:
        """The faces with landmarks found again in upright close-ups, where that second look finds the same face."""
        target = close_up_template()
        matrices: list[Matrix] = [similarity(target, face.landmarks) for face in faces]  # close-up -> image
        crops = torch.stack([resample(image, m, (CLOSE_UP, CLOSE_UP), mode="bilinear") for m in matrices])
        refined = []
        for start in range(0, len(faces), 32):
            out = self._predict(crops[start : start + 32])
            best = _nearest(out, target)
            for row, (face, matrix) in enumerate(zip(faces[start : start + 32], matrices[start : start + 32], strict=True)):
                cell = int(best[row])
                if out.logits[row, cell].sigmoid() > 0.3 * face.score:
                    points = transform(matrix, [(float(x), float(y)) for x, y in out.landmarks[row, cell].tolist()])
                    face = _face(face.box, points, face.score)
                refined.append(face)
        return refined


def pyramid(image: Tensor) -> list[tuple[Tensor, tuple[float, float]]]:
    """The image (3, H, W) and its quarter-size copies, each with its scale (x, y) in level pixels per image pixel."""
    height, width = image.shape[-2:]
    levels = [(image, (1.0, 1.0))]
    shrink = LEVEL_STEP
    while max(height, width) / shrink >= SMALLEST_LEVEL:
        size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
        small = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        levels.append((small, (size[1] / width, size[0] / height)))
        shrink *= LEVEL_STEP
    return levels


def close_up_template() -> list[Point]:
    """The five landmarks in a close-up: the template's face in the middle, as high as two thirds of the crop."""
    scale = CLOSE_UP * 0.62 / 385.0
    middle = (CLOSE_UP - 1) / 2
    return [(middle + (x - 258.5) * scale, middle + (y - 284.5) * scale) for x, y in FFHQ_TEMPLATE]


def _nearest(out: Predictions, target: list[Point]) -> Tensor:
    """Per close-up (B,) the best scored cell among those that mean the face in the middle."""
    points = torch.tensor(target, device=out.logits.device)
    away = (out.landmarks - points).norm(dim=-1).mean(-1)  # (B, N)
    return torch.where(away < CLOSE_UP * 0.12, out.logits, -torch.inf).argmax(dim=1)


def _face(box: list[float] | tuple[float, ...], points: list[list[float]] | tuple[Point, ...], score: float) -> Face:
    a, b, c, d, e = ((float(x), float(y)) for x, y in points)
    x0, y0, x1, y1 = box
    return Face((x0, y0, x1, y1), (a, b, c, d, e), score)


def open_starter(path: Path, device: torch.device) -> StarterDetector:
    """The starter detector from a LAFR detector file. Raises CheckpointError when the file is not one."""
    loaded = checkpoint.load(path, "detector")
    try:
        network = StarterDetectorNet(**loaded.config)
    except TypeError as error:
        raise CheckpointError(f"{path}: its config does not describe a starter detector ({error}); export it again") from error
    checkpoint.restore_network(network, loaded, path)
    return StarterDetector(network, device)
