"""Training from the command line: ``python -m train STAGE [options]``, or ``accelerate launch -m train STAGE [options]``.

``python -m train`` lists the stages, ``python -m train STAGE --help`` what one of them takes. A stage's module is imported when
it is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from lafr_core.errors import LafrError, SettingsError


class Stage(NamedTuple):
    """One word of the command line: the module whose ``main(arguments)`` does it, and what it is for."""

    module: str
    summary: str


STAGES = {
    "prepare": Stage("tools.prepare_data", "photos -> aligned FFHQ-512 faces with a manifest"),
    "preview": Stage("data.preview", "a picture of what training degrades faces to"),
    "pairs": Stage("data.pairs", "latents of clean and degraded faces, stored once"),
    "codebook": Stage("tasks.codebook", "stage 1: the codes of clean latents"),
    "adapter": Stage("tasks.adapter", "stage 2: find those codes from degraded latents"),
    "confidence": Stage("tasks.confidence", "the adapter's confidence map: how far its latents are off, where that is known"),
    "prior": Stage("tasks.prior", "stage 3: one step from aligned to restored latents, LoRA or starter prior"),
    "critic": Stage("tasks.critic", "the generative prior: windows drawn under a critic on frozen features"),
    "joint": Stage("tasks.joint", "adapter and prior together on fresh faces, under critics on whole faces and close-ups"),
    "decoder": Stage("tasks.decoder", "the starter decoder's finish: a critic on pixels, latents as they are"),
    "diffusion": Stage("tasks.diffusion", "a small diffusion prior of SD's interface, over all timesteps"),
    "thumbnail": Stage("tasks.thumbnail", "latents -> small picture: what the identity term looks at"),
    "vae": Stage("tasks.vae", "the starter autoencoder"),
    "families": Stage("tasks.families", "the adapter for SDXL, SD3 and FLUX.1"),
    "detector": Stage("tasks.detector", "the starter detector's finder"),
    "closeup": Stage("tasks.closeup", "the starter detector's second look"),
    "landmarks": Stage("tasks.landmarks", "the starter detector's last look"),
    "embedder": Stage("tasks.embedder", "the starter identity embedder"),
    "presence": Stage("tasks.presence", "whether there is a face at all: the part of trust that no prior touches"),
    "trust": Stage("tasks.trust", "how far a restored face can be believed, on faces whose original is known"),
    "evaluate": Stage("tools.evaluate", "metrics of a checkpoint"),
    "export": Stage("tools.export", "a checkpoint -> files that hosts load"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stage that ``arguments`` (None = the process's) name. A LafrError, or what the disk refuses, ends the process
    with a sentence and code 1, Ctrl-C with one and code 130: checkpoints stay."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not given or given[0] in ("-h", "--help"):
            print((__doc__ or "").strip(), "\n")
            print("\n".join(f"  {name:<10} {stage.summary}" for name, stage in STAGES.items()), flush=True)
            return
        importlib.import_module(f"train.{stage_of(given[0]).module}").main(given[1:])
    except LafrError as error:
        print(f"train: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our figures has heard enough
        sys.stdout = None  # type: ignore[assignment]
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that has gone, no permission
        refused = f"cannot be read or written ({error.strerror or error}); make room, or choose another place"
        print(f"train: {error.filename}: {refused}" if error.filename else f"train: {refused}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("train: stopped; the same command goes on where a checkpoint or a stored pair was written last", file=sys.stderr)
        sys.exit(130)


def stage_of(name: str) -> Stage:
    """The stage of that name. Raises SettingsError naming the nearest one."""
    if name not in STAGES:
        from train.config import nearest

        raise SettingsError(f"python -m train: {name!r} is no stage; {nearest(name, list(STAGES))}")
    return STAGES[name]


if __name__ == "__main__":
    main()
