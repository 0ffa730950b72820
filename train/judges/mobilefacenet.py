"""MobileFaceNet (Chen et al. 2018, arXiv 1804.07573) as published by foamliu (Apache-2.0): the identity teacher.

Training only: its weights are neither shipped nor needed at run time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lafr_core.errors import CheckpointError

FILE = "mobilefacenet_foamliu.pt"
SHA256 = "90a00ba1d8b0b688af3deb731ed53dca582e6106805d1bc3cfdef55f570493f4"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Inverted residual blocks: expansion, output channels, repeats, stride of the first.
_BLOCKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def _unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            _unit(inputs, hidden),
            _unit(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class _Separable(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.depthwise(x)))
        return torch.relu(self.bn2(self.pointwise(x)))


class _GlobalDepthwise(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.depthwise(x))


class MobileFaceNet(nn.Module):
    """ArcFace-template crops (B, 3, 112, 112) RGB in [0, 1] -> embeddings (B, 128), not normalised. Differentiable."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.conv1 = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        self.dw_conv = _Separable(64)
        blocks: list[nn.Module] = []
        channels = 64
        for expansion, outputs, repeats, stride in _BLOCKS:
            for number in range(repeats):
                blocks.append(_Inverted(channels, outputs, stride if number == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(*blocks)
        self.conv2 = _unit(channels, 512)
        self.gdconv = _GlobalDepthwise(512)
        self.conv3 = nn.Conv2d(512, 128, 1)
        self.bn = nn.BatchNorm1d(128)

    def forward(self, crops: Tensor) -> Tensor:
        return self.with_features(crops)[0]

    def with_features(self, crops: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeddings (B, 128) and the feature maps at 56, 28 and 14 pixels, for a feature loss."""
        x = self.dw_conv(self.conv1((crops - self.mean) / self.std))
        maps = [x]
        for number, block in enumerate(self.features):
            x = block(x)
            if number in (4, 11):
                maps.append(x)
        x = self.conv3(self.gdconv(self.conv2(x)))
        return self.bn(x.flatten(1)), maps


def load_mobilefacenet(folder: Path) -> MobileFaceNet:
    """The published weights from ``folder``, checked by sha256, frozen, in eval mode. Raises CheckpointError."""
    import hashlib

    path = Path(folder) / FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: expected MobileFaceNet's weights there; the identity loss cannot run without them")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise CheckpointError(f"{path}: expected sha256 {SHA256}, got {found}; fetch the file again")
    network = MobileFaceNet()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"), strict=True)
    return network.eval().requires_grad_(False)
