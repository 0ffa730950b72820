"""K-means, moving averages and revival, on cases with known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lafr_core.latent.networks.codebook import Codebook
from train.tasks.codebook_learning import CodebookLearner, k_means


def grid(points: list[list[float]]) -> Tensor:
    """Points (M, D) -> features (1, D, 1, M)."""
    return torch.tensor(points).t()[None, :, None, :]


def learner(codes: list[list[float]], **settings: float) -> CodebookLearner:
    book = Codebook(len(codes), len(codes[0]))
    with torch.no_grad():
        book.codes.weight.copy_(torch.tensor(codes))
    return CodebookLearner(book, torch.Generator().manual_seed(0), **settings)  # type: ignore[arg-type]


def test_k_means_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 7.0]])
    noise = torch.randn(3, 40, 2, generator=torch.Generator().manual_seed(1)) * 0.1
    points = (centres[:, None] + noise).flatten(0, 1)
    best = min(
        (k_means(points, 3, torch.Generator().manual_seed(seed)) for seed in range(5)),
        key=lambda c: float(torch.cdist(points, c).min(1).values.square().sum()),
    )
    found = best[torch.cdist(centres, best).argmin(1)]
    torch.testing.assert_close(found, (centres + noise.mean(1)), atol=1e-4, rtol=0)


def test_moving_average_by_hand() -> None:
    learn = learner([[0.0], [10.0]], decay=0.5, dead_below=0.0)
    features = grid([[1.0], [2.0], [11.0]])
    match = learn.codebook(features)
    usage = learn.update(features, match.indices, match.distance)
    # counts 0.5*1 + 0.5*(2, 1) = (1.5, 1); sums 0.5*(0, 10) + 0.5*(3, 11) = (1.5, 10.5)
    torch.testing.assert_close(learn.codebook.codes.weight.detach(), torch.tensor([[1.0], [10.5]]))
    # shares 2/3 and 1/3
    assert usage.perplexity == pytest.approx(
        float(torch.exp(torch.tensor(-(2 / 3) * torch.log(torch.tensor(2 / 3)) - (1 / 3) * torch.log(torch.tensor(1 / 3))))),
        rel=1e-5,
    )
    assert usage.used == 1.0 and usage.revived == 0
    # distances 1, 4, 1: mean 2; spread starts at 1 and moves half of the way
    assert float(learn.codebook.spread) == pytest.approx(1.5)


def test_dead_codes_move_onto_current_features() -> None:
    learn = learner([[0.0], [1.0], [500.0]], decay=0.0, dead_below=0.1)
    features = grid([[0.0], [0.1], [1.0], [1.1]])
    match = learn.codebook(features)
    usage = learn.update(features, match.indices, match.distance)
    assert usage.revived == 1 and usage.used == pytest.approx(2 / 3)
    revived = float(learn.codebook.codes.weight[2])
    assert min(abs(revived - v) for v in (0.0, 0.1, 1.0, 1.1)) < 1e-6
    after = learn.codebook(features)
    assert int((after.indices == 2).sum()) >= 1


def test_accumulated_micro_batches_count_like_one_batch() -> None:
    points = torch.randn(12, 2, generator=torch.Generator().manual_seed(2)).tolist()
    codes = [[0.0, 0.0], [1.0, 1.0], [-1.0, 0.5]]
    whole, parts = learner(codes), learner(codes)
    match = whole.codebook(grid(points))
    whole.update(grid(points), match.indices, match.distance)
    for part in (points[:5], points[5:]):
        match = parts.codebook(grid(part))
        parts.observe(grid(part), match.indices, match.distance)
    parts.step()
    torch.testing.assert_close(whole.codebook.codes.weight, parts.codebook.codes.weight)
    torch.testing.assert_close(whole.codebook.spread, parts.codebook.spread)


def test_state_round_trip_continues_identically() -> None:
    def run(learn: CodebookLearner, steps: range) -> None:
        for step in steps:
            features = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(step))
            match = learn.codebook(features)
            learn.update(features, match.indices, match.distance)

    codes = [[0.0, 0.0], [1.0, 1.0], [90.0, 90.0]]
    straight = learner(codes, dead_below=0.9)
    run(straight, range(6))
    first = learner(codes, dead_below=0.9)
    run(first, range(3))
    second = learner(codes, dead_below=0.9)
    second.codebook.load_state_dict(first.codebook.state_dict())
    second.load_state_dict({k: t.clone() for k, t in first.state_dict().items()})
    run(second, range(3, 6))
    assert torch.equal(straight.codebook.codes.weight, second.codebook.codes.weight)
    assert torch.equal(straight.generator.get_state(), second.generator.get_state())


def test_k_means_with_fewer_points_than_codes_gives_finite_codes() -> None:
    learn = learner([[0.0]] * 8)
    learn.start(grid([[1.0], [2.0]]))
    assert set(learn.codebook.codes.weight.detach().flatten().tolist()) <= {1.0, 1.5, 2.0}
