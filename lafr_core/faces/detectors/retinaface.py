"""facexlib's RetinaFace networks with our own reading of their output.

Only the network is taken from facexlib: its helper has a fixed threshold of 0.97, drops faces with eyes closer than 5 px,
downloads while loading and keeps a tensor on the wrong device. Priors and decoding follow RetinaFace (Deng et al. 2019).
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import CheckpointError, MissingPackageError
from ...store.assets import ASSETS, Asset, check
from ...types import Face
from ..boxes import five, merge, suppress

STRIDES = (8, 16, 32)
PRIOR_SIZES = ((16, 32), (64, 128), (256, 512))
VARIANCES = (0.1, 0.2)
MEAN_BGR = (104.0, 117.0, 123.0)

COMFORTABLE = 640
"""Faces that fill an image are found well up to about 700 px; a larger image is looked at once more at this longer side."""


@dataclass(frozen=True)
class Variant:
    """One published RetinaFace: facexlib's name of the network, and the names its weight file goes by, facexlib's own first."""

    network: str
    files: tuple[str, ...]

    @property
    def asset(self) -> Asset:
        """Digests and addresses of the weight file."""
        return ASSETS[self.files[0]]


VARIANTS: dict[str, Variant] = {
    "retinaface-mobile0.25": Variant("mobile0.25", ("detection_mobilenet0.25_Final.pth", "retinaface_mobile0.25.pth")),
    "retinaface-resnet50": Variant("resnet50", ("detection_Resnet50_Final.pth",)),
}


class RetinaFaceDetector:
    """A RetinaFace network as a :class:`~lafr_core.types.Detector`."""

    def __init__(self, name: str, network: nn.Module, device: torch.device) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device
        self.mean = torch.tensor(MEAN_BGR, device=device)[:, None, None]

    @torch.no_grad()
    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        """(3, H, W) in [0, 1] -> faces with score >= threshold, best first."""
        image = image.to(self.device, torch.float32)
        height, width = image.shape[-2:]
        found = self._faces(image, (1.0, 1.0), threshold)
        side = max(height, width)
        if side > COMFORTABLE * 1.1:
            size = (max(1, round(height * COMFORTABLE / side)), max(1, round(width * COMFORTABLE / side)))
            small = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
            found += self._faces(small, (size[1] / width, size[0] / height), threshold)
        return merge(found)

    def _faces(self, image: Tensor, scale: tuple[float, float], threshold: float) -> list[Face]:
        height, width = image.shape[-2:]
        # The three levels are added to each other at twice the size: multiples of 32 fit for every input.
        pixels = F.pad(image.flip(0) * 255 - self.mean, (0, -width % 32, 0, -height % 32))
        offsets, classes, points = self.network(pixels[None])
        priors = make_priors((pixels.shape[-2], pixels.shape[-1])).to(self.device)
        scores = classes[0, :, 1]
        chosen = torch.nonzero(scores >= threshold)[:, 0]
        boxes, landmarks = decode(offsets[0, chosen], points[0, chosen], priors[chosen])
        keep = suppress(boxes, scores[chosen])
        size = torch.tensor(scale, device=self.device)
        boxes = (boxes[keep].unflatten(-1, (2, 2)) + 0.5) / size - 0.5
        landmarks = (landmarks[keep] + 0.5) / size - 0.5
        return [
            Face((box[0], box[1], box[2], box[3]), five(points), score)
            for box, points, score in zip(
                boxes.flatten(1).tolist(), landmarks.tolist(), scores[chosen[keep]].tolist(), strict=True
            )
        ]


def make_priors(size: tuple[int, int]) -> Tensor:
    """Anchors (N, 4) as centre x, centre y, width, height in pixels for an input of ``size`` (h, w): two squares a cell."""
    rows = []
    for stride, sides in zip(STRIDES, PRIOR_SIZES, strict=True):
        height, width = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = (torch.stack([x, y], dim=-1).float() + 0.5) * stride
        level = [torch.cat([centres, torch.full_like(centres, float(side))], dim=-1) for side in sides]
        rows.append(torch.stack(level, dim=2).reshape(-1, 4))
    return torch.cat(rows)


def decode(offsets: Tensor, points: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
    """Network offsets (N, 4), (N, 10) and priors (N, 4) -> boxes (N, 4) and landmarks (N, 5, 2).

    Result in our convention, pixel centres at integers; the network's own has pixel edges there, hence the half pixel.
    """
    centre = priors[:, :2] + offsets[:, :2] * VARIANCES[0] * priors[:, 2:]
    half = priors[:, 2:] * torch.exp(offsets[:, 2:] * VARIANCES[1]) / 2
    boxes = torch.cat([centre - half, centre + half], dim=-1) - 0.5
    landmarks = priors[:, None, :2] + points.unflatten(-1, (5, 2)) * VARIANCES[0] * priors[:, None, 2:] - 0.5
    return boxes, landmarks


def open_retinaface(name: str, path: Path, device: torch.device) -> RetinaFaceDetector:
    """RetinaFace ``name`` (a key of VARIANTS) with the published weights at ``path``.

    The file is read as data only (weights_only) and only when its sha256 is the published one. Raises CheckpointError
    otherwise, MissingPackageError without facexlib.
    """
    variant = VARIANTS[name]
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected {variant.files[0]}, found no file there; check the path")
    check(path, variant.asset)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read as plain weights ({error}); get it again") from error
    return RetinaFaceDetector(name, load_network(variant.network, state, path), device)


def load_network(network: str, state: Mapping[str, Any], path: Path) -> nn.Module:
    """facexlib's RetinaFace ``network`` with the tensors of ``state``, ``module.`` prefixes dropped, loaded strictly."""
    try:
        from facexlib.detection.retinaface import RetinaFace
    except ImportError as error:
        raise MissingPackageError(
            f"RetinaFace needs facexlib, which cannot be imported ({error}); pip install facexlib, or use the starter"
        ) from error
    model: nn.Module = RetinaFace(network_name=network, device=torch.device("cpu"))
    try:
        model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=True)
    except (RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: tensors do not fit RetinaFace {network} ({error}); download it again") from error
    return model
