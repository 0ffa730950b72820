"""Stored pairs, and every stage that learns from them: what is stored, what a batch holds, and exact resumes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kill_test import same
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_tiny import adapter_at, settings

from lafr_core.errors import InputError, LafrError
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.confidence import ConfidenceNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import assets, checkpoint
from train import config
from train.data import pairs, windows
from train.data.faces import Picture, find_pictures, stream
from train.data.pairs import StoredPairs
from train.engine import checkpoints, loop, parts, run
from train.engine.journal import read_rows
from train.judges import shown
from train.judges.losses import Critics
from train.judges.views import look
from train.tasks import adapter, codebook, confidence, critic, decoder, diffusion, families, prior, thumbnail, vae

STAGES = ("vae", "thumbnail", "codebook", "adapter", "confidence", "prior", "critic", "decoder", "diffusion", "families")


def stored(folder: Path, out: str = "run", **overrides: object) -> config.Config:
    """A run of four steps on pairs of eight drawn faces of 64 pixels."""
    values = {
        "data.pairs": folder / "pairs", "data.severity": "mix", "pairs.shard": 3, "pairs.versions": 2, "pairs.precision": "no",
        **{f"{stage}.steps": 4 for stage in STAGES},
        **{f"{stage}.batch": 2 for stage in ("vae", "thumbnail", "confidence", "critic", "decoder", "diffusion", "families")},
        "codebook.kmeans_at": [0, 2], "log.save_every": 2, "log.every": 1, **overrides,
    }  # fmt: skip
    return settings(folder, out, **values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs that keep everything: clean and degraded pixels, the second latents, aligned ones."""
    folder = tmp_path_factory.mktemp("stored")
    conf = stored(folder, **{"pairs.degraded": True, "models.adapter": adapter_at(folder), "pairs.aligned": True})
    pairs.run(conf)
    whole = folder / "pairs"
    for file in whole.glob("*.safetensors"):  # the starter's latents, without running the real one: the same in its place
        shard = load_file(str(file))
        save_file({**shard, "y_hq": shard["z_hq"].clone(), "y_lq": shard["z_lq"].clone()}, str(file))
    return folder


def test_shards_are_resumed_shared_between_processes_and_refuse_other_settings(made: Path, tmp_path: Path) -> None:
    conf = stored(made, **{"data.pairs": tmp_path / "two", "pairs.rounds": 2})
    pictures = find_pictures("drawn:8")
    encode: Callable[[Tensor], Tensor] = lambda x: nn.functional.avg_pool2d(x, 8)
    calls: list[int] = []

    def maker() -> pairs.Maker:
        calls.append(1)
        return pairs.Maker(conf, encode)

    for rank in (1, 0):
        pairs.make(conf, maker, pictures, rank, 2)
    files = sorted((tmp_path / "two").glob("*.safetensors"))
    assert [len(load_file(str(f))["z_hq"]) for f in files] == [3, 3, 2, 3, 3, 2]
    kept, before = files[1].stat().st_mtime_ns, load_file(str(files[4]))
    files[4].unlink()
    pairs.make(conf, maker, pictures)
    assert files[1].stat().st_mtime_ns == kept and len(calls) == 3
    assert all(torch.equal(value, before[name]) for name, value in load_file(str(files[4])).items())  # the same draws
    pairs.make(conf, pytest.fail, pictures)  # all there: no network is opened
    with pytest.raises(InputError, match="holds pairs whose severity is 'mix', this run's is 'mild'"):
        pairs.make(replace(conf, data=replace(conf.data, severity="mild")), maker, pictures)


