"""Our networks under the host's memory management: loaded whole where the host says, released when it asks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import torch
from comfy_execution.utils import get_executing_context
from torch import nn

from ..lafr_core.errors import InputError
from ..lafr_core.types import Progress

COUNTED = {"detect": "looked for faces in photo", "restore": "face"}
"""Stage of the pipeline -> what a person sees counted in the node."""


class WholePatcher(comfy.model_patcher.ModelPatcher):  # type: ignore[misc]
    """A patcher that is loaded all or nothing.

    The host's partial loading casts layers one by one; plain ``torch.nn`` layers, codebooks and buffers would stay behind on
    another device. The extra arguments differ between host versions.
    """

    def partially_load(self, device_to: torch.device, extra_memory: float = 0, *args: Any, **kwargs: Any) -> Any:
        return super().partially_load(device_to, 1e32, *args, **kwargs)

    def partially_unload(self, *args: Any, **kwargs: Any) -> int:
        return 0


class Managed:
    """A callable of ``lafr_core`` whose networks the host loads before every call. Other attributes are the callable's own."""

    def __init__(self, call: Any) -> None:
        self.call = call
        networks = modules_of(call)
        self.patcher = whole(nn.ModuleList(networks)) if networks else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.load()
        return self.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("call", "patcher"):  # not set yet: copying or failing in __init__
            raise AttributeError(name)
        return getattr(self.call, name)

    def load(self) -> None:
        if self.patcher is not None:
            mm.load_models_gpu([self.patcher])

    @property
    def networks(self) -> list[nn.Module]:
        return modules_of(self.call)


def whole(network: nn.Module) -> WholePatcher:
    """``network`` (frozen, float32) under the host's management, waiting on the offload device."""
    with torch.inference_mode(False):
        network = network.eval().requires_grad_(False).to(device=mm.unet_offload_device())
    return WholePatcher(network, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


def modules_of(thing: Any) -> list[nn.Module]:
    """The networks behind one of ``lafr_core``'s callables: itself, or what it holds."""
    if isinstance(thing, nn.Module):
        return [thing]
    return [value for value in getattr(thing, "__dict__", {}).values() if isinstance(value, nn.Module)]


_opened: dict[tuple[Any, ...], Any] = {}


def opened(key: tuple[Any, ...], open_it: Callable[[torch.device], Any]) -> Any:
    """What ``open_it(device)`` returns, :class:`Managed` and kept for the next node; a None is returned and not kept.

    ``key`` names the kind, the file and its date. The host may unload the networks at any time, but a patcher nobody holds
    would vanish from its books, so one per key is kept here.
    """
    if key not in _opened:
        # Ordinary weights even under the server's inference mode: guidance differentiates through them.
        with torch.inference_mode(False):
            part = open_it(mm.get_torch_device())
        if part is None:
            return None
        for old in [other for other in _opened if other[:2] == key[:2]]:  # the same file, changed on disk
            del _opened[old]
        _opened[key] = Managed(part)
    return _opened[key]


def host_progress() -> Progress:
    """A progress callback that moves the node's bar and stops when the user has pressed interrupt."""
    bars: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        if stage not in bars:
            bars.clear()  # one bar a node: the newest stage owns it
            bars[stage] = comfy.utils.ProgressBar(total)
        bars[stage].update_absolute(done, total)

    return progress


def say(text: str) -> None:
    """Show ``text`` in the node that is being run; nothing where no server listens.

    Lines end in two spaces: Nodes 2.0 reads the text as Markdown, which would join them; the classic canvas does not mind.
    """
    context = get_executing_context()
    # Asked for by name: importing the host's server starts what a graph run without one does not need.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text.replace("\n", "  \n"), context.node_id)


def telling(progress: Progress) -> Progress:
    """``progress`` that also says in the node what it counts: 'face 3 of 12'."""

    def told(stage: str, done: int, total: int) -> None:
        progress(stage, done, total)
        if stage in COUNTED:
            say(f"{COUNTED[stage]} {done} of {total}")

    return told


def check_rows(what: str, rows: int, faces: int) -> None:
    """Raise InputError unless there is one row a face."""
    if rows != faces:
        raise InputError(
            f"{what}: expected one row a face ({faces}), got {rows}; use the outputs of one LQ Face Detect together"
        )
