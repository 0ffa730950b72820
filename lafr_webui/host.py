"""The webui around us: where A1111 and Forge differ, and what older versions lack. Nothing of it is imported before it is
needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lafr_core.errors import Cancelled
from lafr_core.types import Progress

log = logging.getLogger("lafr")

_gone: ContextVar[Callable[[], bool] | None] = ContextVar("gone", default=None)
"""Tells whether the one who asked has gone, where somebody asks over the network."""

FACE_FOLDERS = (
    "GFPGAN",
    "Codeformer",
    "facexlib",
    "facedetection",
    "facerestore_models",
    "insightface/models/buffalo_l",
    "lafr",
)
"""Folders under the webui's ``models`` where it and its extensions keep face networks."""
OLD_FOLDERS = ("gfpgan/weights", "repositories/CodeFormer/weights/facelib")
"""The same under the webui's own folder, in versions before 1.7."""


def device() -> torch.device:
    """Where the webui wants face restoration to run (honours ``--use-cpu`` and ``--device-id``)."""
    from modules import devices

    for_task = getattr(devices, "get_device_for", None)
    return torch.device(for_task("lafr") if for_task is not None else devices.get_optimal_device())


@contextlib.contextmanager
def neutral(where: torch.device) -> Iterator[None]:
    """Plain tensors, no gradients, no autocast: what our networks are loaded and run under.

    As part of txt2img the script is called inside the host's inference mode and autocast. Networks loaded there could never
    be differentiated again, and fp16 autocast would change their results.
    """
    # torch 2.3 knows no autocast for mps: there is none to switch off
    plain = torch.autocast(where.type, enabled=False) if where.type in ("cpu", "cuda", "xpu") else contextlib.nullcontext()
    with torch.inference_mode(False), torch.no_grad(), plain:
        yield


def weight_folders() -> tuple[Path, ...]:
    """Folders of this webui that may hold RetinaFace, ParseNet and their like, existing ones only: the switches' first."""
    from modules import paths_internal, shared

    told = [getattr(shared.cmd_opts, name, None) for name in ("gfpgan_models_path", "codeformer_models_path", "gfpgan_dir")]
    file = getattr(shared.cmd_opts, "gfpgan_model", None)
    folders = [Path(folder) for folder in [*told, os.path.dirname(file) if file else None] if folder]
    folders += [Path(paths_internal.models_path, name) for name in FACE_FOLDERS]
    folders += [Path(paths_internal.script_path, name) for name in OLD_FOLDERS]
    return tuple(dict.fromkeys(folder for folder in folders if folder.is_dir()))


@contextlib.contextmanager
def asked_by(gone: Callable[[], bool]) -> Iterator[None]:
    """While this is open, :func:`poll` also stops when ``gone`` says that nobody waits for the result any more."""
    token = _gone.set(gone)
    try:
        yield
    finally:
        _gone.reset(token)


def poll() -> None:
    """Raise Cancelled when Interrupt or Skip was pressed, or the client has gone. "Stop after this image"
    (``stopping_generation``) lets a picture finish.
    """
    from modules import shared

    gone = _gone.get()
    if gone is not None and gone():
        raise Cancelled("stopped: the client has gone")
    if getattr(shared.state, "interrupted", False) or getattr(shared.state, "skipped", False):
        raise Cancelled("stopped by Interrupt or Skip")


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A progress callback that moves the webui's bar, names the stage and polls; the host's own texts come back afterwards."""
    from modules import shared

    state = shared.state
    kept = {name: getattr(state, name, None) for name in ("textinfo", "sampling_step", "sampling_steps")}

    def tell(stage: str, done: int, total: int) -> None:
        poll()
        state.textinfo = f"LAFR {stage} {done}/{total}"
        state.sampling_step, state.sampling_steps = done, total

    try:
        yield tell
    finally:
        for name, value in kept.items():
            setattr(state, name, value)


@contextlib.contextmanager
def job() -> Iterator[None]:
    """One turn in the webui's queue, shown as a job: what the webui's own API routes do around their work."""
    from modules import shared
    from modules.call_queue import queue_lock

    with queue_lock:
        try:
            shared.state.begin(job="lafr")
        except TypeError:  # versions before 1.6 take no name
            shared.state.begin()
        shared.state.job_count = 1  # begin leaves -1, by which the webui's progress route would divide
        try:
            yield
        finally:
            shared.state.end()


def skip_picture() -> None:
    """Make the batch loop leave the present picture out and go on with the next, as the Skip button does."""
    from modules import shared

    shared.state.skipped = True


def batch_file() -> Path | None:
    """The file that a running *Batch from Directory* is at; None in any other work. Ask before the progress is told."""
    from modules import shared

    name = getattr(shared.state, "textinfo", None)
    return Path(name) if isinstance(name, str) and os.path.isfile(name) else None


def batch_files() -> tuple[Path, ...]:
    """The files of the running *Batch from Directory*, in its order."""
    from modules import shared

    return tuple(Path(name) for name in shared.listfiles(os.path.dirname(shared.state.textinfo)))


def read_picture(path: Path) -> Image.Image:
    """The file as the webui's batch loop hands it to scripts."""
    from modules import images

    image: Image.Image = getattr(images, "read", Image.open)(str(path))  # versions before 1.8 open it plainly
    return image if image.mode in ("RGBA", "RGB") else image.convert("RGB")


def setting(name: str, default: Any) -> Any:
    """A value from the webui's settings, ``default`` where this version has no such setting."""
    from modules import shared

    data = getattr(shared.opts, "data", None)
    if isinstance(data, dict) and name in data:
        return data[name]
    return getattr(shared.opts, name, default)


def free_memory() -> None:
    """Give cached GPU memory back."""
    from modules import devices

    devices.torch_gc()


def report(task: str, error: BaseException) -> None:
    """Show an error we did not expect in the webui's console the way the webui shows its own, and go on."""
    from modules import errors

    errors.display(error, task)
