"""A patch critic on decoded windows: tells restored skin, hair and teeth from what the decoder makes of sharp latents.

Isola et al. 2017 (arXiv 1611.07004, section 3.2.2) for judging patches, Lim and Ye 2017 (arXiv 1705.02894) for hinge losses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchCritic(nn.Module):
    """Windows (B, 3, h, w) of decoded faces -> scores (B, 1, h/8, w/8), high for sharp; each sees about 42 pixels.

    ``places`` (B, 2, h/2, w/2) are the pixels' coordinates within the aligned face, -1 to 1: eyes, teeth and hair have textures
    of their own.
    """

    DETAIL = 8.0
    """Factor on what a 3x3 mean takes away, which is about as small beside the picture."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        sizes = ((26, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in sizes)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, a=0.2)  # type: ignore[arg-type]
        self.out = nn.Conv2d(4 * width, 1, 3, padding=1)

    def forward(self, windows: Tensor, places: Tensor) -> Tensor:
        detail = self.DETAIL * (windows - F.avg_pool2d(windows, 3, 1, 1, count_include_pad=False))
        x = torch.cat([F.pixel_unshuffle(windows * 2 - 1, 2), F.pixel_unshuffle(detail, 2), places], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.out(x)


def critic_loss(critic: PatchCritic, restored: Tensor, sharp: Tensor, places: Tensor) -> Tensor:
    """Hinge loss of the critic; no gradient reaches the restored windows."""
    fake, real = critic(torch.cat([restored.detach(), sharp]), torch.cat([places, places])).float().chunk(2)
    return F.relu(1 + fake).mean() + F.relu(1 - real).mean()


def restorer_loss(critic: PatchCritic, restored: Tensor, places: Tensor) -> Tensor:
    """What the restorer minimises: minus the critic's score."""
    return -critic(restored, places).float().mean()
