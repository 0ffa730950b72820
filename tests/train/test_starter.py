"""What the starter nets are trained with: Muon, stored pairs, cheap SSIM."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lafr_core.errors import CheckpointError, InputError, SettingsError
from lafr_core.faces.crop import template_crops
from lafr_core.geometry import ARCFACE_TEMPLATE
from lafr_core.images.metrics import ssim
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.store import checkpoint
from train.data import pairs, windows
from train.data.photos import Portrait
from train.engine import optimizers
from train.judges.losses import sharpness, window_ssim
from train.tasks import starter_stages, thumbnail
from train.tools import arguments


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


def photo(folder: Path, number: int) -> Portrait:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = folder / f"{number}.png"
    Image.fromarray(pixels).resize((600, 600), Image.Resampling.BICUBIC).save(path)
    return Portrait(path, ((200.0, 250.0), (330.0, 252.0), (262.0, 330.0), (210.0, 390.0), (320.0, 388.0)), "drawn")


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

    save_file(shard, str(tmp_path / "starter_0.safetensors"))
    pool = pairs.Pool(tmp_path)
    assert pool.refresh() == 1
    z_lq, z_hq, kind, read = pool.draw(torch.Generator().manual_seed(3), 1)[0]
    assert kind == "starter"
    row = int(torch.equal(z_hq, shard["z_hq"][1].float()))
    assert torch.equal(z_hq, shard["z_hq"][row].float())
    assert any(torch.equal(z_lq, version.float()) for version in shard["z_lq"][row])
    assert torch.equal(read(slice(8, 16), slice(100, 130)), shard["sharp"][row, :, 8:16, 100:130].float() / 255)


def marked(folder: Path, name: str, value: float) -> None:
    """A shard whose latents and pixels are all ``value``."""
    z = torch.full((2, 1, 3, 64, 64), value).half()
    pixels = torch.full((2, 3, 512, 512), round(value * 255), dtype=torch.uint8)
    save_file({"sharp": pixels, "z_hq": z[:, 0].clone(), "z_lq": z}, str(folder / f"{name}.safetensors"))


def test_a_pool_mixes_the_encoders_by_their_share(tmp_path: Path) -> None:
    pool = pairs.Pool(tmp_path, tiny=0.25)
    with pytest.raises(InputError, match=r"expected shards.*train pairs"):
        pool.draw(torch.Generator(), 1)
    marked(tmp_path, "starter_0", 0.25)
    pool.refresh()
    assert {s.kind for s in pool.draw(torch.Generator().manual_seed(0), 40)} == {"starter"}  # none of the other yet
    marked(tmp_path, "tiny_0", 0.75)
    pool.refresh()
    samples = pool.draw(torch.Generator().manual_seed(0), 200)
    kinds = [s.kind for s in samples]
    assert kinds == sorted(kinds) and 35 <= kinds.count("tiny") <= 65
    assert all(float(s.z_lq.mean()) == (0.75 if s.kind == "tiny" else 0.25) for s in samples)
    assert pairs.Pool(tmp_path, tiny=0.0).draw(torch.Generator(), 5)[-1].kind == "starter"


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
    assert float(window_ssim(picture, picture)) == pytest.approx(1.0, abs=1e-5)
    noise = torch.randn_like(picture)
    scores = [float(window_ssim(picture + k * noise, picture)) for k in (0.02, 0.05, 0.1)]
    assert scores == sorted(scores, reverse=True)
    assert scores[1] == pytest.approx(float(ssim(picture + 0.05 * noise, picture)), abs=0.1)


def enlarge(latents: Tensor) -> Tensor:
    """Stands for a decoder: every latent cell becomes 8x8 pixels."""
    return latents.repeat_interleave(8, -1).repeat_interleave(8, -2)


def test_decoded_windows_lie_where_the_sharp_pixels_were_read(tmp_path: Path) -> None:
    torch.manual_seed(4)
    for kind in pairs.KINDS:
        sharp = torch.randint(0, 256, (2, 3, 64, 64)).to(torch.uint8)
        shard = {"sharp": enlarge(sharp).contiguous(), "z_hq": (sharp / 255).half(), "z_lq": (sharp / 255).half()[:, None]}
        save_file(shard, str(tmp_path / f"{kind}_0.safetensors"))
    batch = windows.Windows(pairs.Pool(tmp_path, tiny=0.5), torch.Generator().manual_seed(5), 6)
    read = {"starter": enlarge, "tiny": enlarge}
    groups = batch.decode(read, batch.z_hq)
    assert [group.kind for group in groups] == ["starter", "tiny"]
    assert groups[0].rows.stop == groups[1].rows.start and groups[1].rows.stop == 6
    for group in groups:
        assert group.restored.shape[-1] == 8 * windows.WINDOW[group.kind]
        assert group.restored.shape == group.sharp.shape and torch.allclose(group.restored, group.sharp, atol=1e-3)
    # a kind that nobody can read is left out, and the terms are means over samples, whatever the windows' sizes
    assert [group.kind for group in batch.decode({"starter": enlarge}, batch.z_hq)] == ["starter"]
    black = [
        group._replace(restored=torch.zeros_like(group.sharp), sharp=torch.full_like(group.sharp, 0.1)) for group in groups
    ]
    assert windows.picture_losses(black)["pixel"].item() == pytest.approx(0.1)
    assert windows.picture_losses(groups)["ssim"].item() == pytest.approx(0, abs=1e-3)


def test_thumbnails_start_from_shrunk_pixels_and_show_the_identity_crop(tmp_path: Path) -> None:
    picture = nn.functional.interpolate(torch.rand(2, 3, 20, 20), size=(512, 512), mode="bicubic")
    small = thumbnail.shrunk(picture)
    assert small.shape == (2, 3, 128, 128) and torch.allclose(small[0, 0, 0, 0], picture[0, 0, :4, :4].mean())
    seen: list[Tensor] = []

    class Teacher(nn.Module):
        def with_features(self, faces: Tensor) -> tuple[Tensor, list[Tensor]]:
            seen.append(faces)
            return faces.flatten(1), [faces]

    alike, features = thumbnail.identity_losses(Teacher(), small, small)
    assert float(alike) == pytest.approx(0, abs=1e-5) and float(features) == 0
    assert torch.allclose(seen[0][:2], template_crops(picture, ARCFACE_TEMPLATE, 112), atol=0.1)
    other, features = thumbnail.identity_losses(Teacher(), small, small.flip(0))
    assert float(other) > 0.01 and float(features) > 0.01

    network = thumbnail.ThumbnailNet()
    assert network(torch.zeros(1, 4, 16, 16)).shape == (1, 3, 32, 32)
    with pytest.raises(CheckpointError, match=r"train thumbnail"):
        thumbnail.open_thumbnail(tmp_path / "thumbnail.safetensors")
    save_file(network.state_dict(), str(tmp_path / "thumbnail.safetensors"))
    z = torch.randn(1, 4, 16, 16)
    assert torch.allclose(thumbnail.open_thumbnail(tmp_path / "thumbnail.safetensors")(z), network(z), atol=1e-5)


def test_a_grown_adapter_does_what_it_did(tmp_path: Path) -> None:
    torch.manual_seed(8)
    small = AdapterNet(width=16, coarse=16, deep=16, code_width=8, entries=8, depth=1)
    for parameter in small.parameters():
        nn.init.normal_(parameter, std=0.1)
    checkpoint.save(tmp_path / "a.safetensors", "adapter", small, small.config)
    same = starter_stages.load_adapter(tmp_path / "a.safetensors", depth=1)
    assert starter_stages.load_adapter(tmp_path / "a.safetensors", depth=0).config == small.config  # it never shrinks
    large = starter_stages.load_adapter(tmp_path / "a.safetensors", depth=3, deep_depth=2)
    assert large.config["depth"] == 3 and large.config["deep_depth"] == 2 and same.config == small.config
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in same.parameters())
    z, fidelity = torch.randn(2, 4, 16, 16), torch.full((2, 1, 1, 1), 0.6)
    with torch.no_grad():
        assert torch.allclose(large(z, fidelity).latents, same(z, fidelity).latents, atol=1e-5)
    learning = {name for name, p in large.named_parameters() if p.requires_grad}
    assert "extractor.deep.3.out.weight" in learning and not any("codes" in name for name in learning)


def test_relative_error_counts_mild_and_severe_alike() -> None:
    target = torch.zeros(2, 1, 2, 2)
    before = torch.tensor([0.2, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert float(windows.relative(before / 2, target, before)) == pytest.approx(0.5)


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


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--rate", type=float, default=1.0)
    made.add_argument("--save-every", type=int, required=True)
    made.add_argument("--both", action="store_true")
    made.add_argument("--kind", choices=("a", "b"), default="a")
    made.add_argument("--pair", type=int, nargs=2, default=[1, 2])
    return made


def test_a_config_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("rate: 1e-3\nsave-every: 7\nboth: true\npair: [3, 4]\n")
    got = arguments.parse(parser(), ["--config", str(file), "--save-every", "9"])
    assert (got.rate, got.save_every, got.both, got.kind, got.pair) == (1e-3, 9, True, "a", [3, 4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat: 1", "'rat' is no option; did you mean 'rate'"),
        ("both: 3", "both: expected true or false, got 3"),
        ("save-every: x", "save-every: .*invalid literal.*write it as on the command line"),
        ("kind: c", "kind: expected one of a, b, got 'c'"),
        ("pair: 3", "pair: expected a list of 2, got 3"),
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
        ("train.tasks.vae", "starter_vae", ["--data", "d", "--teacher", "t"]),
        ("train.data.pairs", "starter_pairs", ["--data", "d"]),
        ("train.tasks.starter_restorer", "starter_codebook", ["codebook", "--pairs", "p", "--data", "d"]),
        ("train.tasks.starter_restorer", "starter_adapter", ["adapter", "--pairs", "p", "--data", "d"]),
        ("train.tasks.starter_restorer", "starter_prior", ["prior", "--pairs", "p", "--data", "d"]),
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


@pytest.fixture
def stage_args(tmp_path: Path) -> argparse.Namespace:
    """Options of the starter restorer's trainer over two shards, with a small adapter and codebook in place."""
    torch.manual_seed(9)
    for kind in pairs.KINDS:
        z_hq = torch.randn(2, 4, 64, 64).half()
        sharp = torch.randint(0, 256, (2, 3, 512, 512), dtype=torch.uint8)
        z_lq = (z_hq + 0.5 * torch.randn_like(z_hq))[:, None].contiguous()
        save_file({"sharp": sharp, "z_hq": z_hq, "z_lq": z_lq}, str(tmp_path / f"{kind}_0.safetensors"))
    small = AdapterNet(width=16, coarse=16, deep=16, code_width=8, entries=8, depth=1)
    for name in ("codebook", "adapter"):
        checkpoint.save(tmp_path / f"{name}.safetensors", "adapter", small, small.config)
    return argparse.Namespace(
        out=tmp_path, init=None, init_prior=None, teachers=None, tiny=0.0, depth=1, deep_depth=1, widths=[8, 8, 8], batch=2,
        windows=2, fidelity=0.75, share=0.5, identity_weight=0.0, features_weight=0.0, sharpness=0.0,
    )  # fmt: skip


