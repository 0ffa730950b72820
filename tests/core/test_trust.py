"""Trust: the verdict's words, the features one by one, and what the bundled fit says of good and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.faces import trust
from lafr_core.faces.color import match_color
from lafr_core.faces.crop import crop_faces, place
from lafr_core.faces.detect import detect_faces
from lafr_core.faces.networks import presence
from lafr_core.faces.people import shrunk
from lafr_core.images import photos
from lafr_core.pipeline import restore_crops
from lafr_core.settings import RestoreSettings
from lafr_core.store import assets, checkpoint
from lafr_core.types import Face, Models


class Shades:
    """An embedder whose answers can be worked out: the direction of the mean colours of the left and the right half."""

    name = "starter"

    def __call__(self, crops: Tensor) -> Tensor:
        half = crops.shape[-1] // 2
        return F.normalize(torch.cat([crops[..., :half].mean((2, 3)), crops[..., half:].mean((2, 3))], dim=1), dim=1)


def measured(before: Tensor, after: Tensor) -> dict[str, list[float]]:
    table = trust.quality(before, after, Shades())
    assert table.shape == (len(before), len(trust.QUALITY)) and bool(table.isfinite().all())
    return dict(zip(trust.QUALITY, table.T.tolist(), strict=True))


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(seed))


def test_luma_weighs_red_green_and_blue() -> None:
    """ITU-R BT.601."""
    colours = torch.eye(3)[:, :, None, None]
    assert trust.luma(colours).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


def test_twice_the_detail_is_drawn_in_every_octave() -> None:
    before = 0.5 + 0.1 * (picture() - 0.5)
    found = measured(before, 0.5 + 2 * (before - 0.5))
    for octave in range(trust.OCTAVES):
        assert found[f"drawn at {2 * 2**octave} px"] == pytest.approx([math.log(2)], abs=1e-3)


def test_the_verdict_has_three_words_and_its_bounds_belong_to_the_better_one() -> None:
    assert trust.verdict(1.0) == trust.verdict(trust.SUPPORTED) == "supported"
    assert trust.verdict(trust.SUPPORTED - 1e-6) == trust.verdict(trust.GUESSED) == "partly guessed"
    assert trust.verdict(trust.GUESSED - 1e-6) == trust.verdict(-1.0) == "a guess"
    with pytest.raises(InputError, match="got NaN"):
        trust.verdict(float("nan"))


def face(**known: Any) -> Face:
    return Face(box=(0, 0, 9, 9), landmarks=((1, 1), (7, 1), (4, 4), (2, 7), (6, 7)), score=1.0, **known)


def test_advice_is_for_faces_below_the_limit_and_says_what_to_do_next() -> None:
    assert trust.advice(face(trust=0.5, change=-1.0), 0.5) == trust.advice(face(), 1.0) == ""
    said = trust.advice(face(trust=0.31, change=1.0), 0.5)
    assert said == "trust 0.31, a guess; give a reference photo of the person, raise fidelity, or leave this face out"
    assert "compare it with the reference photo, raise" in trust.advice(face(trust=0.31, person="anna"), 0.5)
    assert trust.advice(face(change=0.2), 0.5).startswith("likeness to the input 0.20; give")


def test_a_face_is_told_of_in_as_many_numbers_as_are_known() -> None:
    assert trust.said(face()) == ""
    assert trust.said(face(change=0.934)) == "change 0.93"
    whole = face(change=0.9, likeness=0.8, person="anna", trust=0.9)
    assert trust.said(whole) == "change 0.90, likeness 0.80 (anna), trust 0.90: supported"


def test_shrinking_takes_the_fine_bands_and_leaves_the_coarse() -> None:
    sharp = picture()
    small = F.interpolate(sharp, scale_factor=0.125, mode="bilinear", antialias=True)
    poor = F.interpolate(small, size=(512, 512), mode="bicubic")
    before = trust.bands(trust.luma(torch.cat([sharp, poor])))
    assert before.shape == (2, trust.OCTAVES)
    assert (before[1, :2] < 0.2 * before[0, :2]).all()
    assert before[1, 4] == pytest.approx(before[0, 4].item(), rel=0.3)


def test_an_unchanged_face_is_unchanged() -> None:
    row = measured(picture(), picture())
    assert row["change"] == pytest.approx([1.0], abs=1e-5)
    assert row["moved pixels"] == pytest.approx([torch.tensor(1e-4).log().item()])
    assert [row[f"drawn at {2 * 2**k} px"][0] for k in range(trust.OCTAVES)] == pytest.approx([0.0] * trust.OCTAVES)


def test_noise_is_measured_in_units_of_its_standard_deviation() -> None:
    gray = torch.full((1, 3, 512, 512), 0.5) + torch.randn(1, 1, 512, 512, generator=torch.Generator().manual_seed(3)) * 0.02
    assert measured(gray, gray)["noise"] == pytest.approx([torch.tensor(0.02).log().item()], abs=0.05)


def test_contrast_is_that_of_the_face_and_not_of_what_surrounds_it() -> None:
    halves = torch.full((1, 1, 512, 512), 0.3)
    halves[..., 256:] = 0.5
    assert trust.contrast(halves).item() == pytest.approx(0.1, abs=0.005)
    rim = torch.full((1, 1, 512, 512), 0.5)
    rim[..., :90, :] = 1.0
    assert trust.contrast(rim).item() == pytest.approx(1e-4)


def test_the_polynomial_is_what_it_says() -> None:
    x = torch.tensor([[2.0, -1.0], [9.0, 0.5]])
    assert trust.terms(x).tolist() == [[1.0, 2.0, -1.0, 4.0, -2.0, 1.0], [1.0, 3.0, 0.5, 9.0, 1.5, 0.25]]
    net = trust.Polynomial(2)
    net.centre.copy_(torch.tensor([1.0, 0.0]))
    net.spread.copy_(torch.tensor([2.0, 1.0]))
    net.weights.copy_(torch.tensor([0.1, 0.2, 0.0, 0.0, 0.5, 0.0]))
    values = net(torch.tensor([[2.0, -1.0], [-50.0, -50.0]])).tolist()
    assert values == pytest.approx([0.1 + 0.2 * 0.5 - 0.5 * 0.5, 0.1 - 0.6 + 4.5])  # the second is cut at 3


def test_doubt_that_there_is_a_face_takes_trust_away() -> None:
    quality, chance = torch.tensor([0.9, 0.9, 0.9, 0.9, 7.0, -7.0]), torch.tensor([1.0, 0.9, 0.8, 0.7, 1.0, 0.8])
    assert trust.combined(quality, chance).tolist() == pytest.approx([0.9, 0.9, 0.45, 0.0, 1.0, -0.5])


def test_no_result_is_more_like_the_person_than_like_what_it_was_made_from() -> None:
    fit = trust.Polynomial()
    fit.weights[0] = 0.9
    measured = torch.zeros(5, len(trust.QUALITY))
    measured[:, trust.CHANGE] = torch.tensor([0.95, 0.4, 0.4, 0.4, -0.2])
    assert trust.supported(fit, measured).tolist() == pytest.approx([0.9, 0.4, 0.4, 0.4, -0.2])
    likeness = torch.tensor([0.1, 0.6, 0.2, -1.0, 0.99])
    assert trust.supported(fit, measured, likeness).tolist() == pytest.approx([0.9, 0.6, 0.4, 0.4, 0.9])


def test_what_measures_like_nothing_that_was_fitted_to_gets_no_trust() -> None:
    fit = trust.Polynomial()
    fit.weights[0], fit.centre[0], fit.spread[0] = 0.8, 1.0, 2.0
    measured = torch.zeros(5, len(trust.QUALITY))
    measured[:, trust.CHANGE] = 1.0
    measured[:, 0] = torch.tensor([1.0 + 2 * 5.0, 1.0 + 2 * 6.5, 1.0 - 2 * 6.5, 1.0 + 2 * 8.0, 99.0])
    kept = measured.clone()
    assert trust.supported(fit, measured).tolist() == pytest.approx([0.8, 0.4, 0.4, 0.0, 0.0])
    assert torch.equal(measured, kept)
    measured[:, 0], fit.centre[trust.CHANGE] = 1.0, 100.0  # a face that changed much is bounded by its change, not unknown
    assert trust.supported(fit, measured).tolist() == pytest.approx([0.8] * 5)


def test_the_coarse_picture_forgets_exposure_and_keeps_a_wall_flat() -> None:
    z = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(presence.normalised(0.3 + 0.2 * z), presence.normalised(z), atol=1e-4)
    assert presence.normalised(z).mean().abs() < 1e-5 and presence.normalised(z).square().mean() == pytest.approx(1.0)
    wall = 0.5 + 0.001 * z
    assert presence.normalised(wall).abs().max() <= 0.0011 / presence.FLAT
    assert presence.coarse(torch.ones(2, 1, 512, 512)).shape == (2, 1, presence.SIDE, presence.SIDE)


def test_an_embedder_that_was_not_fitted_with_gets_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, sees = trust.Polynomial(), presence.PresenceNet()
    fit.weights[0] = 0.9
    fit.spread.fill_(100.0)  # wide: every picture measures as one that was fitted to
    torch.nn.init.zeros_(sees.out.weight)
    torch.nn.init.constant_(sees.out.bias, 1.3)
    checkpoint.save(tmp_path / "trust.safetensors", "trust", fit, fit.config)
    checkpoint.save(tmp_path / "presence.safetensors", "presence", sees, sees.config)
    monkeypatch.setattr(trust.assets, "bundled", lambda kind: tmp_path / f"{kind}.safetensors")
    trust._bundled.cache_clear()
    try:
        foreign = Shades()
        foreign.name = "foreign"
        assert trust.estimate(picture(), picture(), foreign) is None
        chance = torch.sigmoid(torch.tensor(1.3)).item()
        assert trust.estimate(picture(), picture(), Shades()) == pytest.approx([0.9 * (chance - 0.7) / 0.2], abs=2e-3)
        assert trust.estimate(picture()[:0], picture()[:0], Shades()) == []
        (tmp_path / "presence.safetensors").unlink()
        trust._bundled.cache_clear()
        assert trust.estimate(picture(), picture(), Shades()) == pytest.approx([0.9], abs=1e-3)
        (tmp_path / "trust.safetensors").unlink()
        trust._bundled.cache_clear()
        assert trust.estimate(picture(), picture(), Shades()) is None
    finally:
        trust._bundled.cache_clear()


@pytest.fixture(scope="module")
def portrait() -> tuple[Tensor, Models]:
    """The sample portrait's face crop (1, 3, 512, 512), and the starter."""
    if not assets.bundled("trust").is_file() or not assets.bundled("embedder").is_file():
        pytest.skip("needs the starter embedder and the bundled fit")
    from lafr_core.models import open_models

    models = open_models(device="cpu")
    pixels = photos.read(assets.sample("portrait")).pixels[None]
    return crop_faces(pixels, [place(detect_faces(pixels, models.detector, RestoreSettings())[0])]), models


