"""AdaFace (Kim, Jain and Liu 2022, arXiv 2204.00964): the identity check of the NTIRE face restoration challenges.

Its public checkpoints hold an "IR" network of 18, 50 or 101 layers (mk-minchul/AdaFace, MIT). Judging only: nothing is trained
against it, and its weights are neither shipped nor needed at run time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import CheckpointError
from lafr_core.faces.crop import template_crops
from lafr_core.geometry import ARCFACE_TEMPLATE
from train.judges.losses import read_weights

FILE = "adaface_ir101_webface12m.ckpt"
ADDRESS = "https://github.com/mk-minchul/AdaFace (Pretrained Models, R101 WebFace12M)"
_DEPTHS = {8: (2, 2, 2, 2), 24: (3, 4, 14, 3), 49: (3, 13, 30, 3)}
"""Number of blocks -> blocks of each of the four widths."""
_WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the second one strides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class AdaFace(nn.Module):
    """FFHQ crops (B, 3, S, S) in [0, 1] -> unit vectors (B, 512)."""

    def __init__(self, blocks: int = 49) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        body, inputs = [], 64
        for width, count in zip(_WIDTHS, _DEPTHS[blocks], strict=True):
            for number in range(count):
                body.append(Block(inputs, width, 1 if number else 2))
                inputs = width
        self.body = nn.Sequential(*body)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512, affine=False),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        x = template_crops(pictures, ARCFACE_TEMPLATE, 112).flip(1) * 2 - 1  # BGR
        return F.normalize(self.output_layer(self.body(self.input_layer(x))), dim=1)


def open_adaface(path: Path) -> AdaFace:
    """The network of a checkpoint, frozen. Raises CheckpointError where it is not one of AdaFace's."""
    found = {name.removeprefix("model."): t for name, t in read_weights(path).items() if not name.startswith("head.")}
    network = AdaFace(_count(found, path)).eval().requires_grad_(False)
    try:
        network.load_state_dict(found, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not the weights of an AdaFace IR network ({error})") from error
    return network


def _count(tensors: Mapping[str, Tensor], path: Path) -> int:
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"body\.(\d+)\.", name))}
    if len(blocks) not in _DEPTHS:
        raise CheckpointError(
            f"{path}: expected an AdaFace IR network of {', '.join(map(str, _DEPTHS))} blocks, got {len(blocks)}"
        )
    return len(blocks)
