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
        """One update of every parameter that has a gradient. Parameters of one shape are turned together: a GPU waits for the
        number of operations here, not for their size.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = {}
            vectors: list[Tensor] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.ndim >= 2 and not group["plain"]:
                    alike.setdefault((p.shape, p.device, p.dtype), []).append(p)
                else:
                    vectors.append(p)
            for matrices in alike.values():
                _apply(matrices, self._turned(matrices, group), group)
            if vectors:
                _apply(vectors, self._adaptive(vectors, group), group)
        return loss

    def _turned(self, matrices: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The updates of parameters of one shape."""
        shape, keep = matrices[0].shape, group["momentum"]
        velocities = []
        for p in matrices:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            velocities.append(state["momentum"])
        gradients = [p.grad for p in matrices]
        torch._foreach_lerp_(velocities, gradients, 1 - keep)  # type: ignore[arg-type]
        ahead = torch._foreach_lerp(gradients, velocities, keep)  # type: ignore[arg-type]
        turned = orthogonalised(torch.stack([a.reshape(shape[0], -1) for a in ahead]))
        scale = 0.2 * math.sqrt(max(shape[0], matrices[0][0].numel()))
        return [update.reshape(shape) for update in (turned * scale).unbind()]

    def _adaptive(self, vectors: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The AdamW updates of parameters of any shapes."""
        for p in vectors:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros(())
                self.state[p]["mean"], self.state[p]["square"] = torch.zeros_like(p), torch.zeros_like(p)
        states = [self.state[p] for p in vectors]
        gradients: list[Any] = [p.grad for p in vectors]
        means, squares = [s["mean"] for s in states], [s["square"] for s in states]
        first, second = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - second)
        counts = []
        for state in states:
            state["step"] += 1
            counts.append(float(state["step"]))
        roots = torch._foreach_sqrt(torch._foreach_div(squares, [1 - second**count for count in counts]))
        torch._foreach_add_(roots, group["eps"])
        return list(torch._foreach_div(torch._foreach_div(means, [1 - first**count for count in counts]), roots))


def _apply(parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
    """Decay the parameters and take their step, in place."""
    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """(…, m, n) -> nearly the closest matrices with orthonormal rows (or columns): singular values land in about [0.7, 1.2].

    Newton-Schulz iteration of degree five in bfloat16, with the coefficients of Jordan et al. 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if tall else matrix).bfloat16()
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def warm_cosine(step: int, done: float, peak: float, warmup: int, final: float = 0.02) -> float:
    """Learning rate of optimiser ``step``: linear to ``peak`` over ``warmup`` steps, times a cosine from 1 down to ``final`` as
    ``done``, the share of the run, goes from 0 to 1.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return peak * min(1.0, (step + 1) / max(1, warmup)) * (final + (1 - final) * cosine)


def warm_linear(step: int, done: float, peak: float, warmup: int, final: float = 0.02) -> float:
    """The same with a straight line from 1 towards 0 that ends at ``final``."""
    return peak * min(1.0, (step + 1) / max(1, warmup)) * max(final, 1 - done)


def apart(parameters: Iterable[Tensor], share: float, beta1: float, weight_decay: float) -> dict[str, Any]:
    """A group of AdamW whose rate is ``share`` of the stage's; its gradient is clipped by itself."""
    return {"params": list(parameters), "share": share, "betas": (beta1, 0.99), "weight_decay": weight_decay}


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
