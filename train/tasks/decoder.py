"""The starter decoder's finish: a critic on frozen features says what a decoded patch lacks beside the photo.

    C="--config train/configs/starter_decoder.yaml --data.pairs runs/decoder_pairs"
    python -m train pairs   $C --data.source FACES --models.vae TAESD
    python -m train decoder $C --models.vae TAESD

Only the decoder learns; the latents stay as they are, so everything that was trained on them fits as before. Patches are
decoded from clean latents, the starter encoder's and the teacher's, and from degraded ones that the adapter aligned: on those,
smoother than any photo's, a decoder that has seen only clean ones draws a grid. The critic (train.judges.projected) sees each
beside what the decoder made of it before. The last step's averaged weights become ``vae.safetensors`` beside the
checkpoints, the encoder in it unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import assets, checkpoint
from train.config import Config
from train.data.faces import Picture, locate
from train.data.pairs import FACTOR, Shards, corner
from train.data.windows import inner
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, left_beside
from train.engine.run import Collectives, collectives, command, join_processes
from train.judges.projected import ProjectedCritic, asked, window_box
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
        """(3,): pixels down and to the right, and how near, for :func:`look`."""
        return torch.tensor([*g.integers(0, FACTOR + 1, 2).tolist(), int(g.integers(1, 3))])


def look(pixels: Tensor, views: Tensor) -> Tensor:
    """What the critic is shown of (B, 3, s, s): each moved by its view's 0 to 8 pixels, and once or twice as near.

    (B, 3, s - 8, s - 8). A network that looks in steps of four pixels, always at the same ones, is blind to a grid of four
    pixels, and a decoder that ends in a pixel shuffle soon draws one.
    """
    side = pixels.shape[-1] - FACTOR
    seen = []
    for picture, (top, left, near_by) in zip(pixels, views.tolist(), strict=True):
        part = picture[None, :, top : top + side // near_by, left : left + side // near_by]
        seen.append(F.interpolate(part, size=(side, side), mode="bilinear") if near_by > 1 else part)
    return torch.cat(seen)


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
        if not data.pairs or not data.window or data.around < data.window:
            raise InputError("decoder: learns from windows of stored pairs; set data.pairs, data.window and data.around")
        self.config, self.stage = config, config.decoder
        path = Path(config.models.init) if config.models.init else assets.bundled("vae")
        self.whole = checkpoint.open_network(path, "vae", StarterVaeNet).to(device)
        self.before = copy.deepcopy(self.whole.decoder).requires_grad_(False)
        super().__init__(self.whole.decoder.requires_grad_(True))
        self.step = 0
        self.critic = ProjectedCritic(self.stage, config.seed + 1, device, together, features)

    def begin(self, model: nn.Module, samples: Any, step: int) -> None:
        self.step = step

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stage, side = self.stage, self.config.data.window * FACTOR
        latents, real, places = (
            channels_last(batch["latents"]),
            channels_last(batch["pixels"]),
            window_box(batch["corner"], self.config.data.window, self.config.data.size // FACTOR),
        )
        show = lambda pixels: channels_last(look(pixels, batch["view"]))
        made = inner(model(latents), side)
        with torch.no_grad():
            given = inner(self.before(latents), side)
        seen = self.critic.seen(show(real), show(given))
        maps = self.critic.features(show(made))
        self.critic.learn(maps, seen, places)
        self.decibel = (
            (made.detach().float().clamp(0, 1) - real).square().mean() / (given.float().clamp(0, 1) - real).square().mean()
        ).log10() * -10
        return {
            "pixel": stage.pixel * pixel_loss(made.float(), real),
            "lattice": stage.lattice * lattice(made.float(), real),
            "near": stage.near * self.critic.near(maps, seen),
            "fool": asked(stage, self.step) * self.critic.fooled(maps, seen, places),
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


def run(config: Config) -> Path:
    """Finish the decoder and write the autoencoder beside its checkpoints; returns the file."""
    device = join_processes()
    task = DecoderTask(config, device, collectives())
    last = train(task, config.decoder, config, Patches(config))
    task.load_weights(blended(task.before, averaged(checkpoints.load_state(last)), config.decoder.blend))
    return left_beside(last, "vae", task.whole, config, config.decoder)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
