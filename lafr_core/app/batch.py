"""Photos by the file: one input restored, and many of them with a report, progress, and a clean stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from .. import __version__
from ..errors import InputError, LafrError
from ..faces import trust
from ..faces.detect import choice_note, find_faces
from ..geometry import CROP_SIZE, FFHQ_TEMPLATE
from ..images import photos
from ..images.enlarge import Enlarge, enlarged
from ..images.photos import Photo
from ..models import device_name
from ..pipeline import NO_REFERENCES, References, restore_crops, restore_stored
from ..settings import RestoreSettings
from ..store.outputs import Outputs, can_be_named
from ..types import Box, Detector, Face, Models
from . import gallery, report
from .arguments import TAKEN
from .jobs import Job
from .journal import Entry, Journal, absolute, is_journal
from .keep import KeepMasks
from .output import Style, copy
from .processes import Processes
from .report import Record, Report
from .terminal import on_terminal, progress_bar, say, show


@dataclass(frozen=True)
class Made:
    """What became of one input, and how to put its result into a file."""

    record: Record
    save: Callable[[Path], None]
    """Writes the result to the path it is given. Raises LafrError or OSError."""


Worker = Callable[[Job], Made]
Reader = Callable[[Path], Photo]
PLAIN = Style()
"""PNG, with the record."""


def restore_photo(
    job: Job,
    models: Models,
    settings: RestoreSettings,
    boxes: Sequence[Box] | None = None,
    read: Reader = photos.read,
    references: References = NO_REFERENCES,
    style: Style = PLAIN,
    upscale: int = 1,
    max_pixels: int | None = None,
    enlarge: Enlarge | None = None,
    masks: KeepMasks | None = None,
) -> Made:
    """Restore the faces of one photo file, ``upscale`` times enlarged (by ``enlarge``; None = Lanczos), but for what ``masks``
    keep.

    Raises LafrError when it cannot be read, or when the result would have more than ``max_pixels``. Faces are told in pixels
    of the file.
    """
    photo = read(job.source)
    larger = _enlarged(photo, upscale, max_pixels, enlarge, job.source)
    canvas = None if upscale == 1 else larger.stored
    keep = None if masks is None else masks.of(job.source, photo, upscale)
    result = restore_stored(
        photo.stored, models, settings, boxes=boxes or None, keep=keep, enlarged=canvas, references=references
    )
    left_out = result.left_out(0, settings)
    if not result.faces and upscale == 1 and style.keeps_file(job.source, job.output):
        return Made(record(job, "no_face", (), [*photo.notes, *left_out]), lambda path: copy(job.source, path))
    restored = larger
    if result.faces:
        restored = style.finished(larger.with_pixels(result.images[0]), made_by(settings, len(result.faces), upscale))
    notes = [*photo.notes, *style.losses(restored, job.output), *left_out, *trust_warnings(result.faces, settings)]
    status = "restored" if result.faces else "no_face"
    return Made(record(job, status, result.faces, notes), lambda path: style.save(path, restored, job.output))


def _enlarged(photo: Photo, factor: int, max_pixels: int | None, enlarge: Enlarge | None, source: Path) -> Photo:
    try:
        return enlarged(photo, factor, max_pixels=max_pixels, enlarge=enlarge)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def made_by(settings: RestoreSettings, faces: int, upscale: int = 1) -> dict[str, Any]:
    """What a restored photo says of its restoration."""
    larger = {} if upscale == 1 else {"upscale": upscale}
    return {"lafr": __version__, "faces": faces, **larger, "settings": asdict(settings)}


def restore_crop(
    job: Job,
    models: Models,
    settings: RestoreSettings,
    read: Reader = photos.read,
    references: References = NO_REFERENCES,
    style: Style = PLAIN,
) -> Made:
    """Restore one face crop at the FFHQ template: the whole picture is the face, blended by ``strength``, no mask.

    A square of another size is scaled to 512 for the networks and back, with a warning in the record. Raises InputError for
    pictures that are not square, and for references of several people: a crop does not say whose face it is.
    """
    if len(references.people) > 1:
        raise InputError(
            f"--reference: expected one person with --aligned, got {len(references.people)}; name that person's folder"
        )
    photo = read(job.source)
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
    restored, faces = restore_crops(crops, [face], models, settings, lenders=references.people, weight=references.weight)
    # The change is scaled back, not the picture: what the networks left alone stays as sharp as it was.
    change = _resized(restored - crops, side)
    result = (pixels + settings.strength * change).clamp(0, 1) if settings.strength > 0 else pixels
    restored_photo = style.finished(photo.with_pixels(result[0]), made_by(settings, len(faces)))
    losses = style.losses(restored_photo, job.output)
    made = record(job, "restored", faces, [*notes, *losses, *trust_warnings(faces, settings)])
    return Made(made, lambda path: style.save(path, restored_photo, job.output))


def trust_warnings(faces: Iterable[Face], settings: RestoreSettings) -> list[str]:
    """One sentence for each face that deserves less trust than ``settings.identity_warning``."""
    sentences = ((number, trust.advice(face, settings.identity_warning)) for number, face in enumerate(faces))
    return [f"face {number}: {sentence}" for number, sentence in sentences if sentence]


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
    made_with: Mapping[str, Any]
    """Whatever decides what a result looks like: settings, models, options. A result made with other values is made again."""
    open_worker: Callable[[Processes], Worker]
    """Called once, in each process that has something to do: opens the models, returns what does one job."""
    journal: Journal
    report: Path | None = None
    resume: bool = False
    overwrite: bool = False
    gallery: Path | None = None
    read: Reader = photos.read
    """What reads photos for the gallery."""
    upscale: int = 1
    """How many times as large as its source a result is; for the report."""
    clips: Sequence[Mapping[str, Any]] = ()
    """What became of the clips of the same command; for the gallery."""
    reads: Sequence[Path] = ()
    """Files that the command reads besides the photos: clips, references, masks, models. They are never written."""


def carry_out(run: Run, processes: Processes) -> int:
    """Do this process's share of the inputs, report, and return the exit code. A stop leaves whole files and a valid report.

    Raises InputError, before any work, when a result or the report would replace a file that this run, or the run that it
    resumes, did not make.
    """
    header = {
        "lafr": __version__,
        "command": run.command,
        "device": device_name(processes.device),
        "processes": processes.count,
        "settings": asdict(run.settings),
    }
    if run.upscale != 1:
        header["upscale"] = run.upscale
    mine = processes.share(run.jobs)
    done = {job.output: entry for job in mine if run.resume and (entry := _earlier(run, job)) is not None}
    todo = [job for job in mine if job.output not in done]
    outputs = _outputs(run)
    own_report = _own_report(run, processes)
    reports = _reports(run, own_report)
    outputs.check(*_results(todo), *reports)
    results = Report(header, own_report, outputs)
    for job in mine:
        if job.output in done:
            results.entries[str(job.source)] = {**done[job.output].record, "input": str(job.source), "output": str(job.output)}
    journal = replace(run.journal, process=processes.index)
    finished = False
    try:
        _work(run, todo, processes, results, journal)
        finished = True
        whole = _saved(results, finished)
        return max(_finish(run, processes, results, skipped=len(done)), 0 if whole else 1)
    except KeyboardInterrupt:
        _saved(results, finished)
        say(f"lafr: stopped after {results.count(*report.DONE)} inputs; the same command with --resume goes on")
        return 130


def conduct(run: Run, processes: Processes, open_detector: Callable[[], Detector], *, dry: bool) -> int:
    """:func:`carry_out`; ``dry``: :func:`rehearse` instead, printed. Returns the exit code. Raises InputError."""
    if not dry:
        return carry_out(run, processes)
    for line in rehearse(run, open_detector):
        show(line)
    return 0


def check(run: Run) -> list[Job]:
    """The jobs that :func:`carry_out` would do. Raises InputError where it would refuse."""
    todo = [job for job in run.jobs if not (run.resume and _earlier(run, job) is not None)]
    reports = _reports(run, run.report)
    _outputs(run).check(*_results(todo), *reports)
    return todo


def _results(jobs: Iterable[Job]) -> Iterator[Path]:
    """What is going to be written, but for names that this disk takes from nobody: they fail when it is their turn."""
    return (job.output for job in jobs if _can_be_tried(job) and can_be_named(job.output))


def _reports(run: Run, own: Path | None) -> list[Path]:
    """The report that this process writes, the one of all, and the gallery. Raises InputError for a name that LAFR keeps."""
    paths = [path for path in (*dict.fromkeys((own, run.report)), run.gallery) if path is not None]
    for path in paths:
        if is_journal(path):
            raise InputError(f"{path}: expected a name for a report, got that of LAFR's journal; choose another one")
    return paths


def rehearse(run: Run, open_detector: Callable[[], Detector]) -> Iterator[str]:
    """What :func:`carry_out` would do with each input, a line each, with the number of faces. Writes nothing.

    Raises InputError where it would refuse.
    """
    todo = check(run)
    detector = open_detector() if any(map(_can_be_tried, todo)) else None
    waiting = set(todo)
    for job in run.jobs:
        if job not in waiting:
            yield f"{job.source}: done already ({job.output})"
        elif detector is None or not _can_be_tried(job):
            yield f"{job.source}: left out: {job.problem or job.unopened}"
        else:
            yield _rehearsed(run, job, detector)


def _rehearsed(run: Run, job: Job, detector: Detector) -> str:
    try:
        found = find_faces(run.read(job.source).stored.expand(3, -1, -1)[None], detector, run.settings)
    except LafrError as error:
        return f"{job.source}: would fail: {error}"
    choice = choice_note(sum(found.counts), len(found.faces), run.settings)
    return f"{job.source} -> {job.output}: {choice or _counted(len(found.faces))}"


def _counted(faces: int) -> str:
    return f"{faces} face" if faces == 1 else f"{faces} faces"


def _earlier(run: Run, job: Job) -> Entry | None:
    """The journal's entry where the job's result is there and doing it again would change nothing."""
    entry = run.journal.of_output(job.output)
    return entry if entry is not None and entry.is_result_of(job.source, run.command, run.made_with) else None


def _outputs(run: Run) -> Outputs:
    def ours(path: Path) -> bool:
        entry = run.journal.of_output(path)
        if run.report is not None and path in (run.report, *report.parts(run.report)):
            return run.resume and report.is_report_of(path, inputs)
        if path == run.gallery:
            return run.resume and gallery.is_gallery_of(path, inputs)
        mine = entry is not None and entry.source == sources.get(absolute(path)) and entry.command == run.command
        return run.resume and mine

    sources = {absolute(job.output): absolute(job.source) for job in run.jobs}
    inputs = report.absolutes([*(job.source for job in run.jobs), *run.reads])
    hint = TAKEN if run.resume else f"--resume goes on where an earlier run stopped, {TAKEN}"
    return Outputs([*(job.source for job in run.jobs), *run.reads], overwrite=run.overwrite, ours=ours, hint=hint)


def _can_be_tried(job: Job) -> bool:
    return job.problem is None and job.unopened is None


def _saved(results: Report, finished: bool = False) -> bool:
    """Write the report; False, with a sentence, where that fails: what is done stays done."""
    try:
        results.save(finished)
    except LafrError as error:
        say(f"lafr: {error}")
        return False
    return True


def _work(run: Run, jobs: Sequence[Job], processes: Processes, results: Report, journal: Journal) -> None:
    worker = _opened(run, jobs, processes)
    with progress_bar(jobs, run.command, shown=on_terminal() and processes.first) as bar:
        for job in bar:
            done = _attempt(job, worker, run, results.outputs, journal)
            if not results.add(done):
                bar.write(f"lafr: {results.path}: the report cannot be written at the moment; the photos are")
            if done.status in (report.FAILED, report.UNOPENED):
                word = "failed" if done.status == report.FAILED else "not opened"
                reason = done.reason or ""
                bar.write(f"lafr: {word}: {reason if done.input in reason else f'{done.input}: {reason}'}")
            for warning in done.warnings:
                bar.write(f"lafr: {done.input}: {warning}")


def _opened(run: Run, jobs: Sequence[Job], processes: Processes) -> Worker | None:
    """The models, opened by the first process before the others: what one has to download, the others then find."""
    if not processes.first:
        processes.wait()
    worker = run.open_worker(processes) if any(map(_can_be_tried, jobs)) else None
    if processes.first:
        processes.wait()
    return worker


def _attempt(job: Job, worker: Worker | None, run: Run, outputs: Outputs, journal: Journal) -> Record:
    """The job's record, whatever happens to it: one bad input must not end the run."""
    start = time.perf_counter()
    try:
        if job.unopened is not None:
            return Record(str(job.source), report.UNOPENED, reason=job.unopened)
        if job.problem is not None or worker is None:
            raise InputError(f"{job.source}: {job.problem}")
        made = worker(job)
        done = replace(made.record, seconds=time.perf_counter() - start)
        with outputs.writing(job.output) as temporary:
            made.save(temporary)
            journal.note(run.command, job.source, job.output, temporary, run.made_with, done.as_dict())
        return replace(done, seconds=time.perf_counter() - start)
    except torch.cuda.OutOfMemoryError:
        done = _failed(job, "the GPU's memory does not suffice; lower --batch-size or use --device cpu")
    except LafrError as error:
        done = _failed(job, str(error))
    except OSError as error:  # a full disk, a folder that has gone, no permission
        done = _failed(job, f"{job.output}: cannot be written ({error.strerror or error})")
    except MemoryError:
        done = _failed(job, "the memory does not suffice; scale the picture down")
    except Exception as error:  # a fault of ours or of a library: named, and the rest goes on
        done = _failed(job, f"{type(error).__name__}: {error}")
    return replace(done, seconds=time.perf_counter() - start)


