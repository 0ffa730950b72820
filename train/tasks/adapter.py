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

from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.types import Vae
from train.config import Config
from train.data.faces import Faces
from train.engine.parts import adapter_from, decoder_of, fidelity_parts
from train.engine.run import Collectives, command, run
from train.judges import losses
from train.judges.losses import Critics


class AdapterTask:
    """Degraded latents -> the clean picture's anchors, at a fidelity drawn per sample; the codebook stays as stage 1 left
    it.
    """

    name = "adapter"

    def __init__(self, config: Config, vae: Vae, critics: Critics, device: torch.device, collectives: Collectives) -> None:
        self.config, self.vae, self.critics = config, vae, critics
        self.decode = decoder_of(vae)
        self.teacher: AdapterNet = adapter_from(config.models.codebook or config.log.out, "codebook").to(device)
        self.network: AdapterNet = copy.deepcopy(self.teacher).requires_grad_(True)
        self.network.codebook.requires_grad_(False)
        self.network.codebook.top_k = config.network.top_k
        if not config.adapter.train_mapping:
            self.network.mapping.requires_grad_(False)
            # What fidelity 0 never uses learns all the same: stage 1 has left it at zero.
            for part in fidelity_parts(self.network):
                part.requires_grad_(True)
        self.model: nn.Module = self.network

    def begin(self, model: nn.Module, faces: Faces, step: int) -> None:
        """Nothing happens at certain steps only."""

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights, book = self.config.loss, self.network.codebook
        with torch.no_grad():
            z_hq, z_lq = self.vae.encode(batch["hq"]), self.vae.encode(batch["lq"])
            anchors = self.teacher.codebook(self.teacher.extractor(z_hq).code)
        output = model(z_lq, batch["fidelity"].view(-1, 1, 1, 1).to(z_lq))
        terms = {"latent": weights.latent * losses.latent(output.latents, z_hq)}
        if weights.commitment > 0:
            terms["commitment"] = weights.commitment * losses.commitment(output.features.code, anchors.quantised)
        if weights.code > 0:
            value = losses.code(output.features.code.float(), book.codes.weight, book.spread, anchors.indices)
            terms["code"] = weights.code * value
        if weights.stay > 0:
            terms["stay"] = weights.stay * losses.stay(output.latents, z_lq, batch["fidelity"])
        if self.critics.needed(weights):
            terms.update(losses.picture_terms(self.decode(output.latents), batch["hq"], self.critics, weights))
        self.agreement = (output.match.indices == anchors.indices).float().mean()
        return terms

    def finish(self) -> dict[str, float]:
        return {"codes_found": float(self.agreement)}

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(weights), strict=True)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """There is none beyond the weights."""

    def sample(self, batch: Mapping[str, Tensor]) -> Tensor:
        z = self.vae.encode(batch["lq"])
        return self.vae.decode(self.network(z, z.new_zeros(len(z), 1, 1, 1)).latents)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(lambda config: run(AdapterTask, config), arguments, __doc__)
