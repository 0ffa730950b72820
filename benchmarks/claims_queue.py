"""benchmarks.claims' jobs: which are wanted, which are done, and several side by side as processes of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lafr_core.errors import LafrError
from lafr_core.store.atomic import atomic
from train.config import nearest
from train.tools import evaluate

log = logging.getLogger("benchmarks.claims")
PAUSE = 0.2
GRACE = 40.0
"""Seconds after the deadline in which jobs save and write what they made; then they are ended."""
LEAST = 10.0
"""Seconds before the deadline from which on no job begins."""


class Slots(NamedTuple):
    """How many jobs at once: ``first``, and ``then`` so many as soon as job ``after`` is done."""

    first: int
    after: str = ""
    then: int | str = 0

    def now(self, finished: Collection[str]) -> int:
        return int(self.then) if self.after in finished else self.first


class Job(Protocol):
    @property
    def needs(self) -> tuple[str, ...]: ...


def needed(known: Mapping[str, Job], name: str) -> list[str]:
    """What a job builds on, deepest first. Raises LafrError for an unknown name."""
    if name not in known:
        raise LafrError(f"claims: {name!r} is no job; {nearest(name, list(known))}")
    return [n for need in known[name].needs for n in (*needed(known, need), need)]


def wanted(known: Mapping[str, Job], only: Sequence[str]) -> list[str]:
    """All jobs, or ``only`` some and what they need, each after its needs."""
    names = {n for name in only for n in (*needed(known, name), name)} if only else set(known)
    return [name for name in known if name in names]


def done(out: Path, name: str, go_on: bool = False) -> bool:
    """Whether a job has left its result; with ``go_on`` one that a deadline ended does not count."""
    file = out / f"{name}.json"
    return file.is_file() and not (go_on and json.loads(file.read_text(encoding="utf-8"))["late"])


def keep(out: Path, name: str, result: Any, deadline: float = 0.0) -> None:
    """Write a job's result, and whether a deadline ended it."""
    out.mkdir(parents=True, exist_ok=True)
    kept = {"result": evaluate.plain(result), "late": bool(deadline and time.time() > deadline)}
    with atomic(out / f"{name}.json") as part:
        Path(part).write_text(json.dumps(kept, allow_nan=False), encoding="utf-8")


def results(out: Path, names: Sequence[str] | Mapping[str, Job]) -> dict[str, Any]:
    """What the jobs have left."""
    return {n: json.loads((out / f"{n}.json").read_text(encoding="utf-8"))["result"] for n in names if done(out, n)}


def side_by_side(
    known: Mapping[str, Job],
    names: Sequence[str],
    out: Path,
    at_once: Slots,
    arguments: Sequence[str],
    deadline: float,
    go_on: bool = False,
) -> None:
    """Run ``names``, no more than ``at_once`` together, the first that can run first; each writes ``out/logs/JOB.log``.

    A job that fails takes only those with it that need it. What still runs :data:`GRACE` seconds after ``deadline`` is ended.
    Raises LafrError naming the failed ones.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    waiting = [name for name in names if not done(out, name, go_on)]
    finished = {name for name in names if name not in waiting}
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    started = time.time()
    try:
        while waiting or running:
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode == 0:
                    finished.add(name)
                else:
                    failed.append(name)
                log.info("%5.1f s  %s %s", time.time() - started, "ended" if process.returncode == 0 else "FAILED", name)
            over = deadline > 0 and time.time() > deadline - LEAST
            waiting = [] if over else [n for n in waiting if not any(need in failed for need in needed(known, n))]
            ready = [n for n in waiting if all(need in finished for need in known[n].needs)]
            if waiting and not ready and not running:
                break
            for name in ready[: max(0, at_once.now(finished) - len(running))]:
                waiting.remove(name)
                running[name] = begin(name, out, arguments, deadline)
                log.info("%5.1f s  begun %s", time.time() - started, name)
            if deadline > 0 and time.time() > deadline + GRACE:
                break
            time.sleep(PAUSE)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if failed or running:
        raise LafrError(f"claims: failed or ended: {', '.join((*failed, *running))}; out/logs has what they said")


def begin(name: str, out: Path, arguments: Sequence[str], deadline: float) -> subprocess.Popen[bytes]:
    """Start one job in a process of its own, with one thread: the processor is shared by all of them."""
    command = [sys.executable, "-m", "benchmarks.claims", *arguments, "--alone", name, "--deadline", str(deadline)]
    with (out / "logs" / f"{name}.log").open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={"OMP_NUM_THREADS": "1", **os.environ})
