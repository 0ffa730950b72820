"""What the starter nets are trained with: Muon, stored pairs, cheap SSIM."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lafr_core.crop import template_crops
from lafr_core.errors import SettingsError
from lafr_core.geometry import ARCFACE_TEMPLATE
from lafr_core.metrics import ssim
from train import adversary, arguments, optimizers, pairs, starter_restorer
from train.faces import Photo
from train.losses import similarity, texture


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


def photo(folder: Path, number: int) -> Photo:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = folder / f"{number}.png"
    Image.fromarray(pixels).resize((600, 600), Image.Resampling.BICUBIC).save(path)
    return Photo(path, ((200.0, 250.0), (330.0, 252.0), (262.0, 330.0), (210.0, 390.0), (320.0, 388.0)), "drawn")


def shrink(pixels: Tensor) -> Tensor:
    """Stands for an encoder: (B, 3, 512, 512) -> (B, 3, 64, 64)."""
    return nn.functional.avg_pool2d(pixels, 8)


def test_a_shard_is_drawn_the_same_again_and_read_back(tmp_path: Path) -> None:
    photos = [photo(tmp_path, n) for n in range(2)]
    shard = pairs.make_shard(photos, [[0, 0, 0], [0, 0, 1]], 2, shrink)
    again = pairs.make_shard(photos[1:], [[0, 0, 1]], 2, shrink)
    assert shard["z_lq"].shape == (2, 2, 3, 64, 64) and shard["sharp"].dtype == torch.uint8
    assert torch.equal(shard["z_lq"][1], again["z_lq"][0]) and torch.equal(shard["sharp"][1], again["sharp"][0])
    assert not torch.equal(shard["z_lq"][0, 0], shard["z_lq"][0, 1])
    # the sharp latents are those of the sharp pixels
    assert torch.allclose(shrink(shard["sharp"].float() / 255), shard["z_hq"].float(), atol=4e-3)

    save_file(shard, str(tmp_path / "a.safetensors"))
    pool = pairs.Pool(tmp_path)
    assert pool.refresh() == 1
    z_lq, z_hq, read = pool.draw(torch.Generator().manual_seed(3), 1)[0]
    row = int(torch.equal(z_hq, shard["z_hq"][1].float()))
    assert torch.equal(z_hq, shard["z_hq"][row].float())
    assert any(torch.equal(z_lq, version.float()) for version in shard["z_lq"][row])
    assert torch.equal(read(slice(8, 16), slice(100, 130)), shard["sharp"][row, :, 8:16, 100:130].float() / 255)


def test_finished_shards_are_kept_and_the_rest_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [photo(tmp_path, n) for n in range(3)]
    monkeypatch.setattr(pairs, "PHOTOS", 2)
    monkeypatch.setattr(pairs, "read_split", lambda root, split: photos)
    monkeypatch.setattr(pairs, "starter_encoder", lambda path: shrink)
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["pairs", "--data", str(tmp_path), "--out", str(out), "--rounds", "1", "--versions", "1"])
    pairs.main()
    files = sorted(out.iterdir())
    assert [len(load_file(f)["z_hq"]) for f in files] == [2, 1]
    files[1].unlink()
    kept = files[0].stat().st_mtime_ns
    pairs.main()
    assert sorted(out.iterdir()) == files and files[0].stat().st_mtime_ns == kept


def test_similarity_is_ssim_to_train_by() -> None:
    torch.manual_seed(2)
    picture = nn.functional.interpolate(torch.rand(1, 3, 12, 12), size=(96, 96), mode="bicubic").clamp(0, 1)
    assert float(similarity(picture, picture)) == pytest.approx(1.0, abs=1e-5)
    noise = torch.randn_like(picture)
    scores = [float(similarity(picture + k * noise, picture)) for k in (0.02, 0.05, 0.1)]
    assert scores == sorted(scores, reverse=True)
    assert scores[1] == pytest.approx(float(ssim(picture + 0.05 * noise, picture)), abs=0.1)


def enlarge(latents: Tensor) -> Tensor:
    """Stands for a decoder: every latent cell becomes 8x8 pixels."""
    return latents.repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.mark.parametrize("face", [False, True])
def test_decoded_windows_lie_where_the_sharp_pixels_were_read(tmp_path: Path, face: bool) -> None:
    torch.manual_seed(4)
    sharp = torch.randint(0, 256, (2, 3, 64, 64)).to(torch.uint8)
    shard = {"sharp": enlarge(sharp).contiguous(), "z_hq": (sharp / 255).half(), "z_lq": (sharp / 255).half()[:, None]}
    save_file(shard, str(tmp_path / "a.safetensors"))
    batch = starter_restorer.Windows(pairs.Pool(tmp_path), torch.Generator().manual_seed(5), 3, face)
    groups = batch.decode(_Enlarge(), batch.z_hq)
    assert [len(decoded) for decoded, _ in groups] == ([1, 2] if face else [3])
    for decoded, pixels in groups:
        assert decoded.shape == pixels.shape and torch.allclose(decoded, pixels, atol=1e-3)


class _Enlarge(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return enlarge(latents)


def test_the_face_window_holds_the_whole_identity_crop() -> None:
    picture = nn.functional.interpolate(torch.rand(1, 3, 20, 20), size=(512, 512), mode="bicubic")
    cut = starter_restorer.FACE
    window = picture[..., cut.start * 8 : cut.stop * 8, cut.start * 8 : cut.stop * 8]
    seen: list[Tensor] = []

    class Teacher(nn.Module):
        def with_features(self, faces: Tensor) -> tuple[Tensor, list[Tensor]]:
            seen.append(faces)
            return faces.flatten(1), [faces]

    alike, features = starter_restorer.identity_losses(Teacher(), window, window)
    assert float(alike) == pytest.approx(0, abs=1e-5) and float(features) == 0
    assert torch.allclose(seen[0][:1], template_crops(picture, ARCFACE_TEMPLATE, 112), atol=1e-4)


def test_the_critic_learns_to_tell_and_teaches_only_the_restorer() -> None:
    torch.manual_seed(6)
    critic = adversary.LatentCritic(channels=2, width=8)
    sharp, restored = torch.randn(4, 2, 16, 16), (torch.randn(4, 2, 16, 16) * 0.1).requires_grad_(True)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2)
    first = adversary.critic_loss(critic, restored, sharp).item()
    for _ in range(30):
        optimizer.zero_grad()
        adversary.critic_loss(critic, restored, sharp).backward()
        optimizer.step()
    assert adversary.critic_loss(critic, restored, sharp).item() < 0.7 * first
    assert restored.grad is None
    score, matching = adversary.restorer_losses(critic, restored, sharp)
    (score + matching).backward()
    assert restored.grad is not None and float(restored.grad.abs().sum()) > 0
    # one step along the gradient raises the score, and sharp latents match themselves
    better = adversary.restorer_losses(critic, (restored - 5 * restored.grad).detach(), sharp)[0]
    assert better.item() < score.item()
    critic.eval()  # spectral normalisation moves with every training pass
    assert adversary.restorer_losses(critic, sharp, sharp)[1].item() == 0


def test_relative_error_counts_mild_and_severe_alike() -> None:
    target = torch.zeros(2, 1, 2, 2)
    before = torch.tensor([0.2, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert float(starter_restorer.relative(before / 2, target, before)) == pytest.approx(0.5)


def test_texture_asks_for_the_edge_energy_of_the_original_and_ignores_noise() -> None:
    torch.manual_seed(7)
    sharp = torch.rand(1, 3, 32, 32)
    soft = nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    assert texture(sharp, sharp).item() == 0
    assert texture(soft, sharp).item() > texture(0.5 * soft + 0.5 * sharp, sharp).item() > 0
    assert texture(1.5 * sharp, sharp).item() == pytest.approx(2 * np.log(1.5), rel=0.01)  # too crisp costs as well
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert texture(flat + 0.2 / 255 * torch.randn_like(flat), flat).item() < 0.1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--rate", type=float, default=1.0)
    made.add_argument("--save-every", type=int, required=True)
    made.add_argument("--both", action="store_true")
    made.add_argument("--kind", choices=("a", "b"), default="a")
    return made


def test_a_config_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("rate: 1e-3\nsave-every: 7\nboth: true\n")
    got = arguments.parse(parser(), ["--config", str(file), "--save-every", "9"])
    assert (got.rate, got.save_every, got.both, got.kind) == (1e-3, 9, True, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat: 1", "'rat' is no option; did you mean 'rate'"),
        ("both: 3", "both: expected true or false, got 3"),
        ("save-every: x", "save-every: .*invalid literal.*write it as on the command line"),
        ("kind: c", "kind: expected one of a, b, got 'c'"),
    ],
)
def test_a_bad_config_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        arguments.parse(parser(), ["--config", str(file), "--save-every", "9"])


@pytest.mark.parametrize(
    ("module", "config", "rest"),
    [
        ("train.starter_vae", "starter_vae", ["--data", "d", "--teacher", "t"]),
        ("train.pairs", "starter_pairs", ["--data", "d"]),
        ("train.starter_restorer", "starter_codebook", ["codebook", "--pairs", "p", "--data", "d"]),
        ("train.starter_restorer", "starter_adapter", ["adapter", "--pairs", "p", "--data", "d"]),
        ("train.starter_restorer", "starter_prior", ["prior", "--pairs", "p", "--data", "d"]),
    ],
)
def test_the_committed_configs_fit_their_trainers(
    module: str, config: str, rest: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parsed(Exception):
        pass

    real = arguments.parse

    def stop(*given: Any) -> None:
        real(*given)
        raise Parsed

    file = Path(__file__).parents[2] / "train" / "configs" / f"{config}.yaml"
    monkeypatch.setattr(arguments, "parse", stop)
    monkeypatch.setattr("sys.argv", [module, *rest, "--config", str(file)])
    with pytest.raises(Parsed):
        importlib.import_module(module).main()
