"""The claims' experiment at tiny size: jobs in order, kept results, verdicts only where both sides were tested."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_test import tiny_vae
from train_tiny import faces_at

from benchmarks import claims, claims_queue, claims_verdict
from benchmarks.claims_rival import ARMS, Arm
from lafr_core.errors import LafrError
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.vae import open_vae

TINY = {
    "data.size": 64, "network.grid": 8, "network.width": 8, "network.coarse": 16, "network.deep": 16, "network.code_width": 8,
    "network.entries": 8, "network.depth": 1, "data.workers": 0, "pairs.precision": "no", "pairs.versions": 1,
    "pairs.rounds": 1, "codebook.steps": 2, "codebook.kmeans_at": [0], "adapter.steps": 2, "prior.steps": 2,
    "codebook.batch": 2, "adapter.batch": 2, "prior.batch": 2, "diffusion.batch": 2, "diffusion.channels": [32, 32],
    "diffusion.steps": 2, "diffusion.layers": 1, "log.validate_every": 1, "log.validation_faces": 1, "codebook.precision": "no",
    "adapter.precision": "no", "prior.precision": "no", "diffusion.precision": "no", "log.best": "psnr",
}  # fmt: skip


def plan_of(folder: Path) -> claims.Plan:
    more = tuple(word for key, value in TINY.items() for word in (f"--{key}", str(value)))
    faces = str(faces_at(folder / "faces", 3))
    return claims.Plan(faces, faces, "drawn:3", str(tiny_vae(folder / "vae.safetensors")), folder / "out", (0,), more, count=2)


def test_every_job_comes_after_what_it_needs(tmp_path: Path) -> None:
    known = claims.jobs(plan_of(tmp_path))
    seen: set[str] = set()
    for name, job in known.items():
        assert set(job.needs) <= seen, name
        seen.add(name)
    assert claims_queue.wanted(known, ["raw_0"]) == ["portraits", "held_out", "faces", "diffusion", "raw_0"]
    with pytest.raises(LafrError, match="'raw_1' is no job; did you mean 'raw_0'"):
        claims_queue.needed(known, "raw_1")


def test_the_experiment_runs_keeps_what_is_done_and_judges_only_what_was_tested(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    plan = plan_of(tmp_path)
    results = claims.carry_out(plan, ["scored_faces_0", "encoder_0", "costs"])
    assert {"portraits", "diffusion", "faces", "faces_0", "codebook_0", "held_out", "encoder_0", "scored_faces_0"} < set(
        results
    )
    scores = results["scored_faces_0"]
    assert list(scores) == ["0", "0.75", "1", "adapter"] and len(scores["0.75"]["psnr"]) == 2
    assert scores["0"]["ssim"] != scores["1"]["ssim"] and scores["0.75"]["psnr"] != scores["adapter"]["psnr"]
    assert [len(point) for point in results["encoder_0"]["curve"]] == [2, 2]
    assert results["costs"]["encoder"]["seconds"] > 0 and results["costs"]["adapter"]["bytes"] > 0
    text = (plan.out / "claims.md").read_text()
    assert text.count("**Not tested**") == 5  # nothing has both sides yet
    kept = (plan.out / "faces_0.json").stat().st_mtime_ns
    assert claims.carry_out(plan, ["faces_0"]) == results and (plan.out / "faces_0.json").stat().st_mtime_ns == kept
    results = claims.carry_out(plan, ["scored_raw_0", "adapter_0"])
    assert list(results["scored_raw_0"]) == ["0.75", "input"]
    text = (plan.out / "claims.md").read_text()
    assert text.count("**Not tested**") == 3 and "fidelity 1, psnr:" in text and "| 0.32 |" in text


def test_a_deadline_ends_a_job_which_can_be_gone_on_with(tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path), deadline=time.time() - 1)
    late = replace(plan, more=(*plan.more, "--codebook.steps", "3"))
    assert claims.carry_out(late, ["codebook_0"])["codebook_0"] == {"steps": 1}  # one step each time, and it is saved
    assert claims.carry_out(late, ["codebook_0"])["codebook_0"] == {"steps": 1}
    assert claims.carry_out(late, ["codebook_0"], go_on=True)["codebook_0"] == {"steps": 2}
    assert claims.carry_out(replace(late, deadline=0), ["codebook_0"], go_on=True)["codebook_0"] == {"steps": 3}
    assert claims_queue.done(plan.out, "codebook_0", go_on=True)


def test_settings_of_one_job_are_not_those_of_the_others(tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path), own={"faces": ("--prior.batch=7",), "diffusion_large": ("--diffusion.batch=5",)})
    assert plan.config("faces_2").prior.batch == 7 and plan.config("raw_2").prior.batch == 2
    assert plan.config("diffusion_large").diffusion.batch == 5 and plan.config("diffusion").diffusion.batch == 2


@dataclass(frozen=True)
class Fake:
    needs: tuple[str, ...] = ()


def test_jobs_side_by_side_wait_for_what_they_need_and_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"a": Fake(), "bad": Fake(), "b": Fake(("a",)), "after bad": Fake(("bad",)), "c": Fake(("a", "b"))}
    together: list[list[str]] = []
    running: dict[str, subprocess.Popen[bytes]] = {}

    def begin(name: str, out: Path, arguments: Sequence[str], deadline: float) -> subprocess.Popen[bytes]:
        together.append([n for n, p in running.items() if p.poll() is None])
        code = "raise SystemExit(1)" if name == "bad" else f"open({str(out / name)!r}, 'w')"
        running[name] = subprocess.Popen([sys.executable, "-c", code])
        return running[name]

    monkeypatch.setattr(claims_queue, "begin", begin)
    with pytest.raises(LafrError, match="failed or ended: bad;"):
        claims_queue.side_by_side(known, list(known), tmp_path, claims_queue.Slots(1), [], 0.0)
    assert list(running) == ["a", "bad", "b", "c"] and not any(together)
    assert all((tmp_path / name).exists() for name in "abc")


def test_no_job_outlives_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_queue, "GRACE", 0.0)
    monkeypatch.setattr(claims_queue, "LEAST", 0.0)
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(claims_queue, "begin", lambda *given: subprocess.Popen(slow))
    started = time.time()
    with pytest.raises(LafrError, match="failed or ended: a;"):
        claims_queue.side_by_side({"a": Fake(), "b": Fake()}, ["a", "b"], tmp_path, claims_queue.Slots(1), [], started + 0.5)
    assert time.time() - started < 20


def test_slots_grow_when_their_job_is_done() -> None:
    slots = claims_queue.Slots(2, "a", "5")
    assert (slots.now({"b"}), slots.now({"a", "b"}), claims_queue.Slots(3).now({"a"})) == (2, 5, 3)


def test_gain_is_paired_and_first_is_the_first_crossing() -> None:
    theirs = [[1.0, 2.0, 5.0], [2.0, 4.0, 4.0]]
    ours = [[1.1 * value for value in row] for row in theirs]
    assert claims_verdict.gain(ours, theirs, draws=50) == pytest.approx((10.0, 10.0, 10.0))
    assert claims_verdict.first([(1.0, 0.9), (2.0, 0.5), (3.0, 0.6)], 0.5) == 2.0
    assert claims_verdict.first([(1.0, 0.9)], 0.5) == float("inf")


def test_a_curve_is_flat_when_its_last_quarter_brings_nothing() -> None:
    rising = [(float(step), 20 + step / 10) for step in range(8)]
    flat = [*rising, *[(float(step), 20.7) for step in range(8, 40)]]
    assert claims_verdict.risen(rising) == pytest.approx(0.2) and claims_verdict.risen(flat) == 0
    assert claims_verdict.curve_words([flat, rising]) == "39, 7; +0.000, +0.200 dB: not flat"
    assert claims_verdict.curve_words([flat]).endswith(": flat")


def test_claim_two_is_steps_times_what_a_step_costs() -> None:
    cost = {"batch": 4.0, "bytes": 2.0**20}
    costs = {"device": "x", **{n: {**cost, "seconds": s} for n, s in zip(("codebook", *ARMS), (1, 2, 3, 10), strict=True)}}
    curves = {"adapter_0": {"curve": [[5, 0.37], [20, 0.35]]}, "encoder_0": {"curve": [[5, 0.37], [40, 0.30]]}}
    results: dict[str, Any] = {"costs": costs, "codebook_0": {"steps": 4}, **curves}
    text = "\n".join(claims_verdict.race([0], results))
    assert "| 0.4 | 14.0 s | 19.0 s | 50.0 s | 28 % |" in text  # 4 steps of the codebook and 5 of the adapter's
    assert (
        "| 0.36 | 44.0 s | 64.0 s | 400.0 s | 11 % |" in text
        and "| 0.32 | never | never | 400.0 s | only the encoder |" in text
    )
    assert "**Holds here** (30 % or less): at 3 of 5 errors both got there: 11 to 28 % of the time" in text


def test_where_no_preset_error_is_reached_the_curves_say_which_can_be_compared() -> None:
    slow, fast = [[10.0, 0.6], [20.0, 0.5], [30.0, 0.55]], [[10.0, 0.58], [20.0, 0.45], [30.0, 0.42]]
    assert claims_verdict.levels([slow, fast], 3) == pytest.approx((0.6, 0.55, 0.5))
    cost = {"batch": 4.0, "bytes": 2.0**20, "seconds": 1.0}
    results: dict[str, Any] = {"costs": {"device": "x", **dict.fromkeys(("codebook", *ARMS), cost)}, "codebook_0": {"steps": 4}}
    results |= {"adapter_0": {"curve": slow}, "encoder_0": {"curve": fast}}
    text = "\n".join(claims_verdict.race([0], results))
    assert "No error set beforehand" in text
    assert "| 0.6 | 14.0 s | 14.0 s | 10.0 s | 140 % |" in text and "| 0.5 | 24.0 s | 24.0 s | 20.0 s | 120 % |" in text
    assert "**Does not hold here** (30 % or less): at 5 of 5 errors both got there: 120 to 140 % of the time" in text


def test_arms_learn_what_they_say(tmp_path: Path) -> None:
    vae: Any = open_vae(tiny_vae(tmp_path / "vae.safetensors"))
    adapter = AdapterNet(width=8, coarse=16, deep=16, code_width=8, entries=8, depth=1, grid=8)
    batch = {"z_lq": torch.randn(1, 4, 8, 8), "z_hq": torch.randn(1, 4, 8, 8), "lq": torch.rand(1, 3, 64, 64)}
    for name in ARMS:
        arm = Arm(name, vae, adapter, 0.75)
        sum(arm.losses(arm.model, batch).values()).backward()  # type: ignore[union-attr]
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in arm.model.parameters())
        assert isinstance(arm.model, AdapterNet) == (name != "encoder")
    assert not any(p.requires_grad for p in vae.network.parameters())  # the given autoencoder is left alone
    stored, afresh = (Arm(name, vae, adapter, 0.75) for name in ("adapter", "adapter_encoding"))
    with torch.no_grad():
        batch["z_lq"] = vae.encode(batch["lq"])
        assert torch.allclose(stored.latents(stored.model, batch), afresh.latents(afresh.model, batch), atol=1e-6)
