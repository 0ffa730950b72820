"""benchmarks/few_step.py: denoise 0 is the adapter alone, and the table says what was measured against it."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.few_step import finished, table
from benchmarks.quality import METRICS, Case
from lafr_core.latent.adapter import open_adapter
from lafr_core.latent.vae import open_vae
from lafr_core.settings import RestoreSettings


class Brighter:
    name, timestep = "brighter", 0

    def __call__(self, latents: Tensor) -> Tensor:
        return latents + 0.5


def test_denoise_0_is_the_adapter_alone() -> None:
    low = torch.rand((1, 3, 512, 512), generator=torch.Generator().manual_seed(0))
    vae, adapter, settings = open_vae(), open_adapter(), RestoreSettings(color=0.0)
    made = finished(Case("one", (), low, low), vae, adapter, {"0.3": Brighter()}, settings)  # type: ignore[dict-item]
    assert list(made) == ["0", "0.3"]
    with torch.no_grad():
        aligned = adapter(vae.encode(low), settings.fidelity).latents
        assert torch.equal(made["0"], vae.decode(aligned)) and torch.equal(made["0.3"], vae.decode(aligned + 0.5))


def test_the_table_has_means_and_the_paired_difference() -> None:
    def row(identity: float) -> dict[str, float]:
        return {**dict.fromkeys(METRICS, 0.5), "identity": identity}

    rows = [{"0": row(0.5), "0.3": row(0.75)}, {"0": row(0.25), "0.3": row(0.625)}]
    first, second = table("medium", rows).splitlines()[2:]
    assert first == "| 0 | 0.50 | 0.500 | 0.375 | +0.000 ± 0.000 | 50.0 % | 0.50 | 0.500 |"
    assert second == "| 0.3 | 0.50 | 0.500 | 0.688 | +0.312 ± 0.122 | 50.0 % | 0.50 | 0.500 |"
