"""Fitting trust: a regression with a known answer, and the same measurements from the same seeds."""

from __future__ import annotations

import argparse

import pytest
import torch

from lafr_core.faces import trust
from train.tasks import trust as fitting


def test_the_ridge_finds_a_known_polynomial_and_draws_all_but_the_constant_to_nothing() -> None:
    x = torch.randn(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    a = trust.terms(x)
    truth = torch.tensor([5.0, 1.0, 0.0, 0.0, -2.0, 0.0], dtype=torch.float64)
    assert torch.allclose(fitting.solve(a, a @ truth, 1e-9), truth, atol=1e-6)
    drawn = fitting.solve(a, a @ truth, 1e9)
    assert drawn[0] == pytest.approx(float((a @ truth).mean()), abs=1e-3) and drawn[1:].abs().max() < 1e-3


def test_the_fit_is_judged_on_groups_it_did_not_see() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(60, 3, dtype=torch.float64, generator=g)
    groups = torch.arange(20).repeat_interleave(3)
    noise = torch.randn(20, dtype=torch.float64, generator=g)[groups]  # a group's own error cannot be learned from the others
    with torch.no_grad():
        net = trust.Polynomial(3)
        loss = fitting.fit_polynomial(net, x, x[:, 0] + noise, groups, lambda p, t: (p - t).abs().mean())
        inside = (net(x.float()) - x[:, 0] - noise).abs().mean()
    assert loss > 1.1 * inside
    assert torch.allclose(net.centre, x.mean(0).float()) and torch.allclose(net.spread, x.std(0).float())


def test_fixed_levels_are_the_benchmarks_and_draws_alternate() -> None:
    crop = torch.rand(3, 512, 512, generator=torch.Generator().manual_seed(0))
    fixed = argparse.Namespace(fixed=True, split="val", draws=0)
    assert [level for level, _ in fitting.views(crop, 0, fixed)] == [4, 6, 12, 20, 28, -1, -2, -3]
    drawn = argparse.Namespace(fixed=False, split="train", draws=2)
    first, again = (list(fitting.views(crop, 5, drawn)) for _ in range(2))
    assert len(first) == 2 and all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][1], first[1][1])