def test_a_row_is_what_its_pixels_say(made: Path) -> None:
    conf = stored(made, **{"pairs.degraded": True, "pairs.window": 32, "data.size": 64})
    encode: Callable[[Tensor], Tensor] = lambda x: nn.functional.avg_pool2d(x, 8)
    maker = pairs.Maker(conf, encode, beside=lambda x: -encode(x), align=lambda z, f: z + f)
    row = maker.row(Picture("drawn 3", number=3), [5, 0, 3])
    again = maker.row(Picture("drawn 3", number=3), [5, 0, 3])
    assert all(torch.equal(row[name], again[name]) for name in row)
    assert row["sharp"].shape == (3, 32, 32) and row["spoilt"].shape == (2, 3, 32, 32) and row["corner"].max() <= 1
    assert torch.allclose(encode(row["sharp"][None].float() / 255)[0], row["z_hq"].float(), atol=4e-3)
    assert torch.allclose(encode(row["spoilt"].float() / 255), row["z_lq"].float(), atol=4e-3)
    assert torch.equal(row["y_lq"], -row["z_lq"]) and not torch.equal(row["z_lq"][0], row["z_lq"][1])
    wanted = row["z_lq"].float() + row["fidelity"].view(-1, 1, 1, 1)
    assert torch.allclose(row["z_al"].float(), wanted, atol=2e-3) and len(row["fidelity"].unique()) == 2


def test_samples_are_addressed_by_position_and_windows_lie_where_they_say(made: Path) -> None:
    conf = stored(made, **{"data.window": 3, "data.windows": 2, "data.around": 5})
    samples = pairs.StoredPairs(conf.data, seed=4)
    one, again = samples[7], pairs.StoredPairs(conf.data, seed=4)[7]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert sorted(int(samples[i]["index"]) for i in range(8)) == list(range(8))  # an epoch sees every row once
    row = int(one["index"])
    whole = samples.first.read(row, "sharp").float() / 255
    for at, window in zip(one["corner"].tolist(), one["sharp"], strict=True):
        top, left = (v * 8 for v in at)
        assert torch.equal(window, whole[:, top : top + 24, left : left + 24])
        assert all(1 <= v <= 4 for v in at)  # one cell is left around it on every side
    assert 0 <= float(one["fidelity"]) <= 1 and "hq" not in one
    plain = pairs.StoredPairs(replace(conf.data, window=0, around=0), seed=4)[7]
    assert torch.equal(plain["hq"], whole) and torch.equal(plain["z_hq"], one["z_hq"])


def test_two_folders_mix_by_their_share(made: Path, tmp_path: Path) -> None:
    save_file(
        {"z_hq": torch.full((2, 4, 8, 8), 9.0), "z_lq": torch.full((2, 1, 4, 8, 8), 9.0)}, str(tmp_path / "a.safetensors")
    )
    data = replace(stored(made).data, second_pairs=str(tmp_path), second_share=0.25)
    samples = [pairs.StoredPairs(data, 0, pixels=False)[i] for i in range(200)]
    second = [s for s in samples if int(s["kind"])]
    assert 30 <= len(second) <= 70 and all(float(s["z_hq"].mean()) == 9 for s in second)
    assert not any(float(s["z_hq"].mean()) == 9 for s in samples if not int(s["kind"]))
    with pytest.raises(InputError, match="holds no pixels"):
        pairs.StoredPairs(data, 0)
    with pytest.raises(InputError, match=r"expected shards.*python -m train pairs"):
        pairs.StoredPairs(replace(data, pairs=str(tmp_path / "none")), 0)


def test_the_middle_of_a_face_gets_its_share_of_windows() -> None:
    data = config.Data(window=16, around=32, middle=1.0)
    drawn = np.asarray([pairs.corner(np.random.default_rng(i), data, 64) for i in range(300)])
    assert drawn.min(0).tolist() == [14, 13] and drawn.max(0).tolist() == [31, 35]  # the windows' own corners, 8 further in
    anywhere = np.asarray([pairs.corner(np.random.default_rng(i), replace(data, middle=0.0), 64) for i in range(300)])
    assert anywhere.min() == 8 and anywhere.max() == 40


def test_cut_takes_each_samples_own_window() -> None:
    z = torch.arange(2 * 36.0).view(2, 1, 6, 6)
    corner = torch.tensor([[[1, 2], [2, 1]], [[2, 2], [1, 1]]])
    got = windows.cut(z, corner, 2)
    assert got.shape == (4, 1, 2, 2) and got[0, 0].tolist() == [[8, 9], [14, 15]] and got[3, 0, 0, 0] == 36 + 7
    wide = windows.cut(z, corner, 2, around=4)
    assert wide.shape == (4, 1, 4, 4) and torch.equal(windows.inner(wide, 2), got)


