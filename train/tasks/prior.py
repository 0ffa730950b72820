"""Stage 3: the one-step prior, a LoRA on a Stable Diffusion UNet (or the small starter prior), under the multi-level loss.

    accelerate launch -m train prior --config train/configs/sd21_ffhq0.9.yaml

The VAE and the adapter stay frozen; the UNet sees the aligned latent itself at one fixed timestep with the empty prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lafr_core.latent.networks.prior import PriorNet
from lafr_core.types import Vae
from train.config import Config
from train.data.faces import Samples
from train.data.windows import cut
from train.engine.parts import OneStep, adapter_for_prior, decoders_of, first_prior, lora_prior, lora_weights
from train.engine.run import Collectives, command, run
from train.judges import losses
from train.judges.losses import Critics
from train.judges.shown import Shown, latents_of

log = logging.getLogger("train.tasks.prior")


class PriorTask:
    """Degraded picture -> encode -> adapter -> prior -> decode, held to the clean picture; only the prior learns."""

    name = "prior"

    def __init__(self, config: Config, vae: Vae, critics: Critics, device: torch.device, collectives: Collectives) -> None:
        self.config, self.vae, self.critics = config, vae, critics
        self.shown = Shown(config, decoders_of(config, vae, device), device)
        self.adapter = adapter_for_prior(config)
        if self.adapter is not None:
            self.adapter.to(device)
        if config.models.unet:
            self.model: nn.Module = lora_prior(config, device)
        else:
            self.model = first_prior(config, vae.spec.channels).train().requires_grad_(True).to(device)
        learning = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        own = sum(p.numel() for p in self.adapter.parameters()) if self.adapter is not None else 0
        log.info("trainable parameters: prior %.3f M, with the adapter %.3f M", learning / 1e6, (learning + own) / 1e6)

    def begin(self, model: nn.Module, samples: Samples, step: int) -> None:
        """Nothing happens at certain steps only."""

    @torch.no_grad()
    def aligned(self, z_lq: Tensor, batch: Mapping[str, Tensor], fidelity: Tensor) -> Tensor:
        """What the prior is given: stored aligned latents where there are any, else the adapter's."""
        if "z_al" in batch:
            return batch["z_al"]
        return z_lq if self.adapter is None else self.adapter(z_lq, fidelity.view(-1, 1, 1, 1).to(z_lq)).latents

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = self.config.loss
        z_lq, z_hq = latents_of(batch, self.vae)
        z_al = self.aligned(z_lq, batch, batch["fidelity"])
        data = self.config.data
        if data.around:  # a local network sees windows with their surroundings only
            z_lq, z_hq, z_al = (cut(z, batch["corner"], data.window, data.around) for z in (z_lq, z_hq, z_al))
        restored = model(z_al)
        terms = {"latent": weights.latent * losses.latent(restored, z_hq)} if weights.latent > 0 else {}
        if weights.relative > 0:
            terms["relative"] = weights.relative * losses.relative(restored.float(), z_hq, z_lq)
        return terms | self.shown.terms(restored, batch, self.critics, z_hq)

    def architecture(self) -> dict[str, Any]:
        return dict(self.model.config) if isinstance(self.model, PriorNet) else {}

    def finish(self) -> Mapping[str, float | Tensor]:
        return {}

    def weights(self) -> dict[str, Tensor]:
        """The LoRA alone where there is one: the UNet's own weights are the user's checkpoint."""
        if isinstance(self.model, OneStep):
            return {f"unet.{name}": t for name, t in lora_weights(self.model.unet).items()}
        return self.model.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        missing, unexpected = self.model.load_state_dict(dict(weights), strict=False)
        left = [name for name in missing if name in self.weights()]
        if left or unexpected:
            raise losses.CheckpointError(
                f"prior checkpoint: does not fit this UNet, first {(left + unexpected)[0]}; use the same UNet"
            )

    def state(self) -> dict[str, Any]:
        """What export needs to know of the UNet."""
        if not isinstance(self.model, OneStep):
            return {}
        context: Any = self.model.context
        width = int(context.shape[-1])
        return {
            "prediction": self.model.prediction,
            "context_dim": width,
            "context": self.model.context.detach().float().cpu(),  # type: ignore[union-attr, operator]
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """It follows from the config and the UNet."""

    def sample(self, batch: Mapping[str, Tensor]) -> Tensor:
        usual = batch["fidelity"].new_full((len(batch["lq"]),), self.config.data.fidelity)
        z = self.aligned(self.vae.encode(batch["lq"]), batch, usual)
        return self.vae.decode(self.model(z))


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(lambda config: run(PriorTask, config), arguments, __doc__)
