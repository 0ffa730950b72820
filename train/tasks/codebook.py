"""Stage 1: the codebook of high-quality latents. Extractor F, codebook C and mapping M reconstruct z_hq (LAFR, arXiv
2505.23462).

accelerate launch -m train codebook --config train/configs/sd21_ffhq0.9.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.types import Vae
from train.config import CodebookStage, Config
from train.data.faces import Samples, stream
from train.engine.parts import decoders_of, fidelity_parts, first_adapter
from train.engine.run import Collectives, command, run
from train.judges import losses
from train.judges.losses import Critics
from train.judges.shown import Shown
from train.tasks.codebook_learning import CodebookLearner, Usage

KMEANS_POINTS = 16
"""Features per codebook entry that k-means sees."""


class CodebookTask:
    """Reconstruct clean latents from their codes alone (fidelity 0); the entries follow by moving averages."""

    name = "codebook"

    def __init__(self, config: Config, vae: Vae, critics: Critics, device: torch.device, collectives: Collectives) -> None:
        self.config, self.vae, self.critics, self.device = config, vae, critics, device
        self.stage: CodebookStage = config.codebook
        self.shown = Shown(config, decoders_of(config, vae, device), device)
        self.network: AdapterNet = first_adapter(config, vae.spec.channels).train().requires_grad_(True).to(device)
        self.model: nn.Module = self.network
        self.network.codebook.requires_grad_(False)
        # Fidelity is 0 throughout: their gradients would be zeros, and weight decay alone would move them.
        for part in fidelity_parts(self.network):
            part.requires_grad_(False)
        self.learner = CodebookLearner(
            self.network.codebook,
            torch.Generator().manual_seed(config.seed),
            self.stage.decay,
            self.stage.revive,
            reduce=collectives.sum,
            share=collectives.from_first,
            gather=collectives.gather,
        )

    @torch.no_grad()
    def begin(self, model: nn.Module, samples: Samples, step: int) -> None:
        """At the k-means steps: set the entries from current features of clean pictures."""
        if step not in self.stage.kmeans_at:
            return
        points: list[Tensor] = []
        wanted = KMEANS_POINTS * self.config.network.entries
        for batch in stream(samples, step, batch=self.stage.batch, accumulate=1, workers=0):
            clean = {name: value.to(self.device) for name, value in batch.items() if name in ("hq", "z_hq")}
            z = clean["z_hq"] if "z_hq" in clean else self.vae.encode(clean["hq"])
            points.append(self.network.extractor(z).code)
            if sum(p[:, 0].numel() for p in points) >= wanted:
                break
        self.learner.start(torch.cat(points))

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = self.config.loss
        with torch.no_grad():
            z = batch["z_hq"] if "z_hq" in batch else self.vae.encode(batch["hq"])
        output = model(z, z.new_zeros(len(z), 1, 1, 1))
        self.learner.observe(output.features.code, output.match.indices, output.match.distance)
        terms = {"latent": weights.latent * losses.latent(output.latents, z)}
        if weights.commitment > 0:
            terms["commitment"] = weights.commitment * losses.commitment(output.features.code, output.match.quantised)
        return terms | self.shown.terms(output.latents, batch, self.critics, z)

    def finish(self) -> Mapping[str, float | Tensor]:
        usage: Usage = self.learner.step()
        return {"perplexity": usage.perplexity, "codes_used": usage.used, "codes_revived": float(usage.revived)}

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(weights), strict=True)

    def architecture(self) -> dict[str, Any]:
        return dict(self.network.config)

    def state(self) -> dict[str, Any]:
        return dict(self.learner.state_dict())

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(dict(state))

    def sample(self, batch: Mapping[str, Tensor]) -> Tensor:
        z = self.vae.encode(batch["hq"])
        return self.vae.decode(self.network(z, z.new_zeros(len(z), 1, 1, 1)).latents)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(lambda config: run(CodebookTask, config), arguments, __doc__)
