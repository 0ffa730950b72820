"""The starter detector: our own weights, in the repository."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...geometry import crop_bounds, invert, similarity, transform
from ...store import checkpoint
from ...types import Face, Matrix, Point
from ..boxes import Landmarks, face_box, five, merge, mirror, suppress, usable
from ..networks import closeup
from ..networks.detector import Predictions, StarterNets
from ..networks.landmarks import template as tight_template
from ..resample import resample

LEVEL_STEP = 4
"""Each pyramid level is this many times smaller than the one before."""

SMALLEST_LEVEL = 64
"""No level is made whose longer side would be below this."""

CANDIDATES = 100
"""At most this many candidates of the finder get a second look."""

MOVES = ((0.0, 0.0, 1.0), (0.12, 0.0, 1.0), (-0.12, 0.0, 1.0), (0.0, 0.12, 1.0), (0.0, -0.12, 1.0), (0.0, 0.0, 1.15),
         (0.0, 0.0, 0.87))  # fmt: skip
"""How a face is looked at once more, (right, down, size) in eye distances: it stays a face when the close-up is a little off;
what merely looks like one from one place does not."""

STEADY = (0.0, 2.0)
"""The worst log odds of these looks, of a face or none, from which nothing and from which all of the score stands."""

VAGUE = (4.3, 4.0)
"""The vagueness of the last look's landmarks (:class:`..networks.landmarks.Seen`), likewise."""


class StarterDetector:
    """The starter networks as a :class:`~lafr_core.types.Detector`: find candidates, then look at each of them more closely.

    The finder knows faces of 8 to about 200 pixels, so it sees the image and quarter-size copies of it. Every candidate is
    turned upright into a small close-up (twice, the second time with the better landmarks of the first), where a second network
    finds the landmarks and says whether it is a face. The score is the geometric mean of both networks' scores. Of what counts
    as a face, a third network sees a tighter close-up and has the last word on the landmarks. What stands so far is looked at
    again from about there: where the second network wavers or the third sees no landmark clearly, the score falls.
    """

    name = "starter"

    def __init__(self, nets: StarterNets, device: torch.device) -> None:
        self.nets = nets.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.device = device

    @torch.no_grad()
    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        """(3, H, W) in [0, 1] -> faces with score >= threshold, best first."""
        image = image.to(self.device, torch.float32)
        found: list[Face] = []
        for level, scale in pyramid(image):
            # The geometric mean cannot reach the threshold when the finder's score is below its square.
            found += self.candidates(level, scale, threshold**2)
        faces = self.closer(image, [face for face in merge(found) if usable(face)][:CANDIDATES])
        found = self.exact(image, merge([face for face in faces if face.score >= threshold]))
        return sorted((face for face in found if face.score >= threshold), key=lambda face: -face.score)

    def candidates(self, level: Tensor, scale: tuple[float, float], threshold: float) -> list[Face]:
        """What the finder takes for faces on one pyramid level, in image pixels; ``scale`` is level pixels per image pixel."""
        out = self._find(level[None])
        scores = out.logits[0].sigmoid()
        chosen = torch.nonzero(scores >= threshold)[:, 0]
        chosen = chosen[suppress(out.boxes[0, chosen], scores[chosen])]
        size = torch.tensor(scale, device=scores.device)
        boxes = (out.boxes[0, chosen].unflatten(-1, (2, 2)) + 0.5) / size - 0.5
        landmarks = (out.landmarks[0, chosen] + 0.5) / size - 0.5
        return [
            Face((box[0], box[1], box[2], box[3]), five(points), score)
            for box, points, score in zip(boxes.flatten(1).tolist(), landmarks.tolist(), scores[chosen].tolist(), strict=True)
        ]

    def closer(self, image: Tensor, faces: list[Face]) -> list[Face]:
        """The candidates with landmarks, box and score corrected by the second network."""
        if not faces:
            return []
        seen = [face.landmarks for face in faces]
        for _ in range(2):
            matrices, crops = close_ups(image, seen, closeup.template())
            out = self.nets.close_up(crops)
            seen = unmirrored(out.landmarks, matrices)
        scores = out.logits.unflatten(0, (2, -1)).mean(0).sigmoid().tolist()
        return [
            Face(face_box(points), points, (face.score * score) ** 0.5)
            for face, points, score in zip(faces, seen, scores, strict=True)
        ]

    def exact(self, image: Tensor, faces: list[Face]) -> list[Face]:
        """The faces with landmarks and box corrected by the third network, and with what their scores are worth after another
        look at them; as they are where the file holds no third network."""
        if not faces or self.nets.landmarks is None:
            return faces
        matrices, crops = close_ups(image, [face.landmarks for face in faces], tight_template())
        found = self.nets.landmarks(crops)
        seen = unmirrored(found.landmarks, matrices)
        vague = found.vagueness.unflatten(0, (2, -1)).mean(0)
        support = (ramp(self.steadiness(image, seen), *STEADY) * ramp(vague, *VAGUE)).tolist()
        return [
            Face(face_box(points), points, face.score * share) for face, points, share in zip(faces, seen, support, strict=True)
        ]

    def steadiness(self, image: Tensor, seen: Sequence[Landmarks]) -> Tensor:
        """(N,): the worst log odds that the second network gives N faces, looked at as :data:`MOVES` say; each look is the mean
        of the picture and its mirror image."""
        moved = [moved_by(points, move) for move in MOVES for points in seen]
        _, crops = close_ups(image, moved, closeup.template())
        logits: Tensor = self.nets.close_up(crops).logits
        return logits.view(2, len(MOVES), len(seen)).mean(0).amin(0)

    def _find(self, pixels: Tensor) -> Predictions:
        """The finder on pixels (B, 3, H, W) of any size: gray is added at the right and below up to multiples of 32."""
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (0, -width % 32, 0, -height % 32), value=0.5)
        found: Predictions = self.nets.finder(padded.contiguous(memory_format=torch.channels_last))
        return found


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


