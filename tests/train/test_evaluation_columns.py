"""The evaluation's columns: missing files by their address, pyiqa by a stand-in, NTIRE's score and its identity gate."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lafr_core.errors import CheckpointError
from train.judges import adaface, metrics


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


class Fake:
    """Stands for a network of pyiqa's: says what it was called with."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.asked: list[Any] = []

    def __call__(self, *pictures: Any, **asked: Any) -> Tensor:
        self.asked.append((pictures, asked))
        return torch.tensor(float(len(pictures)))


@pytest.fixture
def pyiqa(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """The package in which every metric is a :class:`Fake`; Q-Align wants to fetch something."""
    made: dict[str, Fake] = {}

    def create(key: str, device: str) -> Fake:
        if key == "qalign":
            torch.hub.download_url_to_file("https://example.org/q.bin", "q.bin")
        return made.setdefault(key, Fake(key))

    module = ModuleType("pyiqa")
    module.create_metric = create  # type: ignore[attr-defined]
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return made


def put(hub: Path, *titles: str) -> None:
    for title in titles:
        for file in metrics.PYIQA[title].files:
            (hub / file.place).parent.mkdir(parents=True, exist_ok=True)
            (hub / file.place).touch()


@pytest.mark.parametrize("title", metrics.PYIQA)
def test_what_is_missing_is_named_with_its_address(hub: Path, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    metric = metrics.by_pyiqa(title)
    assert not metric.available and metric.missing.startswith("needs the package pyiqa")
    for file in metrics.PYIQA[title].files:
        assert f"{file.address} as {hub / file.place}" in metric.missing
    assert metrics.IN_CACHE.get(title, "https://") in metric.missing


def test_metrics_get_what_they_compare(hub: Path, pyiqa: dict[str, Fake], tmp_path: Path) -> None:
    put(hub, "LPIPS", "MUSIQ", "FID")
    opened = {title: metrics.by_pyiqa(title) for title in ("LPIPS", "MUSIQ", "FID", "DISTS")}
    a, b = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    lpips, musiq, fid = (opened[title] for title in ("LPIPS", "MUSIQ", "FID"))
    assert lpips.measure is not None and lpips.measure(a, b) == 2 and lpips.against == "original"
    assert musiq.measure is not None and musiq.measure(a, b) == 1 and musiq.against == "nothing"
    assert fid.whole is not None and fid.whole(tmp_path) == 1 and fid.measure is None
    (where,), asked = pyiqa["fid"].asked[0]
    assert where == str(tmp_path) and (asked["dataset_name"], asked["dataset_res"]) == ("FFHQ", 512)
    assert "DISTS_weights-f5e65c96.pth" in opened["DISTS"].missing and "dists" not in pyiqa  # it was not even built


def test_nothing_is_downloaded_and_the_doors_open_again(hub: Path, pyiqa: dict[str, Fake]) -> None:
    before = torch.hub.download_url_to_file
    metric = metrics.by_pyiqa("Q-Align")
    assert not metric.available and torch.hub.download_url_to_file is before
    assert "it wants https://example.org/q.bin, and an evaluation downloads nothing" in metric.missing
    assert "https://huggingface.co/q-future/one-align in Hugging Face's cache" in metric.missing


def test_every_column_says_whether_it_is_there(hub: Path, tmp_path: Path) -> None:
    table = {metric.name: metric for metric in metrics.open_metrics(tmp_path, "none")}
    assert table["PSNR"].available and not table["NIQE"].available
    assert adaface.FILE in table[metrics.GATE].missing and "github.com/mk-minchul/AdaFace" in table[metrics.GATE].missing
    assert all(metric.available or metric.missing for metric in table.values())


FULL = {
    "CLIP-IQA": [0.6, 0.8],
    "MANIQA": [0.5, 0.7],
    "MUSIQ": [70.0, 80.0],
    "NIQE": [4.0, 6.0],
    "Q-Align": [4.0, 4.0],
    "FID": [60.0],
}


def test_the_challenges_score_by_hand() -> None:
    score = metrics.ntire({**FULL, metrics.GATE: [0.9, 0.31]}, "wider")
    assert score.value == pytest.approx(0.7 + 0.6 + 0.75 + 0.5 + 0.8 + 0.4) and score.valid and score.missing == ()
    worse = metrics.ntire({**FULL, "NIQE": [12.0], "FID": [150.0], metrics.GATE: [0.9]}, "wider")
    assert (worse.terms["NIQE"], worse.terms["FID"]) == (0, 0)
    part = metrics.ntire({"NIQE": [5.0]}, "lfw")
    assert part.value is None and part.valid is None and part.missing == ("CLIP-IQA", "MANIQA", "MUSIQ", "Q-Align", "FID")
    assert part.sentence() == (
        "NTIRE score: not available without CLIP-IQA, MANIQA, MUSIQ, Q-Align, FID; "
        "identity gate: not available without AdaFace."
    )


@pytest.mark.parametrize(
    ("kind", "least"), [("wider", 0.3), ("webphoto", 0.3), ("celeba", 0.5), ("lfw", 0.6), ("celebchild", 0.6)]
)
def test_ten_of_450_faces_may_fall_below_the_sets_threshold(kind: str, least: float) -> None:
    fine, lost = least, least - 0.001
    for below, valid in ((10, True), (11, False)):
        score = metrics.ntire({metrics.GATE: [lost] * below + [fine] * (450 - below)}, kind)
        assert (score.below, score.count, score.threshold, score.valid) == (below, 450, least, valid)
    assert metrics.ntire({metrics.GATE: [float("nan")]}, kind).below == 1
    assert "1 of 1 faces below" in metrics.ntire({metrics.GATE: [0.0]}, kind).sentence()


def test_adaface_reads_its_own_layout_and_refuses_others(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = adaface.AdaFace(8).eval()
    file = tmp_path / adaface.FILE
    kept = {f"model.{name}": t for name, t in network.state_dict().items()}
    torch.save({"state_dict": {**kept, "head.kernel": torch.zeros(2, 2)}}, file)
    gate = metrics.gate(tmp_path)
    face = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert gate.measure is not None and gate.against == "input"
    assert gate.measure(face, face) == pytest.approx(1, abs=1e-5) and gate.measure(face, 1 - face) < 0.9999
    with torch.no_grad():
        out = network(face)
    assert out.shape == (1, 512) and float(out.norm()) == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(out, network(face.flip(1)).detach(), atol=1e-4)  # the order of the channels counts
    torch.save({"state_dict": {"model.body.0.res_layer.0.weight": torch.zeros(64)}}, file)
    with pytest.raises(CheckpointError, match="expected an AdaFace IR network of 8, 24, 49 blocks, got 1"):
        adaface.open_adaface(file)
    assert "got 1" in metrics.gate(tmp_path).missing


def test_the_published_network_has_the_papers_size() -> None:
    with torch.device("meta"):
        network = adaface.AdaFace()
    assert len(network.body) == 49
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(65.15e6, rel=0.01)
