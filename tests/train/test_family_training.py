"""Adapters for further latent families: the start taken over from another adapter, and a few steps of training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.spec import family
from train import config
from train.tasks import families
from train.tasks.families import Pairs

SMALL = {"width": 8, "coarse": 16, "deep": 16, "code_width": 4, "entries": 6, "depth": 1, "grid": 64}


@pytest.fixture
def donor() -> AdapterNet:
    network = AdapterNet(**{**SMALL, "deep": 32, "depth": 2})
    for p in network.parameters():  # also what starts as 0
        nn.init.normal_(p, std=0.1)
    return network.requires_grad_(False)


@pytest.fixture
def conf() -> config.Config:
    sizes = [v for key, value in SMALL.items() for v in (f"--network.{key}", str(value))]
    return config.parse(["--models.family", "flux", *sizes])


@pytest.fixture
def pairs() -> Pairs:
    """Six degraded faces; the family's latents are a fixed mix of the donor's, 16 channels of 4."""
    mix = torch.randn(16, 4)
    z_hq, z_lq = torch.randn(6, 4, 16, 16), torch.randn(6, 4, 16, 16)
    own_hq, own_lq = (torch.einsum("oc,nchw->nohw", mix, z) for z in (z_hq, z_lq))
    return Pairs(torch.cat([own_hq, z_hq], 1), torch.cat([own_lq, z_lq], 1), torch.zeros(6, 2, dtype=torch.int64))


def test_fit_finds_the_convolution_that_made_the_targets() -> None:
    truth, layer = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
    x = torch.randn(6, 3, 12, 12)
    with torch.no_grad():
        families.fit(layer, x, truth(x), ridge=0.0)
    torch.testing.assert_close(layer.weight, truth.weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(layer.bias, truth.bias, rtol=0, atol=1e-4)


def test_inherit_copies_what_fits_and_picks_channels_of_each_group(donor: AdapterNet) -> None:
    network = AdapterNet(**{**SMALL, "channels": 16})
    stem = network.extractor.stem.weight.clone()
    with torch.no_grad():
        families.inherit(network, donor)
    ours, theirs = network.state_dict(), donor.state_dict()
    assert torch.equal(ours["extractor.stem.weight"], stem)  # another number of channels: left as it was
    assert torch.equal(ours["mapping.up.conv.weight"], theirs["mapping.up.conv.weight"])
    chosen = torch.tensor([group * 4 + k for group in range(8) for k in range(2)])
    assert torch.equal(ours["extractor.down_deep.weight"], theirs["extractor.down_deep.weight"][chosen])
    assert torch.equal(ours["extractor.up.conv.weight"], theirs["extractor.up.conv.weight"][:, chosen])
    qkv = theirs["extractor.deep.1.qkv.weight"].reshape(3, 32, 32, 1, 1)[:, chosen][:, :, chosen]
    assert torch.equal(ours["extractor.deep.1.qkv.weight"], qkv.reshape(48, 16, 1, 1))
    assert torch.equal(ours["extractor.deep.1.position"], theirs["extractor.deep.1.position"][:, chosen])


def test_a_grafted_adapter_sees_what_the_donor_sees(conf: config.Config, donor: AdapterNet, pairs: Pairs) -> None:
    network = families.grafted(conf, family("flux"), donor, pairs)
    assert network.config["family"] == "flux" and network.config["channels"] == 16
    own, theirs = pairs.z_hq[:, :16], pairs.z_hq[:, 16:]
    with torch.no_grad():
        torch.testing.assert_close(network.extractor.stem(own), donor.extractor.stem(theirs), rtol=0, atol=0.02)
        before = (pairs.z_lq[:, :16] - own).square().mean()
        after = (network(pairs.z_lq[:, :16], torch.full((6, 1, 1, 1), 0.75)).latents - own).square().mean()
    assert after < before  # the last layers are the least squares answer


def test_a_window_gets_its_part_of_the_position_table() -> None:
    network = AdapterNet(**SMALL)
    part = families.table(network, torch.zeros(2, 4, 32, 32), torch.tensor([[0, 8], [3, 0]]))
    whole = network.extractor.get_parameter(families.POSITION)
    assert torch.equal(part, torch.cat([whole[..., 0:8, 8:16], whole[..., 3:11, 0:8]]))
    z, w, corner = torch.randn(2, 4, 64, 64), torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, 2, dtype=torch.int64)
    assert torch.equal(families.aligned_there(network, z, w, corner).latents, network(z, w).latents)


def test_colours_are_those_of_the_decoded_cells() -> None:
    class Painter:
        spec = family("sd")

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(latents[:, 1:] * 0.5, scale_factor=8)

    z = torch.randn(8, 4, 16, 16)
    torch.testing.assert_close(families.colours(Painter(), z)(z), z[:, 1:] * 0.5, rtol=0, atol=0.02)  # type: ignore[arg-type]
