"""Grain match: as much as is missing, as coarse as it was, and the same every time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.faces import grain
from lafr_core.faces.grain import match_grain, noise_level


def scene(cells: int = 6, side: int = 512) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand((1, 3, cells, cells), generator=generator)
    return F.interpolate(coarse, size=side, mode="bicubic") * 0.5 + 0.25


def noise(sigma: float, step: int = 1, channels: int = 3, seed: int = 2) -> Tensor:
    """Grain of ``sigma`` as drawn at 1 / ``step`` of the crop's resolution, enlarged to it."""
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn((1, channels, 512 // step, 512 // step), generator=generator) * sigma
    return (F.interpolate(field, size=512, mode="bicubic") if step > 1 else field).expand(-1, 3, -1, -1)


def test_amount_zero_returns_the_very_same_tensor() -> None:
    restored = scene()
    assert match_grain(restored, restored + noise(0.05), 0.0) is restored


def test_no_faces_are_fine() -> None:
    none = torch.zeros(0, 3, 512, 512)
    assert match_grain(none, none, 1.0).shape == (0, 3, 512, 512)


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.08])
def test_fine_grain_is_matched(sigma: float) -> None:
    clean = scene()
    added = match_grain(clean, (clean + noise(sigma)).clamp(0, 1), 1.0) - clean
    assert float(added.std()) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("step", [2, 4])
def test_coarse_grain_of_an_enlarged_photo_is_matched_and_stays_coarse(step: int) -> None:
    clean, rough = scene(), noise(0.05, step)
    added = match_grain(clean, (clean + rough).clamp(0, 1), 1.0) - clean
    assert float(added.std()) == pytest.approx(float(rough.std()), rel=0.2)
    # What is left of it at the photo's own resolution, which is where it will be seen.
    seen, wanted = (F.interpolate(x, scale_factor=1 / step, mode="bicubic", antialias=True).std() for x in (added, rough))
    assert float(seen) == pytest.approx(float(wanted), rel=0.25)
    neighbours = torch.corrcoef(torch.stack([added[0, 0, :, 1:].flatten(), added[0, 0, :, :-1].flatten()]))[0, 1]
    assert float(neighbours) > 0.5


def test_amount_scales_the_grain() -> None:
    clean = scene()
    reference = clean + noise(0.04)
    full, third = (match_grain(clean, reference, amount) - clean for amount in (1.0, 1 / 3))
    assert torch.allclose(third, full / 3, atol=1e-5)


def test_only_what_is_missing_is_added() -> None:
    clean = scene()
    reference = clean + noise(0.05)
    grainy = clean + noise(0.05, seed=8)
    assert float((match_grain(grainy, reference, 1.0) - grainy).std()) < 0.01
    half = clean + noise(0.03, seed=8)
    assert float((match_grain(half, reference, 1.0) - half).std()) == pytest.approx(0.04, rel=0.15)  # 0.05^2 = 0.03^2 + 0.04^2


def test_clean_or_blurred_photo_gets_no_grain() -> None:
    generator = torch.Generator().manual_seed(4)
    sharp = F.interpolate(torch.rand((1, 3, 90, 90), generator=generator), size=512, mode="bicubic").clamp(0, 1)
    blurred = F.avg_pool2d(F.pad(sharp, (6,) * 4, mode="replicate"), 13, stride=1)
    assert float((match_grain(sharp, blurred, 1.0) - sharp).abs().max()) < 2 / 255


def test_edges_are_not_grain() -> None:
    reference = scene()
    reference[..., ::128] = 0.9
    reference[..., ::96, :] = 0.1
    assert float((reference - scene()).std()) > 0.05
    clean = scene()
    assert float((match_grain(clean, reference, 1.0) - clean).std()) < 0.004


def test_jpeg_blocks_are_not_grain() -> None:
    clean = scene()
    buffer = io.BytesIO()
    Image.fromarray((clean[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(buffer, "JPEG", quality=20)
    blocky = torch.from_numpy(np.asarray(Image.open(buffer), dtype=np.float32) / 255).permute(2, 0, 1)[None]
    damage, added = float((blocky - clean).std()), float((match_grain(clean, blocky, 1.0) - clean).std())
    # Not none: in a smooth picture at quality 20 the blocks are all there is. But less than half of it, and 2 / 255 at most.
    assert damage > 0.01 and added < min(0.5 * damage, 2 / 255)


def test_gray_grain_is_gray_and_gray_stays_exactly_gray() -> None:
    gray = scene()[:, :1].expand(-1, 3, -1, -1)
    result = match_grain(gray, (gray + noise(0.04, channels=1)).clamp(0, 1), 1.0)
    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 1], result[:, 2])
    assert float((result - gray).std()) == pytest.approx(0.04, rel=0.1)


def test_same_input_same_grain_whatever_the_batch_and_the_seed_outside() -> None:
    clean = scene()
    reference = clean + noise(0.03)
    once = match_grain(clean, reference, 1.0)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    other = torch.cat([clean * 0.5, clean]), torch.cat([clean * 0.5, reference])
    batch = match_grain(*other, 1.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.allclose(batch[1], once[0], atol=1e-6)
    assert torch.allclose(batch[0], clean[0] * 0.5, atol=2e-3)


def test_noise_level_reads_the_standard_deviation_of_white_noise() -> None:
    flat = torch.full((1, 3, 512, 512), 0.5)
    levels = noise_level(flat + noise(0.05, channels=1))
    # The finest octave of a B3 spline wavelet keeps 0.89 of white noise's standard deviation (Starck and Murtagh 1994).
    assert float(levels[0, 0, 0]) == pytest.approx(0.89 * 0.05, rel=0.05)
    assert float(levels[:, 0, 1:].max()) < 1e-6


def test_spill_table_is_what_the_filters_do() -> None:
    measured = torch.tensor(
        [[float(band.square().mean()) for band in grain._bands(unit)] for unit in grain._unit_grain(1024, 1024)]
    )
    assert torch.allclose(measured.T, torch.tensor(grain.SPILL), atol=0.02)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_any_size_of_crop(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    restored, reference = (torch.rand((1, 3, height, width), generator=generator) for _ in range(2))
    result = match_grain(restored, reference, 1.0)
    assert result.shape == restored.shape and bool(result.isfinite().all())
    assert float(result.min()) >= 0 and float(result.max()) <= 1


def test_dtype_is_kept_and_inputs_stay_as_they_were() -> None:
    restored, reference = scene().double(), (scene() + noise(0.05)).double()
    copies = restored.clone(), reference.clone()
    assert match_grain(restored, reference, 1.0).dtype == torch.float64
    assert torch.equal(restored, copies[0]) and torch.equal(reference, copies[1])


def test_wrong_shapes_are_refused_with_both_named() -> None:
    with pytest.raises(InputError, match=r"of one shape, got \(1, 3, 8, 8\) and \(2, 3, 8, 8\)"):
        match_grain(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8), 1.0)
