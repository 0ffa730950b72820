"""Loader nodes, and the pack's folder among the host's model folders."""

from __future__ import annotations

import os
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..lafr_core.latent.spec import FAMILIES
from .networks import FOLDER, model_file, open_adapter, open_prior, open_starter_vae, stamp
from .starter import StarterHostVae, starter_model
from .widgets import ADAPTER, schema

BUNDLED = {"starter (bundled)": "sd", **{f"{name} (bundled)": name for name in FAMILIES if name != "sd"}}
"""Choice -> family of the adapter that comes with the pack. Saved workflows hold these words."""


def register_folder() -> None:
    """Make models/lafr known, beside whatever folders extra_model_paths.yaml gave that name. Touches no disk."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | {".safetensors", ".pth", ".onnx"})


class LoadAdapter(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        files = [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(".safetensors")]
        return schema(
            "LAFR_LoadAdapter",
            "LAFR Load Adapter",
            "Loads a latent alignment adapter: for SD 1.x/2.x, SDXL, SD3 or FLUX.1 latents, or a file of yours.",
            [
                io.Combo.Input(
                    "adapter",
                    options=[*BUNDLED, *files],
                    default=next(iter(BUNDLED)),
                    tooltip="One that comes with the pack (starter: SD 1.x/2.x), or a file in models/lafr made with LAFR's "
                    "training.",
                )
            ],
            [ADAPTER.Output("loaded", display_name="adapter", tooltip="For LAFR Align Latent and Restore Faces.")],
            ["face restore", "lafr adapter", "codebook"],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str) -> Any:
        return adapter if adapter in BUNDLED else stamp(model_file(adapter))

    @classmethod
    def execute(cls, adapter: str) -> Any:
        if adapter in BUNDLED:
            return io.NodeOutput(open_adapter(None, BUNDLED[adapter]))
        return io.NodeOutput(open_adapter(model_file(adapter)))


class LoadStarter(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_LoadStarter",
            "LAFR Load Starter",
            "The networks that come with the pack: restores faces on a machine without any checkpoint.",
            [],
            [
                io.Model.Output(
                    "model",
                    display_name="model",
                    tooltip="The one-step starter prior. Only for the Identity-Guided Sampler in one-step mode.",
                ),
                io.Vae.Output("vae", display_name="vae", tooltip="A small VAE in SD's latent space. Works in every VAE input."),
                ADAPTER.Output("adapter", display_name="adapter", tooltip="For LAFR Align Latent and Restore Faces."),
            ],
            ["face restore", "no checkpoint", "lafr starter"],
        )

    @classmethod
    def execute(cls) -> Any:
        return io.NodeOutput(starter_model(open_prior()), StarterHostVae(open_starter_vae()), open_adapter(None))
