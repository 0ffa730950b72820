"""One clip restored into another: in segments, so that a stop loses seconds of work, and several processes can share it.

While a clip is worked on, a hidden folder beside the result holds the tracks and the finished segments. It goes when the clip
is done; after a stop it stays, with a playable file of what is done so far, until the same clip is restored again.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from .. import __version__
from ..errors import ClipError, InputError
from ..pipeline import NO_REFERENCES, References
from ..settings import RestoreSettings
from ..store.atomic import atomic
from ..store.outputs import Files
from ..types import Models, Progress, ignore_progress
from .lock import LOCK, Lock
from .restore import Survey, restored_frames, survey
from .settings import ClipSettings
from .sources import open_source
from .target import Source, Target, Writer
from .tracks import as_arrays, from_arrays

SEGMENT = 100
"""Frames a segment: what a stop may lose, and what a process takes at a time."""


@dataclass(frozen=True)
class Team:
    """This process among those that share the clip."""

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    """Returns when every process has come this far."""

    def share(self, segments: int) -> range:
        """The segments that this process does: neighbours, so that little is looked at twice."""
        return range(self.index * segments // self.count, (self.index + 1) * segments // self.count)


@dataclass(frozen=True)
class TrackReport:
    """One restored track, for people."""

    number: int
    start: int
    """Number of its first frame."""
    box: tuple[float, float, float, float]
    """Where the face is in its first frames: their median box, in upright pixels."""
    first: float
    """Seconds from the clip's start."""
    last: float
    frames: int
    missed: int
    """Frames in which the detector did not see the face; they are interpolated."""
    change: float | None = None
    """Mean over its frames, as :class:`~lafr_core.types.Face` has it; None without an embedder."""
    likeness: float | None = None
    trust: float | None = None


@dataclass(frozen=True)
class ClipResult:
    """What became of a clip."""

    output: Path
    frames: int
    found: int
    """Tracks before the settings chose."""
    tracks: tuple[TrackReport, ...]
    notes: tuple[str, ...] = ()


MARK = "partial"
"""File in the hidden folder that tells the partial result that was left: what lies there is ours while it is still that."""
Sealed = Callable[[Path, Path, Path, ClipResult], None]
"""(source, the written file, the name that it is about to get, what became of the clip): the last word before it has that
name. Of a folder of frames it is called for each."""


def restore_clip(
    source: Path,
    out: Path,
    models: Models,
    settings: RestoreSettings | None = None,
    clip_settings: ClipSettings | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    hint: str = "choose another name or pass overwrite=True",
    references: References = NO_REFERENCES,
    signature: Mapping[str, Any] | None = None,
    inputs: Iterable[Path] = (),
    team: Team | None = None,
    progress: Progress = ignore_progress,
    seal: Sealed = lambda source, written, output, result: None,
) -> ClipResult:
    """Restore the faces of a clip, and write it with all that it held: sound, subtitles, chapters, times, colours.

    source: a film, an animated picture (GIF, WebP, PNG), or a folder whose pictures are the frames, in the order of names.
    out: the result without its suffix, which follows from codec and source; of a folder it is a folder. A stop
    (KeyboardInterrupt, or Cancelled from ``progress``) leaves ``OUT.partial.SUFFIX``, playable, and with ``resume`` the next
    call goes on at the last whole segment; where the source, a setting or ``signature`` (JSON that tells models and
    references apart) has changed it begins anew. Raises ClipError, InputError where a file is there already and
    ``overwrite`` is False (``hint`` is what to do then), or where it is the source or one of ``inputs``, whatever its spelling.
    """
    settings, how = settings or RestoreSettings(), clip_settings or ClipSettings()
    team = team or Team()
    clip, target = open_source(source, how)
    out = out.with_name(out.name + target.suffix)
    read = Files([Path(source), *inputs])
    _check_free(out, read, overwrite, hint)
    work = _Work.open(out, target.suffix, clip, settings, how, signature, resume, team)
    waits = _Waits(team, 3)

    try:
        known = work.known(
            lambda: survey(
                clip, models, settings, how.steadiness, best_frames=how.best_frames, references=references, progress=progress
            ),
            waits,
        )
        _restore_segments(work, clip, target, known, models, settings, how, references, team, progress)
        waits.one()
        result = _result(work, clip, target, known)
        if team.index == 0:
            work.check_whole(len(known.times))
            _check_free(out, read, overwrite, hint)  # clips take long: what was free may be taken now
            target.join(
                work.segments(),
                out,
                replace=overwrite,
                seal=lambda origin, written, output: seal(origin, written, output, result),
            )
            work.remove()
        waits.one()
        return result
    except BaseException as error:
        if team.index == 0:
            work.save_partial(target)
        if isinstance(error, Exception):  # the others wait for this process, whatever became of its part
            waits.rest()
        raise
    finally:
        work.lock.free()