def _failed(job: Job, reason: str) -> Record:
    return Record(str(job.source), report.FAILED, reason=reason)


def _finish(run: Run, processes: Processes, results: Report, skipped: int) -> int:
    """Join the processes' reports, say the sum, return the exit code."""
    processes.wait()
    whole = True
    if processes.first:
        if run.report is not None and processes.count > 1:
            results.entries = report.merge(run.report, results.header, processes.count, _outputs(run))
        if run.gallery is not None:
            whole = _gallery(run, results)
        words = {
            "restored": "restored", "detected": "with faces", "no_face": "without a face", report.FAILED: "failed",
            report.UNOPENED: "not opened",
        }  # fmt: skip
        counts = [f"{results.count(status)} {word}" for status, word in words.items() if results.count(status)]
        past = f" ({skipped} were done already)" if skipped else ""
        say(f"lafr: {', '.join(counts) or 'nothing left to do'}{past}; {results.header['device']}")
    processes.wait()  # a process that ends with 1 makes the launcher kill its siblings: not before the report is whole
    processes.leave()
    return 0 if whole and not results.count(report.FAILED) else 1


def _gallery(run: Run, results: Report) -> bool:
    """Write the gallery; False, with a sentence, where that fails: what is done stays done."""
    if run.gallery is None:
        return True
    try:
        entries = [*results.entries.values(), *run.clips]
        gallery.write(run.gallery, results.header, entries, results.outputs, run.read)
    except LafrError as error:
        say(f"lafr: {error}")
        return False
    return True


def _own_report(run: Run, processes: Processes) -> Path | None:
    if run.report is None or processes.count == 1:
        return run.report
    return report.part(run.report, processes.index)