def moved_by(points: Landmarks, move: tuple[float, float, float]) -> Landmarks:
    """The landmarks moved right and down by shares of the eye distance and made larger about their middle."""
    right, down, size = move
    middle = tuple(sum(point[axis] for point in points) / len(points) for axis in (0, 1))
    eyes = math.dist(points[0], points[1])
    return five(
        ((x - middle[0]) * size + middle[0] + right * eyes, (y - middle[1]) * size + middle[1] + down * eyes) for x, y in points
    )


def ramp(values: Tensor, none: float, all_: float) -> Tensor:
    """0 at ``none`` and beyond, 1 at ``all_`` and beyond, straight between."""
    return ((values - none) / (all_ - none)).clamp(0, 1)


def close_ups(image: Tensor, guesses: Sequence[Landmarks], target: Sequence[Point]) -> tuple[list[Matrix], Tensor]:
    """What puts ``target`` on each of N guesses (close-up -> image), and 2 N close-ups: as seen, then their mirror images."""
    matrices = [similarity(target, guess) for guess in guesses]
    crops = torch.stack([close_up(image, matrix) for matrix in matrices])
    return matrices, torch.cat([crops, crops.flip(-1)]).contiguous(memory_format=torch.channels_last)


def unmirrored(found: Tensor, matrices: Sequence[Matrix]) -> list[Landmarks]:
    """Landmarks in the image: the mean of what each close-up and its mirror image show, ``found`` (2 N, 5, 2)."""
    straight, seen = found.chunk(2)
    means = ((straight + mirror(seen, closeup.SIDE)) / 2).tolist()
    return [five(transform(matrix, points)) for matrix, points in zip(matrices, means, strict=True)]


def close_up(image: Tensor, matrix: Matrix) -> Tensor:
    """The close-up (3, 64, 64) of an image (3, H, W); ``matrix`` maps close-up to image. Costs what the face is large."""
    height, width = image.shape[-2:]
    x0, y0, x1, y1 = crop_bounds(invert(matrix), (height, width), closeup.SIDE)
    x0, y0 = min(x0, width - 1), min(y0, height - 1)  # wholly outside: the nearest border pixels are all there is
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    (a, b, c), (d, e, f) = matrix
    return resample(image[:, y0:y1, x0:x1], ((a, b, c - x0), (d, e, f - y0)), (closeup.SIDE, closeup.SIDE), mode="bilinear")


def open_starter(path: Path, device: torch.device) -> StarterDetector:
    """The starter detector from a LAFR detector file. Raises CheckpointError when the file is not one."""
    return StarterDetector(checkpoint.open_network(path, "detector", StarterNets), device)
