"""The starter identity embedder: a small residual network on 112x112 crops of the ArcFace template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .units import ConvUnit, ResidualUnit, fold_units

INPUT_SIDE = 112


class StarterEmbedderNet(nn.Module):
    """(B, 3, 112, 112) in [0, 1] -> unit vectors (B, dimensions). ``config`` rebuilds it."""

    def __init__(
        self,
        widths: Sequence[int] = (32, 48, 96, 112),
        depths: Sequence[int] = (1, 1, 2),
        dimensions: int = 128,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"widths": list(widths), "depths": list(depths), "dimensions": dimensions, "norm": norm}
        stem, *stages = widths
        layers: list[nn.Module] = [
            ConvUnit(12, stem, norm, stride=2)
        ]  # 28x28: faces are aligned, detail is read in 4x4 patches
        inputs = stem
        for number, (width, depth) in enumerate(zip(stages, depths, strict=True)):
            layers.append(ConvUnit(inputs, width, norm, stride=1 if number == 0 else 2))
            layers += [ResidualUnit(width, norm) for _ in range(depth)]
            inputs = width
        self.features = nn.Sequential(*layers)  # (B, widths[-1], 7, 7)
        # Aligned faces: every place has its own weights (MobileFaceNet's global depthwise convolution), then one mixing layer.
        self.places = nn.Conv2d(inputs, inputs, INPUT_SIDE // 16, groups=inputs)
        self.out = nn.Linear(inputs, dimensions)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.features(F.pixel_unshuffle(pixels * 2 - 1, 2))
        return F.normalize(self.out(self.places(x).flatten(1)).float(), dim=1)


def fold(network: StarterEmbedderNet) -> StarterEmbedderNet:
    """The same network with every batch normalisation folded into its convolution: equal outputs in eval mode."""
    folded = StarterEmbedderNet(**{**network.config, "norm": False}).eval()
    fold_units(network, folded)
    folded.places.load_state_dict(network.places.state_dict())
    folded.out.load_state_dict(network.out.state_dict())
    return folded
