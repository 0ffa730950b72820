"""The decoder's finish on fresh faces: what is decoded, what the critic sees of it, and the rate that falls by the clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kill_test import same
from torch import nn
from train_tiny import adapter_at, settings

from lafr_core.errors import InputError, LafrError
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import assets, checkpoint
from train import config
from train.engine import checkpoints, loop, run
from train.engine.journal import read_rows
from train.tasks import codebook, decoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny adapter and a tiny prior, both of which change what they are given."""
    made = tmp_path_factory.mktemp("decoder")
    adapter_at(made)
    prior = PriorNet(widths=(8, 8, 8), depth=1, groups=0)
    nn.init.normal_(prior.out.weight, std=0.1)
    checkpoint.save(made / "prior.safetensors", "prior", prior, prior.config)
    return made


def tiny(folder: Path, **overrides: object) -> config.Config:
    return settings(folder, "run", **{
        "models.adapter": folder / "adapter.safetensors", "decoder.prior": folder / "prior.safetensors", "data.severity": "mix",
        "decoder.steps": 4, "decoder.batch": 4, "decoder.features": "random;random", "decoder.restored": 0.5,
        "decoder.finished": 0.5, "decoder.coarse": 4.0, "decoder.warmup": 0, "log.every": 1, "log.save_every": 2, "log.keep": 9,
        **overrides,
    })  # fmt: skip


def test_it_learns_from_whole_faces_and_resumes_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    conf = tiny(folder, **{"log.out": tmp_path / "run"})
    finished = checkpoint.open_network(decoder.run(conf), "vae", StarterVaeNet).state_dict()
    out = tmp_path / "run" / "decoder"
    whole, before = (checkpoints.load_state(out / f"step_0000000{n}") for n in (4, 2))
    assert same(whole["weights"], before["weights"])
    (out / "step_00000004").rename(tmp_path / "whole")
    decoder.run(conf)
    assert same(whole, checkpoints.load_state(out / "step_00000004")) == []
    shipped = checkpoint.open_network(assets.bundled("vae"), "vae", StarterVaeNet).state_dict()
    assert {n.split(".")[0] for n, t in finished.items() if not torch.equal(t, shipped[n])} == {"decoder"}
    rows = read_rows(out / "log.csv")
    assert all(row[name] > 0 for row in rows for name in ("pixel", "coarse", "lattice", "near")) and rows[0]["gain"] == 0


def test_latents_are_of_the_kind_that_was_drawn(folder: Path) -> None:
    conf = tiny(folder)
    task = decoder.DecoderTask(conf, CPU, run.collectives())
    samples = decoder.samples_of(conf)
    batch = {name: torch.stack([samples[i][name] for i in range(4)]) for name in ("hq", "lq", "fidelity")}
    batch["kind"] = torch.tensor([decoder.FINISHED, decoder.SECOND, decoder.CLEAN, decoder.ALIGNED])
    sources = task.sources
    assert sources is not None and sources.adapter is not None and sources.prior is not None
    sources.second = SimpleNamespace(encode=lambda x: torch.full((len(x), 4, 8, 8), 9.0))  # type: ignore[assignment]
    z = sources.latents(batch)
    with torch.no_grad():
        clean, low = sources.encoder(batch["hq"]), sources.encoder(batch["lq"])
        aligned = sources.adapter(low, batch["fidelity"].view(-1, 1, 1, 1)).latents
        wanted = [sources.prior(aligned[:1])[0], torch.full((4, 8, 8), 9.0), clean[2], aligned[3]]
    assert all(torch.allclose(got, want, atol=1e-4) for got, want in zip(z, wanted, strict=True))
    assert not torch.allclose(wanted[0], aligned[0], atol=1e-3) and not torch.allclose(aligned[3], low[3], atol=1e-3)
    with pytest.raises(InputError, match=r"decoder\.restored: needs an adapter"):
        decoder.DecoderTask(tiny(folder, **{"models.adapter": "none"}), CPU, run.collectives())


def test_kinds_come_by_their_shares_and_views_lie_in_the_face(folder: Path) -> None:
    conf = tiny(folder, **{"decoder.restored": 0.25, "decoder.finished": 0.5})
    drawn = [decoder.own_draws(conf.data, conf.decoder, 0.25, np.random.default_rng(i)) for i in range(800)]
    counts = np.bincount([int(d["kind"]) for d in drawn], minlength=4) / 800
    assert counts == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.05)
    for near, last in ((1, 32), (2, 48)):
        at = np.asarray([d["view"][:2].tolist() for d in drawn if int(d["view"][2]) == near])
        assert 300 < len(at) < 500 and at.min() == 0 and at.max() == last
    assert {int(decoder.samples_of(conf)[i]["kind"]) for i in range(30)} <= {decoder.CLEAN, decoder.ALIGNED, decoder.FINISHED}


def test_coarse_holds_colours_and_each_setting_counts(folder: Path) -> None:
    found = []
    for more in ({}, {"decoder.coarse": 0}, {"decoder.restored": 0}, {"decoder.prior": ""}, {"decoder.start": 1}):
        conf = tiny(folder, **more)
        task = decoder.DecoderTask(conf, CPU, run.collectives())
        samples = decoder.samples_of(conf)
        batch = {name: torch.stack([samples[i][name] for i in range(8)]) for name in samples[0]}
        found.append({name: float(term.detach()) for name, term in task.losses(task.model, batch).items()})
    usual, flat, clean, shipped, late = found
    assert flat["coarse"] == 0 and usual["coarse"] > 0 and usual["pixel"] == flat["pixel"]
    assert len({usual["pixel"], clean["pixel"], shipped["pixel"]}) == 3 and usual["fool"] != late["fool"] == 0


def test_a_rate_can_fall_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second here: the rate is at its end when the minutes are, whatever the steps say."""
    conf = settings(tmp_path, "run", **{
        "codebook.steps": 1000, "codebook.kmeans_at": [0], "codebook.warmup": 1, "codebook.lr": 1e-3,
        "codebook.falls": "linear", "log.minutes": 1 / 6, "log.clock": True, "log.every": 1,
    })  # fmt: skip
    ticks = iter(range(1000))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(ticks)))
    run.run(codebook.CodebookTask, conf)
    rates = [row["lr"] for row in read_rows(Path(conf.log.out) / "codebook" / "log.csv")]
    assert 1 < len(rates) < 20 and rates == sorted(rates, reverse=True) and rates[0] > 5 * rates[-1]
    stage = replace(conf.codebook, hold=0.5)
    assert [loop.rate(5, stage, share) for share in (0.5, 0.75, 1.0)] == pytest.approx([1e-3, 5e-4, 2e-5])
    with pytest.raises(LafrError, match=r"log\.clock: expected log\.minutes above 0"):
        config.parse(["--log.clock", "true"])
