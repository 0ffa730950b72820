"""Adapters for further latent families: the start taken over from another adapter, and a few steps of training."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.spec import family
from train.engine import optimizers
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
def pairs(monkeypatch: pytest.MonkeyPatch) -> Pairs:
    """Six faces of two degradations; the family's latents are a fixed mix of the donor's, 16 channels of 4."""
    monkeypatch.setattr(families, "SIZES", SMALL)
    mix = torch.randn(16, 4)
    z_hq, z_lq = torch.randn(6, 4, 16, 16), torch.randn(6, 2, 4, 16, 16)
    own_hq = torch.einsum("oc,nchw->nohw", mix, z_hq)
    own_lq = torch.einsum("oc,nvchw->nvohw", mix, z_lq)
    return Pairs(torch.cat([own_hq, z_hq], 1), torch.cat([own_lq, z_lq], 2), torch.zeros(6, 2, dtype=torch.int64))


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


def test_a_grafted_adapter_sees_what_the_donor_sees(donor: AdapterNet, pairs: Pairs) -> None:
    network = families.grafted(family("flux"), donor, pairs, fidelity=0.75)
    assert network.config["family"] == "flux" and network.config["channels"] == 16
    own, theirs = pairs.z_hq[:, :16], pairs.z_hq[:, 16:]
    with torch.no_grad():
        torch.testing.assert_close(network.extractor.stem(own), donor.extractor.stem(theirs), rtol=0, atol=0.02)
        before = (pairs.z_lq[:, 0, :16] - own).square().mean()
        after = (network(pairs.z_lq[:, 0, :16], torch.full((6, 1, 1, 1), 0.75)).latents - own).square().mean()
    assert after < before  # the last layers are the least squares answer


def test_draw_mirrors_both_alike_and_their_place() -> None:
    z = torch.arange(32.0).expand(2, 1, 32, 32)  # windows of half the crop's side
    pairs = Pairs(z, z[:, None] + 100, torch.tensor([[1, 3], [1, 3]]))
    low, sharp, corner = families.draw(pairs, 32, torch.Generator().manual_seed(0))
    assert torch.equal(low, sharp + 100)
    mirrored = sharp[:, 0, 0, 0] == 31
    assert 0 < mirrored.sum() < 32
    assert corner.tolist() == [[1, 5 if m else 3] for m in mirrored]  # 3 cells left of 8 are 5 to their right


def test_a_window_gets_its_part_of_the_position_table() -> None:
    network = AdapterNet(**SMALL)
    part = families.table(network, torch.zeros(2, 4, 32, 32), torch.tensor([[0, 8], [3, 0]]))
    whole = network.extractor.get_parameter(families.POSITION)
    assert torch.equal(part, torch.cat([whole[..., 0:8, 8:16], whole[..., 3:11, 0:8]]))
    z, w, corner = torch.randn(2, 4, 64, 64), torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, 2, dtype=torch.int64)
    assert torch.equal(families.aligned_there(network, z, w, corner).latents, network(z, w).latents)


def test_pairs_are_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        families, "drawn", lambda photo, generator, versions: (torch.rand(3, 512, 512), torch.rand(2, 3, 512, 512))
    )
    encode = lambda pixels: pixels[..., ::8, ::8].contiguous(memory_format=torch.channels_last)
    photos = list(range(40))
    made = families.make_pairs(photos, lambda: encode, tmp_path, count=32, versions=2, window=256, seed=3)  # type: ignore[arg-type]
    assert made.z_hq.shape == (32, 3, 32, 32) and made.z_lq.shape == (32, 2, 3, 32, 32) and made.corner.shape == (32, 2)
    assert made.corner.min() >= 0 and made.corner.max() <= 8 and len(made.corner.unique()) > 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0000.safetensors", "0030.safetensors"]
    again = families.make_pairs(photos, pytest.fail, tmp_path, count=32, versions=2, window=256, seed=3)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))


def test_a_donors_pairs_are_all_shards_as_both_families(tmp_path: Path) -> None:
    shards = {"starter_0": torch.rand(2, 4, 8, 8).half(), "starter_1": torch.rand(1, 4, 8, 8).half()}
    for name, z_hq in shards.items():
        tensors = {"z_hq": z_hq, "z_lq": torch.stack([z_hq, z_hq + 1, z_hq + 2], 1)}
        save_file(tensors, str(tmp_path / f"{name}.safetensors"))
    pairs = families.stored_pairs(tmp_path)
    whole = torch.cat(list(shards.values()))
    assert torch.equal(pairs.z_hq, torch.cat([whole, whole], 1))
    assert pairs.z_lq.shape == (3, 3, 8, 8, 8) and torch.equal(pairs.z_lq[:, 2, 4:], whole + 2)


def test_windows_are_cut_alike_from_all_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.arange(512 * 512).reshape(1, 512, 512).expand(3, 512, 512).float()
    monkeypatch.setattr(families, "drawn", lambda photo, generator, versions: (picture, picture.expand(versions, 3, 512, 512)))
    row = families.windowed(None, [1, 2], 2, 256, lambda pixels: pixels[..., ::8, ::8] / 8)  # type: ignore[arg-type]
    top, left = (row["corner"] * 32).tolist()
    assert row["z_hq"].shape == (3, 32, 32) and row["z_lq"].shape == (2, 3, 32, 32)
    assert torch.equal(row["z_hq"], (picture[:, top : top + 256 : 8, left : left + 256 : 8] / 8).half())
    assert torch.equal(row["z_lq"], row["z_hq"].expand(2, 3, 32, 32))


def test_colours_are_those_of_the_decoded_cells() -> None:
    class Painter:
        spec = family("sd")

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(latents[:, 1:] * 0.5, scale_factor=8)

    z = torch.randn(8, 4, 16, 16)
    torch.testing.assert_close(families.colours(Painter(), z)(z), z[:, 1:] * 0.5, rtol=0, atol=0.02)  # type: ignore[arg-type]


def test_the_colour_term_draws_the_colours_closer(donor: AdapterNet, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    colour = torch.nn.Conv2d(16, 3, 3, padding=1).requires_grad_(False)
    own = Pairs(pairs.z_hq[:, :16], pairs.z_lq[:, :, :16], pairs.corner)
    args = argparse.Namespace(steps=30, batch=4, lr=2e-3, fidelity=0.75, seed=0)
    errors = []
    for weight in (0.0, 5.0):
        monkeypatch.setattr(families, "COLOUR", weight)
        slow = families.train(families.grafted(family("flux"), donor, pairs, fidelity=0.75), own, colour, args)
        with torch.no_grad():
            z = slow(own.z_lq[:, 0], torch.full((6, 1, 1, 1), 0.75)).latents
            errors.append((colour(z) - colour(own.z_hq)).square().mean())
    assert errors[1] < errors[0]


def test_learning_rate() -> None:
    assert optimizers.warm_cosine(0, 0 / 600, 1.0, families.WARM_UP) == pytest.approx(1 / families.WARM_UP, rel=1e-3)
    assert optimizers.warm_cosine(300, 300 / 600, 1.0, families.WARM_UP) == pytest.approx(0.51)
    assert optimizers.warm_cosine(600, 600 / 600, 1.0, families.WARM_UP) == pytest.approx(0.02)


def test_training_brings_the_latents_closer(donor: AdapterNet, pairs: Pairs) -> None:
    network = families.grafted(family("flux"), donor, pairs, fidelity=0.75)
    own = Pairs(pairs.z_hq[:, :16], pairs.z_lq[:, :, :16], pairs.corner)
    args = argparse.Namespace(steps=30, batch=4, lr=2e-3, fidelity=0.75, seed=0)
    z_lq, z_hq, w = own.z_lq[:, 0], own.z_hq, torch.full((6, 1, 1, 1), 0.75)
    with torch.no_grad():
        before = (network(z_lq, w).latents - z_hq).abs().mean()
    slow = families.train(network, own, None, args)
    with torch.no_grad():
        after = (slow(z_lq, w).latents - z_hq).abs().mean()
    assert after < before
    assert not any(p.requires_grad for p in slow.parameters()) and not slow.training
    again = families.train(families.grafted(family("flux"), donor, pairs, fidelity=0.75), own, None, args)
    assert all(torch.equal(a, b) for a, b in zip(slow.state_dict().values(), again.state_dict().values(), strict=True))
