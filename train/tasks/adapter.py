"""Stage 2: the adapter. The extractor learns to find, in a degraded face's latents, the codes of the clean one (LAFR, arXiv
2505.23462).

accelerate launch -m train adapter --config train/configs/sd21_ffhq0.9.yaml
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lafr_core.errors import CheckpointError
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.types import Vae
from train.config import Config
from train.data.faces import Samples
from train.engine.parts import adapter_from, decoders_of, fidelity_parts, first_adapter
from train.engine.run import Collectives, command, run
from train.judges import losses
from train.judges.losses import Critics
from train.judges.shown import Shown, latents_of


class AdapterTask:
    """Degraded latents -> the clean picture's anchors, at a fidelity drawn per sample; the codebook stays as stage 1 left
    it.
    """

    name = "adapter"

    def __init__(self, config: Config, vae: Vae, critics: Critics, device: torch.device, collectives: Collectives) -> None:
        self.config, self.vae, self.critics = config, vae, critics
        self.shown = Shown(config, decoders_of(config, vae, device), device)
        self.teacher, self.network = start(config)
        self.teacher.to(device)
        self.network.to(device).train().requires_grad_(True)
        self.network.codebook.requires_grad_(False)
        if not config.adapter.train_mapping:
            self.network.mapping.requires_grad_(False)
            # What fidelity 0 never uses learns all the same: stage 1 has left it at zero.
            for part in fidelity_parts(self.network):
                part.requires_grad_(True)
        self.model: nn.Module = self.network

    def begin(self, model: nn.Module, samples: Samples, step: int) -> None:
        """Nothing happens at certain steps only."""

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights, book = self.config.loss, self.network.codebook
        z_lq, z_hq = latents_of(batch, self.vae)
        with torch.no_grad():
            anchors = self.teacher.codebook(self.teacher.extractor(z_hq).code)
        output = model(z_lq, batch["fidelity"].view(-1, 1, 1, 1).to(z_lq))
        terms = {"latent": weights.latent * losses.latent(output.latents, z_hq)} if weights.latent > 0 else {}
        if weights.relative > 0:
            terms["relative"] = weights.relative * losses.relative(output.latents, z_hq, z_lq)
        if weights.commitment > 0:
            terms["commitment"] = weights.commitment * losses.commitment(output.features.code, anchors.quantised)
        if weights.code > 0:
            value = losses.code(output.features.code.float(), book.codes.weight, book.spread, anchors.indices)
            terms["code"] = weights.code * value
        if weights.stay > 0:
            terms["stay"] = weights.stay * losses.stay(output.latents, z_lq, batch["fidelity"])
        self.agreement = (output.match.indices == anchors.indices).float().mean()
        return terms | self.shown.terms(output.latents, batch, self.critics, z_hq)

    def finish(self) -> Mapping[str, float | Tensor]:
        return {"codes_found": self.agreement}

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(weights), strict=True)

    def architecture(self) -> dict[str, Any]:
        return dict(self.network.config)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """There is none beyond the weights."""

    def sample(self, batch: Mapping[str, Tensor]) -> Tensor:
        z = self.vae.encode(batch["lq"])
        return self.vae.decode(self.network(z, z.new_zeros(len(z), 1, 1, 1)).latents)


def start(config: Config) -> tuple[AdapterNet, AdapterNet]:
    """(who knows the clean faces' codes, what learns): the codebook stage's network and a copy of it.

    With models.init the given adapter learns. It is its own teacher then, unless models.codebook names another of the same
    codebook: fine-tuning a finished adapter needs no codebook run.
    """
    if not config.models.init:
        teacher = adapter_from(config.models.codebook or config.log.out, "codebook")
        network = copy.deepcopy(teacher)
        network.codebook.top_k = config.network.top_k
        network.config["top_k"] = config.network.top_k
        return teacher, network
    network = first_adapter(config, 0)
    teacher = adapter_from(config.models.codebook, "codebook") if config.models.codebook else copy.deepcopy(network)
    if teacher.codebook.codes.weight.shape != network.codebook.codes.weight.shape:
        raise CheckpointError(
            f"models.codebook: expected a codebook of {tuple(network.codebook.codes.weight.shape)} as in models.init, got "
            f"{tuple(teacher.codebook.codes.weight.shape)}; leave it out, and the adapter is its own teacher"
        )
    return teacher.eval().requires_grad_(False), network


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(lambda config: run(AdapterTask, config), arguments, __doc__)