def _check_free(out: Path, read: Files, overwrite: bool, hint: str) -> None:
    """Raise InputError where a result at ``out``, a file or a folder of frames, would replace what it may not."""
    if not overwrite and os.path.lexists(out):
        raise InputError(f"{out}: a file is there already; {hint}")
    if any(path in read for path in ([out, *out.iterdir()] if out.is_dir() else [out])):
        raise InputError(f"{out}: the result would overwrite an input; choose another output folder")


def partial_of(out: Path) -> Path | None:
    """What a stop left to play of the clip that was to be ``out`` (without its suffix), or None where nothing was done or a
    person's own file has the name."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}*.lafr"):
        suffix = folder.name[1 + len(out.name) : -len(".lafr")]
        partial = out.with_name(f"{out.name}.partial{suffix}")
        if Path(f"x{suffix}").stem == "x" and _is_left(partial, folder / MARK):  # not another clip's whose name begins alike
            return partial
    return None


def _is_left(partial: Path, mark: Path) -> bool:
    """Whether what lies at ``partial`` is what a stop left there: not a person's file, nor one with a person's files in it."""
    try:
        return _read_json(mark) == _state_of(partial)
    except OSError:
        return False


def _state_of(path: Path) -> Any:
    """What changes, as JSON has it, when somebody writes to a file, or into a folder."""
    places = [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]
    return [[os.fspath(place.relative_to(path)), place.lstat().st_size, place.lstat().st_mtime_ns] for place in places]


@dataclass
class _Waits:
    """The points at which all processes meet, counted, so that one that fails does not leave the others waiting."""

    team: Team
    left: int

    def one(self) -> None:
        self.left -= 1
        self.team.wait()

    def rest(self) -> None:
        while self.left:
            self.one()


def _restore_segments(
    work: _Work, clip: Source, target: Target, known: Survey, models: Models, settings: RestoreSettings, how: ClipSettings,
    references: References, team: Team, progress: Progress,
) -> None:  # fmt: skip
    total = len(known.times)
    mine = [k for k in team.share(-(-total // SEGMENT)) if not work.has(k)]
    for run in _runs(mine):
        start, stop = run[0] * SEGMENT, min(total, (run[-1] + 1) * SEGMENT)
        frames = restored_frames(
            clip, known, models, settings, how.steadiness, start=start, stop=stop, references=references,
            progress=_offset(progress, start, total),
        )  # fmt: skip
        for number in run:
            said: Said = {}
            with work.segment(number, target) as writer:
                for done in itertools.islice(frames, min(total, (number + 1) * SEGMENT) - number * SEGMENT):
                    writer.write(done.frame)
                    for track, face in done.faces:
                        for name in READ_OUTS:
                            if (value := getattr(face, name)) is not None:
                                said.setdefault(str(track), {}).setdefault(name, []).append(value)
            work.note(number, said)


Said = dict[str, dict[str, list[float]]]
"""Track -> read-out -> its values, frame by frame."""
READ_OUTS = ("change", "likeness", "trust")


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours together: [0, 1, 4] -> [0, 1], [4]."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _offset(progress: Progress, start: int, total: int) -> Progress:
    return lambda stage, done, _: progress(stage, start + done, total)


def _result(work: _Work, clip: Source, target: Target, known: Survey) -> ClipResult:
    base = clip.info.time_base
    said = work.said()
    tracks = tuple(
        TrackReport(
            number=track.number,
            start=track.start,
            box=track.begins_at(),
            first=round(float(known.times[track.start] * base), 3),
            last=round(float(known.times[track.stop - 1] * base), 3),
            frames=len(track.points),
            missed=int((~track.found).sum()),
            **{name: round(fmean(values), 4) for name, values in said.get(str(track.number), {}).items()},
        )
        for track in known.tracks
    )
    notes = [*clip.info.notes, *target.notes, *clip.faults]
    notes += [f"frame {index}: {why}; passed through as it is" for index, why in known.faults[:20]]
    if len(known.faults) > 20:
        notes.append(f"{len(known.faults) - 20} further damaged frames passed through")
    return ClipResult(work.out, len(known.times), known.found, tracks, tuple(notes))


# --- the hidden folder ---


@dataclass(frozen=True)
class _Work:
    """What is done so far of one clip."""

    out: Path
    folder: Path
    suffix: str
    partial: Path
    lock: Lock

    @classmethod
    def open(
        cls, out: Path, suffix: str, clip: Source, settings: RestoreSettings, how: ClipSettings,
        signature: Mapping[str, Any] | None, resume: bool, team: Team,
    ) -> _Work:  # fmt: skip
        """The folder beside ``out``, emptied unless it can be gone on with."""
        folder = out.with_name(f".{out.name}.lafr")
        stem = out.name.removesuffix(suffix)
        work = cls(out, folder, suffix, out.with_name(f"{stem}.partial{suffix}"), Lock())
        state = {
            "lafr": __version__,
            "pyav": _pyav(),
            "segment": SEGMENT,
            "source": _fingerprint(clip.path),
            "settings": asdict(settings),
            "clip": asdict(how),
            "signature": dict(signature or {}),
        }
        if team.index == 0:
            file = folder / "state.json"
            if folder.exists() and not file.is_file() and any(entry.name != LOCK for entry in folder.iterdir()):
                raise InputError(f"{folder}: expected a folder of ours or none, found other files in it; move them")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not work.lock.taken(folder / LOCK):
                    raise InputError(f"{out}: another run is at work on it; wait for that, or choose another output folder")
                if not (resume and _read_json(file) == json.loads(json.dumps(state))):
                    work.clear()
                with atomic(file) as temporary:
                    temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
            except OSError as error:
                work.lock.free()
                raise ClipError(f"{folder}: cannot be written ({error.strerror or error})") from error
            except BaseException:
                work.lock.free()
                raise
        team.wait()
        return work

    def known(self, look: Callable[[], Survey], waits: _Waits) -> Survey:
        """The first pass's result: read, or made by the first process while the others wait."""
        file = self.folder / "tracks.npz"
        if waits.team.index == 0 and not file.is_file():
            _save_survey(file, look())
        waits.one()
        return _load_survey(file)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self.suffix}"

    def has(self, number: int) -> bool:
        return self.path(number).exists()

    def segments(self) -> list[Path]:
        """The finished segments from the first on, up to the first that is missing."""
        paths: list[Path] = []
        while self.has(len(paths)):
            paths.append(self.path(len(paths)))
        return paths

    def check_whole(self, frames: int) -> None:
        """Raise ClipError unless every segment of so many frames is there: another process may have failed."""
        wanted, there = -(-frames // SEGMENT), len(self.segments())
        if there != wanted:
            raise ClipError(f"{self.out}: expected {wanted} segments, found {there}; the same command with --resume goes on")

    def segment(self, number: int, target: Target) -> _Segment:
        return _Segment(self.path(number), target)

    def note(self, number: int, said: Said) -> None:
        """Keep what is known of one segment's faces, as sums."""
        sums = {track: {name: [sum(values), len(values)] for name, values in outs.items()} for track, outs in said.items()}
        with atomic(self.folder / f"{number:06d}.json") as temporary:
            temporary.write_text(json.dumps(sums), encoding="utf-8")

    def said(self) -> Said:
        """The segments' means, each as often as it has frames."""
        result: Said = {}
        for file in sorted(self.folder.glob("*.json")):
            for track, outs in (_read_json(file) or {}).items() if file.stem.isdecimal() else ():
                for name, (total, count) in outs.items():
                    result.setdefault(track, {}).setdefault(name, []).extend([total / count] * count)
        return result

    def save_partial(self, target: Target) -> None:
        """What is done so far, as a clip that plays; nothing where nothing is done."""
        ready = self.segments()
        begun = self.folder / f"{len(ready):06d}.begun{self.suffix}"
        paths = [*ready, *([begun] if begun.exists() else [])]
        if paths and (self._partial_is_ours() or not os.path.lexists(self.partial)):
            _remove(self.partial)
            target.join(paths, self.partial, whole=False)
            with atomic(self._mark) as temporary:
                temporary.write_text(json.dumps(_state_of(self.partial)), encoding="utf-8")
        _remove(begun)

    def clear(self) -> None:
        """Take away what an earlier run has left, but for the lock that this one holds."""
        if self._partial_is_ours():
            _remove(self.partial)
        for entry in self.folder.iterdir():
            if entry.name != LOCK:
                _remove(entry)

    def remove(self) -> None:
        self.clear()
        self.lock.free()  # some disks (FUSE, NFS) keep an open file in its folder under another name
        with contextlib.suppress(OSError):  # another run may have begun in it
            _remove(self.folder / LOCK)
            self.folder.rmdir()

    @property
    def _mark(self) -> Path:
        return self.folder / MARK

    def _partial_is_ours(self) -> bool:
        """Whether what lies under the partial result's name was made here, and by nobody since: a person's stays as it is."""
        return _is_left(self.partial, self._mark)


class _Segment:
    """A segment while it is written: whole under its own name at the end, ``.begun`` and playable after a stop."""

    def __init__(self, path: Path, target: Target) -> None:
        self.path, self.begun = path, path.with_name(f"{path.stem}.begun{path.suffix}")
        _remove(self.begun)
        self.writer = target.segment(self.begun)

    def __enter__(self) -> Writer:
        return self.writer

    def __exit__(self, kind: Any, *_: object) -> None:
        if self.writer.frames == 0:
            self.writer.abandon()
            _remove(self.begun)
            return
        self.writer.close()
        if kind is None:
            os.replace(self.begun, self.path)


def _remove(path: Path) -> None:
    """Take away a file or folder of ours, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _pyav() -> str:
    try:
        import av
    except ImportError:  # animations and folders of frames do without
        return ""
    return str(av.__version__)


def _fingerprint(path: Path) -> dict[str, Any]:
    """What tells whether a file is still the same: size and the hash of its first and last megabyte. Of a folder: the names,
    sizes and times of its files."""
    if path.is_dir():
        files = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(path) if e.is_file())
        return {"files": len(files), "sha256": hashlib.sha256(repr(files).encode()).hexdigest()}
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(0, size - (1 << 20)))
        digest = hashlib.sha256(head + file.read()).hexdigest()
    return {"size": size, "sha256": digest}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _save_survey(file: Path, known: Survey) -> None:
    with atomic(file) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            times=np.asarray(known.times, dtype=np.int64),
            best_frames=np.asarray(known.best_frames),
            found=np.asarray(known.found),
            cuts=np.asarray(known.cuts, dtype=np.int64),
            faults=np.frombuffer(json.dumps(known.faults).encode(), dtype=np.uint8),
            **as_arrays(known.tracks),  # type: ignore[arg-type]
        )


def _load_survey(file: Path) -> Survey:
    try:
        with np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        faults = tuple((int(i), str(why)) for i, why in json.loads(arrays["faults"].tobytes()))
        times, cuts = array("q", arrays["times"].tolist()), tuple(arrays["cuts"].tolist())
        return Survey(tuple(from_arrays(arrays)), times, int(arrays["found"]), cuts, faults, float(arrays["best_frames"]))
    except Exception as error:  # a damaged archive makes NumPy raise nearly anything
        raise ClipError(f"{file}: cannot be read ({error}); restore the clip again without --resume") from error
