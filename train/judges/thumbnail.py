"""Latents to a small picture, at a hundredth of a decoder's cost: what an identity network needs to see of every sample.

Identity networks look at 112 pixels; decoding a whole face at 512 to shrink it again made a training step three times as long.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import CheckpointError

SHRINK = 4
"""Crop pixels along the side of a thumbnail's pixel."""


class ThumbnailNet(nn.Module):
    """UNet-scaled latents (B, channels, h, w) -> (B, 3, 2h, 2w), about [0, 1]: the decoded picture, shrunk four times."""

    def __init__(self, channels: int = 4, width: int = 64) -> None:
        super().__init__()
        self.config = {"channels": channels, "width": width}
        conv = lambda a, b: nn.Conv2d(a, b, 3, padding=1)
        self.straight = conv(channels, 12)
        self.layers = nn.Sequential(
            conv(channels, width), nn.SiLU(), conv(width, width), nn.SiLU(), conv(width, width), nn.SiLU(), conv(width, 12)
        )

    def forward(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(self.straight(latents) + self.layers(latents), 2) * 0.5 + 0.5


def shrunk(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H/4, W/4): what a thumbnail is held to."""
    return F.avg_pool2d(pixels, SHRINK)


def open_thumbnail(path: Path) -> ThumbnailNet:
    """The network of ``path``, frozen. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the thumbnail network there; train it with python -m train thumbnail")
    try:
        tensors = load_file(path)
        width, channels = tensors["layers.0.weight"].shape[:2]
        network = ThumbnailNet(int(channels), int(width))
        network.load_state_dict(tensors, strict=True)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a thumbnail network ({error}); train it with python -m train thumbnail") from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
