"""Latents of a low-quality face -> latents where a high-quality face would be, through the LAFR adapter."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..store import checkpoint
from ..store.assets import bundled
from ..types import Alignment, LatentSpec
from .networks.adapter import AdapterNet, AdapterOutput
from .networks.confidence import ConfidenceNet
from .spec import family


class Adapter:
    """The adapter network behind :class:`~lafr_core.types.Aligner`. Runs in float32 on the network's device.

    ``judge`` says how far the aligned latents may be believed. Without one, for families that none was trained for, the
    confidence tells how near the features lie to the codes, which says little: docs/identity.md has the figures.
    """

    def __init__(self, network: AdapterNet, spec: LatentSpec, judge: ConfidenceNet | None = None) -> None:
        self.network, self.spec, self.judge = network, spec, judge

    def __call__(self, latents: Tensor, fidelity: float) -> Alignment:
        """Latents (B, C, h, w) UNet-scaled, h and w multiples of 4; fidelity in [0, 1], 1 = stay closest to the input.

        Raises InputError for another latent family, NaN, or a fidelity out of range.
        """
        self.spec.check(latents)
        if any(side % 4 for side in latents.shape[-2:]):
            raise InputError(f"adapter: expected latents with sides that are multiples of 4, got {tuple(latents.shape[-2:])}")
        if not 0.0 <= fidelity <= 1.0:
            raise InputError(f"fidelity: expected 0 to 1, got {fidelity}")
        output = self.network(latents.float(), latents.new_full((latents.shape[0], 1, 1, 1), fidelity, dtype=torch.float32))
        return Alignment(output.latents.to(latents.dtype), self._confidence(latents.float(), output))

    def _confidence(self, latents: Tensor, output: AdapterOutput) -> Tensor:
        if self.judge is not None:
            return self.judge.confidence(latents, output.latents)
        near = self.network.codebook.confidence(output.match.distance)
        return F.interpolate(near, size=latents.shape[-2:], mode="bilinear", align_corners=False)


def open_adapter(path: Path | None = None, device: torch.device | str = "cpu", *, latents: str = "sd") -> Adapter:
    """The adapter file at ``path``, frozen, float32, on ``device``; None = the bundled one for the ``latents`` of that family.

    Its family's bundled confidence file, where there is one, judges what it makes. Raises InputError for an unknown family,
    CheckpointError.
    """
    path = bundled("adapter", family(latents).name) if path is None else Path(path)
    network = checkpoint.open_network(path, "adapter", AdapterNet)
    spec = family(str(network.config["family"]))
    known = bundled("confidence", spec.name)
    judge = checkpoint.open_network(known, "confidence", ConfidenceNet).to(device) if known.is_file() else None
    return Adapter(network.to(device), spec, judge)
