"""Clips by the file: one after the other, each with a bar, a clean stop and a line for every track."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePath
from typing import Any

from .. import __version__
from ..errors import InputError, LafrError, MissingPackageError
from ..models import device_name
from ..pipeline import References
from ..settings import RestoreSettings
from ..store.outputs import Outputs
from ..types import Models, Progress
from ..video.clips import SUFFIXES
from ..video.folder import FolderClip
from ..video.pictures import is_animation
from ..video.run import ClipResult, Team, partial_of, restore_clip
from ..video.settings import ClipSettings
from .arguments import TAKEN, Commands, lent, models_of, references_of
from .jobs import albums, fixed_part, folded
from .journal import Journal, absolute
from .processes import join
from .report import read as read_report
from .signature import made_with
from .terminal import on_terminal, say

STAGES = {"look": "looking for faces", "restore": "restoring"}


def add_clip_settings(parser: Commands) -> None:
    """The options that only clips have."""
    group = parser.add_argument_group(
        "clips", "for .mp4, .mov, .mkv, .avi, ... (needs PyAV: pip install av), animated .gif, .webp, .png, folders of frames"
    )
    group.add_argument(
        "--sequence", action="store_true", help="each folder named is one clip: its pictures are the frames, in order of name"
    )
    for f in fields(ClipSettings):
        option, flag = f.metadata["option"], "--" + f.name.replace("_", "-")
        text = f"{option.help} (default: {f.default})".replace("%", "%%")
        if isinstance(f.default, bool):
            group.add_argument(flag, dest=f.name, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(
                flag,
                dest=f.name,
                type=type(f.default),
                choices=option.choices,
                metavar=None if option.choices else f.name.upper(),
                default=argparse.SUPPRESS,
                help=text,
            )


def clip_settings_of(args: argparse.Namespace) -> ClipSettings:
    """What the arguments say of clips; the defaults otherwise."""
    return ClipSettings(**{f.name: getattr(args, f.name) for f in fields(ClipSettings) if hasattr(args, f.name)})


@dataclass(frozen=True)
class ClipJob:
    """One clip, and the name below the output folder that its result gets, without its suffix."""

    source: Path
    stem: PurePath
    asked: bool = True
    """Named by a person, not come upon in a folder."""

    @property
    def named(self) -> PurePath:
        """The result's name where it keeps the source's suffix, as animated pictures do; photos leave it free."""
        return self.stem.with_name(self.stem.name + self.source.suffix)


def find(
    inputs: Sequence[str], out: Path, *, recursive: bool, sequence: bool, is_result: Callable[[Path], bool]
) -> tuple[list[ClipJob], list[str]]:
    """The clips among what a person named, and the inputs that may hold photos.

    A film or animated picture is a clip, named, matched by a glob or lying in a folder. ``sequence``: each folder is one clip,
    its pictures are the frames. Clips whose names differ in the suffix only keep it (``a.avi.mkv``). Results of earlier runs
    (``is_result``), hidden files and what lies in ``out`` are passed over in folders.
    """
    found: dict[str, tuple[Path, PurePath, bool]] = {}
    rest: list[str] = []
    prefixes = albums(inputs)
    for text in inputs:
        path, base = Path(text), PurePath()
        single = not path.is_dir() or sequence
        if path.is_dir() and sequence:
            seen = [path] if not is_result(path) else []
        elif path.is_dir():
            base, seen = prefixes.get(text, base), list(_clips_in(path, out, recursive, is_result))
        elif os.path.lexists(path) or not glob.has_magic(text):
            seen = [path] if _is_clip(path) else []
        else:
            seen = [p for p in sorted(map(Path, glob.glob(text, recursive=True))) if not p.is_dir() and _is_clip(p)]
        for clip in seen:
            name = PurePath(os.path.basename(os.path.realpath(clip))) if clip.is_dir() else PurePath(clip.name)
            if path.is_dir() and not sequence:
                name = base / clip.relative_to(path)
            elif clip != path:
                name = PurePath(clip.relative_to(fixed_part(path)))
            found.setdefault(os.path.realpath(clip), (clip, name, single))
        if path not in seen:
            rest.append(text)
    stems = Counter(folded(_stem(clip, name)) for clip, name, _ in found.values())
    jobs = []
    for clip, name, asked in found.values():
        stem = _stem(clip, name)
        jobs.append(ClipJob(clip, name if stems[folded(stem)] > 1 else stem, asked))
    return jobs, rest


def _stem(clip: Path, name: PurePath) -> PurePath:
    return name if clip.is_dir() else name.with_suffix("")


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or is_animation(path)


def _clips_in(folder: Path, out: Path, recursive: bool, is_result: Callable[[Path], bool]) -> Iterator[Path]:
    """Clips lying in a folder, and in those inside it where ``recursive``, sorted; folders that cannot be read are left to
    the photos' search, which names them."""
    shut = os.path.realpath(out)
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) != shut]
        for name in sorted(files):
            path = Path(place) / name
            if not name.startswith(".") and path.is_file() and _is_clip(path) and not is_result(path):
                yield path


@dataclass(frozen=True)
class Clips:
    """What became of the clips of a run."""

    entries: tuple[dict[str, Any], ...]
    header: dict[str, Any]
    first: bool
    """This process writes the report."""

    @property
    def failed(self) -> bool:
        return any(entry["status"] == "failed" for entry in self.entries)

    def report(self, path: Path | None, outputs: Outputs) -> None:
        """Add them to the report, beside what the photos of the same run wrote. Raises InputError, also where somebody else's
        file has its name meanwhile."""
        if path is None or not self.first:
            return
        try:
            known = read_report(path) if outputs.ours(path) else {"inputs": []}
            with outputs.writing(path) as temporary:
                text = json.dumps({**known, **self.header, "clips": list(self.entries)}, indent=1, allow_nan=False)
                temporary.write_text(text + "\n", encoding="utf-8")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: the report cannot be written ({error}); name another --report file") from error


