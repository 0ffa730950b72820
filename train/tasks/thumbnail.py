"""The network behind identity terms on windows: latents -> the decoded picture, shrunk four times (train.judges.thumbnail).

    python -m train thumbnail --config train/configs/starter_thumbnail.yaml --data.pairs runs/pairs

Needs stored pairs with pixels. The last step's averaged weights become ``thumbnail.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lafr_core.store.atomic import atomic
from lafr_core.store.checkpoint import write_tensors
from train.config import Config
from train.data.pairs import StoredPairs
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, seeded
from train.engine.run import command, join_processes
from train.judges.thumbnail import ThumbnailNet, shrunk
from train.precision import channels_last


class ThumbnailTask(NetworkTask):
    """Clean latents -> shrunk pixels."""

    name = "thumbnail"

    def __init__(self, config: Config, channels: int) -> None:
        with seeded(config.seed):
            super().__init__(ThumbnailNet(channels))

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        error = model(channels_last(batch["z_hq"])).float() - shrunk(batch["hq"])
        self.decibel = error.detach().square().mean().log10() * -10
        return {"thumbnail": error.abs().mean()}

    def finish(self) -> Mapping[str, float | Tensor]:
        return {"psnr": self.decibel}


def run(config: Config) -> Path:
    """Train the network and write it beside its checkpoints; returns the file."""
    device = join_processes()
    samples = StoredPairs(replace(config.data, window=0, second_window=0, around=0), config.seed, device=device)
    channels = int(samples[0]["z_hq"].shape[0])
    task = ThumbnailTask(config, channels)
    task.model.to(device)
    last = train(task, config.thumbnail, config, samples)
    path = last.parent / "thumbnail.safetensors"
    tensors = averaged(checkpoints.load_state(last))
    with atomic(path) as part:
        write_tensors({name: t.contiguous() for name, t in tensors.items()}, part)
    return path


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