def enlarge(latents: Tensor) -> Tensor:
    """Stands for a decoder: every cell of the first three channels becomes 8x8 pixels."""
    return latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)


def test_windows_of_two_kinds_are_decoded_each_by_its_own_and_weigh_by_their_number(made: Path) -> None:
    sizes = {"data.window": 4, "data.second_window": 2, "data.around": 6}
    conf = stored(made, **{**sizes, "loss.pixel": 1.0, "loss.sharpness": 1.0})
    z = torch.rand(3, 4, 8, 8)
    batch = {"kind": torch.tensor([0, 1, 0]), "corner": torch.tensor([[[0, 0]], [[2, 1]], [[4, 4]]])}
    truth = enlarge(windows.cut(z, batch["corner"], 4)).view(3, 1, 3, 32, 32)
    batch["sharp"] = truth
    view = shown.Shown(conf, [enlarge, lambda x: enlarge(x) + 0.3], torch.device("cpu"))
    terms = view.terms(z, batch, Critics(), z)
    assert float(terms["pixel"]) == pytest.approx(0.1, abs=1e-5)  # one of three windows is 0.3 off
    assert float(terms["sharpness"]) == pytest.approx(0, abs=1e-5)  # held to the decoded clean latents, not to the pixels
    only = shown.Shown(conf, [enlarge, None], torch.device("cpu")).terms(z, batch, Critics(), z)
    assert float(only["pixel"]) == pytest.approx(0, abs=1e-6)  # a kind that nobody can read is left out
    around = windows.cut(z, batch["corner"].clamp(1, 3), 4, 6)
    assert view._window(around, batch).shape[-1] == 4
    with pytest.raises(InputError, match=r"loss.identity: wants whole faces.*models.thumbnail"):
        shown.Shown(replace(conf, loss=replace(conf.loss, identity=0.1)), [enlarge], torch.device("cpu"))


