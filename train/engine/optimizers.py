"""The optimisers training may use. On the small convolutional nets here Muon gets much further than AdamW in the same steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices and filters.

    A parameter of two or more dimensions counts as a matrix (rows = outputs); its update is scaled to the size of an AdamW
    update (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that learning rates carry over. Vectors (biases, norms) and the
    parameters of ``plain`` groups get AdamW. Weight decay is decoupled in both. Deterministic; state is plain tensors.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay, "plain": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                matrix = p.ndim >= 2 and not group["plain"]
                p.add_(self._turned(p, group) if matrix else self._adaptive(p, group), alpha=-group["lr"])
        return loss

    def _turned(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        velocity: Tensor = state["momentum"]
        velocity.lerp_(p.grad, 1 - group["momentum"])  # type: ignore[arg-type]
        ahead = p.grad.lerp(velocity, group["momentum"])  # type: ignore[union-attr]
        update = orthogonalised(ahead.reshape(p.shape[0], -1)).reshape(p.shape)
        return update * (0.2 * math.sqrt(max(p.shape[0], p[0].numel())))

    def _adaptive(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(p.grad, 1 - first)
        state["square"].lerp_(p.grad.square(), 1 - second)  # type: ignore[union-attr]
        count = float(state["step"])
        mean, square = state["mean"] / (1 - first**count), state["square"] / (1 - second**count)
        return mean / (square.sqrt() + group["eps"])


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """(m, n) -> nearly the closest matrix with orthonormal rows (or columns): singular values land in about [0.7, 1.2].

    Newton-Schulz iteration of degree five in bfloat16, with the coefficients of Jordan et al. 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.t() if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.t()
        x = a * x + (b * square + c * square @ square) @ x
    return (x.t() if tall else x).to(matrix.dtype)


def warm_cosine(step: int, done: float, peak: float, warmup: int, final: float = 0.02) -> float:
    """Learning rate of optimiser ``step``: linear to ``peak`` over ``warmup`` steps, times a cosine from 1 down to ``final`` as
    ``done``, the share of the run, goes from 0 to 1.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return peak * min(1.0, (step + 1) / max(1, warmup)) * (final + (1 - final) * cosine)


def make(name: str, model: nn.Module, lr: float, weight_decay: float, beta1: float = 0.9) -> torch.optim.Optimizer:
    """``adamw`` or ``muon`` over the parameters of ``model`` that learn. Under Muon, tables (embeddings) stay plain."""
    learning = [p for p in model.parameters() if p.requires_grad]
    if name == "muon":
        tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learning if id(p) not in tables]},
            {"params": [p for p in learning if id(p) in tables], "plain": True},
        ]
        return Muon([g for g in groups if g["params"]], lr=lr, weight_decay=weight_decay, betas=(beta1, 0.99))
    return torch.optim.AdamW(learning, lr=lr, weight_decay=weight_decay, betas=(beta1, 0.99))
