"""Photos by the file: one input restored, and many of them with a report, progress, and a clean stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from .. import __version__
from ..errors import InputError, LafrError
from ..geometry import CROP_SIZE, FFHQ_TEMPLATE
from ..images import photos
from ..models import device_name
from ..pipeline import restore_crops, restore_faces
from ..settings import RestoreSettings
from ..types import Box, Face, Models
from . import report
from .jobs import Job
from .processes import Processes
from .report import Record, Report

Worker = Callable[[Job], Record]


def restore_photo(job: Job, models: Models, settings: RestoreSettings, boxes: Sequence[Box] | None = None) -> Record:
    """Restore the faces of one photo file. Raises LafrError when it cannot be read or written."""
    photo = photos.read(job.source)
    result = restore_faces(photo.pixels[None], models, settings, boxes=[boxes] if boxes else None)
    photos.write(job.output, replace(photo, pixels=result.images[0]))
    status = "restored" if result.faces else "no_face"
    notes = [*photo.notes, *result.left_out(0, settings), *identity_warnings(result.faces, settings)]
    return record(job, status, result.faces, notes)


def restore_crop(job: Job, models: Models, settings: RestoreSettings) -> Record:
    """Restore one face crop at the FFHQ template: the whole picture is the face, blended by ``strength``, no mask.

    A square of another size is scaled to 512 for the networks and back, with a warning in the record. Raises InputError for
    pictures that are not square.
    """
    photo = photos.read(job.source)
    side, width = photo.pixels.shape[-2:]
    if side != width:
        raise InputError(f"{job.source}: expected a square face crop with --aligned, got {width}x{side}; leave --aligned out")
    k = side / CROP_SIZE
    left_eye, right_eye, nose, left_mouth, right_mouth = (((x + 0.5) * k - 0.5, (y + 0.5) * k - 0.5) for x, y in FFHQ_TEMPLATE)
    face = Face(
        box=(0.0, 0.0, float(side), float(side)),
        landmarks=(left_eye, right_eye, nose, left_mouth, right_mouth),
        score=1.0,
        matrix=((1 / k, 0.0, 0.5 / k - 0.5), (0.0, 1 / k, 0.5 / k - 0.5)),
    )
    pixels, notes = photo.pixels[None], list(photo.notes)
    crops = _resized(pixels, CROP_SIZE)
    if side != CROP_SIZE:
        notes.append(f"crop of {side} pixels, scaled to {CROP_SIZE} and back")
    restored, faces = restore_crops(crops, [face], models, settings)
    # The change is scaled back, not the picture: what the networks left alone stays as sharp as it was.
    change = _resized(restored - crops, side)
    result = (pixels + settings.strength * change).clamp(0, 1) if settings.strength > 0 else pixels
    photos.write(job.output, replace(photo, pixels=result[0]))
    return record(job, "restored", faces, [*notes, *identity_warnings(faces, settings)])


def identity_warnings(faces: Iterable[Face], settings: RestoreSettings) -> list[str]:
    """One sentence for each face less like its input than ``settings.identity_warning``."""
    return [
        f"face {number}: identity {face.change:.2f} is below {settings.identity_warning:g}; check that it is the same person"
        for number, face in enumerate(faces)
        if face.change is not None and face.change < settings.identity_warning
    ]


def record(job: Job, status: str, faces: Iterable[Face], warnings: Iterable[str]) -> Record:
    """What is reported of a job that went well."""
    return Record(str(job.source), status, str(job.output), faces=tuple(faces), warnings=tuple(warnings))


def _resized(pictures: torch.Tensor, side: int) -> torch.Tensor:
    if pictures.shape[-1] == side:
        return pictures
    return F.interpolate(pictures, size=(side, side), mode="bicubic", antialias=True, align_corners=False)


@dataclass(frozen=True)
class Run:
    """What one command does: the inputs, and how."""

    command: str
    jobs: Sequence[Job]
    settings: RestoreSettings
    open_worker: Callable[[Processes], Worker]
    """Called once, in each process that has something to do: opens the models, returns what does one job."""
    report: Path | None = None
    resume: bool = False


def carry_out(run: Run, processes: Processes) -> int:
    """Do this process's share of the inputs, report, and return the exit code. A stop leaves whole files and a valid report."""
    header = {
        "lafr": __version__,
        "command": run.command,
        "device": device_name(processes.device),
        "processes": processes.count,
        "settings": asdict(run.settings),
    }
    known = _earlier(run, header)
    mine = processes.share(run.jobs)
    todo = [job for job in mine if not (run.resume and _is_done(job, known))]
    results = Report(header, _own_report(run, processes), _kept(run, processes, known or {}))
    try:
        _work(run, todo, processes, results)
    except KeyboardInterrupt:
        results.save()
        say(f"lafr: stopped after {results.count(*report.DONE)} inputs; the same command with --resume goes on")
        return 130
    results.save(finished=True)
    return _finish(run, processes, results, skipped=len(mine) - len(todo))


