"""The starter decoder's finish: a critic on frozen features says what a decoded face lacks beside the photo.

    C="--config train/configs/starter_decoder.yaml"
    python -m train decoder $C --data.source "FACES;FACES_LONDON" --models.second_vae TAESD

draws faces anew for every sample. Patches of stored pairs (pairs.beside and pairs.aligned true) cost no encoder:

    C="$C --data.pairs runs/decoder_pairs --data.window 16 --data.around 20 --models.vae TAESD"
    python -m train pairs   $C --data.source FACES --pairs.beside true --pairs.aligned true
    python -m train decoder $C

Only the decoder learns; the latents stay as they are, so everything that was trained on them fits as before. It decodes clean
latents, the starter encoder's and the teacher's, and degraded ones that the adapter aligned and a prior finished: on those,
smoother than any photo's, a decoder that has seen only clean ones draws a grid. The critic (train.judges.projected) sees each
beside what the decoder made of it before. The last step's averaged weights become ``vae.safetensors`` beside the checkpoints,
the encoder in it unchanged.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import assets, checkpoint
from train.config import Config, Data, DecoderStage
from train.data.faces import Picture, Samples, locate, open_pictures
from train.data.fresh import Fresh
from train.data.pairs import FACTOR, Shards, corner
from train.data.windows import inner
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import adapter_for_prior, averaged, left_beside, named_vae, rows_made
from train.engine.run import Collectives, collectives, command, join_processes
from train.judges.projected import ProjectedCritic, asked, window_box
from train.judges.views import look, view_box
from train.precision import channels_last
from train.tasks.vae import pixel_loss


class Patches:
    """Stream position -> ``latents`` (C, a, a) around a window, its ``pixels`` (3, 8w, 8w), ``corner``, ``view``."""

    def __init__(self, config: Config) -> None:
        self.config, self.data, self.stage = config, config.data, config.decoder
        self.shards = Shards(config.data.pairs)
        kept = {"sharp": 1.0, "y_hq": self.stage.own, "z_al": self.stage.restored}
        missing = [name for name, share in kept.items() if share and not self.shards.has(name)]
        if missing:
            raise InputError(
                f"{config.data.pairs}: expected pairs with {missing[0]}, found {', '.join(sorted(self.shards.kept))}; "
                "store them with pairs.pixels, pairs.beside and pairs.aligned true, or set decoder.own or decoder.restored 0"
            )
        self.pictures = [Picture(path.name, path) for path in self.shards.files]

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        data, shards = self.data, self.shards
        g = np.random.default_rng([self.config.seed, 12, position])
        row = locate(position, len(shards), self.config.seed)[1]
        top, left = corner(g, data, shards.cells)
        side, margin = data.around, (data.around - data.window) // 2
        around = (slice(top - margin, top - margin + side), slice(left - margin, left - margin + side))
        dots = (slice(v * FACTOR, (v + data.window) * FACTOR) for v in (top, left))
        name = "y_hq" if g.random() < self.stage.own else "z_hq"
        version: tuple[int, ...] = ()
        if g.random() < self.stage.restored:
            name, version = "z_al", (int(g.integers(shards.versions)),)
        return {
            "latents": shards.read(row, name, *version, slice(None), *around).float(),
            "pixels": shards.read(row, "sharp", slice(None), *dots).float() / 255,
            "corner": torch.tensor([top, left]),
            "view": self.view(g),
        }

    @staticmethod
    def view(g: np.random.Generator) -> Tensor:
        """(3,): pixels down and to the right, 0 to 8, and how near, 1 or 2, for train.judges.views.look."""
        return torch.tensor([*g.integers(0, FACTOR + 1, 2).tolist(), int(g.integers(1, 3))])


CLEAN, SECOND, ALIGNED, FINISHED = range(4)
"""What a fresh face's latents are: the clean face's, the same by the second autoencoder, what the adapter makes of the degraded
one's, and what the prior makes of those."""


