"""Aligned latents -> finished latents in one step: the starter prior, or a Stable Diffusion UNet."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..store import checkpoint
from ..store.assets import bundled
from ..types import LatentSpec, Prior
from .networks.prior import PriorNet
from .spec import family


class StarterPrior:
    """The starter prior network behind :class:`~lafr_core.types.Prior`. Runs in float32 on the network's device."""

    def __init__(self, network: nn.Module, spec: LatentSpec) -> None:
        self.network, self.spec = network, spec

    def __call__(self, latents: Tensor) -> Tensor:
        return self.network(self.spec.check(latents).float()).to(latents.dtype)


def open_prior(path: Path | None = None, device: torch.device | str = "cpu") -> Prior:
    """The prior at ``path``, frozen, on ``device``: None = the bundled starter prior, a file = a LAFR prior file,
    a folder = a diffusers UNet folder (see :mod:`lafr_core.latent.sd_prior`). Raises CheckpointError, MissingPackageError.
    """
    path = bundled("prior") if path is None else Path(path)
    if path.is_dir():
        from .sd_prior import open_sd_prior

        return open_sd_prior(path, device=device)
    network = checkpoint.open_network(path, "prior", PriorNet)
    return StarterPrior(network.to(device), family(str(network.config["family"])))
