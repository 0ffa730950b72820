"""benchmarks/transfer.py: its statistics exactly, and one run with a small random AutoencoderKL folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import transfer
from lafr_core.geometry import FFHQ_TEMPLATE
from train.data.photos import _POINTS


def rows(*columns: list[float]) -> transfer.Measured:
    return np.asarray(columns, dtype=float).T


def test_figures_are_over_the_round_trip_and_of_means() -> None:
    #             latent before, after; psnr before, after; ssim before, after
    measured = rows([0.2, 0.6], [0.1, 0.5], [20, 22], [21, 24], [0.5, 0.7], [0.6, 0.7])
    figures = transfer.figures(measured)
    assert figures["ratio"].value == pytest.approx(0.75)
    assert (figures["round trip"].value, figures["psnr"].value) == (21, 1.5)
    assert figures["ssim"].value == pytest.approx(0.05)
    assert figures["psnr"].half == pytest.approx(1.96 * 0.5)  # deviation of (1, 2) is sqrt(1/2), over sqrt(2)


def test_an_equal_ratio_on_every_face_has_no_interval() -> None:
    estimate = transfer.ratio(np.asarray([0.1, 0.3]), np.asarray([0.2, 0.6]))
    assert estimate.value == pytest.approx(0.5) and estimate.half == pytest.approx(0, abs=1e-12)


def test_the_share_kept() -> None:
    starter = np.linspace(0.9, 1.1, 20)
    half = transfer.kept(starter / 2, starter)
    assert half is not None and half.value == pytest.approx(0.5) and half.half == pytest.approx(0, abs=1e-12)
    assert transfer.kept(starter, -starter) is None
    assert transfer.kept(starter, np.linspace(-1, 1.1, 20)) is None  # above 0 on average, but within its interval of 0


def test_the_report_says_what_met_the_bar() -> None:
    starter = rows([0.4, 0.4], [0.2, 0.2], [20, 20], [22, 22], [0.5, 0.5], [0.6, 0.6])
    other = rows([0.4, 0.4], [0.2, 0.2], [20, 20], [21, 21], [0.5, 0.5], [0.6, 0.6])
    text, data = transfer.report({"medium": {"starter": starter, "kl": other}})
    assert "| medium | kl | 100 ± 0 % (met) | 50 ± 0 % (missed) | 100 ± 0 % (met) |" in text
    assert data["medium kl kept of starter"]["psnr"] == (0.5, 0.0)  # type: ignore[index]


@pytest.fixture
def two_faces(tmp_path: Path) -> Path:
    """A face list of two pictures, each already at the template."""
    table = [["file", "split", "source", *(f"{p}_{axis}" for p in _POINTS for axis in "xy")]]
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
        table.append([f"{number}.png", "val", "drawn", *(str(v) for point in FFHQ_TEMPLATE for v in point)])
    with (tmp_path / "faces.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    return tmp_path


def test_a_kl_folder_beside_the_starter(
    two_faces: Path, random_weights: dict[str, Path], starter_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers")
    kl = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    kl.save_pretrained(two_faces / "kl")
    out = two_faces / "figures.json"
    arguments = ["--vae", two_faces / "kl", "--data", two_faces, "--severity", "medium", "--json", out]
    weights = ["--adapter", random_weights["adapter"], "--prior", random_weights["prior"]]
    monkeypatch.setattr("sys.argv", ["transfer.py", *map(str, [*arguments, *weights])])
    transfer.main()
    figures = json.loads(out.read_text())["figures"]
    assert set(figures) == {"medium starter", "medium kl", "medium kl kept of starter"}
    # The random VAE's picture is nothing like the face, the starter's is: the round trip tells the sides apart.
    assert figures["medium kl"]["round trip"][0] < figures["medium starter"]["round trip"][0] - 3
