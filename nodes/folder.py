"""LAFR_LoadFolder: every photo of one folder below ComfyUI's input folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..lafr_core.errors import ImageFileError, InputError
from ..lafr_core.images import photos
from .layout import to_image
from .memory import host_progress
from .samples import FACES, damaged
from .widgets import schema

TOP = "(input folder)"
SAMPLES = "(sample photos)"
"""The pack's own damaged photos, so that a batch can be tried before there is a folder."""


def folders() -> list[str]:
    """The input folder and the folders in it, by name."""
    top = Path(folder_paths.get_input_directory())
    inside = (
        sorted(entry.name for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if top.is_dir()
        else []
    )
    return [TOP, *inside, SAMPLES]


def photos_in(folder: str) -> list[Path]:
    """The image files of one of :func:`folders`, by name; none for the samples. Raises InputError for any other
    folder."""
    if folder == SAMPLES:
        return []
    if folder not in folders():
        raise InputError(f"folder: expected a folder inside ComfyUI's input folder, got {folder!r}; choose one from the list")
    path = Path(folder_paths.get_input_directory()) / ("" if folder == TOP else folder)
    return sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in photos.SUFFIXES)


class LoadFolder(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_LoadFolder",
            "LAFR Load Folder",
            "All photos of a folder inside ComfyUI's input folder, one after the other and each in its own size.",
            [io.Combo.Input("folder", options=folders(), tooltip="A folder inside the input folder, or the pack's samples.")],
            [
                io.Image.Output(
                    "images",
                    display_name="images",
                    is_output_list=True,
                    tooltip="The photos, upright, in the order of their names.",
                ),
                io.String.Output(
                    "names", display_name="names", is_output_list=True, tooltip="The files' names, without their endings."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="How many photos were read, and what is wrong with the others."
                ),
            ],
            ["batch", "load images", "directory"],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> Any:
        return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in photos_in(folder)]

    @classmethod
    def execute(cls, folder: str) -> Any:
        if folder == SAMPLES:
            images = [to_image(damaged(name)[None]) for name in FACES]
            return io.NodeOutput(images, list(FACES), f"{len(images)} sample photos")
        files = photos_in(folder)
        progress = host_progress()
        images, names, refused = [], [], []
        for number, file in enumerate(files):
            try:
                photo = photos.read(file)
            except ImageFileError as error:
                refused.append(str(error))
                logging.getLogger("lafr").warning("%s", error)
            else:
                planes = photo.pixels if photo.alpha is None else torch.cat([photo.pixels, photo.alpha])
                images.append(planes.movedim(0, -1)[None].contiguous())
                names.append(file.stem)
            progress("read", number + 1, len(files))
        if not images:
            raise InputError(
                f"folder {folder!r}: expected at least one readable photo, found none among {len(files)} image files; add some"
            )
        report = "\n".join([f"{len(images)} of {len(files)} photos read", *refused])
        return io.NodeOutput(images, names, report)