def own_draws(data: Data, stage: DecoderStage, second: float, generator: np.random.Generator) -> dict[str, Tensor]:
    """``kind``: one of the four, ``second`` being the share of its own; ``view`` of half a face's side, anywhere in it, at one
    or two times the size.
    """
    u, v = generator.random(2)
    kind = SECOND if u < second else CLEAN
    if second <= u < second + stage.restored:
        kind = FINISHED if v < stage.finished else ALIGNED
    near = int(generator.integers(1, 3))
    top, left = (float(n) for n in generator.integers(0, data.size - data.size // 2 // near + 1, 2))
    return {"kind": torch.tensor(kind), "view": torch.tensor([top, left, float(near)])}


class Sources:
    """Frozen networks that make a fresh face's latents of every kind."""

    def __init__(self, config: Config, encoder: nn.Module, device: torch.device) -> None:
        stage, second = config.decoder, config.models.second_vae
        self.encoder = encoder
        self.second = named_vae(second, config.models.family, device) if second else None
        self.adapter = adapter_for_prior(config) if stage.restored > 0 else None
        if stage.restored > 0 and self.adapter is None:
            raise InputError("decoder.restored: needs an adapter, got models.adapter none; give one, or set it to 0")
        self.prior: nn.Module | None = None
        if stage.restored > 0 and stage.finished > 0:
            path = Path(stage.prior) if stage.prior else assets.bundled("prior")
            self.prior = checkpoint.open_network(path, "prior", PriorNet)
        for network in (self.adapter, self.prior):
            if network is not None:
                network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, C, h, w), each of its ``kind``."""
        kind = batch["kind"]
        degraded = (kind >= ALIGNED).view(-1, 1, 1, 1)
        z = self.encoder(channels_last(torch.where(degraded, batch["lq"], batch["hq"]))).float()
        if (second := self.second) is not None:
            z = rows_made(z, kind == SECOND, lambda rows: second.encode(batch["hq"][rows]))
        if (adapter := self.adapter) is not None:
            fidelity = batch["fidelity"].view(-1, 1, 1, 1)
            z = rows_made(z, kind >= ALIGNED, lambda rows: adapter(channels_last(z[rows]), fidelity[rows]).latents)
        if (prior := self.prior) is not None:
            z = rows_made(z, kind == FINISHED, lambda rows: prior(channels_last(z[rows])))
        return z


def lattice(made: Tensor, real: Tensor) -> Tensor:
    """How much (B, 3, s, s) differ from the photos by a pattern that repeats from cell to cell: L1 of the fine difference at
    each of a cell's 64 places, averaged over 4x4 cells. Texture averages out there, a grid does not. s is a multiple of 8.
    """
    apart = made - real
    fine = apart - F.avg_pool2d(apart, 9, 1, 4, count_include_pad=False)
    places = F.pixel_unshuffle(fine, FACTOR)
    return F.avg_pool2d(places, min(4, places.shape[-1])).abs().mean()


class DecoderTask(NetworkTask):
    """Clean latents -> the photo's patch; a critic of its own optimiser learns beside the decoder."""

    name = "decoder"

    def __init__(self, config: Config, device: torch.device, together: Collectives, features: nn.Module | None = None) -> None:
        data = config.data
        if data.pairs and (not data.window or data.around < data.window):
            raise InputError("decoder: learns from windows of stored pairs; set data.window and data.around beside data.pairs")
        self.config, self.stage = config, config.decoder
        path = Path(config.models.init) if config.models.init else assets.bundled("vae")
        self.whole = checkpoint.open_network(path, "vae", StarterVaeNet).to(device)
        self.before = copy.deepcopy(self.whole.decoder).requires_grad_(False)
        self.sources = None if data.pairs else Sources(config, self.whole.encoder, device)
        super().__init__(self.whole.decoder.requires_grad_(True))
        self.step = 0
        self.critic = ProjectedCritic(self.stage, config.seed + 1, device, together, features)

    def begin(self, model: nn.Module, samples: Any, step: int) -> None:
        self.step = step

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stage, data, view = self.stage, self.config.data, batch["view"]
        if self.sources is None:
            latents, real, side = batch["latents"], batch["pixels"], data.window * FACTOR
            extent, boxes = side - FACTOR, window_box(batch["corner"], data.window, data.size // FACTOR)
        else:
            latents, real, side = self.sources.latents(batch), batch["hq"], data.size
            extent, boxes = side // 2, view_box(view, side // 2, side)
        latents, real = channels_last(latents), channels_last(real)
        show = lambda pixels: look(pixels, view, extent)
        made = inner(model(latents), side)
        with torch.no_grad():
            given = inner(self.before(latents), side)
        seen = self.critic.seen(show(real), show(given))
        maps = self.critic.features(show(made))
        self.critic.learn(maps, seen, boxes)
        self.decibel = (
            (made.detach().float().clamp(0, 1) - real).square().mean() / (given.float().clamp(0, 1) - real).square().mean()
        ).log10() * -10
        ours, theirs = (F.avg_pool2d(x, FACTOR) for x in (made.float(), real))
        return {
            "pixel": stage.pixel * pixel_loss(made.float(), real),
            "coarse": stage.coarse * F.l1_loss(ours, theirs),
            "lattice": stage.lattice * lattice(made.float(), real),
            "near": stage.near * self.critic.near(maps, seen),
            "fool": asked(stage, self.step) * self.critic.fooled(maps, seen, boxes),
        }

    def finish(self) -> Mapping[str, float | Tensor]:
        """``gain``: decibels over the decoder as it was, on the last batch."""
        return {"gain": self.decibel, "critic": self.critic.judged}

    def state(self) -> dict[str, Any]:
        return self.critic.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.critic.load_state(state)

    def architecture(self) -> dict[str, Any]:
        return dict(self.whole.config)


def blended(before: nn.Module, learned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights ``share`` of the way from ``before``'s to the learned ones."""
    return {name: torch.lerp(value, learned[name].to(value), share) for name, value in before.state_dict().items()}


def samples_of(config: Config) -> Samples:
    """Patches of stored pairs, or the faces of the config's source drawn anew."""
    if config.data.pairs:
        return Patches(config)
    share = config.data.second_share if config.models.second_vae else 0.0
    own = functools.partial(own_draws, config.data, config.decoder, share)
    return Fresh(open_pictures(config.data)[0], config, own)


def run(config: Config) -> Path:
    """Finish the decoder and write the autoencoder beside its checkpoints; returns the file."""
    device = join_processes()
    task = DecoderTask(config, device, collectives())
    last = train(task, config.decoder, config, samples_of(config))
    task.load_weights(blended(task.before, averaged(checkpoints.load_state(last)), config.decoder.blend))
    return left_beside(last, "vae", task.whole, config, config.decoder)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