def _work(run: Run, jobs: Sequence[Job], processes: Processes, results: Report) -> None:
    from tqdm import tqdm

    worker = _opened(run, jobs, processes)
    hidden = not (sys.stderr.isatty() and processes.first)
    with tqdm(jobs, desc=run.command, unit="photo", disable=hidden, file=sys.stderr) as bar:
        for job in bar:
            done = _attempt(job, worker)
            results.add(done)
            if done.status == report.FAILED:
                reason = done.reason or ""
                bar.write(f"lafr: failed: {reason if done.input in reason else f'{done.input}: {reason}'}", file=sys.stderr)
            for warning in done.warnings:
                bar.write(f"lafr: {done.input}: {warning}", file=sys.stderr)


def _opened(run: Run, jobs: Sequence[Job], processes: Processes) -> Worker | None:
    """The models, opened by the first process before the others: what one has to download, the others then find."""
    if not processes.first:
        processes.wait()
    worker = run.open_worker(processes) if any(job.problem is None for job in jobs) else None
    if processes.first:
        processes.wait()
    return worker


def _attempt(job: Job, worker: Worker | None) -> Record:
    """The job's record, whatever happens to it: one bad input must not end the run."""
    start = time.perf_counter()
    try:
        if job.problem is not None or worker is None:
            raise InputError(f"{job.source}: {job.problem}")
        job.output.parent.mkdir(parents=True, exist_ok=True)
        done = worker(job)
    except torch.cuda.OutOfMemoryError:
        done = _failed(job, "the GPU's memory does not suffice; lower --batch-size or use --device cpu")
    except LafrError as error:
        done = _failed(job, str(error))
    except Exception as error:  # a fault of ours or of a library: named, and the rest goes on
        done = _failed(job, f"{type(error).__name__}: {error}")
    return replace(done, seconds=time.perf_counter() - start)


def _failed(job: Job, reason: str) -> Record:
    return Record(str(job.source), report.FAILED, reason=reason)


def _finish(run: Run, processes: Processes, results: Report, skipped: int) -> int:
    """Join the processes' reports, say the sum, return the exit code."""
    processes.wait()
    if processes.first:
        if run.report is not None and processes.count > 1:
            results.entries = report.merge(run.report, results.header, processes.count)
        words = {"restored": "restored", "detected": "with faces", "no_face": "without a face", report.FAILED: "failed"}
        counts = [f"{results.count(status)} {word}" for status, word in words.items() if results.count(status)]
        past = f" ({skipped} were done already)" if skipped else ""
        say(f"lafr: {', '.join(counts) or 'nothing left to do'}{past}; {results.header['device']}")
    processes.wait()  # a process that ends with 1 makes the launcher kill its siblings: not before the report is whole
    processes.leave()
    return 1 if results.count(report.FAILED) else 0


def _own_report(run: Run, processes: Processes) -> Path | None:
    if run.report is None or processes.count == 1:
        return run.report
    return report.part(run.report, processes.index)


def _earlier(run: Run, header: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Entries of an earlier run by input, or None where nothing is to be resumed or no report tells of it."""
    if not run.resume or run.report is None:
        return None
    if run.report.is_file() and report.read(run.report).get("settings") != header["settings"]:
        say(f"lafr: {run.report} was made with other settings; photos done then are kept as they are")
    return report.earlier(run.report) or None


def _is_done(job: Job, known: dict[str, dict[str, Any]] | None) -> bool:
    recorded = known is None or known.get(str(job.source), {}).get("status") in report.DONE
    return recorded and job.output.is_file()


def _kept(run: Run, processes: Processes, known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The earlier entries that this process carries on: those of its own share, and the first one those of nobody's."""
    everyone = {str(job.source) for job in run.jobs}
    own = {str(job.source) for job in processes.share(run.jobs)}
    return {name: entry for name, entry in known.items() if name in own or (processes.first and name not in everyone)}


def say(message: str) -> None:
    """One line for the person at the terminal; stdout stays free for results."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