def tasks(folder: Path) -> dict[str, tuple[Callable[[config.Config], Path], dict[str, object]]]:
    """Every stage that learns from stored pairs, and what it needs beside the common settings."""
    around = {"data.window": 2, "data.around": 4, "network.prior_groups": 0, "network.prior_attention": False}
    given = {"models.adapter": folder / "adapter.safetensors"}
    view = {
        "data.window": 4,
        "data.windows": 2,
        "loss.relative": 0.5,
        "loss.ssim": 0.5,
        "loss.decibel": 0.1,
        "loss.gradient": 1.0,
    }
    return {
        "vae": (vae.run, {"vae.patch": 6}),
        "thumbnail": (thumbnail.run, {}),
        "codebook": (lambda c: run.run(codebook.CodebookTask, c), {}),
        "adapter": (lambda c: run.run(adapter.AdapterTask, c), {**view, "models.init": folder / "adapter.safetensors"}),
        "confidence": (confidence.run, {**given, "confidence.width": 8, "confidence.deep": 8}),
        "prior": (lambda c: run.run(prior.PriorTask, c), {**around, **given, "loss.sharpness": 0.3}),
        "critic": (critic.run, {**around, **given, "critic.features": "random", "critic.identity": 0.0, "critic.beta1": 0.5}),
        "decoder": (decoder.run, {**around, "decoder.features": "random", "decoder.beta1": 0.5}),
        "diffusion": (diffusion.run, {"diffusion.channels": [32, 32], "diffusion.layers": 1}),
        "families": (
            families.run,
            {"families.colour": 0, "families.donor": folder / "adapter.safetensors", "network.code_width": 16},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns_from_stored_pairs_and_resumes_to_the_same_bits(made: Path, tmp_path: Path, stage: str) -> None:
    if stage == "diffusion":
        pytest.importorskip("diffusers")
    start, needs = tasks(made)[stage]
    conf = stored(made, **{**needs, "log.out": tmp_path / "run", "log.keep": 9})
    start(conf)
    out = tmp_path / "run" / stage
    whole = checkpoints.load_state(out / "step_00000004")
    before = checkpoints.load_state(out / "step_00000002")
    assert same(whole["weights"], before["weights"])  # it learned something between the two
    (out / "step_00000004").rename(tmp_path / "whole")
    start(conf)
    assert same(whole, checkpoints.load_state(out / "step_00000004")) == []
    with (out / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_files_that_stages_leave_open_again(made: Path, tmp_path: Path) -> None:
    for stage, kind, network in (
        ("vae", "vae", StarterVaeNet),
        ("critic", "prior", PriorNet),
        ("families", "adapter", AdapterNet),
        ("confidence", "confidence", ConfidenceNet),
    ):
        start, needs = tasks(made)[stage]
        path = start(stored(made, **{**needs, "log.out": tmp_path / stage, f"{stage}.steps": 1}))
        opened = checkpoint.open_network(path, kind, network)  # type: ignore[type-var]
        weights = parts.averaged(checkpoints.load_state(checkpoints.newest(path.parent) or path))
        name, value = next(iter(opened.state_dict().items()))
        assert torch.allclose(value, weights.get(name, weights.get(f"network.{name}")), atol=1e-3)


def test_the_finish_moves_the_decoder_only_and_starts_at_what_it_was(made: Path, tmp_path: Path) -> None:
    """The latents keep their meaning: encoder bit for bit, and without a step the decoder too."""
    start, needs = tasks(made)["decoder"]
    conf = stored(made, **{**needs, "log.out": tmp_path / "run", "decoder.warmup": 0})
    first = decoder.DecoderTask(conf, torch.device("cpu"), run.collectives())
    batch = {name: torch.stack([decoder.Patches(conf)[i][name] for i in (0, 1)]) for name in decoder.Patches(conf)[0]}
    first.losses(first.model, batch)
    assert float(first.finish()["gain"]) == 0  # the decoder before and now are one
    shipped = checkpoint.open_network(assets.bundled("vae"), "vae", StarterVaeNet).state_dict()
    finished = checkpoint.open_network(start(conf), "vae", StarterVaeNet).state_dict()
    moved = {name.split(".")[0] for name, value in finished.items() if not torch.equal(value, shipped[name])}
    assert moved == {"decoder"}
    learned = parts.averaged(checkpoints.load_state(checkpoints.newest(tmp_path / "run" / "decoder") or tmp_path))
    old = shipped["decoder.out.bias"]
    assert torch.allclose(finished["decoder.out.bias"], old + 0.85 * (learned["out.bias"] - old), atol=1e-3)
    kept = decoder.blended(first.before, learned, 0.0)
    assert all(torch.equal(value, shipped[f"decoder.{name}"]) for name, value in kept.items())


def test_patches_hold_the_pixels_of_their_latents(made: Path, tmp_path: Path) -> None:
    conf = stored(
        made, **{**tasks(made)["decoder"][1], "data.window": 3, "data.around": 5, "decoder.own": 0.5, "decoder.restored": 0.0}
    )
    patches = decoder.Patches(conf)
    one, again = patches[5], decoder.Patches(conf)[5]
    assert all(torch.equal(one[name], again[name]) for name in one)
    cells = (slice(None), *around(one["corner"], 1, 5))
    row = next(r for r in range(8) if torch.equal(patches.shards.read(r, "z_hq")[cells].float(), one["latents"]))
    whole = patches.shards.read(row, "sharp").float() / 255
    top, left = (8 * int(v) for v in one["corner"])
    assert torch.equal(one["pixels"], whole[:, top : top + 24, left : left + 24])
    aligned = decoder.Patches(replace(conf, decoder=replace(conf.decoder, restored=1.0)))
    found = [aligned.shards.read(row, "z_al", v)[cells].float() for v in (0, 1)]
    assert any(torch.equal(aligned[5]["latents"], z) for z in found) and torch.equal(aligned[5]["pixels"], one["pixels"])
    with pytest.raises(InputError, match=r"expected pairs with y_hq, found"):
        decoder.Patches(replace(conf, data=replace(conf.data, pairs=str(plain_pairs(made, tmp_path)))))


def test_the_critic_looks_from_another_place_and_nearer() -> None:
    x = torch.arange(2 * 3 * 24 * 24.0).view(2, 3, 24, 24)
    seen = look(x, torch.tensor([[3, 5, 1], [8, 2, 2]]), 16)
    assert seen.shape == (2, 3, 16, 16) and torch.allclose(seen[0], x[0, :, 3:19, 5:21], atol=1e-2)
    assert torch.allclose(seen[1].mean(), x[1, :, 8:16, 2:10].mean())
    views = {tuple(decoder.Patches.view(np.random.default_rng(i)).tolist()) for i in range(400)}
    assert {v[2] for v in views} == {1, 2} and {v[0] for v in views} == set(range(9)) == {v[1] for v in views}


def test_a_lattice_is_what_repeats_from_cell_to_cell() -> None:
    g = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 3, 64, 64, generator=g)
    dot = torch.zeros(8, 8)
    dot[2, 5] = 0.1
    grid = dot.repeat(8, 8).expand(1, 3, 64, 64)
    assert float(decoder.lattice(photo, photo)) == 0
    alone = float(decoder.lattice(photo + grid, photo))
    assert alone == pytest.approx(0.1 * (1 / 64 * (1 - 1 / 81) + 63 / 64 / 81), rel=0.2)  # the dots, and their blur taken off
    stripes = torch.zeros(64, 64)
    stripes[:, ::16] = 0.1  # every other cell: half of a lattice
    assert 0 < float(decoder.lattice(photo + stripes, photo)) < 8 * alone / 2
    assert float(decoder.lattice(photo + grid.flip(1) * 2, photo)) == pytest.approx(2 * alone, rel=1e-4)


def around(corner: Tensor, margin: int, side: int) -> tuple[slice, slice]:
    """The cells from ``margin`` before a corner on."""
    top, left = (int(v) - margin for v in corner)
    return slice(top, top + side), slice(left, left + side)


def plain_pairs(made: Path, folder: Path) -> Path:
    """The same pairs without the starter's latents."""
    for file in (made / "pairs").glob("*.safetensors"):
        save_file({k: v for k, v in load_file(str(file)).items() if not k.startswith("y_")}, str(folder / file.name))
    return folder


def test_confidence_learns_the_error_of_every_cell(made: Path, tmp_path: Path) -> None:
    """On the scale that it will be read at, and where no aligned latents were stored, of what the adapter makes of them."""
    _, needs = tasks(made)["confidence"]
    conf = stored(
        made, **{**needs, "log.out": tmp_path / "run", "confidence.steps": 100, "confidence.ema": 0.9, "confidence.lr": 0.01}
    )
    opened = checkpoint.open_network(confidence.run(conf), "confidence", ConfidenceNet)
    samples = StoredPairs(conf.data, conf.seed, pixels=False)
    sharp = torch.stack([samples.first.read(row, "z_hq").float() for row in range(len(samples))])
    assert float(opened.spread) == pytest.approx(float((sharp - sharp.mean(0)).abs().mean()), rel=1e-3)
    rows = [samples[position] for position in range(8)]
    lq, al, hq = (torch.stack([row[name] for row in rows]) for name in ("z_lq", "z_al", "z_hq"))
    said, true = opened(lq, al), (al - hq).abs().mean(1, keepdim=True)
    assert said.shape == true.shape and float(said.mean() / true.mean()) == pytest.approx(1.0, abs=0.25)
    network = checkpoint.open_network(made / "adapter.safetensors", "adapter", AdapterNet)
    batch = {"z_lq": lq, "fidelity": torch.full((8,), 0.5)}
    assert torch.equal(parts.aligned_latents({**batch, "z_al": al}, network), al)
    assert torch.equal(parts.aligned_latents(batch, None), lq)
    expected = network(lq, torch.full((8, 1, 1, 1), 0.5)).latents
    assert torch.allclose(parts.aligned_latents(batch, network), expected, atol=1e-5)
    assert not parts.aligned_latents(batch, network.requires_grad_(True)).requires_grad  # the adapter is given, not learned


def test_a_finished_adapter_is_fine_tuned_and_carries_its_own_architecture(made: Path, tmp_path: Path) -> None:
    """Its sizes are not the config's: the checkpoint says how it is built, and it grows where the config asks for more."""
    from train.tools.export import export

    odd = AdapterNet(width=16, coarse=16, deep=16, code_width=8, entries=9, depth=1, grid=8)
    checkpoint.save(tmp_path / "odd.safetensors", "adapter", odd, odd.config)
    more = {"models.init": tmp_path / "odd.safetensors", "network.depth": 2, "loss.pixel": 0}
    conf = stored(made, **{**more, "log.out": tmp_path / "run"})
    run.run(adapter.AdapterTask, conf)
    (file,) = export(tmp_path / "run", "adapter", tmp_path)
    opened = checkpoint.open_network(file, "adapter", AdapterNet)
    assert opened.config == {**odd.config, "depth": 2}
    assert torch.allclose(opened.codebook.codes.weight, odd.codebook.codes.weight, atol=1e-3)  # fine-tuning leaves the codes
    assert not torch.allclose(opened.extractor.stem.weight, odd.extractor.stem.weight, atol=1e-6)


def test_other_models_processes_and_precision_are_refused_by_name(made: Path, tmp_path: Path) -> None:
    _, needs = tasks(made)["adapter"]
    conf = stored(made, **{**needs, "log.out": tmp_path / "run"})
    run.run(adapter.AdapterTask, conf)
    network = AdapterNet(width=8, coarse=16, deep=16, code_width=16, entries=16, depth=1, grid=8)
    checkpoint.save(tmp_path / "other.safetensors", "adapter", network, network.config)
    other = replace(conf, models=replace(conf.models, init=str(tmp_path / "other.safetensors")))
    with pytest.raises(LafrError, match=r"this run's models differs from the checkpoint's \(init:"):
        run.run(adapter.AdapterTask, other)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((made / "adapter.safetensors").read_bytes())
    run.run(
        adapter.AdapterTask, replace(conf, models=replace(conf.models, init=str(moved)))
    )  # the same file elsewhere is the same
    half = replace(conf, adapter=replace(conf.adapter, precision="bf16"))
    assert checkpoints.fingerprint("adapter", half, "") != checkpoints.fingerprint("adapter", conf, "")
    one, two = (checkpoints.fingerprint("adapter", conf, "", n) for n in (1, 2))
    assert [key for key in one if one[key] != two[key]] == ["processes"]


ALONE = run.Collectives(lambda t: t, lambda t: t, lambda t: t)
META = torch.device("meta")


def on_meta(stage: str, conf: config.Config) -> loop.Task:
    """The stage's task as a run on another device builds it, here on ``meta``, for want of a GPU."""
    where = parts.vae_of(conf, torch.device("cpu"))
    if stage == "critic":
        return critic.CriticTask(conf, where, META, ALONE)
    if stage == "diffusion":
        task = diffusion.DiffusionTask(conf, 8)
        task.model.to(META)
        return task
    kinds = {"codebook": codebook.CodebookTask, "adapter": adapter.AdapterTask, "prior": prior.PriorTask}
    return kinds[stage](conf, where, Critics(), META, ALONE)


@pytest.mark.filterwarnings("ignore:.*is a no-op")
@pytest.mark.parametrize("stage", ["codebook", "adapter", "prior", "critic", "diffusion"])
def test_a_checkpoint_is_read_on_the_cpu_and_follows_the_model_to_its_device(made: Path, tmp_path: Path, stage: str) -> None:
    if stage == "diffusion":
        pytest.importorskip("diffusers")
    start, needs = tasks(made)[stage]
    conf = stored(made, **{**needs, "log.out": tmp_path / "run", f"{stage}.steps": 1})
    start(conf)
    task = on_meta(stage, conf)
    settings_: config.Stage = getattr(conf, stage)
    optimizer, average = loop.make_optimizer(task.model, settings_), loop.Average(task.model, 0.9)
    path = checkpoints.newest(tmp_path / "run" / stage)
    assert path is not None
    step = loop.load(path, task, optimizer, average, SimpleNamespace(scaler=None), {"stage": stage})
    assert step == 1 and optimizer.state
    held = {
        "weights": task.weights(),
        "average": average.slow,
        "task": task.state(),
        "moments": [
            {name: value for name, value in kept.items() if name != "step"}  # counts may stay with the host
            for kept in optimizer.state.values()
        ],
    }
    strays = [where for where, value in flat(held) if value.device != META]
    assert [where for where in strays if not where.endswith((".step", "generator"))] == []


def flat(value: Any, where: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a nested state with its path."""
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, (dict, list, tuple)):
        pairs_ = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs_:
            yield from flat(inner, f"{where}.{key}")


def test_clean_latents_alone_serve_the_diffusion_stage_and_no_other(made: Path, tmp_path: Path) -> None:
    _, needs = tasks(made)["diffusion"]
    conf = stored(made, **{**needs, "data.pairs": tmp_path / "clean", "pairs.versions": 0, "pairs.pixels": False})
    pairs.run(conf)
    shard, whole = (load_file(str(sorted(folder.glob("*.safetensors"))[0])) for folder in (tmp_path / "clean", made / "pairs"))
    assert shard["z_lq"].shape == (3, 0, 4, 8, 8)
    assert torch.allclose(shard["z_hq"].float(), whole["z_hq"].float(), atol=2e-3)  # the same draws
    sample = pairs.StoredPairs(conf.data, 0, pixels=False, degraded=False)[0]
    assert "z_lq" not in sample and sample["z_hq"].shape == (4, 8, 8)
    with pytest.raises(InputError, match=r"holds clean latents alone \(pairs.versions 0\); this stage needs degraded ones"):
        pairs.StoredPairs(conf.data, 0, pixels=False)
    pytest.importorskip("diffusers")
    assert (diffusion.run(replace(conf, log=replace(conf.log, out=str(tmp_path / "run")))) / "config.json").is_file()


def test_noise_is_a_samples_own(made: Path) -> None:
    """Whatever it is batched with: two processes draw what one with the whole batch draws; the next step draws anew."""
    pytest.importorskip("diffusers")
    task = diffusion.DiffusionTask(stored(made, **tasks(made)["diffusion"][1]), 8)
    z, index = torch.zeros(3, 4, 8, 8), torch.tensor([5, 2, 7])
    t, noise = task.draw(z, index)
    t_two, two = task.draw(z[:2], index[1:])
    assert torch.equal(two, noise[1:]) and torch.equal(t_two, t[1:]) and not torch.equal(noise[0], noise[1])
    task.begin(task.model, None, 1)
    assert not torch.equal(task.draw(z, index)[1], noise) and noise.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("windows", [{"data.window": 0}, {"data.window": 2, "data.windows": 2, "data.middle": 0.5}])
def test_held_pairs_make_the_same_batches(made: Path, windows: dict[str, object]) -> None:
    conf = stored(made, **windows)
    one, held = StoredPairs(conf.data, 3), StoredPairs(replace(conf.data, held=True), 3)
    single = next(iter(stream(one, 2, batch=3, accumulate=1, workers=0)))
    together = next(iter(stream(held, 2, batch=3, accumulate=1)))
    assert single.keys() == together.keys() and "z_al" in single and ("sharp" in single) == bool(windows["data.window"])
    for name, value in single.items():
        assert value.dtype == together[name].dtype and torch.equal(value, together[name]), name


def test_only_what_can_be_held_is(made: Path) -> None:
    with pytest.raises(LafrError, match=r"data\.held: expected no data.second_pairs beside it"):
        stored(made, **{"data.held": True, "data.second_pairs": made / "pairs"})
    conf = stored(made, **{"data.held": True})
    with pytest.raises(InputError, match="makes its samples one by one"):
        stream(SimpleNamespace(data=conf.data), 0, batch=1, accumulate=1)  # type: ignore[arg-type]


def test_workers_draw_the_same_pairs(made: Path, tmp_path: Path) -> None:
    conf = stored(made, **{"data.pairs": tmp_path / "pairs", "pairs.workers": 2, "pairs.degraded": True})
    pairs.run(conf)
    ours, theirs = (sorted(folder.glob("*.safetensors")) for folder in (tmp_path / "pairs", made / "pairs"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    for a, b in zip(ours, theirs, strict=True):
        one, other = load_file(str(a)), load_file(str(b))
        assert all(torch.equal(one[name], other[name]) for name in ("sharp", "spoilt", "corner")), a.name
        assert torch.allclose(one["z_hq"].float(), other["z_hq"].float(), atol=2e-3)


def test_a_run_stops_when_its_minutes_are_over_and_goes_on_to_the_same_weights(made: Path, tmp_path: Path) -> None:
    whole = stored(made, **{"log.out": tmp_path / "whole", "data.held": True})
    last = run.run(codebook.CodebookTask, whole)
    bits = stored(made, **{"log.out": tmp_path / "bits", "log.minutes": 1e-9})
    steps = [run.run(codebook.CodebookTask, bits).name for _ in range(5)]
    assert steps == [f"step_{n:08d}" for n in (1, 2, 3, 4, 4)]
    assert same(checkpoints.load_state(last), checkpoints.load_state(tmp_path / "bits" / "codebook" / steps[-1]))


def test_the_best_need_not_be_saved(made: Path, tmp_path: Path) -> None:
    conf = stored(made, **{"log.out": tmp_path / "run", "log.validate_every": 1, "log.save_best": False, "log.save_every": 99})
    scores = iter([1.0, 2.0, 3.0, 4.0])
    run.run(codebook.CodebookTask, conf, lambda task, device: {"identity": next(scores)})
    assert [path.name for path in checkpoints.steps(tmp_path / "run" / "codebook")] == ["step_00000004"]


def test_what_a_run_returns_is_its_best_checkpoint(made: Path, tmp_path: Path) -> None:
    conf = stored(made, **{"log.out": tmp_path / "run", "log.validate_every": 1, "log.save_every": 99})
    scores = iter([1.0, 3.0, 2.0, 1.0])
    best = run.run(codebook.CodebookTask, conf, lambda task, device: {"identity": next(scores)})
    assert best.name == "step_00000002" and checkpoints.newest(best.parent) == best.parent / "step_00000004"


def test_the_diffusion_prior_goes_on_from_another_and_is_watched(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    _, needs = tasks(made)["diffusion"]
    conf = stored(made, **{**needs, "log.out": tmp_path / "run", "log.validate_every": 2, "log.best": "psnr"})
    unet = diffusion.run(conf, pairs.Shards(conf.data.pairs))
    rows = read_rows(tmp_path / "run" / "diffusion" / "validation.csv")
    assert [row["step"] for row in rows] == [2, 4] and all(-3 < row["psnr"] < 0 for row in rows)
    more = diffusion.DiffusionTask(replace(conf, models=replace(conf.models, unet=str(unet))), 8)
    fresh = diffusion.DiffusionTask(conf, 8)
    trained = load_file(str(unet / "diffusion_pytorch_model.safetensors"))
    best = max(rows, key=lambda row: row["psnr"])["step"]
    weights = parts.averaged(checkpoints.load_state(tmp_path / "run" / "diffusion" / f"step_{best:08d}"))
    assert all(torch.equal(trained[name], t) for name, t in weights.items())
    assert all(torch.equal(trained[name], t) for name, t in more.weights().items())
    assert not all(torch.equal(trained[name], t) for name, t in fresh.weights().items())
    assert all(p.requires_grad for p in more.model.parameters())
