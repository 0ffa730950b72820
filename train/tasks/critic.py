"""The generative prior: a critic on frozen features says what a drawn window lacks beside a real one.

    python -m train pairs  --config train/configs/starter_critic.yaml --data.source FACES --data.pairs runs/aligned
    python -m train critic --config train/configs/starter_critic.yaml --data.pairs runs/aligned

The critic (train.judges.projected) sees the decoded window beside the decoded *aligned* one it was drawn from. The prior is
held to the real window's features, pixels and latents too, and to the whole face's identity. The best checkpoint's averaged
weights become ``prior.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.types import Vae
from train.config import Config, CriticStage
from train.data.faces import Samples
from train.data.pairs import StoredPairs
from train.data.windows import FACTOR, cut, inner
from train.engine import checkpoints
from train.engine.loop import train
from train.engine.parts import adapter_for_prior, aligned_latents, averaged, decoder_of, first_prior, left_beside, vae_of
from train.engine.run import Collectives, collectives, command, held_out, join_processes
from train.judges.losses import open_identity
from train.judges.projected import ProjectedCritic, asked, window_box
from train.precision import channels_last

log = logging.getLogger("train.critic")


class CriticTask:
    """Aligned windows with their surroundings -> drawn windows; a critic of its own optimiser learns beside the prior."""

    name = "critic"

    def __init__(
        self, config: Config, vae: Vae, device: torch.device, together: Collectives, features: nn.Module | None = None
    ) -> None:
        self.config, self.stage, self.device = config, config.critic, device
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
        self.critic = ProjectedCritic(stage, config.seed + 1, device, together, features)
        self.who = open_identity(config.loss, device) if stage.identity > 0 else None
        self.step = 0

    def begin(self, model: nn.Module, samples: Samples, step: int) -> None:
        self.step = step

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stage, data = self.stage, self.config.data
        corner = batch["corner"]
        whole = aligned_latents(batch, self.adapter)
        given, sharp = (cut(z, corner, data.window, data.around) for z in (whole, batch["z_hq"]))
        places = window_box(corner.flatten(0, 1), data.window, data.size // FACTOR)
        drawn = model(channels_last(given))
        with torch.no_grad():
            real, base = self.decode(channels_last(inner(torch.cat([sharp, given]), data.window))).chunk(2)
        seen = self.critic.seen(real, base)
        fake = self.decode(channels_last(inner(drawn, data.window)))
        maps = self.critic.features(fake)
        self.critic.learn(maps, seen, places)
        terms = {
            "latent": F.l1_loss(drawn.float(), sharp),
            "pixel": stage.pixel * F.l1_loss(fake.float(), real.float()),
            "near": stage.near * self.critic.near(maps, seen),
            "fool": asked(stage, self.step) * self.critic.fooled(maps, seen, places),
        }
        if self.who is not None and self.step % stage.identity_every == 0:
            face, person = (self.decode(channels_last(z)).float() for z in (model(channels_last(whole[:1])), batch["z_hq"][:1]))
            alike = F.cosine_similarity(self.who(face).float(), self.who(person.clamp(0, 1)).float().detach(), dim=1)
            terms["identity"] = stage.identity * (1 - alike).mean()
        return terms

    def finish(self) -> Mapping[str, float | Tensor]:
        return {"critic": self.critic.judged}

    def architecture(self) -> dict[str, Any]:
        return dict(self.network.config)

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(weights), strict=True)

    def state(self) -> dict[str, Any]:
        return self.critic.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.critic.load_state(state)

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Tensor]) -> Tensor:
        z = self.vae.encode(batch["lq"])
        fidelity = batch["fidelity"].new_full((len(z),), self.config.data.fidelity)
        return self.vae.decode(self.network(aligned_latents({"z_lq": z, "fidelity": fidelity}, self.adapter)))


def run(config: Config) -> Path:
    """Train the prior under its critic and write it beside its checkpoints; returns the file."""
    device = join_processes()
    task = CriticTask(config, vae_of(config, device), device, collectives())
    samples = StoredPairs(config.data, config.seed, pixels=False, device=device)
    last = train(task, config.critic, config, samples, *held_out(config))
    task.load_weights(averaged(checkpoints.load_state(last)))
    return left_beside(last, "prior", task.network, config, config.critic)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
