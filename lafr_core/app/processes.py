"""One process, or one of several that ``accelerate launch`` started: who does which inputs, on which device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from ..errors import InputError, MissingPackageError
from ..models import choose_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among its siblings."""

    device: torch.device
    index: int = 0
    count: int = 1
    state: Any = None
    """accelerate's PartialState when there are several."""

    @property
    def first(self) -> bool:
        return self.index == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``count``-th item: neighbours, often alike in size, go to different processes."""
        return list(items[self.index :: self.count])

    def wait(self) -> None:
        """Return when every process has come this far."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        if self.state is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join(device: str) -> Processes:
    """The processes that a launcher announced in ``WORLD_SIZE``, or just this one. ``device`` as in starter.choose_device.

    Raises MissingPackageError when there are several and accelerate is not installed.
    """
    announced = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not announced.isdecimal():
        raise InputError(f"WORLD_SIZE: expected the number of processes, got {announced!r}; unset it, or use accelerate launch")
    if int(announced) < 2:
        return Processes(choose_device(device))
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingPackageError(f"several processes need accelerate ({error}); pip install accelerate") from error
    # The barrier at the end waits for the slowest process of what may be days of work; the default gives up after minutes.
    try:
        state = PartialState(cpu=device == "cpu", timeout=timedelta(days=30))
    except (ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"WORLD_SIZE={announced}: the other processes cannot be joined ({error}); use accelerate launch, or unset it"
        ) from error
    return Processes(state.device, state.process_index, state.num_processes, state)
