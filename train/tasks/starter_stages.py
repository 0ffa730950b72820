"""What pulls the starter adapter and the starter prior: the terms of each stage and where their gradients enter.

All terms meet at the latents a network gave (the leaf): the pictures are decoded from there, and one backward pass through the
network follows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import checkpoint
from train.data.pairs import Pool
from train.data.windows import Windows, decoders, picture_losses, relative, window_mean
from train.judges.losses import sharpness
from train.judges.mobilefacenet import load_mobilefacenet
from train.precision import amp
from train.tasks.thumbnail import identity_losses, open_thumbnail

WEIGHTS = {"latent": 0.7, "pixel": 2.0, "decibel": 0.2, "ssim": 0.5}
ANCHOR = 0.05
"""Weight of the distance between a degraded face's features and the sharp face's entries."""
SURROUNDINGS = 32
"""Latent cells along the side of what the prior sees of a window in training."""


class Pulls(NamedTuple):
    """One step's work: terms to log, and tensors of the network with the gradients to send back from them."""

    losses: dict[str, Tensor]
    roots: list[Tensor]
    gradients: list[Tensor]


def open_adapter(path: Path) -> AdapterNet:
    """The adapter of ``path``, frozen."""
    return checkpoint.open_network(path, "adapter", AdapterNet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_adapter(path: Path, **least: int) -> AdapterNet:
    """An adapter that may be trained on: its codebook stays as it is.

    ``least`` raises its depths where they are below: new blocks end in a layer of zeros, so the network does what it did.
    """
    network = open_adapter(path)
    sizes: dict[str, Any] = {**network.config, **{name: max(network.config[name], value) for name, value in least.items()}}
    if sizes != network.config:
        grown = AdapterNet(**sizes)
        grown.load_state_dict({**grown.state_dict(), **network.state_dict()}, strict=True)
        network = grown.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train().requires_grad_(True).codebook.codes.requires_grad_(False)
    return network


def load_prior(path: Path | None, widths: list[int], depth: int) -> PriorNet:
    """The prior of ``path`` to train on, or a new local one of these sizes, which is the identity."""
    if path is None:
        fine, middle, deep = widths
        new = PriorNet(widths=(fine, middle, deep), depth=depth, groups=0, attention=False, sharpen=1.0)
        return new.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = checkpoint.open_network(path, "prior", PriorNet).train().requires_grad_(True)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def draw_fidelity(generator: torch.Generator, count: int, default: float, share: float) -> Tensor:
    """(count, 1, 1, 1): ``share`` of the samples at ``default``, the rest anywhere: every setting of the knob has to work."""
    u = torch.rand((2, count, 1, 1, 1), generator=generator)
    return torch.where(u[0] < share, torch.full_like(u[1], default), u[1])


def weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum that is minimised."""
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


class StarterAdapter:
    """The adapter alone: latents, decoded windows, and the identity network on thumbnails."""

    def __init__(self, args: argparse.Namespace, vae: StarterVaeNet) -> None:
        self.args = args
        self.decode = decoders(vae, args.teachers if args.tiny > 0 else None)
        self.weights = WEIGHTS | {"identity": args.identity_weight, "features": args.features_weight}
        self.net = load_adapter(args.init or args.out / "codebook.safetensors", depth=args.depth, deep_depth=args.deep_depth)
        start = open_adapter(args.out / "codebook.safetensors")
        self.codebook, self.anchors = start.codebook, start.extractor  # F of the codebook stage tells the right entries
        self.teacher = self.thumbnail = None
        if args.identity_weight > 0 or args.features_weight > 0:
            if args.teachers is None:
                raise SystemExit("--identity-weight and --features-weight need --teachers; give the folder or set both to 0")
            self.teacher = load_mobilefacenet(args.teachers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.thumbnail = open_thumbnail(args.out / "thumbnail.safetensors")

    def pulls(self, pool: Pool, generator: torch.Generator) -> Pulls:
        """The terms of one batch."""
        args = self.args
        batch = Windows(pool, generator, args.batch)
        with amp():
            aligned = self.net(batch.z_lq, draw_fidelity(generator, args.batch, args.fidelity, args.share))
        leaf = aligned.latents.detach().float().requires_grad_()
        with amp():
            windows = batch.decode(self.decode, leaf)
        losses = picture_losses(windows) | {"latent": relative(leaf, batch.z_hq, batch.z_lq)}
        if self.teacher is not None and self.thumbnail is not None:
            with amp():
                ours, theirs = self.thumbnail(torch.cat([leaf, batch.z_hq])).float().chunk(2)
                losses["identity"], losses["features"] = identity_losses(self.teacher, ours, theirs)
        wanted = torch.autograd.grad(weighted(losses, self.weights), leaf)[0]
        with torch.no_grad(), amp():
            target = self.codebook(self.anchors(batch.z_hq).code)
        anchor = F.mse_loss(aligned.features.code.float(), target.quantised.float())
        roots = [aligned.latents, ANCHOR * anchor]
        return Pulls(losses | {"anchor": anchor.detach()}, roots, [wanted.to(roots[0].dtype), torch.ones(())])

    def restorer(self, average: nn.Module) -> tuple[Any, Any]:
        """(adapter, prior) as a user would run them."""
        return average, None


class StarterPrior:
    """The prior behind a finished adapter, on windows with their surroundings: it gives back the edge energy that was lost.

    The adapter's file is read again when it changes, so that both can be trained at a time.
    """

    def __init__(self, args: argparse.Namespace, vae: StarterVaeNet) -> None:
        self.args, self.file = args, Path(args.init or args.out / "adapter.safetensors")
        self.decode = decoders(vae, args.teachers if args.tiny > 0 else None)
        self.weights = WEIGHTS | {"sharpness": args.sharpness}
        self.net = load_prior(args.init_prior, args.widths, args.depth)
        self.adapter, self.read_at = self._adapter(), self.file.stat().st_mtime

    def _adapter(self) -> AdapterNet:
        return open_adapter(self.file)

    def pulls(self, pool: Pool, generator: torch.Generator) -> Pulls:
        """The terms of one batch."""
        args = self.args
        if self.file.stat().st_mtime > self.read_at:
            self.adapter, self.read_at = self._adapter(), self.file.stat().st_mtime
        batch = Windows(pool, generator, args.batch, each=args.windows, around=SURROUNDINGS)
        with torch.no_grad(), amp():
            fidelity = draw_fidelity(generator, args.batch, args.fidelity, args.share)
            aligned = self.adapter(batch.z_lq, fidelity).latents.float()
        everything = slice(0, None)
        before, z_hq = (batch.cut(z, everything, SURROUNDINGS) for z in (batch.z_lq, batch.z_hq))
        with amp():
            z = self.net(batch.cut(aligned, everything, SURROUNDINGS))
        leaf = z.detach().float().requires_grad_()
        with amp():
            windows = batch.decode(self.decode, leaf)
        losses = picture_losses(windows) | {"latent": relative(leaf, z_hq, before)}
        with torch.no_grad(), amp():  # decoded as well: what the decoder cannot show is not asked for
            real = [self.decode[w.kind](batch.cut(batch.z_hq, w.rows)).float() for w in windows]
        energies = [sharpness(w.restored, r) for w, r in zip(windows, real, strict=True)]
        losses["sharpness"] = window_mean(windows, energies)
        wanted = torch.autograd.grad(weighted(losses, self.weights), leaf)[0]
        return Pulls(losses, [z], [wanted.to(z.dtype)])

    def restorer(self, average: nn.Module) -> tuple[Any, Any]:
        """(adapter, prior) as a user would run them."""
        return self.adapter, average
