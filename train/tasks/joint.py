"""Adapter and prior together: the adapter learns the mean of what a face can be, the prior behind it to draw one of them.

    python -m train joint --config train/configs/starter_joint.yaml --data.source "FACES;FACES_LONDON" \\
        --loss.identity_weights mobilefacenet_foamliu.pt [--models.second_vae TAESD]

Faces are drawn anew for every sample (train.data.fresh). The adapter is held to the clean latents and, decoded, to the photo,
by the terms of section ``loss``; no gradient of the prior's reaches it. The prior is held to what the clean latents decode to
and to the person, under two critics: one sees whole faces, moved by up to 8 pixels, one sees eyes and mouth from near. Where
two networks look (joint.features), they change places at every step. The best checkpoint's averaged weights become
``adapter.safetensors`` and ``prior.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.types import Vae
from train.config import Config
from train.data.faces import Samples, open_pictures
from train.data.fresh import Fresh
from train.engine import checkpoints, optimizers
from train.engine.loop import train
from train.engine.parts import adapter_for_prior, averaged, decoder_of, first_prior, left_beside, named_vae, rows_made, vae_of
from train.engine.run import Collectives, collectives, command, held_out, join_processes
from train.judges import losses
from train.judges.losses import Critics, open_critics, open_identity
from train.judges.projected import ProjectedCritic, asked, open_features
from train.judges.views import close_up_boxes, close_ups, look, turned, view_box
from train.precision import channels_last

SHIFT = 8
"""Pixels, either way, that whole faces are moved by before a critic looks."""
TURN = 0.04
"""Standard deviation, in halves of a face, of how far a face is moved before the embedder looks."""


class Made(NamedTuple):
    """What :class:`Both` makes of degraded latents; all but the last two of the latents' shape."""

    aligned: Tensor
    drawn: Tensor
    code: Tensor
    """(B, D, h, w): the adapter's features before the codebook."""
    entries: Tensor
    """The same shape: the codebook's entries nearest to them."""


class Both(nn.Module):
    """The adapter, and the prior on what it made; no gradient goes from the one to the other."""

    def __init__(self, adapter: AdapterNet, prior: PriorNet) -> None:
        super().__init__()
        self.adapter, self.prior = adapter, prior

    def forward(self, latents: Tensor, fidelity: Tensor) -> Made:
        output = self.adapter(latents, fidelity)
        drawn = self.prior(channels_last(output.latents.detach().float()))
        return Made(output.latents, drawn, output.features.code, output.match.quantised)