class _Vae(nn.Module):
    """Decodes three of four latent channels by enlarging them."""

    def decoder(self, latents: Tensor) -> Tensor:
        return enlarge(latents[:, :3])


def descend(net: nn.Module, pulls: starter_stages.Pulls) -> list[Tensor]:
    """The gradients that one step's work sends into the network."""
    net.zero_grad(set_to_none=True)
    torch.autograd.backward(pulls.roots, pulls.gradients)
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_the_adapter_stage_pulls_by_every_term(stage_args: argparse.Namespace) -> None:
    stage = starter_stages.StarterAdapter(stage_args, _Vae())
    pool = pairs.Pool(stage_args.out)
    pulls = stage.pulls(pool, torch.Generator().manual_seed(0))
    assert set(pulls.losses) == {"pixel", "decibel", "ssim", "latent", "anchor"}
    assert any(float(g.abs().sum()) > 0 for g in descend(stage.net, pulls))
    stage_args.identity_weight = 0.1
    with pytest.raises(SystemExit, match="need --teachers"):
        starter_stages.StarterAdapter(stage_args, _Vae())


def test_the_prior_stage_asks_for_sharpness_behind_the_newest_adapter(stage_args: argparse.Namespace) -> None:
    stage = starter_stages.StarterPrior(stage_args, _Vae())
    pool, draw = pairs.Pool(stage_args.out), lambda: torch.Generator().manual_seed(0)
    calm = stage.pulls(pool, draw())
    assert set(calm.losses) == {"pixel", "decibel", "ssim", "latent", "sharpness"} and calm.roots[0].shape == (4, 4, 32, 32)
    assert any(float(g.abs().sum()) > 0 for g in descend(stage.net, calm))
    stage_args.sharpness = 1.0
    pulled = starter_stages.StarterPrior(stage_args, _Vae()).pulls(pool, draw())
    assert not torch.equal(pulled.gradients[0], calm.gradients[0])

    other = AdapterNet(width=16, coarse=16, deep=16, code_width=8, entries=8, depth=1)
    nn.init.normal_(other.mapping.correction.weight)
    checkpoint.save(stage_args.out / "adapter.safetensors", "adapter", other, other.config)
    os.utime(stage_args.out / "adapter.safetensors", (2e9, 2e9))
    assert not torch.equal(stage.pulls(pool, draw()).losses["latent"], calm.losses["latent"])
