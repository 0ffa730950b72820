"""How a codebook is learned: k-means start, moving averages, revival of dead entries.

Razavi et al. 2019 (arXiv 1906.00446, appendix A.1) for the moving averages; entries nobody uses are moved onto
features of the current batch, as in Jukebox (Dhariwal et al. 2020, arXiv 2005.00341, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lafr_core.latent.networks.codebook import Codebook


class Usage(NamedTuple):
    """How a batch used the codebook."""

    perplexity: float
    """exp(entropy) of the entries' shares: N when all are used alike, 1 when one takes everything."""
    used: float
    """Share of entries in use, by moving average."""
    revived: int


def flatten(features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B*h*w, D) float32, detached."""
    return features.detach().float().permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def k_means(points: Tensor, clusters: int, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """Lloyd's algorithm: points (M, D) -> centres (clusters, D); starts from random points, empty clusters keep their
    centre.
    """
    choice = torch.randint(len(points), (clusters,), generator=generator)
    if len(points) >= clusters:
        choice = torch.randperm(len(points), generator=generator)[:clusters]
    centres = points[choice].clone()
    for _ in range(iterations):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in points.split(8192)])
        counts = torch.bincount(nearest, minlength=clusters).to(points.dtype)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres


POOL = 4096
"""Features a micro-batch and process puts forward for revival, evenly spaced over its cells."""


class CodebookLearner:
    """Learns the entries of one codebook. State: moving counts (N,) and sums (N, D) and the generator, saved by
    :meth:`state_dict`.

    :meth:`observe` takes in each micro-batch, :meth:`step` learns from all of them at once, so accumulation and processes count
    alike. ``reduce`` sums a tensor over all processes, ``gather`` concatenates one along its rows in the order of the ranks and
    ``share`` spreads rank 0's (all three the identity for one process): every rank then draws the same revivals and holds the
    same entries.
    """

    def __init__(
        self,
        codebook: Codebook,
        generator: torch.Generator,
        decay: float = 0.98,
        dead_below: float = 0.02,
        reduce: Callable[[Tensor], Tensor] = lambda t: t,
        share: Callable[[Tensor], Tensor] = lambda t: t,
        gather: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> None:
        self.codebook, self.generator, self.decay, self.dead_below = codebook, generator, decay, dead_below
        self.reduce, self.share, self.gather = reduce, share, gather
        codes = codebook.codes.weight
        self.counts = torch.ones(len(codes), device=codes.device)
        self.sums = codes.detach().float().clone()
        self._clear()

    def _clear(self) -> None:
        """Forget what was observed since the last step."""
        self._counts, self._sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        self._distance = self.counts.new_zeros(2)  # sum, number
        self._pool: list[Tensor] = []

    @torch.no_grad()
    def start(self, features: Tensor, iterations: int = 10) -> None:
        """Set all entries by k-means over features (B, D, h, w) of high-quality latents."""
        points = flatten(features)
        centres = self.share(k_means(points, len(self.counts), self.generator, iterations))
        self.codebook.codes.weight.copy_(centres)
        self.counts.fill_(1.0)
        self.sums.copy_(centres)
        self._clear()

    @torch.no_grad()
    def observe(self, features: Tensor, indices: Tensor, distance: Tensor) -> None:
        """Take in a forward pass: features (B, D, h, w) with their nearest entries (B, h, w) and squared distances."""
        flat, nearest = flatten(features), indices.reshape(-1)
        self._counts += torch.bincount(nearest, minlength=len(self.counts)).float()
        self._sums.index_add_(0, nearest, flat)
        self._distance += torch.stack([distance.detach().float().sum(), distance.new_tensor(float(distance.numel())).float()])
        self._pool.append(flat[:: max(1, len(flat) // POOL)][:POOL])

    @torch.no_grad()
    def step(self) -> Usage:
        """Learn from everything observed since the last step, on all processes together."""
        counts, sums, total = self.reduce(self._counts), self.reduce(self._sums), self.reduce(self._distance)
        pool = self.gather(torch.cat(self._pool))
        self._clear()
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)

        share = counts / counts.sum().clamp_min(1)
        perplexity = float(torch.exp(-(share * share.clamp_min(1e-10).log()).sum()))
        # An entry is dead when its moving count is below a small share of an even split.
        even = counts.sum() / len(counts)
        dead = self.counts < self.dead_below * even
        pick = torch.randint(len(pool), (len(self.counts),), generator=self.generator)
        self.counts = torch.where(dead, even, self.counts)
        self.sums = torch.where(dead[:, None], pool[pick.to(pool.device)] * even, self.sums)

        self.codebook.codes.weight.copy_(self.sums / self.counts.clamp_min(1e-6)[:, None])
        self.codebook.spread.lerp_(total[0] / total[1], 1 - self.decay)
        return Usage(perplexity, 1 - float(dead.float().mean()), int(dead.sum()))

    def update(self, features: Tensor, indices: Tensor, distance: Tensor) -> Usage:
        """:meth:`observe` one forward pass and :meth:`step`."""
        self.observe(features, indices, distance)
        return self.step()

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "sums": self.sums, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        # Checkpoints are read on the CPU; the counts live where the codebook does.
        device = self.codebook.codes.weight.device
        self.counts, self.sums = state["counts"].to(device, copy=True), state["sums"].to(device, copy=True)
        if "generator" in state:
            self.generator.set_state(state["generator"].cpu())
        self._clear()
