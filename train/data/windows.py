"""Batches of stored latent pairs, and the terms that hold decoded windows of them to sharp pixels.

Only a random window of every sample is decoded: decoding whole crops made a step twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import checkpoint
from train.data.pairs import KINDS, Pool
from train.judges.losses import window_ssim
from train.precision import channels_last
from train.tasks.vae import pixel_loss

FACTOR = 8
WINDOW: Mapping[str, int] = {"starter": 22, "tiny": 12}
"""Latent cells along the side of the window that is decoded; smaller where the decoder is slow."""
Decode = Callable[[Tensor], Tensor]
"""UNet-scaled latents (B, 4, h, w) -> pixels (B, 3, 8h, 8w), about [0, 1] and not clamped."""


def load_vae(path: Path) -> StarterVaeNet:
    return checkpoint.open_network(path, "vae", StarterVaeNet).to(memory_format=torch.channels_last)


def decoders(vae: StarterVaeNet, tiny: Path | None) -> dict[str, Decode]:
    """What reads each kind of latents: the starter's decoder, and TAESD's from the folder ``tiny`` when there is one."""
    found: dict[str, Decode] = {KINDS[0]: lambda z: vae.decoder(channels_last(z))}
    if tiny is not None:
        from lafr_core.latent.vae import open_tiny

        network = open_tiny(tiny, "sd").network.decoder.to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
        found[KINDS[1]] = lambda z: network(channels_last(z)) * 0.5 + 0.5
    return found


class Decoded(NamedTuple):
    """Windows of one kind."""

    kind: str
    restored: Tensor
    """(n, 3, side, side): decoded latents under training."""
    sharp: Tensor
    """(n, 3, side, side): the photo's own pixels."""
    rows: slice
    """Which samples of the batch they belong to."""


class Windows:
    """A batch: latents of whole crops, and the windows of each, ``each`` a sample, that are decoded.

    ``around`` > 0 keeps windows away from the crop's edge, so that their surroundings of that side can be cut out too.
    """

    def __init__(self, pool: Pool, generator: torch.Generator, batch: int, each: int = 1, around: int = 0) -> None:
        samples = pool.draw(generator, batch)
        self.each = each
        self.z_lq = channels_last(torch.stack([s.z_lq for s in samples]))
        self.z_hq = channels_last(torch.stack([s.z_hq for s in samples]))
        self.cells: list[tuple[slice, slice]] = []
        self.sharp: list[Tensor] = []
        for sample in [s for s in samples for _ in range(each)]:
            side = WINDOW[sample.kind]
            margin = max(0, around - side) // 2
            top, left = (margin + torch.randint(0, 65 - side - 2 * margin, (2,), generator=generator)).tolist()
            self.cells.append((slice(top, top + side), slice(left, left + side)))
            self.sharp.append(sample.sharp(*(slice(c.start * FACTOR, c.stop * FACTOR) for c in self.cells[-1])))
        starter = each * sum(s.kind == KINDS[0] for s in samples)
        self.rows = {KINDS[0]: slice(0, starter), KINDS[1]: slice(starter, each * batch)}

    def cut(self, latents: Tensor, rows: slice, side: int = 0) -> Tensor:
        """The windows ``rows`` out of latents (B, C, 64, 64) of the whole batch; with ``side``, that many cells around them."""
        parts = []
        for number, cells in list(enumerate(self.cells))[rows]:
            ys, xs = (surroundings(c, side) for c in cells)
            parts.append(latents[number // self.each, :, ys, xs])
        return torch.stack(parts)

    def decode(self, decode: Mapping[str, Decode], latents: Tensor) -> list[Decoded]:
        """Windows of every kind in the batch that ``decode`` can read, out of latents of whole crops or of surroundings."""
        return [
            Decoded(kind, decode[kind](self._inner(latents, kind, rows)).float(), torch.stack(self.sharp[rows]), rows)
            for kind, rows in self.rows.items()
            if rows.start < rows.stop and kind in decode
        ]

    def _inner(self, latents: Tensor, kind: str, rows: slice) -> Tensor:
        if latents.shape[-1] == 64:
            return self.cut(latents, rows)
        margin = (latents.shape[-1] - WINDOW[kind]) // 2
        return latents[rows, :, margin : margin + WINDOW[kind], margin : margin + WINDOW[kind]]


def surroundings(cells: slice, side: int) -> slice:
    """``side`` cells with ``cells`` in their middle; the cells themselves when they are that many or more."""
    margin = max(0, side - (cells.stop - cells.start)) // 2
    return slice(cells.start - margin, cells.stop + margin)


def window_mean(windows: Sequence[Decoded], terms: Sequence[Tensor]) -> Tensor:
    """The mean over samples of a term given for each kind of windows, whatever their sizes."""
    count = sum(len(w.restored) for w in windows)
    return torch.stack([term * (len(w.restored) / count) for w, term in zip(windows, terms, strict=True)]).sum()


def picture_losses(windows: list[Decoded]) -> dict[str, Tensor]:
    """Terms on decoded pixels, each the mean over samples."""
    mean = lambda term: window_mean(windows, [term(w.restored, w.sharp) for w in windows])
    decibel = lambda a, b: (a - b).square().mean((1, 2, 3)).clamp_min(1e-5).log().mean()
    return {"pixel": mean(pixel_loss), "decibel": mean(decibel), "ssim": mean(lambda a, b: 1 - window_ssim(a, b))}


def relative(latents: Tensor, target: Tensor, before: Tensor) -> Tensor:
    """Mean over samples of the L1 to ``target`` as a share of what it was ``before``: mild and severe samples count alike."""
    distance, start = ((z - target).abs().mean((1, 2, 3)) for z in (latents, before))
    return (distance / start.clamp_min(0.05)).mean()


def average(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    """Move ``slow`` towards ``fast`` in place: parameters averaged, buffers copied."""
    with torch.no_grad():
        for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
            a.lerp_(b, 1 - decay)
        for a, b in zip(slow.buffers(), fast.buffers(), strict=True):
            a.copy_(b)