def trusted(crop: Tensor, models: Models) -> float:
    _, (scored,) = restore_crops(crop, [face(matrix=((1, 0, 0), (0, 1, 0)))], models, RestoreSettings())
    assert scored.trust is not None
    return scored.trust


def test_a_sharp_face_is_supported_and_a_tiny_one_a_guess(portrait: tuple[Tensor, Models]) -> None:
    crop, models = portrait
    values = [trusted(shrunk(crop, factor), models) for factor in (2.0, 12.0, 40.0)]
    assert values[0] > values[1] > values[2]
    assert [trust.verdict(value) for value in (values[0], values[2])] == ["supported", "a guess"]


def test_what_is_no_face_is_a_guess(portrait: tuple[Tensor, Models]) -> None:
    crop, models = portrait
    cheek = F.interpolate(crop[..., 330:370, 170:210], size=(512, 512), mode="bicubic").clamp(0, 1)
    noise = shrunk(picture(4), 30.0)
    upside_down, beside = crop.flip(-2), crop.roll(230, dims=-1)
    for nothing in (cheek, noise, torch.full_like(crop, 0.4), upside_down, beside):
        assert trust.verdict(trusted(nothing, models)) == "a guess"


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_what_an_untrained_prior_draws_is_a_guess(strength: float, portrait: tuple[Tensor, Models]) -> None:
    crop, models = portrait
    assert models.embedder is not None
    latents = strength * torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        drawn = models.vae.decode(latents).clamp(0, 1)
    for after in (drawn, match_color(drawn, crop, 1.0)):  # with the photo's colours, shapes of the face come back
        (value,) = trust.estimate(crop, after, models.embedder) or [1.0]
        assert trust.verdict(value) == "a guess"