class JointTask:
    """Degraded faces -> aligned and drawn latents; critics of optimisers of their own learn beside the two networks."""

    name = "joint"

    def __init__(self, config: Config, vae: Vae, critics: Critics, device: torch.device, together: Collectives) -> None:
        self.config, self.stage, self.vae, self.critics = config, config.joint, vae, critics
        if config.data.pairs:
            raise InputError("joint: draws its faces anew, expected no data.pairs; leave it out and give data.source")
        for name in ("code", "stay"):
            if getattr(config.loss, name) > 0:
                raise InputError(f"joint: its adapter does not learn by loss.{name}, expected 0; set it to 0")
        self.decode = decoder_of(vae)
        second = config.models.second_vae
        self.second = named_vae(second, config.models.family, device) if second else None
        adapter = adapter_for_prior(config)
        if adapter is None:
            raise InputError("joint: needs an adapter to go on from, got models.adapter none; give a file or a run")
        both = Both(adapter, first_prior(config, vae.spec.channels)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.both: Both = both.train().requires_grad_(True)
        self.both.adapter.codebook.requires_grad_(False)
        self.model: nn.Module = self.both
        self.who = critics.identity or (open_identity(config.loss, device) if self.stage.identity > 0 else None)
        networks = open_features(self.stage.features)
        new = lambda network, number: ProjectedCritic(self.stage, config.seed + 1 + number, device, together, network)
        self.wholes = [new(network, 2 * i) for i, network in enumerate(networks)]
        self.nears = [new(network, 2 * i + 1) for i, network in enumerate(networks)]
        self.step = 0

    def groups(self) -> list[dict[str, Any]]:
        """The two networks learn apart, each at its own rate."""
        stage, prior = self.stage, self.both.prior.parameters()
        adapter = [p for p in self.both.adapter.parameters() if p.requires_grad]
        return [
            optimizers.apart(prior, 1.0, stage.beta1, stage.weight_decay),
            optimizers.apart(adapter, stage.adapter_lr / stage.lr, stage.adapter_beta1, stage.adapter_decay),
        ]

    def begin(self, model: nn.Module, samples: Samples, step: int) -> None:
        self.step = step

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        z_lq, z_hq = self.encoded(batch)
        made: Made = model(z_lq, batch["fidelity"].view(-1, 1, 1, 1))
        given = self.decode(channels_last(made.aligned)).float()
        with torch.no_grad():
            real = self.decode(z_hq).float()
        return {
            **self.alignment(made, given, real, z_lq, z_hq, batch),
            **self.drawing(made.drawn, given.detach(), real, z_hq, batch),
        }

    @torch.no_grad()
    def encoded(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Degraded and clean latents (B, C, h, w), by the second autoencoder for samples of that kind."""
        pictures = channels_last(torch.cat([batch["lq"], batch["hq"]]))
        z = self.vae.encode(pictures).float()
        if (second := self.second) is not None:
            z = rows_made(z, batch["kind"].repeat(2), lambda rows: second.encode(pictures[rows]))
        z_lq, z_hq = z.chunk(2)
        return channels_last(z_lq), channels_last(z_hq)

    def seen_by(self, batch: Mapping[str, Tensor]) -> Critics:
        """The judges of the loss terms, the embedder seeing this batch's faces where its turns put them."""
        who = self.who
        if who is None:
            return self.critics
        return replace(self.critics, identity=lambda pictures: who(turned(pictures.clamp(-0.1, 1.1), batch["turn"])))

    def alignment(
        self, made: Made, given: Tensor, real: Tensor, z_lq: Tensor, z_hq: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The adapter's terms, as section ``loss`` weighs them."""
        weights = self.config.loss
        measures = {
            "latent": lambda: losses.latent(made.aligned, z_hq),
            "relative": lambda: losses.relative(made.aligned.float(), z_hq, z_lq),
            "commitment": lambda: losses.commitment(made.code.float(), made.entries.float()),
        }
        terms = {name: getattr(weights, name) * measure() for name, measure in measures.items() if getattr(weights, name) > 0}
        shown = losses.picture_terms(given, batch["hq"], self.seen_by(batch), weights, own=real)
        return {f"aligned_{name}": term for name, term in {**terms, **shown}.items()}

    def drawing(
        self, drawn: Tensor, given: Tensor, real: Tensor, z_hq: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The prior's terms; its critics learn on the way."""
        stage, side = self.stage, real.shape[-1]
        fake = self.decode(channels_last(drawn)).float()
        count = len(self.wholes)
        self.whole, self.near = self.wholes[self.step % count], self.nears[(self.step + 1) % count]
        shown = lambda pictures: look(pictures, batch["view"], side)
        boxes = view_box(batch["view"], side, side)
        looks = (
            (self.whole, shown, boxes, 1.0),
            (self.near, close_ups, close_up_boxes(len(real), real.device), stage.close),
        )
        near, fooled = drawn.new_zeros(()).float(), drawn.new_zeros(()).float()
        for critic, show, where, weight in looks:
            seen = critic.seen(show(real), show(given))
            maps = critic.features(show(fake))
            critic.learn(maps, seen, where)
            near = near + weight * critic.near(maps, seen)
            fooled = fooled + weight * critic.fooled(maps, seen, where)
        terms = {
            "latent": stage.latent * F.l1_loss(drawn.float(), z_hq),
            "pixel": stage.pixel * F.l1_loss(fake, real),
            "near": stage.near * near,
            "fool": asked(stage, self.step) * fooled,
        }
        if stage.identity > 0:
            who = self.seen_by(batch).identity
            assert who is not None
            terms["identity"] = stage.identity * losses.identity(fake, batch["hq"], who)
        return terms

    def finish(self) -> Mapping[str, float | Tensor]:
        return {"critic": self.whole.judged, "critic_near": self.near.judged}

    def architecture(self) -> dict[str, Any]:
        return {"adapter": dict(self.both.adapter.config), "prior": dict(self.both.prior.config)}

    def weights(self) -> dict[str, Tensor]:
        return self.both.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.both.load_state_dict(dict(weights), strict=True)

    def state(self) -> dict[str, Any]:
        return {"wholes": [critic.state() for critic in self.wholes], "nears": [critic.state() for critic in self.nears]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, critics in (("wholes", self.wholes), ("nears", self.nears)):
            for critic, kept in zip(critics, state[name], strict=True):
                critic.load_state(kept)

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Tensor]) -> Tensor:
        z = self.vae.encode(batch["lq"])
        return self.vae.decode(self.both(z, z.new_full((len(z), 1, 1, 1), self.config.data.fidelity)).drawn)


def own_draws(second: float, generator: np.random.Generator) -> dict[str, Tensor]:
    """``kind``: 1 for the ``second`` share of samples, which the second autoencoder encodes; ``view`` for critics, ``turn`` for
    the embedder (train.judges.views).
    """
    kind = int(generator.random() < second)
    top, left = (float(v) for v in generator.integers(-SHIFT, SHIFT + 1, 2))
    right, down = (float(v) for v in generator.normal(0, TURN, 2))
    mirror = -1.0 if generator.random() < 0.5 else 1.0
    return {
        "kind": torch.tensor(kind),
        "view": torch.tensor([top, left, 1.0]),
        "turn": torch.tensor([right, down, mirror]),
    }


def samples_of(config: Config) -> Fresh:
    """The faces of the config's source, drawn anew for every sample."""
    share = config.data.second_share if config.models.second_vae else 0.0
    return Fresh(open_pictures(config.data)[0], config, functools.partial(own_draws, share))


def run(config: Config) -> Path:
    """Train both and write them beside their checkpoints; returns the prior's file."""
    device = join_processes()
    task = JointTask(config, vae_of(config, device), open_critics(config.loss, device), device, collectives())
    last = train(task, config.joint, config, samples_of(config), *held_out(config))
    task.load_weights(averaged(checkpoints.load_state(last)))
    left_beside(last, "adapter", task.both.adapter, config, config.joint)
    return left_beside(last, "prior", task.both.prior, config, config.joint)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
