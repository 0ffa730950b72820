"""What reference photos lend: moved to where the input shows the same, nothing where nothing was lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.latent import guidance, lending


def latents(seed: int, rows: int = 1) -> Tensor:
    coarse = torch.randn(rows, 4, 8, 7, generator=torch.Generator().manual_seed(seed)) * 2
    return F.interpolate(coarse, size=(32, 28), mode="bilinear")


def test_what_was_lost_comes_back_where_the_reference_is_the_input() -> None:
    z = latents(0)
    lost = F.interpolate(torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1)), size=(32, 28), mode="bicubic")
    assert torch.allclose(lending.borrowed(z, z, lost), lost, atol=0.25)
    lent = lending.borrowed(z, z, torch.ones_like(z))  # all but the share of lending nothing
    assert lent.min() > 0.98 and lent.max() <= 1


def test_what_does_not_fit_lends_nothing() -> None:
    z, lost = torch.zeros(1, 4, 32, 28), torch.ones(1, 4, 32, 28)
    near, far = (torch.full_like(z, (cost / 4) ** 0.5) for cost in (lending.NOTHING / 2, lending.NOTHING + 0.3))
    assert lending.borrowed(z, near, lost).min() > 0.9 and lending.borrowed(z, far, lost).max() < 0.01


def test_a_reference_is_fetched_to_where_the_face_lies_between_cells_too() -> None:
    """A picture whose content lies 12 pixels right of and 4 above where the face has it: 1.5 and -0.5 cells."""
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    picture = F.interpolate(coarse, size=(256, 256), mode="bicubic").clamp(0, 1)
    away = picture.roll((-4, 12), dims=(2, 3))
    cells = lambda pixels: 6 * torch.cat([F.avg_pool2d(pixels, 8), F.avg_pool2d(pixels, 8)[:, :1]], dim=1)
    field = lending.offsets(cells(picture), torch.cat([cells(away), cells(picture)]))
    assert field.shape == (2, 2, 32, 32)
    inner = (..., slice(8, 24), slice(8, 24))
    assert field[0][inner].mean((1, 2)).tolist() == pytest.approx([1.5, -0.5], abs=0.25)
    assert field[1][inner].abs().max() < 0.1
    fetched = lending.fetched(away, field[:1])
    middle = (..., slice(64, 192), slice(64, 192))
    assert (fetched[middle] - picture[middle]).abs().mean() < 0.3 * (away[middle] - picture[middle]).abs().mean()


def test_fetching_moves_by_cells_and_by_nothing() -> None:
    picture = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(4))
    still = torch.zeros(2, 2, 8, 6)
    assert torch.allclose(lending.fetched(picture, still), picture, atol=1e-5)
    right, down = still.clone(), still.clone()
    right[:, 0], down[:, 1] = 1.0, 1.0  # one cell = eight pixels
    assert torch.allclose(lending.fetched(picture, right)[..., :-8], picture[..., 8:], atol=1e-4)
    assert torch.allclose(lending.fetched(picture, down)[..., :-8, :], picture[..., 8:, :], atol=1e-4)


def test_the_sharper_eye_is_brought_down_to_the_other() -> None:
    g = torch.Generator().manual_seed(5)
    lent = 0.2 * torch.randn(1, 4, 64, 64, generator=g)
    lent[..., 26:35, 19:30] *= 4  # the left eye alone
    even = lending.even_eyes(lent)
    detail = lambda z, x: float(z[..., 27:34, x - 3 : x + 4].square().mean().sqrt())
    assert detail(lent, 24) > 3 * detail(lent, 40)
    assert detail(even, 24) < 0.75 * detail(lent, 24) and detail(even, 40) == pytest.approx(detail(lent, 40), rel=0.02)
    assert torch.allclose(even[..., 50:, :], lent[..., 50:, :], atol=1e-4)
    both = torch.cat([lent, lent.flip(-1)])
    assert torch.allclose(lending.even_eyes(both)[:1], even) and torch.allclose(lending.even_eyes(0 * lent), 0 * lent)


def test_latents_of_more_channels_are_matched_alike() -> None:
    z, near, lost = latents(0), latents(0) + 0.1 * latents(1), latents(2)
    twice = lambda x: torch.cat([x, x], dim=1)
    lent = lending.borrowed(z, near, lost)
    assert 0.05 < (lent / lost).median() < 0.95  # partly lent, so that the cost matters
    assert torch.allclose(lending.borrowed(twice(z), twice(near), twice(lost)), twice(lent), atol=1e-5)
    assert torch.allclose(lending.offsets(twice(z), twice(near)), lending.offsets(z, near), atol=1e-5)


def test_nothing_lost_is_nothing_lent() -> None:
    assert torch.equal(lending.borrowed(latents(0, 2), latents(1), torch.zeros(1, 4, 32, 28)), torch.zeros(2, 4, 32, 28))


def test_of_several_references_the_one_that_fits_lends() -> None:
    z, other = latents(0), latents(5)
    ones = torch.ones_like(z)
    assert lending.borrowed(z, torch.cat([other, z]), torch.cat([-ones, ones])).mean() > 0.95
    alike = lending.borrowed(z, torch.cat([z, z]), torch.cat([0 * ones, ones]))
    assert torch.allclose(alike, 0.5 * ones, atol=0.01)  # two that fit alike are averaged


def test_rows_do_not_influence_each_other_and_no_rows_are_fine() -> None:
    rows, z, lost = latents(0, 2), latents(1), latents(2)
    assert torch.equal(lending.borrowed(rows, z, lost)[1:], lending.borrowed(rows[1:], z, lost))
    assert lending.borrowed(rows[:0], z, lost).shape == (0, 4, 32, 28)


@pytest.mark.parametrize(
    "references, lost", [((1, 4, 16, 16), (1, 4, 16, 16)), ((2, 4, 32, 28), (1, 4, 32, 28)), ((0, 4, 32, 28),) * 2]
)
def test_what_does_not_fit_is_refused(references: tuple[int, ...], lost: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="references: expected latents of the faces' shape"):
        lending.borrowed(latents(0), torch.zeros(references), torch.zeros(lost))


class Red:
    """Embedder: the direction of (red, green) of the mean colour."""

    name = "red"

    def __call__(self, crops: Tensor) -> Tensor:
        return F.normalize(crops.mean((2, 3))[:, :2], dim=1)


def test_approaching_a_goal_stops_where_the_embedder_objects() -> None:
    red, green = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    red[:, 0], green[:, 1] = 1, 1
    person = torch.tensor([1.0, 0.0])

    def go(start: Tensor, goal: Tensor, weight: float) -> Tensor:
        return guidance.approach(start, goal, lambda z: z, Red(), person, weight)

    half = (red + green) / 2
    assert torch.allclose(go(half, red, 1.0), red) and torch.allclose(go(half, red, 0.5), 0.75 * red + 0.25 * green)
    assert torch.equal(go(red, green, 1.0), red)  # a quarter of the way costs 0.05 already
    assert torch.allclose(go(red, 0.4 * green + 0.6 * red, 1.0), 0.9 * red + 0.1 * green)  # a quarter of this way costs 0.006
    both = go(torch.cat([half, red]), torch.cat([red, green]), 1.0)
    assert torch.allclose(both, torch.cat([red, red]))
    assert go(red, green, 0.0) is red
