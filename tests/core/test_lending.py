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
    assert torch.allclose(lending.borrowed(z, z, torch.ones_like(z)), torch.ones_like(z), atol=1e-5)  # the weights sum to 1


def test_the_loan_follows_a_face_that_moved() -> None:
    z, lost = latents(0), latents(2)
    here = lending.borrowed(z, z, lost)
    moved = lending.borrowed(z.roll((2, -1), dims=(2, 3)), z, lost)
    inner = (..., slice(9, -9), slice(9, -9))
    assert (moved[inner] - here.roll((2, -1), dims=(2, 3))[inner]).abs().mean() < 0.25 * (
        moved[inner] - here[inner]
    ).abs().mean()


def test_nothing_lost_is_nothing_lent() -> None:
    assert torch.equal(lending.borrowed(latents(0, 2), latents(1), torch.zeros(1, 4, 32, 28)), torch.zeros(2, 4, 32, 28))


def test_of_several_references_the_one_that_fits_lends() -> None:
    z, other = latents(0), latents(5)
    ones = torch.ones_like(z)
    assert lending.borrowed(z, torch.cat([other, z]), torch.cat([-ones, ones])).mean() > 0.95
    alike = lending.borrowed(z, torch.cat([z, z]), torch.cat([0 * ones, ones]))
    assert torch.allclose(alike, 0.5 * ones, atol=1e-5)  # two that fit alike are averaged


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
