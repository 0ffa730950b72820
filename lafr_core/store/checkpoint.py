"""Our weight files: safetensors whose metadata says what they are.

Metadata keys: ``lafr_kind`` (one of :data:`KINDS`), ``lafr_version`` (format), ``lafr_config`` (JSON of the network's
constructor arguments); anything else is free text for people (licence, training data, ...). The file name means nothing.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CheckpointError
from .atomic import atomic

FORMAT_VERSION = 1
KINDS = ("detector", "vae", "adapter", "prior", "embedder", "trust", "confidence", "presence")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A weight file in memory: what it is, how to build its network, and its tensors (as stored, often fp16)."""

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: dict[str, str]


def save(path: Path, kind: str, network: nn.Module, config: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> None:
    """Write ``network`` as fp16 safetensors (integers keep their type). Atomic: a reader sees the old file or the new one."""
    if kind not in KINDS:
        raise CheckpointError(f"checkpoint kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    tensors = {
        name: (t.detach().cpu().half() if t.is_floating_point() else t.detach().cpu()).contiguous()
        for name, t in network.state_dict().items()
    }
    metadata = {"lafr_kind": kind, "lafr_version": str(FORMAT_VERSION), "lafr_config": json.dumps(dict(config), sort_keys=True)}
    with atomic(path) as temporary:
        write_tensors(tensors, temporary, {**(notes or {}), **metadata})


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Contiguous tensors as safetensors at ``path``. Raises OSError where the disk refuses, as other writers do."""
    try:
        save_file(dict(tensors), str(path), metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        full = "os error 28" in str(error)  # safetensors tells the number in its text only
        code, reason = (errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else (errno.EIO, str(error))
        raise OSError(code, reason, str(path)) from error


def load(path: Path, kind: str) -> Checkpoint:
    """Read a weight file of ``kind``.

    Raises CheckpointError when the file is missing, unreadable, not one of ours, of a newer format or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a LAFR {kind} file (.safetensors), found no file there; check the path")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); fetch or export it again") from error
    found = metadata.get("lafr_kind")
    if found is None:
        raise CheckpointError(f"{path}: expected a LAFR {kind} file, got a safetensors file without LAFR metadata")
    if found != kind:
        raise CheckpointError(f"{path}: expected a LAFR {kind} file, got a {found} file; pass it as the {found} instead")
    version = metadata.get("lafr_version", "")
    if not version.isdecimal() or len(version) > 9 or int(version) > FORMAT_VERSION:  # int() refuses thousands of digits
        raise CheckpointError(f"{path}: format version {version[:20]!r}, this LAFR reads up to {FORMAT_VERSION}; update LAFR")
    try:
        config = json.loads(metadata["lafr_config"])
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__} instead of named values")
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata holds no readable lafr_config; export it again") from error
    notes = {key: text for key, text in metadata.items() if not key.startswith("lafr_")}
    return Checkpoint(kind, config, tensors, notes)


def open_network(path: Path, kind: str, build: Callable[..., Network]) -> Network:
    """The network in a LAFR file of ``kind``: ``build(**config)`` with the file's tensors, float32, frozen, on the CPU.

    Raises CheckpointError as :func:`load` and :func:`restore_network` do, and for a config that ``build`` does not take.
    """
    stored = load(path, kind)
    try:
        network = build(**stored.config)
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError, MemoryError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: its config does not describe the kind of {kind} that this LAFR knows ({error}); export it again"
        ) from error
    restore_network(network, stored, path)
    return network


def restore_network(network: nn.Module, checkpoint: Checkpoint, path: Path) -> nn.Module:
    """Load the tensors strictly as float32; return the network in eval mode, frozen. Raises CheckpointError on any mismatch."""
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in checkpoint.tensors.items()}
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise CheckpointError(f"{path}: tensor {bad[0]} holds NaN or infinite values; export it again")
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: tensors do not fit the network its config describes ({error})") from error
    return network.eval().requires_grad_(False)
