"""The three stages on self-drawn faces: they run, learn, log, save, resume exactly, and stop with a sentence when they must."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_test import kill_and_resume, same
from torch import Tensor
from train_tiny import settings

from lafr_core.errors import CheckpointError, LafrError
from train import config
from train.engine import checkpoints, loop, run
from train.tasks import adapter, codebook, prior

TASKS = {"codebook": codebook.CodebookTask, "adapter": adapter.AdapterTask, "prior": prior.PriorTask}


def short(folder: Path, out: str = "run", **overrides: object) -> config.Config:
    return settings(
        folder, out, **{"codebook.steps": 4, "adapter.steps": 4, "prior.steps": 4, "codebook.kmeans_at": [0, 2], **overrides}
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, config.Config]:
    """All three stages, four steps each, with sample sheets and plots."""
    folder = tmp_path_factory.mktemp("ran")
    conf = short(folder, **{"data.validation": "drawn:2", "log.plots": True, "log.every": 2, "log.keep": 1})
    for task in TASKS.values():
        run.run(task, conf)
    return folder, conf


@pytest.mark.parametrize("stage", TASKS)
def test_a_stage_leaves_checkpoint_log_plot_and_sheet(ran: tuple[Path, config.Config], stage: str) -> None:
    _, conf = ran
    out = Path(conf.log.out) / stage
    assert [p.name for p in checkpoints.steps(out)] == ["step_00000004"]  # keep = 1
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(float(row["loss"]) > 0 and row["latent"] and row["lr"] and row["drawn_quality"] for row in rows)
    assert (out / "curves.png").stat().st_size > 1000 and (out / "samples" / "00000004.png").is_file()
    assert len((out / "files.txt").read_text().splitlines()) == 8
    made = checkpoints.run_of(out / "step_00000004")
    assert made["stage"] == stage and len(made["manifest"]) == 64 and made["seed"] == 0 and made["revision"]
    assert config.from_mapping(config.read_yaml(out / "step_00000004" / "config.yaml")) == conf


def test_code_usage_is_logged(ran: tuple[Path, config.Config]) -> None:
    with (Path(ran[1].log.out) / "codebook" / "log.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert 1 <= float(row["perplexity"]) <= 16 and 0 < float(row["codes_used"]) <= 1 and row["codes_revived"] != ""


def test_stages_leave_frozen_parts_alone(ran: tuple[Path, config.Config]) -> None:
    """The adapter stage changes the extractor and the gates, never the codebook."""
    out = Path(ran[1].log.out)
    before = checkpoints.load_state(out / "codebook" / "step_00000004")
    after = checkpoints.load_state(out / "adapter" / "step_00000004")["weights"]
    start = {**before["weights"], **before["average"]}
    assert torch.equal(start["codebook.codes.weight"], after["codebook.codes.weight"])
    assert not torch.equal(start["extractor.stem.weight"], after["extractor.stem.weight"])
    assert after["mapping.fine_gate.weight"].abs().max() > 0  # zero before: the fidelity skip has learned something


def test_a_frozen_mapping_learns_only_what_fidelity_adds(ran: tuple[Path, config.Config], tmp_path: Path) -> None:
    conf = replace(
        ran[1],
        adapter=replace(ran[1].adapter, train_mapping=False),
        models=replace(ran[1].models, codebook=ran[1].log.out),
        log=replace(ran[1].log, out=str(tmp_path), plots=False),
    )
    run.run(adapter.AdapterTask, conf)
    before = checkpoints.load_state(Path(ran[1].log.out) / "codebook" / "step_00000004")
    start = {**before["weights"], **before["average"]}
    after = checkpoints.load_state(tmp_path / "adapter" / "step_00000004")["weights"]
    changed = {name for name in after if name.startswith("mapping.") and not torch.equal(start[name], after[name])}
    parts = ("coarse_gate", "fine_gate", "correction")
    assert changed == {f"mapping.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert all(float(start[name].abs().max()) == 0 for name in changed)  # stage 1 left them alone


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    conf = short(
        tmp_path,
        **{
            "codebook.steps": 60,
            "codebook.kmeans_at": [0, 20],
            "codebook.batch": 4,
            "log.every": 10,
            "log.save_every": 60,
            "loss.pixel": 0,
        },
    )
    run.run(codebook.CodebookTask, conf)
    with (Path(conf.log.out) / "codebook" / "log.csv").open() as file:
        latent = [float(row["latent"]) for row in csv.DictReader(file)]
    assert latent[-1] < 0.85 * latent[0]


@pytest.mark.parametrize("stage", TASKS)
def test_resume_is_exact(ran: tuple[Path, config.Config], tmp_path: Path, stage: str) -> None:
    """Two steps, stop, two more == four steps: every tensor and number of the state."""
    first = replace(ran[1], log=replace(ran[1].log, out=str(tmp_path / "again"), save_every=2, keep=3, plots=False))
    first = replace(first, models=replace(first.models, codebook=ran[1].log.out, adapter=ran[1].log.out))
    run.run(TASKS[stage], first)
    out = Path(first.log.out) / stage
    whole = checkpoints.load_state(out / "step_00000004")
    for name in ("step_00000004",):
        (out / name).rename(tmp_path / name)
    run.run(TASKS[stage], first)
    assert same(whole, checkpoints.load_state(out / "step_00000004")) == []
    with (out / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]  # not logged twice


def test_muon_learns_something_else_and_resumes_exactly(ran: tuple[Path, config.Config], tmp_path: Path) -> None:
    conf = short(tmp_path, "muon", **{"codebook.optimizer": "muon", "log.save_every": 2})
    run.run(codebook.CodebookTask, conf)
    out = Path(conf.log.out) / "codebook"
    whole = checkpoints.load_state(out / "step_00000004")
    plain = checkpoints.load_state(Path(ran[1].log.out) / "codebook" / "step_00000004")
    assert not torch.equal(whole["weights"]["extractor.stem.weight"], plain["weights"]["extractor.stem.weight"])
    assert any("momentum" in state for state in whole["optimizer"]["state"].values())
    (out / "step_00000004").rename(tmp_path / "whole")
    run.run(codebook.CodebookTask, conf)
    assert same(whole, checkpoints.load_state(out / "step_00000004")) == []


def test_two_kills_change_nothing(tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, kills=2, seed=1) == []


class Poisoned(codebook.CodebookTask):
    """Its latent term turns NaN in the third step."""

    steps = 0

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms = super().losses(model, batch)
        self.steps += 1
        return {**terms, "latent": terms["latent"] * float("nan")} if self.steps == 3 else terms


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    conf = short(tmp_path, **{"log.save_every": 1})
    with pytest.raises(
        loop.TrainingError, match=r"step 2: the latent term is nan; stopped, the last good checkpoint is .*step_00000002"
    ):
        run.run(Poisoned, conf)
    newest = checkpoints.newest(Path(conf.log.out) / "codebook")
    assert newest is not None and newest.name == "step_00000002"
    assert all(
        bool(torch.isfinite(t).all()) for t in checkpoints.load_state(newest)["weights"].values() if t.is_floating_point()
    )


def test_a_full_disk_leaves_the_previous_checkpoint_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = short(tmp_path, **{"log.save_every": 1})
    real = torch.save
    calls = []

    def full(state: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half a")
            raise OSError(28, "No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(loop.TrainingError, match=r"checkpoint of step 3 could not be written .*No space left"):
        run.run(codebook.CodebookTask, conf)
    out = Path(conf.log.out) / "codebook"
    assert [p.name for p in checkpoints.steps(out)] == ["step_00000001", "step_00000002"]
    assert not list(out.glob(".step_*"))
    checkpoints.load_state(out / "step_00000002")


def test_wrong_checkpoints_are_refused(ran: tuple[Path, config.Config], tmp_path: Path) -> None:
    out = Path(ran[1].log.out)
    with pytest.raises(CheckpointError, match="expected a checkpoint of the adapter stage, got one of 'codebook'"):
        checkpoints.open_checkpoint(out / "codebook" / "step_00000004", "adapter")
    with pytest.raises(CheckpointError, match="train that stage first"):
        run.run(adapter.AdapterTask, short(tmp_path))
    other = replace(ran[1], seed=5)
    with pytest.raises(CheckpointError, match="this run's seed differs from the checkpoint's"):
        run.run(codebook.CodebookTask, other)
    wider = replace(ran[1], network=replace(ran[1].network, entries=8))
    with pytest.raises(CheckpointError, match=r"network differs .*entries: 8 here, 16 there"):
        run.run(codebook.CodebookTask, wider)
    with pytest.raises(loop.TrainingError, match=r"log.resume is false"):
        run.run(codebook.CodebookTask, replace(ran[1], log=replace(ran[1].log, resume=False)))
    damaged = out / "prior" / "step_00000004" / "state.pt"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match=r"(?s)cannot be read .*use an older checkpoint"):
        checkpoints.open_checkpoint(out, "prior")
    damaged.write_bytes(whole)


def test_a_sdxl_unet_is_refused_before_training(ran: tuple[Path, config.Config], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}')
    conf = replace(ran[1], models=replace(ran[1].models, unet=str(tmp_path)), log=replace(ran[1].log, out=str(tmp_path / "x")))
    conf = replace(conf, models=replace(conf.models, adapter=ran[1].log.out))
    with pytest.raises(CheckpointError, match="SDXL UNet, the adapter is for SD"):
        run.run(prior.PriorTask, conf)


def test_without_an_adapter_the_prior_sees_the_raw_latents(ran: tuple[Path, config.Config], tmp_path: Path) -> None:
    models = replace(ran[1].models, adapter="none")
    run.run(prior.PriorTask, replace(ran[1], models=models, log=replace(ran[1].log, out=str(tmp_path), plots=False)))
    ours = checkpoints.load_state(tmp_path / "prior" / "step_00000004")["weights"]
    theirs = checkpoints.load_state(Path(ran[1].log.out) / "prior" / "step_00000004")["weights"]
    assert not torch.equal(ours["out.weight"], theirs["out.weight"])


def test_learning_rate_warms_up_and_falls() -> None:
    stage = config.Stage(steps=100, lr=2.0, warmup=10, final=0.1)
    rates = [loop.rate(step, stage) for step in range(101)]
    assert rates[0] == pytest.approx(0.2, rel=1e-3) and max(rates) == pytest.approx(rates[9], rel=0.05)
    assert rates[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_average_by_hand() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average = loop.Average(layer, decay=0.9)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    average.update(0)  # decay (1 + 0) / (10 + 0) = 0.1
    assert float(average.slow["weight"]) == pytest.approx(0.9)
    with average.in_place():
        assert float(layer.weight.detach()) == pytest.approx(0.9)
    assert float(layer.weight.detach()) == 1.0


def test_main_prints_one_sentence_and_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "vae_of", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        codebook.main(["--data.source", "/nowhere", "--loss.identity", "0"])
    assert stop.value.code == 1
    assert "expected a folder of face pictures" in capsys.readouterr().err
    assert issubclass(loop.TrainingError, LafrError)


def test_a_compiled_model_learns_the_same_and_its_checkpoint_is_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile with the backend that generates no code: the graph is taken and run, no compiler is needed."""
    real, compiled = torch.compile, []

    def eager(model: torch.nn.Module) -> Any:
        compiled.append(model)
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    ends = []
    for number, wanted in enumerate((False, True)):
        conf = short(tmp_path, f"run{number}", **{"codebook.steps": 2, "codebook.kmeans_at": [0], "codebook.compile": wanted})
        ends.append(checkpoints.load_state(run.run(codebook.CodebookTask, conf))["weights"])
        assert len(compiled) == number
    assert list(ends[0]) == list(ends[1])
    assert all(torch.allclose(ends[1][name], value, atol=1e-5) for name, value in ends[0].items())


def test_tf32_is_what_the_stage_says(tmp_path: Path) -> None:
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for wanted in (True, False):
            conf = short(tmp_path, f"run{wanted}", **{"codebook.steps": 1, "codebook.tf32": wanted})
            run.run(codebook.CodebookTask, conf)
            assert [place.allow_tf32 for place in places] == [wanted, wanted]
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
