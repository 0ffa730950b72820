"""A training checkpoint -> the slim files that hosts load.

    python -m train export --checkpoint runs/sd21 --stage prior --out models/

Writes, from the averaged weights: ``adapter.safetensors`` (stages codebook and adapter), ``prior.safetensors`` (starter
prior), both (stage joint), or for a LoRA ``lafr_lora.safetensors`` (kohya names: ComfyUI, Forge, A1111),
``lafr_lora_diffusers.safetensors`` (``load_lora_weights``) and the empty prompt's embedding. Metadata say base model, text
width, timestep and prediction.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from lafr_core.errors import LafrError
from lafr_core.latent.lora import peft_to_kohya
from lafr_core.latent.sd_prior import CONTEXT_FILE
from lafr_core.store import checkpoint
from lafr_core.store.outputs import Outputs
from train.config import Config
from train.engine import checkpoints
from train.engine.parts import averaged, part, rebuilt

log = logging.getLogger("train.export")
LORA_FILES = ("lafr_lora.safetensors", "lafr_lora_diffusers.safetensors", CONTEXT_FILE)
BASES = {768: "sd_v1", 1024: "sd_v2"}
"""Text width -> what the LoRA's metadata call its base model."""


def export(where: Path, stage: str, out: Path, overwrite: bool = False) -> list[Path]:
    """Write the files of the best ``stage`` checkpoint at ``where`` into ``out``; returns their paths. Raises
    CheckpointError, and InputError where a file that is there would be replaced, unless ``overwrite``.
    """
    path, config, state = checkpoints.open_checkpoint(where, stage)
    notes = notes_of(path, config)
    lora = "context" in state["task"] and stage not in ("codebook", "adapter")
    names: tuple[str, ...] = ("adapter.safetensors" if stage in ("codebook", "adapter") else "prior.safetensors",)
    if lora:
        names = LORA_FILES
    elif stage == "joint":
        names = ("adapter.safetensors", "prior.safetensors")
    files = [out / name for name in names]
    outputs = Outputs(overwrite=overwrite)
    outputs.check(*files)
    with ExitStack() as stack:
        parts = [stack.enter_context(outputs.writing(file)) for file in files]
        if lora:
            export_lora(parts, config, state, notes)
        elif stage == "joint":
            export_adapter(parts[0], config, part(state, "adapter"), notes)
            export_prior(parts[1], config, part(state, "prior"), notes)
        elif stage in ("codebook", "adapter"):
            export_adapter(parts[0], config, state, notes)
        else:
            export_prior(parts[0], config, state, notes)
    return files


def export_adapter(file: Path, config: Config, state: Mapping[str, Any], notes: Mapping[str, str]) -> Path:
    """The adapter as lafr_core.latent.adapter opens it, with the architecture that the checkpoint carries."""
    network: Any = rebuilt(state, config, "adapter")
    checkpoint.save(file, "adapter", network, network.config, notes)
    return file


def export_prior(file: Path, config: Config, state: Mapping[str, Any], notes: Mapping[str, str]) -> Path:
    """The starter prior as lafr_core.latent.prior opens it, likewise."""
    network: Any = rebuilt(state, config, "prior")
    checkpoint.save(file, "prior", network, network.config, notes)
    return file


def export_lora(files: Sequence[Path], config: Config, state: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    """The LoRA in kohya's and in diffusers' names, fp16, and the empty prompt's embedding: into one file each."""
    tensors = {name.removeprefix("unet."): t for name, t in averaged(state).items()}
    task, stage = state["task"], config.prior
    metadata = {
        **notes,
        "base_model": BASES.get(task["context_dim"], "other"),
        "context_dim": str(task["context_dim"]),
        "timestep": str(stage.timestep),
        "prediction": str(task["prediction"]),
        "rank": str(stage.rank),
        "alpha": str(stage.alpha),
        "modelspec.title": f"LAFR one-step face restoration ({config.name})",
        # kohya's own names, which some loaders show
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(stage.rank),
        "ss_network_alpha": str(stage.alpha),
    }
    contents = (
        {k: t.half() for k, t in peft_to_kohya(tensors, stage.alpha).items()},
        to_diffusers(tensors, stage.alpha / stage.rank),
        {"context": task["context"].half()},
    )
    for file, content in zip(files, contents, strict=True):
        checkpoint.write_tensors({name: t.contiguous() for name, t in content.items()}, file, metadata)


def to_diffusers(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """peft parameter names -> what diffusers' ``load_lora_weights`` reads (``unet.<path>.lora_A.weight``), fp16.

    diffusers takes alpha = rank where a file holds no alpha, so the scale is multiplied into B.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        scaled = tensor * scale if ".lora_B." in name else tensor
        out["unet." + name.replace(".default.", ".")] = scaled.half()
    return out


def notes_of(path: Path, config: Config) -> dict[str, str]:
    """Where the weights come from, as metadata for people."""
    run = checkpoints.run_of(path)
    chosen = {key: run.get(key) for key in ("stage", "step", "seed", "revision", "manifest")}
    return {"training": json.dumps(chosen, sort_keys=True), "run": config.name}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train export", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, stage folder or one step_… folder")
    parser.add_argument("--stage", choices=("codebook", "adapter", "prior", "critic", "joint"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    args = parser.parse_args(given)
    try:
        for file in export(args.checkpoint, args.stage, args.out, args.overwrite):
            print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    except LafrError as error:
        print(f"export: {error}", file=sys.stderr)
        sys.exit(1)
