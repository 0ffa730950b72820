"""Train the adapter for another latent family (SDXL, SD3, FLUX.1) from its TAESD sibling and the adapter for Stable Diffusion.

    python -m train families --family sd --pairs runs/pairs --out runs/sd        # a donor of the families' size
    python -m train families --family sdxl --donor runs/sd/adapter.safetensors --data ../shared/data/faces \\
        --tiny ../shared/weights --out runs/sdxl

Encoding is dear (TAESD takes as long for one crop as training does for four), so few crops are encoded once, by the family's
encoder and by the starter's. The second latents are for the start: what a Stable Diffusion adapter knows of faces stays true
in any latent space, only its first and last layers speak its latents. These are fitted by least squares, then all layers
learn together on latents and on what they show: latents alone come closer while colours drift, and decoding is dear, so a
convolution fitted to decoded latents tells the mean colour of every cell. The donor learns to do with the smaller size first,
from the many pairs of ``train.data.pairs``.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lafr_core.geometry import CROP_SIZE
from lafr_core.latent.networks.adapter import AdapterNet, AdapterOutput, Features
from lafr_core.latent.spec import FAMILIES, family
from lafr_core.latent.vae import open_tiny
from lafr_core.store import checkpoint
from lafr_core.store.atomic import atomic
from lafr_core.types import LatentSpec, Vae
from train.data.pairs import PHOTOS, Encode, Pool, starter_encoder
from train.data.pairs import draw as drawn
from train.data.photos import Portrait, read_split
from train.data.windows import average, relative
from train.engine import optimizers
from train.precision import amp
from train.tasks.codebook_learning import CodebookLearner

log = logging.getLogger("train.families")
SIZES = {"width": 64, "coarse": 128, "deep": 88, "code_width": 64, "entries": 1024, "depth": 1}
"""Of the adapter: the donor's where that fits into 5 MB, one residual block a place instead of two and half its depths."""
STRIDE = 32
"""Pixels that one cell of the adapter's deepest grid covers: windows lie on it, so that its position table can be cut alike."""
POSITION = "deep.1.position"
"""The extractor's table."""
ANCHOR = 0.05
"""Weight of the distance between a degraded face's features and the sharp face's entries."""
COLOUR = 0.2
"""Weight of the logarithm of the mean squared error of the cells' colours: of their PSNR."""
WARM_UP = 30
DECODED = 12
"""Photos that are decoded to fit the colours."""
FITTED = 60
"""Photos that the least squares see: a quarter of a million cells."""


# --- pairs ---


class Pairs(NamedTuple):
    """N photos with V degradations each: float16 latents of whole crops (h = 64) or of one square window of each."""

    z_hq: Tensor
    """(N, C, h, h)"""
    z_lq: Tensor
    """(N, V, C, h, h)"""
    corner: Tensor
    """(N, 2) int64: top and left of the window, in strides of STRIDE pixels."""


def both_encoder(tiny: Path, name: str, starter: Path) -> Encode:
    """Pictures -> the family's latents with the starter's behind them, (B, C + 4, h, w)."""
    vae = open_tiny(tiny, name)
    vae.network.encoder.to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    donor = starter_encoder(starter)

    def encode(pixels: Tensor) -> Tensor:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with amp():
            return torch.cat([vae.encode(pixels).float(), donor(pixels)], dim=1)

    return encode


def make_pairs(
    photos: list[Portrait], encode: Callable[[], Encode], out: Path, *, count: int, versions: int, window: int, seed: int
) -> Pairs:
    """``count`` photos in a random order, in shards; those that exist are kept. ``encode()`` opens the encoder when needed."""
    out.mkdir(parents=True, exist_ok=True)
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(photos))[:count]]
    opened: Encode | None = None
    paths = []
    for start in range(0, len(order), PHOTOS):
        paths.append(out / f"{start:04d}.safetensors")
        if paths[-1].is_file():
            continue
        opened = opened or encode()
        shard = [windowed(photos[i], [seed, i], versions, window, opened) for i in order[start : start + PHOTOS]]
        with atomic(paths[-1]) as part:
            save_file({name: torch.stack([row[name] for row in shard]) for name in Pairs._fields}, str(part))
        log.info("%s", paths[-1].name)
    shards = [load_file(str(path)) for path in paths]
    return Pairs(**{name: torch.cat([shard[name] for shard in shards]) for name in Pairs._fields})


