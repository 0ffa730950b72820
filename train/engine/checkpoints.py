"""Checkpoints on disk: one folder a step, written under a temporary name and renamed, so a reader never sees half of one.

``out/<stage>/step_00000500/`` holds ``state.pt`` (weights, average, optimiser, generators; plain tensors and numbers),
``config.yaml`` (resolved) and ``run.json`` (stage, seed, data manifest hash, git revision, versions). A run resumes from its
newest checkpoint; whatever builds on a run takes its best.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lafr_core.errors import CheckpointError, InputError
from train.config import Config, dump, from_mapping, read_yaml, to_mapping
from train.engine.journal import VALIDATION, read_rows

STATE, CONFIG, RUN = "state.pt", "config.yaml", "run.json"
MARK = ".lafr-run"
"""File in a stage's folder that says that a run made it: what has the names that training writes is then the run's."""
_NAME = re.compile(r"step_(\d{8})")
_INTERRUPTED = re.compile(r"\.step_\d{8}\.\d+")


def claim(folder: Path) -> None:
    """Make ``folder`` this stage's own, or see that it is: new, empty, or made by a run. What an interrupted save left goes.

    Raises InputError, before anything is written, where a folder holds what no run made: photos lie in folders of any name.
    """
    try:
        held = sorted(entry.name for entry in folder.iterdir()) if os.path.lexists(folder) else []
        if held and not (folder / MARK).is_file() and newest(folder) is None:
            raise InputError(f"{folder}: expected a folder of a run or none, found {held[0]} in it; choose another log.out")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); choose another log.out") from error
    for path in folder.iterdir():
        if _INTERRUPTED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def fingerprint(stage: str, config: Config, manifest: str, processes: int = 1) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that resumes it. Where files lie, logging and step counts may change.

    The frozen models count by their content; the number of processes changes which samples a step sees.
    """
    plain = to_mapping(config)
    places = ("workers", "source", "validation", "pairs", "second_pairs", "held", "decoded")
    data = {key: value for key, value in plain["data"].items() if key not in places}
    optimised = {k: v for k, v in plain.get(stage, {}).items() if k not in ("steps", "compile", "tf32")}
    models = {key: value if key == "family" else identity_of(value) for key, value in plain["models"].items()}
    return {
        "stage": stage,
        "seed": config.seed,
        "data": data,
        "manifest": manifest,
        "models": models,
        "processes": processes,
        "network": plain["network"],
        "loss": {key: value for key, value in plain["loss"].items() if not key.endswith("_weights")},
        "optimised": optimised,
    }


def identity_of(where: str) -> str:
    """What tells a model apart wherever it lies: size and a hash of the first and last megabyte of every weight file.

    A word that names no file (nothing, ``none``) stands for itself; a run's folder is told by its name, since it grows.
    """
    path = Path(where)
    if not where or not path.exists():
        return where
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".bin"))
    if not files:
        return path.name
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read(1 << 20))
    return digest.hexdigest()[:16]


def write(folder: Path, step: int, state: Mapping[str, Any], config: Config, identity: Mapping[str, Any]) -> Path:
    """Write ``step``'s checkpoint into ``folder`` and return its path. On any error nothing of it remains."""
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    temporary.mkdir()
    try:
        torch.save(dict(state), temporary / STATE)
        (temporary / CONFIG).write_text(dump(config), encoding="utf-8")
        run = {**identity, "step": step, "revision": revision(), "torch": torch.__version__}
        (temporary / RUN).write_text(json.dumps(run, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            _flush(file)
        if final.exists():  # left by a run that went further than the checkpoint it was resumed from
            shutil.rmtree(final)
        os.replace(temporary, final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def read(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The state in ``path``. Raises CheckpointError when it cannot be read or belongs to another stage or run, naming what
    differs.
    """
    run = run_of(path)
    if run.get("stage") != expected["stage"]:
        raise CheckpointError(
            f"{path}: expected a checkpoint of the {expected['stage']} stage, got one of {run.get('stage')!r}"
        )
    different = [key for key, value in expected.items() if run.get(key) != json.loads(json.dumps(value))]
    if different:
        key = different[0]
        raise CheckpointError(
            f"{path}: this run's {key} differs from the checkpoint's ({_difference(run.get(key), expected[key])}); "
            "resume with the same settings, or choose another log.out"
        )
    return load_state(path)


def load_state(path: Path) -> dict[str, Any]:
    """The tensors and numbers of a checkpoint, on the CPU. Raises CheckpointError when they cannot be read."""
    try:
        return torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no narrower class for a damaged file
        raise CheckpointError(f"{path}: its {STATE} cannot be read ({error}); use an older checkpoint") from error


def open_checkpoint(where: str | Path, stage: str) -> tuple[Path, Config, dict[str, Any]]:
    """The checkpoint of ``stage`` at ``where``: a checkpoint folder, or the best of a stage folder or a run folder.

    Returns its path, its config and its state. Raises CheckpointError when there is none, or it is of another stage.
    """
    where = Path(where)
    path = where if (where / RUN).is_file() else best(where / stage) or best(where)
    if path is None:
        raise CheckpointError(
            f"{where}: expected a {stage} checkpoint (step_…/{STATE}) there, found none; train that stage first"
        )
    found = run_of(path).get("stage")
    if found != stage:
        raise CheckpointError(f"{path}: expected a checkpoint of the {stage} stage, got one of {found!r}; give the {stage} run")
    return path, from_mapping(read_yaml(path / CONFIG)), load_state(path)


def run_of(path: Path) -> dict[str, Any]:
    """The ``run.json`` of a checkpoint."""
    try:
        return dict(json.loads((path / RUN).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint folder with {RUN} ({error}); check the path") from error


def best(folder: Path) -> Path | None:
    """What a later stage, an export or an evaluation takes from a stage's folder: the checkpoint that validated best.

    By the column ``log.best`` of the newest one's config, among those that are still there; the newest of equals, and the
    newest of all where none was validated. None where there is none.
    """
    there = steps(folder)
    rows = read_rows(folder / VALIDATION) if there else []
    if not there or not rows:
        return there[-1] if there else None
    column = from_mapping(read_yaml(there[-1] / CONFIG)).log.best
    scores = {f"step_{int(row['step']):08d}": row[column] for row in rows if column in row}
    scored = [path for path in there if path.name in scores]
    return max(reversed(scored), key=lambda path: scores[path.name]) if scored else there[-1]


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    found = steps(folder)
    return found[-1] if found else None


def steps(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / STATE).is_file() and (p / RUN).is_file())


def prune(folder: Path, keep: int, spare: int | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints, and the one of step ``spare``."""
    for path in steps(folder)[:-keep]:
        if spare is None or path.name != f"step_{spare:08d}":
            shutil.rmtree(path)


@functools.cache
def revision() -> str:
    """The git revision this process was started from, with ``+`` when it is modified; ``unknown`` outside git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [k for k in {**found, **wanted} if found.get(k) != json.loads(json.dumps(wanted.get(k)))]
        return ", ".join(f"{k}: {wanted.get(k)!r} here, {found.get(k)!r} there" for k in keys)
    return f"{wanted!r} here, {found!r} there"


def _flush(path: Path) -> None:
    """Make sure that a file or a folder's entries are on the disk before anything is renamed over them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
