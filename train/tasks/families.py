"""The adapter for another latent family (SDXL, SD3, FLUX.1), from its TAESD sibling and the adapter for Stable Diffusion.

    C="--config train/configs/family_sdxl.yaml --models.vae TAESD --data.pairs runs/sdxl"
    python -m train pairs    $C --data.source FACES
    python -m train families $C --families.donor DONOR

Encoding is dear (TAESD takes as long for one crop as training does for four), so few crops are encoded once, by the family's
encoder and by the starter's (pairs.beside). The second latents are for the start: what a Stable Diffusion adapter knows of
faces stays true in any latent space, only its first and last layers speak its latents. These are fitted by least squares, then
all layers learn together on latents and on what they show: latents alone come closer while colours drift, and decoding is dear,
so a convolution fitted to decoded latents tells the mean colour of every cell. The donor learns to do with the smaller size
first, by the same task with family sd. The last step's averaged weights become ``adapter.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.latent.networks.adapter import AdapterNet, AdapterOutput, Features
from lafr_core.latent.spec import family
from lafr_core.store import checkpoint
from lafr_core.store.assets import bundled
from lafr_core.types import LatentSpec, Vae
from train.config import Config
from train.data.faces import Picture, draw_fidelity, locate
from train.data.pairs import FACTOR, STRIDE, Shards
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, left_beside, named_vae, new_adapter
from train.engine.run import Collectives, collectives, command, join_processes
from train.judges.losses import relative
from train.precision import amp, channels_last
from train.tasks.codebook_learning import CodebookLearner, Usage

POSITION = "deep.1.position"
"""The extractor's table."""
DECODED = 12
"""Photos that are decoded to fit the colours."""
FITTED = 60
"""Photos that the least squares see: a quarter of a million cells."""
CLUSTERED = 32
"""Photos whose features the codebook starts from."""


# --- pairs ---


class Pairs(NamedTuple):
    """N photos, one degradation each: latents of whole crops (h = 64) or of one square window of each."""

    z_hq: Tensor
    """(N, C, h, h)"""
    z_lq: Tensor
    """(N, C, h, h)"""
    corner: Tensor
    """(N, 2) int64: top and left of the window, in strides of STRIDE pixels."""


