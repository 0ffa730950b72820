"""A patch critic on latents: tells restored latents from those of sharp pictures, at a fraction of the cost of one on pixels.

Isola et al. 2017 (arXiv 1611.07004, section 3.2.2) for judging patches, Miyato et al. 2018 (arXiv 1802.05957) for spectral
normalisation, Lim and Ye 2017 (arXiv 1705.02894) for the hinge losses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class LatentCritic(nn.Module):
    """Latents (B, C, h, w) -> scores (B, 1, h/4, w/4), high for sharp; each sees about 21 x 21 cells of an aligned face."""

    def __init__(self, channels: int = 4, width: int = 64) -> None:
        super().__init__()
        sizes = ((channels + 2, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1))
        self.layers = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 3, stride=s, padding=1)) for a, b, s in sizes)
        self.out = spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        return self.with_features(latents)[0]

    def with_features(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores and the activations of every layer."""
        b, _, h, w = latents.shape
        # Where a cell lies says what belongs there: eyes, teeth and hair have textures of their own.
        ys = torch.linspace(-1, 1, h).to(latents).view(1, 1, h, 1).expand(b, 1, h, w)
        xs = torch.linspace(-1, 1, w).to(latents).view(1, 1, 1, w).expand(b, 1, h, w)
        x = torch.cat([latents, ys, xs], dim=1)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.out(x), features


def critic_loss(critic: LatentCritic, restored: Tensor, sharp: Tensor) -> Tensor:
    """Hinge loss of the critic; no gradient reaches the restored latents."""
    fake, real = critic(torch.cat([restored.detach(), sharp])).float().chunk(2)
    return F.relu(1 + fake).mean() + F.relu(1 - real).mean()


def restorer_losses(critic: LatentCritic, restored: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
    """What the restorer minimises: minus the critic's score, and the relative L1 between the critic's activations."""
    scores, ours = critic.with_features(restored)
    with torch.no_grad():
        _, theirs = critic.with_features(sharp)
    pairs = list(zip(ours, theirs, strict=True))
    matching = torch.stack([F.l1_loss(a.float(), b.float()) / b.float().abs().mean().clamp_min(1e-6) for a, b in pairs])
    return -scores.float().mean(), matching.mean()
