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
from train.data.faces import Faces, stream
from train.engine.parts import decoder_of, fidelity_parts, new_adapter
from train.engine.run import Collectives, command, run
from train.judges import losses
from train.judges.losses import Critics
from train.tasks.codebook_learning import CodebookLearner, Usage

KMEANS_POINTS = 16
"""Features per codebook entry that k-means sees."""


class CodebookTask:
    """Reconstruct clean latents from their codes alone (fidelity 0); the entries follow by moving averages."""

    name = "codebook"

    def __init__(self, config: Config, vae: Vae, critics: Critics, device: torch.device, collectives: Collectives) -> None:
        self.config, self.vae, self.critics, self.device = config, vae, critics, device
        self.stage: CodebookStage = config.codebook
        self.decode = decoder_of(vae)
        self.network: AdapterNet = new_adapter(config, vae.spec.channels).to(device)
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
    def begin(self, model: nn.Module, faces: Faces, step: int) -> None:
        """At the k-means steps: set the entries from current features of clean pictures."""
        if step not in self.stage.kmeans_at:
            return
        points: list[Tensor] = []
        wanted = KMEANS_POINTS * self.config.network.entries
        for batch in stream(faces, step, batch=self.stage.batch, accumulate=1, workers=0):
            points.append(self.network.extractor(self.vae.encode(batch["hq"].to(self.device))).code)
            if sum(p[:, 0].numel() for p in points) >= wanted:
                break
        self.learner.start(torch.cat(points))

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = self.config.loss
        with torch.no_grad():
            z = self.vae.encode(batch["hq"])
        output = model(z, z.new_zeros(len(z), 1, 1, 1))
        self.learner.observe(output.features.code, output.match.indices, output.match.distance)
        terms = {"latent": weights.latent * losses.latent(output.latents, z)}
        if weights.commitment > 0:
            terms["commitment"] = weights.commitment * losses.commitment(output.features.code, output.match.quantised)
        if self.critics.needed(weights):
            terms.update(losses.picture_terms(self.decode(output.latents), batch["hq"], self.critics, weights))
        return terms

    def finish(self) -> dict[str, float]:
        usage: Usage = self.learner.step()
        return {"perplexity": usage.perplexity, "codes_used": usage.used, "codes_revived": float(usage.revived)}

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(weights), strict=True)

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