def some(shards: Shards, count: int, *, beside: bool = False) -> Pairs:
    """``count`` stored photos, evenly spaced; with ``beside`` the starter's latents stand behind the family's (B, C + 4, …)."""
    rows = range(0, len(shards), max(1, len(shards) // count))
    names = (("z_hq", "y_hq"), ("z_lq", "y_lq")) if beside else (("z_hq",), ("z_lq",))
    read = lambda row, name: shards.read(row, name, 0) if name.endswith("lq") else shards.read(row, name)
    sharp, low = (torch.stack([torch.cat([read(row, name).float() for name in group]) for row in rows]) for group in names)
    return Pairs(sharp, low, torch.stack([shards.read(row, "corner") for row in rows]))


class Windows:
    """Stream position -> ``z_lq``, ``z_hq`` (C, h, h), ``corner`` (2,) and ``fidelity``, half of them mirrored.

    Of a mirrored face an encoder makes nearly the mirrored latents.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.data, self.shards = config, config.data, Shards(config.data.pairs)
        self.pictures = [Picture(path.name, path) for path in self.shards.files]

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        g = np.random.default_rng([self.config.seed, 10, position])
        row = locate(position, len(self.shards), self.config.seed)[1]
        low = self.shards.read(row, "z_lq", int(g.integers(self.shards.versions))).float()
        sharp, corner = self.shards.read(row, "z_hq").float(), self.shards.read(row, "corner")
        if g.random() < self.data.flip:
            last = self.data.size // STRIDE - sharp.shape[-1] * FACTOR // STRIDE
            low, sharp = low.flip(-1), sharp.flip(-1)
            corner = torch.stack([corner[0], last - corner[1]])
        fidelity = torch.tensor(draw_fidelity(g, self.data), dtype=torch.float32)
        return {"z_lq": low, "z_hq": sharp, "corner": corner, "fidelity": fidelity}


# --- the start ---


@torch.no_grad()
def grafted(config: Config, spec: LatentSpec, donor: AdapterNet, pairs: Pairs) -> AdapterNet:
    """An adapter for ``spec`` of the config's sizes that starts with what ``donor`` knows.

    ``pairs`` hold the family's latents and behind them the donor's. The inner layers are the donor's; the stem is fitted to
    what the donor's stem makes of its latents, then the two last layers to the sharp latents.
    """
    network = new_adapter(config, spec.channels).eval()
    inherit(network, donor)
    sharp, low = pairs.z_hq[:FITTED], pairs.z_lq[:FITTED]
    seen = torch.cat([sharp, low])
    fit(network.extractor.stem, seen[:, : spec.channels], donor.extractor.stem(seen[:, spec.channels :]))
    before_last: list[Tensor] = []
    hook = network.mapping.out.register_forward_pre_hook(lambda _, inputs: before_last.append(inputs[0]))
    sharp, low = sharp[:, : spec.channels], low[:, : spec.channels]
    for part, corner in zip(low.split(8), pairs.corner[:FITTED].split(8), strict=True):
        aligned_there(network, part, torch.full((len(part), 1, 1, 1), config.data.fidelity), corner)
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


class FamiliesTask(NetworkTask):
    """Degraded latents -> clean ones, all of the adapter learning together, its codebook by moving averages."""

    name = "families"

    def __init__(self, config: Config, network: AdapterNet, colour: nn.Module | None, together: Collectives) -> None:
        super().__init__(network.requires_grad_(True))
        self.config, self.stage, self.network = config, config.families, network
        self.colour = colour
        network.codebook.codes.requires_grad_(False)
        generator = torch.Generator().manual_seed(config.seed)
        self.learner = CodebookLearner(
            network.codebook, generator, reduce=together.sum, share=together.from_first, gather=together.gather
        )

    @torch.no_grad()
    def begin(self, model: nn.Module, samples: Windows, step: int) -> None:
        """Before the first step: set the entries by k-means over features of clean windows."""
        if step:
            return
        pairs = some(samples.shards, CLUSTERED)
        device = next(self.network.parameters()).device
        with amp(device, self.stage.precision):
            self.learner.start(features(self.network, pairs.z_hq.to(device), pairs.corner).code)

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stage, corner = self.stage, batch["corner"]
        z_lq, z_hq = (channels_last(batch[name]) for name in ("z_lq", "z_hq"))
        with torch.no_grad():
            code = features(self.network, z_hq, corner).code
            sharp = self.network.codebook(code)
        aligned = aligned_there(self.network, z_lq, batch["fidelity"].view(-1, 1, 1, 1), corner)
        self.learner.observe(code, sharp.indices, sharp.distance)
        terms = {
            "align": relative(aligned.latents.float(), z_hq, z_lq),
            "anchor": stage.anchor * F.mse_loss(aligned.features.code.float(), sharp.quantised.float()),
        }
        if self.colour is not None:
            error = (self.colour(aligned.latents.float()) - self.colour(z_hq)).square().mean((1, 2, 3))
            terms["colour"] = stage.colour * error.clamp_min(1e-5).log().mean()
        return terms

    def finish(self) -> Mapping[str, float | Tensor]:
        usage: Usage = self.learner.step()
        return {"perplexity": usage.perplexity, "codes_used": usage.used, "codes_revived": float(usage.revived)}

    def state(self) -> dict[str, Any]:
        return dict(self.learner.state_dict())

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(dict(state))


def run(config: Config) -> Path:
    """Train the family's adapter and write it beside its checkpoints; returns the file."""
    device = join_processes()
    spec, samples = family(config.models.family), Windows(config)
    if config.models.init:
        network = checkpoint.open_network(Path(config.models.init), "adapter", AdapterNet)
    elif not samples.shards.has("y_hq"):
        raise InputError(
            f"{config.data.pairs}: holds no latents of the starter beside the family's, which the start needs; "
            "store them with pairs.beside true, or go on from models.init"
        )
    else:
        donor = checkpoint.open_network(Path(config.families.donor or bundled("adapter")), "adapter", AdapterNet)
        network = grafted(config, spec, donor, some(samples.shards, FITTED, beside=True))
    colour = None
    if config.families.colour > 0:
        vae = named_vae(config.models.vae, spec.name, device)
        colour = colours(vae, some(samples.shards, DECODED).z_hq.to(device)).to(device)
    network.to(device)
    task = FamiliesTask(config, network, colour, collectives())
    last = train(task, config.families, config, samples)
    task.load_weights(averaged(checkpoints.load_state(last)))
    return left_beside(last, "adapter", network, config, config.families)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
