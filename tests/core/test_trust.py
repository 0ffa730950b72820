"""Trust: the verdict's words, the features one by one, and what the bundled fit says of good and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.faces import trust
from lafr_core.store import checkpoint
from lafr_core.types import Face


class Shades:
    """An embedder whose answers can be worked out: the direction of the mean colours of the left and the right half."""

    name = "starter"

    def __call__(self, crops: Tensor) -> Tensor:
        half = crops.shape[-1] // 2
        return F.normalize(torch.cat([crops[..., :half].mean((2, 3)), crops[..., half:].mean((2, 3))], dim=1), dim=1)


def measured(before: Tensor, after: Tensor, template: Tensor | None = None) -> dict[str, list[float]]:
    template = template if template is not None else torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    table = trust.features(before, after, Shades(), template)
    assert table.shape == (len(before), len(trust.NAMES)) and bool(table.isfinite().all())
    return dict(zip(trust.NAMES, table.T.tolist(), strict=True))


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(seed))


def test_the_verdict_has_three_words_and_its_bounds_belong_to_the_better_one() -> None:
    assert trust.verdict(1.0) == trust.verdict(trust.SUPPORTED) == "supported"
    assert trust.verdict(trust.SUPPORTED - 1e-6) == trust.verdict(trust.GUESSED) == "partly guessed"
    assert trust.verdict(trust.GUESSED - 1e-6) == trust.verdict(-1.0) == "a guess"
    with pytest.raises(InputError, match="got NaN"):
        trust.verdict(float("nan"))


def face(**known: float | str) -> Face:
    return Face(box=(0, 0, 9, 9), landmarks=((1, 1), (7, 1), (4, 4), (2, 7), (6, 7)), score=1.0, **known)  # type: ignore[arg-type]


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


def test_the_mean_face_is_face_like_and_its_negative_is_not() -> None:
    template = torch.rand(16, 16, generator=torch.Generator().manual_seed(5))
    face = torch.full((1, 3, 512, 512), 0.5)
    face[..., 96:416, 96:416] = F.interpolate(template[None, None], size=(320, 320), mode="nearest")
    row = measured(torch.cat([face, 1 - face]), torch.cat([1 - face, face]), template)
    assert row["face-like input"] == pytest.approx([1.0, -1.0], abs=0.06)
    assert row["face-like result"] == pytest.approx([-1.0, 1.0], abs=0.06)


def test_mirroring_shows_in_its_own_columns() -> None:
    lopsided = torch.full((1, 3, 512, 512), 0.1)
    lopsided[:, 0, :, :256] = 0.9
    row = measured(lopsided, torch.full((1, 3, 512, 512), 0.5))
    assert row["mirrored input"][0] < 0.7 and row["mirrored result"] == pytest.approx([1.0], abs=1e-5)


def test_the_polynomial_is_what_it_says() -> None:
    x = torch.tensor([[2.0, -1.0], [9.0, 0.5]])
    assert trust.terms(x).tolist() == [[1.0, 2.0, -1.0, 4.0, -2.0, 1.0], [1.0, 3.0, 0.5, 9.0, 1.5, 0.25]]
    net = trust.TrustNet(names=2)
    net.centre.copy_(torch.tensor([1.0, 0.0]))
    net.spread.copy_(torch.tensor([2.0, 1.0]))
    net.weights.copy_(torch.tensor([0.1, 0.2, 0.0, 0.0, 0.5, 0.0]))
    values = net(torch.tensor([[2.0, -1.0], [-50.0, -50.0]])).tolist()
    assert values == pytest.approx([0.1 + 0.2 * 0.5 - 0.5 * 0.5, 1.0])  # the second is cut: 0.1 - 0.6 + 4.5


def test_an_embedder_that_was_not_fitted_with_gets_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "trust.safetensors", "trust", trust.TrustNet(), trust.TrustNet().config)
    monkeypatch.setattr(trust.assets, "bundled", lambda kind: tmp_path / f"{kind}.safetensors")
    trust._bundled.cache_clear()
    try:
        foreign = Shades()
        foreign.name = "foreign"
        assert trust.estimate(picture(), picture(), foreign) is None
        assert trust.estimate(picture(), picture(), Shades()) == [0.0]
        assert trust.estimate(picture()[:0], picture()[:0], Shades()) == []
        (tmp_path / "trust.safetensors").unlink()
        trust._bundled.cache_clear()
        assert trust.estimate(picture(), picture(), Shades()) is None
    finally:
        trust._bundled.cache_clear()
