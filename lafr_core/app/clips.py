"""Clips by the file: one after the other, each with a bar, a clean stop and a line for every track."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError, LafrError
from ..models import device_name
from ..pipeline import References
from ..settings import RestoreSettings
from ..store.atomic import atomic
from ..types import Models, Progress
from ..video.clips import SUFFIXES
from ..video.run import ClipResult, Team, restore_clip
from ..video.settings import ClipSettings
from .arguments import Commands, lent, models_of, references_of
from .journal import Journal
from .processes import join
from .signature import made_with
from .terminal import say

STAGES = {"look": "looking for faces", "restore": "restoring"}


def add_clip_settings(parser: Commands) -> None:
    """The options that only clips have."""
    group = parser.add_argument_group("clips", "for .mp4, .mov, .mkv, .avi, ... (needs PyAV: pip install av)")
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


def split(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(clips named by their path, everything else), each in the order given."""
    clips = [text for text in inputs if Path(text).suffix.lower() in SUFFIXES and not Path(text).is_dir()]
    return [Path(text) for text in dict.fromkeys(clips)], [text for text in inputs if text not in clips]


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

    def report(self, path: Path | None) -> None:
        """Add them to the report, beside what the photos of the same run wrote. Raises InputError."""
        if path is None or not self.first:
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"inputs": []}
            with atomic(path) as temporary:
                text = json.dumps({**known, **self.header, "clips": list(self.entries)}, indent=1, allow_nan=False)
                temporary.write_text(text + "\n", encoding="utf-8")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: the report cannot be written ({error}); name another --report file") from error


def restore_clips(args: argparse.Namespace, paths: Sequence[Path], settings: RestoreSettings) -> Clips:
    """Restore each clip into ``args.out``. One that fails does not stop the rest. Raises InputError for two of one name."""
    how, processes = clip_settings_of(args), join(args.device)
    team = Team(processes.index, processes.count, processes.wait)
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise InputError(f"clips: expected different names, got {', '.join(path.name for path in paths)}; restore them apart")
    args.out.mkdir(parents=True, exist_ok=True)
    models = models_of(args, settings, processes.device)
    references = references_of(args, models, settings)
    signature = made_with(args, settings, clip=asdict(how), reference=lent(args))
    entries: list[dict[str, Any]] = []
    for path in paths:
        try:
            entries.append(_one(args, path, models, settings, how, references, team, signature, shown=processes.first))
        except LafrError as error:
            entries.append({"input": str(path), "status": "failed", "reason": str(error)})
            if processes.first:
                say(f"lafr: failed: {error}")
    header = {"lafr": __version__, "command": "restore", "device": device_name(processes.device), "finished": True}
    header |= {"processes": processes.count, "settings": asdict(settings), "clip_settings": asdict(how)}
    return Clips(tuple(entries), header, processes.first)


def _one(
    args: argparse.Namespace, path: Path, models: Models, settings: RestoreSettings, how: ClipSettings,
    references: References, team: Team, signature: dict[str, Any], *, shown: bool,
) -> dict[str, Any]:  # fmt: skip
    """One clip's entry in the report. Raises LafrError."""
    journal = Journal.open(args.out)
    done = _done(args, path, journal, signature) if args.resume else None
    if done is not None:
        say(f"lafr: {path}: done already, {done['output']}")
        return done

    def seal(written: Path, output: Path, result: ClipResult) -> None:
        journal.note("restore", path, output, written, signature, _entry(path, result))

    try:
        with _bar(path, shown) as progress:
            result = restore_clip(
                path, args.out / path.stem, models, settings, how,
                resume=args.resume, overwrite=args.overwrite, references=references,
                signature=signature, team=team, progress=progress, seal=seal,
            )  # fmt: skip
    except KeyboardInterrupt:
        if shown:
            say(f"lafr: {path}: stopped; what is done plays as {path.stem}.partial.*, the same command with --resume goes on")
        raise
    if shown:
        for line in lines(path, result):
            say(f"lafr: {line}")
    return _entry(path, result)


def _done(args: argparse.Namespace, path: Path, journal: Journal, signature: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run reported of the clip, where doing it again would give the same."""
    for output, known in journal.entries.items():
        if known[-1].is_result_of(path, "restore", signature) and journal.made(output):
            return dict(known[-1].record)
    return None


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
