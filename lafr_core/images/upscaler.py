"""Photos made larger by a trained network of the user's: any architecture that spandrel knows, a tile at a time."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CheckpointError, MissingPackageError
from ..types import from_unit, to_unit
from .formats import regular_file

TILE = 256
"""Side of the parts of a photo that the network sees at a time, in pixels: bounds memory."""

MARGIN = 32
"""How far the network sees beyond a tile, so that tiles fit together without a seam."""


class Upscaler:
    """A network that enlarges, as :func:`.enlarge.enlarged` takes it."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self.network, self.device = network, device

    @torch.no_grad()
    def __call__(self, planes: Tensor, factor: int) -> Tensor:
        """(1 or 3, H, W) uint8, uint16 or float in [0, 1] -> (C, factor*H, factor*W) of the same dtype.

        A network of another scale than ``factor`` is followed by an interpolation, tile by tile.
        """
        channels, height, width = planes.shape
        large = torch.empty((channels, factor * height, factor * width), dtype=planes.dtype)
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                bottom, right = min(top + TILE, height), min(left + TILE, width)
                y0, x0 = max(0, top - MARGIN), max(0, left - MARGIN)
                seen = planes[:, y0 : min(bottom + MARGIN, height), x0 : min(right + MARGIN, width)]
                made = self._tile(to_unit(seen), factor)
                part = made[:, factor * (top - y0) : factor * (bottom - y0), factor * (left - x0) : factor * (right - x0)]
                large[:, factor * top : factor * bottom, factor * left : factor * right] = from_unit(part, planes.dtype)
        return large

    def _tile(self, pixels: Tensor, factor: int) -> Tensor:
        """(1 or 3, h, w) float -> (1 or 3, factor*h, factor*w) float in [0, 1]."""
        wanted = self.network.input_channels
        shown = pixels.expand(wanted, -1, -1) if len(pixels) == 1 else pixels
        batch = shown[None] if wanted == len(shown) else shown[:, None]  # a network of one channel sees one at a time
        made = torch.cat([self.network(picture[None].to(self.device)).float().cpu() for picture in batch])
        made = made.transpose(0, 1) if wanted == 1 else made
        size = (factor * pixels.shape[-2], factor * pixels.shape[-1])
        if tuple(made.shape[-2:]) != size:
            made = F.interpolate(made, size=size, mode="bicubic", antialias=True, align_corners=False)
        made = made.reshape(-1, *size).clamp(0, 1)
        return made.mean(0, keepdim=True) if len(pixels) == 1 else made


def open_upscaler(path: Path, device: torch.device) -> Upscaler:
    """The network in a .safetensors or .pth file, on ``device``. Nothing but tensors is read from either.

    Raises MissingPackageError without spandrel, CheckpointError for a file that it does not know or that does not enlarge.
    """
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
        from spandrel.__helpers.canonicalize import canonicalize_state_dict
    except ImportError as error:
        raise MissingPackageError('an upscaler needs spandrel: run pip install "lafr[upscale]"') from error
    if problem := regular_file(path):
        raise CheckpointError(f"{path}: {problem.replace('an image file', 'an upscaler')}")
    try:
        opened = ModelLoader(device).load_from_state_dict(canonicalize_state_dict(_tensors(path)))
    except pickle.UnpicklingError as error:  # torch explains over a page how to read it all the same
        raise CheckpointError(f"{path}: expected an upscaler's tensors, got other things; choose another file") from error
    except Exception as error:  # spandrel and the architectures raise what they like at a file that is none of theirs
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: expected an upscaler that spandrel knows ({said}); choose another file") from error
    if not isinstance(opened, ImageModelDescriptor) or opened.scale < 2 or opened.input_channels not in (1, 3):
        raise CheckpointError(f"{path}: expected a network that enlarges RGB or gray pictures, got one that does not")
    opened.model.eval().requires_grad_(False)
    return Upscaler(opened, device)


def _tensors(path: Path) -> Any:
    """A file's state dict; pickles are read as tensors and plain values only."""
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(path))
    return torch.load(path, map_location="cpu", weights_only=True)