@torch.no_grad()
def windowed(photo: Portrait, seed: list[int], versions: int, window: int, encode: Encode) -> dict[str, Tensor]:
    """One photo's row of :class:`Pairs`: all its versions in the same window of ``window`` pixels."""
    generator = np.random.default_rng(seed)
    sharp, low = drawn(photo, generator, versions)
    corner = torch.from_numpy(generator.integers(0, (CROP_SIZE - window) // STRIDE + 1, 2))
    top, left = (int(v) * STRIDE for v in corner)
    latents = encode(torch.cat([sharp[None], low])[..., top : top + window, left : left + window]).half().contiguous()
    return {"z_hq": latents[0], "z_lq": latents[1:], "corner": corner}


def stored_pairs(folder: Path) -> Pairs:
    """All of ``train.data.pairs``' shards for a donor: each latent twice, as the family's and as the starter's."""
    pool = Pool(folder)
    z_hq, z_lq = (torch.cat(parts) for parts in zip(*pool.latents.values(), strict=True))
    return Pairs(torch.cat([z_hq, z_hq], 1), torch.cat([z_lq, z_lq], 2), torch.zeros(len(z_hq), 2, dtype=torch.int64))


# --- the start ---


@torch.no_grad()
def grafted(spec: LatentSpec, donor: AdapterNet, pairs: Pairs, fidelity: float) -> AdapterNet:
    """An adapter for ``spec`` that starts with what ``donor`` knows.

    ``pairs`` hold the family's latents and behind them the donor's. The inner layers are the donor's; the stem is fitted to
    what the donor's stem makes of its latents, then the two last layers to the sharp latents.
    """
    network = AdapterNet(spec.name, spec.channels, **SIZES).eval()  # type: ignore[arg-type]
    inherit(network, donor)
    sharp, low = pairs.z_hq[:FITTED].float(), pairs.z_lq[:FITTED, 0].float()
    seen = torch.cat([sharp, low])
    fit(network.extractor.stem, seen[:, : spec.channels], donor.extractor.stem(seen[:, spec.channels :]))
    before_last: list[Tensor] = []
    hook = network.mapping.out.register_forward_pre_hook(lambda _, inputs: before_last.append(inputs[0]))
    sharp, low = sharp[:, : spec.channels], low[:, : spec.channels]
    for part, corner in zip(low.split(8), pairs.corner[:FITTED].split(8), strict=True):
        aligned_there(network, part, torch.full((len(part), 1, 1, 1), fidelity), corner)
    hook.remove()
    found = torch.cat(before_last)
    fit(network.mapping.out, found, sharp)
    fit(network.mapping.correction, found, sharp - low)
    return network


@torch.no_grad()
def colours(vae: Vae, latents: Tensor) -> nn.Conv2d:
    """A 3x3 convolution from latents to the mean colours (B, 3, h, w) of the decoded cells, fitted to ``latents``."""
    layer = nn.Conv2d(latents.shape[1], 3, 3, padding=1)
    with amp():
        pictures = torch.cat([vae.decode(z[None]).float() for z in latents])
    fit(layer, latents, F.avg_pool2d(pictures, 8))
    return layer.requires_grad_(False)


def aligned_there(network: AdapterNet, latents: Tensor, fidelity: Tensor, corner: Tensor) -> AdapterOutput:
    """``network(latents, fidelity)`` for windows at ``corner`` (B, 2): its attention is told where in the face they lie."""
    return functional_call(network, {f"extractor.{POSITION}": table(network, latents, corner)}, (latents, fidelity))


def features(network: AdapterNet, latents: Tensor, corner: Tensor) -> Features:
    """The extractor alone, as :func:`aligned_there`."""
    return functional_call(network.extractor, {POSITION: table(network, latents, corner)}, (latents,))


def table(network: AdapterNet, latents: Tensor, corner: Tensor) -> Tensor:
    """(B, deep, g, g): the cuttings of the attention's position table for windows (B, C, h, h) at ``corner``."""
    whole, side = network.extractor.get_parameter(POSITION), latents.shape[-1] * 8 // STRIDE
    return torch.cat([whole[..., top : top + side, left : left + side] for top, left in corner.tolist()])


def inherit(network: AdapterNet, donor: AdapterNet) -> None:
    """Copy in place every tensor that the donor has too; of an axis that is wider there, some channels of each norm group."""
    wide, narrow, groups = int(donor.config["deep"]), int(network.config["deep"]), 8  # type: ignore[call-overload]
    chosen = torch.cat([torch.arange(narrow // groups) + wide // groups * group for group in range(groups)])
    known = donor.state_dict()
    for name, tensor in network.state_dict().items():
        source = known.get(name)
        if source is None:
            continue
        for axis in range(source.ndim):
            if source.shape[axis] != tensor.shape[axis] and source.shape[axis] % wide == 0:
                blocks = source.shape[axis] // wide  # 3 in attention's query, key and value, else 1
                source = source.index_select(axis, torch.cat([chosen + wide * block for block in range(blocks)]))
        if source.shape == tensor.shape:
            tensor.copy_(source)


def fit(layer: nn.Conv2d, inputs: Tensor, targets: Tensor, ridge: float = 1e-3) -> None:
    """Set a 3x3 convolution to the least squares map from ``inputs`` (N, C, h, w) to ``targets`` (N, D, h, w), in place."""
    size = inputs.shape[1] * 9 + 1
    left, right, count = torch.zeros(size, size), torch.zeros(size, targets.shape[1]), 0
    for x, y in zip(inputs.split(4), targets.split(4), strict=True):
        columns = F.unfold(x, 3, padding=1)  # (n, C*9, h*w)
        rows = torch.cat([columns, torch.ones_like(columns[:, :1])], 1).transpose(1, 2).reshape(-1, size)
        left += rows.t() @ rows
        right += rows.t() @ y.flatten(2).transpose(1, 2).reshape(-1, targets.shape[1])
        count += len(rows)
    left += ridge * left.diagonal().mean() * torch.eye(size)
    solved = torch.linalg.solve(left.double(), right.double()).float()
    layer.weight.copy_(solved[:-1].t().reshape(layer.weight.shape))
    assert layer.bias is not None
    layer.bias.copy_(solved[-1])


# --- training ---


def train(network: AdapterNet, pairs: Pairs, colour: nn.Module | None, args: argparse.Namespace) -> AdapterNet:
    """``network`` trained in place on latents and, where given, :func:`colours`; returns its moving average."""
    generator = torch.Generator().manual_seed(args.seed)
    network.to(memory_format=torch.channels_last).train().requires_grad_(True)
    network.codebook.codes.requires_grad_(False)
    learner = CodebookLearner(network.codebook, generator)
    with torch.no_grad(), amp():
        some = slice(None, None, max(1, len(pairs.z_hq) // 32))
        learner.start(features(network, pairs.z_hq[some].float(), pairs.corner[some]).code)
    slow = copy.deepcopy(network).requires_grad_(False)
    optimizer = optimizers.make("muon", network, args.lr, weight_decay=1e-4)
    started, totals = time.process_time(), np.zeros(3)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = optimizers.warm_cosine(step, step / args.steps, args.lr, WARM_UP)
        z_lq, z_hq, corner = draw(pairs, args.batch, generator)
        # Half of the samples at the default fidelity, half anywhere: every setting of the knob has to work.
        u = torch.rand((2, args.batch, 1, 1, 1), generator=generator)
        fidelity = torch.where(u[0] < 0.5, torch.full_like(u[1], args.fidelity), u[1])
        with amp():
            with torch.no_grad():
                code = features(network, z_hq, corner).code
                sharp = network.codebook(code)
            aligned = aligned_there(network, z_lq, fidelity, corner)
        usage = learner.update(code, sharp.indices, sharp.distance)
        align = relative(aligned.latents.float(), z_hq, z_lq)
        anchor = F.mse_loss(aligned.features.code.float(), sharp.quantised.float())
        shown = torch.zeros(())
        if colour is not None:
            shown = (colour(aligned.latents.float()) - colour(z_hq)).square().mean((1, 2, 3)).clamp_min(1e-5).log().mean()
        optimizer.zero_grad(set_to_none=True)
        (align + ANCHOR * anchor + COLOUR * shown).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average(slow, network, min(0.99, (step + 1) / (step + 10)))
        totals += (align.item(), anchor.item(), shown.item())
        if (step + 1) % 50 == 0:
            used = (time.process_time() - started) / (step + 1)
            log.info("step %d align %.4f anchor %.4f colour %.3f %s %.2f s/step", step + 1, *totals / 50, usage, used)
            totals[:] = 0
    return slow.eval()


def draw(pairs: Pairs, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Degraded and sharp latents (B, C, h, h) with their corners, half of them mirrored: of a mirrored face an encoder makes
    nearly that.
    """
    rows = torch.randint(len(pairs.z_hq), (batch,), generator=generator)
    versions = torch.randint(pairs.z_lq.shape[1], (batch,), generator=generator)
    low, sharp, corner = pairs.z_lq[rows, versions].float(), pairs.z_hq[rows].float(), pairs.corner[rows]
    mirrored = torch.rand(batch, generator=generator) < 0.5
    low, sharp = (torch.where(mirrored[:, None, None, None], z.flip(-1), z) for z in (low, sharp))
    last = CROP_SIZE // STRIDE - sharp.shape[-1] * 8 // STRIDE
    left = torch.where(mirrored, last - corner[:, 1], corner[:, 1])
    low, sharp = (z.contiguous(memory_format=torch.channels_last) for z in (low, sharp))
    return low, sharp, torch.stack([corner[:, 0], left], 1)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=tuple(FAMILIES), required=True)
    parser.add_argument("--pairs", type=Path, help="family sd: folder that train.data.pairs filled")
    parser.add_argument("--data", type=Path, help="other families: folder with faces.csv")
    parser.add_argument("--tiny", type=Path, help="other families: folder with the TAESD siblings' files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--starter", type=Path, default=Path("lafr_core/weights/vae.safetensors"))
    parser.add_argument("--donor", type=Path, default=Path("lafr_core/weights/adapter.safetensors"))
    parser.add_argument("--init", type=Path, help="go on from this adapter of the family instead of a grafted one")
    parser.add_argument("--photos", type=int, default=120)
    parser.add_argument("--versions", type=int, default=3)
    parser.add_argument("--window", type=int, default=CROP_SIZE, help="pixels of each crop that are encoded, a multiple of 32")
    parser.add_argument("--steps", type=int, default=600, help="0 = stop when the pairs are there")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--fidelity", type=float, default=0.75, help="what half of the samples are trained at")
    parser.add_argument("--seed", type=int, default=6)
    args = parser.parse_args(given)
    needed = ("pairs",) if args.family == "sd" else ("data", "tiny")
    if missing := [f"--{name}" for name in needed if getattr(args, name) is None]:
        parser.error(f"--family {args.family} needs {' and '.join(missing)}")
    args.out.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(args.out / "log.txt")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    log.info("%s", vars(args))
    torch.manual_seed(args.seed)
    spec = family(args.family)
    if spec.name == "sd":
        pairs = stored_pairs(args.pairs)
    else:
        pairs = make_pairs(
            read_split(args.data, "train"), lambda: both_encoder(args.tiny, spec.name, args.starter), args.out / "pairs",
            count=args.photos, versions=args.versions, window=args.window, seed=args.seed,
        )  # fmt: skip
    if not args.steps:
        return
    if args.init is not None:
        network = checkpoint.open_network(args.init, "adapter", AdapterNet)
    else:
        network = grafted(spec, checkpoint.open_network(args.donor, "adapter", AdapterNet), pairs, args.fidelity)
    own = Pairs(pairs.z_hq[:, : spec.channels], pairs.z_lq[:, :, : spec.channels], pairs.corner)
    some = own.z_hq[:: max(1, len(own.z_hq) // DECODED)].float()
    colour = colours(open_tiny(args.tiny, spec.name), some) if args.tiny is not None else None
    slow = train(network, own, colour, args)
    notes = {"licence": "MIT", "training": json.dumps({key: str(value) for key, value in vars(args).items()})}
    checkpoint.save(args.out / "adapter.safetensors", "adapter", slow, slow.config, notes)
