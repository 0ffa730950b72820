"""What the starter nets are trained with: Muon, cheap SSIM, sharpness, a thumbnail, networks that grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lafr_core.errors import CheckpointError
from lafr_core.faces.crop import template_crops
from lafr_core.geometry import ARCFACE_TEMPLATE
from lafr_core.images.metrics import ssim
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.prior import PriorNet
from train.engine import optimizers, parts
from train.judges import losses, thumbnail
from train.judges.losses import sharpness, window_ssim


def test_orthogonalised_evens_out_singular_values() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(12, 30) @ torch.diag(torch.logspace(0, -1, 30))
    for m in (matrix, matrix.t()):
        values = torch.linalg.svdvals(optimizers.orthogonalised(m))
        assert values.min() > 0.5 and values.max() < 1.3
        # the same rotation as the exact polar factor
        u, _, v = torch.linalg.svd(m, full_matrices=False)
        assert torch.nn.functional.cosine_similarity(optimizers.orthogonalised(m).flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_muon_moves_vectors_and_tables_as_adamw_does() -> None:
    ours, theirs = nn.ParameterList([torch.tensor([1.0, -2.0])]), nn.ParameterList([torch.tensor([1.0, -2.0])])
    muon = optimizers.make("muon", ours, lr=0.1, weight_decay=0.01)
    adamw = optimizers.make("adamw", theirs, lr=0.1, weight_decay=0.01)
    for _ in range(4):
        for parameters, optimizer in ((ours, muon), (theirs, adamw)):
            optimizer.zero_grad()
            (parameters[0] ** 2).sum().backward()
            optimizer.step()
    assert torch.allclose(ours[0], theirs[0], atol=1e-6)

    table = nn.Embedding(3, 2)
    before = table.weight.detach().clone()
    optimizer = optimizers.make("muon", table, lr=0.1, weight_decay=0.0)
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    moved = table.weight.detach() - before
    assert torch.equal(moved[0], torch.zeros(2)) and torch.allclose(moved[1], torch.full((2,), -0.1), atol=1e-4)


def test_muon_steps_have_the_size_of_adamw_steps_and_descend() -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(4, 8, 3, bias=False)
    wanted = torch.randn_like(layer.weight)
    optimizer = optimizers.make("muon", layer, lr=0.1, weight_decay=0.0)
    before = layer.weight.detach().clone()
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer.weight - wanted).square().mean()
        errors.append(loss.item())
        loss.backward()
        optimizer.step()
        if len(errors) == 1:
            step = (layer.weight.detach() - before).square().mean().sqrt()
            assert 0.01 < float(step) < 0.04  # lr times 0.2 in the paper's scale
    assert errors[-1] < 0.5 * errors[0]


def test_similarity_is_ssim_to_train_by() -> None:
    torch.manual_seed(2)
    picture = nn.functional.interpolate(torch.rand(1, 3, 12, 12), size=(96, 96), mode="bicubic").clamp(0, 1)
    assert float(window_ssim(picture, picture)) == pytest.approx(1.0, abs=1e-5)
    noise = torch.randn_like(picture)
    scores = [float(window_ssim(picture + k * noise, picture)) for k in (0.02, 0.05, 0.1)]
    assert scores == sorted(scores, reverse=True)
    assert scores[1] == pytest.approx(float(ssim(picture + 0.05 * noise, picture)), abs=0.1)


def test_thumbnails_start_from_shrunk_pixels_and_are_opened_by_their_sizes(tmp_path: Path) -> None:
    picture = nn.functional.interpolate(torch.rand(2, 3, 20, 20), size=(512, 512), mode="bicubic")
    small = thumbnail.shrunk(picture)
    assert small.shape == (2, 3, 128, 128) and torch.allclose(small[0, 0, 0, 0], picture[0, 0, :4, :4].mean())
    network = thumbnail.ThumbnailNet(channels=5, width=8)
    assert network(torch.zeros(1, 5, 16, 16)).shape == (1, 3, 32, 32)
    with pytest.raises(CheckpointError, match=r"train thumbnail"):
        thumbnail.open_thumbnail(tmp_path / "thumbnail.safetensors")
    save_file(network.state_dict(), str(tmp_path / "thumbnail.safetensors"))
    z = torch.randn(1, 5, 16, 16)
    assert torch.allclose(thumbnail.open_thumbnail(tmp_path / "thumbnail.safetensors")(z), network(z), atol=1e-5)


def test_feature_maps_are_those_of_the_identity_crop() -> None:
    seen: list[Tensor] = []

    class Teacher(nn.Module):
        def with_features(self, faces: Tensor) -> tuple[Tensor, list[Tensor]]:
            seen.append(faces)
            return faces.flatten(1), [faces, 2 * faces]

    embed = losses.MobileFaceEmbedder(Teacher())
    small = torch.rand(2, 3, 128, 128)
    assert float(losses.feature_distance(small, small, embed.maps)) == 0
    assert torch.equal(seen[0], template_crops(small, ARCFACE_TEMPLATE, 112))
    a, b = (template_crops(x, ARCFACE_TEMPLATE, 112) for x in (small, small.flip(0)))
    wanted = float((a - b).abs().mean() / b.abs().mean())  # relative, so both maps count alike
    assert float(losses.feature_distance(small, small.flip(0), embed.maps)) == pytest.approx(wanted, rel=1e-4)


def test_a_grown_network_does_what_it_did() -> None:
    torch.manual_seed(8)
    small = AdapterNet(width=16, coarse=16, deep=16, code_width=8, entries=8, depth=1)
    prior = PriorNet(widths=(8, 8, 8), depth=1, groups=0, attention=False, sharpen=0.5)
    for parameter in (*small.parameters(), *prior.parameters()):
        nn.init.normal_(parameter, std=0.1)
    assert parts.grown(small, depth=0) is small  # it never shrinks
    large, deeper = parts.grown(small, depth=3, deep_depth=2), parts.grown(prior, depth=3)
    assert large.config["depth"] == 3 and large.config["deep_depth"] == 2 and deeper.config["depth"] == 3
    assert deeper.config["sharpen"] == 0.5 and small.config["depth"] == 1
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in small.parameters())
    z, fidelity = torch.randn(2, 4, 16, 16), torch.full((2, 1, 1, 1), 0.6)
    with torch.no_grad():
        assert torch.allclose(large(z, fidelity).latents, small(z, fidelity).latents, atol=1e-5)
        assert torch.allclose(deeper(z), prior(z), atol=1e-5) and not torch.allclose(prior(z), z)


def test_relative_error_counts_mild_and_severe_alike() -> None:
    target = torch.zeros(2, 1, 2, 2)
    before = torch.tensor([0.2, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert float(losses.relative(before / 2, target, before)) == pytest.approx(0.5)


def test_sharpness_is_the_edge_energy_that_is_missing_or_too_much() -> None:
    torch.manual_seed(7)
    sharp = torch.rand(2, 3, 32, 32)
    soft = nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    assert sharpness(sharp, sharp).item() == 0
    assert sharpness(soft, sharp).item() > sharpness(0.5 * soft + 0.5 * sharp, sharp).item() > 0
    assert sharpness(1.5 * sharp, sharp).item() == pytest.approx(2 * np.log(1.5), rel=0.01)
    assert sharpness(sharp.flip(-1), sharp).item() == pytest.approx(0, abs=1e-4)  # where the energy lies is left open
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert sharpness(flat + 0.2 / 255 * torch.randn_like(flat), flat).item() < 0.2