def restore_clips(
    args: argparse.Namespace, jobs: Sequence[ClipJob], settings: RestoreSettings, inputs: Sequence[Path] = ()
) -> Clips:
    """Restore each clip into ``args.out``, replacing none of ``inputs``. One that fails does not stop the rest."""
    how, processes = clip_settings_of(args), join(args.device)
    team = Team(processes.index, processes.count, processes.wait)
    args.out.mkdir(parents=True, exist_ok=True)
    models = models_of(args, settings, processes.device)
    references = references_of(args, models, settings)
    signature = made_with(args, settings, clip=asdict(how), reference=lent(args))
    entries: list[dict[str, Any]] = []
    for job in jobs:
        try:
            entries.append(_one(args, job, models, settings, how, references, team, signature, inputs, shown=processes.first))
        except (LafrError, OSError) as problem:
            error = problem if isinstance(problem, LafrError) else _refused(job.source, problem)
            # A film come upon in a folder of photos is no failure where there is nothing to open films with.
            status = "unopened" if isinstance(error, MissingPackageError) and not job.asked else "failed"
            entries.append({"input": str(job.source), "status": status, "reason": str(error), "tracks": [], "warnings": []})
            if processes.first:
                word = "not opened" if status == "unopened" else "failed"
                say(f"lafr: {word}: {error if str(job.source) in str(error) else f'{job.source}: {error}'}")
    header = {"lafr": __version__, "command": "restore", "device": device_name(processes.device), "finished": True}
    header |= {"processes": processes.count, "settings": asdict(settings), "clip_settings": asdict(how)}
    return Clips(tuple(entries), header, processes.first)


def _one(
    args: argparse.Namespace, job: ClipJob, models: Models, settings: RestoreSettings, how: ClipSettings,
    references: References, team: Team, signature: dict[str, Any], inputs: Sequence[Path], *,
    shown: bool,
) -> dict[str, Any]:  # fmt: skip
    """One clip's entry in the report. Raises LafrError."""
    path, journal = job.source, Journal.open(args.out)
    done = _done(path, journal, signature) if args.resume else None
    if done is not None:
        say(f"lafr: {path}: done already, {done['output']}")
        return done

    def seal(source: Path, written: Path, output: Path, result: ClipResult) -> None:
        journal.note("restore", source, output, written, signature, _entry(path, result))

    out = args.out / job.stem
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: the folder cannot be made ({error.strerror or error}); choose another -o") from error
    try:
        with _bar(path, shown and on_terminal()) as progress:
            result = restore_clip(
                path, out, models, settings, how,
                resume=args.resume, overwrite=args.overwrite, hint=TAKEN, references=references,
                signature=signature, inputs=inputs, team=team, progress=progress, seal=seal,
            )  # fmt: skip
    except KeyboardInterrupt:
        if shown:
            partial = partial_of(out)
            plays = f"; what is done plays as {partial}" if partial is not None else ""
            say(f"lafr: {path}: stopped{plays}; the same command with --resume goes on")
        raise
    if shown:
        for line in lines(path, result):
            say(f"lafr: {line}")
    return _entry(path, result)


def _refused(source: Path, error: OSError) -> LafrError:
    """What a disk refused while a clip was worked on, in a sentence."""
    what = f"{error.filename}: " if error.filename else ""
    return InputError(f"{source}: {what}{error.strerror or error}; check the disk, the same command with --resume goes on")


def _done(path: Path, journal: Journal, signature: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run reported of the clip, where doing it again would give the same. Of a folder: of all its frames."""
    frames = [path / name for name in FolderClip(path).names] if path.is_dir() else [path]
    last = {known[-1].source: known[-1] for known in journal.entries.values() if known[-1].command == "restore"}
    record = None
    for frame in frames:
        entry = last.get(absolute(frame))
        if entry is None or not (entry.is_result_of(frame, "restore", signature) and journal.made(entry.output)):
            return None
        record = dict(entry.record)
    return record


def lines(path: Path, result: ClipResult) -> Iterator[str]:
    """What a person is told of a restored clip."""
    faces = f"{len(result.tracks)} of {result.found} faces followed" if result.found else "no face found"
    yield f"{path} -> {result.output}: {result.frames} frames, {faces}"
    for track in result.tracks:
        known = [(name, getattr(track, name)) for name in ("change", "likeness", "trust")]
        change = "".join(f", {name} {value:.2f}" for name, value in known if value is not None)
        missed = f", {track.missed} interpolated" if track.missed else ""
        yield f"  face {track.number}: {track.first:.2f} s to {track.last:.2f} s, {track.frames} frames{missed}{change}"
    yield from (f"  {note}" for note in result.notes)


def _entry(path: Path, result: ClipResult) -> dict[str, Any]:
    return {
        "input": str(path),
        "status": "restored" if result.tracks else "no_face",
        "output": str(result.output),
        "frames": result.frames,
        "tracks": [asdict(track) for track in result.tracks],
        "warnings": list(result.notes),
    }


@contextmanager
def _bar(path: Path, shown: bool) -> Iterator[Progress]:
    """Progress with the time left, one bar a pass."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda stage, done, total: None
        return
    bars: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            title = f"{path.name}, {STAGES.get(stage, stage)}"
            bars[stage] = tqdm(desc=title, unit="frame", disable=not shown, file=sys.stderr)
        bars[stage].total = total
        bars[stage].update(done - bars[stage].n)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
