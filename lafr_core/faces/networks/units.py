"""Convolutions that train with batch normalisation and ship without it: :func:`fold_units` folds it in."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ConvUnit(nn.Module):
    """3x3 (or 1x1) convolution, batch normalisation unless folded, ReLU unless it ends a residual branch."""

    def __init__(self, inputs: int, outputs: int, norm: bool, *, stride: int = 1, kernel: int = 3, active: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not norm)
        self.norm: nn.Module = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.active else x


class ResidualUnit(nn.Module):
    """relu(x + conv(conv(x)))."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels, norm)
        self.second = ConvUnit(channels, channels, norm, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def fold_units(source: nn.Module, target: nn.Module) -> None:
    """Copy every :class:`ConvUnit` of ``source`` into the one of ``target`` (the same network built without normalisation)."""
    olds = [unit for unit in copy.deepcopy(source).eval().modules() if isinstance(unit, ConvUnit)]
    news = [unit for unit in target.modules() if isinstance(unit, ConvUnit)]
    for old, new in zip(olds, news, strict=True):
        fused = fuse_conv_bn_eval(old.conv, old.norm) if isinstance(old.norm, nn.BatchNorm2d) else old.conv
        new.conv.load_state_dict(fused.state_dict())
