"""The command line of the three stages: read the config, open data and models, hand a task to the loop."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lafr_core.errors import LafrError
from train import config as configs
from train.config import Config, Stage
from train.data.faces import Faces, Samples, open_faces
from train.data.pairs import StoredPairs
from train.engine.loop import Task, learning_line, train
from train.engine.parts import latent_features, vae_of
from train.engine.validation import Judge
from train.judges.losses import open_critics

log = logging.getLogger("train")


class Collectives(NamedTuple):
    """What the processes of a run do together; each is the identity for a single one."""

    sum: Callable[[Tensor], Tensor]
    gather: Callable[[Tensor], Tensor]
    """Concatenate along the rows, in the order of the ranks."""
    from_first: Callable[[Tensor], Tensor]


def join_processes() -> torch.device:
    """Join the launcher's process group, if there is one; returns this process's device."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Accelerator reads the launcher's --cpu by itself, PartialState does not: without it CPU processes would train apart.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    # accelerate launch --cpu starts a single process whatever --num_processes says: the count must be seen.
    log.info("process %d of %d on %s", state.process_index + 1, state.num_processes, state.device)
    return state.device


def collectives() -> Collectives:
    """The collectives of the running process group."""
    from accelerate.utils import broadcast, gather, reduce

    return Collectives(lambda t: reduce(t, "sum"), gather, broadcast)


def placed() -> tuple[int, int]:
    """(rank, number) of this process in the running group."""
    from accelerate import PartialState

    state = PartialState()
    return int(state.process_index), int(state.num_processes)


def held_out(config: Config) -> tuple[Faces | None, Judge | None]:
    """The validation faces of a config and who scores them; None, None without data.validation."""
    if not config.data.validation:
        return None, None
    faces, _ = open_faces(replace(config.data, subset=1.0), config.seed, split="val")
    return faces, Judge(faces, config.log.validation_faces, config.log.niqe)


def run(
    make_task: Callable[..., Task], config: Config, judge: Callable[[Task, torch.device], dict[str, float]] | None = None
) -> Path:
    """One stage on faces or stored pairs, from start to end; returns its best checkpoint's folder.

    ``judge`` scores it while it trains, in the place of the one that data.validation asks for.
    """
    device = join_processes()
    stage: Stage = getattr(config, make_task.name)  # type: ignore[attr-defined]
    critics = open_critics(config.loss, device)
    vae = vae_of(config, device)
    samples: Samples
    if config.data.pairs:
        samples = StoredPairs(config.data, config.seed, pixels=critics.needed(config.loss), device=device)
        log.info("%d stored faces in %s", len(samples), config.data.pairs)
    else:
        features = latent_features(config, device) if config.data.subset_method == "k-centre" else None
        samples, skipped = open_faces(config.data, config.seed, features=features)
        log.info("%d pictures, %d skipped", len(samples), len(skipped))
    validation = None
    if judge is None:
        validation, judge = held_out(config)
    task = make_task(config, vae, critics, device, collectives())
    log.info("%s", learning_line(task))
    return train(task, stage, config, samples, validation, judge)


def command(start: Callable[[Config], Path], arguments: Sequence[str], about: str | None) -> None:
    """``python -m train STAGE --config … [--section.name value …]``: ``start`` makes a file or folder of the parsed config.

    ``about`` is what ``--help`` says above the settings. A LafrError ends it with its sentence and exit code 1.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print((about or "").strip(), "\n\nSettings (section.name = default):\n")
        print(configs.dump(Config()))
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    try:
        log.info("finished: %s", start(configs.parse(arguments)))
    except LafrError as error:
        print(f"train: {error}", file=sys.stderr)
        sys.exit(1)
